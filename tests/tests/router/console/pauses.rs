//! PAUSE and RESUME: who is held, who waits for whom, and what becomes of a pause that does not come about.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Running, Setup, wait};

use super::{console, named_rows, setup};

fn waiting(console: &mut Raw) -> usize {
    named_rows(console, "SHOW CLIENTS").iter().filter(|row| row["state"] == "waiting").count()
}

/// Sends a statement that is held, and waits until it is.
fn held(session: &mut Raw, console: &mut Raw, sql: &str) {
    let before = waiting(console);
    session.send(&m::query(sql));
    wait::until_true("the statement to be held", || waiting(console) == before + 1);
}

#[test]
fn a_paused_shard_holds_its_clients_and_lets_go_of_its_server() {
    let s = setup().start();
    let mut admin = console(&s, "operator");
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.rows("SELECT 1");
    for (pause, resume) in
        [("PAUSE", "RESUME"), ("PAUSE s0", "RESUME s0"), ("PAUSE \"crm@s0\"", "RESUME crm@s0")]
    {
        admin.rows(pause);
        wait::until_true("no server connection", || s.server_connections() == 0);
        held(&mut acme, &mut admin, "SELECT 'acme'");
        held(&mut globex, &mut admin, "SELECT 'globex'");
        // Who logs in is let in, and held as well.
        let mut third = s.login("acme");
        held(&mut third, &mut admin, "SELECT 'third'");
        let paused =
            named_rows(&mut admin, "SHOW DATABASES").into_iter().find(|r| r["name"] == "crm@s0").unwrap();
        assert_eq!(paused["paused"], "1");
        assert_eq!(s.server_connections(), 0);
        admin.rows(resume);
        for (session, name) in [(&mut acme, "acme"), (&mut globex, "globex"), (&mut third, "third")] {
            let messages = session.until_ready();
            assert!(
                messages.iter().any(|m| m.tag == b'D' && m.values() == [Some(name.to_owned())]),
                "{messages:?}"
            );
        }
    }
    assert_eq!(admin.error("RESUME").sqlstate, "55000");
    admin.rows("PAUSE s0");
    assert_eq!(admin.error("PAUSE s0").sqlstate, "55000");
    let hint = admin.error("RESUME").hint;
    assert!(hint.contains("RESUME s0"), "{hint}");
    admin.rows("RESUME s0");
}

#[test]
fn a_pause_waits_for_open_transactions_and_lets_them_end() {
    let s = setup().start();
    let (mut operator, mut viewer) = (console(&s, "operator"), console(&s, "viewer"));
    let (mut open, mut other) = (s.login("acme"), s.login("globex"));
    open.rows("BEGIN; INSERT INTO scratch.items VALUES (1, 'kept')");
    operator.send(&m::query("PAUSE"));
    wait::until_true("the pause to have begun", || viewer.rows("SHOW STATE")[1][1].as_deref() == Some("yes"));
    held(&mut other, &mut viewer, "SELECT 'late'");
    // It is not over while the transaction is, and that goes on.
    open.rows("INSERT INTO scratch.items VALUES (2, 'kept')");
    open.rows("COMMIT");
    let done = operator.until_ready();
    assert!(done.iter().any(|m| m.tag == b'C' && m.text() == "PAUSE"), "{done:?}");
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "2");
    operator.rows("RESUME");
    assert_eq!(other.until_ready().iter().filter(|m| m.tag == b'D').count(), 1);
}

#[test]
fn a_connection_that_is_being_made_as_its_shard_is_paused_serves_nobody() {
    let s = setup().proxied().pool("size = 1\nconnect_timeout = \"60s\"\nqueue_timeout = \"60s\"").start();
    let (mut operator, mut viewer) = (console(&s, "operator"), console(&s, "viewer"));
    let mut acme = s.login("acme");
    acme.rows("SELECT 1");
    s.proxies[0].cut();
    let connects = || s.router.metrics().sum("switchyard_server_connects_total", &[]);
    let (tried, made) = (s.proxies[0].accepted(), connects());
    s.proxies[0].stall();
    held(&mut acme, &mut viewer, "SELECT 'acme'");
    wait::until_true("a connection to be on its way", || s.proxies[0].accepted() > tried);
    operator.send(&m::query("PAUSE s0"));
    wait::until_true("the pause to have begun", || {
        let rows = named_rows(&mut viewer, "SHOW DATABASES");
        rows.iter().any(|row| row["name"] == "crm@s0" && row["paused"] == "1")
    });
    assert_eq!(connects(), made);
    s.proxies[0].resume();
    wait::until_true("a connection", || connects() > made);
    // The pause has waited for it.
    let done = operator.until_ready();
    assert!(done.iter().any(|m| m.tag == b'C' && m.text() == "PAUSE"), "{done:?}");
    wait::until_true("it to be closed", || s.server_connections() == 0);
    assert_eq!(waiting(&mut viewer), 1);
    operator.rows("RESUME s0");
    assert_eq!(acme.until_ready().iter().filter(|m| m.tag == b'D').count(), 1);
}

