//! A topology as JSON: the "last topology" that a router keeps on disk, and tests.
//!
//! The text holds every secret of the topology, because a restart without the catalog must still
//! be able to log in to the shards. Whoever writes it to a file makes that file mode 0600, and it
//! never goes to a log. The shape is this module's own, so that it changes only on purpose: with
//! [`FORMAT`].

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::ids::{BUCKETS, ShardName, TenantId};
use crate::limits::{LimitSet, Plan, Plans};
use crate::topology::{
    ContextTemplate, Endpoint, JwtAlgorithm, JwtIssuer, JwtKey, JwtKeys, LoginMethods, Placement, PoolLimits,
    PoolMode, Restriction, ServerLogin, ServerSecret, ServerTls, Shard, ShardIndex, SslMode, Tenant,
    TenantGrant, TenantState, Topology, UnknownTenants, User,
};
use crate::verifier::{check_verifier, parse_scram_keys, scram_keys_text};

/// The version of the format that is written, and the only one that is read.
pub const FORMAT: u32 = 2;

/// Why a snapshot was refused. Holds nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// No JSON, or not in the shape of [`FORMAT`].
    #[error("the snapshot is not in the expected form at line {line}, column {column}")]
    Form {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// Written by another version of Switchyard.
    #[error("the snapshot has format {0}, not {FORMAT}")]
    Format(u32),
    /// Parts that do not fit each other.
    #[error("the snapshot contradicts itself: {0}")]
    Inconsistent(&'static str),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    version: u64,
    shards: Vec<FileShard>,
    /// Runs of buckets: how many, and the index of their shard.
    buckets: Vec<(u16, ShardIndex)>,
    tenants: Vec<FileTenant>,
    users: Vec<FileUser>,
    context: ContextTemplate,
    unknown_tenants: UnknownTenants,
    jwt: Vec<FileIssuer>,
    plans: Vec<FilePlan>,
    default_plan: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePlan {
    name: String,
    extends: Option<String>,
    limits: LimitSet,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileShard {
    name: ShardName,
    host: String,
    port: u16,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    other_hosts: Vec<Endpoint>,
    database: String,
    login: FileLogin,
    sslmode: SslMode,
    sslrootcert: Option<PathBuf>,
    sslcert: Option<PathBuf>,
    sslkey: Option<PathBuf>,
    #[serde(with = "FilePool")]
    pool: PoolLimits,
    cordoned: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLogin {
    user: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scram_keys: Option<Secret>,
}

/// How [`PoolLimits`] stand there.
#[derive(Serialize, Deserialize)]
#[serde(remote = "PoolLimits", deny_unknown_fields)]
struct FilePool {
    size: u32,
    min: u32,
    queue_timeout: Duration,
    #[serde(default = "queue_notice")]
    queue_notice: Duration,
    lifetime: Duration,
    idle_timeout: Duration,
    connect_timeout: Duration,
    backoff_max: Duration,
    #[serde(default = "failover_timeout")]
    failover_timeout: Duration,
    #[serde(default = "max_standby_lag")]
    max_standby_lag: Duration,
    #[serde(default = "reads_from_primary")]
    reads_from_primary: bool,
    check_after: Duration,
    statements: u32,
}

/// Of snapshots that were written before there was one.
fn failover_timeout() -> Duration {
    PoolLimits::default().failover_timeout
}

fn queue_notice() -> Duration {
    PoolLimits::default().queue_notice
}

fn max_standby_lag() -> Duration {
    PoolLimits::default().max_standby_lag
}

fn reads_from_primary() -> bool {
    PoolLimits::default().reads_from_primary
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTenant {
    id: TenantId,
    state: TenantState,
    placement: Option<Placement>,
    #[serde(default)]
    bucket_epoch: u64,
    context: Option<ContextTemplate>,
    pool_mode: Option<PoolMode>,
    jwt: Vec<FileIssuer>,
    name: Option<String>,
    plan: Option<String>,
    limits: Option<LimitSet>,
    restriction: Option<Restriction>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileUser {
    name: String,
    verifier: Option<Secret>,
    methods: LoginMethods,
    tenants: FileGrant,
    pool_mode: Option<PoolMode>,
    server_login: Option<FileLogin>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FileGrant {
    One(TenantId),
    List(Vec<TenantId>),
    Any,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileIssuer {
    name: String,
    issuer: Option<String>,
    audience: Vec<String>,
    tenant_claim: String,
    user_claim: Option<String>,
    leeway: Duration,
    keys: FileKeys,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FileKeys {
    Static(Vec<FileKey>),
    File(PathBuf),
    Url { url: String, refresh: Duration, ca: Option<PathBuf> },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKey {
    kid: Option<String>,
    algorithm: JwtAlgorithm,
    material: Secret,
}

/// A secret that this module, and no other, writes out.
struct Secret(SecretString);

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|s| Self(SecretString::from(s)))
    }
}

/// Writes `topology`, secrets included; the same text for the same topology.
///
/// # Errors
/// None that a topology of the configuration or the catalog can cause: only a path that is not
/// UTF-8 cannot be written, and both take their paths from text.
pub fn try_to_json(topology: &Topology) -> Result<String, serde_json::Error> {
    serde_json::to_string(&write(topology))
}

/// As [`try_to_json`], for a topology whose paths are all text; else an empty string, which
/// [`from_json`] refuses.
pub fn to_json(topology: &Topology) -> String {
    try_to_json(topology).unwrap_or_default()
}

/// Reads what [`to_json`] wrote.
///
/// # Errors
/// If the text is damaged, of another format, or names things twice or out of range.
pub fn from_json(text: &str) -> Result<Topology, SnapshotError> {
    // What serde says quotes the text, and with it perhaps a secret: only the place is kept.
    let form = |e: serde_json::Error| SnapshotError::Form { line: e.line(), column: e.column() };
    let FormatOnly { format } = serde_json::from_str(text).map_err(form)?;
    if format != FORMAT {
        return Err(SnapshotError::Format(format));
    }
    read(serde_json::from_str(text).map_err(form)?)
}

fn write(t: &Topology) -> File {
    let tenants: BTreeMap<&TenantId, _> = t.tenants.iter().collect();
    let users: BTreeMap<&String, _> = t.users.iter().collect();
    File {
        format: FORMAT,
        version: t.version,
        shards: t.shards.iter().map(|s| write_shard(s)).collect(),
        buckets: t
            .buckets
            .chunk_by(|a, b| a == b)
            .map(|run| (u16::try_from(run.len()).unwrap_or(BUCKETS), run[0]))
            .collect(),
        tenants: tenants.into_values().map(|t| write_tenant(t)).collect(),
        users: users.into_values().map(|u| write_user(u)).collect(),
        context: (*t.context).clone(),
        unknown_tenants: t.unknown_tenants,
        jwt: t.jwt.iter().map(|i| write_issuer(i)).collect(),
        plans: t.plans.iter().map(write_plan).collect(),
        default_plan: t.plans.default_plan().map(str::to_owned),
    }
}

fn write_plan(p: &Plan) -> FilePlan {
    FilePlan { name: p.name.clone(), extends: p.extends.clone(), limits: p.limits.clone() }
}

fn read_plan(p: FilePlan) -> Plan {
    Plan { name: p.name, extends: p.extends, limits: p.limits }
}

fn read(file: File) -> Result<Topology, SnapshotError> {
    let inconsistent = |what| Err(SnapshotError::Inconsistent(what));
    let mut buckets = Vec::new();
    for (count, shard) in file.buckets {
        if usize::from(shard) >= file.shards.len() {
            return inconsistent("a bucket belongs to a shard that is not there");
        }
        if buckets.len() + usize::from(count) > usize::from(BUCKETS) {
            return inconsistent("there are too many buckets");
        }
        buckets.extend(std::iter::repeat_n(shard, usize::from(count)));
    }
    if !buckets.is_empty() && buckets.len() != usize::from(BUCKETS) {
        return inconsistent("there are too few buckets");
    }
    let mut shards: Vec<Arc<Shard>> = Vec::new();
    for shard in file.shards {
        if shards.iter().any(|s| s.name == shard.name) {
            return inconsistent("a shard is there twice");
        }
        shards.push(Arc::new(read_shard(shard)?));
    }
    let plans = Plans::new(file.plans.into_iter().map(read_plan).collect(), file.default_plan)
        .map_err(|_| SnapshotError::Inconsistent("plans do not fit each other"))?;
    let mut tenants = HashMap::with_capacity(file.tenants.len());
    for tenant in file.tenants {
        if tenants.insert(tenant.id.clone(), Arc::new(read_tenant(tenant, &plans))).is_some() {
            return inconsistent("a tenant is there twice");
        }
    }
    let mut users = HashMap::new();
    for user in file.users {
        if users.insert(user.name.clone(), Arc::new(read_user(user)?)).is_some() {
            return inconsistent("a user is there twice");
        }
    }
    Ok(Topology {
        version: file.version,
        shards,
        buckets,
        tenants,
        users,
        context: Arc::new(file.context),
        unknown_tenants: file.unknown_tenants,
        jwt: file.jwt.into_iter().map(|i| Arc::new(read_issuer(i))).collect(),
        plans: Arc::new(plans),
    })
}

fn write_shard(s: &Shard) -> FileShard {
    FileShard {
        name: s.name.clone(),
        host: s.host.clone(),
        port: s.port,
        other_hosts: s.other_hosts.clone(),
        database: s.database.clone(),
        login: write_login(&s.login),
        sslmode: s.tls.mode,
        sslrootcert: s.tls.root_cert.clone(),
        sslcert: s.tls.cert.clone(),
        sslkey: s.tls.key.clone(),
        pool: s.pool.clone(),
        cordoned: s.cordoned,
    }
}

fn read_shard(s: FileShard) -> Result<Shard, SnapshotError> {
    Ok(Shard {
        name: s.name,
        host: s.host,
        port: s.port,
        other_hosts: s.other_hosts,
        database: s.database,
        login: read_login(s.login)?,
        tls: ServerTls { mode: s.sslmode, root_cert: s.sslrootcert, cert: s.sslcert, key: s.sslkey },
        pool: s.pool,
        cordoned: s.cordoned,
    })
}

fn write_login(l: &ServerLogin) -> FileLogin {
    let (password, scram_keys) = match &l.secret {
        ServerSecret::None => (None, None),
        ServerSecret::Password(p) => (Some(Secret(p.clone())), None),
        ServerSecret::ScramKeys { client_key, server_key } => {
            let text = scram_keys_text(client_key, server_key);
            (None, Some(Secret(SecretString::from(text.as_str()))))
        }
    };
    FileLogin { user: l.user.clone(), password, scram_keys }
}

fn read_login(l: FileLogin) -> Result<ServerLogin, SnapshotError> {
    let secret = match (l.password, l.scram_keys) {
        (None, None) => ServerSecret::None,
        (Some(password), None) => ServerSecret::Password(password.0),
        (None, Some(keys)) => parse_scram_keys(keys.0.expose_secret())
            .map_err(|_| SnapshotError::Inconsistent("scram keys are malformed"))?,
        (Some(_), Some(_)) => return Err(SnapshotError::Inconsistent("a login has two secrets")),
    };
    Ok(ServerLogin { user: l.user, secret })
}

fn write_tenant(t: &Tenant) -> FileTenant {
    FileTenant {
        id: t.id.clone(),
        state: t.state,
        placement: t.placement.clone(),
        bucket_epoch: t.bucket_epoch,
        context: t.context.as_deref().cloned(),
        pool_mode: t.pool_mode,
        jwt: t.jwt.iter().map(|i| write_issuer(i)).collect(),
        name: t.name.clone(),
        plan: t.plan.as_deref().map(str::to_owned),
        limits: t.own_limits.as_deref().cloned(),
        restriction: t.restriction,
    }
}

fn read_tenant(t: FileTenant, plans: &Plans) -> Tenant {
    let limits = plans.resolve(t.plan.as_deref(), t.limits.as_ref());
    Tenant {
        id: t.id,
        state: t.state,
        placement: t.placement,
        bucket_epoch: t.bucket_epoch,
        context: t.context.map(Arc::new),
        pool_mode: t.pool_mode,
        jwt: t.jwt.into_iter().map(|i| Arc::new(read_issuer(i))).collect(),
        name: t.name,
        plan: t.plan.map(Arc::from),
        own_limits: t.limits.map(Arc::new),
        limits,
        restriction: t.restriction,
    }
}

fn write_user(u: &User) -> FileUser {
    use crate::topology::Verifier::{Md5, Scram};
    FileUser {
        name: u.name.clone(),
        verifier: u.verifier.as_ref().map(|v| match v {
            Scram(text) | Md5(text) => Secret(text.clone()),
        }),
        methods: u.methods,
        tenants: match &u.tenants {
            TenantGrant::One(t) => FileGrant::One(t.clone()),
            TenantGrant::List(list) => FileGrant::List(list.clone()),
            TenantGrant::Any => FileGrant::Any,
        },
        pool_mode: u.pool_mode,
        server_login: u.server_login.as_deref().map(write_login),
    }
}

fn read_user(u: FileUser) -> Result<User, SnapshotError> {
    let verifier = u.verifier.map(|v| check_verifier(v.0.expose_secret())).transpose();
    Ok(User {
        name: u.name,
        verifier: verifier.map_err(|_| SnapshotError::Inconsistent("a verifier is malformed"))?,
        methods: u.methods,
        tenants: match u.tenants {
            FileGrant::One(t) => TenantGrant::One(t),
            FileGrant::List(list) => TenantGrant::List(list),
            FileGrant::Any => TenantGrant::Any,
        },
        pool_mode: u.pool_mode,
        server_login: u.server_login.map(read_login).transpose()?.map(Arc::new),
    })
}

fn write_issuer(i: &JwtIssuer) -> FileIssuer {
    FileIssuer {
        name: i.name.clone(),
        issuer: i.issuer.clone(),
        audience: i.audience.clone(),
        tenant_claim: i.tenant_claim.clone(),
        user_claim: i.user_claim.clone(),
        leeway: i.leeway,
        keys: match &i.keys {
            JwtKeys::Static(keys) => FileKeys::Static(keys.iter().map(write_key).collect()),
            JwtKeys::File(path) => FileKeys::File(path.clone()),
            JwtKeys::Url { url, refresh, ca } => {
                FileKeys::Url { url: url.clone(), refresh: *refresh, ca: ca.clone() }
            }
        },
    }
}

fn write_key(k: &JwtKey) -> FileKey {
    FileKey { kid: k.kid.clone(), algorithm: k.algorithm, material: Secret(k.material.clone()) }
}

fn read_issuer(i: FileIssuer) -> JwtIssuer {
    let key = |k: FileKey| JwtKey { kid: k.kid, algorithm: k.algorithm, material: k.material.0 };
    JwtIssuer {
        name: i.name,
        issuer: i.issuer,
        audience: i.audience,
        tenant_claim: i.tenant_claim,
        user_claim: i.user_claim,
        leeway: i.leeway,
        keys: match i.keys {
            FileKeys::Static(keys) => JwtKeys::Static(keys.into_iter().map(key).collect()),
            FileKeys::File(path) => JwtKeys::File(path),
            FileKeys::Url { url, refresh, ca } => JwtKeys::Url { url, refresh, ca },
        },
    }
}

#[cfg(test)]
mod tests;
