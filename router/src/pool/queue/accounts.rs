//! What each tenant has, and has had, of a pool.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasherDefault;
use std::time::{Duration, Instant};

use switchyard_config::limits::DEFAULT_WEIGHT;

use super::Share;
use crate::statements::IdHasher;

/// One tenant's.
#[derive(Default)]
pub(super) struct Account {
    /// Nanoseconds for which its sessions had connections while somebody waited, divided by its weight.
    pub(super) used: u64,
    /// Its lanes in which somebody waits, by since when the first does.
    pub(super) lanes: BTreeSet<(Instant, u64)>,
    /// Connections that are lent to its sessions.
    busy: u32,
    /// As it was last said.
    weight: u32,
}

impl Account {
    /// What it counts where the pool is divided: nothing if it has and wants no connection.
    fn counts(&self) -> u64 {
        if self.busy > 0 || !self.lanes.is_empty() { u64::from(self.weight) } else { 0 }
    }
}

/// The accounts of all, and those that wait in their order.
#[derive(Default)]
pub(super) struct Accounts {
    each: HashMap<u64, Account, BuildHasherDefault<IdHasher>>,
    /// The tenants of which somebody waits, by what they have used.
    order: BTreeSet<(u64, u64)>,
    /// What the tenant that has used least of those that wait has used: where who comes back begins.
    level: u64,
    /// Connections that are lent.
    busy: u64,
    /// Weight of all that have or want a connection.
    weight: u64,
}

impl Accounts {
    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Those of which somebody waits, who has used least first.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (u64, &Account)> {
        self.order.iter().filter_map(|(_, tenant)| Some((*tenant, self.each.get(tenant)?)))
    }

    pub(super) fn used(&self, tenant: u64) -> u64 {
        self.each.get(&tenant).map_or(0, |account| account.used)
    }

    /// Whether the tenant has less than its part of the connections, one that is to be lent among them, by
    /// at least a whole one.
    pub(super) fn lacks(&self, tenant: u64) -> bool {
        self.each.get(&tenant).is_some_and(|account| {
            u64::from(account.busy + 1) * self.weight <= (self.busy + 1) * u64::from(account.weight)
        })
    }

    fn change(&mut self, tenant: u64, change: impl FnOnce(&mut Account)) {
        let account = self.each.entry(tenant).or_default();
        let before = account.counts();
        change(account);
        self.weight = self.weight + account.counts() - before;
    }

    pub(super) fn lent(&mut self, share: Share) {
        self.busy += 1;
        self.change(share.tenant, |account| {
            account.busy += 1;
            account.weight = share.weight;
        });
    }

    /// A connection that was lent is so no more.
    pub(super) fn ended(&mut self, tenant: u64) {
        self.busy = self.busy.saturating_sub(1);
        self.change(tenant, |account| account.busy = account.busy.saturating_sub(1));
    }

    /// Charges a tenant for `more`, of what it has paid for `less` before.
    pub(super) fn charge(&mut self, share: Share, more: Duration, less: Duration) {
        let level = self.level;
        let account = self.each.entry(share.tenant).or_default();
        let waits = !account.lanes.is_empty();
        let used = if waits { account.used } else { account.used.max(level) };
        let used = used.saturating_add(cost(more, share.weight)).saturating_sub(cost(less, share.weight));
        let before = std::mem::replace(&mut account.used, used);
        if waits {
            self.order.remove(&(before, share.tenant));
            self.order.insert((used, share.tenant));
        }
    }

    /// Somebody is served: who comes back from now on begins no lower than those that wait are.
    pub(super) fn raise_level(&mut self) {
        if let Some((least, _)) = self.order.first() {
            self.level = self.level.max(*least);
        }
    }

    /// Notes that somebody waits in a lane, the first since `since`.
    pub(super) fn list(&mut self, share: Share, since: Instant, lane: u64) {
        let level = self.level;
        let mut begins = None;
        self.change(share.tenant, |account| {
            if account.lanes.is_empty() {
                account.used = account.used.max(level);
                begins = Some(account.used);
            }
            account.lanes.insert((since, lane));
            account.weight = share.weight;
        });
        self.order.extend(begins.map(|used| (used, share.tenant)));
    }

    pub(super) fn unlist(&mut self, share: Share, since: Instant, lane: u64) {
        let mut ends = None;
        self.change(share.tenant, |account| {
            account.lanes.remove(&(since, lane));
            ends = account.lanes.is_empty().then_some(account.used);
        });
        if let Some(used) = ends {
            self.order.remove(&(used, share.tenant));
        }
    }

    /// Nobody waits, until listed again.
    pub(super) fn unlist_all(&mut self) {
        self.order.clear();
        self.each.values_mut().for_each(|account| account.lanes.clear());
        self.weight = self.each.values().map(Account::counts).sum();
    }

    /// Forgets those about whom there is nothing to know.
    pub(super) fn tidy(&mut self) {
        let level = self.level;
        self.each.retain(|_, a| a.used > level || !a.lanes.is_empty() || a.busy > 0);
    }

    /// Panics unless the sums are those of the accounts, and those that wait are in order.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert_eq!(self.busy, self.each.values().map(|account| u64::from(account.busy)).sum::<u64>());
        assert_eq!(self.weight, self.each.values().map(Account::counts).sum::<u64>());
        let waiting = self.each.iter().filter(|(_, account)| !account.lanes.is_empty());
        assert_eq!(waiting.map(|(tenant, a)| (a.used, *tenant)).collect::<BTreeSet<_>>(), self.order);
    }
}

/// What it costs a tenant of this weight to have a connection for so long.
pub(super) fn cost(took: Duration, weight: u32) -> u64 {
    let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    nanos.saturating_mul(u64::from(DEFAULT_WEIGHT)) / u64::from(weight.max(1))
}
