//! The catalog's tables, as they are read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde_json::Value;
use switchyard_config::limits::{LimitSet, Plan, Plans};
use switchyard_config::topology::{
    ContextTemplate, JwtIssuer, LoginMethods, Placement, PoolMode, Restriction, ServerLogin, ServerSecret,
    Shard, Tenant, TenantGrant, TenantState, Topology, UnknownTenants, User,
};
use switchyard_config::verifier::{check_verifier, parse_scram_keys};
use switchyard_config::{ShardName, TenantId};
use tokio_postgres::{IsolationLevel, Row, Transaction};
use tracing::error;

use crate::assemble::{Changes, Layout, buckets_by_name};
use crate::connect::{self, Connected, Endpoint};
use crate::docs::{JwtIssuerDoc, PoolDoc, TlsDoc};
use crate::{CHANNEL, CatalogError};

/// Deadline of one reading of the catalog; a whole one of 100 000 tenants takes about a second.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// One connection to the catalog.
pub struct Catalog {
    connected: Connected,
}

impl Catalog {
    /// Connects to the catalog at `url` and listens for changes.
    ///
    /// # Errors
    /// If the URL is not valid, or the catalog cannot be reached or refuses us.
    pub async fn connect(url: &SecretString) -> Result<Self, CatalogError> {
        let connected = connect::connect(&Endpoint::new(url, "switchyard-router")?).await?;
        // Before the first reading, so that no change falls between the two.
        within(async { Ok(connected.client.batch_execute(&format!("LISTEN {CHANNEL}")).await?) }).await?;
        Ok(Self { connected })
    }

    /// Waits until the catalog announces a change.
    ///
    /// # Errors
    /// If the connection ended.
    pub async fn changed(&self) -> Result<(), CatalogError> {
        self.connected.notified.notified().await;
        if self.connected.client.is_closed() { Err(CatalogError::Closed) } else { Ok(()) }
    }

    /// Reads everything, as of one moment.
    ///
    /// # Errors
    /// If the catalog fails, or holds shards, buckets or settings that make no topology. A tenant
    /// that cannot be understood comes back suspended, a user not at all; both are logged.
    pub async fn snapshot(&mut self) -> Result<Topology, CatalogError> {
        within(async {
            let transaction = self.begin().await?;
            let (version, _) = version(&transaction).await?;
            let layout = layout(&transaction).await?;
            let changes = Changes {
                version,
                tenants: tenants(&transaction, 0, &layout.plans).await?,
                layout: Some(layout),
                users: users(&transaction, 0).await?,
                deleted_tenants: Vec::new(),
                deleted_users: Vec::new(),
            };
            transaction.commit().await?;
            Ok(changes.applied_to(&Topology::empty()))
        })
        .await
    }

    /// Reads what has changed since `held`, which must have come from this very connection; else
    /// the catalog may be another, or one restored from a backup. `None` if nothing has.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    pub async fn update(&mut self, held: &Topology) -> Result<Option<Topology>, CatalogError> {
        within(async {
            let transaction = self.begin().await?;
            let (version, layout_version) = version(&transaction).await?;
            if version == held.version {
                return Ok(None);
            }
            let since = held.version as i64;
            let (deleted_tenants, deleted_users) = deleted(&transaction, since).await?;
            let layout = if layout_version > held.version { Some(layout(&transaction).await?) } else { None };
            let plans = layout.as_ref().map_or(&held.plans, |layout| &layout.plans);
            let changes = Changes {
                version,
                tenants: tenants(&transaction, since, plans).await?,
                layout,
                users: users(&transaction, since).await?,
                deleted_tenants,
                deleted_users,
            };
            transaction.commit().await?;
            Ok(Some(changes.applied_to(held)))
        })
        .await
    }

    /// Writes a tenant that has logged in for the first time, unless it is there by now.
    ///
    /// # Errors
    /// If the catalog fails or does not let us.
    pub async fn register_tenant(&self, id: &TenantId) -> Result<(), CatalogError> {
        let sql = "INSERT INTO tenants (id) VALUES ($1) ON CONFLICT DO NOTHING";
        within(async {
            self.connected.client.execute(sql, &[&id.as_str()]).await?;
            Ok(())
        })
        .await
    }

    async fn begin(&mut self) -> Result<Transaction<'_>, CatalogError> {
        let builder = self.connected.client.build_transaction();
        Ok(builder.isolation_level(IsolationLevel::RepeatableRead).read_only(true).start().await?)
    }
}

pub(crate) async fn within<T>(
    read: impl Future<Output = Result<T, CatalogError>>,
) -> Result<T, CatalogError> {
    tokio::time::timeout(READ_TIMEOUT, read).await.unwrap_or(Err(CatalogError::Timeout))
}

async fn version(t: &Transaction<'_>) -> Result<(u64, u64), CatalogError> {
    let row = t.query_one("SELECT version, layout_version FROM topology_version", &[]).await?;
    Ok((row.get::<_, i64>(0) as u64, row.get::<_, i64>(1) as u64))
}

