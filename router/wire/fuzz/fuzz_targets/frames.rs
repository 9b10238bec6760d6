//! A stream of frames, each body read as every message it could be.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_wire::frame::{HEADER, header};
use switchyard_wire::message;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    while let Ok(Some(head)) = header(rest) {
        assert!(head.len >= HEADER && head.tag == rest[0]);
        let Some((frame, tail)) = rest.split_at_checked(head.len) else { break };
        let body = &frame[HEADER..];
        let _ = (message::query(body), message::command_tag(body), message::password(body));
        let _ = (message::parameter_status(body), message::negotiate_version(body), message::notification(body));
        if let Ok(status) = message::ready_status(body) {
            assert!(matches!(status, b'I' | b'T' | b'E'));
        }
        if let Ok((_, key)) = message::backend_key(body) {
            assert!((4..=256).contains(&key.len()));
        }
        if let Ok(initial) = message::sasl_initial(body) {
            assert!(initial.data.unwrap_or_default().len() + initial.mechanism.len() < body.len());
        }
        if let Ok(message::Auth::Sasl(mechanisms)) = message::auth(body) {
            assert!(mechanisms.map(|name| name.len() + 1).sum::<usize>() + 5 <= body.len());
        }
        rest = tail;
    }
});
