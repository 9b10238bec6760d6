//! What a tenant has on its shard: a schema or a database of its own, or rows in shared tables. Made, measured and
//! cleared by the control plane.

use serde_json::{Value, json};
use switchyard_tests::raw::Raw;
use switchyard_tests::wait;

use crate::life::Site;

#[test]
fn a_schema_of_its_own_is_made_and_cleared() {
    let site = Site::start();
    let plane = &site.plane;
    let settings = json!({
        "context": { "search_path": ["tenant_{tenant}"] },
        "provision": { "schema_sql": "CREATE TABLE notes (id int PRIMARY KEY, body text)",
                       "seed_sql": "INSERT INTO notes VALUES (1, 'welcome')" },
    });
    let (status, _, answer) = plane.request("PATCH", "/v1/settings", &plane.token(), &settings.to_string());
    assert_eq!(status, 200, "{answer}");
    let odd = "o'dd \"one\"";
    let made = plane.cli(&["tenant", "create", odd, "--user", "odd"]);
    let target = site.target(&made["url"]);
    site.let_in(&target);
    let mut session = target.connect();
    session.rows("INSERT INTO notes VALUES (2, 'mine')");
    assert_eq!(session.value("SELECT count(*) FROM notes"), "2");
    drop(session);
    assert_eq!(site.sum("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'tenant\\_%'"), 1);

    // What cannot be made leaves nothing.
    let broken = json!({ "provision": { "schema_sql": "CREATE TABLE notes (" } });
    plane.request("PATCH", "/v1/settings", &plane.token(), &broken.to_string());
    let (status, _, problem) = plane.request("POST", "/v1/tenants", &plane.token(), "{\"id\": \"x\"}");
    assert_eq!((status, &problem["code"]), (502, &json!("shard_failed")), "{problem}");
    assert_eq!(plane.code(&["tenant", "show", "x"]), 3);
    plane.cli(&["tenant", "delete", odd, "--yes", "--grace", "0", "--wait"]);
    assert_eq!(site.sum("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'tenant\\_%'"), 0);
}

#[test]
fn a_tenant_that_cannot_be_made_loses_nothing_that_was_there_before() {
    let site = Site::start();
    let plane = &site.plane;
    let refused = |id: &str| {
        let body = json!({ "id": id }).to_string();
        let (status, _, problem) = plane.request("POST", "/v1/tenants", &plane.token(), &body);
        assert_eq!(status, 502, "{problem}");
        assert_eq!(plane.code(&["tenant", "show", id]), 3);
    };
    for shard in &site.shards {
        shard.sql(
            "CREATE SCHEMA t_old; CREATE TABLE t_old.notes (id int); INSERT INTO t_old.notes VALUES (1);
             CREATE SCHEMA t_blank; CREATE TABLE shared (tenant_id text, id int PRIMARY KEY);
             INSERT INTO shared VALUES ('kept', 1); GRANT ALL ON shared TO PUBLIC",
        );
        shard.sql("CREATE DATABASE d_old");
    }
    let provision = json!({ "schema_sql": "CREATE TABLE notes (" });
    set(&site, &json!({ "context": { "search_path": ["t_{tenant}"] }, "provision": provision }));
    refused("new");
    refused("blank");
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname IN ('t_new', 't_blank')";
    assert_eq!(site.sum(schemas), site.shards.len() as u64, "the blank ones, which are not ours");
    // What has something in it is taken as it is.
    plane.cli(&["tenant", "create", "old"]);
    assert_eq!(site.sum("SELECT count(*) FROM t_old.notes"), site.shards.len() as u64);

    set(&site, &json!({ "context": { "database": "d_{tenant}" }, "provision": provision }));
    plane.cli(&["tenant", "delete", "old", "--yes", "--grace", "0", "--wait"]);
    let databases = "SELECT count(*) FROM pg_database WHERE datname IN ('d_old', 'd_new')";
    let there = site.sum(databases);
    refused("new");
    assert_eq!(site.sum(databases), there);

    let seed = json!({ "seed_sql": "INSERT INTO shared VALUES ('kept', 1)" });
    set(&site, &json!({ "context": { "variables": { "app.tenant_id": "{tenant}" } }, "provision": seed }));
    refused("kept");
    assert_eq!(site.sum("SELECT count(*) FROM shared"), site.shards.len() as u64);
}

