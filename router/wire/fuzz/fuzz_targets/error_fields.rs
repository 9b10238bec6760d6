//! Errors and notices of a server.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_wire::message::ErrorFields;

fuzz_target!(|data: &[u8]| {
    if let Ok(fields) = ErrorFields::parse(data) {
        let all = [fields.severity(), fields.code(), fields.message(), fields.detail(), fields.hint()];
        assert!(all.iter().flatten().all(|text| !text.contains(&0) && text.len() < data.len()));
    }
});
