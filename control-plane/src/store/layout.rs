//! Shards, buckets, settings and issuers: what is not per tenant.

use deadpool_postgres::{GenericClient, Transaction};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use switchyard_catalog::docs::{PoolDoc, TlsDoc};
use switchyard_config::topology::{self, ContextTemplate, ServerSecret, Topology, UnknownTenants};
use switchyard_config::url::shard_from_url;
use switchyard_config::{BUCKETS, ShardName, TenantId};
use tokio_postgres::Row;
use utoipa::ToSchema;

use super::audit::{Deed, NONE, record};
use super::tenants::{check_issuer, check_template, from_json, to_json};
use super::{Caller, Store, StoreError, timestamp};

/// A shard, without its secret.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Shard {
    /// Its name.
    pub name: String,
    /// Host name, address, or directory of a unix socket.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The database that tenants live in.
    pub database: String,
    /// The role that routers log in as.
    pub user: String,
    /// TLS, by libpq's names.
    #[schema(value_type = Object)]
    pub tls: TlsDoc,
    /// Pool limits that differ from the defaults.
    #[schema(value_type = Object)]
    pub pool: PoolDoc,
    /// Whether new tenants go elsewhere.
    pub cordoned: bool,
    /// Buckets that it has.
    pub buckets: i64,
    /// Tenants with a placement of their own on it.
    pub placements: i64,
    /// When it was added, in UTC.
    pub created_at: String,
}

/// A shard to be added. The first gets all buckets.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewShard {
    /// Letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// `postgres://user:password@host:port/database?sslmode=...`, as routers are to reach it.
    #[schema(value_type = String)]
    pub url: SecretString,
    /// Pool limits that differ from the defaults; times in milliseconds.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub pool: PoolDoc,
    /// Whether new tenants go elsewhere.
    #[serde(default)]
    pub cordoned: bool,
}

/// What to change of a shard.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShardPatch {
    /// Where it is now.
    #[schema(value_type = Option<String>)]
    pub url: Option<SecretString>,
    /// All pool limits that differ from the defaults.
    #[schema(value_type = Option<Object>)]
    pub pool: Option<PoolDoc>,
    /// Whether new tenants go elsewhere.
    pub cordoned: Option<bool>,
}

/// Buckets that follow each other and have the same shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketRun {
    /// The first.
    pub from: u16,
    /// The last.
    pub to: u16,
    /// Their shard.
    pub shard: String,
}

/// What to change of the settings.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SettingsPatch {
    /// The context of tenants that have none of their own.
    #[schema(value_type = Option<Object>)]
    pub context: Option<ContextTemplate>,
    /// `refuse` or `create`.
    #[schema(value_type = Option<String>)]
    pub unknown_tenants: Option<UnknownTenants>,
}

/// How much there is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Counts {
    /// The version that routers should have.
    pub version: i64,
    /// Shards.
    pub shards: i64,
    /// Tenants.
    pub tenants: i64,
    /// Of these, suspended.
    pub suspended: i64,
    /// Placements that are not by bucket.
    pub placements: i64,
    /// Users.
    pub users: i64,
}

