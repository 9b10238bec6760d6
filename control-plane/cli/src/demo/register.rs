//! The shards and tenants, told to the control plane by its API as anybody would.

use anyhow::{Context, anyhow};
use serde_json::{Value, json};
use switchyard_config::TenantId;
use switchyard_config::topology::Topology;

use super::postgres::Cluster;
use crate::failure::Failure;
use crate::http::Api;

/// Who the tenants are; further ones are numbered.
const NAMES: [&str; 10] =
    ["acme", "globex", "initech", "hooli", "stark", "wayne", "wonka", "cyberdyne", "tyrell", "soylent"];

/// The tenant that is placed by hand, on a shard that it does not hash to.
const PLACED: &str = "umbrella";

/// A tenant that is registered.
#[derive(Debug, Clone)]
pub(super) struct Tenant {
    /// Its id.
    pub(super) id: String,
    /// The shard it lives on.
    pub(super) shard: String,
    /// Whether by a placement of its own.
    pub(super) placed: bool,
    /// How its application connects.
    pub(super) url: String,
    /// Its bucket, to vary the number of its rows by.
    pub(super) bucket: u16,
}

/// Tells of the shards, by the names and URLs given, and deals the buckets evenly.
pub(super) async fn shards(
    api: &Api,
    shards: &[(String, String)],
    clusters: &[Cluster],
    sealed: bool,
) -> anyhow::Result<()> {
    for ((name, url), cluster) in shards.iter().zip(clusters) {
        // Whoever measures and deletes what tenants hold must see behind row-level security.
        let body =
            json!({ "name": name, "url": url, "admin_user": "postgres", "admin_password": cluster.password });
        api.post("/v1/shards", body).await.map_err(plain)?;
    }
    api.put("/v1/buckets", json!({ "even": true })).await.map_err(plain)?;
    let mut context = json!({ "variables": { "app.tenant_id": "{tenant}" } });
    if sealed {
        context["mode"] = "sealed".into();
    }
    api.patch("/v1/settings", json!({ "context": context })).await.map_err(plain)?;
    Ok(())
}

/// Tells whom moves log in as on a shard.
pub(super) async fn admin(api: &Api, shard: &str, (user, password): (&str, &str)) -> anyhow::Result<()> {
    let body = json!({ "user": user, "password": password });
    api.put(&format!("/v1/shards/{shard}/admin"), body).await.map_err(plain)?;
    Ok(())
}

/// The user whose sessions act for every tenant.
const ROAMING: &str = "service";

/// Makes that user, and returns how its application connects to a router on `port`.
pub(super) async fn roaming(api: &Api, port: u16, database: &str, password: &str) -> anyhow::Result<String> {
    let body =
        json!({ "name": ROAMING, "password": password, "any_tenant": true, "methods": { "roaming": true } });
    api.post("/v1/users", body).await.map_err(plain)?;
    Ok(format!("postgres://{ROAMING}:{password}@127.0.0.1:{port}/{database}"))
}

/// Makes `count` tenants, one of them placed by hand if there are two of them and two shards.
pub(super) async fn tenants(api: &Api, count: usize, shards: &[String]) -> anyhow::Result<Vec<Tenant>> {
    let mut made = Vec::with_capacity(count);
    for id in ids(count) {
        let mut body = json!({ "id": id, "name": title(&id) });
        if id == PLACED && shards.len() > 1 {
            body["shard"] = elsewhere(&id, shards)?.into();
        }
        made.push(tenant(&api.post("/v1/tenants", body).await.map_err(plain)?)?);
    }
    Ok(made)
}

fn ids(count: usize) -> Vec<String> {
    let mut ids: Vec<String> = NAMES.iter().map(|n| (*n).to_owned()).collect();
    ids.extend((NAMES.len() + 1..=count).map(|n| format!("tenant-{n}")));
    ids.truncate(count);
    if count > 1 {
        ids[count - 1] = PLACED.to_owned();
    }
    ids
}

/// A shard that is not the one of the tenant's bucket.
fn elsewhere(id: &str, shards: &[String]) -> anyhow::Result<String> {
    let bucket = TenantId::new(id)?.bucket().0;
    let home = usize::from(Topology::even_buckets(shards.len())[usize::from(bucket)]);
    Ok(shards[(home + 1) % shards.len()].clone())
}

fn title(id: &str) -> String {
    let mut letters = id.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn tenant(answer: &Value) -> anyhow::Result<Tenant> {
    let text = |field: &str| {
        answer[field]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("the control plane tells no {field}"))
    };
    Ok(Tenant {
        id: text("id")?,
        shard: text("shard")?,
        placed: answer["placed_by"] == "placement",
        url: text("url")?,
        bucket: answer["bucket"].as_u64().and_then(|b| b.try_into().ok()).context("no bucket")?,
    })
}

fn plain(failure: Failure) -> anyhow::Error {
    match failure {
        Failure::Error(error) => error,
        Failure::Usage(text)
        | Failure::NotFound(text)
        | Failure::Conflict(text)
        | Failure::StillRunning(text) => anyhow!(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_as_many_as_asked_and_distinct() {
        for count in [1, 2, 6, 10, 11, 12, 40] {
            let mut ids = ids(count);
            assert_eq!(ids.len(), count);
            assert_eq!(ids.contains(&PLACED.to_owned()), count > 1);
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), count);
        }
    }

    #[test]
    fn the_placed_tenant_is_elsewhere() {
        for n in 2..6 {
            let shards: Vec<String> = (1..=n).map(|i| format!("shard-{i}")).collect();
            let bucket = TenantId::new(PLACED).unwrap().bucket().0;
            let home = &shards[usize::from(Topology::even_buckets(n)[usize::from(bucket)])];
            assert_ne!(&elsewhere(PLACED, &shards).unwrap(), home);
        }
    }
}
