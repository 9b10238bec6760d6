//! RECONNECT, KILL, KILL_CLIENT, DISABLE, RELOAD.

use switchyard_tests::raw::messages as m;
use switchyard_tests::wait;

use super::{console, named_rows, setup};

#[test]
fn reconnect_replaces_connections_as_they_become_free() {
    let s = setup().start();
    let mut operator = console(&s, "operator");
    let (mut acme, mut open) = (s.login("acme"), s.login("globex"));
    let first = acme.value("SELECT pg_backend_pid()");
    open.rows("BEGIN");
    let kept = open.value("SELECT pg_backend_pid()");
    operator.rows("RECONNECT s0");
    assert_eq!(open.value("SELECT pg_backend_pid()"), kept);
    let servers = named_rows(&mut operator, "SHOW SERVERS");
    let needed: Vec<_> =
        servers.iter().map(|r| (r["remote_pid"].as_str(), r["close_needed"].as_str())).collect();
    assert!(needed.contains(&(kept.as_str(), "1")), "{needed:?}");
    operator.send(&m::query("WAIT_CLOSE"));
    open.rows("COMMIT");
    let done = operator.until_ready();
    assert!(done.iter().any(|m| m.tag == b'C' && m.text() == "WAIT_CLOSE"), "{done:?}");
    let after = acme.value("SELECT pg_backend_pid()");
    assert!(after != first && after != kept, "{after}");
    let pids =
        s.shards[0].value("SELECT string_agg(pid::text, ',') FROM pg_stat_activity WHERE usename = 'app'");
    assert!(!pids.split(',').any(|pid| pid == first || pid == kept), "{pids}");
}

#[test]
fn the_sessions_of_a_tenant_are_ended_and_no_others() {
    let s = setup().start();
    let mut operator = console(&s, "operator");
    let (mut idle, mut open, mut globex) = (s.login("acme"), s.login("acme"), s.login("globex"));
    open.rows("BEGIN; INSERT INTO scratch.items VALUES (1, 'lost')");
    let answer = operator.round(&m::query("KILL TENANT acme"));
    assert!(answer.iter().any(|m| m.tag == b'N' && m.field(b'M') == "2 sessions ended"), "{answer:?}");
    for session in [&mut idle, &mut open] {
        assert!(session.until_ready_or_end().iter().any(|m| m.tag == b'E' && m.sqlstate() == "57P01"));
    }
    assert_eq!(globex.value("SELECT 1"), "1");
    assert_eq!(s.login("acme").value("SELECT 1"), "1");
    wait::until_true("the rollback", || {
        s.shards[0].value("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
            == "0"
    });
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "0");
}

#[test]
fn killing_a_shard_pauses_it_as_pgbouncer_does() {
    let s = switchyard_tests::Setup::new()
        .tenant_on("here", 0)
        .tenant_on("there", 1)
        .section(&super::users())
        .start();
    let mut admin = console(&s, "admin");
    let (mut here, mut there) = (s.login("here"), s.login("there"));
    here.rows("BEGIN; SELECT 1");
    admin.rows("KILL s0");
    assert!(here.until_ready_or_end().iter().any(|m| m.tag == b'E' && m.sqlstate() == "57P01"));
    assert_eq!(there.value("SELECT 1"), "1");
    let mut again = s.login("here");
    again.send(&m::query("SELECT 1"));
    wait::until_true("it to be held", || {
        named_rows(&mut admin, "SHOW CLIENTS").iter().any(|row| row["state"] == "waiting")
    });
    admin.rows("RESUME s0");
    assert_eq!(again.until_ready().iter().filter(|m| m.tag == b'D').count(), 1);
}

#[test]
fn one_client_is_ended_by_its_id() {
    let s = setup().start();
    let mut operator = console(&s, "operator");
    let (mut first, mut second) = (s.login("acme"), s.login("acme"));
    first.rows("SELECT 1");
    let ids: Vec<_> = named_rows(&mut operator, "SHOW CLIENTS").iter().map(|row| row["id"].clone()).collect();
    operator.rows(&format!("KILL_CLIENT {}", ids[0]));
    assert!(first.until_ready_or_end().iter().any(|m| m.tag == b'E' && m.sqlstate() == "57P01"));
    assert_eq!(second.value("SELECT 1"), "1");
    assert_eq!(operator.error(&format!("KILL_CLIENT {}", ids[0])).sqlstate, "42704");
}

#[test]
fn who_is_disabled_cannot_log_in_and_keeps_what_is_open() {
    let s = setup().start();
    let mut operator = console(&s, "operator");
    let mut open = s.login("acme");
    for (disable, enable, globex) in [
        ("DISABLE TENANT acme", "ENABLE TENANT acme", true),
        ("DISABLE s0", "ENABLE s0", false),
        ("DISABLE \"crm@s0\"", "ENABLE \"crm@s0\"", false),
    ] {
        operator.rows(disable);
        assert_eq!(operator.error(disable).sqlstate, "55000");
        assert_eq!(s.refused("acme").sqlstate(), "57P03");
        assert_eq!(s.target("globex").try_connect().is_ok(), globex, "{disable}");
        // Nobody but who proves to be of the tenant is told.
        assert_eq!(s.plain_target("app.acme", "wrong").refused().sqlstate(), "28P01");
        assert_eq!(open.value("SELECT 1"), "1");
        operator.rows(enable);
        assert_eq!(operator.error(enable).sqlstate, "55000");
        assert_eq!(s.login("acme").value("SELECT 1"), "1");
    }
}

#[test]
fn a_reload_says_what_is_wrong() {
    let s = setup().start();
    let mut operator = console(&s, "operator");
    let reloads =
        |outcome: &str| s.router.metrics().sum("switchyard_config_reloads_total", &[("outcome", outcome)]);
    operator.rows("RELOAD");
    assert_eq!((reloads("success"), reloads("failure")), (1.0, 0.0));
    assert!(!s.router.reload(&s.toml.replace("size = 2", "size = \"many\"")));
    let answer = operator.round(&m::query("RELOAD"));
    let error = answer.iter().find(|m| m.tag == b'E').unwrap();
    assert_eq!(error.sqlstate(), "F0000");
    assert!(error.field(b'D').contains("size"), "{}", error.field(b'D'));
    assert_eq!(s.login("acme").value("SELECT 1"), "1");
}