impl Store {
    /// The version and how much there is.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        let sql = "SELECT (SELECT version FROM topology_version),
                          (SELECT count(*) FROM shards),
                          (SELECT count(*) FROM tenants),
                          (SELECT count(*) FROM tenants WHERE state = 'suspended'),
                          (SELECT count(*) FROM placements),
                          (SELECT count(*) FROM users)";
        let r = self.client().await?.query_one(sql, &[]).await?;
        Ok(Counts {
            version: r.get(0),
            shards: r.get(1),
            tenants: r.get(2),
            suspended: r.get(3),
            placements: r.get(4),
            users: r.get(5),
        })
    }

    /// All shards, by name.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn shards(&self) -> Result<Vec<Shard>, StoreError> {
        let sql = format!("{} ORDER BY s.name", select());
        self.client().await?.query(&sql, &[]).await?.iter().map(shard).collect()
    }

    /// One shard.
    ///
    /// # Errors
    /// If there is none, or the catalog fails.
    pub async fn shard(&self, name: &str) -> Result<Shard, StoreError> {
        read(&self.client().await?, name).await
    }

    /// Adds a shard. The first is given all buckets, others none.
    ///
    /// # Errors
    /// If there is one by that name, its URL makes no sense, or the catalog fails.
    pub async fn add_shard(&self, caller: &Caller, new: NewShard) -> Result<Shard, StoreError> {
        let name = ShardName::new(&new.name).map_err(|e| StoreError::invalid("name", e))?;
        let at = address(&name, &new.url)?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let sql =
            "INSERT INTO shards (name, host, port, database, login_user, login_password, tls, pool, cordoned)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (name) DO NOTHING";
        let made = t
            .execute(
                sql,
                &[
                    &new.name,
                    &at.host,
                    &i32::from(at.port),
                    &at.database,
                    &at.login.user,
                    &password(&at),
                    &to_json(&TlsDoc::from(at.tls.clone()))?,
                    &to_json(&new.pool)?,
                    &new.cordoned,
                ],
            )
            .await?;
        if made == 0 {
            return Err(StoreError::exists("shard", &new.name));
        }
        if t.query_opt("SELECT 1 FROM buckets LIMIT 1", &[]).await?.is_none() {
            let all = "INSERT INTO buckets SELECT b, $1 FROM generate_series(0, $2::int) b";
            t.execute(all, &[&new.name, &i32::from(BUCKETS - 1)]).await?;
        }
        let after = read(&t, &new.name).await?;
        record(&t, caller, deed("create", "shard", &new.name), NONE, Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }

    /// Changes what `patch` gives.
    ///
    /// # Errors
    /// If there is no such shard, its URL makes no sense, or the catalog fails.
    pub async fn update_shard(
        &self,
        caller: &Caller,
        name: &str,
        patch: ShardPatch,
    ) -> Result<Shard, StoreError> {
        let id = ShardName::new(name).map_err(|_| StoreError::not_found("shard", name))?;
        let at = patch.url.as_ref().map(|url| address(&id, url)).transpose()?;
        let pool = patch.pool.as_ref().map(to_json).transpose()?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, name).await?;
        if let Some(at) = at {
            let sql = "UPDATE shards SET host = $2, port = $3, database = $4, login_user = $5,
                              login_password = $6, tls = $7 WHERE name = $1";
            let tls = to_json(&TlsDoc::from(at.tls.clone()))?;
            let port = i32::from(at.port);
            t.execute(sql, &[&name, &at.host, &port, &at.database, &at.login.user, &password(&at), &tls])
                .await?;
        }
        let sql =
            "UPDATE shards SET cordoned = COALESCE($2, cordoned), pool = COALESCE($3, pool) WHERE name = $1";
        t.execute(sql, &[&name, &patch.cordoned, &pool]).await?;
        let after = read(&t, name).await?;
        record(&t, caller, deed("update", "shard", name), Some(&before), Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }

    /// Takes away a shard that nobody lives on.
    ///
    /// # Errors
    /// If there is none, it has buckets or placements, or the catalog fails.
    pub async fn remove_shard(&self, caller: &Caller, name: &str) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, name).await?;
        if before.buckets > 0 || before.placements > 0 {
            return Err(StoreError::Conflict(format!(
                "shard `{name}` still has {} buckets and {} placements",
                before.buckets, before.placements
            )));
        }
        t.execute("DELETE FROM shards WHERE name = $1", &[&name]).await?;
        record(&t, caller, deed("delete", "shard", name), Some(&before), NONE).await?;
        Ok(t.commit().await?)
    }

    /// The buckets as runs, in order.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn buckets(&self) -> Result<Vec<BucketRun>, StoreError> {
        Ok(runs(&bucket_shards(&self.client().await?).await?))
    }

    /// Deals all buckets anew: by `runs`, which must cover every bucket once, or evenly over the
    /// shards in order of their names. Tenants that live by their bucket would be sent to a shard
    /// that does not have their rows, so it is refused if there are any, unless `force`.
    ///
    /// # Errors
    /// If the runs do not fit, a tenant stands in the way, or the catalog fails.
    pub async fn set_buckets(
        &self,
        caller: &Caller,
        wanted: Option<Vec<BucketRun>>,
        force: bool,
    ) -> Result<Vec<BucketRun>, StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let names = t.query("SELECT name FROM shards ORDER BY name", &[]).await?;
        let names: Vec<String> = names.iter().map(|r| r.get(0)).collect();
        if names.is_empty() {
            return Err(StoreError::Conflict("there is no shard yet".to_owned()));
        }
        let next = match wanted {
            Some(runs) => dealt(&runs, &names)?,
            None => {
                let even = Topology::even_buckets(names.len());
                even.into_iter().map(|i| names[usize::from(i)].clone()).collect()
            }
        };
        let before = bucket_shards(&t).await?;
        if !force {
            refuse_if_stranding(&t, &before, &next).await?;
        }
        let sql = "INSERT INTO buckets AS b (bucket, shard)
                   SELECT n - 1, s FROM unnest($1::text[]) WITH ORDINALITY AS dealt(s, n)
                   ON CONFLICT (bucket) DO UPDATE SET shard = excluded.shard WHERE b.shard <> excluded.shard";
        t.execute(sql, &[&next]).await?;
        let after = runs(&next);
        record(&t, caller, deed("update", "buckets", "all"), Some(&runs(&before)), Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }

    /// The settings.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn settings(&self) -> Result<SettingsPatch, StoreError> {
        read_settings(&self.client().await?).await
    }

    /// Changes what `patch` gives.
    ///
    /// # Errors
    /// If the context makes no sense, or the catalog fails.
    pub async fn update_settings(
        &self,
        caller: &Caller,
        patch: SettingsPatch,
    ) -> Result<SettingsPatch, StoreError> {
        if let Some(context) = &patch.context {
            check_template(context)?;
        }
        let context = patch.context.as_ref().map(to_json).transpose()?;
        let unknown = patch.unknown_tenants.map(|u| match u {
            UnknownTenants::Refuse => "refuse",
            UnknownTenants::Create => "create",
        });
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read_settings(&t).await?;
        let sql = "UPDATE settings SET context = COALESCE($1, context), unknown_tenants = COALESCE($2, unknown_tenants)";
        t.execute(sql, &[&context, &unknown]).await?;
        let after = read_settings(&t).await?;
        record(&t, caller, deed("update", "settings", "all"), Some(&before), Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }

    /// Names of the issuers whose tokens are accepted for all tenants.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn issuers(&self) -> Result<Vec<String>, StoreError> {
        let rows = self.client().await?.query("SELECT name FROM jwt_issuers ORDER BY name", &[]).await?;
        Ok(rows.iter().map(|r| r.get(0)).collect())
    }

    /// Adds an issuer, or puts it in place of the one by that name.
    ///
    /// # Errors
    /// If `doc` makes no sense, or the catalog fails.
    pub async fn put_issuer(&self, caller: &Caller, name: &str, mut doc: Value) -> Result<(), StoreError> {
        if let Some(fields) = doc.as_object_mut() {
            fields.insert("name".to_owned(), name.into());
        }
        check_issuer("issuer", &doc)?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        let sql =
            "INSERT INTO jwt_issuers VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET doc = excluded.doc";
        t.execute(sql, &[&name, &doc]).await?;
        record(&t, caller, deed("put", "issuer", name), NONE, NONE).await?;
        Ok(t.commit().await?)
    }

    /// Trusts an issuer no more.
    ///
    /// # Errors
    /// If there is none by that name, or the catalog fails.
    pub async fn delete_issuer(&self, caller: &Caller, name: &str) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        if t.execute("DELETE FROM jwt_issuers WHERE name = $1", &[&name]).await? == 0 {
            return Err(StoreError::not_found("issuer", name));
        }
        record(&t, caller, deed("delete", "issuer", name), NONE, NONE).await?;
        Ok(t.commit().await?)
    }
}

