//! What all workers of a process share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use dashmap::DashMap;
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use switchyard_config::settings::RouterSettings;
use switchyard_config::topology::{Shard, Topology};
use switchyard_config::{ShardName, TenantId};
use switchyard_wire::scram;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::auth::jwt::JwtVerifier;
use crate::cancel::Guesses;
use crate::cancel::key::{CancelKey, Keys};
use crate::cancel::process::{self, claim};
use crate::console::ConsoleState;
use crate::context::{Interner, TenantContext};
use crate::hidden::Hidden;
use crate::holds::Holds;
use crate::login::guessing::Guessing;
use crate::login::nobody::Nobody;
use crate::login::places::Places;
use crate::logins::Logins;
use crate::notifications::Notifications;
use crate::notifications::voice::Voices;
use crate::pauses::Pauses;
use crate::pool::Pool;
use crate::seal::Sealer;
use crate::session::handle::{Order, SessionHandle};
use crate::statements::StatementInterner;
use crate::stats::{Rejected, Stats, TenantStats};
use crate::tls::{ClientTlsContext, ShardTlsContext, TlsError};

/// See the module.
pub(crate) struct Shared {
    settings: ArcSwap<RouterSettings>,
    topology: ArcSwap<Topology>,
    /// Rises whenever topology or settings are replaced.
    generation: AtomicU64,
    pools: DashMap<ShardName, Arc<Pool>>,
    /// Of those shards that have more hosts than one.
    standbys: DashMap<ShardName, Arc<Pool>>,
    client_tls: ArcSwapOption<ClientTlsContext>,
    pub(crate) contexts: Interner,
    pub(crate) voices: Voices,
    pub(crate) notifications: Notifications,
    /// Tenants that are being moved.
    pub(crate) holds: Holds,
    pub(crate) statements: StatementInterner,
    pub(crate) quiet_texts: crate::quiet::QuietTexts,
    /// By shard and database.
    hidden: DashMap<(ShardName, Arc<str>), Arc<Hidden>>,
    pub(crate) logins: Arc<Logins>,
    sealer: Arc<Sealer>,
    pub(crate) jwt: JwtVerifier,
    pub(crate) stats: Stats,
    /// Sessions by the place of their cancel keys: see [`Keys::place`].
    pub(crate) sessions: DashMap<u64, Arc<SessionHandle>>,
    pub(crate) keys: Keys,
    /// What the processes of this router have in common: see [`process::place`].
    pub(crate) place: String,
    /// Where other processes of this router pass cancel requests on to, until it is served.
    pub(crate) processes: Mutex<Option<std::os::unix::net::UnixListener>>,
    /// Cancel requests with unknown keys.
    pub(crate) guesses: Guesses,
    /// What operators have paused or disabled.
    pub(crate) pauses: Pauses,
    pub(crate) console: ConsoleState,
    pub(crate) leasing: crate::leases::Leasing,
    clients: AtomicUsize,
    /// Of connections that have not logged in.
    pub(crate) places: Arc<Places>,
    /// Failed logins.
    pub(crate) guessing: Guessing,
    /// What users who do not exist look like.
    nobody: ArcSwap<Nobody>,
    last_session: AtomicU64,
    stage: watch::Sender<Stage>,
    /// For [`Nobody`], where no user has a verifier.
    mock_secret: [u8; 32],
    /// Who is told of a tenant's first login, where there is a catalog.
    pub(crate) register_tenant: std::sync::OnceLock<Box<dyn Fn(TenantId) + Send + Sync>>,
    /// How the catalog's watcher fares, where there is a catalog.
    pub(crate) catalog_status: std::sync::OnceLock<Arc<switchyard_catalog::Status>>,
}

