//! What the console keeps from being lent: everything of a paused shard, or what certain tenants ask for.
//!
//! Whoever is held waits in a queue of its own, in order, and joins the others when that ends. It costs those who
//! are not held one look at a flag, under the lock that they hold anyway.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard_config::TenantId;
use tokio::sync::oneshot;

use super::queue::{Queue, Waiter};
use super::{Pool, PoolError, State, Want, say_goodbye};
use crate::server::{Server, ServerIdentity};

/// See the module.
#[derive(Default)]
pub(super) struct Hold {
    paused: bool,
    tenants: BTreeSet<TenantId>,
    waiters: VecDeque<Waiter>,
    /// When something was last let go.
    released: Option<Instant>,
    /// Connections made before this are closed when they come back.
    stale_before: Option<Instant>,
}

impl Hold {
    /// Whether nothing at all is lent.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether who asks for `tenant` must wait.
    #[inline]
    pub(super) fn holds(&self, tenant: Option<&TenantId>) -> bool {
        self.paused || (!self.tenants.is_empty() && tenant.is_some_and(|t| self.tenants.contains(t)))
    }

    /// Whether a connection that nobody has is to be closed.
    #[inline]
    pub(super) fn wants_closed(&self, server: &ServerIdentity) -> bool {
        self.paused || self.stale_before.is_some_and(|before| server.made < before)
    }

    /// Connections made before this are closed when they come back.
    pub(super) fn stale_before(&self) -> Option<Instant> {
        self.stale_before
    }

    pub(super) fn join(&mut self, want: &Want<'_>) -> oneshot::Receiver<Result<Box<Server>, PoolError>> {
        let (waiter, answer) = Waiter::new(want);
        self.waiters.push_back(waiter);
        answer
    }

    pub(super) fn retain_those_who_wait(&mut self) {
        self.waiters.retain(|w| !w.reply.is_closed());
    }

    pub(super) fn take_all(&mut self) -> VecDeque<Waiter> {
        std::mem::take(&mut self.waiters)
    }

    /// Those who wait to be let go.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Waiter> {
        self.waiters.iter().filter(|w| !w.reply.is_closed())
    }

    /// Since when the first of them has waited.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.waiting().map(|waiter| waiter.since).min()
    }

    /// Moves everybody to where they belong now.
    fn sort(&mut self, queue: &mut Queue) {
        let mut all = queue.drain(None);
        all.extend(self.waiters.drain(..));
        all.sort_by_key(|waiter| waiter.since);
        for waiter in all {
            if self.holds(waiter.tenant.as_ref()) {
                self.waiters.push_back(waiter);
            } else {
                queue.push(waiter);
            }
        }
    }
}

impl Pool {
    /// Pauses exactly this from now on. A paused pool closes its connections: the idle ones at once, others when they
    /// come back.
    pub(crate) fn hold(self: &Arc<Self>, paused: bool, tenants: &BTreeSet<TenantId>) {
        let mut closing = Vec::new();
        {
            let mut state = self.state.lock();
            let state = &mut *state;
            if state.closed || (state.hold.paused == paused && state.hold.tenants == *tenants) {
                return;
            }
            let hold = &mut state.hold;
            if (hold.paused && !paused) || !hold.tenants.is_subset(tenants) {
                hold.released = Some(Instant::now());
            }
            hold.paused = paused;
            hold.tenants.clone_from(tenants);
            hold.sort(&mut state.queue);
            if paused {
                closing = self.take_idle(state);
            }
            self.serve_all(state);
        }
        closing.into_iter().for_each(say_goodbye);
    }

    /// Closes all connections: the idle ones at once, others when they come back.
    pub(crate) fn reconnect(self: &Arc<Self>) {
        let closing = {
            let mut state = self.state.lock();
            state.hold.stale_before = Some(Instant::now());
            let closing = self.take_idle(&mut state);
            self.serve_all(&mut state);
            closing
        };
        closing.into_iter().for_each(say_goodbye);
    }

    /// Connections that [`Self::reconnect`] has left open, as they are in use.
    pub(crate) fn stale(&self) -> usize {
        let state = self.state.lock();
        let Some(before) = state.hold.stale_before else { return 0 };
        state.servers.values().filter(|server| server.made < before).count()
    }

    fn take_idle(&self, state: &mut State) -> Vec<Server> {
        let idle = std::mem::take(&mut state.idle);
        let mut taken = Vec::with_capacity(idle.len());
        for mut one in idle {
            self.forget(state, &mut one.server);
            taken.push(*one.server);
        }
        taken
    }

    /// Several at once may be served: those let go, or by connections made anew.
    fn serve_all(self: &Arc<Self>, state: &mut State) {
        let now = Instant::now();
        for mut idle in std::mem::take(&mut state.idle) {
            if idle.server.is_alive() {
                idle.server.idle_since = Some(idle.since);
                self.hand_on(state, idle.server, now);
            } else {
                self.forget(state, &mut idle.server);
            }
        }
        let missing = state.queue.len_up_to(self.size()).saturating_sub(state.connecting);
        let missing = missing.min(self.size().saturating_sub(state.open));
        let routes: Vec<_> = state.queue.iter().map(|waiter| waiter.route.clone()).take(missing).collect();
        for route in routes {
            if state.failing.get(&route).is_none_or(|failing| now >= failing.until) {
                self.start_connecting(state, route);
            }
        }
    }

    /// For somebody who has waited since `since` for as long as the queue allows: until when it may wait
    /// on, if the wait is not the queue's fault. While it is held that is `longest` in all; when it has
    /// been let go, the queue's time begins anew.
    pub(crate) fn may_wait_until(
        &self,
        since: Instant,
        tenant: &TenantId,
        longest: Duration,
    ) -> Option<Instant> {
        let state = self.state.lock();
        let now = Instant::now();
        let queue = self.shard.pool.queue_timeout;
        let until = if state.hold.holds(Some(tenant)) {
            (now + queue).min(since + longest)
        } else {
            state.hold.released.filter(|released| *released > since)? + queue
        };
        (until > now).then_some(until)
    }

    /// Whether nothing is lent to who asks for `tenant`.
    pub(crate) fn is_holding(&self, tenant: &TenantId) -> bool {
        self.state.lock().hold.holds(Some(tenant))
    }
}
