//! The catalog: its schema, its writers and its readers, over a real cluster.

mod access;
mod api;
mod fuzzed;
mod life;
mod listening;
mod matrix;
mod places;
mod reading;
mod scale;
mod schema;
mod shared_limits;
mod users;

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use switchyard_catalog::Watcher;
use switchyard_config::settings::CatalogSettings;
use switchyard_config::topology::Topology;
use switchyard_control_plane::store::{Caller, NewShard, NewTenant, NewUser, ShardAdmin, Store};
use switchyard_tests::Cluster;
use switchyard_tests::cluster::{SUPERUSER, SUPERUSER_PASSWORD};
use tokio::sync::watch;

/// A change must be seen within this: the promise is a second.
const SOON: Duration = Duration::from_secs(1);

fn url(cluster: &Cluster) -> SecretString {
    cluster.url(SUPERUSER, SUPERUSER_PASSWORD).into()
}

async fn store(cluster: &Cluster) -> Store {
    Store::open(&url(cluster)).await.expect("the catalog opens")
}

/// The process itself, as far as the audit is concerned.
fn me() -> Caller {
    Caller::system()
}

fn shard(name: &str) -> NewShard {
    NewShard {
        name: name.to_owned(),
        url: format!("postgres://app:hush-{name}@127.0.0.1:5432/{name}").into(),
        pool: Default::default(),
        cordoned: false,
        weight: None,
        admin_user: None,
        admin_password: None,
    }
}

fn tenant(id: &str) -> NewTenant {
    NewTenant { id: id.to_owned(), ..NewTenant::default() }
}

fn user(name: &str, tenant: &str) -> NewUser {
    NewUser::of_tenant(name, tenant)
}

/// A watcher that hears of changes by notification alone.
async fn listening(cluster: &Cluster) -> Watcher {
    let poll = Duration::from_secs(3600);
    Watcher::start(CatalogSettings { url: url(cluster), state_file: None, poll }).await.expect("it starts")
}

/// Waits for a topology that `is` so.
async fn seen(
    topologies: &mut watch::Receiver<Arc<Topology>>,
    within: Duration,
    what: &str,
    is: impl FnMut(&Arc<Topology>) -> bool,
) -> Arc<Topology> {
    let waited = tokio::time::timeout(within, topologies.wait_for(is)).await;
    waited.unwrap_or_else(|_| panic!("not seen in time: {what}")).expect("the watcher lives").clone()
}

#[tokio::test]
async fn a_password_that_cannot_be_sealed_is_not_kept() {
    let cluster = Cluster::start();
    let store = store(&cluster).await;
    let with = NewShard {
        admin_user: Some("postgres".to_owned()),
        admin_password: Some("hush".into()),
        ..shard("s1")
    };
    let refused = store.add_shard(&me(), with).await.unwrap_err();
    assert!(refused.to_string().contains("`keys_file`"), "{refused}");
    store.add_shard(&me(), shard("s1")).await.unwrap();
    let mover: ShardAdmin = serde_json::from_str(r#"{"user": "postgres", "password": "hush"}"#).unwrap();
    let refused = store.set_shard_admin(&me(), "s1", mover).await.unwrap_err();
    assert!(refused.to_string().contains("`keys_file`"), "{refused}");
    assert_eq!(cluster.value("SELECT count(*) FROM switchyard.shard_admins"), "0");
}
