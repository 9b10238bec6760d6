//! The server connections of one shard, shared by its tenants.
//!
//! One lock per shard, taken twice per transaction and held for a look through the idle
//! connections. A tenant gets back a connection that served it last, where one is idle: then
//! nothing has to be set. Sessions that must wait stand in one [`queue`], whatever thread they run on.

mod connecting;
mod hold;
mod hosts;
mod idle;
mod lending;
mod look;
mod place;
mod question;
mod queue;
mod standbys;
mod upkeep;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use parking_lot::Mutex;
use switchyard_config::TenantId;
use switchyard_config::topology::Shard;
use tokio::sync::oneshot;

use crate::logins::Logins;
use crate::seal::Sealer;
use crate::server::connect::{ConnectError, LoginCache, Parameters};
use crate::server::{Route, Server, ServerIdentity};
use crate::stats::Histogram;
use crate::tls::ShardTlsContext;
use connecting::{Failing, Outage};
use hold::Hold;
use hosts::Hosts;
use idle::Idle;
pub(crate) use look::{Doing, Look};
pub(crate) use place::ServerPlace;
pub(crate) use queue::Share;
use queue::{Loan, Queue};

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum PoolError {
    /// The shard cannot be reached or refuses us.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The shard has left the topology, or its address has changed.
    #[error("the pool is closed")]
    Closed,
}

/// What a session needs.
pub(crate) struct Want<'a> {
    pub(crate) route: &'a Route,
    pub(crate) context: u64,
    pub(crate) share: Share,
    pub(crate) wishes: u64,
    pub(crate) session: u64,
    pub(crate) worker: usize,
    pub(crate) now: Instant,
    /// The tenant; none where nothing of a client will run.
    pub(crate) tenant: Option<&'a TenantId>,
}

/// The answer to a [`Want`].
pub(crate) enum Lend {
    /// Here it is.
    Now(Box<Server>),
    /// It will come, or an error will.
    Later(oneshot::Receiver<Result<Box<Server>, PoolError>>),
    /// There is none to be had.
    Never(PoolError),
}

/// The pool of one shard.
pub(crate) struct Pool {
    pub(crate) shard: Arc<Shard>,
    hosts: Hosts,
    tls: ArcSwap<ShardTlsContext>,
    logins: Arc<Logins>,
    /// Makes the tokens of sealed contexts.
    pub(crate) sealer: Arc<Sealer>,
    cache: Arc<LoginCache>,
    state: Mutex<State>,
    parameters: DashMap<Route, Arc<Parameters>>,
    pub(crate) hubs: crate::notifications::Hubs,
    /// Shared with whoever shows them, as they must outlive the pool.
    pub(crate) counters: Arc<PoolCounters>,
}

/// Counts since the pool was made.
#[derive(Default)]
pub(crate) struct PoolCounters {
    pub(crate) connects: AtomicU64,
    pub(crate) connect_failures: AtomicU64,
    pub(crate) cleanings: AtomicU64,
    pub(crate) contexts: AtomicU64,
    pub(crate) queue_timeouts: AtomicU64,
    pub(crate) wait: Histogram,
}

/// How many connections and sessions are in which state.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PoolGauges {
    pub(crate) open: usize,
    pub(crate) idle: usize,
    pub(crate) connecting: usize,
    pub(crate) waiting: usize,
    pub(crate) oldest_wait: Duration,
}

#[derive(Default)]
struct State {
    /// Most recently used last.
    idle: Vec<Idle>,
    /// Connections that exist or are being made. Never above the shard's size.
    open: usize,
    connecting: usize,
    /// Made and not closed yet, by route.
    live: HashMap<Route, usize>,
    queue: Queue,
    /// Somebody looks every [`queue::PATIENCE`] whether one who waits for a connection of its own tenant has
    /// waited long enough.
    watched: bool,
    failing: HashMap<Route, Failing>,
    /// Set while connections cannot be made.
    outage: Option<Outage>,
    /// All that were made and not closed yet, by id.
    servers: HashMap<u64, Arc<ServerIdentity>>,
    hold: Hold,
    closed: bool,
}

