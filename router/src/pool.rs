//! The server connections of one shard, shared by its tenants.
//!
//! One lock per shard, taken twice per transaction and held for a look through the idle
//! connections. A tenant gets back a connection that served it last, where one is idle: then
//! nothing has to be set. Sessions that must wait stand in one [`queue`], whatever thread they run on.

mod hold;
mod hosts;
mod idle;
mod look;
mod place;
mod queue;
mod standbys;
mod upkeep;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
use hold::Hold;
use hosts::Hosts;
use idle::{Fit, Idle, best, richest};
pub(crate) use look::{Doing, Look};
use place::Place;
pub(crate) use place::ServerPlace;
pub(crate) use queue::Share;
use queue::{Loan, Offer, PATIENCE, Queue, Waiter};

/// First pause after a failed attempt to connect; it doubles up to the shard's `backoff_max`.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// Longest pause between attempts while statements wait for a primary.
const HELD_PAUSE: Duration = Duration::from_millis(500);

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
    /// Somebody looks every [`PATIENCE`] whether one who waits for a connection of its own tenant has
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
        self.queue.lent(server.carried.context, loan.context);
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
            self.queue.lost(loan.context);
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

/// A time in which no connection could be made.
struct Outage {
    began: Instant,
    /// The last attempt.
    last: Instant,
}

struct Failing {
    until: Instant,
    pause: Duration,
    error: ConnectError,
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

    /// Lends a connection, at once if one is idle.
    pub(crate) fn lend(self: &Arc<Self>, want: &Want<'_>) -> Lend {
        let mut state = self.state.lock();
        if state.closed {
            return Lend::Never(PoolError::Closed);
        }
        if state.hold.holds(want.tenant) {
            return Lend::Later(state.hold.join(want));
        }
        let now = want.now;
        while let Some((fit, mut at)) = best(&state.idle, want) {
            if fit == Fit::Foreign {
                if state.connecting == 0 && state.open < self.size() {
                    // It will do, after cleaning. There is room for another, so that the next
                    // transaction of either tenant finds its own.
                    self.start_connecting(&mut state, want.route.clone());
                }
                if !queue::is_spare(state.idle[at].since, now) {
                    at = richest(&state.idle, at, |context| state.queue.held(context));
                    let other = state.idle[at].server.carried.context;
                    if state.queue.is_worth_waiting(want.context, other, now) {
                        let answer = enqueue(&mut state, want);
                        self.watch(&mut state);
                        return Lend::Later(answer);
                    }
                }
            }
            let mut idle = state.idle.remove(at);
            if idle.server.is_alive() {
                let loan =
                    Loan { context: want.context, share: want.share, since: now, charged: Duration::ZERO };
                state.lent(&mut idle.server, loan);
                idle.server.identity.lent(want.session);
                return Lend::Now(idle.server);
            }
            self.forget(&mut state, &mut idle.server);
        }
        if let Err(e) = self.make_room(&mut state, want) {
            return Lend::Never(PoolError::Connect(e));
        }
        Lend::Later(enqueue(&mut state, want))
    }

    /// Starts another connection if there may be one. Fails if the shard is known to be away and
    /// nothing else can serve the wish.
    fn make_room(self: &Arc<Self>, state: &mut State, want: &Want<'_>) -> Result<(), ConnectError> {
        if let Some(failing) = state.failing.get(want.route)
            && Instant::now() < failing.until
        {
            let error = failing.error.clone();
            let comes = state.live.contains_key(want.route) || self.is_held(state, &error);
            return if comes { Ok(()) } else { Err(error) };
        }
        if state.open >= self.size() && !state.idle.is_empty() {
            // All idle ones are for other databases or logins: the one idle longest makes room.
            let mut idle = state.idle.remove(0);
            self.forget(state, &mut idle.server);
        }
        if state.open < self.size() && state.connecting <= state.queue.len_up_to(self.size()) {
            self.start_connecting(state, want.route.clone());
        }
        Ok(())
    }

    /// Takes the connection's place away, before it is closed.
    fn forget(&self, state: &mut State, server: &mut Server) {
        if server.place.take().is_some() {
            state.lost(&mut server.place, server.carried.context);
        }
    }

    fn start_connecting(self: &Arc<Self>, state: &mut State, route: Route) {
        state.open += 1;
        state.connecting += 1;
        let pool = self.clone();
        tokio::spawn(async move { pool.connect(route).await });
    }

    /// A connection that is none of the pool's, and does not count among them.
    pub(crate) async fn connect_apart(&self, route: &Route) -> Result<Server, ConnectError> {
        self.connect_to_primary(route).await.map(|(server, _)| server)
    }

