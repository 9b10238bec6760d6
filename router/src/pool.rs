//! The server connections of one shard, shared by its tenants.
//!
//! One lock per shard, taken twice per transaction and held for a look through the idle
//! connections. A tenant gets back a connection that served it last, where one is idle: then
//! nothing has to be set. Sessions that must wait stand in one queue, whatever thread they run on.

mod upkeep;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use parking_lot::Mutex;
use switchyard_config::topology::{Endpoint, Shard};
use tokio::sync::oneshot;

use crate::logins::Logins;
use crate::seal::Sealer;
use crate::server::connect::{ConnectError, LoginCache, Parameters, Target};
use crate::server::{Route, Server};
use crate::stats::Histogram;
use crate::tls::ShardTlsContext;

/// First pause after a failed attempt to connect; it doubles up to the shard's `backoff_max`.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

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
    pub(crate) wishes: u64,
    pub(crate) session: u64,
    pub(crate) worker: usize,
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
    tls: Arc<ShardTlsContext>,
    logins: Arc<Logins>,
    /// Makes the tokens of sealed contexts.
    pub(crate) sealer: Arc<Sealer>,
    cache: Arc<LoginCache>,
    state: Mutex<State>,
    parameters: DashMap<Route, Arc<Parameters>>,
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
    waiters: VecDeque<Waiter>,
    failing: HashMap<Route, Failing>,
    closed: bool,
}

impl State {
    fn vacate(&mut self, route: &Route) {
        self.open -= 1;
        if let Some(live) = self.live.get_mut(route) {
            *live -= 1;
            if *live == 0 {
                self.live.remove(route);
            }
        }
    }
}

/// The place of a connection that was made. A connection that is dropped anywhere but in the pool (its
/// session or its login ended before it was taken) gives the place back by this.
pub(crate) struct ServerPlace {
    pool: Weak<Pool>,
    route: Route,
    /// Given up by [`Pool::forget`], under the pool's lock.
    taken: bool,
}

impl ServerPlace {
    /// None, for a connection that belongs to no pool yet.
    pub(crate) fn none(route: Route) -> Self {
        Self { pool: Weak::new(), route, taken: false }
    }

    /// Gives up the claim. None if that was done before.
    fn take(&mut self) -> Option<()> {
        std::mem::take(&mut self.taken).then_some(())
    }
}

impl Drop for ServerPlace {
    fn drop(&mut self) {
        if self.taken
            && let Some(pool) = self.pool.upgrade()
        {
            pool.state.lock().vacate(&self.route);
        }
    }
}

struct Idle {
    server: Box<Server>,
    /// Since when nobody has used it.
    since: Instant,
    /// When it was last seen to answer.
    checked: Instant,
}

