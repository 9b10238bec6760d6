//! The topology: the immutable, versioned snapshot that a router decides from.
//!
//! It is made by the configuration file alone or from the catalog, replaced as a whole, and read
//! on every transaction. Nothing here does IO.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::ids::{BUCKETS, ShardName, TenantId};
use crate::limits::{LimitSet, Plans, TenantLimits};

/// Index of a shard in [`Topology::shards`].
pub type ShardIndex = u16;

/// Everything a router needs to know to serve a session, as of one version.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Rises with every change in the catalog; for a file, with every reload.
    pub version: u64,
    /// All shards; [`ShardIndex`] indexes it.
    pub shards: Vec<Arc<Shard>>,
    /// The shard of each bucket: [`BUCKETS`] entries, or none where there is no shard at all.
    pub buckets: Vec<ShardIndex>,
    /// Tenants that are known, by id.
    pub tenants: HashMap<TenantId, Arc<Tenant>>,
    /// Client users, by name.
    pub users: HashMap<String, Arc<User>>,
    /// The context of tenants that do not say otherwise.
    pub context: Arc<ContextTemplate>,
    /// What happens to a tenant that is not in `tenants`.
    pub unknown_tenants: UnknownTenants,
    /// Trusted issuers of JWTs for all tenants. Those of one tenant are in [`Tenant::jwt`].
    pub jwt: Vec<Arc<JwtIssuer>>,
    /// Plans, by which tenants have their limits.
    pub plans: Arc<Plans>,
}

/// Where a tenant lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Its shard.
    pub shard: ShardIndex,
    /// Rises with every change of placement; 0 for a tenant that has only ever been placed by its bucket.
    pub epoch: u64,
}

impl Topology {
    /// A topology that knows nobody, to begin from.
    pub fn empty() -> Self {
        Self {
            version: 0,
            shards: Vec::new(),
            buckets: Vec::new(),
            tenants: HashMap::new(),
            users: HashMap::new(),
            context: Arc::new(ContextTemplate::default()),
            unknown_tenants: UnknownTenants::Refuse,
            jwt: Vec::new(),
            plans: Arc::default(),
        }
    }

    /// The tenant's record, or one made up for it where unknown tenants are accepted.
    pub fn tenant(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        match self.tenants.get(id) {
            None if id.is_nobody() => None,
            Some(tenant) => Some(tenant.clone()),
            None if self.unknown_tenants == UnknownTenants::Refuse => None,
            None => {
                let limits = self.plans.resolve(None, None);
                Some(Arc::new(Tenant { limits, ..Tenant::new(id.clone()) }))
            }
        }
    }

    /// Where `tenant` lives: its explicit placement if it has one, else its bucket's shard.
    /// `None` only if there is no shard for it.
    pub fn place(&self, tenant: &Tenant) -> Option<Placed> {
        match &tenant.placement {
            Some(p) => {
                let shard = self.shards.iter().position(|s| s.name == p.shard)?;
                Some(Placed { shard: shard as ShardIndex, epoch: p.epoch })
            }
            None => {
                debug_assert!(self.buckets.is_empty() || self.buckets.len() == usize::from(BUCKETS));
                let shard = *self.buckets.get(usize::from(tenant.id.bucket().0))?;
                Some(Placed { shard, epoch: tenant.bucket_epoch })
            }
        }
    }

    /// Buckets dealt out evenly: shard `i` of `n` gets a run of about `BUCKETS / n`.
    pub fn even_buckets(shards: usize) -> Vec<ShardIndex> {
        if shards == 0 {
            return Vec::new();
        }
        (0..usize::from(BUCKETS)).map(|b| (b * shards / usize::from(BUCKETS)) as ShardIndex).collect()
    }
}

/// What a router does with a tenant that is not in the topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownTenants {
    /// The login is refused, and looks like a wrong password.
    #[default]
    Refuse,
    /// The tenant is served from its bucket's shard once somebody who may act for it has logged
    /// in; with a catalog it is also written there.
    Create,
}

