//! Clients that are gone from one moment to the next, and servers that go on for others.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Running, Setup, wait};

fn setup() -> Setup {
    Setup::new().shards(1).pool("size = 1").tenants(["acme", "globex"])
}

/// A client does something and vanishes: nothing of it remains, and the one connection is good.
#[track_caller]
fn after(s: &Running, what: &str, doing: impl FnOnce(&mut Raw)) {
    let mut acme = s.login("acme");
    doing(&mut acme);
    drop(acme);
    let mut globex = s.login("globex");
    for _ in 0..3 {
        assert_eq!(
            globex.column("SELECT name FROM clients ORDER BY id"),
            s.canaries("globex"),
            "after {what}"
        );
    }
    assert_eq!(globex.value("SELECT count(*) FROM scratch.items"), "0", "after {what}");
    let idle =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state LIKE '%in transaction%'";
    wait::until_true("no transaction to be left open", || s.shards[0].value(idle) == "0");
}

#[test]
fn in_a_transaction() {
    let s = setup().start();
    let insert = "INSERT INTO scratch.items VALUES (1, 'x')";
    after(&s, "BEGIN", |c| drop(c.rows("BEGIN")));
    after(&s, "an open transaction", |c| drop(c.rows(&format!("BEGIN; {insert}"))));
    after(&s, "a failed transaction", |c| drop(c.error(&format!("BEGIN; {insert}; SELECT 1/0"))));
    after(&s, "Terminate in a transaction", |c| {
        c.rows(&format!("BEGIN; {insert}"));
        c.send(&m::frame(b'X', &[]));
    });
    after(&s, "a running statement", |c| {
        c.send(&m::query(&format!("BEGIN; {insert}; SELECT pg_sleep(0.2)")))
    });
}

#[test]
fn in_the_middle_of_messages() {
    let s = setup().start();
    let insert = "INSERT INTO scratch.items VALUES (1, 'x')";
    after(&s, "half a Query", |c| {
        let query = m::query(insert);
        c.send(&query[..query.len() / 2]);
    });
    after(&s, "a header alone", |c| c.send(&m::query(insert)[..5]));
    after(&s, "half a header", |c| c.send(&m::query(insert)[..3]));
    after(&s, "half a Query of a megabyte in a transaction", |c| {
        c.rows("BEGIN");
        let query = m::query(&format!("INSERT INTO scratch.items VALUES (1, '{}')", "x".repeat(1 << 20)));
        c.send(&query[..query.len() / 2]);
    });
    after(&s, "Parse, Bind, Execute and no Sync", |c| {
        c.send(&[m::parse("", insert), m::bind("", "", &[]), m::execute("", 0)].concat());
    });
    after(&s, "the same with Flush", |c| {
        c.send(&[m::parse("", insert), m::bind("", "", &[]), m::execute("", 0), m::flush()].concat());
        c.until_tag(b'C');
    });
    after(&s, "a pipeline unread", |c| {
        for _ in 0..1000 {
            c.send(&m::extended("SELECT 1", &[]));
        }
    });
}

#[test]
fn in_copy() {
    let s = setup().start();
    after(&s, "COPY in", |c| {
        c.send(&m::query("COPY scratch.items FROM STDIN"));
        c.until_tag(b'G');
        c.send(&m::copy_data(b"1\tx\n"));
    });
    after(&s, "COPY in, half a CopyData", |c| {
        c.send(&m::query("COPY scratch.items FROM STDIN"));
        c.until_tag(b'G');
        c.send(&m::copy_data(b"1\tx\n2\ty\n")[..9]);
    });
    after(&s, "COPY in by the extended protocol", |c| {
        c.send(
            &[
                m::parse("", "COPY scratch.items FROM STDIN"),
                m::bind("", "", &[]),
                m::execute("", 0),
                m::flush(),
            ]
            .concat(),
        );
        c.until_tag(b'G');
        c.send(&m::copy_data(b"1\tx\n"));
    });
    after(&s, "COPY out", |c| {
        c.send(&m::query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 20000)) TO STDOUT"));
        c.until_tag(b'H');
    });
}

#[test]
fn in_the_queue() {
    let s = setup().start();
    let mut holder = s.login("acme");
    holder.rows("BEGIN");
    for _ in 0..5 {
        let mut waiting = s.login("globex");
        waiting.send(&m::query("INSERT INTO scratch.items VALUES (1, 'x')"));
    }
    holder.rows("COMMIT");
    wait::until_true("nobody to wait", || {
        s.router.metrics().sum("switchyard_client_connections", &[("state", "waiting")]) == 0.0
    });
    assert_eq!(s.login("globex").value("SELECT 1"), "1");
}

#[test]
fn while_a_large_result_is_on_its_way_memory_stays_bounded() {
    let s = setup().pool("size = 2").start();
    s.login("acme").value("SELECT 1");
    let before = s.router.resident_bytes();
    let mut lazy = s.login("acme");
    // 400 MB, of which nothing is read.
    lazy.send(&m::query("SELECT repeat('x', 10000) FROM generate_series(1, 40000)"));
    let blocked =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'ClientWrite'";
    wait::until_true("the server to be held back", || s.shards[0].value(blocked) == "1");
    let grown = s.router.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    assert_eq!(s.login("globex").value("SELECT 1"), "1");
    // One value of 200 MB, read to the end: streamed, not kept.
    let mut reader = s.login("globex");
    reader.send(&m::query("SELECT repeat('x', 200000000)"));
    let rows = reader.until_ready();
    assert_eq!(rows.iter().find(|m| m.tag == b'D').map(|m| m.body.len()), Some(200_000_006));
    let grown = s.router.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
}

#[test]
fn a_server_that_dies_in_copy_out() {
    let s = setup().start();
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'";
    let mut acme = s.login("acme");
    acme.send(&m::query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT"));
    acme.until_tag(b'H');
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'ClientWrite'";
    wait::until_true("the server to wait for the reader", || s.shards[0].value(waits) == "1");
    assert_eq!(s.shards[0].value(kill), "1");
    let messages = acme.until_ready_or_end();
    // The client hears that it is over: it must not take what it has for all there is.
    assert!(!messages.iter().any(|m| m.tag == b'c' || m.tag == b'C'));
    assert!(acme.try_rows("SELECT 1").is_ok() || acme.ends());
    assert_eq!(s.login("globex").column("SELECT name FROM clients ORDER BY id"), s.canaries("globex"));
}
