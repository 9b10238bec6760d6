//! The harness itself, against PostgreSQL alone.

use switchyard_tests::raw::differential::{self, Step, round};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Certs, Cluster, FaultProxy, Target, drivers, wait};

#[test]
fn a_cluster_survives_kill_9_and_restart() {
    let mut cluster = Cluster::start();
    cluster.sql("INSERT INTO scratch.items VALUES (1, 'kept'); CHECKPOINT");
    cluster.kill9();
    assert!(cluster.app().try_connect().is_err());
    cluster.start_again();
    assert_eq!(cluster.app().connect().value("SELECT body FROM scratch.items"), "kept");
    cluster.restart();
    assert_eq!(cluster.app().connect().value("SELECT body FROM scratch.items"), "kept");
}

#[test]
fn row_level_security_holds_for_the_application_role() {
    let cluster = Cluster::start();
    cluster.sql("INSERT INTO clients VALUES ('a', 1, 'of a'), ('b', 1, 'of b')");
    let of_a =
        cluster.app().param("options", "-c app.tenant_id=a").connect().column("SELECT name FROM clients");
    assert_eq!(of_a, ["of a"]);
    assert!(cluster.app().connect().column("SELECT name FROM clients").is_empty());
}

#[test]
fn the_client_speaks_scram_plus_over_tls() {
    let certs = Certs::new();
    let cluster = Cluster::builder().tls(&certs).start();
    let tls = cluster.app().tls(&certs.client(None), "localhost");
    let mut session = tls.clone().channel_binding().connect();
    assert_eq!(session.value("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), "t");
    assert_eq!(tls.password("wrong").refused().sqlstate(), "28P01");
}

#[test]
fn a_difference_is_found() {
    let cluster = Cluster::start();
    let login = || cluster.app().connect();
    let script = round(m::query("SELECT 1; SELECT 2; SELECT 1/0"));
    differential::same("the same", &mut login(), &mut login(), &script);
    let other = cluster.target("other", "other-secret");
    let script = round(m::query("SELECT current_user"));
    assert!(differential::difference(&mut login(), &mut other.connect(), &script).is_some());
    // Longer than sockets buffer, answered before it is read: no deadlock.
    let many: Vec<u8> = (0..20_000).flat_map(|_| m::extended("SELECT 1", &[])).collect();
    let script = [Step::Send(many), Step::Ready(20_000)];
    assert_eq!(differential::play(&mut login(), &script).len(), 20_000 * 5);
}

#[test]
fn faults_happen_when_told() {
    let cluster = Cluster::start();
    let proxy = FaultProxy::start(cluster.address());
    let target = cluster.app();
    let through = Target::tcp(proxy.address()).user("app").password("app-secret").database("crm");
    let mut session = through.connect();
    assert_eq!(session.value("SELECT 1"), "1");
    proxy.stall();
    session.send(&m::query("SELECT 2"));
    proxy.resume();
    assert_eq!(session.until_ready()[1].values(), [Some("2".to_owned())]);
    proxy.cut();
    assert!(session.try_rows("SELECT 3").is_err());
    proxy.refuse(true);
    assert!(through.try_connect().is_err());
    proxy.refuse(false);
    assert_eq!(through.connect().value("SELECT 4"), "4");
    drop(target);
    wait::until_true("its sessions to end", || cluster.sessions_of("app") == 0);
}

#[test]
fn the_applications_work_without_a_router() {
    let cluster = Cluster::start();
    let mut urls = serde_json::Map::new();
    for tenant in ["acme", "globex"] {
        cluster.sql(&format!(
            "CREATE ROLE {tenant} LOGIN PASSWORD 'x' IN ROLE app; ALTER ROLE {tenant} SET app.tenant_id = '{tenant}';
             INSERT INTO clients SELECT '{tenant}', n, '{tenant} client ' || n FROM generate_series(1, 3) n"
        ));
        urls.insert(tenant.to_owned(), cluster.url(tenant, "x").into());
    }
    let input = serde_json::json!({"urls": urls, "clients": 2, "rounds": 2});
    for script in ["psycopg_app.py", "psycopg2_app.py", "asyncpg_app.py", "sqlalchemy_app.py"] {
        assert!(drivers::python(script, &input)["rows"].as_u64() > Some(50), "{script}");
    }
    assert!(drivers::node("pg_app.mjs", &input)["rows"].as_u64() > Some(20));
}
