//! What routers see, and when.

use std::time::Duration;

use secrecy::SecretString;
use switchyard_catalog::{Catalog, Watcher, disk};
use switchyard_config::TenantId;
use switchyard_config::settings::CatalogSettings;
use switchyard_config::snapshot::to_json;
use switchyard_config::topology::{TenantState, Topology, UnknownTenants};
use switchyard_control_plane::store::{SettingsPatch, ShardPatch, Store, TenantPatch};
use switchyard_tests::cluster::{SUPERUSER, SUPERUSER_PASSWORD};
use switchyard_tests::process::TempDir;
use switchyard_tests::{Certs, Cluster};

use crate::{SOON, listening, me, seen, shard, store, tenant, url, user};

fn shard_of(topology: &Topology, id: &str) -> Option<(String, u64)> {
    let placed = topology.place(topology.tenants.get(id)?)?;
    Some((topology.shards[usize::from(placed.shard)].name.as_str().to_owned(), placed.epoch))
}

#[tokio::test]
async fn every_change_is_seen_within_a_second_by_notification_alone() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    let watcher = listening(&cluster).await;
    let mut topologies = watcher.subscribe();
    assert_eq!(topologies.borrow().shards.len(), 0);

    store.add_shard(&me(), shard("s1")).await.unwrap();
    store.add_shard(&me(), shard("s2")).await.unwrap();
    seen(&mut topologies, SOON, "shards", |t| t.shards.len() == 2 && t.buckets.len() == 4096).await;
    store.set_buckets(&me(), None, false).await.unwrap();
    seen(&mut topologies, SOON, "buckets", |t| t.buckets[4095] == 1).await;

    store.create_tenant(&me(), tenant("acme"), Some(user("acme", "acme"))).await.unwrap();
    let t = seen(&mut topologies, SOON, "a tenant", |t| t.tenants.contains_key("acme")).await;
    assert!(t.users.contains_key("acme"), "the user came in the same transaction");
    assert_eq!(shard_of(&t, "acme"), Some(("s2".into(), 0)));

    store.place(&me(), "acme", "s1", false).await.unwrap();
    seen(&mut topologies, SOON, "a placement", |t| shard_of(t, "acme") == Some(("s1".into(), 1))).await;
    store.set_state(&me(), "acme", TenantState::Suspended).await.unwrap();
    let is = |t: &Topology, state| t.tenants["acme"].state == state;
    seen(&mut topologies, SOON, "suspended", |t| is(t, TenantState::Suspended)).await;
    store.set_state(&me(), "acme", TenantState::Active).await.unwrap();
    seen(&mut topologies, SOON, "resumed", |t| is(t, TenantState::Active)).await;

    let context = serde_json::from_str(r#"{"variables": {"app.tenant_id": "{tenant}"}}"#).unwrap();
    let settings = SettingsPatch {
        context: Some(context),
        unknown_tenants: Some(UnknownTenants::Create),
        ..SettingsPatch::default()
    };
    store.update_settings(&me(), settings).await.unwrap();
    let t = seen(&mut topologies, SOON, "settings", |t| t.unknown_tenants == UnknownTenants::Create).await;
    assert_eq!(t.context.variables["app.tenant_id"], "{tenant}");

    store.delete_user(&me(), "acme").await.unwrap();
    seen(&mut topologies, SOON, "a user gone", |t| t.users.is_empty()).await;
    store.delete_tenant(&me(), "acme").await.unwrap();
    seen(&mut topologies, SOON, "a tenant gone", |t| t.tenants.is_empty()).await;
}

#[tokio::test]
async fn polling_finds_what_was_not_announced() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    let poll = Duration::from_millis(100);
    let settings = CatalogSettings { url: url(&cluster), state_file: None, poll };
    let watcher = Watcher::start(settings).await.unwrap();
    let mut topologies = watcher.subscribe();
    store.create_tenant(&me(), tenant("acme"), None).await.unwrap();
    seen(&mut topologies, SOON, "the tenant", |t| t.tenants.contains_key("acme")).await;
    // Raises the version as a trigger would, without the notification.
    cluster.sql(
        "ALTER TABLE switchyard.tenants DISABLE TRIGGER bump;
         UPDATE switchyard.topology_version SET version = version + 1;
         UPDATE switchyard.tenants SET name = 'Acme'",
    );
    seen(&mut topologies, SOON, "its name", |t| t.tenants["acme"].name.as_deref() == Some("Acme")).await;
}

