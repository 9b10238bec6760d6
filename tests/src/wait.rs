//! Waiting for conditions.

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
