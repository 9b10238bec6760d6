//! What SHOW STATS counts, and its averages over the last period.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::shared::Shared;
use crate::stats::ShardAccount;

/// Numbers of a row.
pub(super) const COUNTS: usize = 12;

/// The numbers of one database, in PgBouncer's order: `server_assignment_count`, `xact_count`, `query_count`, bytes
/// received, bytes sent, `xact_time`, `query_time`, `wait_time`, `client_parse_count`, `server_parse_count`,
/// `bind_count`, `client_login_count`. Times are in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Numbers(pub(super) [u64; COUNTS]);

const ASSIGNMENTS: usize = 0;
const XACTS: usize = 1;
const QUERIES: usize = 2;
const XACT_TIME: usize = 5;
const QUERY_TIME: usize = 6;
const WAIT_TIME: usize = 7;

impl Numbers {
    pub(super) fn add(&mut self, other: &Self) {
        for (to, from) in self.0.iter_mut().zip(other.0) {
            *to += from;
        }
    }

    fn of(account: &ShardAccount) -> Self {
        let (counts, busy_us) = account.transactions.read();
        Self([
            account.assignments.get(),
            counts.iter().sum(),
            account.statements.get(),
            account.bytes_in.get(),
            account.bytes_out.get(),
            busy_us,
            // Statements are not timed one by one: this is how long connections were lent for them.
            busy_us,
            account.wait_us.get(),
            account.parses.get(),
            account.server_parses.get(),
            account.binds.get(),
            account.logins.get(),
        ])
    }

    /// What happened between `earlier` and this: counts per second; times per transaction, per query, and per
    /// connection lent. // src/stats.c of PgBouncer, calc_average
    fn average(&self, earlier: &Self, us: u64) -> Self {
        let since: [u64; COUNTS] = std::array::from_fn(|i| self.0[i].saturating_sub(earlier.0[i]));
        let per = |time: usize, count: usize| since[time].checked_div(since[count]).unwrap_or(0);
        Self(std::array::from_fn(|i| match i {
            XACT_TIME => per(XACT_TIME, XACTS),
            QUERY_TIME => per(QUERY_TIME, QUERIES),
            WAIT_TIME => per(WAIT_TIME, ASSIGNMENTS),
            _ => (u128::from(since[i]) * 1_000_000).checked_div(us.into()).unwrap_or(0) as u64,
        }))
    }
}

/// Numbers by database: those of shards by the shard's name, those of the console by none.
pub(super) type ByShard = BTreeMap<Option<String>, Numbers>;

/// What has been counted since the process began.
pub(super) fn totals(shared: &Shared) -> ByShard {
    let mut all = ByShard::new();
    shared.stats.each_shard(|shard, accounts| {
        let mut sum = Numbers::default();
        accounts.iter().for_each(|account| sum.add(&Numbers::of(account)));
        all.insert(Some(shard.as_str().to_owned()), sum);
    });
    let own = &shared.console.counts;
    let (commands, us) = (own.commands.get(), own.command_us.get());
    let (bytes_in, bytes_out, logins) = (own.bytes_in.get(), own.bytes_out.get(), own.logins.get());
    all.insert(None, Numbers([0, commands, commands, bytes_in, bytes_out, us, us, 0, 0, 0, 0, logins]));
    all
}

/// The averages of the last period that is over; before the first is, of the time so far.
#[derive(Default)]
pub(super) struct Periods {
    began: Option<Instant>,
    at_beginning: ByShard,
    last: Option<ByShard>,
}

impl Periods {
    pub(super) fn tick(&mut self, shared: &Shared) {
        let Some(began) = self.began else {
            self.began = Some(Instant::now());
            self.at_beginning = totals(shared);
            return;
        };
        if began.elapsed() >= shared.settings().console.stats_period {
            let now = totals(shared);
            self.last = Some(self.averages_until(&now));
            self.at_beginning = now;
            self.began = Some(Instant::now());
        }
    }

    fn averages_until(&self, now: &ByShard) -> ByShard {
        let us = self.began.map_or(0, |began| began.elapsed().as_micros() as u64);
        let average = |name: &Option<String>, numbers: &Numbers| {
            numbers.average(&self.at_beginning.get(name).copied().unwrap_or_default(), us)
        };
        now.iter().map(|(name, numbers)| (name.clone(), average(name, numbers))).collect()
    }

    /// The averages, where `now` are the totals.
    pub(super) fn averages(&self, now: &ByShard) -> ByShard {
        self.last.clone().unwrap_or_else(|| self.averages_until(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_per_second_and_per_piece() {
        let earlier = Numbers([10, 10, 10, 0, 0, 1000, 1000, 1000, 0, 0, 0, 0]);
        let now = Numbers([20, 30, 50, 4000, 2000, 3000, 5000, 1500, 0, 0, 0, 2]);
        let average = now.average(&earlier, 2_000_000);
        assert_eq!(average.0, [5, 10, 20, 2000, 1000, 100, 100, 50, 0, 0, 0, 1]);
        assert_eq!(earlier.average(&now, 0).0, [0; COUNTS]);
    }
}
