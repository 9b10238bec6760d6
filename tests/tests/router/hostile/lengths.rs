//! Lengths that a client declares: nothing is allocated for them, and those that cannot be end the
//! connection at once.

use std::time::{Duration, Instant};

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Running, Setup};

const LENGTHS: [u32; 10] = [0, 1, 2, 3, 10_005, 1 << 20, 0x3fff_ffff, 0x4000_0000, 0x7fff_ffff, u32::MAX];

fn declared(tag: u8, length: u32) -> Vec<u8> {
    [&[tag][..], &length.to_be_bytes(), b"SELE"].concat()
}

/// Sockets with a message begun in each, and whether it must end the connection.
fn begun(s: &Running) -> Vec<(String, bool, Raw)> {
    let mut all = Vec::new();
    for length in LENGTHS {
        let mut raw = s.router.target().open().expect("it is there");
        raw.send(&length.to_be_bytes());
        all.push((format!("a startup packet of {length}"), !(8..=10_004).contains(&length), raw));
        let mut raw = s.router.target().open().expect("it is there");
        raw.send(&s.target("acme").startup());
        raw.read();
        raw.send(&declared(b'p', length));
        all.push((format!("a password of {length}"), !(4..=65_536).contains(&length), raw));
        for tag in *b"QPBDCESHFXdcf" {
            let mut raw = s.login("acme");
            raw.send(&declared(tag, length));
            let small = matches!(tag, b'D' | b'C' | b'E' | b'S' | b'H' | b'X' | b'c' | b'f');
            let most = if small { 10_000 } else { 0x3fff_ffff };
            all.push((format!("{} of {length}", char::from(tag)), !(4..=most).contains(&length), raw));
        }
        let mut raw = s.login("acme");
        raw.send(&m::query("COPY scratch.items FROM STDIN"));
        raw.until_tag(b'G');
        raw.send(&declared(b'd', length));
        all.push((format!("CopyData of {length}"), !(4..=0x3fff_ffff).contains(&length), raw));
    }
    all
}

#[test]
fn heavy_declared_lengths_in_every_state() {
    let s = Setup::new().shards(1).pool("size = 30").tenants(["acme", "globex"]).start();
    // What serves as many sessions is there.
    let warm: Vec<_> = (0..150).map(|_| s.login("acme")).collect();
    drop(warm);
    let (resident, size) = (s.router.resident_bytes(), s.router.virtual_bytes());
    let mut all = begun(&s);
    for (what, ends, raw) in &mut all {
        if *ends {
            let begin = Instant::now();
            assert!(raw.ends(), "{what}");
            assert!(begin.elapsed() < Duration::from_secs(5), "{what}");
        }
    }
    let grown = s.router.resident_bytes().saturating_sub(resident);
    assert!(grown < 12 << 20, "{grown} bytes more for {} sockets", all.len());
    let grown = s.router.virtual_bytes().saturating_sub(size);
    assert!(grown < 256 << 20, "{grown} bytes more of address space");
    drop(all);
    assert_eq!(s.login("globex").column("SELECT name FROM clients ORDER BY id"), s.canaries("globex"));
}

#[test]
fn a_statement_that_must_be_kept_has_a_limit() {
    let s = Setup::new().shards(1).tenants(["acme"]).section("[limits]\nstatement_bytes = \"64KiB\"").start();
    let mut acme = s.login("acme");
    let large = format!("SELECT '{}'", "x".repeat(100_000));
    acme.send(&[m::parse("named", &large), m::sync()].concat());
    let last = acme.until_ready_or_end();
    assert_eq!(last.last().map(|m| m.sqlstate()), Some("54000".to_owned()), "{last:?}");
    // Without a name it passes.
    let mut acme = s.login("acme");
    assert!(acme.round(&m::extended(&large, &[])).iter().all(|m| m.tag != b'E'));
}
