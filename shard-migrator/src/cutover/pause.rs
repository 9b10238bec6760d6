//! What is known of how long an attempt took, and where the time went.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How one attempt went. Times are in microseconds since clients were told to wait, unless they say otherwise.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Pause {
    /// When clients were told to wait: microseconds since 1970.
    #[serde(default)]
    pub began_unix_us: u64,
    /// Until the catalog had taken the order to wait.
    #[serde(default)]
    pub ordered_us: u64,
    /// Until each router had said a word.
    #[serde(default)]
    pub heard_us: u64,
    /// From a router's hearing the order to its last open transaction's end, the longest of the routers.
    #[serde(default)]
    pub drain_us: u64,
    /// Until the routers had drained.
    pub drained_us: u64,
    /// Until the freezing was committed.
    pub frozen_us: u64,
    /// Until the freezing had come through the change stream.
    #[serde(default)]
    pub decoded_us: u64,
    /// Until the activation was committed.
    pub active_us: u64,
    /// Until the catalog had taken the order to go on.
    #[serde(default)]
    pub released_us: u64,
    /// Until the attempt was over for all but the record.
    pub total_us: u64,
    /// Longest wait of a client, as the routers saw it.
    pub clients_us: u64,
    /// What no cutover can do without, timed just before it: a commit at the source, its way through the stream, a commit
    /// at the target; the median of a few.
    #[serde(default)]
    pub floor_us: u64,
    /// Clients that waited.
    pub clients: u32,
    /// Routers that took part.
    pub routers: usize,
    /// Routers that should have, and kept silent.
    pub silent: usize,
}

impl Pause {
    pub(super) fn begin(routers: usize, silent: usize, floor: Duration) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { began_unix_us: whole(now), floor_us: whole(floor), routers, silent, ..Self::default() }
    }
}

/// Microseconds since a moment.
pub(super) fn micros(since: Instant) -> u64 {
    whole(since.elapsed())
}

pub(super) fn whole(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
