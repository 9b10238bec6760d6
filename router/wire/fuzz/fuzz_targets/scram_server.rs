//! A client that may say anything: it never gets in without the password.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_wire::scram::{ChannelBinding, ServerScram, Verifier};

fuzz_target!(|messages: (bool, bool, &[u8], &[u8])| {
    let (bound, plus, first, last) = messages;
    let verifier = Verifier::mock_with("u", &[0; 32], 1, 16);
    let binding = if bound { ChannelBinding::TlsServerEndPoint(vec![1; 32]) } else { ChannelBinding::None };
    let mut server = ServerScram::new(&verifier, binding);
    let mechanism = if plus { "SCRAM-SHA-256-PLUS" } else { "SCRAM-SHA-256" };
    let _ = server.first(mechanism, first);
    assert!(server.last(last).is_err());
    if let Ok(text) = std::str::from_utf8(last)
        && let Ok(verifier) = Verifier::parse(text)
    {
        assert!(Verifier::parse(&verifier.to_string()) == Ok(verifier));
    }
});
