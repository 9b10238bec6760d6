//! Who waits for a connection, and who is next.
//!
//! A connection that served another tenant has to be cleaned and told the new context, and the server
//! has to plan every statement anew: that costs more than most transactions. So where connections are
//! in demand, a session takes another tenant's only if that tenant has more of them, or none of its own
//! is about to come back. For how long it waits is bounded by [`PATIENCE_MAX`].
//!
//! Where there are fewer connections than sessions that want one, they are divided between the tenants that
//! have or want some, by weight. A tenant that lacks a whole one of its part is next. So one with few clients,
//! which never has all of them waiting, gets its part at once beside one with many. And its connection is kept
//! for it for the moment that its clients take to ask again, where that is short beside their transactions:
//! else each of them would change hands twice.
//!
//! Between others decides the time for which each has had connections, divided by its weight: the tenant that
//! has had least is next. The time counts only while somebody waits, and a tenant that comes back after a pause
//! begins where the others stand: it neither pays for what nobody else wanted nor saves up a claim.
//!
//! Nothing here knows connections or clocks: the pool says what happens and when.

mod accounts;

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::time::{Duration, Instant};

use switchyard_config::TenantId;
use tokio::sync::oneshot;

use self::accounts::{Accounts, cost};
use super::{PoolError, Want};
use crate::server::{Route, Server};
use crate::statements::IdHasher;

/// The shortest time that a session waits for a connection of its own tenant rather than take another's.
/// Tokio's timers are no finer.
pub(super) const PATIENCE: Duration = Duration::from_millis(1);

/// The longest, where the tenant's transactions are slow or the machine is.
pub(super) const PATIENCE_MAX: Duration = Duration::from_millis(10);

/// Between the two, so many of its tenant's transactions.
const PATIENCE_TURNS: u32 = 6;

/// Sessions that wait for each connection of their tenant, before one takes another's.
const CROWD: usize = 4;

/// Nobody's tenant misses a connection that has been idle for this long.
const SPARE: Duration = Duration::from_millis(20);

/// By so many of its transactions a tenant may get ahead of the others before its connection goes to one
/// of them: each change costs a handover.
const AHEAD_TURNS: u32 = 6;

/// But by no more than this: a handover costs fractions of a millisecond, however long transactions take.
const AHEAD_MAX: Duration = Duration::from_millis(3);

/// By so many, where the connections are divided as evenly between the two as whole ones can be: then a
/// change only swaps who has one more.
const AHEAD_EVEN_TURNS: u32 = 100;

/// But by no more than this.
const AHEAD_EVEN_MAX: Duration = Duration::from_millis(100);

/// A connection is kept for its tenant only if that asks again, on average, within this part of the time that its
/// transactions take: no more of its share of the pool is idle for it.
const KEEP_PART: u32 = 8;

/// And for no longer than this.
const KEEP_MAX: Duration = PATIENCE_MAX;

/// How far behind the first somebody is looked for whom a connection suits better.
const SEARCH: usize = 64;

/// A session that waits.
pub(super) struct Waiter {
    pub(super) reply: oneshot::Sender<Result<Box<Server>, PoolError>>,
    pub(super) route: Route,
    pub(super) context: u64,
    pub(super) share: Share,
    pub(super) wishes: u64,
    pub(super) session: u64,
    pub(super) worker: usize,
    pub(super) tenant: Option<TenantId>,
    pub(super) since: Instant,
    /// A connection for its route is being made in the place of one that was closed for it.
    pub(super) promised: bool,
    /// What its tenant was charged when its turn came: what its transactions take on average.
    pub(super) charged: Duration,
}

/// Whose share of the pool a session counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Number of the tenant, given out by this process.
    pub(crate) tenant: u64,
    /// Relative to others; never 0.
    pub(crate) weight: u32,
}

/// A connection that is lent.
pub(super) struct Loan {
    pub(super) context: u64,
    pub(super) share: Share,
    pub(super) since: Instant,
    /// What the tenant has been charged for it already.
    pub(super) charged: Duration,
}

