//! Who waits for a connection, and who is next.
//!
//! A connection that served another tenant has to be cleaned and told the new context, and the server
//! has to plan every statement anew: that costs more than most transactions. So where connections are
//! in demand, a session takes another tenant's only if that tenant has more of them, or none of its own
//! is about to come back. For how long it waits is bounded by [`PATIENCE_MAX`].
//!
//! Nothing here knows connections or clocks: the pool says what happens and when.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::PoolError;
use crate::server::{Route, Server};
use crate::statements::IdHasher;

/// The shortest time that a session waits for a connection of its own tenant rather than take another's.
/// Tokio's timers are no finer.
pub(super) const PATIENCE: Duration = Duration::from_millis(1);

/// The longest, where the tenant's transactions are slow or the machine is.
pub(super) const PATIENCE_MAX: Duration = Duration::from_millis(10);

/// Between the two, so many of its tenant's transactions.
const PATIENCE_TURNS: u32 = 4;

/// Sessions that wait for each connection of their tenant, before one takes another's.
const CROWD: usize = 4;

/// Nobody's tenant misses a connection that has been idle for this long.
const SPARE: Duration = Duration::from_millis(20);

/// How far behind the first somebody is looked for whom a connection suits better.
const SEARCH: usize = 64;

/// A session that waits.
pub(super) struct Waiter {
    pub(super) reply: oneshot::Sender<Result<Box<Server>, PoolError>>,
    pub(super) route: Route,
    pub(super) context: u64,
    pub(super) wishes: u64,
    pub(super) session: u64,
    pub(super) worker: usize,
    pub(super) since: Instant,
    /// A connection for its route is being made in the place of one that was closed for it.
    pub(super) promised: bool,
}

/// The sessions and connections of one context.
#[derive(Default)]
struct Lane {
    /// Connections that carry it, idle or lent.
    held: u32,
    /// Connections that are lent to its sessions.
    busy: u32,
    /// When one of them last came back.
    returned: Option<Instant>,
    /// For how long they were lent lately, on average.
    turn: Duration,
    /// The first has waited longest.
    waiters: VecDeque<Waiter>,
}

impl Lane {
    fn first(&self) -> Option<&Waiter> {
        self.waiters.front()
    }

    fn patience(&self) -> Duration {
        (self.turn * PATIENCE_TURNS).clamp(PATIENCE, PATIENCE_MAX)
    }

    /// Whether a connection will come back for one more session soon enough to be waited for.
    fn is_worth_waiting(&self, now: Instant) -> bool {
        self.busy > 0
            && self.waiters.len() < CROWD * self.held as usize
            && self.returned.is_some_and(|at| now.saturating_duration_since(at) < self.patience() * 2)
    }
}

/// A connection that has come back.
pub(super) struct Offer<'a> {
    pub(super) context: u64,
    pub(super) worker: usize,
    pub(super) route: &'a Route,
}

/// Whether nobody misses a connection that has been idle since then.
pub(super) fn is_spare(idle_since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(idle_since) >= SPARE
}

/// See the module.
#[derive(Default)]
pub(super) struct Queue {
    lanes: HashMap<u64, Lane, BuildHasherDefault<IdHasher>>,
    /// The lanes in which somebody waits, by since when.
    order: BTreeSet<(Instant, u64)>,
}

impl Queue {
    // --- what is lent ---

    /// A connection that carried `carried` was lent to a session of `context`, and carries that now.
    pub(super) fn lent(&mut self, carried: u64, context: u64) {
        if carried != context {
            self.carries(carried, context);
        }
        self.lanes.entry(context).or_default().busy += 1;
    }

    /// A connection carries another context now; 0 is none.
    pub(super) fn carries(&mut self, before: u64, after: u64) {
        if let Some(lane) = self.lanes.get_mut(&before) {
            lane.held = lane.held.saturating_sub(1);
        }
        if after != 0 {
            self.lanes.entry(after).or_default().held += 1;
        }
    }

