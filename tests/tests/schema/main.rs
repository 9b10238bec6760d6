//! The schema that goes on every shard, and what operators do with it.

mod cli;
mod doctor;
mod install;
mod migrate;
mod protect;

use secrecy::SecretString;
use switchyard_config::ShardName;
use switchyard_shard_schema::connect::{Session, Target};
use switchyard_tests::Cluster;
use switchyard_tests::cluster::{SUPERUSER, SUPERUSER_PASSWORD};

/// The cluster as an operator reaches it.
async fn session(cluster: &Cluster) -> Session {
    session_as(cluster, SUPERUSER, SUPERUSER_PASSWORD).await
}

async fn session_as(cluster: &Cluster, user: &str, password: &str) -> Session {
    let url = SecretString::from(cluster.url(user, password));
    let target = Target::new(ShardName::new("s1").expect("a name"), &url).expect("a url");
    target.connect().await.expect("the cluster lets us in")
}
