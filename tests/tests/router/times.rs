//! Limits on the time of statements and transactions, and on idleness, of one tenant or of all.

use std::time::Instant;

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Running, Setup};

const PID: &str = "SELECT pg_backend_pid()";

fn with(limits: &str) -> Running {
    let limited = format!("[[tenants]]\nid = \"limited\"\nlimits = {{ {limits} }}");
    Setup::new().shards(1).tenants(["acme"]).section(&limited).start()
}

fn reached(s: &Running, limit: &str) -> f64 {
    s.router.metrics().sum("switchyard_time_limits_total", &[("limit", limit)])
}

#[test]
fn a_statement_is_canceled_whatever_the_session_has_set() {
    let s = with("statement_timeout = \"300ms\"");
    let mut limited = s.login("limited");
    let mut acme = s.login("acme");
    acme.send(&m::query("SELECT 'done' FROM pg_sleep(2)"));
    for set in ["SELECT 1", "SET statement_timeout = 0", "BEGIN; SET LOCAL statement_timeout = '1h'"] {
        limited.rows(set);
        let error = limited.error("SELECT pg_sleep(600)");
        assert_eq!(
            (error.sqlstate.as_str(), error.message.as_str()),
            ("57014", "canceling statement due to statement timeout"),
            "after {set}"
        );
        let _ = limited.try_rows("ROLLBACK");
        assert_eq!(limited.value("SELECT 'well'"), "well");
    }
    // By the extended protocol, and in a pipeline of which each statement has its own time.
    let answer = limited.round(&m::extended("SELECT pg_sleep(600)", &[]));
    assert!(answer.iter().any(|m| m.tag == b'E' && m.sqlstate() == "57014"), "{answer:?}");
    let mut pipeline = Vec::new();
    for _ in 0..8 {
        pipeline.extend(m::extended("SELECT pg_sleep(0.1)", &[]));
    }
    limited.send(&pipeline);
    for _ in 0..8 {
        let answer = limited.until_ready();
        assert!(answer.iter().all(|m| m.tag != b'E'), "{answer:?}");
    }
    // A function may catch it once, or more often.
    let stubborn = "DO $$ BEGIN FOR n IN 1..2 LOOP BEGIN PERFORM pg_sleep(600);
        EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$";
    limited.rows(stubborn);
    assert_eq!(limited.value("SELECT 'well'"), "well");
    assert!(reached(&s, "statement") >= 5.0);
    let done = acme.until_ready();
    assert!(done.iter().any(|m| m.tag == b'D') && done.iter().all(|m| m.tag != b'E'), "{done:?}");
}

#[test]
fn what_follows_a_canceled_statement_is_not_canceled() {
    let s = with("statement_timeout = \"50ms\"");
    let mut limited = s.login("limited");
    let mut canceled = 0;
    // About as long as the limit, so that requests come late as well.
    for n in 0..40 {
        let took = 0.046 + f64::from(n % 10) / 1000.0;
        limited.rows("BEGIN");
        match limited.try_rows(&format!("SELECT pg_sleep({took})")) {
            Ok(_) => assert_eq!(limited.value("SELECT 'next'"), "next"),
            Err(error) => {
                assert_eq!(error.message, "canceling statement due to statement timeout");
                canceled += 1;
            }
        }
        limited.rows("ROLLBACK");
        assert_eq!(limited.value("SELECT 'next'"), "next");
    }
    assert!(canceled > 0);
}

#[test]
fn a_transaction_ends_with_its_session() {
    let s = with("transaction_timeout = \"400ms\"");
    let mut limited = s.login("limited");
    limited.rows("BEGIN; INSERT INTO scratch.items VALUES (1, 'x')");
    let last = std::iter::from_fn(|| limited.try_read().ok()).last().expect("a last word");
    assert_eq!(
        (last.sqlstate().as_str(), last.field(b'M').as_str()),
        ("25P04", "terminating connection due to transaction timeout")
    );
    // In the middle of a statement as well, which does not go on.
    let mut limited = s.login("limited");
    let begin = Instant::now();
    limited.send(&m::query("INSERT INTO scratch.items SELECT 2, 'y' FROM pg_sleep(600)"));
    let last = std::iter::from_fn(|| limited.try_read().ok()).last().expect("a last word");
    assert_eq!(last.sqlstate(), "25P04");
    assert!(begin.elapsed().as_secs() < 60);
    // Short ones are not concerned, for as long as there are any.
    let mut limited = s.login("limited");
    for _ in 0..10 {
        limited.rows("BEGIN; SELECT pg_sleep(0.1); COMMIT");
    }
    assert_eq!(limited.value("SELECT count(*) FROM scratch.items"), "0");
    assert_eq!(reached(&s, "transaction"), 2.0);
    s.login("acme").rows("BEGIN; SELECT pg_sleep(0.8); COMMIT");
}

#[test]
fn idle_in_a_transaction_by_the_tenants_own_limit() {
    let s = with("idle_in_transaction_timeout = \"1s\"");
    let (mut limited, mut acme) = (s.login("limited"), s.login("acme"));
    acme.rows("BEGIN; SELECT 1");
    limited.rows("BEGIN; SELECT 1");
    let last = std::iter::from_fn(|| limited.try_read().ok()).last().expect("a last word");
    assert_eq!(last.sqlstate(), "25P03");
    acme.rows("COMMIT");
    assert_eq!(reached(&s, "idle_in_transaction"), 1.0);
}

#[test]
fn limits_of_the_router_hold_for_all_and_the_shorter_counts() {
    let s = Setup::new()
        .shards(1)
        .tenants(["acme"])
        .section("[[tenants]]\nid = \"limited\"\nlimits = { statement_timeout = \"200ms\" }")
        .section("[limits]\nstatement_timeout = \"1s\"\ntransaction_timeout = \"20s\"")
        .start();
    for (tenant, short, long) in [("acme", "0.4", "30"), ("limited", "0.05", "0.9")] {
        let mut session = s.login(tenant);
        session.rows(&format!("SELECT pg_sleep({short})"));
        assert_eq!(session.error(&format!("SELECT pg_sleep({long})")).sqlstate, "57014", "{tenant}");
    }
}

#[test]
fn who_keeps_a_connection_is_idle_too() {
    for mode in ["transaction", "session"] {
        let s = Setup::new()
            .shards(1)
            .tenants(["acme"])
            .router(&format!("pool_mode = \"{mode}\""))
            .pool("size = 1")
            .section("[limits]\nclient_idle_timeout = \"500ms\"")
            .start();
        let mut acme = s.login("acme");
        let pid = acme.value(PID);
        acme.rows("CREATE TEMP TABLE kept (x int)");
        let last = std::iter::from_fn(|| acme.try_read().ok()).last().expect("a last word");
        assert_eq!(last.sqlstate(), "57P05", "{mode}");
        assert_eq!(s.login("acme").value(PID), pid);
    }
}
