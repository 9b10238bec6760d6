//! How a pool comes by new connections, and what it does while the shard is away.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::place::{Place, ServerPlace};
use super::{Pool, PoolError, State};
use crate::server::connect::ConnectError;
use crate::server::{Route, Server};

/// First pause after a failed attempt to connect; it doubles up to the shard's `backoff_max`.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// Longest pause between attempts while statements wait for a primary.
const HELD_PAUSE: Duration = Duration::from_millis(500);

/// A time in which no connection could be made.
pub(super) struct Outage {
    began: Instant,
    /// The last attempt.
    last: Instant,
}

pub(super) struct Failing {
    pub(super) until: Instant,
    pause: Duration,
    pub(super) error: ConnectError,
}

impl Pool {
    pub(super) fn start_connecting(self: &Arc<Self>, state: &mut State, route: Route) {
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

    /// Whether connections are being made.
    pub(crate) fn is_connecting(&self) -> bool {
        self.state.lock().connecting > 0
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
    pub(super) fn is_held(&self, state: &State, error: &ConnectError) -> bool {
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
}