    /// A connection that was lent at `since` came back.
    pub(super) fn returned(&mut self, context: u64, since: Instant, now: Instant) {
        if let Some(lane) = self.lanes.get_mut(&context) {
            lane.busy = lane.busy.saturating_sub(1);
            lane.returned = Some(now);
            lane.turn = (lane.turn * 7 + now.saturating_duration_since(since)) / 8;
        }
    }

    /// It will not come back.
    pub(super) fn lost(&mut self, context: u64) {
        if let Some(lane) = self.lanes.get_mut(&context) {
            lane.busy = lane.busy.saturating_sub(1);
        }
    }

    /// Connections that carry this context, idle or lent.
    pub(super) fn held(&self, context: u64) -> u32 {
        self.lanes.get(&context).map_or(0, |lane| lane.held)
    }

    // --- who waits ---

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Sessions that wait, those that gave up not counted.
    pub(super) fn len(&self) -> usize {
        let lanes = self.order.iter().filter_map(|(_, context)| self.lanes.get(context));
        lanes.flat_map(|lane| &lane.waiters).filter(|w| !w.reply.is_closed()).count()
    }

    /// How many wait, or have given up since the last [`Queue::tidy`], but no more than `limit`.
    pub(super) fn len_up_to(&self, limit: usize) -> usize {
        let mut sum = 0;
        for (_, context) in &self.order {
            sum += self.lanes.get(context).map_or(0, |lane| lane.waiters.len());
            if sum >= limit {
                return limit;
            }
        }
        sum
    }