#[tokio::test]
async fn catching_up_ends_where_reading_everything_does() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    for name in ["s1", "s2", "s3"] {
        store.add_shard(&me(), shard(name)).await.unwrap();
    }
    let (url, me) = (url(&cluster), me());
    let mut follower = Catalog::connect(&url).await.unwrap();
    let mut held = follower.snapshot().await.unwrap();
    // A fixed walk over all kinds of changes; several between two readings.
    let mut random = 0x9e37_79b9_u32;
    for step in 0..120 {
        for _ in 0..1 + step % 3 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (pick, id) = ((random >> 8) % 10, format!("t{}", (random >> 16) % 7));
            let shard = format!("s{}", 1 + (random >> 24) % 3);
            // Some are refused, as when there is no such tenant; that is a step too.
            match pick {
                0 | 1 => drop(store.create_tenant(&me, tenant(&id), Some(user(&id, &id))).await),
                2 => drop(store.delete_tenant(&me, &id).await),
                3 | 4 => drop(store.place(&me, &id, &shard, true).await),
                5 => drop(store.set_state(&me, &id, TenantState::Suspended).await),
                6 => drop(store.reset_password(&me, &id).await),
                7 => drop(store.delete_user(&me, &id).await),
                8 => {
                    let patch = TenantPatch { name: Some(Some(step.to_string())), ..Default::default() };
                    drop(store.update_tenant(&me, &id, patch).await);
                }
                _ => {
                    let patch = ShardPatch { cordoned: Some(step % 2 == 0), ..Default::default() };
                    drop(store.update_shard(&me, &shard, patch).await);
                }
            }
        }
        if let Some(next) = follower.update(&held).await.unwrap() {
            assert!(next.version > held.version);
            held = next;
        }
        let whole = Catalog::connect(&url).await.unwrap().snapshot().await.unwrap();
        assert_eq!(to_json(&held), to_json(&whole), "after step {step}");
    }
    assert!(follower.update(&held).await.unwrap().is_none());
}

#[tokio::test]
async fn the_last_topology_serves_while_the_catalog_is_away() {
    let mut cluster = Cluster::start();
    let dir = TempDir::new();
    let path = dir.path().join("topology.json");
    let poll = Duration::from_secs(5);
    let settings = CatalogSettings { url: url(&cluster), state_file: Some(path.clone()), poll };
    {
        let store = store(&cluster).await;
        store.add_shard(&me(), shard("s1")).await.unwrap();
        store.create_tenant(&me(), tenant("acme"), Some(user("acme", "acme"))).await.unwrap();
    }
    let first = Watcher::start(settings.clone()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it is written");
    let whole = to_json(&first.subscribe().borrow());

    cluster.stop();
    // One that runs goes on, and one that starts begins from the file.
    assert_eq!(to_json(&first.subscribe().borrow()), whole);
    let second = Watcher::start(settings.clone()).await.unwrap();
    assert_eq!(to_json(&second.subscribe().borrow()), whole);
    assert!(!second.status().connected());
    assert_eq!(second.status().age(), None);
    assert!(disk::load(&path).unwrap().users.contains_key("acme"));
    let without = CatalogSettings { state_file: None, ..settings };
    assert!(Watcher::start(without).await.is_err(), "there is nothing to begin from");

    cluster.start_again();
    store(&cluster).await.create_tenant(&me(), tenant("globex"), None).await.unwrap();
    for watcher in [&first, &second] {
        let mut topologies = watcher.subscribe();
        let back = Duration::from_secs(10);
        seen(&mut topologies, back, "what changed since", |t| t.tenants.contains_key("globex")).await;
        assert!(watcher.status().connected());
    }
}

#[tokio::test]
async fn a_router_may_read_and_write_first_logins_and_no_more() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    store.add_shard(&me(), shard("s1")).await.unwrap();
    cluster
        .sql("CREATE ROLE router LOGIN PASSWORD 'router-secret'; SELECT switchyard.grant_router('router')");
    let url = cluster.url("router", "router-secret");
    let settings =
        CatalogSettings { url: url.clone().into(), state_file: None, poll: Duration::from_secs(3600) };
    let watcher = Watcher::start(settings).await.unwrap();
    let mut topologies = watcher.subscribe();
    watcher.registrar().register_tenant(TenantId::new("newcomer").unwrap());
    seen(&mut topologies, SOON, "the newcomer", |t| t.tenants.contains_key("newcomer")).await;
    assert_eq!(store.tenant("newcomer").await.unwrap().state, TenantState::Active);
    let mut router = cluster.target("router", "router-secret").connect();
    for forbidden in [
        "SELECT * FROM switchyard.api_tokens",
        "SELECT * FROM switchyard.audit",
        "UPDATE switchyard.tenants SET state = 'active'",
        "INSERT INTO switchyard.tenants (id, name) VALUES ('x', 'y')",
        "INSERT INTO switchyard.users (name, any_tenant) VALUES ('x', true)",
        "INSERT INTO switchyard.placements VALUES ('newcomer', 's1', 7)",
        "UPDATE switchyard.topology_version SET version = 1",
        "DELETE FROM switchyard.tenants",
        "SELECT switchyard.grant_router('router')",
    ] {
        assert!(router.try_rows(forbidden).is_err(), "{forbidden}");
    }
}

