//! The `options` parameter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_wire::startup::options;

fuzz_target!(|text: &str| {
    if let Ok(settings) = options(text) {
        // Written again with every character escaped, it means the same.
        let mut again = String::new();
        for (name, value) in &settings {
            again.push_str("-c ");
            for c in name.chars().chain(['=']).chain(value.chars()) {
                again.extend(['\\', c]);
            }
            again.push(' ');
        }
        assert_eq!(options(&again).as_ref(), Ok(&settings));
    }
});