    /// Has `count` connections idle or in the making, as far as there is room.
    pub(crate) fn warm(self: &Arc<Self>, route: &Route, count: usize) {
        let mut state = self.state.lock();
        let idle = state.idle.iter().filter(|idle| idle.server.route == *route).count();
        for _ in (idle + state.connecting)..count {
            if state.closed || state.open >= self.size() || state.failing.contains_key(route) {
                return;
            }
            self.start_connecting(&mut state, route.clone());
        }
    }

    async fn connect(self: Arc<Self>, route: Route) {
        // If this future is dropped half way (the worker ends), the place must not stay taken.
        let mut place = Place { pool: &self, taken: true };
        let made = self.connect_to_primary(&route).await;
        place.taken = false;
        match made {
            Ok((mut server, parameters)) => {
                let id = server.identity.id;
                server.place = ServerPlace {
                    pool: Arc::downgrade(&self),
                    route: route.clone(),
                    id,
                    taken: true,
                    lent_to: None,
                };
                self.counters.connects.fetch_add(1, Ordering::Relaxed);
                self.parameters.insert(route.clone(), Arc::new(parameters));
                let mut state = self.state.lock();
                state.connecting -= 1;
                *state.live.entry(route.clone()).or_default() += 1;
                state.failing.remove(&route);
                state.queue.forget_promises(&route);
                state.servers.insert(id, server.identity.clone());
                self.hand_on(&mut state, Box::new(server), Instant::now());
                if state.outage.take().is_some() && !self.hosts.is_one() {
                    // Many may have waited for this.
                    self.serve_next(&mut state);
                }
            }
            Err(error) => {
                self.counters.connect_failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(shard = %self.shard.name, %error, "cannot connect to shard");
                self.connect_failed(&route, error);
            }
        }
    }

    fn connect_failed(self: &Arc<Self>, route: &Route, error: ConnectError) {
        let mut state = self.state.lock();
        state.connecting -= 1;
        state.open -= 1;
        let pause = state.failing.get(route).map_or(BACKOFF_MIN, |f| f.pause * 2);
        self.note_outage(&mut state);
        let held = self.is_held(&state, &error);
        let pause = pause.min(if held { HELD_PAUSE } else { self.shard.pool.backoff_max });
        state
            .failing
            .insert(route.clone(), Failing { until: Instant::now() + pause, pause, error: error.clone() });
        if held {
            state.queue.forget_promises(route);
            self.try_again_after(pause);
        } else if !state.live.contains_key(route) {
            // Nothing will come for them: the error now is better than silence until the timeout.
            for waiter in state.queue.drain(Some(route)) {
                let _ = waiter.reply.send(Err(PoolError::Connect(error.clone())));
            }
        } else {
            state.queue.forget_promises(route);
        }
        self.serve_next(&mut state);
    }

    /// Whether statements are to wait while there is no primary, as one is to be promoted.
    fn is_held(&self, state: &State, error: &ConnectError) -> bool {
        let since = state.outage.as_ref().map(|outage| outage.began.elapsed());
        !self.hosts.is_one()
            && error.may_pass()
            && since.is_some_and(|since| since < self.shard.pool.failover_timeout)
    }

    /// An attempt has failed. If there was none for long, it is the first of an outage.
    fn note_outage(&self, state: &mut State) {
        let now = Instant::now();
        let gap = self.shard.pool.connect_timeout + self.shard.pool.backoff_max * 2;
        match &mut state.outage {
            Some(outage) if now.duration_since(outage.last) < gap => outage.last = now,
            outage => *outage = Some(Outage { began: now, last: now }),
        }
    }