#[tokio::test]
async fn what_is_not_understood_is_not_served() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    store.add_shard(&me(), shard("s1")).await.unwrap();
    for id in ["acme", "globex"] {
        store.create_tenant(&me(), tenant(id), Some(user(id, id))).await.unwrap();
    }
    cluster.sql("UPDATE switchyard.tenants SET context = '{\"variables\": 7}' WHERE id = 'acme'");
    cluster.sql("UPDATE switchyard.users SET verifier = 'md5nonsense' WHERE name = 'acme'");
    let topology = Catalog::connect(&url(&cluster)).await.unwrap().snapshot().await.unwrap();
    assert_eq!(topology.tenants["acme"].state, TenantState::Suspended);
    assert!(!topology.users.contains_key("acme"));
    assert_eq!(topology.tenants["globex"].state, TenantState::Active);
    assert!(topology.users.contains_key("globex"));
}

#[tokio::test]
async fn a_hundred_thousand_tenants_are_read_and_followed() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    store.add_shard(&me(), shard("s1")).await.unwrap();
    cluster
        .sql("INSERT INTO switchyard.tenants (id) SELECT 'tenant-' || n FROM generate_series(1, 100000) n");
    let watcher = listening(&cluster).await;
    let mut topologies = watcher.subscribe();
    assert_eq!(topologies.borrow_and_update().tenants.len(), 100_000);
    store.place(&me(), "tenant-77", "s1", false).await.unwrap();
    seen(&mut topologies, SOON, "one placement among many", |t| t.tenants["tenant-77"].placement.is_some())
        .await;
    let (page, next) = store.tenants(&Default::default(), "", 100).await.unwrap();
    assert_eq!((page.len(), next.is_some()), (100, true));
}

#[tokio::test]
async fn the_catalog_is_reached_over_tls_and_verified() {
    let certs = Certs::new();
    let other = Certs::new();
    // No plain TCP for the superuser.
    let cluster = Cluster::builder().tls(&certs).hba("hostnossl all super all reject").start();
    let at = |host: &str, query: &str| {
        let url = cluster.url(SUPERUSER, SUPERUSER_PASSWORD).replace("127.0.0.1", host);
        SecretString::from(format!("{url}?{query}"))
    };
    let (right, wrong) = (certs.ca().display().to_string(), other.ca().display().to_string());
    let store = Store::open(&at("localhost", &format!("sslmode=verify-full&sslrootcert={right}"))).await;
    store.expect("it is verified").add_shard(&me(), shard("s1")).await.unwrap();
    for good in ["sslmode=require", "sslmode=prefer", &format!("sslmode=verify-ca&sslrootcert={right}")] {
        let mut catalog = Catalog::connect(&at("127.0.0.1", good)).await.expect(good);
        assert_eq!(catalog.snapshot().await.unwrap().shards.len(), 1);
    }
    for bad in [
        "sslmode=disable".to_owned(),
        format!("sslmode=verify-full&sslrootcert={wrong}"),
        format!("sslmode=verify-ca&sslrootcert={wrong}"),
        format!("sslmode=require&sslrootcert={wrong}"),
        "sslmode=verify-full&sslrootcert=/nowhere".to_owned(),
    ] {
        assert!(Catalog::connect(&at("localhost", &bad)).await.is_err(), "{bad}");
    }
}
