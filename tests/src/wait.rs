//! Waiting for conditions.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// After this long a condition is taken as never coming. Generous, as machines are shared.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// Asks `condition` until it answers `Some`, and returns the answer.
///
/// # Panics
/// If it does not within [`DEADLINE`]; `what` says what was waited for.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = condition() {
            return answer;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks `condition` until it holds.
///
/// # Panics
/// If it does not within [`DEADLINE`].
pub fn until_true(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, || condition().then_some(()));
}

/// Tells threads of a scope to stop when it is dropped. A scope waits for all its threads, also when the test has
/// failed: one whose threads are told so by its last line alone would never end.
#[derive(Debug)]
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
