//! A small typed reader over the parsed document.
//!
//! It notes mistakes instead of stopping at the first, and learns the known keys of a table from
//! what is asked of it, so that no list of them can go stale.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigErrors, Warning};
use super::units;
use super::value::Value;

/// What is shared by all readers of one file.
pub(super) struct Ctx<'a> {
    path: &'a Path,
    /// Offsets at which lines begin.
    lines: Vec<usize>,
    env: &'a dyn Fn(&str) -> Option<String>,
    errors: RefCell<Vec<ConfigError>>,
    warnings: RefCell<Vec<Warning>>,
    /// Every key that was asked for, with indices left out, for the tests of the documentation.
    #[cfg(test)]
    pub(super) asked: RefCell<std::collections::BTreeSet<String>>,
}

/// Where something stands in the file.
#[derive(Debug, Clone)]
pub(super) struct At {
    /// From 1.
    pub(super) line: usize,
    /// Dotted path.
    pub(super) key: String,
}

impl<'a> Ctx<'a> {
    pub(super) fn new(text: &str, path: &'a Path, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        let lines =
            std::iter::once(0).chain(text.bytes().enumerate().filter(|b| b.1 == b'\n').map(|b| b.0 + 1));
        Self {
            path,
            lines: lines.collect(),
            env,
            errors: RefCell::default(),
            warnings: RefCell::default(),
            #[cfg(test)]
            asked: RefCell::default(),
        }
    }

    pub(super) fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset)
    }

    pub(super) fn env(&self, name: &str) -> Option<String> {
        (self.env)(name)
    }

    /// `path`, taken from the configuration file's directory where it is relative.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    pub(super) fn error(&self, at: &At, message: impl Into<String>) {
        self.errors.borrow_mut().push(self.note(at, message.into()));
    }

    pub(super) fn warn(&self, at: &At, message: impl Into<String>) {
        self.warnings.borrow_mut().push(Warning(self.note(at, message.into())));
    }

    fn note(&self, at: &At, message: String) -> ConfigError {
        ConfigError { path: self.path.to_owned(), line: Some(at.line), key: at.key.clone(), message }
    }

    /// The warnings, or all the errors.
    pub(super) fn finish(self) -> Result<Vec<Warning>, ConfigErrors> {
        let mut errors = self.errors.into_inner();
        if errors.is_empty() {
            let mut warnings = self.warnings.into_inner();
            warnings.sort_by_key(|w| w.0.line);
            return Ok(warnings);
        }
        errors.sort_by_key(|e| e.line);
        Err(ConfigErrors(errors))
    }
}

/// A table, and the keys that have been asked of it.
pub(super) struct Table<'a> {
    pub(super) ctx: &'a Ctx<'a>,
    pub(super) at: At,
    table: &'a DeTable<'a>,
    known: RefCell<Vec<String>>,
}

impl<'a> Table<'a> {
    pub(super) fn root(ctx: &'a Ctx<'a>, table: &'a Spanned<DeTable<'a>>) -> Self {
        Self::new(ctx, At { line: 1, key: String::new() }, table.get_ref())
    }

    pub(super) fn new(ctx: &'a Ctx<'a>, at: At, table: &'a DeTable<'a>) -> Self {
        Self { ctx, at, table, known: RefCell::default() }
    }

    /// The value of `key`, if it is given.
    pub(super) fn value(&self, key: &str) -> Option<Value<'a>> {
        self.known.borrow_mut().push(key.to_owned());
        let (name, value) = self.table.get_key_value(key)?;
        Some(self.wrap(name, value))
    }

    fn wrap(&self, name: &Spanned<std::borrow::Cow<'_, str>>, value: &'a Spanned<DeValue<'a>>) -> Value<'a> {
        // Tables made by headers span the header, and so does an array of them as a whole.
        let start = if value.get_ref().is_table() { value.span().start } else { name.span().start };
        let at = At { line: self.ctx.line(start), key: self.path_of(name.get_ref()) };
        Value { ctx: self.ctx, at, value: value.get_ref() }
    }

    /// Every key with its value, for tables whose keys are the user's.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.table.iter().map(|(name, value)| (name.get_ref().as_ref(), self.wrap(name, value)))
    }

    /// What `read` makes of the value of `key`, if it is given and right.
    pub(super) fn opt<T>(&self, key: &str, read: impl FnOnce(&Value<'a>) -> Option<T>) -> Option<T> {
        self.value(key).and_then(|v| read(&v))
    }

    /// Replaces `into` if `key` is given and right.
    pub(super) fn set<T>(&self, key: &str, into: &mut T, read: impl FnOnce(&Value<'a>) -> Option<T>) {
        if let Some(value) = self.opt(key, read) {
            *into = value;
        }
    }

    /// As [`Self::opt`], but an absent key is a mistake.
    pub(super) fn need<T>(&self, key: &str, read: impl FnOnce(&Value<'a>) -> Option<T>) -> Option<T> {
        match self.value(key) {
            Some(value) => read(&value),
            None => {
                self.ctx.error(&self.at_key(key), "is missing");
                None
            }
        }
    }

    /// The table under `key`, if given.
    pub(super) fn table(&self, key: &str) -> Option<Table<'a>> {
        self.opt(key, Value::table)
    }

    /// The tables of the array under `key`; none if it is not given.
    pub(super) fn tables(&self, key: &str) -> Vec<Table<'a>> {
        self.opt(key, Value::tables).unwrap_or_default()
    }

    /// Whether `key` is given, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether `section` is a table in which `key` is given, right or wrong.
    pub(super) fn table_has(&self, section: &str, key: &str) -> bool {
        self.table.get(section).and_then(|s| s.get_ref().as_table()).is_some_and(|s| s.contains_key(key))
    }

    /// Where `key` stands, or where it would.
    pub(super) fn at_key(&self, key: &str) -> At {
        let line = match self.table.get_key_value(key) {
            Some((name, _)) => self.ctx.line(name.span().start),
            None => self.at.line,
        };
        At { line, key: self.path_of(key) }
    }

    fn path_of(&self, key: &str) -> String {
        let bare =
            !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        let key = if bare { key.to_owned() } else { format!("{key:?}") };
        if self.at.key.is_empty() { key } else { format!("{}.{key}", self.at.key) }
    }

    /// Notes every key that nobody asked for. To be called when all has been read.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        #[cfg(test)]
        for key in known.iter() {
            let path: String =
                self.path_of(key).split('[').map(|s| s.split_once(']').map_or(s, |p| p.1)).collect();
            self.ctx.asked.borrow_mut().insert(path);
        }
        for name in self.table.keys() {
            let key: &str = name.get_ref();
            if known.iter().any(|k| k == key) {
                continue;
            }
            let message = match units::nearest(key, known.iter().map(String::as_str)) {
                Some(near) => format!("unknown key; did you mean `{near}`?"),
                None => format!("unknown key; known are {}", list(known.iter().map(String::as_str))),
            };
            self.ctx.error(&self.at_key(key), message);
        }
    }
}

/// Words for a message: `a`, `b`, `c`.
pub(super) fn list<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    words.into_iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ")
}
