//! A router as of one moment, for tables to be made from.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use switchyard_config::settings::RouterSettings;
use switchyard_config::topology::{PoolMode, Shard, Topology};

use crate::pauses::Held;
use crate::pool::{Look, Pool};
use crate::server::ServerIdentity;
use crate::session::handle::{Activity, SessionHandle};
use crate::shared::Shared;

/// See the module.
pub(super) struct View {
    pub(super) topology: Arc<Topology>,
    pub(super) settings: Arc<RouterSettings>,
    /// In order of the shards' names.
    pub(super) pools: Vec<(Arc<Pool>, Look)>,
    /// In the order in which they came.
    pub(super) clients: Vec<Client>,
    pub(super) held: Held,
}

/// A session of a tenant.
pub(super) struct Client {
    pub(super) handle: Arc<SessionHandle>,
    /// Where the tenant lives; none if it has just gone.
    pub(super) shard: Option<Arc<Shard>>,
    /// How long it has waited for a server connection, if it does.
    pub(super) waiting: Option<Duration>,
    pub(super) server: Option<Arc<ServerIdentity>>,
    pub(super) mode: PoolMode,
}

impl Client {
    /// As PgBouncer calls it.
    pub(super) fn state(&self) -> &'static str {
        match (self.waiting, &self.server) {
            (Some(_), _) => "waiting",
            (None, Some(_)) => "active",
            (None, None) => "idle",
        }
    }

    /// As we call it, and for how many seconds.
    pub(super) fn doing(&self) -> (&'static str, u32) {
        let (activity, seconds) = self.handle.activity();
        match (self.waiting, activity) {
            (Some(waiting), _) => ("waiting", waiting.as_secs() as u32),
            (None, Activity::Idle) if self.handle.pin().is_some() => ("pinned", seconds),
            (None, Activity::Idle) => ("idle", seconds),
            (None, Activity::Active) => ("active", seconds),
            (None, Activity::IdleInTransaction) => ("idle in transaction", seconds),
        }
    }

    /// The database as the tables call it.
    pub(super) fn database(&self) -> String {
        self.shard.as_ref().map_or_else(|| "@".to_owned(), |shard| database(shard))
    }
}

/// What a pool is called where PgBouncer has a database: that of a shard's standbys is apart.
pub(super) fn database_of(pool: &Pool) -> String {
    let suffix = if pool.is_of_standbys() { "/standby" } else { "" };
    database(&pool.shard) + suffix
}

/// What a shard is called where PgBouncer has a database.
pub(super) fn database(shard: &Shard) -> String {
    format!("{}@{}", shard.database, shard.name)
}

impl View {
    pub(super) fn take(shared: &Shared) -> Self {
        let topology = shared.topology();
        let settings = shared.settings().clone();
        let mut pools: Vec<_> = shared
            .pools()
            .into_iter()
            .map(|pool| {
                let look = pool.look();
                (pool, look)
            })
            .collect();
        let place = |pool: &Pool| (pool.shard.name.clone(), pool.is_of_standbys());
        pools.sort_by_key(|(pool, _)| place(pool));
        let waiting: HashMap<u64, Duration> =
            pools.iter().flat_map(|(_, look)| look.waiting.iter().copied()).collect();
        let mut clients: Vec<_> = shared
            .sessions
            .iter()
            .map(|session| {
                let handle = session.clone();
                let server = handle.target();
                let tenant = topology.tenant(&handle.tenant());
                let user = topology.users.get(&handle.who.user);
                let home = || {
                    let placed = topology.place(tenant.as_ref()?)?;
                    Some(topology.shards[usize::from(placed.shard)].clone())
                };
                let mode = tenant
                    .as_ref()
                    .and_then(|tenant| tenant.pool_mode)
                    .or(user.and_then(|user| user.pool_mode))
                    .unwrap_or(settings.pool_mode);
                let shard = server.as_ref().map(|server| server.shard.clone()).or_else(home);
                Client { shard, waiting: waiting.get(&handle.number()).copied(), server, mode, handle }
            })
            .collect();
        clients.sort_by_key(|client| client.handle.number());
        Self { topology, settings, pools, clients, held: shared.pauses.now() }
    }

    /// The session of this number.
    pub(super) fn client(&self, number: u64) -> Option<&Client> {
        let at = self.clients.binary_search_by_key(&number, |client| client.handle.number()).ok()?;
        Some(&self.clients[at])
    }

    /// Sessions of each shard, by its name.
    pub(super) fn clients_by_shard(&self) -> HashMap<&str, usize> {
        let mut counts = HashMap::new();
        for client in &self.clients {
            if let Some(shard) = &client.shard {
                *counts.entry(shard.name.as_str()).or_default() += 1;
            }
        }
        counts
    }
}

/// A pool mode as PgBouncer calls it.
pub(super) fn mode(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
    }
}
