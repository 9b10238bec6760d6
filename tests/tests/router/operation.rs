//! What operators see and do.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Router, Setup, metrics, wait};

fn setup() -> Setup {
    Setup::new().shards(1).tenants(["acme", "globex"])
}

#[test]
fn metrics_can_be_read_and_count_what_happens() {
    let s = setup().start();
    let mut acme = s.login("acme");
    for _ in 0..10 {
        acme.rows("SELECT 1");
    }
    acme.error("SELECT 1/0");
    drop(s.login("globex"));
    assert_eq!(s.plain_target("app.acme", "wrong").refused().sqlstate(), "28P01");
    wait::until_true("the counters", || {
        let seen = s.router.metrics();
        seen.sum("switchyard_tenant_transactions_total", &[("tenant", "acme")]) >= 11.0
    });
    let seen = s.router.metrics();
    for name in [
        "switchyard_build_info",
        "switchyard_config_generation",
        "switchyard_client_connections",
        "switchyard_client_connections_accepted_total",
        "switchyard_auth_attempts_total",
        "switchyard_server_connections",
        "switchyard_server_connections_max",
        "switchyard_server_connects_total",
        "switchyard_errors_total",
        "switchyard_bytes_total",
        "switchyard_pool_wait_seconds_count",
    ] {
        assert!(seen.samples.contains_key(name), "{name} is missing");
    }
    for (name, kind) in &seen.types {
        assert!(name.starts_with("switchyard_") || name.starts_with("process_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
    }
    assert_eq!(seen.sum("switchyard_server_connections_max", &[("shard", "s0")]), 2.0);
    assert!(seen.sum("switchyard_server_connections", &[("shard", "s0")]) <= 2.0);
}

#[test]
fn labels_are_bounded_and_never_a_strangers() {
    let ids: Vec<String> = (0..30).map(|n| format!("t{n}")).collect();
    let s = setup().tenants(ids.iter().map(String::as_str)).router("metrics_tenants = 10").start();
    for id in &ids {
        s.login(id).rows("SELECT 1");
    }
    for id in ["acme", "globex"] {
        s.login(id).rows("SELECT 1");
    }
    for n in 0..20 {
        let _ = s.plain_target(&format!("app.stranger{n}"), "x").try_connect();
        let _ = s.plain_target(&format!("nobody{n}"), "x").param("application_name", "noise").try_connect();
    }
    let seen = s.router.metrics();
    let tenants = seen.values_of("tenant");
    assert!(tenants.len() <= 11, "{tenants:?}");
    assert!(tenants.contains("_other"), "{tenants:?}");
    let all: Vec<_> = seen.samples.values().flatten().flat_map(|s| s.labels.values()).collect();
    for word in ["stranger", "nobody", "noise"] {
        assert!(all.iter().all(|value| !value.contains(word)), "{word} is a label");
    }
}

#[test]
fn odd_tenant_ids_do_not_break_the_page() {
    let s = Setup::new().shards(1).tenants(["quo\"te", "back\\slash", "ü"]).start();
    for id in ["quo\"te", "back\\slash", "ü"] {
        s.login(id).rows("SELECT 1");
    }
    wait::until_true("them all", || {
        let tenants = s.router.metrics().values_of("tenant");
        ["quo\"te", "back\\slash", "ü"].iter().all(|id| tenants.contains(*id))
    });
}

#[test]
fn liveness_and_readiness() {
    let s = setup().start();
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(metrics::get(s.router.http(), path).unwrap().0, 200, "{path}");
    }
    assert_eq!(metrics::get(s.router.http(), "/nothing").unwrap().0, 404);
}

#[test]
fn sigterm_waits_for_open_transactions() {
    let mut s = setup().start();
    let (mut open, mut idle) = (s.login("acme"), s.login("globex"));
    open.rows("BEGIN; INSERT INTO scratch.items VALUES (1, 'kept')");
    idle.rows("SELECT 1");
    s.router.signal("TERM");
    wait::until_true("not to be ready", || {
        !metrics::get(s.router.http(), "/readyz").is_ok_and(|a| a.0 == 200)
    });
    // The idle one is told to go; the open one may finish.
    let last = std::iter::from_fn(|| idle.try_read().ok()).last();
    assert!(last.is_none_or(|m| m.sqlstate() == "57P01"));
    assert!(s.target("acme").try_connect().is_err());
    open.rows("INSERT INTO scratch.items VALUES (2, 'kept')");
    open.send(&m::query("COMMIT"));
    let answer = open.until_ready_or_end();
    assert!(answer.iter().any(|m| m.tag == b'C'), "{answer:?}");
    assert!(s.router.wait_exit().success());
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "2");
}

