//! X: cancel requests.

use switchyard_tests::raw::messages as m;

use super::Case;
use super::side::{Side, bytes_to_the_end, listen};

/// A session that sleeps, and a cancel request made of its key.
fn asleep(request: fn(&Side, &[u8]) -> Vec<String>) -> impl Fn(&Side) -> Vec<String> {
    move |side| {
        let mut session = side.login();
        session.send(&m::query("SELECT pg_sleep(600)"));
        let mut seen;
        // The request may come before the query: until it is heard, it is repeated.
        session.patience(std::time::Duration::from_millis(200));
        let mut said = loop {
            seen = request(side, session.key());
            match session.try_read() {
                Ok(message) => break vec![message],
                Err(error) => assert!(error.kind() != std::io::ErrorKind::UnexpectedEof, "{error}"),
            }
        };
        session.patience(switchyard_tests::wait::DEADLINE);
        said.extend(session.until_ready());
        // Whether it had got so far as to say what its rows are depends on the moment.
        said.retain(|message| message.tag != b'T');
        seen.extend(said.iter().filter_map(switchyard_tests::raw::differential::normal));
        session.send(&m::query("SELECT 'and on'"));
        seen.extend(listen(&mut session));
        seen
    }
}

fn no_reply(bytes: Vec<u8>) -> impl Fn(&Side) -> Vec<String> {
    move |side| {
        let mut raw = side.open();
        raw.send(&bytes);
        raw.half_close();
        bytes_to_the_end(&mut raw)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new(
            "X1",
            "a running query",
            asleep(|side, key| {
                let mut raw = side.open();
                raw.send(&m::cancel_request(key));
                bytes_to_the_end(&mut raw)
            }),
        ),
        Case::new(
            "X2",
            "over TLS",
            asleep(|side, key| {
                let mut raw = side.open_tls();
                raw.send(&m::cancel_request(key));
                bytes_to_the_end(&mut raw)
            }),
        )
        .tls(),
        Case::new(
            "X2",
            "after SSLRequest was answered with N",
            asleep(|side, key| {
                let mut raw = side.open();
                raw.send(&m::ssl_request());
                assert_eq!(raw.byte().expect("an answer"), b'N');
                raw.send(&m::cancel_request(key));
                bytes_to_the_end(&mut raw)
            }),
        ),
        Case::new("X3", "a key that is nobody's", no_reply(m::cancel_request(&[0, 0, 0, 1, 9, 9, 9, 9]))),
    ];
    for length in [0, 3, 4, 7, 9, 12, 260, 300] {
        let bytes = m::cancel_request(&vec![1; length]);
        cases.push(Case::new("X3", format!("{length} bytes in place of a key"), no_reply(bytes)));
    }
    cases
}
