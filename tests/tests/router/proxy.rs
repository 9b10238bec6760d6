//! The PROXY protocol: whose connection it is that a balancer passes on.

use switchyard_tests::raw::messages as m;
use switchyard_tests::setup::PASSWORD;
use switchyard_tests::{Running, Setup};

fn start(networks: &str) -> Running {
    let setup = Setup::new().shards(1).tenants(["acme"]).tls("allow");
    setup.router(&format!("proxy_protocol = [{networks}]")).start()
}

/// A header of version 2 for a TCP connection from 203.0.113.7.
fn binary() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0f".to_vec();
    header.extend([203, 0, 113, 7, 127, 0, 0, 1, 1, 1, 2, 2, 4, 0, 0]);
    header
}

const LINE: &[u8] = b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 6432\r\n";

/// Logs in behind these bytes.
fn behind(s: &Running, bytes: &[u8], tls: bool) -> Result<String, String> {
    let target = s.router.target().user("app.acme").password(PASSWORD).database("crm");
    let mut raw = target.open().expect("it is there");
    raw.send(bytes);
    if tls {
        raw.send(&m::ssl_request());
        if raw.byte().map_err(|e| e.to_string())? != b'S' {
            return Err("no TLS".to_owned());
        }
        raw = raw.upgrade(&s.certs.client(None), "localhost").map_err(|e| e.to_string())?;
    }
    raw.send(&target.startup());
    raw.authenticate("app.acme", Some(PASSWORD), false).map_err(|e| format!("{e:?}"))?;
    Ok(raw.value("SELECT count(*) FROM clients"))
}

#[test]
fn both_versions_and_nonsense() {
    let s = start("\"127.0.0.0/8\"");
    for header in [LINE, &binary(), b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"] {
        for tls in [false, true] {
            assert_eq!(behind(&s, header, tls).as_deref(), Ok("3"), "{}", header.escape_ascii());
        }
    }
    s.router.wait_log("203.0.113.7");
    for bad in [
        &b"PROXY TCP4 nonsense\r\n"[..],
        b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 99999\r\n",
        &[b"PROXY ".as_slice(), &[b'x'; 200]].concat(),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"\r\n\r\n\0\r\nQUIT\n\x11\x11\x00\x0c123456789012",
        // Who is to say whose it is must say so.
        b"",
        &[LINE, LINE].concat(),
    ] {
        assert!(behind(&s, bad, false).is_err(), "{}", bad.escape_ascii());
    }
}

#[test]
fn the_address_is_believed_of_trusted_proxies_only() {
    // Of somebody else's network.
    let s = start("\"10.0.0.0/8\"");
    assert!(behind(&s, LINE, false).is_err());
    assert!(behind(&s, &binary(), false).is_err());
    assert_eq!(behind(&s, b"", false).as_deref(), Ok("3"));
    assert!(!s.router.log().contains("203.0.113.7"));
    // It is off unless switched on.
    let s = start("");
    assert!(behind(&s, LINE, false).is_err());
    assert_eq!(behind(&s, b"", true).as_deref(), Ok("3"));
}

#[test]
fn limits_are_those_of_the_address_that_is_named() {
    let setup = Setup::new().shards(1).tenants(["acme"]).router("proxy_protocol = [\"127.0.0.1\"]");
    let s = setup.section("[limits]\nunauthenticated_per_address = 2").start();
    let mut held: Vec<_> = (0..4)
        .map(|_| {
            let mut raw = s.router.target().open().expect("it is there");
            raw.send(LINE);
            raw.send(&s.target("acme").startup());
            raw.read();
            raw
        })
        .collect();
    // The first two have made room for the others.
    assert!(held.remove(0).ends() && held.remove(0).ends());
    assert_eq!(behind(&s, &binary(), false).as_deref(), Ok("3"));
}