/// One PostgreSQL database on one primary, with standbys perhaps.
#[derive(Debug, Clone)]
pub struct Shard {
    /// Its name, unique among shards.
    pub name: ShardName,
    /// Host name, address, or the directory of a unix socket (begins with `/`).
    pub host: String,
    /// TCP port, or the number in the unix socket's name.
    pub port: u16,
    /// Further hosts, of which one is the primary if `host` is not: routers look for it, and follow it when
    /// another is promoted.
    pub other_hosts: Vec<Endpoint>,
    /// The database that tenants live in, unless their context names another.
    pub database: String,
    /// How the router logs in.
    pub login: ServerLogin,
    /// TLS toward the shard.
    pub tls: ServerTls,
    /// Sizes and times of its pool.
    pub pool: PoolLimits,
    /// No new tenants are placed here; those that are here stay.
    pub cordoned: bool,
}

impl Shard {
    /// All hosts, the first first.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let first = Endpoint { host: self.host.clone(), port: self.port };
        std::iter::once(first).chain(self.other_hosts.iter().cloned()).collect()
    }
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Host name, address, or the directory of a unix socket (begins with `/`).
    pub host: String,
    /// TCP port, or the number in the unix socket's name.
    pub port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A role on the shards, and what proves it.
#[derive(Debug, Clone)]
pub struct ServerLogin {
    /// The role.
    pub user: String,
    /// Its secret.
    pub secret: ServerSecret,
}

/// What the router proves a server role with.
#[derive(Debug, Clone)]
pub enum ServerSecret {
    /// Nothing: the shard trusts us, or asks for our certificate.
    None,
    /// A password. SCRAM keys are derived from it once per salt and iteration count.
    Password(SecretString),
    /// The SCRAM client and server keys themselves: enough to log in, useless elsewhere.
    ScramKeys {
        /// 32 bytes.
        client_key: SecretKey,
        /// 32 bytes.
        server_key: SecretKey,
    },
}

/// A key of 32 bytes that does not print itself.
#[derive(Clone, zeroize::ZeroizeOnDrop)]
pub struct SecretKey(pub [u8; 32]);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// `sslmode` as in libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Plain text only.
    Disable,
    /// Plain text, TLS if the shard insists.
    Allow,
    /// TLS if the shard has it.
    #[default]
    Prefer,
    /// TLS, whoever answers.
    Require,
    /// TLS, and the certificate must be signed by a trusted authority.
    VerifyCa,
    /// `VerifyCa`, and the certificate must name the host.
    VerifyFull,
}

/// TLS toward a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerTls {
    /// How much is asked of the shard.
    pub mode: SslMode,
    /// PEM file of trusted authorities; the system's if not given.
    pub root_cert: Option<PathBuf>,
    /// PEM file of our certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
}

/// Sizes and times of a shard's pool, per router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolLimits {
    /// Most server connections to the shard. Default 20.
    pub size: u32,
    /// Idle connections kept even when nobody needs them. Default 0.
    pub min: u32,
    /// How long a transaction may wait for a connection. Default 30 s.
    pub queue_timeout: Duration,
    /// How long a connection may live; each gets up to a tenth less, so that they do not end
    /// together. Default 1 h.
    pub lifetime: Duration,
    /// How long a connection may be idle, above `min`. Default 10 min.
    pub idle_timeout: Duration,
    /// Deadline of connecting and logging in to the shard. Default 10 s.
    pub connect_timeout: Duration,
    /// Longest pause between attempts while the shard does not answer; it begins at 50 ms and
    /// doubles. Default 5 s.
    pub backoff_max: Duration,
    /// How long statements wait for a primary, of a shard with several hosts, after the last one was lost, before they
    /// fail. Default 30 s.
    pub failover_timeout: Duration,
    /// How far a standby may be behind to be read from. Default 10 s.
    pub max_standby_lag: Duration,
    /// Whether sessions that are declared read-only are served by the primary while no standby is near enough;
    /// else their statements fail. Default on.
    pub reads_from_primary: bool,
    /// A connection idle for longer is probed before it is lent. Default 30 s.
    pub check_after: Duration,
    /// Prepared statements kept per server connection. Default 500.
    pub statements: u32,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self {
            size: 20,
            min: 0,
            queue_timeout: Duration::from_secs(30),
            lifetime: Duration::from_secs(3600),
            idle_timeout: Duration::from_secs(600),
            connect_timeout: Duration::from_secs(10),
            backoff_max: Duration::from_secs(5),
            failover_timeout: Duration::from_secs(30),
            max_standby_lag: Duration::from_secs(10),
            reads_from_primary: true,
            check_after: Duration::from_secs(30),
            statements: 500,
        }
    }
}

