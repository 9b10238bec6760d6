//! Policies for what has none.

use switchyard_shard_schema::SchemaError;
use switchyard_shard_schema::install::{InstallOptions, install};
use switchyard_shard_schema::protect::{Mode, ProtectOptions, apply, plan};
use switchyard_tests::Cluster;

use crate::session;

fn options(mode: Mode) -> ProtectOptions {
    ProtectOptions { column: "tenant_id".to_owned(), mode, tables: vec![], replace: false }
}

#[tokio::test]
async fn tables_of_all_kinds_of_columns() {
    let cluster = Cluster::start();
    cluster.sql(
        "CREATE TABLE scratch.by_uuid (tenant_id uuid, v int); CREATE TABLE scratch.by_int (tenant_id bigint, v int);
         CREATE TABLE scratch.by_varchar (tenant_id varchar(20), v int);
         INSERT INTO scratch.by_uuid VALUES ('00000000-0000-0000-0000-000000000001', 1), ('00000000-0000-0000-0000-000000000002', 2);
         INSERT INTO scratch.by_int VALUES (1, 1), (2, 2); INSERT INTO scratch.by_varchar VALUES ('1', 1), ('2', 2);
         GRANT SELECT ON ALL TABLES IN SCHEMA scratch TO app",
    );
    let mut client = session(&cluster).await;
    let plain = options(Mode::Plain("app.tenant_id".to_owned()));
    let before = plan(&*client, &plain).await.unwrap();
    assert_eq!(before.len(), 4 * 3, "{before:#?}");
    let done = apply(&mut client, &plain, 1000).await.unwrap();
    assert_eq!(done, before);
    assert!(plan(&*client, &plain).await.unwrap().is_empty());
    for (table, tenant) in
        [("by_uuid", "00000000-0000-0000-0000-000000000002"), ("by_int", "2"), ("by_varchar", "2")]
    {
        let mut app = cluster.app().connect();
        assert_eq!(app.value(&format!("SELECT count(*) FROM scratch.{table}")), "0");
        app.rows(&format!("SET app.tenant_id = '{tenant}'"));
        assert_eq!(app.column(&format!("SELECT v FROM scratch.{table}")), ["2"]);
        app.rows("RESET app.tenant_id");
        assert_eq!(app.value(&format!("SELECT count(*) FROM scratch.{table}")), "0");
    }
}

#[tokio::test]
async fn policies_of_the_application_stay_or_go() {
    let cluster = Cluster::start();
    let mut client = session(&cluster).await;
    assert!(matches!(plan(&*client, &options(Mode::Sealed)).await, Err(SchemaError::Missing)));
    install(&mut client, &InstallOptions::default()).await.unwrap();
    let mut sealed = options(Mode::Sealed);
    // The tables have plain policies: those stay, and a restrictive one stands beside them.
    sealed.tables = vec!["clients".to_owned()];
    let beside = apply(&mut client, &sealed, 1000).await.unwrap();
    assert!(beside[0].contains("AS RESTRICTIVE"), "{beside:?}");
    assert!(plan(&*client, &sealed).await.unwrap().is_empty());
    let mut app = cluster.app().param("options", "-c app.tenant_id=acme").connect();
    assert_eq!(app.error("SELECT * FROM clients").sqlstate, "TN001");
    sealed.tables = vec!["public.leads".to_owned()];
    sealed.replace = true;
    let instead = apply(&mut client, &sealed, 1000).await.unwrap();
    assert!(instead[0].starts_with("DROP POLICY tenant"), "{instead:?}");
    assert_eq!(app.error("SELECT * FROM leads").sqlstate, "TN001");
    sealed.tables = vec!["nothing".to_owned()];
    assert!(matches!(plan(&*client, &sealed).await, Err(SchemaError::Refused(_))));
}

#[tokio::test]
async fn a_lock_that_is_not_to_be_had_changes_nothing() {
    let cluster = Cluster::start();
    cluster.sql("DROP POLICY tenant ON clients; DROP POLICY tenant ON campaigns");
    let mut client = session(&cluster).await;
    let mut holder = cluster.admin();
    holder.rows("BEGIN; LOCK TABLE clients");
    let mut plain = options(Mode::Plain("app.tenant_id".to_owned()));
    plain.tables = vec!["campaigns".to_owned(), "clients".to_owned()];
    let refused = apply(&mut client, &plain, 50).await.unwrap_err().to_string();
    assert!(refused.contains("55P03"), "{refused}");
    holder.rows("ROLLBACK");
    assert_eq!(plan(&*client, &plain).await.unwrap().len(), 2);
    apply(&mut client, &plain, 1000).await.unwrap();
}
