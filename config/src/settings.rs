//! What a router process is told besides its topology: addresses, TLS, login, limits.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use crate::ids::ShardName;
use crate::seal::SealKey;
use crate::topology::{PoolMode, ServerTls};

/// The settings of one router process.
#[derive(Debug, Clone)]
pub struct RouterSettings {
    /// The number of this router among its peers, 1 to [`MAX_ROUTER_ID`]; 0 where it has none. It
    /// stands in the cancel keys of its sessions.
    pub id: u16,
    /// Other routers that clients reach by the same address: cancel requests for their sessions are
    /// passed on to them.
    pub peers: Vec<Peer>,
    /// Addresses to accept clients on. Default `127.0.0.1:6432`.
    pub listen: Vec<ListenAddress>,
    /// Whether another process of the same user may listen on the same TCP ports, as a new process that takes
    /// over does, and whether it takes unix sockets over. Default on.
    pub reuse_port: bool,
    /// Address of `/metrics`, `/livez` and `/readyz`. Default `127.0.0.1:6433`.
    pub http_listen: Option<SocketAddr>,
    /// Networks of proxies that say by the PROXY protocol whose connections they pass on; they must. Nobody
    /// else is believed. None by default.
    pub proxy_protocol: Vec<Network>,
    /// Worker threads; 0 is one per core. Default 0.
    pub workers: usize,
    /// Pool mode of users and tenants that have none. Default transaction.
    pub pool_mode: PoolMode,
    /// TLS toward clients.
    pub tls: ClientTls,
    /// How clients prove themselves.
    pub login: LoginSettings,
    /// How the tenant of a session is found.
    pub identity: IdentitySettings,
    /// How sessions of roaming users say whose transactions theirs are.
    pub roaming: RoamingSettings,
    /// Ceilings and deadlines.
    pub limits: Limits,
    /// The console.
    pub console: ConsoleSettings,
    /// The catalog, if topology comes from one.
    pub catalog: Option<CatalogSettings>,
    /// The seal, if there are keys for it.
    pub seal: Option<SealSettings>,
    /// The key that this router and its peers announce tenants by, for listeners at any of them. Read at start only.
    pub notification_key: Option<SecretString>,
    /// Per-tenant metric series kept; the rest fold into `_other`. Default 2000.
    pub metrics_tenants: usize,
}

/// Largest [`RouterSettings::id`]: it has 14 bits of a cancel key.
pub const MAX_ROUTER_ID: u16 = (1 << 14) - 1;

/// Another router behind the same address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its [`RouterSettings::id`].
    pub id: u16,
    /// Its host name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// TLS toward it.
    pub tls: ServerTls,
}

/// How tenants' contexts are sealed.
#[derive(Debug, Clone)]
pub struct SealSettings {
    /// The keys; the first signs. Never empty.
    pub keys: Vec<SealKey>,
    /// How long a token is good for. It is used once, at once: this is what the clocks of router and shard
    /// may differ by. Default 5 min.
    pub token_lifetime: Duration,
}

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for Network {
    type Err = ();

    /// Reads `10.0.0.0/8`, `2001:db8::/32`, or a single address.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| ())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) if bits.bytes().all(|b| b.is_ascii_digit()) => bits.parse().map_err(|_| ())?,
            Some(_) => return Err(()),
            None => most,
        };
        if bits > most { Err(()) } else { Ok(Self { address, bits }) }
    }
}

/// Where clients are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// `host:port`.
    Tcp(SocketAddr),
    /// The directory in which `.s.PGSQL.<port>` is made, and that port: `unix:/run/switchyard:6432`.
    Unix {
        /// The directory.
        dir: PathBuf,
        /// The number in the socket's name.
        port: u16,
    },
}

/// TLS toward clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Whether TLS is offered or demanded.
    pub mode: ClientTlsMode,
    /// PEM file of the certificate chain.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// PEM file of authorities of client certificates; without it none is asked for.
    pub client_ca: Option<PathBuf>,
}

/// Whether TLS is offered to clients or demanded of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientTlsMode {
    /// Answered with `N`. The default where no certificate is given.
    #[default]
    Disable,
    /// Offered. The default where a certificate is given.
    Allow,
    /// Demanded of TCP clients that are not on loopback, and of these too.
    Require,
}