impl Waiter {
    /// One who waits from now on, and where its answer will be.
    pub(super) fn new(want: &Want<'_>) -> (Self, oneshot::Receiver<Result<Box<Server>, PoolError>>) {
        let (reply, answer) = oneshot::channel();
        let waiter = Self {
            reply,
            route: want.route.clone(),
            context: want.context,
            share: want.share,
            wishes: want.wishes,
            session: want.session,
            worker: want.worker,
            tenant: want.tenant.cloned(),
            since: want.now,
            promised: false,
            charged: Duration::ZERO,
        };
        (waiter, answer)
    }
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
    /// Nobody has asked since then.
    unasked: bool,
    /// After how long somebody asked again lately, on average.
    gap: Duration,
    /// For how long they were lent lately, on average.
    turn: Duration,
    /// Whose it is.
    tenant: u64,
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

    /// Somebody asks for a connection.
    fn asks(&mut self, now: Instant) {
        if std::mem::take(&mut self.unasked)
            && let Some(returned) = self.returned
        {
            let gap = now.saturating_duration_since(returned).min(KEEP_MAX * 2);
            self.gap = (self.gap * 7 + gap) / 8;
        }
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
    accounts: Accounts,
}

impl Queue {
    // --- what is lent ---

    /// A connection that carried `carried` was lent, and carries the context of the session now.
    pub(super) fn lent(&mut self, carried: u64, loan: &Loan) {
        if carried != loan.context {
            self.carries(carried, loan.context);
        }
        let lane = self.lanes.entry(loan.context).or_default();
        lane.busy += 1;
        lane.tenant = loan.share.tenant;
        lane.asks(loan.since);
        self.accounts.lent(loan.share);
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

    /// A connection came back.
    pub(super) fn returned(&mut self, loan: &Loan, now: Instant) {
        let took = now.saturating_duration_since(loan.since);
        if let Some(lane) = self.lanes.get_mut(&loan.context) {
            lane.busy = lane.busy.saturating_sub(1);
            lane.returned = Some(now);
            lane.unasked = true;
            lane.turn = (lane.turn * 7 + took) / 8;
        }
        self.accounts.ended(loan.share.tenant);
        if !self.is_empty() {
            self.accounts.charge(loan.share, took, loan.charged);
        }
    }

    /// A tenant does not get what it was charged for.
    pub(super) fn refund(&mut self, share: Share, charged: Duration) {
        if !charged.is_zero() {
            self.accounts.charge(share, Duration::ZERO, charged);
        }
    }

    /// It will not come back.
    pub(super) fn lost(&mut self, context: u64, share: Share) {
        if let Some(lane) = self.lanes.get_mut(&context) {
            lane.busy = lane.busy.saturating_sub(1);
        }
        self.accounts.ended(share.tenant);
    }

    /// Connections that carry this context, idle or lent.
    pub(super) fn held(&self, context: u64) -> u32 {
        self.lanes.get(&context).map_or(0, |lane| lane.held)
    }

    // --- who waits ---

    pub(super) fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// The lanes in which somebody waits, with since when.
    fn waiting_lanes(&self) -> impl Iterator<Item = (Instant, u64)> {
        self.accounts.waiting().flat_map(|(_, account)| account.lanes.iter().copied())
    }

    /// Sessions that wait, without those that gave up.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Waiter> {
        let lanes = self.waiting_lanes().filter_map(|(_, context)| self.lanes.get(&context));
        lanes.flat_map(|lane| &lane.waiters).filter(|w| !w.reply.is_closed())
    }

    /// How many there are of these.
    pub(super) fn len(&self) -> usize {
        self.iter().count()
    }

    /// How many wait, or have given up since the last [`Queue::tidy`], but no more than `limit`.
    pub(super) fn len_up_to(&self, limit: usize) -> usize {
        let mut sum = 0;
        for (_, context) in self.waiting_lanes() {
            sum += self.lanes.get(&context).map_or(0, |lane| lane.waiters.len());
            if sum >= limit {
                return limit;
            }
        }
        sum
    }

    /// Since when the first has waited.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.waiting_lanes().map(|(since, _)| since).min()
    }

    /// The route of who is next.
    pub(super) fn first_route(&self) -> Option<&Route> {
        let (_, context) = self.waiting_lanes().next()?;
        self.lanes.get(&context)?.first().map(|w| &w.route)
    }

