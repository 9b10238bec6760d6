//! Lending and taking back: what happens twice in each transaction, under the pool's lock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::idle::{Fit, Idle, best, richest};
use super::queue::{self, Loan, Offer, PATIENCE, Waiter};
use super::{Lend, Pool, PoolError, State, Want, say_goodbye};
use crate::server::Server;
use crate::server::connect::ConnectError;

impl Pool {
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
        if state.open >= self.size()
            && let Some(at) = state.idle.iter().position(|idle| idle.kept.is_none())
        {
            // All that are not kept are for other databases or logins: the one idle longest makes room.
            let mut idle = state.idle.remove(at);
            self.forget(state, &mut idle.server);
        }
        if state.open < self.size() && state.connecting <= state.queue.len_up_to(self.size()) {
            self.start_connecting(state, want.route.clone());
        }
        Ok(())
    }

    /// Takes a connection back. Only one that is outside a transaction, owes nothing and is owed
    /// nothing is used again; the caller says so by not having marked it broken.
    pub(crate) fn give_back(self: &Arc<Self>, server: Box<Server>) {
        self.give_back_at(server, Instant::now());
    }

    /// The same, by who has just looked at the clock.
    pub(crate) fn give_back_at(self: &Arc<Self>, mut server: Box<Server>, now: Instant) {
        if server.identity.may_be_canceled() && !server.identity.is_being_canceled() {
            // A cancel request was not answered: it would hit whoever comes next.
            server.broken = true;
        } else if server.identity.is_being_canceled() && !server.broken {
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
        if !state.queue.is_empty()
            && let Some(until) = state.queue.keeps(server.carried.context, now)
        {
            server.identity.came_back(server.statements.len());
            state.idle.push(Idle { server, since: now, checked: now, kept: Some(until) });
            self.watch(&mut state);
            return;
        }
        self.hand_on(&mut state, server, now);
    }

    /// Gives the connection to who waits, else keeps it.
    pub(super) fn hand_on(self: &Arc<Self>, state: &mut State, mut server: Box<Server>, now: Instant) {
        server.identity.came_back(server.statements.len());
        if state.hold.wants_closed(&server.identity) {
            // It was being made when the pool was paused, or its connections were to be made anew.
            self.forget(state, &mut server);
            self.serve_next(state);
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
        state.idle.push(Idle { server, since, checked: now, kept: None });
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
                state.queue.lost(waiter.context, waiter.share);
                state.queue.carries(waiter.context, server.carried.context);
                Some(server)
            }
        }
    }

    /// Sees to it that nobody waits for a connection of its own tenant for much longer than
    /// [`PATIENCE`] while others are idle, and that none is kept for longer than it was to be.
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
        while let Some(at) = state.idle.iter().position(|idle| idle.kept.is_some_and(|until| until <= now)) {
            let mut idle = state.idle.remove(at);
            idle.server.idle_since = Some(idle.since);
            if idle.server.is_alive() {
                self.hand_on(&mut state, idle.server, now);
            } else {
                self.forget(&mut state, &mut idle.server);
            }
        }
        let any = state.idle.iter().any(|idle| idle.kept.is_none());
        let impatient = if any { state.queue.impatient(now) } else { Vec::new() };
        for context in impatient {
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
        let kept = state.idle.iter().any(|idle| idle.kept.is_some());
        state.watched = kept || (!state.idle.is_empty() && !state.queue.is_empty());
        !state.watched
    }

    /// A place has become free: somebody who waits may need it.
    pub(super) fn serve_next(self: &Arc<Self>, state: &mut State) {
        if state.open < self.size()
            && let Some(route) = state.queue.first_route()
            && state.failing.get(route).is_none_or(|f| Instant::now() >= f.until)
        {
            let route = route.clone();
            self.start_connecting(state, route);
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
