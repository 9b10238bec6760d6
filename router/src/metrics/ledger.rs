//! Which tenants have series of their own, and what is counted where.
//!
//! Whatever a tenant does is given to just one series: between two scrapes, either to its own or
//! to `_other`. So no series ever goes backwards, none jumps when a tenant changes sides, and the
//! sum over all rates is what was done. A series that ends keeps what it was given; what it has
//! done since is in `_other`.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use switchyard_config::TenantId;

use crate::stats::TenantStats;

/// Counters per tenant.
const COUNTERS: usize = 11;

/// Time in which an earlier transaction comes to count half when tenants are compared.
const HALF_LIFE: Duration = Duration::from_secs(600);

/// A tenant that has done nothing for this long may lose its series to one that does something.
pub(super) const IDLE: Duration = Duration::from_secs(3600);

/// A series that is shorter than this is not given up for a busier tenant.
pub(super) const HOLD: Duration = Duration::from_secs(900);

/// How many times busier a tenant must be to take over the place of another.
const BUSIER: f64 = 4.0;

/// What a tenant has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals([u64; COUNTERS]);

impl Totals {
    pub(super) fn read(stats: &TenantStats) -> Self {
        let mut totals = Self::default();
        for account in &stats.accounts {
            totals.add(&Self([
                account.transactions.get(),
                account.statements.get(),
                account.errors.get(),
                account.bytes_in.get(),
                account.bytes_out.get(),
                account.busy_us.get(),
                account.wait_us.get(),
                account.waits.get(),
                account.shed.get(),
                account.rows.get(),
                account.limited.get(),
            ]));
        }
        totals
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (to, from) in self.0.iter_mut().zip(other.0) {
            *to += from;
        }
    }

    fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].saturating_sub(earlier.0[i])))
    }

    pub(super) fn transactions(&self) -> u64 {
        self.0[0]
    }

    pub(super) fn statements(&self) -> u64 {
        self.0[1]
    }

    pub(super) fn errors(&self) -> u64 {
        self.0[2]
    }

    pub(super) fn bytes_in(&self) -> u64 {
        self.0[3]
    }

    pub(super) fn bytes_out(&self) -> u64 {
        self.0[4]
    }

    pub(super) fn busy_us(&self) -> u64 {
        self.0[5]
    }

    pub(super) fn wait_us(&self) -> u64 {
        self.0[6]
    }

    pub(super) fn waits(&self) -> u64 {
        self.0[7]
    }

    pub(super) fn shed(&self) -> u64 {
        self.0[8]
    }

    pub(super) fn rows(&self) -> u64 {
        self.0[9]
    }

    pub(super) fn limited(&self) -> u64 {
        self.0[10]
    }
}

/// A tenant as it is found when scraped.
pub(super) struct Reading {
    pub(super) tenant: TenantId,
    pub(super) totals: Totals,
    pub(super) clients: i64,
    /// Whether the topology still has it. One that it has not never has series of its own.
    pub(super) known: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    tenants: HashMap<TenantId, Entry>,
    /// Given to `_other` so far.
    other: Totals,
    /// What tenants did that are counted nowhere any more.
    forgotten: Totals,
    last: Option<Instant>,
}

struct Entry {
    /// At the last scrape.
    seen: Totals,
    /// Since then, and not given to a series yet.
    fresh: Totals,
    /// Given to its own series so far.
    given: Totals,
    clients: i64,
    /// Since when it has series of its own.
    own: Option<Instant>,
    known: bool,
    /// Transactions, of which older ones count less.
    score: f64,
    /// When it last did something or had a client.
    active: Instant,
}

/// What a page shows.
pub(super) struct Page {
    /// Tenants with series of their own, and what these show: counters and clients.
    pub(super) own: Vec<(TenantId, Totals, i64)>,
    /// The same of all others together.
    pub(super) other: (Totals, i64),
    /// How many these are, without those that the topology does not have any more.
    pub(super) folded: usize,
    /// Tenants with a client.
    pub(super) active: usize,
}

impl Ledger {
    /// Takes the readings of all tenants that are counted and says what to show, with at most
    /// `limit` tenants on their own.
    pub(super) fn scrape(&mut self, readings: Vec<Reading>, limit: usize, now: Instant) -> Page {
        self.take(readings, now);
        self.choose(limit, now);
        self.give()
    }