/// Takes the row that every writer takes, so that what is read from here on stays as it is.
pub(super) async fn lock_version(t: &Transaction<'_>) -> Result<(), StoreError> {
    t.query_one("SELECT 1 FROM topology_version FOR UPDATE", &[]).await?;
    Ok(())
}

/// The shard of each bucket, or none at all.
pub(super) async fn bucket_shards(client: &impl GenericClient) -> Result<Vec<String>, StoreError> {
    let row = client.query_one("SELECT array_agg(shard ORDER BY bucket) FROM buckets", &[]).await?;
    Ok(row.get::<_, Option<Vec<String>>>(0).unwrap_or_default())
}

fn deed<'a>(action: &'static str, kind: &'static str, target: &'a str) -> Deed<'a> {
    Deed { action, kind, target }
}

fn address(name: &ShardName, url: &SecretString) -> Result<topology::Shard, StoreError> {
    shard_from_url(name, url.expose_secret()).map_err(|e| StoreError::invalid("url", e))
}

fn password(shard: &topology::Shard) -> Option<&str> {
    match &shard.login.secret {
        ServerSecret::Password(password) => Some(password.expose_secret()),
        ServerSecret::None | ServerSecret::ScramKeys { .. } => None,
    }
}

fn select() -> String {
    format!(
        "SELECT s.name, s.host, s.port, s.database, s.login_user, s.tls, s.pool, s.cordoned,
                (SELECT count(*) FROM buckets b WHERE b.shard = s.name) AS buckets,
                (SELECT count(*) FROM placements p WHERE p.shard = s.name) AS placements,
                {} AS created_at FROM shards s",
        timestamp("s.created_at")
    )
}

