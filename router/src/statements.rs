//! Prepared statements across server connections.
//!
//! A client's named statement gets one name on all server connections, made from an id that the
//! same text with the same types shares, where it is parsed under the same settings. A connection that
//! does not have it yet is given it in front of the Bind or Describe that needs it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;

use crate::classify::reach::reach;
use crate::classify::{Effect, classify};

/// Begins the names of our statements on server connections.
pub(crate) const NAME_PREFIX: &[u8] = b"_switchyard_";

/// A name that no statement has, to be closed in place of something that needs no work: PostgreSQL
/// answers the Close of an unknown name like any other.
pub(crate) const NO_STATEMENT: &[u8] = b"_switchyard_none";

/// A name under which a text is prepared only to see whether PostgreSQL accepts it, and closed at once.
pub(crate) const TRIED_STATEMENT: &[u8] = b"_switchyard_tried";

/// The text and the parameter types of a prepared statement.
#[derive(Debug)]
pub(crate) struct Statement {
    /// Never used twice in the life of the process.
    pub(crate) id: u64,
    /// Its name on server connections.
    pub(crate) name: Box<[u8]>,
    /// What running it leaves behind.
    pub(crate) effect: Effect,
    /// What running it may reach that it does not name.
    pub(crate) reach: u8,
    /// What it is parsed under, see [`crate::context::Wishes::parsed_under`]; none if that is not known, or if
    /// it means something else each time it is parsed. Then nobody shares it.
    pub(crate) parsed_under: Option<u64>,
    /// The text, a zero byte, then the types as they stand in Parse.
    text_and_types: Box<[u8]>,
    text_len: usize,
}

impl Statement {
    /// The SQL text.
    pub(crate) fn sql(&self) -> &[u8] {
        &self.text_and_types[..self.text_len]
    }

    /// Count and OIDs of the parameters, as in Parse.
    pub(crate) fn types(&self) -> &[u8] {
        &self.text_and_types[self.text_len + 1..]
    }
}

/// Makes statements, so that equal ones share one id.
#[derive(Default)]
pub(crate) struct StatementInterner {
    known: DashMap<Box<[u8]>, Weak<Statement>>,
    last_id: AtomicU64,
}

impl StatementInterner {
    /// The statement of this text and these types, to be parsed under these settings.
    pub(crate) fn get(&self, sql: &[u8], types: &[u8], parsed_under: Option<u64>) -> Arc<Statement> {
        let mut key = Vec::with_capacity(sql.len() + 1 + types.len() + 8);
        key.extend_from_slice(sql);
        key.push(0);
        key.extend_from_slice(types);
        let Some(settings) = parsed_under.filter(|_| !means_a_moment(sql)) else {
            return Arc::new(self.make(key, sql.len(), None));
        };
        let len = key.len();
        if settings != 0 {
            // The types say how many they are, so that what follows them is no part of another key.
            key.extend_from_slice(&settings.to_be_bytes());
        }
        if let Some(found) = self.known.get(key.as_slice()).and_then(|weak| weak.upgrade()) {
            return found;
        }
        if self.known.len().is_power_of_two() && self.known.len() >= 256 {
            self.known.retain(|_, weak| weak.strong_count() > 0);
        }
        let made = Arc::new(self.make(key[..len].to_vec(), sql.len(), parsed_under));
        self.known.insert(key.into_boxed_slice(), Arc::downgrade(&made));
        made
    }

    fn make(&self, text_and_types: Vec<u8>, text_len: usize, parsed_under: Option<u64>) -> Statement {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let mut name = NAME_PREFIX.to_vec();
        name.extend_from_slice(format!("{id:x}").as_bytes());
        let effect = classify(&text_and_types[..text_len]);
        let reach = reach(&text_and_types[..text_len]);
        let text_and_types = text_and_types.into();
        Statement { id, name: name.into(), effect, reach, parsed_under, text_and_types, text_len }
    }
}

