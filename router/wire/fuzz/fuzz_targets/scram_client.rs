//! A server that may say anything: it is never believed without the password.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_wire::scram::{ClientScram, ClientSecret};

fuzz_target!(|messages: (bool, &[u8], &[u8])| {
    let (continues, challenge, last) = messages;
    let keys = ClientSecret::Keys { client_key: [1; 32], server_key: [2; 32] };
    let mut client = ClientScram::new(keys, None);
    let first = client.first();
    // The nonce cannot be guessed: put ours in front, as an honest server does.
    let mut message = Vec::new();
    if continues {
        message.extend_from_slice(&first[b"n,,n=,".len()..]);
    }
    message.extend_from_slice(challenge);
    if let Ok(answer) = client.challenge(&message) {
        assert!(continues && answer.starts_with(b"c=biws,r="));
    }
    assert!(client.verify(last).is_err());
});
