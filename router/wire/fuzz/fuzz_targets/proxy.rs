//! Headers of the PROXY protocol, both versions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_wire::proxy::{FIXED, MAX_LINE, MAX_REST, SIGNATURE, binary, line, rest_len};

fuzz_target!(|data: &[u8]| {
    if line(data).is_ok() {
        assert!(data.len() <= MAX_LINE && data.ends_with(b"\r\n"));
    }
    let Some((fixed, rest)) = data.split_first_chunk::<FIXED>() else { return };
    let mut fixed = *fixed;
    for signed in [false, true] {
        if signed {
            fixed[..SIGNATURE.len()].copy_from_slice(&SIGNATURE);
        }
        if let Ok(len) = rest_len(&fixed) {
            assert!(len <= MAX_REST);
        }
        if binary(&fixed, rest).is_ok() {
            assert_eq!(rest_len(&fixed), Ok(rest.len()));
        }
    }
});
