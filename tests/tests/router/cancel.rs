//! Cancel requests.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Running, Setup, wait};

fn setup() -> Setup {
    Setup::new().shards(1).tenants(["acme", "globex"])
}

fn sleep(s: &Running, session: &mut Raw, mark: &str) {
    session.send(&m::query(&format!("SELECT pg_sleep(600) /* {mark} */")));
    let running = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%/* {mark} */%' AND wait_event = 'PgSleep'"
    );
    wait::until_true("the statement to run", || s.shards[0].value(&running) == "1");
}

/// Sends a cancel request and waits until the router has dealt with it, which it says by closing.
fn cancel(s: &Running, key: &[u8]) {
    let mut raw = s.plain_target("", "").open().expect("the router listens");
    raw.send(&m::cancel_request(key));
    assert!(raw.ends());
}

#[test]
fn it_ends_the_statement_it_is_for() {
    let s = setup().start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    sleep(&s, &mut acme, "acme");
    sleep(&s, &mut globex, "globex");
    cancel(&s, acme.key());
    let messages = acme.until_ready();
    assert!(messages.iter().any(|m| m.tag == b'E' && m.sqlstate() == "57014"), "{messages:?}");
    assert_eq!(acme.value("SELECT 1"), "1");
    assert_eq!(s.shards[0].value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"), "1");
    cancel(&s, globex.key());
    assert!(globex.until_ready().iter().any(|m| m.sqlstate() == "57014"));
}

#[test]
fn it_comes_over_tls_too() {
    let s = setup().tls("require").start();
    let mut acme = s.login("acme");
    sleep(&s, &mut acme, "acme");
    cancel(&s, acme.key());
    assert!(acme.until_ready().iter().any(|m| m.sqlstate() == "57014"));
}

#[test]
fn a_wrong_key_does_nothing() {
    let s = setup().start();
    let mut acme = s.login("acme");
    sleep(&s, &mut acme, "acme");
    let key = acme.key().to_vec();
    for at in 0..key.len() {
        let mut wrong = key.clone();
        wrong[at] ^= 1;
        cancel(&s, &wrong);
    }
    for bytes in
        [m::packet(&80_877_102_u32.to_be_bytes()), m::cancel_request(&[0; 3]), m::cancel_request(&[1; 300])]
    {
        let mut raw = s.router.target().open().unwrap();
        raw.send(&bytes);
        assert!(raw.ends());
    }
    assert_eq!(s.shards[0].value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"), "1");
    // The key of the backend itself is nobody's at the router.
    assert_ne!(
        &key[..4],
        (s.shards[0]
            .value("SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
            .parse::<u32>()
            .unwrap())
        .to_be_bytes()
    );
    cancel(&s, &key);
    assert!(acme.until_ready().iter().any(|m| m.sqlstate() == "57014"));
}

#[test]
fn it_never_hits_the_next_on_the_same_server() {
    let s = setup().pool("size = 1").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    for _ in 0..20 {
        acme.rows("SELECT 1");
        let key = acme.key().to_vec();
        // Acme has nothing running, and the server is globex's by now or soon.
        globex.send(&m::query("SELECT pg_sleep(0.02), 'whole'"));
        cancel(&s, &key);
        let messages = globex.until_ready();
        assert!(messages.iter().all(|m| m.tag != b'E'), "{messages:?}");
    }
    // While its statement ends by itself: at most acme's own is hit.
    std::thread::scope(|scope| {
        let key = acme.key().to_vec();
        let s = &s;
        let canceller = scope.spawn(move || (0..150).for_each(|_| cancel(s, &key)));
        let mut rounds = 0;
        while !canceller.is_finished() {
            let _ = acme.try_rows("SELECT pg_sleep(0.001)");
            assert_eq!(globex.value("SELECT 'whole'"), "whole");
            rounds += 1;
        }
        assert!(rounds > 0);
    });
}

/// One round of a client that cancels its own statement, which ends by itself at about the same time.
/// When both its reply and the end of the request have come, no later statement may be hit.
fn round_of_cancel(s: &Running, session: &mut Raw, sql: &str, pause_us: u64) {
    session.send(&m::query(sql));
    std::thread::sleep(std::time::Duration::from_micros(pause_us));
    let mut request = s.plain_target("", "").open().expect("the router listens");
    request.send(&m::cancel_request(session.key()));
    let messages = session.until_ready();
    let hit = messages.iter().find(|m| m.tag == b'E');
    assert!(hit.is_none_or(|m| m.sqlstate() == "57014"), "{messages:?}");
    let open = messages.last().is_some_and(|m| m.body[0] != b'I');
    assert!(request.ends());
    if open {
        let after = session.try_rows("ROLLBACK");
        assert!(after.is_ok(), "{after:?}");
    }
    for _ in 0..2 {
        let after = session.try_rows("SELECT pg_sleep(0.001), 'whole'");
        assert!(after.is_ok(), "after {sql}: {after:?}");
    }
}

/// Eight clients over two server connections, so that they often wait for one.
fn many_cancel(setup: Setup, sql: &'static str) {
    let s = setup.start();
    std::thread::scope(|scope| {
        for client in 0..8_u64 {
            let s = &s;
            scope.spawn(move || {
                let mut session = s.login(if client % 2 == 0 { "acme" } else { "globex" });
                for n in 0..60 {
                    round_of_cancel(s, &mut session, sql, (n * 37 + client * 11) % 1500);
                }
            });
        }
    });
}

#[test]
fn heavy_it_hits_nothing_that_comes_after_it() {
    many_cancel(setup().pool("size = 2"), "SELECT pg_sleep(0.001)");
}

#[test]
fn heavy_it_hits_nothing_that_comes_after_it_in_a_transaction() {
    many_cancel(setup().pool("size = 2"), "BEGIN; SELECT pg_sleep(0.001)");
}

#[test]
fn heavy_it_hits_nothing_that_comes_after_it_where_connections_are_kept() {
    let setup = setup().pool("size = 8").router("pool_mode = \"session\"");
    many_cancel(setup, "SELECT pg_sleep(0.001)");
}

#[test]
fn one_that_a_shard_leaves_unanswered_hits_nobody_later() {
    let s = setup().pool("size = 1").section("[limits]\ncancel_timeout = \"1s\"").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.send(&m::query("SELECT pg_sleep(2)"));
    let running = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    wait::until_true("the statement to run", || s.shards[0].value(running) == "1");
    // Requests come to the postmaster, which does not look at them now.
    s.shards[0].signal_postmaster("STOP");
    cancel(&s, acme.key());
    let told = acme.until_ready();
    s.shards[0].signal_postmaster("CONT");
    assert!(told.iter().all(|m| m.tag != b'E'), "it ended by itself: {told:?}");
    for _ in 0..20 {
        assert_eq!(globex.value("SELECT pg_sleep(0.05)"), "");
    }
}

#[test]
fn it_ends_the_wait_for_a_server() {
    let s = setup().pool("size = 1").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.rows("BEGIN");
    globex.send(&m::query("SELECT 1"));
    wait::until_true("the client to wait", || {
        s.router.metrics().sum("switchyard_client_connections", &[("state", "waiting")]) >= 1.0
    });
    cancel(&s, globex.key());
    let messages = globex.until_ready();
    assert!(messages.iter().any(|m| m.sqlstate() == "57014"), "{messages:?}");
    acme.rows("COMMIT");
    assert_eq!(globex.value("SELECT 1"), "1");
}

#[test]
fn it_ends_a_statement_whose_context_is_still_being_set() {
    let roles = "CREATE ROLE of_acme; CREATE ROLE of_globex; GRANT of_acme, of_globex TO app";
    let context = "[context]\nrole = \"of_{tenant}\"\n[context.variables]\n\"app.tenant_id\" = \"{tenant}\"";
    let s = setup().pool("size = 1").sql(roles).context(context).start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.rows("SELECT 1");
    // The role of globex is not in the connection's cache, and cannot be looked up.
    let mut admin = s.shards[0].admin();
    admin.rows("BEGIN; LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE");
    globex.send(&m::query("SELECT 'ran'"));
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pg_authid'::regclass";
    wait::until_true("the context to be awaited", || admin.value(waits) == "1");
    cancel(&s, globex.key());
    let messages = globex.until_ready();
    assert!(messages.iter().any(|m| m.sqlstate() == "57014"), "{messages:?}");
    admin.rows("COMMIT");
    assert_eq!(globex.value("SELECT current_role"), "of_globex");
    assert_eq!(s.router.metrics().sum("switchyard_handover_failures_total", &[]), 0.0);
}

#[test]
fn it_reaches_a_shard_that_has_left_the_topology() {
    let mut s = Setup::new().shards(2).tenant_on("acme", 0).start();
    let mut acme = s.login("acme");
    sleep(&s, &mut acme, "acme");
    assert!(s.reload(|toml| {
        let without = toml.replacen("name = \"s0\"", "name = \"other\"", 1);
        without.replace("shard = \"s0\"", "shard = \"s1\"")
    }));
    cancel(&s, acme.key());
    assert!(acme.until_ready().iter().any(|m| m.sqlstate() == "57014"));
    assert_eq!(acme.value("SELECT count(*) FROM clients WHERE name LIKE 'misplaced%'"), "3");
}