/// A tenant that the router knows.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Whether it is served.
    pub state: TenantState,
    /// Its explicit placement; else its bucket decides.
    pub placement: Option<Placement>,
    /// Its epoch where its bucket decides: above all that it has had.
    pub bucket_epoch: u64,
    /// Its own context, where it differs from the default.
    pub context: Option<Arc<ContextTemplate>>,
    /// Its own pool mode; else the user's, else the router's.
    pub pool_mode: Option<PoolMode>,
    /// Issuers whose JWTs are accepted for this tenant only.
    pub jwt: Vec<Arc<JwtIssuer>>,
    /// A display name for people, kept from the catalog.
    pub name: Option<String>,
    /// Its plan; else the default one.
    pub plan: Option<Arc<str>>,
    /// What it has otherwise than its plan says.
    pub own_limits: Option<Arc<LimitSet>>,
    /// What it may use: by `own_limits` and `plan`, resolved.
    pub limits: Arc<TenantLimits>,
    /// What the control plane has found it to have used up.
    pub restriction: Option<Restriction>,
}

/// What a tenant has used up, beside its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Restriction {
    /// More storage than its limit, where that makes it read-only.
    Storage,
    /// Its daily or monthly quota: it begins no transaction until this time, in seconds since 1970.
    Quota {
        /// When the quota begins anew.
        until: u64,
    },
}

impl Tenant {
    /// An active tenant with nothing of its own.
    pub fn new(id: TenantId) -> Self {
        Self {
            id,
            state: TenantState::Active,
            placement: None,
            bucket_epoch: 0,
            context: None,
            pool_mode: None,
            jwt: Vec::new(),
            name: None,
            plan: None,
            own_limits: None,
            limits: Arc::default(),
            restriction: None,
        }
    }

    /// Whether it may log in and run statements.
    pub fn is_served(&self) -> bool {
        matches!(self.state, TenantState::Active | TenantState::ReadOnly)
    }

    /// Whether its transactions must be read-only.
    pub fn is_read_only(&self) -> bool {
        self.state == TenantState::ReadOnly || self.restriction == Some(Restriction::Storage)
    }

    /// Until when its quota is used up, in seconds since 1970, as of `now`.
    pub fn out_of_quota(&self, now: u64) -> Option<u64> {
        match self.restriction {
            Some(Restriction::Quota { until }) if until > now => Some(until),
            _ => None,
        }
    }
}

/// Whether a tenant is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TenantState {
    /// Served.
    #[default]
    Active,
    /// Served, and every transaction is read-only.
    ReadOnly,
    /// Not served: who proves to be the tenant is told so, everyone else learns nothing.
    Suspended,
    /// As suspended; its rows are deleted at the end of a time of grace.
    Deleting,
}

impl TenantState {
    /// The name that configuration, API and metrics have for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::ReadOnly => "read-only",
            Self::Suspended => "suspended",
            Self::Deleting => "deleting",
        }
    }
}

/// An explicit placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The shard's name.
    pub shard: ShardName,
    /// Rises with every change.
    pub epoch: u64,
}

/// Against whom a tenant's context is guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContextMode {
    /// Against accidents: the variables of the context are all there is, and whoever runs SQL can
    /// change them.
    #[default]
    Plain,
    /// Against hostile SQL: the connection is entered with a signed token, and policies ask
    /// `switchyard.tenant_id()`. Needs the schema on the shard, and a key.
    Sealed,
}

impl ContextMode {
    /// Whether this is the plain mode.
    pub fn is_plain(&self) -> bool {
        *self == Self::Plain
    }
}

/// What is set on a server connection for a tenant, with `{tenant}` (and `{user}`) to be filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextTemplate {
    /// What the shard takes the tenant's word for.
    #[serde(default, skip_serializing_if = "ContextMode::is_plain")]
    pub mode: ContextMode,
    /// Session variables and the templates of their values, such as `app.tenant_id = "{tenant}"`.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// Schemas of `search_path` in order, each a template; each is quoted as an identifier,
    /// except `"$user"`, which stands for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search_path: Option<Vec<String>>,
    /// Template of the role that statements run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Template of the database, for a database per tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

