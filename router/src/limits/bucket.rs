//! So many per second, and so many at once after a pause.

use std::time::{Duration, Instant};

use switchyard_config::limits::Rate;

/// A token bucket, kept as the time at which it is full again (the generic cell rate algorithm).
#[derive(Default)]
pub(super) struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    /// When there is something to be had.
    pub(super) fn ready_at(&self, rate: Rate, now: Instant) -> Instant {
        // One of what the bucket holds has to be there.
        let slack = span(rate, rate.burst.saturating_sub(1));
        let full_at = self.full_at.unwrap_or(now);
        full_at.checked_sub(slack).unwrap_or(now).max(now)
    }

    /// Takes so many, also if they are not there yet.
    pub(super) fn spend(&mut self, rate: Rate, n: u64, now: Instant) {
        self.full_at = Some(self.full_at.unwrap_or(now).max(now) + span(rate, n));
    }
}

/// The time in which so many come.
fn span(rate: Rate, n: u64) -> Duration {
    let nanos = u128::from(n) * 1_000_000_000 / u128::from(rate.per_second.max(1));
    // Two years, so that no sum of them leaves what a clock can hold.
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).min(1 << 56))
}