/// Whether a text may have a constant that is read as the moment at which it is parsed, such as
/// `'now'::timestamp`. // src/backend/utils/adt/datetime.c datetktbl
fn means_a_moment(sql: &[u8]) -> bool {
    const WORDS: [&[u8]; 4] = [b"now'", b"today'", b"tomorrow'", b"yesterday'"];
    let quoted = |at: usize, word: &[u8]| {
        let text = &sql[at + 1..];
        text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    memchr::memchr_iter(b'\'', sql).any(|at| WORDS.iter().any(|word| quoted(at, word)))
}

/// The statements of one client, by the client's names.
#[derive(Default)]
pub(crate) struct ClientStatements {
    named: HashMap<Box<[u8]>, Arc<Statement>>,
    /// The text of each `PREPARE` by its name.
    by_sql: HashMap<String, String>,
    /// The unnamed statement: valid until the next Parse without a name or the next Query.
    unnamed: Vec<u8>,
    unnamed_sql_len: usize,
    has_unnamed: bool,
    /// What running it leaves behind.
    unnamed_effect: Option<Effect>,
    /// Which of all that there were is the unnamed statement, or that there is none.
    unnamed_serial: u64,
    /// The last number that was given.
    last_serial: u64,
    /// The last that the server has refused.
    refused_serial: u64,
}

/// An unnamed statement that was replaced, to be put back if what has replaced it was skipped.
#[derive(Debug, Default)]
pub(crate) struct SavedUnnamed {
    text_and_types: Vec<u8>,
    sql_len: usize,
    is_there: bool,
    effect: Option<Effect>,
    serial: u64,
}

impl SavedUnnamed {
    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.text_and_types.len() + size_of::<Self>()
    }
}

impl ClientStatements {
    pub(crate) fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.get(name)
    }

    pub(crate) fn contains(&self, name: &[u8]) -> bool {
        self.named.contains_key(name)
    }

    pub(crate) fn insert(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.named.insert(name.into(), statement);
    }

    pub(crate) fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        self.named.remove(name)
    }

    pub(crate) fn clear_named(&mut self) {
        self.named.clear();
    }

    /// How many there are, of both kinds.
    pub(crate) fn len(&self) -> usize {
        self.named.len() + self.by_sql.len()
    }

    /// The `PREPARE` that made the statement of this name.
    pub(crate) fn by_sql(&self, name: &str) -> Option<&str> {
        self.by_sql.get(name).map(String::as_str)
    }

    pub(crate) fn insert_by_sql(&mut self, name: String, sql: String) {
        self.by_sql.insert(name, sql);
    }

    /// Whether it was there.
    pub(crate) fn remove_by_sql(&mut self, name: &str) -> bool {
        self.take_by_sql(name).is_some()
    }

    /// Takes out the `PREPARE` that made the statement of this name.
    pub(crate) fn take_by_sql(&mut self, name: &str) -> Option<String> {
        self.by_sql.remove(name)
    }

    pub(crate) fn clear_by_sql(&mut self) {
        self.by_sql.clear();
    }

    /// Keeps the unnamed statement, so that it can be prepared again elsewhere.
    pub(crate) fn keep_unnamed(&mut self, sql: &[u8], types: &[u8], effect: Effect) {
        self.unnamed_effect = (effect != Effect::Nothing).then_some(effect);
        self.last_serial += 1;
        self.unnamed_serial = self.last_serial;
        self.unnamed.clear();
        self.unnamed.extend_from_slice(sql);
        self.unnamed.extend_from_slice(types);
        self.unnamed_sql_len = sql.len();
        self.has_unnamed = true;
    }

    pub(crate) fn forget_unnamed(&mut self) {
        self.has_unnamed = false;
        self.last_serial += 1;
        self.unnamed_serial = self.last_serial;
        self.unnamed.clear();
        self.unnamed.shrink_to(1024);
    }

    /// Which of all that there were is the unnamed statement now.
    pub(crate) fn unnamed_serial(&self) -> u64 {
        self.unnamed_serial
    }

    /// Takes the unnamed statement out, as it may have to be put back.
    pub(crate) fn save_unnamed(&mut self) -> SavedUnnamed {
        let saved = SavedUnnamed {
            text_and_types: std::mem::take(&mut self.unnamed),
            sql_len: self.unnamed_sql_len,
            is_there: self.has_unnamed,
            effect: self.unnamed_effect.take(),
            serial: self.unnamed_serial,
        };
        self.forget_unnamed();
        saved
    }

    /// The server has refused the one of this number, so that there is none if nothing has replaced it since.
    pub(crate) fn refuse_unnamed(&mut self, serial: u64) {
        self.refused_serial = serial;
        if self.unnamed_serial == serial {
            self.forget_unnamed();
        }
    }

    /// Puts it back, unless it was refused meanwhile.
    pub(crate) fn restore_unnamed(&mut self, saved: SavedUnnamed) {
        if saved.is_there && saved.serial == self.refused_serial {
            return self.forget_unnamed();
        }
        self.unnamed = saved.text_and_types;
        self.unnamed_sql_len = saved.sql_len;
        self.has_unnamed = saved.is_there;
        self.unnamed_effect = saved.effect;
        self.unnamed_serial = saved.serial;
    }

    /// What running the unnamed statement leaves behind, if anything.
    pub(crate) fn unnamed_effect(&self) -> Option<&Effect> {
        self.unnamed_effect.as_ref().filter(|_| self.has_unnamed)
    }

    /// Text and types of the unnamed statement.
    pub(crate) fn unnamed(&self) -> Option<(&[u8], &[u8])> {
        self.has_unnamed.then(|| self.unnamed.split_at(self.unnamed_sql_len))
    }
}