struct Waiter {
    reply: oneshot::Sender<Result<Box<Server>, PoolError>>,
    route: Route,
    context: u64,
    worker: usize,
    since: Instant,
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
            shard,
            tls,
            logins,
            sealer,
            cache: Arc::default(),
            state: Mutex::default(),
            parameters: DashMap::new(),
            counters: Arc::default(),
        }
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
        while let Some(at) = best(&state.idle, want) {
            let mut idle = state.idle.remove(at);
            if idle.server.is_alive() {
                let foreign = idle.server.carried.context != want.context && idle.server.carried.context != 0;
                if foreign && state.connecting == 0 && state.open < self.size() {
                    // It will do, after cleaning. There is room for another, so that the next
                    // transaction of either tenant finds its own.
                    self.start_connecting(&mut state, want.route.clone());
                }
                return Lend::Now(idle.server);
            }
            self.forget(&mut state, &mut idle.server);
        }
        if let Err(e) = self.make_room(&mut state, want) {
            return Lend::Never(PoolError::Connect(e));
        }
        let (reply, answer) = oneshot::channel();
        state.waiters.push_back(Waiter {
            reply,
            route: want.route.clone(),
            context: want.context,
            worker: want.worker,
            since: Instant::now(),
        });
        Lend::Later(answer)
    }

    /// Starts another connection if there may be one. Fails if the shard is known to be away and
    /// nothing else can serve the wish.
    fn make_room(self: &Arc<Self>, state: &mut State, want: &Want<'_>) -> Result<(), ConnectError> {
        if let Some(failing) = state.failing.get(want.route)
            && Instant::now() < failing.until
        {
            return if state.live.contains_key(want.route) { Ok(()) } else { Err(failing.error.clone()) };
        }
        if state.open >= self.size() && !state.idle.is_empty() {
            // All idle ones are for other databases or logins: the one idle longest makes room.
            let mut idle = state.idle.remove(0);
            self.forget(state, &mut idle.server);
        }
        if state.open < self.size() && state.connecting <= state.waiters.len() {
            self.start_connecting(state, want.route.clone());
        }
        Ok(())
    }

    /// Takes the connection's place away, before it is closed.
    fn forget(&self, state: &mut State, server: &mut Server) {
        if server.place.take().is_some() {
            state.vacate(&server.route);
        }
    }

    fn start_connecting(self: &Arc<Self>, state: &mut State, route: Route) {
        state.open += 1;
        state.connecting += 1;
        let pool = self.clone();
        tokio::spawn(async move { pool.connect(route).await });
    }

    async fn connect(self: Arc<Self>, route: Route) {
        // If this future is dropped half way (the worker ends), the place must not stay taken.
        let mut place = Place { pool: &self, taken: true };
        let target = Target {
            shard: self.shard.clone(),
            endpoint: Endpoint { host: self.shard.host.clone(), port: self.shard.port },
            login: self.logins.get(route.login),
            route: route.clone(),
            tls: self.tls.clone(),
            cache: self.cache.clone(),
            sealed: self.sealer.is_ready(),
            home: crate::worker::current(),
        };
        let made = target.connect().await;
        place.taken = false;
        match made {
            Ok((mut server, parameters)) => {
                server.place = ServerPlace { pool: Arc::downgrade(&self), route: route.clone(), taken: true };
                self.counters.connects.fetch_add(1, Ordering::Relaxed);
                self.parameters.insert(route.clone(), Arc::new(parameters));
                let mut state = self.state.lock();
                state.connecting -= 1;
                *state.live.entry(route.clone()).or_default() += 1;
                state.failing.remove(&route);
                self.hand_on(&mut state, Box::new(server));
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
        let pause = pause.min(self.shard.pool.backoff_max);
        state
            .failing
            .insert(route.clone(), Failing { until: Instant::now() + pause, pause, error: error.clone() });
        if !state.live.contains_key(route) {
            // Nothing will come for them: the error now is better than silence until the timeout.
            let waiters = std::mem::take(&mut state.waiters);
            for waiter in waiters {
                if waiter.route == *route {
                    let _ = waiter.reply.send(Err(PoolError::Connect(error.clone())));
                } else {
                    state.waiters.push_back(waiter);
                }
            }
        }
        self.serve_next(&mut state);
    }

    /// Takes a connection back. Only one that is outside a transaction, owes nothing and is owed
    /// nothing is used again; the caller says so by not having marked it broken.
    pub(crate) fn give_back(self: &Arc<Self>, mut server: Box<Server>) {
        if server.identity.is_being_canceled() && !server.broken {
            // A cancel request is on its way to it. It must arrive before anybody else is served.
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
        let mut state = self.state.lock();
        if server.broken
            || server.short_lived
            || state.closed
            || state.open > self.size()
            || Instant::now() >= server.expires
        {
            self.forget(&mut state, &mut server);
            self.serve_next(&mut state);
            drop(state);
            say_goodbye(*server);
            return;
        }
        self.hand_on(&mut state, server);
    }

    /// Gives the connection to who waits, else keeps it.
    fn hand_on(self: &Arc<Self>, state: &mut State, mut server: Box<Server>) {
        while let Some(waiter) = next_waiter(&mut state.waiters, &server) {
            if waiter.reply.is_closed() {
                continue;
            }
            if waiter.route != server.route {
                // Its turn, but it needs another database or login: this one makes room.
                self.forget(state, &mut server);
                let route = waiter.route.clone();
                state.waiters.push_front(waiter);
                self.start_connecting(state, route);
                return;
            }
            self.counters.wait.record(waiter.since.elapsed());
            match waiter.reply.send(Ok(server)) {
                Ok(()) => return,
                // It has just given up.
                Err(back) => match back {
                    Ok(s) => server = s,
                    Err(_) => return,
                },
            }
        }
        let checked = Instant::now();
        let since = server.idle_since.take().unwrap_or(checked);
        state.idle.push(Idle { server, since, checked });
    }

    /// A place has become free: somebody who waits may need it.
    fn serve_next(self: &Arc<Self>, state: &mut State) {
        if state.open < self.size()
            && let Some(waiter) = state.waiters.front()
            && state.failing.get(&waiter.route).is_none_or(|f| Instant::now() >= f.until)
        {
            let route = waiter.route.clone();
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
            (idle, std::mem::take(&mut state.waiters))
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
            waiting: state.waiters.iter().filter(|w| !w.reply.is_closed()).count(),
            oldest_wait: state.waiters.front().map(|w| w.since.elapsed()).unwrap_or_default(),
        }
    }
}

/// Gives a place back if connecting is abandoned.
struct Place<'a> {
    pool: &'a Arc<Pool>,
    taken: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.taken {
            let mut state = self.pool.state.lock();
            state.connecting -= 1;
            state.open -= 1;
        }
    }
}

