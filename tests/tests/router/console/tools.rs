//! Drivers and tools that were made for PgBouncer, unchanged.

use serde_json::json;
use switchyard_tests::drivers::{psql, psql_ok, python};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Running, wait};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::{PASSWORD, setup};

fn url(s: &Running, database: &str) -> String {
    let port = s.router.address().port();
    format!("postgres://admin:{PASSWORD}@localhost:{port}/{database}?sslmode=disable")
}

#[test]
fn psql_shows_and_pauses() {
    let s = setup().start();
    s.login("acme").rows("SELECT 1");
    for database in ["switchyard", "pgbouncer"] {
        let url = url(&s, database);
        let version = psql_ok(&url, &["SHOW VERSION"]);
        assert!(version.starts_with("PgBouncer 1.25.2"), "{version}");
        let pools = psql_ok(&url, &["SHOW POOLS;"]);
        assert!(pools.lines().any(|line| line.starts_with("crm@s0|app|")), "{pools}");
        psql_ok(&url, &["PAUSE", "SHOW STATE", "RESUME"]);
        let refused = psql(&url, &["SELECT * FROM pg_class"]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("the console is no database"));
    }
}

#[test]
fn python_drivers_read_it() {
    let s = setup().start();
    s.login("acme").rows("SELECT 1");
    let said = python("console.py", &json!({"url": url(&s, "pgbouncer")}));
    for driver in ["psycopg", "psycopg2", "asyncpg"] {
        assert_eq!(said[driver]["max_client_conn"], "10000", "{said}");
        assert!(said[driver]["pools"].as_u64().is_some_and(|n| n >= 2), "{said}");
        assert!(said[driver]["xacts"].as_u64().is_some_and(|n| n >= 1), "{said}");
    }
}

#[tokio::test]
async fn tokio_postgres_reads_it_in_binary() {
    let s = setup().start();
    s.login("acme").rows("SELECT 1");
    let (client, connection) = tokio_postgres::connect(&url(&s, "switchyard"), NoTls).await.unwrap();
    tokio::spawn(connection);
    let rows = client.query("SHOW DATABASES", &[]).await.unwrap();
    assert_eq!(rows[0].get::<_, &str>("name"), "crm@s0");
    assert_eq!(rows[0].get::<_, i32>("pool_size"), 2);
    assert_eq!(rows[0].get::<_, Option<&str>>("load_balance_hosts"), None);
    let statement = client.prepare("SHOW TENANTS LIKE $1").await.unwrap();
    let rows = client.query(&statement, &[&"a%"]).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].get::<_, i32>("clients"), 0);
    assert_eq!(client.execute("RECONNECT", &[]).await.unwrap(), 0);
    let simple = client.simple_query("SHOW STATE").await.unwrap();
    assert_eq!(simple.iter().filter(|m| matches!(m, SimpleQueryMessage::Row(_))).count(), 3);
    let error = client.query("SHOW TENANT nobody", &[]).await.unwrap_err();
    assert_eq!(error.code().map(|c| c.code()), Some("42704"));
}