async fn layout(t: &Transaction<'_>) -> Result<Layout, CatalogError> {
    let sql =
        "SELECT name, host, port, other_hosts, database, login_user, login_password, tls, pool, cordoned
               FROM shards ORDER BY name";
    let shards = t.query(sql, &[]).await?.iter().map(shard).collect::<Result<Vec<_>, _>>()?;

    let rows = t.query("SELECT bucket, shard FROM buckets ORDER BY bucket", &[]).await?;
    let buckets = buckets_by_name(&shards, rows.iter().map(|r| (r.get(0), r.get(1))))?;

    let row = t.query_one("SELECT context, unknown_tenants, default_plan FROM settings", &[]).await?;
    let context: ContextTemplate = json("settings", "context", row.get(0))?;
    let unknown_tenants: UnknownTenants = json("settings", "unknown_tenants", Value::String(row.get(1)))?;

    let plans = Arc::new(plans(t, row.get(2)).await?);

    let rows = t.query("SELECT name, doc FROM jwt_issuers ORDER BY name", &[]).await?;
    let jwt = rows
        .iter()
        .map(|r| Ok(Arc::new(JwtIssuer::from(json::<JwtIssuerDoc>("jwt issuer", r.get(0), r.get(1))?))))
        .collect::<Result<_, CatalogError>>()?;
    Ok(Layout { shards, buckets, context: Arc::new(context), unknown_tenants, jwt, plans })
}

async fn plans(t: &Transaction<'_>, default: Option<String>) -> Result<Plans, CatalogError> {
    let rows = t.query("SELECT name, extends, limits FROM plans ORDER BY name", &[]).await?;
    let plan = |r: &Row| {
        let name: String = r.get(0);
        let limits: LimitSet = json("plan", &name, r.get(2))?;
        Ok(Plan { name, extends: r.get(1), limits })
    };
    let plans = rows.iter().map(plan).collect::<Result<Vec<_>, CatalogError>>()?;
    Plans::new(plans, default).map_err(|e| CatalogError::invalid("plan", "all", e.to_string()))
}

fn shard(row: &Row) -> Result<Arc<Shard>, CatalogError> {
    let name: &str = row.get("name");
    let invalid = |reason: String| CatalogError::Invalid { kind: "shard", name: name.to_owned(), reason };
    Ok(Arc::new(Shard {
        name: ShardName::new(name).map_err(CatalogError::id("shard", name))?,
        host: row.get("host"),
        port: u16::try_from(row.get::<_, i32>("port")).map_err(|e| invalid(e.to_string()))?,
        other_hosts: json("shard", name, row.get("other_hosts"))?,
        database: row.get("database"),
        login: login(row.get("login_user"), row.get("login_password")).map_err(invalid)?,
        tls: json::<TlsDoc>("shard", name, row.get("tls"))?.into(),
        pool: json::<PoolDoc>("shard", name, row.get("pool"))?.into(),
        cordoned: row.get("cordoned"),
    }))
}

fn login(user: String, secret: Option<String>) -> Result<ServerLogin, String> {
    let secret = match secret {
        None => ServerSecret::None,
        Some(keys) if keys.starts_with("SCRAM-SHA-256") => {
            parse_scram_keys(&keys).map_err(|e| e.to_string())?
        }
        Some(password) => ServerSecret::Password(SecretString::from(password)),
    };
    Ok(ServerLogin { user, secret })
}

async fn tenants(t: &Transaction<'_>, since: i64, plans: &Plans) -> Result<Vec<Arc<Tenant>>, CatalogError> {
    let sql = "SELECT t.id, t.name, t.state, t.pool_mode, t.context, t.jwt, p.shard,
                      coalesce(p.epoch, d.epoch, 0) AS epoch, t.plan, t.limits, t.restriction
               FROM tenants t LEFT JOIN placements p ON p.tenant = t.id
               LEFT JOIN deleted d ON d.kind = 'placement' AND d.id = t.id
               WHERE t.changed_version > $1";
    let rows = t.query(sql, &[&since]).await?;
    let mut names = HashMap::new();
    for row in &rows {
        if let Some(name) = row.get::<_, Option<&str>>("plan") {
            // One text for all tenants of a plan.
            names.entry(name).or_insert_with(|| Arc::<str>::from(name));
        }
    }
    Ok(rows.iter().filter_map(|row| tenant(row, plans, &names)).collect())
}

/// A tenant, or nothing if not even its id makes sense. One that is not understood is suspended:
/// left out, it might be served as an unknown tenant with the default context.
fn tenant(row: &Row, plans: &Plans, names: &HashMap<&str, Arc<str>>) -> Option<Arc<Tenant>> {
    let raw: &str = row.get("id");
    let id = match TenantId::new(raw) {
        Ok(id) => id,
        Err(error) => {
            error!(tenant = ?raw, %error, "a tenant in the catalog is left out");
            return None;
        }
    };
    Some(Arc::new(understood_tenant(row, &id, plans, names).unwrap_or_else(|error| {
        error!(tenant = %id, %error, "a tenant in the catalog is not understood and stays suspended");
        Tenant { state: TenantState::Suspended, ..Tenant::new(id) }
    })))
}

