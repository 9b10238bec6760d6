//! Shards.

use deadpool_postgres::GenericClient;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use switchyard_catalog::docs::{PoolDoc, TlsDoc};
use switchyard_config::topology::{self, ServerSecret};
use switchyard_config::url::shard_from_url;
use switchyard_config::{BUCKETS, ShardName};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use utoipa::ToSchema;

use super::audit::{Deed, NONE, record};
use super::moves::none_of_shard;
use super::tenants::{from_json, to_json};
use super::{Caller, Store, StoreError, lock_version, passwords, timestamp};

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
    /// Share of new tenants, relative to other shards.
    pub weight: i32,
    /// The role that the control plane makes and measures tenants' places as, if one is set.
    pub admin_user: Option<String>,
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
    /// Share of new tenants, relative to other shards; 100 if not given.
    #[schema(minimum = 1, maximum = 10000)]
    pub weight: Option<i32>,
    /// A role that may make schemas and databases, and look behind row-level security.
    #[schema(max_length = 63)]
    pub admin_user: Option<String>,
    /// Its password. It is kept sealed, for which the control plane needs its `keys_file`.
    #[schema(value_type = Option<String>)]
    pub admin_password: Option<SecretString>,
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
    /// Share of new tenants, relative to other shards.
    #[schema(minimum = 1, maximum = 10000)]
    pub weight: Option<i32>,
    /// A role that may make schemas and databases, and look behind row-level security.
    #[schema(max_length = 63)]
    pub admin_user: Option<String>,
    /// Its password; to be given with `admin_user`.
    #[schema(value_type = Option<String>)]
    pub admin_password: Option<SecretString>,
}

/// How to get into a shard.
pub(crate) struct ShardAccess {
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) database: String,
    pub(crate) user: String,
    pub(crate) password: Option<SecretString>,
    pub(crate) tls: topology::ServerTls,
}

impl Store {
    /// How to get into a shard: as its administrator, if one is set and asked for, else as routers do.
    ///
    /// # Errors
    /// If there is no such shard, or the catalog fails.
    pub(crate) async fn shard_access(&self, name: &str, admin: bool) -> Result<ShardAccess, StoreError> {
        let sql = "SELECT host, port, database, tls,
                          CASE WHEN $2 AND admin_user IS NOT NULL THEN admin_user ELSE login_user END,
                          login_password, $2 AND admin_user IS NOT NULL
                   FROM shards WHERE name = $1";
        let client = self.client().await?;
        let row = client.query_opt(sql, &[&name, &admin]).await?;
        let row = row.ok_or_else(|| StoreError::not_found("shard", name))?;
        let password = match row.get(6) {
            true => passwords::of_administrator(&client, self.keys.as_deref(), name).await?,
            false => row.get::<_, Option<String>>(5).map(SecretString::from),
        };
        Ok(ShardAccess {
            name: name.to_owned(),
            host: row.get(0),
            port: u16::try_from(row.get::<_, i32>(1)).map_err(|e| StoreError::invalid("port", e))?,
            database: row.get(2),
            tls: from_json::<TlsDoc>("tls", row.get(3))?.into(),
            user: row.get(4),
            password,
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
        check_weight(new.weight)?;
        let admin = check_admin(new.admin_user.as_deref(), new.admin_password.as_ref())?;
        let sealed = self.seal_administrator(&new.name, new.admin_password.as_ref())?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let sql =
            "INSERT INTO shards (name, host, port, database, login_user, login_password, tls, pool, cordoned,
                                 weight, admin_user, admin_kid, admin_sealed)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, COALESCE($10, 100), $11, $12, $13) ON CONFLICT (name) DO NOTHING";
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
                    &new.weight,
                    &admin,
                    &sealed.0,
                    &sealed.1,
                ],
            )
            .await?;
        if made == 0 {
            return Err(StoreError::exists("shard", &new.name));
        }
        set_other_hosts(&t, &new.name, &at).await?;
        if t.query_opt("SELECT 1 FROM buckets LIMIT 1", &[]).await?.is_none() {
            let all = "INSERT INTO buckets SELECT b, $1 FROM generate_series(0, $2::int) b";
            t.execute(all, &[&new.name, &i32::from(BUCKETS - 1)]).await?;
        }
        let after = read(&t, &new.name).await?;
        record(&t, caller, deed("create", &new.name), NONE, Some(&after)).await?;
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
        check_weight(patch.weight)?;
        let admin = check_admin(patch.admin_user.as_deref(), patch.admin_password.as_ref())?;
        let sealed = self.seal_administrator(name, patch.admin_password.as_ref())?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, name).await?;
        caller.expects(&before)?;
        if let Some(at) = at {
            let sql = "UPDATE shards SET host = $2, port = $3, database = $4, login_user = $5,
                              login_password = $6, tls = $7 WHERE name = $1";
            let tls = to_json(&TlsDoc::from(at.tls.clone()))?;
            let port = i32::from(at.port);
            t.execute(sql, &[&name, &at.host, &port, &at.database, &at.login.user, &password(&at), &tls])
                .await?;
            set_other_hosts(&t, name, &at).await?;
        }
        let sql =
            "UPDATE shards SET cordoned = COALESCE($2, cordoned), pool = COALESCE($3, pool), weight = COALESCE($4, weight),
                    admin_user = COALESCE($5, admin_user),
                    admin_kid = CASE WHEN $5 IS NULL THEN admin_kid ELSE $6 END,
                    admin_sealed = CASE WHEN $5 IS NULL THEN admin_sealed ELSE $7 END,
                    admin_password = CASE WHEN $5 IS NULL THEN admin_password END WHERE name = $1";
        let values: [&(dyn ToSql + Sync); 7] =
            [&name, &patch.cordoned, &pool, &patch.weight, &admin, &sealed.0, &sealed.1];
        t.execute(sql, &values).await?;
        let after = read(&t, name).await?;
        record(&t, caller, deed("update", name), Some(&before), Some(&after)).await?;
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
        caller.expects(&before)?;
        if before.buckets > 0 || before.placements > 0 {
            return Err(StoreError::Conflict(format!(
                "shard `{name}` still has {} buckets and {} placements",
                before.buckets, before.placements
            )));
        }
        none_of_shard(&t, name).await?;
        t.execute("DELETE FROM shards WHERE name = $1", &[&name]).await?;
        record(&t, caller, deed("delete", name), Some(&before), NONE).await?;
        Ok(t.commit().await?)
    }
}