    /// Looks for a primary again, if somebody waits for it.
    fn try_again_after(self: &Arc<Self>, pause: Duration) {
        let pool = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let Some(pool) = pool.upgrade() else { return };
            let mut state = pool.state.lock();
            if !state.closed && state.connecting == 0 {
                pool.serve_next(&mut state);
            }
        });
    }

    /// Takes a connection back. Only one that is outside a transaction, owes nothing and is owed
    /// nothing is used again; the caller says so by not having marked it broken.
    pub(crate) fn give_back(self: &Arc<Self>, mut server: Box<Server>) {
        if server.identity.is_being_canceled() && !server.broken {
            // A cancel request is on its way to it. It must arrive before anybody else is served.
            server.identity.came_back(server.statements.len());
            let pool = self.clone();
            tokio::spawn(async move {
                let identity = server.identity.clone();
                while identity.is_being_canceled() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                pool.give_back(server);
            });
            return;
        }
        let now = Instant::now();
        let mut state = self.state.lock();
        state.came_back(&mut server, now);
        if server.broken
            || server.short_lived
            || state.closed
            || state.hold.wants_closed(&server.identity)
            || state.open > self.size()
            || now >= server.expires
            || !self.hosts.is_primary(&server.identity.endpoint)
        {
            self.forget(&mut state, &mut server);
            self.serve_next(&mut state);
            drop(state);
            say_goodbye(*server);
            return;
        }
        self.hand_on(&mut state, server, now);
    }

    /// Gives the connection to who waits, else keeps it.
    fn hand_on(self: &Arc<Self>, state: &mut State, mut server: Box<Server>, now: Instant) {
        server.identity.came_back(server.statements.len());
        if state.hold.wants_closed(&server.identity) {
            // It was being made when the pool was paused.
            self.forget(state, &mut server);
            return;
        }
        while !state.queue.is_empty() {
            let offer = Offer { context: server.carried.context, worker: server.home, route: &server.route };
            let Some(mut waiter) = state.queue.next(&offer, now) else { break };
            if waiter.route != server.route {
                // Its turn, but it needs another database or login: this one makes room.
                self.forget(state, &mut server);
                let route = waiter.route.clone();
                waiter.promised = true;
                state.queue.push_first(waiter);
                self.start_connecting(state, route);
                return;
            }
            match self.deliver(state, waiter, server, now) {
                None => return,
                Some(back) => server = back,
            }
        }
        let since = server.idle_since.take().unwrap_or(now);
        state.idle.push(Idle { server, since, checked: now });
        self.watch(state);
    }

    /// Gives a connection to one who waits. Gives it back if that one has just given up.
    fn deliver(
        &self,
        state: &mut State,
        waiter: Waiter,
        mut server: Box<Server>,
        now: Instant,
    ) -> Option<Box<Server>> {
        let loan = Loan { context: waiter.context, share: waiter.share, since: now, charged: waiter.charged };
        state.lent(&mut server, loan);
        server.identity.lent(waiter.session);
        match waiter.reply.send(Ok(server)) {
            Ok(()) => {
                self.counters.wait.record(now.saturating_duration_since(waiter.since));
                None
            }
            Err(back) => {
                let mut server = back.ok()?;
                // As if it had not been lent.
                server.place.lent_to = None;
                state.queue.refund(waiter.share, waiter.charged);
                server.identity.came_back(server.statements.len());
                state.queue.lost(waiter.context);
                state.queue.carries(waiter.context, server.carried.context);
                Some(server)
            }
        }
    }

    /// Sees to it that nobody waits for a connection of its own tenant for much longer than
    /// [`PATIENCE`] while others are idle.
    fn watch(self: &Arc<Self>, state: &mut State) {
        if state.watched || state.idle.is_empty() || state.queue.is_empty() {
            return;
        }
        // Without a runtime the process is on its way out.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        state.watched = true;
        let mut watch = Watch { pool: self.clone(), ended: false };
        runtime.spawn(async move {
            while !watch.ended {
                tokio::time::sleep(PATIENCE).await;
                watch.ended = watch.pool.serve_impatient();
            }
        });
    }

    /// Gives idle connections, whoever they served, to those who have waited long enough for one of
    /// their own. True if there is nobody left to look after, and the watch has ended.
    fn serve_impatient(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        let now = Instant::now();
        for context in state.queue.impatient(now) {
            while let Some(waiter) = state.queue.take_impatient(context, now) {
                let want = Want {
                    route: &waiter.route,
                    context,
                    share: waiter.share,
                    wishes: waiter.wishes,
                    session: waiter.session,
                    worker: waiter.worker,
                    now,
                    tenant: waiter.tenant.as_ref(),
                };
                let Some((_, at)) = best(&state.idle, &want) else {
                    state.queue.push_first(waiter);
                    break;
                };
                let mut idle = state.idle.remove(at);
                if !idle.server.is_alive() {
                    self.forget(&mut state, &mut idle.server);
                    state.queue.push_first(waiter);
                } else if let Some(server) = self.deliver(&mut state, waiter, idle.server, now) {
                    state.idle.push(Idle { server, ..idle });
                }
            }
        }
        if state.connecting == 0 {
            self.serve_next(&mut state);
        }
        state.watched = !state.idle.is_empty() && !state.queue.is_empty();
        !state.watched
    }

    /// A place has become free: somebody who waits may need it.
    fn serve_next(self: &Arc<Self>, state: &mut State) {
        if state.open < self.size()
            && let Some(route) = state.queue.first_route()
            && state.failing.get(route).is_none_or(|f| Instant::now() >= f.until)
        {
            let route = route.clone();
            self.start_connecting(state, route);
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

/// Says so if a watch ends before its time, with its thread.
struct Watch {
    pool: Arc<Pool>,
    ended: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.ended {
            self.pool.state.lock().watched = false;
        }
    }
}

fn enqueue(state: &mut State, want: &Want<'_>) -> oneshot::Receiver<Result<Box<Server>, PoolError>> {
    let (waiter, answer) = Waiter::new(want);
    state.queue.push(waiter);
    answer
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
