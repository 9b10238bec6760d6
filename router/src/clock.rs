//! A clock in whole seconds, for what need not be exact.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

static SECONDS: AtomicU32 = AtomicU32::new(0);
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Seconds since the process began to serve, as of the last [`tick`].
#[inline]
pub(crate) fn seconds() -> u32 {
    SECONDS.load(Ordering::Relaxed)
}

/// Moves the clock on; called about once a second.
pub(crate) fn tick() {
    let began = BEGAN.get_or_init(Instant::now);
    SECONDS.store(began.elapsed().as_secs() as u32, Ordering::Relaxed);
}
