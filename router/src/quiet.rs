//! Texts of statements that may leave anything behind, and never have.
//!
//! Asking a connection what a transaction has left costs the shard half a millisecond. A statement that
//! calls a function of somebody's own would be asked about each time, although most such functions set
//! nothing. So a text that left nothing a few times in a row is not asked about again, unless it surely comes
//! to something that may ([`crate::hidden::Hidden::is_sure`]). Its connection is still cleaned before another
//! session gets it, and the tenant's context said again: what it might leave after all is lost to its
//! session, and seen by nobody.

use dashmap::DashMap;

/// How often in a row a text must have left nothing.
const TIMES: u8 = 3;

/// Most texts that are remembered; then all are forgotten.
const TEXTS_MAX: usize = 16 * 1024;

/// In place of a count: it has left something once, which is never forgotten.
const LOUD: u8 = u8::MAX;

/// See the module. By a hash of database and text; two of the same hash share their fate.
#[derive(Debug, Default)]
pub(crate) struct QuietTexts(DashMap<u64, u8>);

impl QuietTexts {
    /// The key of a text.
    pub(crate) fn key(database: &str, text: &str) -> u64 {
        xxhash_rust::xxh3::xxh3_64_with_seed(text.as_bytes(), xxhash_rust::xxh3::xxh3_64(database.as_bytes()))
    }

    /// Whether it need not be asked about.
    pub(crate) fn is_quiet(&self, key: u64) -> bool {
        self.0.get(&key).is_some_and(|times| (TIMES..LOUD).contains(&times))
    }

    /// Notes whether it has left something.
    pub(crate) fn note(&self, key: u64, quiet: bool) {
        if self.0.len() >= TEXTS_MAX {
            self.0.clear();
        }
        let mut times = self.0.entry(key).or_default();
        *times = match (quiet, *times) {
            (false, _) | (_, LOUD) => LOUD,
            (true, n) => n.saturating_add(1).min(TIMES),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_trusted_after_a_few_times_and_never_again_once_it_left_something() {
        let texts = QuietTexts::default();
        let key = QuietTexts::key("db", "SELECT f()");
        assert_ne!(key, QuietTexts::key("other", "SELECT f()"));
        for _ in 0..TIMES {
            assert!(!texts.is_quiet(key));
            texts.note(key, true);
        }
        assert!(texts.is_quiet(key));
        texts.note(key, false);
        for _ in 0..300 {
            texts.note(key, true);
        }
        assert!(!texts.is_quiet(key));
    }
}