/// The idle connection that suits best: one that carries just what is wanted, else the tenant's
/// context, else nothing, else the one that was idle longest. Of equals, the most recently used.
fn best(idle: &[Idle], want: &Want<'_>) -> Option<usize> {
    let mut found: Option<(u8, usize)> = None;
    for (at, candidate) in idle.iter().enumerate().rev() {
        let server = &candidate.server;
        if server.route != *want.route {
            continue;
        }
        let carried = &server.carried;
        let clean = !carried.dirty || carried.session == want.session;
        let local = server.home == want.worker;
        let rank = match (carried.context == want.context, clean) {
            (true, true) if carried.wishes.id == want.wishes => u8::from(!local),
            (true, true) => 2 + u8::from(!local),
            _ if carried.context == 0 && clean => 4 + u8::from(!local),
            _ => 6,
        };
        if rank == 0 {
            return Some(at);
        }
        // Walking from the most recent to the oldest: the last of rank 6 is the oldest.
        if found.is_none_or(|(best, _)| rank < best || (rank == 6 && best == 6)) {
            found = Some((rank, at));
        }
    }
    found.map(|(_, at)| at)
}

/// How far behind the head of the queue somebody is looked for whom the connection suits better.
const SEARCH: usize = 64;

/// Who is next: the first in the queue, unless somebody whom the connection suits better has waited
/// at least half as long. Best is a session of the tenant that it served last, for which nothing has
/// to be cleaned and its statements are still there; then one on the connection's own thread, as
/// changing threads costs two wake-ups and two registrations.
fn next_waiter(waiters: &mut VecDeque<Waiter>, server: &Server) -> Option<Waiter> {
    let first = waiters.front()?;
    let suits = |w: &Waiter| match (w.context == server.carried.context, w.worker == server.home) {
        (true, true) => 0,
        (true, false) => 1,
        (false, true) => 2,
        (false, false) => 3,
    };
    let mut best = (suits(first), 0);
    if best.0 > 0 && waiters.len() > 1 {
        let now = Instant::now();
        let waited = now.duration_since(first.since);
        for (at, waiter) in waiters.iter().enumerate().take(SEARCH).skip(1) {
            if now.duration_since(waiter.since) * 2 < waited {
                // Those behind have waited for less still.
                break;
            }
            let fit = suits(waiter);
            if fit < best.0 {
                best = (fit, at);
                if fit == 0 {
                    break;
                }
            }
        }
    }
    waiters.remove(best.1)
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
