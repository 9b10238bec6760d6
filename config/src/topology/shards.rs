//! Shards, how to log in to them, and the limits of their pools.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::ids::ShardName;

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
    /// How long one waits before its client is told so by a NOTICE; zero: never. Default 5 s, as PgBouncer's
    /// `query_wait_notify`.
    pub queue_notice: Duration,
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
            queue_notice: Duration::from_secs(5),
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
