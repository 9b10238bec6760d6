//! Our own tables: tenants, shards, sessions, pins, limits.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Setup, wait};

use super::{console, named_rows, setup, users};

#[test]
fn tenants_by_the_page() {
    let ids: Vec<String> = (0..1200).map(|n| format!("t{n:04}")).collect();
    let s = Setup::new().shards(1).tenants(["acme", "100%"]).section(&users());
    // In the configuration alone: a thousand tenants need no rows.
    let more: String = ids.iter().map(|id| format!("[[tenants]]\nid = \"{id}\"\n")).collect();
    let s = s.section(&more).start();
    let mut viewer = console(&s, "viewer");
    let answer = viewer.round(&m::query("SHOW TENANTS"));
    assert_eq!(answer.iter().filter(|m| m.tag == b'D').count(), 1000);
    assert!(
        answer.iter().any(|m| m.tag == b'N' && m.field(b'H').contains("AFTER")),
        "nothing says that it is cut"
    );
    let mut seen = Vec::new();
    loop {
        let after = seen.last().cloned().unwrap_or_default();
        let page = match seen.is_empty() {
            true => viewer.column("SHOW TENANTS LIMIT 500"),
            false => viewer.column(&format!("SHOW TENANTS AFTER '{after}' LIMIT 500")),
        };
        if page.is_empty() {
            break;
        }
        seen.extend(page);
    }
    assert_eq!(seen.len(), 1202);
    assert!(seen.is_sorted());
    assert_eq!(viewer.column("SHOW TENANTS LIKE 't001%'").len(), 10);
    assert_eq!(viewer.column("SHOW TENANTS LIKE '%\\%'"), ["100%"]);
    assert_eq!(viewer.column("SHOW TENANTS LIKE 't%' LIMIT 2"), ["t0000", "t0001"]);
    // Values may be given apart, too.
    let params: [Option<&[u8]>; 2] = [Some(b"t00%"), Some(b"3")];
    let answer = viewer.round(&m::extended("SHOW TENANTS LIKE $1 LIMIT $2", &params));
    assert_eq!(answer.iter().filter(|m| m.tag == b'D').count(), 3);
}

#[test]
fn one_tenant() {
    let s = setup().start();
    let mut acme = s.login("acme");
    acme.rows("SELECT 1");
    acme.error("SELECT 1/0");
    acme.rows("BEGIN; SELECT 1");
    let mut viewer = console(&s, "viewer");
    let row = named_rows(&mut viewer, "SHOW TENANT acme").remove(0);
    for (name, value) in [
        ("tenant", "acme"),
        ("shard", "s0"),
        ("state", "active"),
        ("paused", "0"),
        ("clients", "1"),
        ("servers", "1"),
        ("errors", "1"),
        ("transactions", "2"),
        ("placement", "bucket"),
        ("pool_mode", "transaction"),
        ("reads_from", "primary"),
    ] {
        assert_eq!(row[name], value, "{name}: {row:?}");
    }
    assert_eq!(viewer.error("SHOW TENANT nobody").sqlstate, "42704");
}

#[test]
fn pins_and_sessions_say_why_and_since_when() {
    let s = setup().start();
    let target = s.target("acme").param("application_name", "nightly");
    let mut acme = target.connect();
    s.login("globex").rows("SELECT 1");
    acme.rows("CREATE TEMPORARY TABLE t ()");
    let mut viewer = console(&s, "viewer");
    let pins = named_rows(&mut viewer, "SHOW PINS");
    assert_eq!(pins.len(), 1, "{pins:?}");
    let pin = &pins[0];
    assert_eq!((pin["tenant"].as_str(), pin["reason"].as_str()), ("acme", "temporary"));
    assert_eq!((pin["application_name"].as_str(), pin["shard"].as_str()), ("nightly", "s0"));
    assert_eq!(pin["server_pid"], acme.value("SELECT pg_backend_pid()"));
    assert!(pin["since"].ends_with(" UTC"));
    assert!(named_rows(&mut viewer, "SHOW PINS TENANT globex").is_empty());
    // What it is doing is noted a moment after the client has its answer.
    wait::until_true("the session to be at rest", || {
        let sessions = named_rows(&mut viewer, "SHOW SESSIONS TENANT acme");
        assert_eq!((sessions.len(), sessions[0]["pin"].as_str()), (1, "temporary"));
        sessions[0]["state"] == "pinned"
    });
    acme.rows("DISCARD ALL");
    assert!(named_rows(&mut viewer, "SHOW PINS").is_empty());
    // A pin that is rolled back is none.
    acme.rows("BEGIN; CREATE TEMPORARY TABLE t (); ROLLBACK");
    assert!(named_rows(&mut viewer, "SHOW PINS").is_empty());
}

#[test]
fn limits_are_shown_with_what_is_used() {
    let s = setup().section("[limits]\nclients = 50").start();
    let _acme = s.login("acme");
    let mut viewer = console(&s, "viewer");
    let rows = named_rows(&mut viewer, "SHOW LIMITS");
    let limit = |scope: &str, limit: &str| {
        let row = rows.iter().find(|row| row["scope"] == scope && row["limit"] == limit);
        let row = row.unwrap_or_else(|| panic!("no {scope} {limit}"));
        (row["value"].clone(), row["used"].clone())
    };
    assert_eq!(limit("router", "clients"), ("50".to_owned(), "1".to_owned()));
    assert_eq!(limit("console", "sessions"), ("20".to_owned(), "1".to_owned()));
    assert_eq!(limit("shard", "pool.size").0, "2");
    assert_eq!(limit("router", "client_idle_timeout").0, "none");
    let of_tenant = named_rows(&mut viewer, "SHOW LIMITS TENANT acme");
    let connections = of_tenant.iter().find(|row| row["limit"] == "connections").unwrap();
    assert_eq!((connections["value"].as_str(), connections["used"].as_str()), ("none", "1"));
    assert_eq!(viewer.error("SHOW LIMITS TENANT nobody").sqlstate, "42704");
}

#[test]
fn shards_and_their_state() {
    let s = setup().start();
    s.login("acme").rows("SELECT 1");
    let mut operator = console(&s, "operator");
    let row = named_rows(&mut operator, "SHOW SHARDS").remove(0);
    assert_eq!(
        (row["shard"].as_str(), row["state"].as_str(), row["database"].as_str()),
        ("s0", "active", "crm")
    );
    assert_eq!((row["size"].as_str(), row["connects"].as_str()), ("2", "1"));
    operator.rows("PAUSE s0");
    assert_eq!(named_rows(&mut operator, "SHOW SHARDS")[0]["state"], "paused");
}