/// Changes the settings.
fn set(site: &Site, settings: &Value) {
    let plane = &site.plane;
    let (status, _, answer) = plane.request("PATCH", "/v1/settings", &plane.token(), &settings.to_string());
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn a_database_of_its_own_is_made_from_a_template_and_dropped() {
    let site = Site::start();
    let plane = &site.plane;
    for shard in &site.shards {
        shard.sql("CREATE DATABASE blank");
    }
    set(
        &site,
        &json!({
            "context": { "database": "db_{tenant}" },
            "provision": { "template_database": "blank",
                           "schema_sql": "CREATE TABLE notes (id int PRIMARY KEY, body text)",
                           "seed_sql": "INSERT INTO notes VALUES (1, 'welcome')" },
        }),
    );
    let databases = || site.sum("SELECT count(*) FROM pg_database WHERE datname LIKE 'db\\_%'");
    let mut sessions: Vec<Raw> = ["acme", "globex"]
        .iter()
        .map(|id| {
            let made = plane.cli(&["tenant", "create", id]);
            let target = site.target(&made["url"]);
            site.let_in(&target);
            target.connect()
        })
        .collect();
    assert_eq!(databases(), 2);
    let (acme, globex) = sessions.split_at_mut(1);
    acme[0].rows("INSERT INTO notes VALUES (2, 'mine')");
    assert_eq!(acme[0].value("SELECT count(*) FROM notes"), "2");
    assert_eq!(globex[0].value("SELECT count(*) FROM notes"), "1");
    assert_eq!(acme[0].value("SELECT current_database()"), "db_acme");

    // Suspended and resumed, and deleted: the other's stays.
    plane.cli(&["tenant", "suspend", "acme"]);
    wait::until_true("the end of its session", || acme[0].try_rows("SELECT 1").is_err());
    plane.cli(&["tenant", "resume", "acme"]);
    plane.cli(&["tenant", "delete", "acme", "--yes", "--grace", "0", "--wait"]);
    assert_eq!(databases(), 1);
    assert_eq!(globex[0].value("SELECT count(*) FROM notes"), "1");

    // A name that PostgreSQL would cut could become another tenant's.
    let long = "x".repeat(70);
    let body = json!({ "id": long }).to_string();
    let (status, _, problem) = plane.request("POST", "/v1/tenants", &plane.token(), &body);
    assert_eq!((status, &problem["field"]), (422, &json!("id")), "{problem}");
    assert_eq!(plane.code(&["tenant", "show", &long]), 3);
    assert_eq!(databases(), 1);
}

/// Waits until a tenant's storage has been measured to be as `is` says.
fn measured(site: &Site, tenant: &str, is: impl Fn(u64) -> bool) -> u64 {
    let mut bytes = 0;
    wait::until_true("the measure", || {
        let day = site.plane.cli(&["usage", tenant, "--by", "day"]);
        bytes = day[0]["storage"].as_u64().unwrap_or_default();
        is(bytes)
    });
    bytes
}

#[test]
fn storage_is_measured_and_over_its_quota_a_tenant_reads_only() {
    let site = Site::with("measure_storage_seconds = 1");
    let plane = &site.plane;
    for (id, shard) in [("acme", "s0"), ("globex", "s0")] {
        plane.cli(&["tenant", "create", id, "--shard", shard]);
    }
    let fill = |tenant: &str, rows: u32| {
        site.shards[0].sql(&format!(
            "INSERT INTO clients (tenant_id, name) SELECT '{tenant}', repeat('x', 200) FROM generate_series(1, {rows})"
        ));
    };
    fill("acme", 30_000);
    fill("globex", 10_000);
    // Rows in shared tables: of the table with its indexes, in proportion to the bytes of the rows.
    let acme = measured(&site, "acme", |bytes| bytes > 0);
    let globex = measured(&site, "globex", |bytes| bytes > 0);
    let table: u64 =
        site.shards[0].value("SELECT pg_total_relation_size('clients')").parse().expect("a number");
    let near = |bytes: u64, expected: u64| bytes.abs_diff(expected) * 50 < expected;
    assert!(near(acme, table * 3 / 4) && near(globex, table / 4), "{acme} and {globex} of {table}");

    // Told first, as configured; then nothing more is written.
    plane.cli(&["limit", "set", "acme", "storage=1MiB"]);
    let alerted = || {
        let alerts = plane.cli(&["webhook", "alerts", "--open"]);
        let alerts = alerts.as_array().expect("a list").clone();
        alerts
            .iter()
            .any(|a| a["kind"] == "limit_reached" && a["tenant"] == "acme" && a["subject"] == "storage")
    };
    wait::until_true("the alert", alerted);
    assert!(plane.cli(&["limit", "get", "acme"])["restriction"].is_null(), "an alert is all");
    plane.cli(&["limit", "set", "acme", "over_storage=read-only"]);
    let restriction = || plane.cli(&["limit", "get", "acme"])["restriction"]["kind"].clone();
    wait::until_true("the mark", || restriction() == "storage");
    assert!(plane.cli(&["limit", "get", "globex"])["restriction"].is_null());
    // Less is held again.
    site.shards[0].sql("DELETE FROM clients WHERE tenant_id = 'acme'");
    site.shards[0].sql("VACUUM FULL clients");
    measured(&site, "acme", |bytes| bytes < 1 << 20);
    wait::until_true("the end of the mark", || restriction().is_null());
    wait::until_true("the end of the alert", || !alerted());
}

#[test]
fn storage_that_cannot_be_known_is_told_of_once_and_not_guessed() {
    let site = Site::with("measure_storage_seconds = 1");
    let plane = &site.plane;
    plane.cli(&["tenant", "create", "acme", "--shard", "s0"]);
    plane.cli(&["tenant", "create", "globex", "--shard", "s1"]);
    let administrators = "SELECT admin_user, admin_kid, admin_sealed, admin_password FROM switchyard.shards";
    plane.cluster().sql(&format!("CREATE TABLE administrators AS {administrators} WHERE name = 's0'"));
    plane.cluster().sql(
        "UPDATE switchyard.shards SET admin_user = NULL, admin_kid = NULL, admin_sealed = NULL, admin_password = NULL
         WHERE name = 's0'",
    );
    // What was measured before is no matter.
    plane.cluster().sql("DELETE FROM switchyard.usage");
    for (shard, tenant) in site.shards.iter().zip(["acme", "globex"]) {
        shard.sql(&format!("INSERT INTO clients (tenant_id, name) VALUES ('{tenant}', 'c')"));
    }
    let told = || plane.log().matches("what tenants hold here is not known").count();
    wait::until_true("the word", || told() > 0);
    for _ in 0..2 {
        plane.cluster().sql("UPDATE switchyard.usage SET storage = 1 WHERE tenant = 'globex'");
        measured(&site, "globex", |bytes| bytes > 1);
    }
    assert_eq!(told(), 1, "it is the same all the time");
    let known = "SELECT count(*) FROM switchyard.usage WHERE tenant = 'acme' AND storage IS NOT NULL";
    assert_eq!(plane.cluster().value(known), "0");
    plane.cluster().sql(
        "UPDATE switchyard.shards s SET (admin_user, admin_kid, admin_sealed, admin_password) =
             (a.admin_user, a.admin_kid, a.admin_sealed, a.admin_password) FROM administrators a WHERE s.name = 's0'",
    );
    measured(&site, "acme", |bytes| bytes > 0);
}

#[test]
fn storage_of_schemas_and_databases_is_what_they_hold() {
    let site = Site::with("measure_storage_seconds = 1");
    for (context, name) in [
        (json!({ "search_path": ["tenant_{tenant}"] }), "schemata"),
        (json!({ "database": "db_{tenant}" }), "databases"),
    ] {
        set(
            &site,
            &json!({
                "context": context,
                "provision": { "schema_sql": "CREATE TABLE notes (id int PRIMARY KEY, body text);
                                              INSERT INTO notes SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n" },
            }),
        );
        let made = site.plane.cli(&["tenant", "create", name, "--shard", "s0"]);
        let target = site.target(&made["url"]);
        site.let_in(&target);
        let mut session = target.connect();
        let size = match name {
            "databases" => "SELECT pg_database_size(current_database())",
            _ => "SELECT pg_total_relation_size('notes')",
        };
        let size: u64 = session.value(size).parse().expect("a number");
        measured(&site, name, |bytes| bytes == size);
    }
}
