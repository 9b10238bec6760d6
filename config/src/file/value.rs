//! One value of the document, and what it may be read as. `None` means that the mistake is noted.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::reader::{At, Ctx, Table, list};
use super::units;

/// A value and where it stands.
pub(super) struct Value<'a> {
    pub(super) ctx: &'a Ctx<'a>,
    pub(super) at: At,
    pub(super) value: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    /// Notes a mistake here.
    pub(super) fn error<T>(&self, message: impl Into<String>) -> Option<T> {
        self.ctx.error(&self.at, message);
        None
    }

    fn wrong<T>(&self, expected: &str) -> Option<T> {
        let found = match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.error(format!("must be {expected}, not {found}"))
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        match self.value {
            DeValue::String(s) => Some(s),
            _ => self.wrong("a string"),
        }
    }

    /// Text on one line, not empty, of at most `max` bytes.
    pub(super) fn name(&self, max: usize) -> Option<&'a str> {
        let text = self.text()?;
        if text.is_empty() {
            return self.error("must not be empty");
        }
        if text.len() > max {
            return self.error(format!("must be at most {max} bytes"));
        }
        if text.chars().any(char::is_control) {
            return self.error("must not contain control characters");
        }
        Some(text)
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.value {
            DeValue::Boolean(b) => Some(*b),
            _ => self.wrong("true or false"),
        }
    }

    /// A whole number within `range`.
    pub(super) fn integer<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Option<T> {
        let DeValue::Integer(i) = self.value else { return self.wrong("an integer") };
        let number = i128::from_str_radix(i.as_str(), i.radix()).ok();
        match number.and_then(|n| u64::try_from(n).ok()).filter(|n| range.contains(n)) {
            Some(n) => T::try_from(n).ok(),
            None => self.error(format!("must be from {} to {}", range.start(), range.end())),
        }
    }

    /// A number of bytes within `range`, as an integer or as text with a unit.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<usize> {
        let bytes: u64 = match self.value {
            DeValue::Integer(_) => return self.integer(range),
            DeValue::String(s) => match units::size(s) {
                Some(bytes) => bytes,
                None => {
                    return self
                        .error("must be a number of bytes, such as 65536 or \"64KiB\" (B, KiB, MiB, GiB)");
                }
            },
            _ => return self.wrong("a number of bytes"),
        };
        if !range.contains(&bytes) {
            return self.error(format!("must be from {} to {} bytes", range.start(), range.end()));
        }
        usize::try_from(bytes).ok()
    }

    /// A duration within `range`.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        const FORM: &str = "a number and a unit, such as \"30s\" (ms, s, m, h, d)";
        let DeValue::String(text) = self.value else { return self.wrong(FORM) };
        let Some(duration) = units::duration(text) else { return self.error(format!("must be {FORM}")) };
        if !range.contains(&duration) {
            let [from, to] = [range.start(), range.end()].map(|d| units::show_duration(*d));
            return self.error(format!("must be from {from} to {to}"));
        }
        Some(duration)
    }

    /// One of a few words.
    pub(super) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Some(*value),
            None => self.error(format!("must be one of {}", list(words.iter().map(|w| w.0)))),
        }
    }

    /// What `read` makes of every entry of an array; `None` only if it is no array.
    pub(super) fn array<T>(&self, read: impl Fn(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        let DeValue::Array(entries) = self.value else { return self.wrong("an array") };
        let read = entries.iter().enumerate().map(|(i, entry)| {
            let at = At { line: self.ctx.line(entry.span().start), key: format!("{}[{i}]", self.at.key) };
            read(&Value { ctx: self.ctx, at, value: entry.get_ref() })
        });
        Some(read.collect::<Vec<_>>().into_iter().flatten().collect())
    }

    pub(super) fn table(&self) -> Option<Table<'a>> {
        match self.value {
            DeValue::Table(table) => Some(Table::new(self.ctx, self.at.clone(), table)),
            _ => self.wrong("a table"),
        }
    }

    pub(super) fn tables(&self) -> Option<Vec<Table<'a>>> {
        if self.value.is_table() {
            let key = &self.at.key;
            return self.error(format!("must be an array of tables: write [[{key}]], not [{key}]"));
        }
        self.array(Value::table)
    }

    /// A path, relative to the configuration file.
    pub(super) fn path(&self) -> Option<PathBuf> {
        Some(self.ctx.resolve(self.name(4096)?))
    }

    /// The path of a file that exists.
    pub(super) fn file(&self) -> Option<PathBuf> {
        let path = self.path()?;
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => self.error(format!("{} is a directory", path.display())),
            Ok(_) => Some(path),
            Err(e) => self.error(format!("{}: {}", path.display(), super::io_reason(&e))),
        }
    }
}
