//! What a database runs behind the texts of statements: triggers, views, rules, operators, defaults, policies.
//!
//! A function that sets, locks or makes something for the session is loud. Where one can be reached otherwise than by
//! its name in a statement, a connection is asked after each transaction that may have reached it. Which databases
//! have such functions is read from their catalogs ([`look::LOOK`]), by a session that has just used the database: at first,
//! after [`AGE`] if the server has counted changes of its catalogs, and after statements by this router that may have changed it.
//!
//! Nothing between tenants depends on this: a connection is cleaned whatever has run on it.

pub(crate) mod look;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long what was read of a database is believed: what others change there is noticed so much later.
const AGE: Duration = Duration::from_secs(10);

/// How long it is believed while nothing seems to have changed: what the server counts of changes may be late, or off.
const AGE_UNCHANGED: Duration = Duration::from_secs(600);

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

/// By how many bits it is further up whether what may be reached by [`READS`] and [`WRITES`] is surely loud.
pub(crate) const SURE: u8 = 4;

/// What is known of one database.
#[derive(Debug)]
pub(crate) struct Hidden {
    /// [`KNOWN`], which of [`READS`] and [`WRITES`] may reach something loud, and [`SURE`] bits above what is sure.
    state: AtomicU8,
    /// Whether anybody asks for `currval` or `lastval`, by a statement's text or in a function.
    last_values: AtomicBool,
    /// Transactions under way that may change it: until they are over, nothing is known.
    disturbed: AtomicU32,
    /// Rises with each of these: what was read before is not believed after it.
    version: AtomicU64,
    /// When it is to be read next, in milliseconds since `since`.
    next: AtomicU64,
    since: Instant,
    /// Settings that loud functions name.
    names: Mutex<Arc<[String]>>,
    /// Functions that are surely loud, in lower case.
    functions: Mutex<Arc<[String]>>,
    /// How many changes the server had counted when it was read, and when that was.
    print: Mutex<Option<(String, Instant)>>,
}

/// What a look has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Which of [`READS`] and [`WRITES`] may reach something loud, and by [`SURE`] further up something surely so.
    pub(crate) loud: u8,
    /// Settings that loud functions name.
    pub(crate) names: Vec<String>,
    /// Functions that are surely loud, in lower case.
    pub(crate) functions: Vec<String>,
    /// Whether a function asks for `currval` or `lastval`.
    pub(crate) last_values: bool,
    /// How many changes of its catalogs the server has counted.
    pub(crate) print: Option<String>,
}