#[test]
fn sigterm_does_not_wait_for_ever() {
    let mut s = setup().section("[limits]\ndrain_timeout = \"500ms\"").start();
    let mut open = s.login("acme");
    open.rows("BEGIN; INSERT INTO scratch.items VALUES (1, 'lost')");
    s.router.signal("TERM");
    assert!(s.router.wait_exit().success());
    assert!(open.ends());
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "0");
}

#[test]
fn a_bad_configuration_leaves_everything_as_it_was() {
    let mut s = setup().start();
    let mut acme = s.login("acme");
    let good = s.toml.clone();
    for bad in ["[router]\nworkers = \n", "[router]\nworkers = \"many\"\n", "[router]\nno_such_key = 1\n"] {
        assert!(!s.router.reload(bad), "{bad}");
        assert_eq!(acme.value("SELECT 1"), "1");
        assert_eq!(s.login("globex").value("SELECT 1"), "1");
    }
    assert!(s.reload(|_| good.replace("size = 2", "size = 3")));
    assert_eq!(s.router.metrics().sum("switchyard_server_connections_max", &[("shard", "s0")]), 3.0);
    assert_eq!(acme.value("SELECT 1"), "1");
}

#[test]
fn a_reload_brings_and_takes_users_and_tenants() {
    let mut s = setup().start();
    assert_eq!(s.refused("initech").sqlstate(), "28P01");
    let mut globex = s.login("globex");
    assert!(s.reload(|toml| toml.replace("id = \"acme\"", "id = \"initech\"")));
    assert_eq!(s.login("initech").value("SELECT 1"), "1");
    assert_eq!(s.refused("acme").sqlstate(), "28P01");
    assert_eq!(globex.value("SELECT 1"), "1");
}

#[test]
fn all_mistakes_of_a_configuration_are_told_together() {
    let said = Router::refused(
        "[router]\nworkers = \"many\"\npool_mode = \"sometimes\"\nbanana = 1\n[[shards]]\nname = \"s\"\nurl = \"nonsense\"\n",
    );
    for word in ["workers", "pool_mode", "banana", "url"] {
        assert!(said.contains(word), "{word} is not mentioned:\n{said}");
    }
    assert!(said.contains(":4") || said.contains("line 4"), "no line:\n{said}");
}

#[test]
fn nothing_is_leaked_by_thousands_of_sessions() {
    let s = setup().start();
    let files = || s.router.open_files();
    for _ in 0..20 {
        drop(s.login("acme"));
    }
    wait::until_true("the first to be gone", || {
        s.router.metrics().sum("switchyard_client_connections", &[]) == 0.0
    });
    let (before, memory) = (files(), s.router.resident_bytes());
    for n in 0..1000 {
        let mut session = s.login(["acme", "globex"][n % 2]);
        session.round(&[m::parse(&format!("s{n}"), &format!("SELECT {n}")), m::sync()].concat());
    }
    wait::until_true("the sockets to be closed", || files() <= before + 4);
    let grown = s.router.resident_bytes().saturating_sub(memory);
    assert!(grown < 16 << 20, "{grown} bytes more");
}
