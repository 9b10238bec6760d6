//! Migrations, and the adoption of tables that know no tenants.

use switchyard_shard_schema::SchemaError;
use switchyard_shard_schema::adopt::{AdoptOptions, Progress, adopt, candidates};
use switchyard_shard_schema::install::{InstallOptions, install};
use switchyard_shard_schema::migrate::{Applied, Limits, Migration, apply, history, schemas};
use switchyard_tests::Cluster;

use crate::session;

fn migration(name: &str, sql: &str) -> Migration {
    Migration { name: name.to_owned(), sql: sql.to_owned() }
}

#[tokio::test]
async fn a_migration_runs_once_for_each_schema() {
    let cluster = Cluster::start();
    cluster.sql("CREATE SCHEMA tenant_a; CREATE SCHEMA tenant_b; CREATE SCHEMA \"tenant_C d\"");
    let mut client = session(&cluster).await;
    let first = migration("0001.sql", "CREATE TABLE notes (id int); INSERT INTO notes VALUES (1)");
    let limits = Limits::default();
    assert!(matches!(apply(&mut client, "", &first, limits).await, Err(SchemaError::Missing)));
    install(&mut client, &InstallOptions::default()).await.unwrap();
    let found = schemas(&*client, "tenant\\_%").await.unwrap();
    assert_eq!(found, ["tenant_C d", "tenant_a", "tenant_b"]);
    for schema in &found {
        assert_eq!(apply(&mut client, schema, &first, limits).await.unwrap(), Applied::Now);
        assert_eq!(apply(&mut client, schema, &first, limits).await.unwrap(), Applied::Before);
        assert_eq!(history(&*client, schema).await.unwrap(), ["0001.sql"]);
        assert_eq!(cluster.value(&format!("SELECT count(*) FROM \"{schema}\".notes")), "1");
    }
    let other = migration("0001.sql", "SELECT 2");
    assert!(matches!(apply(&mut client, "tenant_a", &other, limits).await, Err(SchemaError::Refused(_))));
    // Half of it is none of it.
    let broken = migration("0002.sql", "ALTER TABLE notes ADD COLUMN body text; SELECT 1/0");
    assert!(apply(&mut client, "tenant_a", &broken, limits).await.is_err());
    assert_eq!(history(&*client, "tenant_a").await.unwrap(), ["0001.sql"]);
    let mended = migration("0002.sql", "ALTER TABLE notes ADD COLUMN body text");
    assert_eq!(apply(&mut client, "tenant_a", &mended, limits).await.unwrap(), Applied::Now);
    let ends = migration("0003.sql", "COMMIT; SELECT 1");
    let refused = apply(&mut client, "tenant_a", &ends, limits).await.unwrap_err().to_string();
    assert!(refused.contains("ends the transaction"), "{refused}");
}

#[tokio::test]
async fn a_table_that_is_new_to_tenants_is_not_rewritten() {
    let cluster = Cluster::start();
    cluster.sql("CREATE TABLE scratch.old (id int PRIMARY KEY, v text); INSERT INTO scratch.old SELECT n, 'x' FROM generate_series(1, 1000) n");
    let mut client = session(&cluster).await;
    assert!(candidates(&*client, "tenant_id").await.unwrap().contains(&"scratch.old".to_owned()));
    let file = cluster.value("SELECT pg_relation_filenode('scratch.old')");
    let options = AdoptOptions::new("tenant_id", "o'brien");
    let done = adopt(&mut client, "scratch.old", &options, &mut |_| {}).await.unwrap();
    assert!(done.added && done.filled == 0 && done.index.as_deref() == Some("old_tenant_key"), "{done:?}");
    assert_eq!(cluster.value("SELECT pg_relation_filenode('scratch.old')"), file);
    assert_eq!(cluster.value("SELECT count(*) FROM scratch.old WHERE tenant_id = 'o''brien'"), "1000");
    assert!(!candidates(&*client, "tenant_id").await.unwrap().contains(&"scratch.old".to_owned()));
    let again = adopt(&mut client, "scratch.old", &options, &mut |_| {}).await.unwrap();
    assert!(!again.added && again.index.is_none(), "{again:?}");
}

#[tokio::test]
async fn rows_without_a_tenant_are_filled_while_others_write() {
    let cluster = Cluster::start();
    cluster.sql(
        "CREATE TABLE scratch.half (id int PRIMARY KEY, tenant_id text, v text);
         INSERT INTO scratch.half SELECT n, CASE WHEN n % 5 = 0 THEN 'other' END, repeat('x', 300) FROM generate_series(1, 20000) n",
    );
    let mut client = session(&cluster).await;
    let mut options = AdoptOptions::new("tenant_id", "first");
    options.batch_pages = 50;
    // Interrupted after some batches, then resumed: what is filled is not looked for again.
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut stop = Some(stop);
    let mut seen = Vec::new();
    {
        let mut told = |p: Progress| {
            seen.push(p);
            if seen.len() == 3 {
                drop(stop.take());
            }
        };
        tokio::select! {
            _ = adopt(&mut client, "scratch.half", &options, &mut told) => panic!("it was to be interrupted"),
            _ = stopped => {}
        }
    }
    assert!(seen[2].rows > 0 && seen[2].pages < seen[2].of, "{seen:?}");
    drop(client);
    let mut client = session(&cluster).await;
    let mut writer = cluster.admin();
    let mut n = 20_000;
    let mut write = |_: Progress| {
        n += 1;
        writer.rows(&format!("INSERT INTO scratch.half (id, v) VALUES ({n}, 'y'); UPDATE scratch.half SET v = 'z' WHERE id = {}", n - 19_000));
    };
    let done = adopt(&mut client, "scratch.half", &options, &mut write).await.unwrap();
    assert!(done.filled < 16_000, "{done:?}");
    let counts = "SELECT count(*) FILTER (WHERE tenant_id = 'other'), count(*) FILTER (WHERE tenant_id = 'first') = count(*) - 4000 FROM scratch.half";
    assert_eq!(cluster.sql(counts), [[Some("4000".to_owned()), Some("t".to_owned())]]);
    let null = cluster.admin().error("INSERT INTO scratch.half VALUES (0, NULL, 'x')");
    assert_eq!(null.sqlstate, "23502");
    assert_eq!(cluster.value("SELECT count(*) FROM pg_constraint WHERE conname LIKE 'switchyard%'"), "0");
}
