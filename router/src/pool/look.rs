//! What the console sees of a pool.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use crate::server::ServerIdentity;

/// What a server connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    /// A session has it.
    Lent,
    /// Nobody has it.
    Idle,
    /// Nobody has it, and it is to be probed before it is lent.
    Unchecked,
    /// The router itself is using it: a probe, a rollback, a login that asks what it reports.
    Tested,
    /// It waits for a cancel request to arrive.
    BeingCanceled,
}

/// A pool as of one moment.
pub(crate) struct Look {
    pub(crate) servers: Vec<(Arc<ServerIdentity>, Doing)>,
    /// Which sessions wait, and for how long.
    pub(crate) waiting: Vec<(u64, Duration)>,
    pub(crate) connecting: usize,
    /// Connections that exist or are being made.
    pub(crate) open: usize,
    is_paused: bool,
    stale_before: Option<Instant>,
}

impl Look {
    /// Connections that somebody has, be it the router itself.
    pub(crate) fn busy(&self) -> impl Iterator<Item = &Arc<ServerIdentity>> {
        self.servers
            .iter()
            .filter(|(_, doing)| !matches!(doing, Doing::Idle | Doing::Unchecked))
            .map(|(s, _)| s)
    }

    /// Whether it will be closed when it comes back.
    pub(crate) fn wants_closed(&self, server: &ServerIdentity) -> bool {
        self.is_paused || self.stale_before.is_some_and(|before| server.made < before)
    }

    pub(crate) fn count(&self, what: Doing) -> usize {
        self.servers.iter().filter(|(_, doing)| *doing == what).count()
    }
}

impl Pool {
    /// All that there is, taken under one lock.
    pub(crate) fn look(&self) -> Look {
        let state = self.state.lock();
        let now = Instant::now();
        let check_after = self.shard.pool.check_after;
        let mut unchecked = HashSet::new();
        let mut idle = HashSet::new();
        for one in &state.idle {
            let of = if now.duration_since(one.checked) >= check_after { &mut unchecked } else { &mut idle };
            of.insert(one.server.identity.id);
        }
        let servers = state.servers.values().map(|server| {
            let doing = match server.id {
                id if idle.contains(&id) => Doing::Idle,
                id if unchecked.contains(&id) => Doing::Unchecked,
                _ if server.holder() != 0 => Doing::Lent,
                _ if server.cancels() > 0 => Doing::BeingCanceled,
                _ => Doing::Tested,
            };
            (server.clone(), doing)
        });
        Look {
            servers: servers.collect(),
            waiting: state
                .queue
                .iter()
                .chain(state.hold.waiting())
                .map(|w| (w.session, now.saturating_duration_since(w.since)))
                .collect(),
            connecting: state.connecting,
            open: state.open,
            is_paused: state.hold.is_paused(),
            stale_before: state.hold.stale_before(),
        }
    }
}