impl Default for Hidden {
    fn default() -> Self {
        Self {
            state: AtomicU8::new(0),
            last_values: AtomicBool::new(false),
            disturbed: AtomicU32::new(0),
            version: AtomicU64::new(0),
            next: AtomicU64::new(0),
            since: Instant::now(),
            names: Mutex::new(Arc::from([])),
            functions: Mutex::new(Arc::from([])),
            print: Mutex::new(None),
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

    /// Whether a statement that does `what`, of this text, surely comes to something that may set, lock or make something
    /// for its session; also where nothing is known. What it has left a few times, or has not, says nothing of the next.
    pub(crate) fn is_sure(&self, what: u8, text: &str) -> bool {
        let state = self.state.load(Ordering::Acquire);
        state & KNOWN == 0 || (state >> SURE) & what & (READS | WRITES) != 0 || self.is_named_in(text)
    }

    fn is_named_in(&self, text: &str) -> bool {
        let functions = self.functions.lock().clone();
        if functions.is_empty() && memchr::memchr2(b'D', b'd', text.as_bytes()).is_none() {
            return false;
        }
        let lower = text.to_ascii_lowercase();
        let has = |word: &str| memchr::memmem::find(lower.as_bytes(), word.as_bytes()).is_some();
        functions.len() > look::FUNCTIONS_MAX
            || functions.iter().any(|name| has(name))
            || (!functions.is_empty() && has("u&\""))
            || (begins_block(&lower) && LOUD_WORDS.iter().any(|word| has(word)))
    }

    /// Whether anybody has asked for `currval` or `lastval`, as far as is known.
    #[inline]
    pub(crate) fn uses_last_values(&self) -> bool {
        self.last_values.load(Ordering::Relaxed)
    }

    /// Somebody asks for them. From here on that is known.
    pub(crate) fn has_used_last_values(&self) {
        self.last_values.store(true, Ordering::Relaxed);
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

    /// A look that began at `version` has an answer.
    pub(crate) fn learn(&self, version: u64, found: Found) {
        let Found { loud, names, functions, last_values, print } = found;
        if last_values {
            self.has_used_last_values();
        }
        *self.names.lock() = names.into();
        *self.functions.lock() = functions.into();
        if self.version() == version && self.disturbed.load(Ordering::Acquire) == 0 {
            self.state.store(KNOWN | loud, Ordering::Release);
            *self.print.lock() = print.map(|print| (print, Instant::now()));
            self.put_off(AGE);
        }
    }

    /// Whether it need not be read again if the server has counted no changes since.
    pub(crate) fn may_be_unchanged(&self) -> bool {
        self.is_known() && self.print.lock().as_ref().is_some_and(|(_, at)| at.elapsed() < AGE_UNCHANGED)
    }

    /// The server has counted so many changes: it is read again, by the next that may, if they are not as many as before.
    pub(crate) fn counted(&self, print: Option<&str>) {
        let mut known = self.print.lock();
        if print.is_some() && known.as_ref().map(|(print, _)| print.as_str()) == print {
            return self.put_off(AGE);
        }
        *known = None;
        self.next.store(0, Ordering::Relaxed);
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

/// What stands in a block (`DO`) that sets, locks or makes something.
const LOUD_WORDS: [&str; 8] = ["set", "lock", "temp", "prepare", "listen", "deallocate", "discard", "load"];

/// Whether a `DO` stands in the text that begins a block.
fn begins_block(lower: &str) -> bool {
    memchr::memmem::find_iter(lower.as_bytes(), b"do").any(|at| {
        let (before, behind) = (lower.as_bytes()[..at].last(), lower[at + 2..].trim_start());
        let is_word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        !before.is_some_and(is_word)
            && (behind.starts_with(['\'', '$', '/', '-'])
                || behind.starts_with("language")
                || behind.starts_with("e'")
                || behind.starts_with("u&"))
    })
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
        let names = vec!["app.x".to_owned()];
        hidden.learn(hidden.version(), Found { loud: WRITES, names, ..Found::default() });
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
        hidden.learn(hidden.version(), Found::default());
        assert!(hidden.is_loud(READS), "the change is not over");
        drop(disturbance);
        hidden.learn(before, Found::default());
        assert!(hidden.is_loud(READS), "it was read before the change");
        hidden.learn(hidden.version(), Found::default());
        assert!(!hidden.is_loud(READS | WRITES));
        let later = Instant::now() + AGE + Duration::from_secs(1);
        assert!(hidden.is_due(later) && !hidden.is_due(later), "one session looks");
    }

    #[test]
    fn what_is_sure_is_told_by_reach_and_by_name() {
        let hidden = Hidden::default();
        assert!(hidden.is_sure(0, "SELECT 1"), "nothing is known");
        let functions = vec!["setu".to_owned()];
        hidden.learn(
            hidden.version(),
            Found { loud: READS | WRITES | WRITES << SURE, functions, ..Found::default() },
        );
        for (what, text, sure) in [
            (READS, "SELECT other('x')", false),
            (READS, "SELECT \"SETU\"('x')", true),
            (READS, "SELECT U&\"set\\0075\"('x')", true),
            (WRITES, "INSERT INTO t VALUES (1)", true),
            (0, "DO $$ BEGIN PERFORM 1; END $$", false),
            (0, "SELECT 1; do language plpgsql 'BEGIN SET a.b = 1; END'", true),
            (0, "INSERT INTO reset VALUES (f()) ON CONFLICT DO NOTHING", false),
        ] {
            assert_eq!(hidden.is_sure(what, text), sure, "{text}");
        }
    }

    #[test]
    fn it_is_read_again_where_the_server_has_counted_changes() {
        let hidden = Hidden::default();
        assert!(!hidden.may_be_unchanged());
        let found = |print: Option<&str>| Found { print: print.map(str::to_owned), ..Found::default() };
        hidden.learn(hidden.version(), found(Some("5")));
        hidden.counted(Some("5"));
        assert!(hidden.may_be_unchanged() && !hidden.is_due(Instant::now()));
        hidden.counted(Some("6"));
        assert!(!hidden.may_be_unchanged() && hidden.is_due(Instant::now()));
        hidden.learn(hidden.version(), found(None));
        assert!(!hidden.may_be_unchanged(), "what nobody has counted");
    }
}