async fn read(client: &impl GenericClient, name: &str) -> Result<Shard, StoreError> {
    let row = client.query_opt(&format!("{} WHERE s.name = $1", select()), &[&name]).await?;
    shard(&row.ok_or_else(|| StoreError::not_found("shard", name))?)
}

fn shard(row: &Row) -> Result<Shard, StoreError> {
    Ok(Shard {
        name: row.get("name"),
        host: row.get("host"),
        port: u16::try_from(row.get::<_, i32>("port")).map_err(|e| StoreError::invalid("port", e))?,
        database: row.get("database"),
        user: row.get("login_user"),
        tls: from_json("tls", row.get("tls"))?,
        pool: from_json("pool", row.get("pool"))?,
        cordoned: row.get("cordoned"),
        buckets: row.get("buckets"),
        placements: row.get("placements"),
        created_at: row.get("created_at"),
    })
}

async fn read_settings(client: &impl GenericClient) -> Result<SettingsPatch, StoreError> {
    let row = client.query_one("SELECT context, unknown_tenants FROM settings", &[]).await?;
    Ok(SettingsPatch {
        context: Some(from_json("context", row.get(0))?),
        unknown_tenants: Some(from_json("unknown_tenants", Value::String(row.get(1)))?),
    })
}

fn runs(buckets: &[String]) -> Vec<BucketRun> {
    let mut runs: Vec<BucketRun> = Vec::new();
    for (bucket, shard) in (0..).zip(buckets) {
        match runs.last_mut() {
            Some(run) if run.shard == *shard => run.to = bucket,
            _ => runs.push(BucketRun { from: bucket, to: bucket, shard: shard.clone() }),
        }
    }
    runs
}

fn dealt(runs: &[BucketRun], shards: &[String]) -> Result<Vec<String>, StoreError> {
    let mut dealt: Vec<Option<&str>> = vec![None; usize::from(BUCKETS)];
    for run in runs {
        if run.from > run.to || run.to >= BUCKETS {
            return Err(StoreError::invalid("runs", format!("must be within 0 to {}", BUCKETS - 1)));
        }
        if !shards.contains(&run.shard) {
            return Err(StoreError::not_found("shard", &run.shard));
        }
        for bucket in run.from..=run.to {
            if dealt[usize::from(bucket)].replace(&run.shard).is_some() {
                return Err(StoreError::invalid("runs", format!("name bucket {bucket} twice")));
            }
        }
    }
    match dealt.iter().position(Option::is_none) {
        Some(bucket) => Err(StoreError::invalid("runs", format!("leave out bucket {bucket}"))),
        None => Ok(dealt.into_iter().flatten().map(str::to_owned).collect()),
    }
}

async fn refuse_if_stranding(
    t: &Transaction<'_>,
    before: &[String],
    next: &[String],
) -> Result<(), StoreError> {
    let sql = "SELECT id FROM tenants t WHERE NOT EXISTS (SELECT 1 FROM placements p WHERE p.tenant = t.id)";
    let moved = |id: &str| {
        let bucket = usize::from(TenantId::new(id).ok()?.bucket().0);
        Some(before.get(bucket) != next.get(bucket))
    };
    let stranded = t.query(sql, &[]).await?.iter().filter(|r| moved(r.get(0)) == Some(true)).count();
    if stranded == 0 {
        return Ok(());
    }
    Err(StoreError::Conflict(format!(
        "{stranded} tenants live by a bucket that would change its shard, and their rows would not go with them"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(from: u16, to: u16, shard: &str) -> BucketRun {
        BucketRun { from, to, shard: shard.into() }
    }

    #[test]
    fn runs_cover_every_bucket_once() {
        let shards = ["a".to_owned(), "b".to_owned()];
        let whole = [run(0, 99, "b"), run(100, 4095, "a")];
        let dealt_whole = dealt(&whole, &shards).unwrap();
        assert_eq!((dealt_whole[99].as_str(), dealt_whole[100].as_str()), ("b", "a"));
        assert_eq!(runs(&dealt_whole), whole);
        for wrong in [
            vec![run(0, 4094, "a")],
            vec![run(0, 4095, "a"), run(7, 7, "b")],
            vec![run(0, 4096, "a")],
            vec![run(5, 4, "a")],
            vec![run(0, 4095, "c")],
            vec![],
        ] {
            assert!(dealt(&wrong, &shards).is_err(), "{wrong:?}");
        }
    }
}