#[test]
fn a_pause_that_takes_too_long_says_who_is_in_the_way_and_is_undone() {
    let s = setup().pool("size = 4").section("[console]\ndrain_timeout = \"300ms\"").start();
    let mut operator = console(&s, "operator");
    let (mut open, mut pinned) = (s.login("acme"), s.login("globex"));
    open.rows("BEGIN; SELECT 1");
    pinned.rows("CREATE TEMPORARY TABLE t ()");
    for (pause, tenants) in [
        ("PAUSE", &["acme", "globex"][..]),
        ("PAUSE s0", &["acme", "globex"]),
        ("PAUSE TENANT acme", &["acme"]),
    ] {
        operator.send(&m::query(pause));
        let answer = operator.until_ready();
        let error = answer.iter().find(|m| m.tag == b'E').unwrap_or_else(|| panic!("{pause}: {answer:?}"));
        assert_eq!(error.sqlstate(), "55P03", "{pause}");
        let detail = error.field(b'D');
        for tenant in ["acme", "globex"] {
            assert_eq!(
                detail.contains(&format!("tenant {tenant}")),
                tenants.contains(&tenant),
                "{pause}: {detail}"
            );
        }
        assert!(detail.contains("idle in a transaction"), "{detail}");
        assert_eq!(s.login("acme").value("SELECT 1"), "1", "after {pause}");
    }
    // The id that it names ends the session.
    let detail = {
        operator.send(&m::query("PAUSE TENANT acme"));
        let answer = operator.until_ready();
        answer.iter().find(|m| m.tag == b'E').unwrap().field(b'D')
    };
    let id = detail.split_whitespace().nth(1).unwrap();
    operator.rows(&format!("KILL_CLIENT {id}"));
    assert!(open.until_ready_or_end().iter().any(|m| m.tag == b'E' && m.sqlstate() == "57P01"));
    operator.rows("PAUSE TENANT acme");
    operator.rows("RESUME TENANT acme");
}

#[test]
fn a_pause_that_is_canceled_or_abandoned_is_undone() {
    let s = setup().start();
    let mut viewer = console(&s, "viewer");
    let mut open = s.login("acme");
    open.rows("BEGIN; SELECT 1");
    let is_paused = |viewer: &mut Raw| viewer.rows("SHOW STATE")[1][1].as_deref() == Some("yes");

    let mut operator = console(&s, "operator");
    operator.send(&m::query("PAUSE"));
    wait::until_true("the pause to have begun", || is_paused(&mut viewer));
    // As psql does on Ctrl-C.
    s.router.target().open().unwrap().send(&m::cancel_request(operator.key()));
    let answer = operator.until_ready();
    assert!(answer.iter().any(|m| m.tag == b'E' && m.sqlstate() == "57014"), "{answer:?}");
    assert!(!is_paused(&mut viewer));

    operator.send(&m::query("PAUSE"));
    wait::until_true("the pause to have begun", || is_paused(&mut viewer));
    drop(operator);
    wait::until_true("the pause to be undone", || !is_paused(&mut viewer));
    assert_eq!(s.login("globex").value("SELECT 1"), "1");
}

#[test]
fn a_paused_tenant_is_held_and_others_are_not() {
    let s = setup().start();
    let mut operator = console(&s, "operator");
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.rows("SELECT 1");
    operator.rows("PAUSE TENANT acme");
    held(&mut acme, &mut operator, "SELECT name FROM clients ORDER BY id");
    assert_eq!(globex.column("SELECT name FROM clients ORDER BY id"), s.canaries("globex"));
    let rows = named_rows(&mut operator, "SHOW TENANTS");
    let paused: Vec<_> = rows.iter().map(|r| (r["tenant"].as_str(), r["paused"].as_str())).collect();
    assert_eq!(paused, [("acme", "1"), ("globex", "0")]);
    // A pause outlives a reload, and pools that are made anew.
    assert!(s.router.reload(&s.toml.replace("size = 2", "size = 3")));
    assert_eq!(globex.value("SELECT 1"), "1");
    assert_eq!(waiting(&mut operator), 1);
    operator.rows("RESUME TENANT acme");
    let rows: Vec<_> =
        acme.until_ready().iter().filter(|m| m.tag == b'D').flat_map(|m| m.values()).flatten().collect();
    assert_eq!(rows, s.canaries("acme"));
    assert_eq!(operator.error("PAUSE TENANT nobody").sqlstate, "42704");
    assert_eq!(operator.error("PAUSE nowhere").sqlstate, "42704");
}

fn impatient() -> Setup {
    setup().pool("size = 1\nqueue_timeout = \"100ms\"")
}

fn fails_in_queue(s: &Running) {
    let mut holder = s.login("globex");
    holder.rows("BEGIN; SELECT 1");
    assert_eq!(s.login("acme").error("SELECT 1").sqlstate, "53300");
    holder.rows("COMMIT");
}

#[test]
fn who_is_held_outlasts_the_queue() {
    let s = impatient().start();
    fails_in_queue(&s);
    let mut operator = console(&s, "operator");
    operator.rows("PAUSE TENANT acme");
    let mut acme = s.login("acme");
    held(&mut acme, &mut operator, "SELECT 'here'");
    let longest = |operator: &mut Raw| -> u64 {
        let rows = named_rows(operator, "SHOW SHARDS");
        rows[0]["oldest_wait_us"].parse().unwrap()
    };
    // Several times as long as the queue allows.
    wait::until_true("a long wait", || longest(&mut operator) > 500_000);
    operator.rows("RESUME TENANT acme");
    assert_eq!(acme.until_ready().iter().filter(|m| m.tag == b'D').count(), 1);
    fails_in_queue(&s);
}

#[test]
fn who_is_held_too_long_is_told() {
    let s = impatient().section("[console]\nhold_timeout = \"200ms\"").start();
    let (mut operator, mut acme) = (console(&s, "operator"), s.login("acme"));
    operator.rows("PAUSE");
    let error = acme.error("SELECT 1");
    assert_eq!(error.sqlstate, "53300");
    assert!(error.hint.contains("paused"), "{error:?}");
    operator.rows("RESUME");
    assert_eq!(s.login("acme").value("SELECT 1"), "1");
}