    /// Whether a session of this context does better to wait for a connection of its own than to take
    /// an idle one that carries `other`.
    pub(super) fn is_worth_waiting(&self, context: u64, other: u64, now: Instant) -> bool {
        let Some(lane) = self.lanes.get(&context) else { return false };
        self.held(other) <= lane.held + 1 && lane.is_worth_waiting(now)
    }

    pub(super) fn push(&mut self, waiter: Waiter) {
        let lane = self.lanes.entry(waiter.context).or_default();
        let first = lane.waiters.is_empty().then_some((waiter.share, waiter.since, waiter.context));
        lane.asks(waiter.since);
        lane.waiters.push_back(waiter);
        if let Some((share, since, context)) = first {
            self.accounts.list(share, since, context);
        }
    }

    /// Puts one back that was taken out.
    pub(super) fn push_first(&mut self, mut waiter: Waiter) {
        self.refund(waiter.share, std::mem::take(&mut waiter.charged));
        let (share, since, context) = (waiter.share, waiter.since, waiter.context);
        let lane = self.lanes.entry(context).or_default();
        let before = lane.first().map(|first| (first.share, first.since));
        lane.waiters.push_front(waiter);
        if let Some((share, since)) = before {
            self.accounts.unlist(share, since, context);
        }
        self.accounts.list(share, since, context);
    }