impl State {
    /// Notes that the connection is lent.
    fn lent(&mut self, server: &mut Server, loan: Loan) {
        self.queue.lent(server.carried.context, &loan);
        server.place.lent_to = Some(loan);
    }

    /// The loan of a connection has ended, if it was lent.
    fn came_back(&mut self, server: &mut Server, now: Instant) {
        if let Some(loan) = server.place.lent_to.take() {
            self.queue.returned(&loan, now);
            if server.carried.context != loan.context {
                self.queue.carries(loan.context, server.carried.context);
            }
        }
    }

    /// A connection will not be used any more.
    fn lost(&mut self, place: &mut ServerPlace, carried: u64) {
        let carried = place.lent_to.take().map_or(carried, |loan| {
            self.queue.lost(loan.context, loan.share);
            loan.context
        });
        self.queue.carries(carried, 0);
        self.vacate(&place.route, place.id);
    }

    fn vacate(&mut self, route: &Route, id: u64) {
        self.open -= 1;
        self.servers.remove(&id);
        if let Some(live) = self.live.get_mut(route) {
            *live -= 1;
            if *live == 0 {
                self.live.remove(route);
            }
        }
    }
}

impl Pool {
    pub(crate) fn new(
        shard: Arc<Shard>,
        tls: Arc<ShardTlsContext>,
        logins: Arc<Logins>,
        sealer: Arc<Sealer>,
    ) -> Self {
        Self {
            hosts: Hosts::new(&shard),
            shard,
            tls: ArcSwap::new(tls),
            logins,
            sealer,
            cache: Arc::default(),
            state: Mutex::default(),
            parameters: DashMap::new(),
            hubs: crate::notifications::Hubs::default(),
            counters: Arc::default(),
        }
    }

    /// Certificates have been read again. Connections that are there stay.
    pub(crate) fn replace_tls(&self, tls: Arc<ShardTlsContext>) {
        self.tls.store(tls);
    }

    fn size(&self) -> usize {
        self.shard.pool.size.max(1) as usize
    }

    /// The parameters that the shard reported at the last login by this route.
    pub(crate) fn parameters(&self, route: &Route) -> Option<Arc<Parameters>> {
        self.parameters.get(route).map(|p| p.clone())
    }

    /// Takes the connection's place away, before it is closed.
    fn forget(&self, state: &mut State, server: &mut Server) {
        if server.place.take().is_some() {
            state.lost(&mut server.place, server.carried.context);
        }
    }

    /// Ends the pool: idle connections are closed, those in use when they come back.
    pub(crate) fn close(&self) {
        let (idle, waiters) = {
            let mut state = self.state.lock();
            state.closed = true;
            let mut idle = std::mem::take(&mut state.idle);
            for idle in &mut idle {
                self.forget(&mut state, &mut idle.server);
            }
            let mut waiters = state.queue.drain(None);
            waiters.extend(state.hold.take_all());
            (idle, waiters)
        };
        for waiter in waiters {
            let _ = waiter.reply.send(Err(PoolError::Closed));
        }
        for idle in idle {
            say_goodbye(*idle.server);
        }
    }

    /// How many are in which state now.
    pub(crate) fn gauges(&self) -> PoolGauges {
        let state = self.state.lock();
        PoolGauges {
            open: state.open,
            idle: state.idle.len(),
            connecting: state.connecting,
            waiting: state.queue.len() + state.hold.waiting().count(),
            oldest_wait: [state.queue.oldest(), state.hold.oldest()]
                .into_iter()
                .flatten()
                .min()
                .map(|since| since.elapsed())
                .unwrap_or_default(),
        }
    }
}

/// Tells the server that we leave, if that costs no waiting, and closes.
fn say_goodbye(mut server: Server) {
    let mut out = Vec::with_capacity(5);
    switchyard_wire::build::terminate(&mut out);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    if !server.broken {
        let _ = server.stream.poll_write(&mut cx, &out);
    }
}
