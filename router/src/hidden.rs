//! What a database runs behind the texts of statements: triggers, views, rules, operators, defaults, policies.
//!
//! A function that sets, locks or makes something for the session is loud. Where one can be reached otherwise than by
//! its name in a statement, a connection is asked after each transaction that may have reached it. Which databases
//! have such functions is read from their catalogs ([`look::LOOK`]), by a session that has just used the database: at first,
//! after [`AGE`], and after statements by this router that may have changed it.
//!
//! Nothing between tenants depends on this: a connection is cleaned whatever has run on it.

pub(crate) mod look;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long what was read of a database is believed: what others change there is noticed so much later.
const AGE: Duration = Duration::from_secs(10);

/// Time between attempts to read it, where that fails.
const RETRY: Duration = Duration::from_secs(1);

/// Reads.
pub(crate) const READS: u8 = 1;

/// Writes, or may.
pub(crate) const WRITES: u8 = 2;

/// May change what is behind the texts of others.
pub(crate) const DEFINES: u8 = 4;

/// In [`Hidden::state`]: it was read.
const KNOWN: u8 = 8;

/// What is known of one database.
#[derive(Debug)]
pub(crate) struct Hidden {
    /// [`KNOWN`], and which of [`READS`] and [`WRITES`] may reach something loud.
    state: AtomicU8,
    /// Transactions under way that may change it: until they are over, nothing is known.
    disturbed: AtomicU32,
    /// Rises with each of these: what was read before is not believed after it.
    version: AtomicU64,
    /// When it is to be read next, in milliseconds since `since`.
    next: AtomicU64,
    since: Instant,
    /// Settings that loud functions name.
    names: Mutex<Arc<[String]>>,
}

impl Default for Hidden {
    fn default() -> Self {
        Self {
            state: AtomicU8::new(0),
            disturbed: AtomicU32::new(0),
            version: AtomicU64::new(0),
            next: AtomicU64::new(0),
            since: Instant::now(),
            names: Mutex::new(Arc::from([])),
        }
    }
}

impl Hidden {
    /// Whether a statement that does `what` may leave something that its text does not show; also where that is not
    /// known.
    #[inline]
    pub(crate) fn is_loud(&self, what: u8) -> bool {
        if what == 0 {
            return false;
        }
        let state = self.state.load(Ordering::Acquire);
        state & KNOWN == 0 || state & what & (READS | WRITES) != 0
    }

    /// Whether it is known that a statement that does `what` may do so.
    #[inline]
    pub(crate) fn is_known_loud(&self, what: u8) -> bool {
        let state = self.state.load(Ordering::Acquire);
        state & KNOWN != 0 && state & what & (READS | WRITES) != 0
    }

    /// Nothing is known.
    pub(crate) fn is_unknown(&self) -> bool {
        !self.is_known()
    }

    fn is_known(&self) -> bool {
        self.state.load(Ordering::Acquire) & KNOWN != 0
    }

    /// Whether it is time to read it, by whoever asks: of what is known one is told so, of what is not known everybody.
    #[inline]
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.since).as_millis() as u64;
        let next = self.next.load(Ordering::Relaxed);
        if now < next {
            return false;
        }
        let after = now + AGE.as_millis() as u64;
        !self.is_known()
            || self.next.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The version that a look which begins now sees.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// A look that began at `version` has an answer: which statements may reach something loud, and the settings that
    /// are named there.
    pub(crate) fn learn(&self, version: u64, loud: u8, names: Vec<String>) {
        *self.names.lock() = names.into();
        if self.version() == version && self.disturbed.load(Ordering::Acquire) == 0 {
            self.state.store(KNOWN | loud, Ordering::Release);
            self.put_off(AGE);
        }
    }

    /// A look has failed.
    pub(crate) fn failed(&self) {
        self.put_off(RETRY);
    }

    fn put_off(&self, time: Duration) {
        let now = self.since.elapsed();
        self.next.store((now + time).as_millis() as u64, Ordering::Relaxed);
    }

    /// Settings that loud functions name.
    pub(crate) fn names(&self) -> Arc<[String]> {
        self.names.lock().clone()
    }
}

/// A transaction that may change what a database has behind the texts of others.
#[derive(Debug)]
pub(crate) struct Disturbance(Arc<Hidden>);

impl Disturbance {
    /// From here on nothing is known, until one that looks after its end knows.
    pub(crate) fn begin(hidden: &Arc<Hidden>) -> Self {
        hidden.disturbed.fetch_add(1, Ordering::AcqRel);
        hidden.version.fetch_add(1, Ordering::AcqRel);
        hidden.state.store(0, Ordering::Release);
        hidden.next.store(0, Ordering::Relaxed);
        Self(hidden.clone())
    }
}

impl Drop for Disturbance {
    fn drop(&mut self) {
        self.0.version.fetch_add(1, Ordering::AcqRel);
        self.0.disturbed.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_believed_while_somebody_changes_it() {
        let hidden = Arc::new(Hidden::default());
        assert!(hidden.is_loud(READS) && hidden.is_due(Instant::now()) && !hidden.is_loud(0));
        hidden.learn(hidden.version(), WRITES, vec!["app.x".to_owned()]);
        assert!(
            !hidden.is_loud(READS)
                && hidden.is_loud(WRITES)
                && !hidden.is_loud(DEFINES)
                && !hidden.is_known_loud(READS)
        );
        assert!(!hidden.is_due(Instant::now()));
        assert_eq!(hidden.names()[..], ["app.x"]);
        let before = hidden.version();
        let disturbance = Disturbance::begin(&hidden);
        assert!(hidden.is_loud(READS) && hidden.is_due(Instant::now()));
        hidden.learn(hidden.version(), 0, Vec::new());
        assert!(hidden.is_loud(READS), "the change is not over");
        drop(disturbance);
        hidden.learn(before, 0, Vec::new());
        assert!(hidden.is_loud(READS), "it was read before the change");
        hidden.learn(hidden.version(), 0, Vec::new());
        assert!(!hidden.is_loud(READS | WRITES));
        let later = Instant::now() + AGE + Duration::from_secs(1);
        assert!(hidden.is_due(later) && !hidden.is_due(later), "one session looks");
    }
}