/// How clients prove themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoginSettings {
    /// Whether md5 verifiers are accepted. Default off.
    pub md5: bool,
    /// Whether users with `trust` are let in without proof (loopback and unix sockets only).
    /// Default off.
    pub trust: bool,
}

/// How the tenant of a session is found. The order is fixed: claim, server name, user suffix,
/// startup parameter, database name, credential. All that speak must agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentitySettings {
    /// Suffix of TLS server names in front of which the tenant stands, such as
    /// `.db.example.com`. None by default.
    pub sni_suffix: Option<String>,
    /// Characters that part the user from the tenant in a user name, as in `app.acme` or
    /// `app@acme`. The first that occurs after a known user's name counts. Default `.` and `@`.
    pub user_separators: Vec<char>,
    /// Startup parameter (also within `options`) that names the tenant.
    /// Default `switchyard.tenant`. Session variables of the context are understood there too.
    pub startup_parameter: Option<String>,
    /// Template of database names that name a tenant, with `{tenant}`, such as `tenant_{tenant}`.
    /// None by default.
    pub database: Option<String>,
}

impl Default for IdentitySettings {
    fn default() -> Self {
        Self {
            sni_suffix: None,
            user_separators: vec!['.', '@'],
            startup_parameter: Some("switchyard.tenant".to_owned()),
            database: None,
        }
    }
}

/// How the sessions of roaming users say whose transactions theirs are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoamingSettings {
    /// The setting whose value names the tenant: a variable of the context, or `search_path`. By default, the
    /// context's first variable that is made of the tenant, else its `search_path`.
    pub setting: Option<String>,
    /// The key of a comment in front of a statement or behind it that names the tenant, as in
    /// `/* tenant='acme' */`. None by default: comments say nothing.
    pub comment: Option<String>,
    /// Where statements run that name no tenant, without any tenant's context. None by default: they are refused.
    pub default_shard: Option<ShardName>,
}

/// Ceilings and deadlines of a router process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Clients in all. Default 10 000.
    pub clients: usize,
    /// Connections that have not logged in yet, apart from `clients`. Default 1000.
    pub unauthenticated: usize,
    /// The same, of one address. Default 100; loopback is not counted.
    pub unauthenticated_per_address: usize,
    /// Failed logins of a user from one address that cost nothing; the answers to further ones are held back,
    /// longer each time. 0 is any number. Default 5.
    pub failed_logins: u32,
    /// Time from accept to ready. Default 15 s.
    pub login_timeout: Duration,
    /// Largest startup packet, in bytes. Default 10 000, as PostgreSQL's
    /// (`MAX_STARTUP_PACKET_LENGTH`, src/include/libpq/pqcomm.h).
    pub startup_bytes: usize,
    /// Largest password or token message, in bytes. Default 65 536.
    pub token_bytes: usize,
    /// Largest named Parse message, in bytes, as it must be kept to be prepared again on another
    /// server connection. Default 16 MiB.
    pub statement_bytes: usize,
    /// Named prepared statements of one client. Default 10 000.
    pub statements_per_client: usize,
    /// Notifications that wait for one client that listens, in bytes; with more, its session ends.
    /// Default 4 MiB.
    pub mailbox_bytes: usize,
    /// Channels that the sessions of one tenant listen on together at one database of a shard, by one router; one that
    /// several listen on counts once. Default 10 000.
    pub channels_per_tenant: usize,
    /// How long a client may stay idle outside a transaction; 0 is for ever. Default 0.
    pub client_idle_timeout: Duration,
    /// How long a client may stay idle inside a transaction; 0 is for ever. Default 0.
    pub idle_in_transaction_timeout: Duration,
    /// How long a statement may run, of any tenant; 0 is for ever. Default 0.
    pub statement_timeout: Duration,
    /// How long a transaction may be open, of any tenant; 0 is for ever. Default 0.
    pub transaction_timeout: Duration,
    /// How long clients are still accepted after `/readyz` says that the router drains, for load
    /// balancers to see it. Default 0.
    pub drain_delay: Duration,
    /// How long a drain waits for open transactions before it ends them. Default 30 s.
    pub drain_timeout: Duration,
    /// How long the sessions of a process that another has taken over from may go on, before what is
    /// left is drained. Default 5 min.
    pub handover_timeout: Duration,
    /// How long a forwarded cancel request may take. Default 10 s.
    pub cancel_timeout: Duration,
    /// Cancel requests with a key that is not known here, per second and network of the client (/24,
    /// or /64 of IPv6); beyond it, all of that network are dropped. Default 100.
    pub unknown_cancels: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 10_000,
            unauthenticated: 1000,
            unauthenticated_per_address: 100,
            failed_logins: 5,
            login_timeout: Duration::from_secs(15),
            startup_bytes: 10_000,
            token_bytes: 65_536,
            statement_bytes: 16 << 20,
            statements_per_client: 10_000,
            mailbox_bytes: 4 << 20,
            channels_per_tenant: 10_000,
            client_idle_timeout: Duration::ZERO,
            idle_in_transaction_timeout: Duration::ZERO,
            statement_timeout: Duration::ZERO,
            transaction_timeout: Duration::ZERO,
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
            handover_timeout: Duration::from_secs(300),
            cancel_timeout: Duration::from_secs(10),
            unknown_cancels: 100,
        }
    }
}