/// When a server connection goes back to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolMode {
    /// After each transaction.
    #[default]
    Transaction,
    /// When the client leaves.
    Session,
}

/// Whom a client may log in as.
#[derive(Debug, Clone)]
pub struct User {
    /// The name, without any tenant suffix.
    pub name: String,
    /// What proves a password. Without one, the user cannot log in by password.
    pub verifier: Option<Verifier>,
    /// Ways to log in besides the verifier.
    pub methods: LoginMethods,
    /// For whom the user may act.
    pub tenants: TenantGrant,
    /// Its own pool mode, where its tenant has none.
    pub pool_mode: Option<PoolMode>,
    /// The role on the shards, where it is not the shard's own login.
    pub server_login: Option<Arc<ServerLogin>>,
}

/// What is stored to check a password by: never the password.
#[derive(Debug, Clone)]
pub enum Verifier {
    /// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, as in `pg_authid`.
    Scram(SecretString),
    /// `md5` and the 32 hexadecimal digits, as in `pg_authid`.
    Md5(SecretString),
}

/// Ways to log in, beside a password checked by SCRAM, and what the user's sessions are like. All off by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoginMethods {
    /// A JWT in place of the password.
    pub jwt: bool,
    /// A client certificate whose common name is the user's name.
    pub cert: bool,
    /// No proof at all; only on loopback or a unix socket.
    pub trust: bool,
    /// All its sessions are read-only, and are served by standbys where there are any.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The sessions are of no tenant: each transaction says in SQL whose it is, of those that are granted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub roaming: bool,
    /// What the user may do in the console; nothing if not given. How it proves itself there is as
    /// everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleRole>,
}

/// What a user may do in the console. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleRole {
    /// Look.
    Viewer,
    /// Pause, resume, disable, enable, reconnect, reload; end sessions of one client or tenant.
    Operator,
    /// All, also ending everything.
    Admin,
}

impl ConsoleRole {
    /// All, from the least.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// As it stands in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// For whom a user may act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantGrant {
    /// One tenant, which need not be said.
    One(TenantId),
    /// Any of these, which must be said (unless there is just one).
    List(Vec<TenantId>),
    /// Every tenant; it must be said. With a JWT, the claim is what allows it.
    Any,
}

impl TenantGrant {
    /// Whether `tenant` is among those granted.
    pub fn allows(&self, tenant: &TenantId) -> bool {
        match self {
            Self::One(t) => t == tenant,
            Self::List(list) => list.contains(tenant),
            Self::Any => true,
        }
    }
}

/// An issuer of JWTs whose keys we trust.
#[derive(Debug, Clone)]
pub struct JwtIssuer {
    /// A name for logs.
    pub name: String,
    /// The `iss` claim required; any if not given.
    pub issuer: Option<String>,
    /// The `aud` claim must hold one of these; not asked if empty.
    pub audience: Vec<String>,
    /// The claim that holds the tenant. Default `tenant_id`. Dots reach into objects.
    pub tenant_claim: String,
    /// The claim that must equal the user's name, if given.
    pub user_claim: Option<String>,
    /// Clock skew allowed. Default 30 s.
    pub leeway: Duration,
    /// The keys.
    pub keys: JwtKeys,
}

/// Where an issuer's keys come from.
#[derive(Debug, Clone)]
pub enum JwtKeys {
    /// Keys given in the configuration or the catalog.
    Static(Vec<JwtKey>),
    /// A JWKS file, re-read when it changes.
    File(PathBuf),
    /// A JWKS document over HTTP(S), fetched again when a key id is unknown and at `refresh`.
    Url {
        /// `https://`, or `http://` to a loopback address.
        url: String,
        /// Age at which it is fetched again. Default 5 min.
        refresh: Duration,
        /// PEM file of authorities to trust, if not the system's.
        ca: Option<PathBuf>,
    },
}

/// A key that verifies JWTs by one algorithm.
#[derive(Debug, Clone)]
pub struct JwtKey {
    /// The `kid` header it answers to; any if not given.
    pub kid: Option<String>,
    /// The only algorithm it is used with.
    pub algorithm: JwtAlgorithm,
    /// The secret's bytes for HS256, else a PEM public key.
    pub material: SecretString,
}

/// Algorithms accepted in JWTs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256.
    HS256,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}