    fn take(&mut self, context: u64, at: usize) -> Option<Waiter> {
        let lane = self.lanes.get_mut(&context)?;
        let waiter = lane.waiters.remove(at)?;
        if at == 0 {
            let next = lane.first().map(|first| (first.share, first.since));
            self.accounts.unlist(waiter.share, waiter.since, context);
            if let Some((share, since)) = next {
                self.accounts.list(share, since, context);
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

    /// Until when a connection that has come back just now is kept for its tenant, although others wait: one that
    /// lacks some has none waiting, but will soon.
    pub(super) fn keeps(&self, context: u64, now: Instant) -> Option<Instant> {
        let lane = self.lanes.get(&context)?;
        let soon = lane.gap * KEEP_PART <= lane.turn && lane.gap * 2 <= KEEP_MAX;
        let came = lane.unasked && lane.returned == Some(now) && lane.waiters.is_empty();
        (soon && came && self.accounts.lacks(lane.tenant)).then(|| now + (lane.gap * 2).max(PATIENCE))
    }

    /// Who gets a connection that has come back.
    ///
    /// A tenant that lacks one of its part, else the one that has used least, but for their sessions that still
    /// do better to wait for a connection of their own; of one tenant, who has waited longest. The connection
    /// stays with the tenant that it served last, unless another lacks one and that does not, or that is ahead
    /// of the others by more than [`AHEAD_TURNS`].
    pub(super) fn next(&mut self, offer: &Offer<'_>, now: Instant) -> Option<Waiter> {
        let own = self.prune(offer.context);
        let least = loop {
            let Some((since, context)) = self.find(offer, now) else { break None };
            // Each time round, somebody who has given up is gone.
            if self.prune(context) == Some(since) {
                break Some(context);
            }
        };
        let context = match (own, least) {
            (Some(own), Some(least)) if !self.stays(offer.context, own, least, now) => least,
            (Some(_), _) => offer.context,
            (None, Some(least)) => least,
            (None, None) => return None,
        };
        let mut waiter = self.take_from(context, offer.worker, now)?;
        self.charge_ahead(&mut waiter);
        Some(waiter)
    }

    /// Charges for what a transaction takes on average, so that a tenant that has used little does not get
    /// all connections before the first of them comes back.
    fn charge_ahead(&mut self, waiter: &mut Waiter) {
        self.accounts.raise_level();
        waiter.charged = self.lanes.get(&waiter.context).map_or(Duration::ZERO, |lane| lane.turn);
        self.accounts.charge(waiter.share, waiter.charged, Duration::ZERO);
    }

    /// The lane of the tenant that is next, of those that may have the connection, and since when its first
    /// waits.
    fn find(&self, offer: &Offer<'_>, now: Instant) -> Option<(Instant, u64)> {
        let may_have = |lane: &&(Instant, u64)| self.may_have(lane.1, lane.0, offer, now);
        let lacking = self.accounts.waiting().take(SEARCH).filter(|(tenant, _)| self.accounts.lacks(*tenant));
        let mut first = lacking.flat_map(|(_, account)| account.lanes.iter().take(SEARCH));
        let mut others = self.waiting_lanes().take(SEARCH);
        first.find(may_have).copied().or_else(|| others.find(|lane| may_have(&lane)))
    }

    /// Whether a connection stays with its context, whose first waits since `own`, although that of `least`
    /// may have it.
    fn stays(&self, context: u64, own: Instant, least: u64, now: Instant) -> bool {
        let first = |context| Some((self.lanes.get(&context)?, self.lanes.get(&context)?.first()?));
        let (Some((lane, waiter)), Some((_, other))) = (first(context), first(least)) else { return true };
        let (mine, its) = (waiter.share, other.share);
        if mine.tenant == its.tenant {
            // Between sessions of one tenant that differ in user or role, time decides.
            return now.saturating_duration_since(own) * 2 >= now.saturating_duration_since(other.since);
        }
        if self.accounts.lacks(its.tenant) && !self.accounts.lacks(mine.tenant) {
            return false;
        }
        let usual = (lane.turn * AHEAD_TURNS).min(AHEAD_MAX);
        let allowed = match self.is_even(context, mine, least, its) {
            true => (lane.turn * AHEAD_EVEN_TURNS).min(AHEAD_EVEN_MAX).max(usual),
            false => usual,
        };
        let ahead = self.accounts.used(mine.tenant).saturating_sub(self.accounts.used(its.tenant));
        ahead <= cost(allowed, mine.weight)
    }

    /// Whether one context holds no more connections than another, which has some, would with one more, by
    /// their weights.
    fn is_even(&self, context: u64, share: Share, other: u64, its: Share) -> bool {
        let held = |context, extra| u64::from(self.held(context) + extra);
        held(other, 0) > 0
            && held(context, 0) * u64::from(its.weight) <= held(other, 1) * u64::from(share.weight)
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

    /// The contexts whose first session has lost patience, those of the tenants that have used least first.
    pub(super) fn impatient(&self, now: Instant) -> Vec<u64> {
        let lost = |since: Instant, context: &u64| {
            let patience = self.lanes.get(context).map_or(Duration::MAX, Lane::patience);
            now.saturating_duration_since(since) >= patience
        };
        self.waiting_lanes().filter(|(since, context)| lost(*since, context)).map(|(_, c)| c).collect()
    }

    /// The first of a context that waits still, if it has lost patience.
    pub(super) fn take_impatient(&mut self, context: u64, now: Instant) -> Option<Waiter> {
        let since = self.prune(context)?;
        let patience = self.lanes.get(&context)?.patience();
        if now.saturating_duration_since(since) < patience { None } else { self.take(context, 0) }
    }

    /// A connection for `route` was made, or could not be: nobody is promised one any more.
    pub(super) fn forget_promises(&mut self, route: &Route) {
        for lane in self.lanes.values_mut() {
            for waiter in &mut lane.waiters {
                waiter.promised &= waiter.route != *route;
            }
        }
    }

    // --- all at once ---

    /// Takes out those that wait for `route`, or all.
    pub(super) fn drain(&mut self, route: Option<&Route>) -> Vec<Waiter> {
        let mut out = Vec::new();
        for lane in self.lanes.values_mut() {
            // A context has one route.
            if lane.first().is_some_and(|w| route.is_none_or(|route| w.route == *route)) {
                out.extend(lane.waiters.drain(..));
            }
        }
        self.list_all();
        out
    }

    /// Forgets those that gave up, and what there is no need to know.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.lanes.retain(|_, lane| {
            lane.waiters.retain(|w| !w.reply.is_closed());
            let recent = lane.returned.is_some_and(|at| now.saturating_duration_since(at) < SPARE);
            lane.held > 0 || lane.busy > 0 || recent || !lane.waiters.is_empty()
        });
        self.list_all();
        self.accounts.tidy();
    }

    fn list_all(&mut self) {
        self.accounts.unlist_all();
        let firsts = self.lanes.iter().filter_map(|(context, lane)| {
            let first = lane.first()?;
            Some((first.share, first.since, *context))
        });
        for (share, since, context) in firsts.collect::<Vec<_>>() {
            self.accounts.list(share, since, context);
        }
    }
}

#[cfg(test)]
mod tests;