impl Shared {
    /// `notification_key` is what routers share to announce tenants by, if they do.
    ///
    /// # Errors
    /// If certificates cannot be loaded, or the system gives no random numbers.
    pub(crate) fn new(
        settings: RouterSettings,
        workers: usize,
        notification_key: Option<&SecretString>,
    ) -> Result<Self, StartError> {
        let mut mock_secret = [0; 32];
        let mut voice_secret = Zeroizing::new([0; 32]);
        let mut router = [0; 8];
        aws_lc_rs::rand::fill(&mut *voice_secret).map_err(|_| StartError::Random)?;
        aws_lc_rs::rand::fill(&mut router).map_err(|_| StartError::Random)?;
        let voice_secret = notification_key.map_or(&voice_secret[..], |key| key.expose_secret().as_bytes());
        aws_lc_rs::rand::fill(&mut mock_secret).map_err(|_| StartError::Random)?;
        let tls = load_client_tls(&settings)?;
        let place = process::place(&settings);
        let (own, processes) = claim(&place, settings.id);
        let sealer = Arc::new(Sealer::default());
        sealer.replace(settings.seal.as_ref());
        Ok(Self {
            settings: ArcSwap::from_pointee(settings),
            topology: ArcSwap::from_pointee(Topology::empty()),
            generation: AtomicU64::new(1),
            pools: DashMap::new(),
            standbys: DashMap::new(),
            client_tls: ArcSwapOption::from(tls),
            contexts: Interner::default(),
            voices: Voices::new(voice_secret, notification_key.is_some(), u64::from_be_bytes(router)),
            notifications: Notifications::default(),
            holds: Holds::default(),
            statements: StatementInterner::default(),
            quiet_texts: crate::quiet::QuietTexts::default(),
            hidden: DashMap::new(),
            logins: Arc::default(),
            sealer,
            jwt: JwtVerifier::new(),
            stats: Stats::new(workers),
            pauses: Pauses::default(),
            console: ConsoleState::default(),
            leasing: crate::leases::Leasing::default(),
            sessions: DashMap::new(),
            keys: Keys::new(own),
            place,
            processes: Mutex::new(processes),
            guesses: Guesses::default(),
            clients: AtomicUsize::new(0),
            places: Arc::default(),
            guessing: Guessing::default(),
            nobody: ArcSwap::from_pointee(Nobody::of(&Topology::empty(), &mock_secret)),
            last_session: AtomicU64::new(0),
            stage: watch::Sender::new(Stage::Serving),
            mock_secret,
            register_tenant: std::sync::OnceLock::new(),
            catalog_status: std::sync::OnceLock::new(),
        })
    }

    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Has every session look again when its next transaction begins.
    pub(crate) fn raise_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn topology(&self) -> Arc<Topology> {
        self.topology.load_full()
    }

    pub(crate) fn settings(&self) -> arc_swap::Guard<Arc<RouterSettings>> {
        self.settings.load()
    }

    pub(crate) fn client_tls(&self) -> Option<Arc<ClientTlsContext>> {
        self.client_tls.load_full()
    }

    /// The verifier of a user that does not exist, or has none.
    pub(crate) fn mock_verifier(&self, login: &str) -> scram::Verifier {
        self.nobody.load().verifier(login)
    }

    /// What the database of a context on a shard runs behind the texts of statements.
    pub(crate) fn hidden(&self, shard: &ShardName, context: &TenantContext) -> Arc<Hidden> {
        self.hidden.entry((shard.clone(), context.route.database.clone())).or_default().clone()
    }

    /// The pool of a shard, if the topology has that shard.
    pub(crate) fn pool(&self, shard: &ShardName) -> Option<Arc<Pool>> {
        self.pools.get(shard).map(|p| p.clone())
    }

    /// The pool of the shard's standbys, where these are to serve who only reads.
    pub(crate) fn reading_pool(&self, shard: &Shard) -> Option<Arc<Pool>> {
        let pool = self.standbys.get(&shard.name)?.clone();
        (pool.has_standby() || !shard.pool.reads_from_primary).then_some(pool)
    }

    /// Whether a shard has standbys, however far behind they are.
    pub(crate) fn has_standbys(&self, shard: &ShardName) -> bool {
        self.standbys.contains_key(shard)
    }

    /// All pools: those of primaries, and those of standbys.
    pub(crate) fn pools(&self) -> Vec<Arc<Pool>> {
        self.pools.iter().chain(self.standbys.iter()).map(|p| p.clone()).collect()
    }

    /// Asks all standbys how far behind they are, without waiting for them.
    pub(crate) fn measure_standbys(self: &Arc<Self>) {
        for pool in &self.standbys {
            let (pool, shared) = (pool.clone(), self.clone());
            tokio::spawn(async move {
                if pool.measure_standbys().await {
                    shared.raise_generation();
                }
            });
        }
    }

