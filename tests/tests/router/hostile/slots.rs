//! Sockets of nobody: they take no place from those who log in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Running, Setup};

/// What a stranger sends, and no more.
const KINDS: usize = 5;

fn stranger(s: &Running, kind: usize) -> Option<Raw> {
    let mut raw = s.router.target().open().ok()?;
    match kind % KINDS {
        0 => {}
        1 => raw.send(&[0]),
        2 => {
            raw.send(&m::ssl_request());
            raw.byte().ok()?;
            // The head of a ClientHello, whose rest does not come.
            raw.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
        }
        3 => raw.send(&s.target("acme").startup()),
        _ => {
            raw.send(&s.target("acme").startup());
            raw.send(&m::frame(b'p', b"SCRAM-SHA-256\0")[..9]);
        }
    }
    Some(raw)
}

#[test]
fn heavy_a_login_succeeds_among_ten_times_as_many_strangers_as_there_are_places() {
    let limits = "[limits]\nunauthenticated = 200\nlogin_timeout = \"30s\"";
    let s = Setup::new().shards(1).tenants(["acme"]).tls("allow").section(limits).start();
    s.login("acme").value("SELECT 1");
    let ended = AtomicBool::new(false);
    let mut took = Vec::new();
    std::thread::scope(|scope| {
        let flood = |first: usize| {
            let (s, ended) = (&s, &ended);
            move || {
                let mut held = std::collections::VecDeque::new();
                let mut kind = first;
                while !ended.load(Ordering::SeqCst) {
                    held.extend(stranger(s, kind));
                    kind += 1;
                    // Ten times as many as there are places, of which each newcomer takes one.
                    if held.len() > 1000 {
                        held.pop_front();
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        };
        for n in 0..2 {
            scope.spawn(flood(n));
        }
        for _ in 0..20 {
            let begin = Instant::now();
            // One try each: a place that is taken is not taken away before the login is over.
            let plain = s.router.target().user("app.acme").password("client-secret").database("crm");
            let mut session = plain.connect();
            assert_eq!(session.value("SELECT 1"), "1");
            took.push(begin.elapsed());
        }
        ended.store(true, Ordering::SeqCst);
    });
    took.sort();
    assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
}

#[test]
fn one_byte_a_second_is_no_progress() {
    let s = Setup::new().shards(1).tenants(["acme"]).section("[limits]\nlogin_timeout = \"1s\"").start();
    let mut raw = s.router.target().open().expect("it is there");
    let startup = s.target("acme").startup();
    // Bytes keep coming, each in time; the login as a whole does not.
    raw.patience(Duration::from_millis(50));
    let begin = Instant::now();
    let mut sent = startup.iter();
    loop {
        raw.send(&[*sent.next().expect("it ends before the packet does")]);
        match raw.byte() {
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            _ => break,
        }
    }
    assert!(begin.elapsed() >= Duration::from_millis(900), "{:?}", begin.elapsed());
    assert_eq!(s.login("acme").value("SELECT 1"), "1");
}

#[test]
fn whoever_has_proven_itself_keeps_its_place() {
    // With one place, each newcomer takes it from the one before, unless that is in.
    let s = Setup::new().shards(1).tenants(["acme"]).section("[limits]\nunauthenticated = 1").start();
    let mut sessions: Vec<_> = (0..5).map(|_| s.login("acme")).collect();
    let mut first = stranger(&s, 3).expect("it is there");
    first.read();
    let mut second = stranger(&s, 3).expect("it is there");
    second.read();
    assert!(first.ends());
    for session in &mut sessions {
        assert_eq!(session.value("SELECT 1"), "1");
    }
}