    /// Since when the first has waited.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.order.first().map(|(since, _)| *since)
    }

    /// The route of who has waited longest.
    pub(super) fn first_route(&self) -> Option<&Route> {
        let (_, context) = self.order.first()?;
        self.lanes.get(context)?.first().map(|w| &w.route)
    }

    /// Whether a session of this context does better to wait for a connection of its own than to take
    /// an idle one that carries `other`.
    pub(super) fn is_worth_waiting(&self, context: u64, other: u64, now: Instant) -> bool {
        let Some(lane) = self.lanes.get(&context) else { return false };
        self.held(other) <= lane.held + 1 && lane.is_worth_waiting(now)
    }

    pub(super) fn push(&mut self, waiter: Waiter) {
        let lane = self.lanes.entry(waiter.context).or_default();
        if lane.waiters.is_empty() {
            self.order.insert((waiter.since, waiter.context));
        }
        lane.waiters.push_back(waiter);
    }

    /// Puts one back that was taken out.
    pub(super) fn push_first(&mut self, waiter: Waiter) {
        let lane = self.lanes.entry(waiter.context).or_default();
        if let Some(first) = lane.first() {
            self.order.remove(&(first.since, waiter.context));
        }
        self.order.insert((waiter.since, waiter.context));
        lane.waiters.push_front(waiter);
    }

    fn take(&mut self, context: u64, at: usize) -> Option<Waiter> {
        let lane = self.lanes.get_mut(&context)?;
        let waiter = lane.waiters.remove(at)?;
        if at == 0 {
            self.order.remove(&(waiter.since, context));
            if let Some(first) = lane.first() {
                self.order.insert((first.since, context));
            }
        }
        Some(waiter)
    }

    /// Removes those at the head of a lane who have given up. Since when its first waits.
    fn prune(&mut self, context: u64) -> Option<Instant> {
        loop {
            let first = self.lanes.get(&context)?.first()?;
            if !first.reply.is_closed() {
                return Some(first.since);
            }
            self.take(context, 0);
        }
    }

    /// Who has waited longest.
    fn longest(&mut self) -> Option<(Instant, u64)> {
        loop {
            let (since, context) = *self.order.first()?;
            match self.prune(context) {
                Some(now) if now == since => return Some((since, context)),
                // Its first had given up; another lane may come before it now.
                _ => {}
            }
        }
    }

    /// Who gets a connection that has come back.
    ///
    /// A session of the tenant that it served last, unless somebody else has lost patience and has
    /// waited more than twice as long. Else who has waited longest, but for those who still do better
    /// to wait for one of their own.
    pub(super) fn next(&mut self, offer: &Offer<'_>, now: Instant) -> Option<Waiter> {
        let (longest, first) = self.longest()?;
        let own = self.prune(offer.context);
        let own_is_next = own.is_some_and(|own| {
            let (waited, waited_longest) = (now.duration_since(own), now.duration_since(longest));
            waited * 2 >= waited_longest || !self.may_have(first, longest, offer, now)
        });
        if own_is_next {
            return self.take_from(offer.context, offer.worker, now);
        }
        let mut order = self.order.iter().take(SEARCH);
        let (_, context) = *order.find(|(since, context)| self.may_have(*context, *since, offer, now))?;
        self.prune(context)?;
        self.take_from(context, offer.worker, now)
    }

    /// Whether a connection may go to the first of a lane, who waits since `since`.
    fn may_have(&self, context: u64, since: Instant, offer: &Offer<'_>, now: Instant) -> bool {
        let Some((lane, first)) = self.lanes.get(&context).and_then(|lane| Some((lane, lane.first()?)))
        else {
            return false;
        };
        if first.promised && first.route != *offer.route {
            // A connection for another route is being made for it already.
            return false;
        }
        context == offer.context
            || now.saturating_duration_since(since) >= lane.patience()
            || self.held(offer.context) > lane.held + 1
            || !lane.is_worth_waiting(now)
    }

    /// The first of a lane, or one on the connection's own thread who has waited at least half as
    /// long: changing threads costs two wake-ups and two registrations.
    fn take_from(&mut self, context: u64, worker: usize, now: Instant) -> Option<Waiter> {
        let lane = self.lanes.get(&context)?;
        let waited = now.duration_since(lane.first()?.since);
        let near = lane
            .waiters
            .iter()
            .take(SEARCH)
            .take_while(|w| now.duration_since(w.since) * 2 >= waited)
            .position(|w| w.worker == worker && !w.reply.is_closed());
        self.take(context, near.unwrap_or(0))
    }

    /// The contexts whose first session has lost patience, the longest first.
    pub(super) fn impatient(&self, now: Instant) -> Vec<u64> {
        let waited = |since: &Instant| now.saturating_duration_since(*since);
        self.order
            .iter()
            .take_while(|(since, _)| waited(since) >= PATIENCE)
            .filter(|(since, context)| {
                self.lanes.get(context).is_some_and(|lane| waited(since) >= lane.patience())
            })
            .map(|(_, context)| *context)
            .collect()
    }

    /// The first of a context that waits still, if it has lost patience.
    pub(super) fn take_impatient(&mut self, context: u64, now: Instant) -> Option<Waiter> {
        let since = self.prune(context)?;
        let patience = self.lanes.get(&context)?.patience();
        if now.saturating_duration_since(since) < patience { None } else { self.take(context, 0) }
    }

    /// A connection for `route` was made, or could not be: nobody is promised one any more.
    pub(super) fn forget_promises(&mut self, route: &Route) {
        for (_, context) in &self.order {
            for waiter in self.lanes.get_mut(context).into_iter().flat_map(|lane| &mut lane.waiters) {
                waiter.promised &= waiter.route != *route;
            }
        }
    }

    // --- all at once ---

    /// Takes out those that wait for `route`, or all.
    pub(super) fn drain(&mut self, route: Option<&Route>) -> Vec<Waiter> {
        let mut out = Vec::new();
        for (_, context) in std::mem::take(&mut self.order) {
            let Some(lane) = self.lanes.get_mut(&context) else { continue };
            // A context has one route.
            if lane.first().is_some_and(|w| route.is_none_or(|route| w.route == *route)) {
                out.extend(lane.waiters.drain(..));
            } else if let Some(first) = lane.first() {
                self.order.insert((first.since, context));
            }
        }
        out
    }

    /// Forgets those that gave up, and contexts of which there is nothing to know.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.order.clear();
        self.lanes.retain(|context, lane| {
            lane.waiters.retain(|w| !w.reply.is_closed());
            if let Some(first) = lane.first() {
                self.order.insert((first.since, *context));
            }
            let recent = lane.returned.is_some_and(|at| now.saturating_duration_since(at) < SPARE);
            lane.held > 0 || lane.busy > 0 || recent || !lane.waiters.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
