//! Applications that keep state in their session, in transaction pooling, on two server connections that four
//! other tenants keep busy: no error, and nothing of anybody else's.

use serde_json::json;
use switchyard_tests::drivers::python;
use switchyard_tests::{Setup, wait};

const TENANTS: [&str; 5] = ["acme", "globex", "initech", "umbrella", "hooli"];

/// One driver after the other, beside four busy tenants.
fn beside_busy_tenants(drivers: &[&str]) {
    let s = Setup::new().shards(1).tenants(TENANTS).pool("size = 2").start();
    let urls: serde_json::Map<_, _> = TENANTS.iter().map(|t| ((*t).to_owned(), s.url(t).into())).collect();
    let input = json!({"urls": urls, "tenant": "acme", "clients": 1, "rounds": 6, "drivers": drivers});
    let said = python("stateful_app.py", &input);
    assert!(said["rows"].as_u64().is_some_and(|rows| rows > 50), "{said}");
    let foreign = "SELECT count(*) FROM leads WHERE first_name NOT LIKE tenant_id || ' %'";
    assert_eq!(s.shards[0].value(foreign), "0");
    // The state was real: it kept sessions on their connections, and let them go.
    let metrics = s.router.metrics();
    assert!(metrics.sum("switchyard_pins_total", &[("reason", "temporary")]) >= 1.0);
    assert!(s.server_connections() <= 3, "two, and the one that listens");
    wait::until_true("all to have left", || {
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
        s.shards[0].value(locks) == "0"
    });
}

#[test]
fn heavy_psycopg() {
    beside_busy_tenants(&["psycopg"]);
}

#[test]
fn heavy_asyncpg() {
    beside_busy_tenants(&["asyncpg"]);
}

#[test]
fn heavy_sqlalchemy() {
    beside_busy_tenants(&["sqlalchemy"]);
}

#[test]
fn heavy_django() {
    beside_busy_tenants(&["django"]);
}

#[test]
fn heavy_node_postgres() {
    beside_busy_tenants(&["node"]);
}