/// The console: what operators reach by connecting to a database that there is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleSettings {
    /// Names of databases that are the console; none switches it off.
    /// Default `switchyard` and `pgbouncer`.
    pub databases: Vec<String>,
    /// Sessions of the console, apart from [`Limits::clients`]. Default 20.
    pub sessions: usize,
    /// How many of these only admins may have. Default 3.
    pub admin_sessions: usize,
    /// How long PAUSE and WAIT_CLOSE wait before they give up. Default 30 s.
    pub drain_timeout: Duration,
    /// How long a statement may wait while its tenant or shard is paused, from when it began to wait.
    /// Default 5 min.
    pub hold_timeout: Duration,
    /// The time over which SHOW STATS takes its averages. Default 60 s.
    pub stats_period: Duration,
}

impl Default for ConsoleSettings {
    fn default() -> Self {
        Self {
            databases: vec!["switchyard".to_owned(), "pgbouncer".to_owned()],
            sessions: 20,
            admin_sessions: 3,
            drain_timeout: Duration::from_secs(30),
            hold_timeout: Duration::from_secs(300),
            stats_period: Duration::from_secs(60),
        }
    }
}

/// Where the catalog is.
#[derive(Debug, Clone)]
pub struct CatalogSettings {
    /// `postgres://` URL of the catalog database.
    pub url: SecretString,
    /// File in which the last topology is kept, so that a restart works without the catalog.
    pub state_file: Option<PathBuf>,
    /// How often the catalog is asked even if it announced nothing. Default 5 s.
    pub poll: Duration,
}

impl Default for RouterSettings {
    fn default() -> Self {
        Self {
            id: 0,
            peers: Vec::new(),
            listen: vec![ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 6432)))],
            reuse_port: true,
            http_listen: Some(SocketAddr::from(([127, 0, 0, 1], 6433))),
            proxy_protocol: Vec::new(),
            workers: 0,
            pool_mode: PoolMode::Transaction,
            tls: ClientTls::default(),
            login: LoginSettings::default(),
            identity: IdentitySettings::default(),
            roaming: RoamingSettings::default(),
            limits: Limits::default(),
            console: ConsoleSettings::default(),
            catalog: None,
            seal: None,
            notification_key: None,
            metrics_tenants: 2000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let network = |text: &str| text.parse::<Network>();
        let holds = |text: &str, address: &str| network(text).unwrap().contains(address.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.200.3.4") && !holds("10.0.0.0/8", "11.0.0.0"));
        assert!(holds("192.0.2.7", "192.0.2.7") && !holds("192.0.2.7", "192.0.2.6"));
        assert!(holds("0.0.0.0/0", "203.0.113.9") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(holds("2001:db8::/32", "2001:db8:1::1") && !holds("2001:db8::/32", "2001:db9::1"));
        assert!(holds("::/0", "2001:db8::1"));
        for bad in
            ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/", "10.0.0.0/+8", "host", "10.0.0.0/8/8"]
        {
            assert!(network(bad).is_err(), "{bad}");
        }
    }
}