impl Store {
    /// The name of the key that has sealed a password, and what it made of it.
    fn seal_administrator(
        &self,
        shard: &str,
        password: Option<&SecretString>,
    ) -> Result<(Option<String>, Option<Vec<u8>>), StoreError> {
        let Some(password) = password else { return Ok((None, None)) };
        let (kid, sealed) = passwords::Administrator::Places.seal(self.keys()?, shard, password)?;
        Ok((Some(kid), Some(sealed)))
    }
}

fn deed<'a>(action: &'static str, target: &'a str) -> Deed<'a> {
    Deed::new(action, "shard", target)
}

fn check_weight(weight: Option<i32>) -> Result<(), StoreError> {
    match weight {
        Some(w) if !(1..=10_000).contains(&w) => {
            Err(StoreError::invalid("weight", "must be from 1 to 10000"))
        }
        _ => Ok(()),
    }
}

fn check_admin<'a>(
    user: Option<&'a str>,
    password: Option<&SecretString>,
) -> Result<Option<&'a str>, StoreError> {
    if user.is_some_and(|u| u.is_empty() || u.len() > 63 || u.chars().any(char::is_control)) {
        return Err(StoreError::invalid("admin_user", "must be 1 to 63 bytes on one line"));
    }
    if password.is_some() && user.is_none() {
        return Err(StoreError::invalid("admin_password", "needs an `admin_user`"));
    }
    if password.is_some_and(|p| p.expose_secret().contains('\0')) {
        return Err(StoreError::invalid("admin_password", "must not contain NUL"));
    }
    Ok(user)
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

/// Where the primary may be besides.
async fn set_other_hosts(
    client: &impl GenericClient,
    name: &str,
    at: &topology::Shard,
) -> Result<(), StoreError> {
    let others = to_json(&at.other_hosts)?;
    client.execute("UPDATE shards SET other_hosts = $2 WHERE name = $1", &[&name, &others]).await?;
    Ok(())
}

fn select() -> String {
    format!(
        "SELECT s.name, s.host, s.port, s.database, s.login_user, s.tls, s.pool, s.cordoned, s.weight, s.admin_user,
                (SELECT count(*) FROM buckets b WHERE b.shard = s.name) AS buckets,
                (SELECT count(*) FROM placements p WHERE p.shard = s.name) AS placements,
                {} AS created_at FROM shards s",
        timestamp("s.created_at")
    )
}

pub(super) async fn read(client: &impl GenericClient, name: &str) -> Result<Shard, StoreError> {
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
        weight: row.get("weight"),
        admin_user: row.get("admin_user"),
        buckets: row.get("buckets"),
        placements: row.get("placements"),
        created_at: row.get("created_at"),
    })
}
