//! SHUTDOWN, in its three ways.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{metrics, wait};

use super::{console, setup};

#[test]
fn at_once() {
    let mut s = setup().start();
    let mut open = s.login("acme");
    open.rows("BEGIN; INSERT INTO scratch.items VALUES (1, 'lost')");
    console(&s, "admin").send(&m::query("SHUTDOWN"));
    assert!(s.router.wait_exit().success());
    assert!(open.ends());
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "0");
}

#[test]
fn when_transactions_have_ended() {
    let mut s = setup().start();
    let (mut open, mut idle) = (s.login("acme"), s.login("globex"));
    open.rows("BEGIN; INSERT INTO scratch.items VALUES (1, 'kept')");
    let answer = console(&s, "admin").round(&m::query("SHUTDOWN WAIT_FOR_SERVERS"));
    assert!(answer.iter().any(|m| m.tag == b'C' && m.text() == "SHUTDOWN"), "{answer:?}");
    assert!(idle.until_ready_or_end().iter().any(|m| m.tag == b'E' && m.sqlstate() == "57P01"));
    open.send(&m::query("COMMIT"));
    assert!(open.until_ready_or_end().iter().any(|m| m.tag == b'C'));
    assert!(s.router.wait_exit().success());
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "1");
}

#[test]
fn when_clients_have_left() {
    let mut s = setup().start();
    let (mut acme, mut admin) = (s.login("acme"), console(&s, "admin"));
    admin.rows("SHUTDOWN WAIT_FOR_CLIENTS");
    wait::until_true("not to be ready", || {
        !metrics::get(s.router.http(), "/readyz").is_ok_and(|a| a.0 == 200)
    });
    assert!(s.target("globex").try_connect().is_err());
    // Between transactions, and for as long as it likes.
    acme.rows("SELECT 1");
    acme.rows("BEGIN; INSERT INTO scratch.items VALUES (1, 'kept'); COMMIT");
    assert!(s.router.is_running());
    let error = admin.error("RELOAD");
    assert_eq!(error.sqlstate, "F0000");
    drop(acme);
    assert!(s.router.wait_exit().success());
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "1");
}

#[test]
fn who_waits_for_clients_can_be_hurried() {
    let mut s = setup().start();
    let (mut acme, mut admin) = (s.login("acme"), console(&s, "admin"));
    acme.rows("SELECT 1");
    admin.rows("SHUTDOWN WAIT_FOR_CLIENTS");
    admin.rows("SHUTDOWN WAIT_FOR_SERVERS");
    assert!(acme.until_ready_or_end().iter().any(|m| m.tag == b'E' && m.sqlstate() == "57P01"));
    assert!(s.router.wait_exit().success());
}