fn understood_tenant(
    row: &Row,
    id: &TenantId,
    plans: &Plans,
    names: &HashMap<&str, Arc<str>>,
) -> Result<Tenant, CatalogError> {
    let name = id.as_str();
    let text = |column: &str| row.get::<_, Option<String>>(column).map(Value::String);
    let epoch = row.get::<_, i64>("epoch") as u64;
    let placement = match row.get::<_, Option<&str>>("shard") {
        Some(shard) => {
            let shard = ShardName::new(shard).map_err(CatalogError::id("shard", shard))?;
            Some(Placement { shard, epoch })
        }
        None => None,
    };
    let jwt: Vec<JwtIssuerDoc> = json("tenant", name, row.get("jwt"))?;
    let plan = row.get::<_, Option<&str>>("plan").and_then(|plan| names.get(plan)).cloned();
    let own_limits = optional::<LimitSet>("tenant", name, row.get("limits"))?.map(Arc::new);
    let restriction = optional::<Restriction>("tenant", name, row.get("restriction"))?;
    Ok(Tenant {
        id: id.clone(),
        state: json("tenant", name, Value::String(row.get("state")))?,
        bucket_epoch: if placement.is_some() { 0 } else { epoch },
        placement,
        context: optional::<ContextTemplate>("tenant", name, row.get("context"))?.map(Arc::new),
        pool_mode: optional("tenant", name, text("pool_mode"))?,
        jwt: jwt.into_iter().map(|doc| Arc::new(doc.into())).collect(),
        name: row.get("name"),
        limits: plans.resolve(plan.as_deref(), own_limits.as_deref()),
        plan,
        own_limits,
        restriction,
    })
}

async fn users(t: &Transaction<'_>, since: i64) -> Result<Vec<Arc<User>>, CatalogError> {
    let sql = "SELECT name, verifier, methods, any_tenant, tenants, pool_mode, server_user, server_password
               FROM users WHERE changed_version > $1";
    let rows = t.query(sql, &[&since]).await?;
    let understood = |row| match user(row) {
        Ok(user) => Some(Arc::new(user)),
        Err(error) => {
            error!(%error, "a user in the catalog is left out");
            None
        }
    };
    Ok(rows.iter().filter_map(understood).collect())
}

fn user(row: &Row) -> Result<User, CatalogError> {
    let name: String = row.get("name");
    let invalid = |reason: String| CatalogError::invalid("user", &name, reason);
    let verifier = match row.get::<_, Option<&str>>("verifier") {
        Some(text) => Some(check_verifier(text).map_err(|e| invalid(e.to_string()))?),
        None => None,
    };
    let tenants = if row.get("any_tenant") {
        TenantGrant::Any
    } else {
        let ids = row.get::<_, Vec<String>>("tenants").into_iter().map(TenantId::try_from);
        let mut ids = ids.collect::<Result<Vec<_>, _>>().map_err(|e| invalid(e.to_string()))?;
        match ids.len() {
            1 => TenantGrant::One(ids.remove(0)),
            _ => TenantGrant::List(ids),
        }
    };
    let pool_mode: Option<PoolMode> =
        optional("user", &name, row.get::<_, Option<String>>("pool_mode").map(Value::String))?;
    let methods: LoginMethods = json("user", &name, row.get("methods"))?;
    let server_login = match row.get::<_, Option<String>>("server_user") {
        Some(role) => Some(Arc::new(login(role, row.get("server_password")).map_err(invalid)?)),
        None => None,
    };
    Ok(User { verifier, methods, tenants, pool_mode, server_login, name })
}

async fn deleted(t: &Transaction<'_>, since: i64) -> Result<(Vec<String>, Vec<String>), CatalogError> {
    let sql = "SELECT kind, id FROM deleted WHERE version > $1 AND kind IN ('tenant', 'user')";
    let (mut tenants, mut users) = (Vec::new(), Vec::new());
    for row in t.query(sql, &[&since]).await? {
        let into = if row.get::<_, &str>("kind") == "tenant" { &mut tenants } else { &mut users };
        into.push(row.get("id"));
    }
    Ok((tenants, users))
}

fn json<T: DeserializeOwned>(kind: &'static str, name: &str, value: Value) -> Result<T, CatalogError> {
    // serde's messages quote the value, and a value may be a key: only their place is told.
    serde_json::from_value(value).map_err(|e| CatalogError::invalid(kind, name, class(&e)))
}

fn optional<T: DeserializeOwned>(
    kind: &'static str,
    name: &str,
    value: Option<Value>,
) -> Result<Option<T>, CatalogError> {
    value.map(|v| json(kind, name, v)).transpose()
}

fn class(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // `missing field` and `unknown field` name the field; other messages may quote what was found.
    if text.starts_with("missing field") || text.starts_with("unknown field") {
        return text;
    }
    "a field has a value of the wrong kind".to_owned()
}
