//! How many cancel requests with unknown keys a network may send: a secret of 32 bits must not be
//! found by trying.

use std::net::IpAddr;
use std::time::Instant;

use dashmap::DashMap;

/// Networks that are remembered; beyond it, those that have been quiet are forgotten.
const NETWORKS: usize = 10_000;

/// A bucket for each network, which holds as many requests as flow in in a second.
#[derive(Default)]
pub(crate) struct Guesses {
    spent: DashMap<IpAddr, (f64, Instant)>,
}

impl Guesses {
    /// Whether a network has no guess left. `rate` is per second.
    pub(crate) fn are_spent(&self, address: IpAddr, rate: u32) -> bool {
        let now = Instant::now();
        self.spent.get(&network(address)).is_some_and(|spent| left(*spent, rate, now) > f64::from(rate) - 1.0)
    }

    /// One more has been made.
    pub(crate) fn spend(&self, address: IpAddr, rate: u32) {
        let now = Instant::now();
        if self.spent.len() >= NETWORKS {
            self.spent.retain(|_, spent| left(*spent, rate, now) > 0.0);
        }
        let mut entry = self.spent.entry(network(address)).or_insert((0.0, now));
        *entry = (left(*entry, rate, now) + 1.0, now);
    }
}

/// What is left of guesses spent earlier.
fn left((spent, since): (f64, Instant), rate: u32, now: Instant) -> f64 {
    (spent - now.duration_since(since).as_secs_f64() * f64::from(rate)).max(0.0)
}

/// The first 24 bits of an IPv4 address, the first 64 of an IPv6 address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & !0xff).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_so_many_guesses() {
        let guesses = Guesses::default();
        let [a, neighbour, b]: [IpAddr; 3] =
            ["192.0.2.1", "192.0.2.200", "198.51.100.1"].map(|a| a.parse().unwrap());
        for _ in 0..50 {
            guesses.spend(a, 10);
        }
        assert!(guesses.are_spent(neighbour, 10));
        assert!(!guesses.are_spent(b, 10));
        let [c, same, other]: [IpAddr; 3] =
            ["2001:db8::1", "2001:db8::ffff:0:1", "2001:db8:0:1::1"].map(|a| a.parse().unwrap());
        (0..50).for_each(|_| guesses.spend(c, 10));
        assert!(guesses.are_spent(same, 10) && !guesses.are_spent(other, 10));
    }

    #[test]
    fn what_is_spent_comes_back() {
        let start = Instant::now();
        let at = |ms| start + std::time::Duration::from_millis(ms);
        assert!((left((10.0, start), 10, at(500)) - 5.0).abs() < 0.01);
        assert!(left((10.0, start), 10, at(5000)).abs() < 0.01);
    }
}
