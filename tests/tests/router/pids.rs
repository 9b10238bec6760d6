//! The process id that a client is told at login, and what it is the id of.

use switchyard_tests::raw::Raw;
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Running, Setup, wait};

const PID: &str = "SELECT pg_backend_pid()";

/// The process id of BackendKeyData.
fn told(session: &Raw) -> u32 {
    u32::from_be_bytes(session.key()[..4].try_into().expect("four bytes"))
}

fn by_session() -> Running {
    Setup::new().shards(1).tenants(["acme", "globex"]).router("pool_mode = \"session\"").start()
}

#[test]
fn by_session_it_is_that_of_the_server_always() {
    let s = by_session();
    let plain = s.target("acme");
    let wishing = plain.clone().param("work_mem", "7MB").param("options", "-c search_path=scratch");
    for target in [plain, wishing] {
        let mut acme = target.connect();
        let mut globex = s.login("globex");
        for _ in 0..3 {
            assert_eq!(acme.value(PID), told(&acme).to_string());
            assert_eq!(globex.value(PID), told(&globex).to_string());
        }
        acme.rows("BEGIN; SELECT 1; COMMIT");
        acme.rows("DISCARD ALL");
        assert_eq!(acme.value(PID), told(&acme).to_string());
        assert_eq!(acme.value("SELECT current_setting('app.tenant_id')"), "acme");
        acme.rows("LISTEN news");
        acme.send(&m::query("NOTIFY news, 'mine'"));
        let heard = acme.until_ready();
        let heard = heard.iter().find(|m| m.tag == b'A').expect("its own notification");
        assert_eq!(heard.body[..4], told(&acme).to_be_bytes());
    }
    let mut wishing = s.target("acme").param("work_mem", "7MB").connect();
    assert_eq!(wishing.value("SHOW work_mem"), "7MB");
    assert_eq!(wishing.value(PID), told(&wishing).to_string());
}

#[test]
fn by_session_the_connection_ends_with_its_server() {
    let s = by_session();
    let mut acme = s.login("acme");
    acme.rows("CREATE TEMP TABLE kept (x int)");
    let pid = told(&acme);
    s.shards[0].value(&format!("SELECT pg_terminate_backend({pid})"));
    // What it had there is gone, as is the process that it was told of.
    assert!(acme.ends());
    assert_eq!(s.login("acme").column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
}

#[test]
fn by_session_a_login_waits_for_a_server_and_is_told_if_there_is_none() {
    let s = Setup::new()
        .shards(1)
        .tenants(["acme"])
        .router("pool_mode = \"session\"")
        .pool("size = 1\nqueue_timeout = \"300ms\"")
        .start();
    let first = s.login("acme");
    let refused = s.refused("acme");
    assert_eq!(refused.sqlstate(), "53300", "{refused:?}");
    drop(first);
    wait::until_true("the connection to be free", || s.target("acme").try_connect().is_ok());
}

#[test]
fn by_session_a_client_that_is_refused_late_leaves_its_server() {
    let s = Setup::new()
        .shards(1)
        .tenants(["acme"])
        .router("pool_mode = \"session\"")
        .pool("size = 1")
        .section("[limits]\nclients = 1")
        .start();
    let mut first = s.login("acme");
    first.rows("SELECT 1");
    drop(first);
    for _ in 0..5 {
        wait::until_true("a login", || s.target("acme").try_connect().is_ok());
    }
}

#[test]
fn by_transaction_it_is_made_up_and_no_servers() {
    let s = Setup::new().shards(1).tenants(["acme"]).start();
    let mut acme = s.login("acme");
    assert!(told(&acme) >= 1 << 30);
    assert_ne!(acme.value(PID), told(&acme).to_string());
    // Within a transaction the server is one, and a notification has its process id.
    acme.rows("LISTEN news");
    acme.rows("BEGIN");
    let pid: u32 = acme.value(PID).parse().unwrap();
    acme.rows("NOTIFY news");
    acme.send(&m::query("COMMIT"));
    let heard = acme.until_ready();
    let heard = heard.iter().find(|m| m.tag == b'A').expect("its own notification");
    assert_eq!(heard.body[..4], pid.to_be_bytes());
}