/// What each tool asks, as it asks, by one connection that stays open.
#[test]
fn the_questions_of_monitoring_tools() {
    let s = setup().start();
    let mut acme = s.login("acme");
    acme.rows("SELECT 1");
    // lib/pq of the exporter sends this at startup.
    let target = s.plain_target("viewer", PASSWORD).database("pgbouncer").param("extra_float_digits", "2");
    let mut exporter = target.connect();
    let mut rows = |sql: &str| super::named_rows(&mut exporter, sql);
    // prometheus pgbouncer_exporter: collector.go
    assert!(!rows("SHOW STATS").is_empty());
    for name in ["query_count", "xact_count", "bytes_received", "wait_time", "server_assignment_count"] {
        rows("SHOW STATS_TOTALS").iter().for_each(|row| assert!(row[name].parse::<f64>().is_ok(), "{name}"));
    }
    for name in
        ["cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login", "maxwait"]
    {
        rows("SHOW POOLS").iter().for_each(|row| assert!(row[name].parse::<u64>().is_ok(), "{name}"));
    }
    for name in ["pool_size", "max_connections", "current_connections", "paused", "disabled"] {
        rows("SHOW DATABASES").iter().for_each(|row| assert!(row[name].parse::<u64>().is_ok(), "{name}"));
    }
    for list in
        ["databases", "users", "pools", "free_clients", "used_clients", "login_clients", "free_servers"]
    {
        assert!(rows("SHOW LISTS").iter().any(|row| row["list"] == list), "{list}");
    }
    let config = rows("SHOW CONFIG");
    for key in ["max_client_conn", "max_user_connections"] {
        let row = config.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("no {key}"));
        assert!(row["value"].parse::<u64>().is_ok());
    }
    // Datadog's check looks for three numbers with dots between.
    let version = rows("SHOW VERSION")[0]["version"].clone();
    assert!(
        version.split(|c: char| !c.is_ascii_digit() && c != '.').any(|w| w.split('.').count() == 3),
        "{version}"
    );
    // And takes the age of clients from the times that it finds.
    assert!(rows("SHOW CLIENTS").iter().all(|row| row["request_time"].ends_with(" UTC")));
    // Drivers that prepare what they ask get the same.
    for sql in [
        "SHOW STATS",
        "SHOW STATS_TOTALS",
        "SHOW POOLS",
        "SHOW DATABASES",
        "SHOW LISTS",
        "SHOW CONFIG",
        "SHOW CLIENTS",
        "SHOW SERVERS",
        "SHOW VERSION",
    ] {
        let simple = exporter.round(&m::query(sql));
        let extended = exporter.round(&m::extended(sql, &[]));
        let count = |messages: &[switchyard_tests::raw::Message]| {
            assert!(messages.iter().all(|m| m.tag != b'E'), "{sql}: {messages:?}");
            messages.iter().filter(|m| m.tag == b'D').count()
        };
        assert_eq!(count(&simple), count(&extended), "{sql}");
    }
    let mut rows = |sql: &str| super::named_rows(&mut exporter, sql);
    wait::until_true("what is counted", || {
        rows("SHOW STATS").iter().any(|row| row["database"] == "crm@s0" && row["total_xact_count"] == "1")
    });
}

/// Where the password is read from by tools that take none on their command line.
fn with_password(program: &str) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.env("PGPASSWORD", PASSWORD).env("PGSSLMODE", "disable").stdin(std::process::Stdio::null());
    command
}

/// check_postgres itself, in each of its actions that are for PgBouncer.
#[test]
fn check_postgres_is_content() {
    let s = setup().start();
    let mut acme = s.login("acme");
    acme.rows("BEGIN; SELECT 1");
    let port = s.router.address().port().to_string();
    let check = |action: &str, limits: [&str; 2]| {
        let output = with_password("check_postgres")
            .args(["--action", action, "--host", "127.0.0.1", "--port", &port])
            .args(["--dbname", "pgbouncer", "--dbuser", "viewer"])
            .args(["--warning", limits[0], "--critical", limits[1]])
            .output()
            .expect("check_postgres is installed: scripts/install-test-deps.sh");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    for what in
        ["cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login", "maxwait"]
    {
        let said = check(&format!("pgb_pool_{what}"), ["1000", "2000"]);
        assert!(said.contains(" OK:") && said.contains("crm@s0"), "{what}: {said}");
    }
    let critical = check("pgb_pool_sv_active", ["1", "1"]);
    assert!(critical.contains("CRITICAL"), "{critical}");
    let backends = check("pgbouncer_backends", ["90%", "95%"]);
    assert!(backends.contains(" OK:") && backends.contains("of 10000"), "{backends}");
    // The checksum is over the whole of SHOW CONFIG: the same as long as nothing changes.
    let sum = |known: &str| {
        let output = with_password("check_postgres")
            .args(["--action", "pgbouncer_checksum", "--host", "127.0.0.1", "--port", &port])
            .args(["--dbname", "pgbouncer", "--dbuser", "viewer", "--critical", known])
            .output()
            .expect("check_postgres runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let first = sum("0");
    let found = first.split(|c: char| !c.is_ascii_hexdigit()).find(|word| word.len() == 32);
    let found = found.unwrap_or_else(|| panic!("no checksum in {first}"));
    assert!(sum(found).contains(" OK:"), "{}", sum(found));
}