    /// Takes over a file that was read again: its settings, except those that are read at start only
    /// (addresses, workers), its topology where that does not come from a catalog, and the contents of all files
    /// of certificates.
    ///
    /// # Errors
    /// If certificates cannot be loaded; then nothing has changed.
    pub(crate) fn reload(
        &self,
        settings: RouterSettings,
        topology: Option<Arc<Topology>>,
    ) -> Result<(), StartError> {
        let tls = load_client_tls(&settings)?;
        let shards = topology.as_ref().map_or_else(|| self.topology().shards.clone(), |t| t.shards.clone());
        let mut shards_tls = Vec::new();
        for shard in shards {
            shards_tls.push((shard.name.clone(), load_shard_tls(&shard)?));
        }
        if let Some(topology) = topology {
            self.replace_topology(topology)?;
        }
        for (shard, tls) in shards_tls {
            for pools in [&self.pools, &self.standbys] {
                if let Some(pool) = pools.get(&shard) {
                    pool.replace_tls(tls.clone());
                }
            }
        }
        self.client_tls.store(tls);
        self.sealer.replace(settings.seal.as_ref());
        self.settings.store(Arc::new(settings));
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Takes over a new topology: pools of new shards are made, those of shards that went or moved
    /// are closed. Sessions look at it when their next transaction begins.
    ///
    /// # Errors
    /// If the TLS files of a shard cannot be loaded; then nothing has changed.
    pub(crate) fn replace_topology(&self, topology: Arc<Topology>) -> Result<(), StartError> {
        let mut made = Vec::new();
        for shard in &topology.shards {
            let same = self.pools.get(&shard.name).is_some_and(|pool| is_same(&pool.shard, shard));
            if !same {
                let tls = load_shard_tls(shard)?;
                let (logins, sealer) = (&self.logins, &self.sealer);
                if !shard.other_hosts.is_empty() {
                    let pool = Pool::of_standbys(shard.clone(), tls.clone(), logins.clone(), sealer.clone());
                    made.push(Arc::new(pool));
                }
                made.push(Arc::new(Pool::new(shard.clone(), tls, logins.clone(), sealer.clone())));
            }
        }
        let mut closing = Vec::new();
        for pool in made {
            self.pauses.apply_to(&pool);
            let pools = if pool.is_of_standbys() { &self.standbys } else { &self.pools };
            closing.extend(pools.insert(pool.shard.name.clone(), pool));
        }
        self.nobody.store(Arc::new(Nobody::of(&topology, &self.mock_secret)));
        self.topology.store(topology.clone());
        self.holds.catch_up(&topology);
        self.pools.retain(|name, pool| {
            let stays = topology.shards.iter().any(|s| s.name == *name);
            if !stays {
                closing.push(pool.clone());
            }
            stays
        });
        self.standbys.retain(|name, pool| {
            let mut shards = topology.shards.iter();
            let stays = shards.any(|s| s.name == *name && !s.other_hosts.is_empty());
            if !stays {
                closing.push(pool.clone());
            }
            stays
        });
        self.generation.fetch_add(1, Ordering::AcqRel);
        for pool in closing {
            pool.close();
        }
        // Once more, for what was paused between the first time and the pool's being found.
        self.pools().iter().for_each(|pool| self.pauses.apply_to(pool));
        self.notifications.topology_changed();
        // Sessions of tenants that are not served any more, or not to this user, end even if they are idle.
        for session in &self.sessions {
            let tenant = session.tenant();
            let served = tenant.is_nobody() || topology.tenant(&tenant).is_some_and(|t| t.is_served());
            let user = topology.users.get(&session.who.user);
            if !served || user.is_none_or(|user| !tenant.is_nobody() && !user.tenants.allows(&tenant)) {
                session.command(Order::Refresh);
            }
        }
        Ok(())
    }

    // --- places ---

    /// A place for a client that has logged in, and its row in the registry.
    pub(crate) fn take_client_place(
        self: &Arc<Self>,
        handle: Arc<SessionHandle>,
        tenant: Arc<TenantStats>,
    ) -> Result<ClientPlace, Rejected> {
        if self.clients.fetch_add(1, Ordering::AcqRel) >= self.settings().limits.clients {
            self.clients.fetch_sub(1, Ordering::AcqRel);
            return Err(Rejected::Clients);
        }
        tenant.sessions.fetch_add(1, Ordering::Relaxed);
        let place = self.keys.place(handle.key.pid(), handle.key.secret());
        self.sessions.insert(place, handle.clone());
        Ok(ClientPlace { shared: self.clone(), place, tenant })
    }

    /// Clients, and connections that have not logged in.
    pub(crate) fn connections(&self) -> (usize, usize) {
        (self.clients.load(Ordering::Relaxed), self.places.taken())
    }

    pub(crate) fn next_session(&self) -> u64 {
        self.last_session.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A cancel key that no session has. None if the system gives no random numbers.
    pub(crate) fn next_key(&self, long: bool, backend: Option<u32>) -> Option<CancelKey> {
        loop {
            let key = self.keys.draw(long, backend)?;
            if !self.sessions.contains_key(&self.keys.place(key.pid(), key.secret())) {
                return Some(key);
            }
        }
    }

    /// The session with this cancel key.
    pub(crate) fn session(&self, pid: u32, secret: &[u8]) -> Option<Arc<SessionHandle>> {
        let session = self.sessions.get(&self.keys.place(pid, secret)).map(|s| s.clone());
        session.filter(|s| s.key.is(pid, secret))
    }

    // --- the end ---

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Tells of each stage that is entered.
    pub(crate) fn stages(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// Goes on to `stage`; never back.
    pub(crate) fn enter(&self, stage: Stage) {
        self.stage.send_if_modified(|now| {
            let on = stage > *now;
            *now = stage.max(*now);
            on
        });
    }

    pub(crate) fn command_all(&self, order: Order) {
        for session in &self.sessions {
            session.command(order);
        }
    }
}

/// The life of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// It takes clients.
    Serving,
    /// Another process takes them; the sessions that are here go on for a while.
    HandedOver,
    /// It takes none, and ends when its sessions have.
    Draining,
}

/// Whether a pool of `a` can serve `b` as it is.
fn is_same(a: &Shard, b: &Shard) -> bool {
    use secrecy::ExposeSecret;
    use switchyard_config::topology::ServerSecret;
    let secret = match (&a.login.secret, &b.login.secret) {
        (ServerSecret::None, ServerSecret::None) => true,
        (ServerSecret::Password(a), ServerSecret::Password(b)) => a.expose_secret() == b.expose_secret(),
        (
            ServerSecret::ScramKeys { client_key: a, server_key: c },
            ServerSecret::ScramKeys { client_key: b, server_key: d },
        ) => a.0 == b.0 && c.0 == d.0,
        _ => false,
    };
    secret
        && a.login.user == b.login.user
        && (a.endpoints(), &a.database, &a.tls, &a.pool) == (b.endpoints(), &b.database, &b.tls, &b.pool)
}

fn load_client_tls(settings: &RouterSettings) -> Result<Option<Arc<ClientTlsContext>>, StartError> {
    use switchyard_config::settings::ClientTlsMode;
    if settings.tls.mode == ClientTlsMode::Disable {
        return Ok(None);
    }
    Ok(Some(Arc::new(ClientTlsContext::load(&settings.tls)?)))
}

fn load_shard_tls(shard: &Shard) -> Result<Arc<ShardTlsContext>, StartError> {
    let tls = ShardTlsContext::load(&shard.tls);
    tls.map(Arc::new).map_err(|error| StartError::ShardTls { shard: shard.name.clone(), error })
}

/// Why a router could not start, or could not take over what it was given.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: String,
        /// The system's word.
        error: std::io::Error,
    },
    /// TLS toward clients.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TLS toward a shard.
    #[error("tls of shard {shard}: {error}")]
    ShardTls {
        /// The shard.
        shard: ShardName,
        /// What is wrong.
        error: TlsError,
    },
    /// The catalog could not be read and there is no last topology.
    #[error("catalog: {0}")]
    Catalog(#[from] switchyard_catalog::CatalogError),
    /// A thread or a runtime could not be made.
    #[error("cannot start a worker: {0}")]
    Worker(std::io::Error),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// The process to take over from cannot be told.
    #[error("cannot take over from process {pid}: {error}")]
    TakeOver {
        /// Its id.
        pid: u32,
        /// The system's word.
        error: std::io::Error,
    },
    /// The configuration file cannot be read again.
    #[error("{0}")]
    Configuration(String),
}

/// A place among the clients; given back when dropped.
pub(crate) struct ClientPlace {
    shared: Arc<Shared>,
    place: u64,
    tenant: Arc<TenantStats>,
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        self.shared.clients.fetch_sub(1, Ordering::AcqRel);
        self.shared.sessions.remove(&self.place);
        self.tenant.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}
