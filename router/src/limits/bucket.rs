//! So many per second, and so many at once after a pause.

use std::time::{Duration, Instant};

use switchyard_config::limits::Rate;

/// Parts of one that rates are counted in: a router's part of a small rate is no whole number.
pub(super) const PARTS: u64 = 1000;

/// A rate as a bucket takes it, in [`PARTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    per_second: u64,
    /// At least one whole, or nothing would ever pass.
    burst: u64,
}

impl Flow {
    /// Of `rate`, the part that `held` of its [`PARTS`] per second are; all of it if none is said.
    pub(super) fn part(rate: Rate, held: Option<u64>) -> Self {
        let whole = rate.per_second.saturating_mul(PARTS);
        let per_second = held.unwrap_or(whole).min(whole);
        let burst =
            u128::from(rate.burst.saturating_mul(PARTS)) * u128::from(per_second) / u128::from(whole.max(1));
        Self { per_second, burst: u64::try_from(burst).unwrap_or(u64::MAX).max(PARTS) }
    }

    /// The time in which so many parts come.
    fn span(self, parts: u64) -> Duration {
        let nanos = u128::from(parts) * 1_000_000_000 / u128::from(self.per_second.max(1));
        // Two years, so that no sum of them leaves what a clock can hold.
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).min(1 << 56))
    }
}

/// A token bucket, kept as the time at which it is full again (the generic cell rate algorithm).
#[derive(Default)]
pub(super) struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    /// When there is something to be had.
    pub(super) fn ready_at(&self, flow: Flow, now: Instant) -> Instant {
        // One of what the bucket holds has to be there.
        let slack = flow.span(flow.burst.saturating_sub(PARTS));
        let full_at = self.full_at.unwrap_or(now);
        full_at.checked_sub(slack).unwrap_or(now).max(now)
    }

    /// Takes so many, also if they are not there yet.
    pub(super) fn spend(&mut self, flow: Flow, n: u64, now: Instant) {
        self.full_at = Some(self.full_at.unwrap_or(now).max(now) + flow.span(n.saturating_mul(PARTS)));
    }

    /// The rate is another from now on. What is in the bucket stays what it is, so that the buckets of all
    /// routers together never hold more than one would; of a bucket that was `borrowed`, as nobody had said
    /// what this router's part is, only what was taken out stays.
    pub(super) fn change(&mut self, before: Flow, after: Flow, borrowed: bool, now: Instant) {
        if before == after && !borrowed {
            return;
        }
        let owed = self.full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let missing = owed.as_nanos() * u128::from(before.per_second) / 1_000_000_000;
        let missing = u64::try_from(missing).unwrap_or(u64::MAX);
        let missing = match borrowed {
            true => after.burst.saturating_add(missing),
            // Of what it held, as much as fits.
            false => after.burst.saturating_add(missing).saturating_sub(before.burst),
        };
        self.full_at = (missing > 0).then(|| now + after.span(missing));
    }
}
