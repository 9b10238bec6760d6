//! Guessing of passwords is slow, and locks nobody out.
//!
//! Failures are counted for each user and address, and for each user from everywhere. Beyond a few,
//! the answer to a proof is held back, right or wrong, for a time that doubles with each failure.
//! An address from which a user has logged in before is held back for a moment only, so that a
//! stranger behind the same address, or anywhere, cannot keep a known-good pair out. Nobody is ever
//! refused for the number of failures.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Users and addresses that are remembered; beyond it, the oldest are forgotten.
const REMEMBERED: usize = 20_000;
/// After this long without a failure, all is forgiven.
const MEMORY: Duration = Duration::from_secs(600);
/// The time that the first failure beyond the free ones costs.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest that an answer is held back. Well within the deadline of a login.
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// The same, where the user has logged in from that address before.
const DELAY_OF_KNOWN: Duration = Duration::from_millis(200);
/// Failures of a user from everywhere weigh this much less than those from one address.
const EVERYWHERE: u32 = 10;

/// See the module.
#[derive(Default)]
pub(crate) struct Guessing {
    hasher: RandomState,
    state: Mutex<HashMap<u64, Entry>>,
}

#[derive(Clone, Copy)]
struct Entry {
    failures: u32,
    last: Instant,
    /// The pair has logged in.
    known: bool,
}

impl Guessing {
    fn keys(&self, login: &str, address: Option<IpAddr>) -> (u64, u64) {
        // Of names that strangers choose nothing is kept but a hash.
        (self.hasher.hash_one((login, address)), self.hasher.hash_one((login, "everywhere")))
    }

    /// How long the answer to a proof is to be held back. `free` failures cost nothing; 0 switches
    /// it off.
    pub(crate) fn delay(&self, login: &str, address: Option<IpAddr>, free: u32) -> Duration {
        if free == 0 {
            return Duration::ZERO;
        }
        let (pair, user) = self.keys(login, address);
        let state = self.state.lock();
        let now = Instant::now();
        let of = |key| state.get(&key).copied().filter(|e: &Entry| now.duration_since(e.last) < MEMORY);
        let known = state.get(&pair).is_some_and(|e| e.known);
        let pair = delay_of(of(pair).map_or(0, |e| e.failures), free);
        let user = delay_of(of(user).map_or(0, |e| e.failures), free.saturating_mul(EVERYWHERE));
        if known { pair.min(DELAY_OF_KNOWN) } else { pair.max(user) }
    }

    /// A proof was no good.
    pub(crate) fn failed(&self, login: &str, address: Option<IpAddr>) {
        let (pair, user) = self.keys(login, address);
        let now = Instant::now();
        let mut state = self.state.lock();
        for key in [pair, user] {
            make_room(&mut state, now);
            let entry = state.entry(key).or_insert(Entry { failures: 0, last: now, known: false });
            if now.duration_since(entry.last) >= MEMORY {
                entry.failures = 0;
            }
            entry.failures = entry.failures.saturating_add(1);
            entry.last = now;
        }
    }

    /// A proof was good.
    pub(crate) fn succeeded(&self, login: &str, address: Option<IpAddr>) {
        let (pair, _) = self.keys(login, address);
        let now = Instant::now();
        let mut state = self.state.lock();
        make_room(&mut state, now);
        state.insert(pair, Entry { failures: 0, last: now, known: true });
    }
}

fn delay_of(failures: u32, free: u32) -> Duration {
    match failures.checked_sub(free) {
        None => Duration::ZERO,
        Some(beyond) => FIRST_DELAY.saturating_mul(1 << beyond.min(10)).min(LONGEST_DELAY),
    }
}

fn make_room(state: &mut HashMap<u64, Entry>, now: Instant) {
    if state.len() < REMEMBERED {
        return;
    }
    state.retain(|_, entry| entry.known || now.duration_since(entry.last) < MEMORY);
    if state.len() >= REMEMBERED {
        // Flooded: those that count least go first, and the older half of the rest.
        let mut ages: Vec<_> = state.values().map(|e| (e.known, e.failures, e.last)).collect();
        ages.sort_unstable();
        let middle = ages[ages.len() / 2];
        state.retain(|_, e| (e.known, e.failures, e.last) > middle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, n]))
    }

    #[test]
    fn it_becomes_slow_and_forgives_who_knows() {
        let g = Guessing::default();
        for _ in 0..5 {
            assert_eq!(g.delay("app.acme", address(1), 5), Duration::ZERO);
            g.failed("app.acme", address(1));
        }
        assert_eq!(g.delay("app.acme", address(1), 5), FIRST_DELAY);
        (0..40).for_each(|_| g.failed("app.acme", address(1)));
        assert_eq!(g.delay("app.acme", address(1), 5), LONGEST_DELAY);
        // Another tenant, or user, is another name.
        assert_eq!(g.delay("app.globex", address(1), 5), Duration::ZERO);
        // From elsewhere it takes more failures.
        assert_eq!(g.delay("app.acme", address(2), 5), Duration::ZERO);
        (0..20).for_each(|_| g.failed("app.acme", address(1)));
        assert!(g.delay("app.acme", address(2), 5) > Duration::ZERO);
        g.succeeded("app.acme", address(2));
        (0..100).for_each(|_| g.failed("app.acme", address(2)));
        assert_eq!(g.delay("app.acme", address(2), 5), DELAY_OF_KNOWN);
        assert_eq!(g.delay("app.acme", address(1), 0), Duration::ZERO);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_known_stays() {
        let g = Guessing::default();
        g.succeeded("app.acme", address(1));
        for n in 0..3 * REMEMBERED {
            g.failed(&format!("nobody{n}"), address(2));
        }
        assert!(g.state.lock().len() <= REMEMBERED + 2);
        (0..100).for_each(|_| g.failed("app.acme", address(1)));
        assert_eq!(g.delay("app.acme", address(1), 5), DELAY_OF_KNOWN);
    }
}
