//! Shards with several hosts: the primary is found, and followed when another is promoted.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Running, Setup, SqlError, wait};

const CONNECTIONS: usize = 4;

fn setup() -> Setup {
    let pool = format!("size = {CONNECTIONS}\nconnect_timeout = \"2s\"");
    Setup::new().shards(1).tenants(["acme", "globex"]).standbys().pool(&pool)
}

/// Where the session's server listens.
const PORT: &str = "SELECT current_setting('port')";

fn port(s: &Running, promoted: bool) -> String {
    if promoted { s.standbys[0].port() } else { s.shards[0].port() }.to_string()
}

fn waiting(s: &Running) -> bool {
    s.router.metrics().sum("switchyard_client_connections", &[("state", "waiting")]) >= 1.0
}

/// What a statement in flight may be told when its server is killed.
fn is_loss(error: &SqlError) -> bool {
    error.sqlstate.starts_with("08") || error.sqlstate.starts_with("57P")
}

#[test]
fn the_primary_is_found_among_the_hosts() {
    let s = setup().start();
    let mut acme = s.login("acme");
    assert_eq!(acme.value(PORT), port(&s, false));
    assert_eq!(acme.column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
    acme.rows("INSERT INTO scratch.items VALUES (1, 'written')");
}

#[test]
fn clients_wait_through_a_failover_under_load() {
    let mut s = setup().start();
    let (mut idle, mut open) = (s.login("acme"), s.login("globex"));
    idle.rows("SELECT 1");
    open.rows("BEGIN; SELECT 1");
    let (stop, done, lost) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let target = s.target("globex");
    let work = || {
        let mut session = target.connect();
        while !stop.load(Ordering::Relaxed) {
            match session.try_rows("UPDATE clients SET name = name") {
                Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    assert!(is_loss(&error), "{error:?}");
                    lost.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
    };
    let goes_on = |what: &str| {
        let before = done.load(Ordering::Relaxed);
        wait::until_true(what, || done.load(Ordering::Relaxed) > before + 20);
    };
    std::thread::scope(|scope| {
        let _stop = wait::StopAtEnd(&stop);
        let load: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
        goes_on("the load");
        s.shards[0].kill9();
        // Outside a transaction there is no error, but a wait.
        idle.send(&m::query(PORT));
        wait::until_true("clients to wait", || waiting(&s));
        s.standbys[0].promote();
        let answer = idle.until_ready();
        assert!(answer.iter().all(|m| m.tag != b'E'), "{answer:?}");
        assert_eq!(idle.value(PORT), port(&s, true));
        goes_on("the load on the new primary");
        stop.store(true, Ordering::Relaxed);
        load.into_iter().for_each(|l| l.join().expect("only statements in flight were lost"));
    });
    // At most what was in flight on each connection.
    let lost = lost.load(Ordering::Relaxed);
    assert!(lost <= CONNECTIONS, "{lost} statements failed");
    assert!(open.ends());
    assert_eq!(s.login("acme").column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
}

#[test]
fn a_primary_that_comes_back_after_another_was_promoted_is_not_used() {
    let mut s = setup().start();
    let mut acme = s.login("acme");
    acme.rows("SELECT 1");
    s.shards[0].kill9();
    s.standbys[0].promote();
    assert_eq!(acme.value(PORT), port(&s, true));
    // It does not know that it was replaced, and takes writes.
    s.shards[0].start_again();
    s.standbys[0].stop();
    acme.send(&m::query("INSERT INTO scratch.items VALUES (1, 'once')"));
    wait::until_true("the client to wait", || waiting(&s));
    s.router.wait_log("was primary before timeline 2");
    s.standbys[0].start_again();
    let answer = acme.until_ready();
    assert!(answer.iter().all(|m| m.tag != b'E'), "{answer:?}");
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "0");
    assert_eq!(s.standbys[0].value("SELECT count(*) FROM scratch.items"), "1");
}

#[test]
fn the_wait_has_a_limit() {
    let mut s = setup().start();
    let mut acme = s.login("acme");
    acme.rows("SELECT 1");
    let limited =
        s.toml.replace("connect_timeout = \"2s\"", "connect_timeout = \"2s\"\nfailover_timeout = \"700ms\"");
    assert!(s.reload(|_| limited));
    acme.rows("SELECT 1");
    s.shards[0].kill9();
    let error = acme.error("SELECT 1");
    assert!(error.message.contains("is not available"), "{error:?}");
    // From then on they fail at once, until there is a primary.
    acme.error("SELECT 1");
    s.standbys[0].promote();
    wait::until_true("the session to go on", || acme.try_rows("SELECT 1").is_ok());
}

#[test]
fn a_planned_switchover_is_a_wait_too() {
    let mut s = setup().start();
    let mut acme = s.login("acme");
    acme.rows("INSERT INTO scratch.items VALUES (1, 'before')");
    s.shards[0].stop();
    acme.send(&m::query("INSERT INTO scratch.items VALUES (2, 'after')"));
    wait::until_true("the client to wait", || waiting(&s));
    s.standbys[0].promote();
    let answer = acme.until_ready();
    assert!(answer.iter().all(|m| m.tag != b'E'), "{answer:?}");
    assert_eq!(s.standbys[0].value("SELECT count(*) FROM scratch.items"), "2");
}
