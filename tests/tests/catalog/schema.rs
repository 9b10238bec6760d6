//! Migrations, and what the tables do by themselves.

use switchyard_control_plane::store::{AuditQuery, Store, StoreError};
use switchyard_control_plane::{MIGRATIONS, MigrationError};
use switchyard_tests::Cluster;

use crate::{me, shard, store, tenant, url, user};

#[tokio::test(flavor = "multi_thread")]
async fn control_planes_that_start_together_migrate_once() {
    let cluster = Cluster::start();
    let opened = tokio::join!(store(&cluster), store(&cluster), store(&cluster));
    opened.0.ping().await.unwrap();
    assert_eq!(cluster.value("SELECT count(*) FROM switchyard.migrations"), MIGRATIONS.to_string());
    let before = cluster.value("SELECT max(applied_at) FROM switchyard.migrations");
    store(&cluster).await;
    assert_eq!(cluster.value("SELECT max(applied_at) FROM switchyard.migrations"), before);
}

#[tokio::test]
async fn a_schema_that_is_not_ours_is_refused() {
    let cluster = Cluster::start();
    store(&cluster).await;
    cluster.sql("INSERT INTO switchyard.migrations VALUES (1000, 'later', '\\x00')");
    let refused = Store::open(&url(&cluster)).await.err();
    assert!(
        matches!(refused, Some(StoreError::Migration(MigrationError::Newer { found, known: MIGRATIONS }))
        if found == MIGRATIONS + 1)
    );
    cluster.sql("DELETE FROM switchyard.migrations WHERE number = 1000");
    cluster.sql("UPDATE switchyard.migrations SET checksum = '\\x00'");
    let refused = Store::open(&url(&cluster)).await.err();
    assert!(matches!(refused, Some(StoreError::Migration(MigrationError::Checksum { number: 1 }))));
}

#[tokio::test]
async fn a_transaction_raises_the_version_once() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    store.add_shard(&me(), shard("s1")).await.unwrap();
    let before = store.counts().await.unwrap().version;
    // A tenant, its placement and its user: three tables.
    let placed = switchyard_control_plane::store::NewTenant { shard: Some("s1".into()), ..tenant("acme") };
    store.create_tenant(&me(), placed, Some(user("acme", "acme"))).await.unwrap();
    assert_eq!(store.counts().await.unwrap().version, before + 1);
}

#[tokio::test]
async fn an_epoch_never_falls() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    for name in ["s1", "s2"] {
        store.add_shard(&me(), shard(name)).await.unwrap();
    }
    let (made, _) = store.create_tenant(&me(), tenant("acme"), None).await.unwrap();
    assert_eq!((made.epoch, made.shard.as_deref()), (0, Some("s1")));
    assert_eq!(store.place(&me(), "acme", "s2", false).await.unwrap().epoch, 1);
    assert_eq!(store.place(&me(), "acme", "s2", false).await.unwrap().epoch, 1, "nothing changed");
    assert_eq!(store.place(&me(), "acme", "s1", false).await.unwrap().epoch, 2);
    store.delete_tenant(&me(), "acme").await.unwrap();
    let (made, _) = store.create_tenant(&me(), tenant("acme"), None).await.unwrap();
    assert_eq!(made.epoch, 3, "it lives by its bucket, and later than where it was placed");
    assert_eq!(store.place(&me(), "acme", "s2", false).await.unwrap().epoch, 4);
}

#[tokio::test]
async fn the_audit_cannot_be_changed_and_holds_no_secret() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    store.add_shard(&me(), shard("s1")).await.unwrap();
    let new = Some(user("acme", "acme"));
    let (_, made) = store.create_tenant(&me(), tenant("acme"), new).await.unwrap();
    let password = made.unwrap().1.password.expect("one was made");
    for change in [
        "UPDATE switchyard.audit SET actor = 'x'",
        "DELETE FROM switchyard.audit",
        "TRUNCATE switchyard.audit",
    ] {
        let refused = cluster.admin().try_rows(change);
        assert!(refused.is_err(), "{change}");
    }
    let events = store.audit(AuditQuery { limit: 100, ..AuditQuery::default() }).await.unwrap();
    let deeds: Vec<_> =
        events.iter().rev().map(|e| (e.action.as_str(), e.kind.as_str(), e.target.as_str())).collect();
    assert_eq!(deeds, [("create", "shard", "s1"), ("create", "user", "acme"), ("create", "tenant", "acme")]);
    let text = cluster.value("SELECT string_agg(a::text, '') FROM switchyard.audit a");
    use secrecy::ExposeSecret;
    for secret in ["hush", "SCRAM-SHA-256", password.expose_secret()] {
        assert!(!text.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn buckets_are_not_dealt_over_the_heads_of_tenants() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    for name in ["s1", "s2"] {
        store.add_shard(&me(), shard(name)).await.unwrap();
    }
    // Buckets 2273 and 1839: one of the two would change its shard.
    for id in ["acme", "globex"] {
        store.create_tenant(&me(), tenant(id), None).await.unwrap();
    }
    let refused = store.set_buckets(&me(), None, false).await;
    assert!(matches!(refused, Err(StoreError::Conflict(reason)) if reason.starts_with("1 tenants")));
    store.place(&me(), "acme", "s1", false).await.unwrap();
    let runs = store.set_buckets(&me(), None, false).await.unwrap();
    assert_eq!((runs.len(), runs[1].from, runs[1].shard.as_str()), (2, 2048, "s2"));
    let refused = store.remove_shard(&me(), "s2").await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))));
}

#[tokio::test]
async fn new_tenants_go_around_a_cordoned_shard() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    for name in ["s1", "s2"] {
        store.add_shard(&me(), shard(name)).await.unwrap();
    }
    let cordon = switchyard_control_plane::store::ShardPatch { cordoned: Some(true), ..Default::default() };
    store.update_shard(&me(), "s1", cordon).await.unwrap();
    let (made, _) = store.create_tenant(&me(), tenant("acme"), None).await.unwrap();
    assert_eq!((made.shard.as_deref(), made.epoch), (Some("s2"), 1));
    let refused = store.place(&me(), "acme", "s1", false).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))));
    store.place(&me(), "acme", "s1", true).await.unwrap();
}

#[tokio::test]
async fn deleting_a_tenant_takes_its_users_along() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    store.add_shard(&me(), shard("s1")).await.unwrap();
    for id in ["acme", "globex"] {
        store.create_tenant(&me(), tenant(id), Some(user(id, id))).await.unwrap();
    }
    let both = switchyard_control_plane::store::NewUser {
        tenants: vec!["acme".into(), "globex".into()],
        ..user("worker", "acme")
    };
    store.create_user(&me(), both).await.unwrap();
    store.delete_tenant(&me(), "acme").await.unwrap();
    assert!(matches!(store.user("acme").await, Err(StoreError::NotFound { .. })));
    assert_eq!(store.user("worker").await.unwrap().tenants, ["globex"]);
    let gone = store.create_user(&me(), user("late", "acme")).await.err();
    assert!(matches!(gone, Some(StoreError::NotFound { kind: "tenant", .. })));
}

#[tokio::test]
async fn a_writer_that_is_blocked_fails_and_the_next_succeeds() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    let mut psql = cluster.admin();
    psql.rows("BEGIN; UPDATE switchyard.tenants SET name = 'x'");
    let blocked = store.create_tenant(&me(), tenant("acme"), None).await.err();
    assert!(matches!(blocked, Some(StoreError::Unavailable)), "{blocked:?}");
    psql.rows("ROLLBACK");
    store.create_tenant(&me(), tenant("acme"), None).await.unwrap();
}