    /// Forgets a tenant that is not counted any more. `last` is its final reading.
    pub(super) fn forget(&mut self, tenant: &TenantId, last: &Totals) {
        self.forgotten.add(last);
        let seen = self.tenants.remove(tenant).map(|entry| entry.seen).unwrap_or_default();
        self.other.add(&last.since(&seen));
    }

    /// What forgotten tenants did.
    pub(super) fn forgotten(&self) -> Totals {
        self.forgotten
    }

    /// Since when a tenant has done nothing and has had no client.
    pub(super) fn idle_since(&self, tenant: &TenantId) -> Option<Instant> {
        self.tenants.get(tenant).map(|entry| entry.active)
    }

    fn take(&mut self, readings: Vec<Reading>, now: Instant) {
        let passed = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        let fade = 0.5_f64.powf(passed.as_secs_f64() / HALF_LIFE.as_secs_f64());
        for reading in readings {
            let entry = self.tenants.entry(reading.tenant).or_insert_with(|| Entry::new(now));
            entry.fresh = reading.totals.since(&entry.seen);
            entry.seen = reading.totals;
            entry.clients = reading.clients;
            entry.known = reading.known;
            entry.score = entry.score * fade + entry.fresh.transactions() as f64;
            if entry.clients > 0 || entry.fresh != Totals::default() {
                entry.active = now;
            }
            if !entry.known {
                entry.own = None;
            }
        }
    }

    /// Decides who has series of its own.
    fn choose(&mut self, limit: usize, now: Instant) {
        let (mut own, mut others): (Vec<_>, Vec<_>) = self
            .tenants
            .iter_mut()
            .filter(|(_, entry)| entry.known)
            .partition(|(_, entry)| entry.own.is_some());
        // The least busy first, and the busiest first; the id makes it the same every time.
        own.sort_by(|(a, x), (b, y)| x.score.total_cmp(&y.score).then_with(|| b.cmp(a)));
        others.sort_by(|(a, x), (b, y)| y.score.total_cmp(&x.score).then_with(|| a.cmp(b)));

        let excess = own.len().saturating_sub(limit);
        own.drain(..excess).for_each(|(_, entry)| entry.own = None);
        let mut others = others.into_iter().map(|(_, entry)| entry);
        for entry in others.by_ref().take(limit - own.len()) {
            entry.own = Some(now);
        }
        own.retain(|(_, entry)| entry.is_idle(now) || entry.has_held(now));
        // Idle ones go first, whatever they once did.
        own.sort_by_key(|(_, entry)| Reverse(entry.is_idle(now)));
        for ((_, holder), other) in own.into_iter().zip(others) {
            let gives_way = match holder.is_idle(now) {
                true => !other.is_idle(now),
                false => other.score > BUSIER * holder.score.max(1.0),
            };
            if gives_way {
                holder.own = None;
                other.own = Some(now);
            }
        }
    }

    /// Gives what is fresh to the series it belongs to.
    fn give(&mut self) -> Page {
        let mut page = Page { own: Vec::new(), other: (Totals::default(), 0), folded: 0, active: 0 };
        for (tenant, entry) in &mut self.tenants {
            let fresh = std::mem::take(&mut entry.fresh);
            page.active += usize::from(entry.clients > 0);
            if entry.own.is_some() {
                entry.given.add(&fresh);
                page.own.push((tenant.clone(), entry.given, entry.clients));
            } else {
                self.other.add(&fresh);
                page.other.1 += entry.clients;
                page.folded += usize::from(entry.known);
            }
        }
        page.other.0 = self.other;
        page
    }
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self {
            seen: Totals::default(),
            fresh: Totals::default(),
            given: Totals::default(),
            clients: 0,
            own: None,
            known: false,
            score: 0.0,
            active: now,
        }
    }

    fn has_held(&self, now: Instant) -> bool {
        self.own.is_some_and(|since| now.saturating_duration_since(since) >= HOLD)
    }

    fn is_idle(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.active) >= IDLE
    }
}

#[cfg(test)]
mod tests;