/// Spreads ids that we have given out ourselves, one after the other; nobody else chooses them.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }

    fn write_u64(&mut self, n: u64) {
        // The odd number next to 2^64 divided by the golden ratio.
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The statements that one server connection has, oldest use first out.
pub(crate) struct ServerStatements {
    used: HashMap<u64, (u64, Arc<Statement>), BuildHasherDefault<IdHasher>>,
    clock: u64,
    limit: usize,
}

impl ServerStatements {
    pub(crate) fn new(limit: u32) -> Self {
        Self { used: HashMap::default(), clock: 0, limit: limit.max(1) as usize }
    }

    /// Whether the connection has it; if so, that counts as a use.
    pub(crate) fn touch(&mut self, id: u64) -> bool {
        self.clock += 1;
        match self.used.get_mut(&id) {
            Some(entry) => {
                entry.0 = self.clock;
                true
            }
            None => false,
        }
    }

    /// Notes that the connection gets it. Returns the statement that must be closed to make room.
    pub(crate) fn insert(&mut self, statement: &Arc<Statement>) -> Option<Arc<Statement>> {
        self.clock += 1;
        let evicted = if self.used.len() >= self.limit {
            let oldest = self.used.iter().min_by_key(|(_, (used, _))| *used).map(|(id, _)| *id);
            oldest.and_then(|id| self.used.remove(&id)).map(|(_, statement)| statement)
        } else {
            None
        };
        self.used.insert(statement.id, (self.clock, statement.clone()));
        evicted
    }

    /// Notes that the connection still has it: closing it was skipped.
    pub(crate) fn keep(&mut self, statement: &Arc<Statement>) {
        self.used.insert(statement.id, (self.clock, statement.clone()));
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, id: u64) -> bool {
        self.used.remove(&id).is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.used.len()
    }

    pub(crate) fn clear(&mut self) {
        self.used.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_part_of_what_a_statement_is() {
        let interner = StatementInterner::default();
        let a = interner.get(b"select $1", &[0, 0], Some(0));
        let b = interner.get(b"select $1", &[0, 1, 0, 0, 0, 23], Some(0));
        assert_ne!(a.id, b.id);
        assert_eq!(interner.get(b"select $1", &[0, 0], Some(0)).id, a.id);
        assert_eq!((a.sql(), a.types()), (&b"select $1"[..], &[0, 0][..]));
        let id = a.id;
        drop(a);
        assert_ne!(interner.get(b"select $1", &[0, 0], Some(0)).id, id);
    }

    #[test]
    fn settings_are_part_of_what_a_statement_is() {
        let interner = StatementInterner::default();
        let get = |sql: &[u8], settings| interner.get(sql, &[0, 0], settings);
        let (a, b) = (get(b"select here", Some(0)), get(b"select here", Some(1)));
        assert_ne!(a.id, b.id);
        assert_eq!((get(b"select here", Some(0)).id, get(b"select here", Some(1)).id), (a.id, b.id));
        assert_eq!((b.sql(), b.types()), (&b"select here"[..], &[0, 0][..]));
        let unknown = get(b"select here", None);
        assert_ne!(get(b"select here", None).id, unknown.id);
        for sql in ["select 'Now'::timestamp", "select date 'today' + 1", "'', 'tomorrow'"] {
            let now = get(sql.as_bytes(), Some(0));
            assert!(now.parsed_under.is_none() && get(sql.as_bytes(), Some(0)).id != now.id, "{sql}");
        }
        assert_eq!(get(b"select 'know', now()", Some(0)).parsed_under, Some(0));
    }

    #[test]
    fn the_least_recently_used_goes() {
        let interner = StatementInterner::default();
        let mut server = ServerStatements::new(2);
        let [a, b, c] = [b"a", b"b", b"c"].map(|sql| interner.get(sql, &[0, 0], Some(0)));
        assert!(server.insert(&a).is_none());
        assert!(server.insert(&b).is_none());
        assert!(server.touch(a.id));
        assert_eq!(server.insert(&c).map(|s| s.id), Some(b.id));
        assert!(!server.touch(b.id));
    }
}
