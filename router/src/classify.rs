//! What a statement's text says of the state it will leave behind.
//!
//! This decides what is convenient (carry a `SET`, keep a connection for a temporary table, clean
//! one before another session of the same tenant uses it), never what is safe: between tenants
//! every connection is cleaned whatever its statements looked like.

pub(crate) mod channels;
mod harmless;
pub(crate) mod reach;
pub(crate) mod read_only;

use std::sync::LazyLock;

use memchr::memchr;

use crate::context::is_parsed_by;

/// Why a session keeps its server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pin {
    /// A setting that is not carried: several at once, within a transaction, of a role.
    Setting,
    /// A temporary table, view, sequence or function.
    Temporary,
    /// A prepared statement made by SQL.
    Prepare,
    /// A cursor that outlives its transaction.
    HoldCursor,
    /// A session-level advisory lock.
    AdvisoryLock,
    /// LOAD.
    Load,
}

impl Pin {
    /// All reasons, in the order of their numbers.
    pub(crate) const ALL: [Self; 6] =
        [Self::Setting, Self::Temporary, Self::Prepare, Self::HoldCursor, Self::AdvisoryLock, Self::Load];

    /// As it stands in metrics and in the console.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Setting => "setting",
            Self::Temporary => "temporary",
            Self::Prepare => "prepare",
            Self::HoldCursor => "hold_cursor",
            Self::AdvisoryLock => "advisory_lock",
            Self::Load => "load",
        }
    }
}

/// What a text will leave behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing that can be seen.
    Nothing,
    /// Possibly something that cannot be seen: a function or a block is run that may do anything.
    Unknown,
    /// One plain `SET name = value`, by the name in lower case.
    Set(String),
    /// `RESET name`.
    Reset(String),
    /// These settings, by several statements or among others.
    Settings(Vec<String>),
    /// Settings whose names cannot be told.
    AnySetting,
    /// `RESET ALL` among other statements, which set these.
    AnyReset(Vec<String>),
    /// `RESET ALL`: every setting is back to what the connection began with, the tenant's too.
    ResetAll,
    /// `DISCARD ALL`: everything is gone afterwards.
    DiscardAll,
    /// `DEALLOCATE` of everything, or of this name.
    Deallocate(Option<String>),
    /// `PREPARE` of this name.
    Prepare(String),
    /// `EXECUTE` of this name.
    Execute(String),
    /// LISTEN or UNLISTEN, and nothing else that lasts.
    Channels,
    /// Nothing that lasts; what follows in the transaction may be parsed under other settings.
    ParsedOtherwise,
    /// State that cannot be carried.
    Pin(Pin),
}

static SUSPECTS: LazyLock<aho_corasick::AhoCorasick> = LazyLock::new(|| {
    aho_corasick::AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .build(["set_config", "advisory_lock", "temp", "currval", "lastval", "setseed", "pg_settings"])
        .unwrap_or_else(|_| unreachable!("the patterns are constants"))
});

/// Reads as much of `sql` as is needed. For the usual statement that is its first word and one
/// search for a handful of names.
pub(crate) fn classify(sql: &[u8]) -> Effect {
    let text = skip_blank(sql);
    let end = text.iter().position(|b| !b.is_ascii_alphabetic()).unwrap_or(text.len());
    let usual = matches!(
        text.first().map(u8::to_ascii_lowercase),
        Some(b'i' | b'u' | b's' | b'w' | b'b' | b'c' | b'r' | b'd' | b'e' | b'v' | b'(' | b'm' | b't')
    ) || text.is_empty();
    if usual && is_plain_word(&text[..end]) && single(text) {
        return with_functions(suspects(text), text);
    }
    let mut all = Several::default();
    let mut rest = sql;
    loop {
        let (statement, after) = split(rest);
        let statement = skip_blank(statement);
        if !statement.is_empty() {
            all.add(one(statement));
        }
        match after {
            Some(after) => rest = after,
            None => return all.together(),
        }
    }
}

/// What several statements in one message leave behind.
#[derive(Default)]
struct Several {
    count: usize,
    only: Option<Effect>,
    pin: Option<Pin>,
    any: bool,
    resets: bool,
    unknown: bool,
    channels: bool,
    parsed_otherwise: bool,
    settings: Vec<String>,
}

impl Several {
    fn add(&mut self, effect: Effect) {
        self.count += 1;
        match &effect {
            Effect::Nothing => {}
            Effect::Channels => self.channels = true,
            Effect::ParsedOtherwise => self.parsed_otherwise = true,
            Effect::Pin(pin) => self.pin = self.pin.or(Some(*pin)),
            Effect::ResetAll | Effect::DiscardAll | Effect::AnyReset(_) => self.resets = true,
            Effect::AnySetting => self.any = true,
            Effect::Prepare(_) => self.pin = self.pin.or(Some(Pin::Prepare)),
            Effect::Set(name) | Effect::Reset(name) => self.settings.push(name.clone()),
            Effect::Settings(names) => self.settings.extend_from_slice(names),
            Effect::Unknown | Effect::Execute(_) | Effect::Deallocate(_) => self.unknown = true,
        }
        self.only = Some(effect);
    }

    fn together(self) -> Effect {
        match (self.count, self.only, self.pin) {
            (1, Some(only), _) => only,
            (_, _, Some(pin)) => Effect::Pin(pin),
            _ if self.resets => Effect::AnyReset(self.settings),
            // What is not known is looked at as closely as can be: settings are part of that.
            _ if self.unknown => Effect::Unknown,
            // Which they are is not told by names alone.
            _ if self.any || self.parsed_otherwise && !self.settings.is_empty() => Effect::AnySetting,
            _ if self.parsed_otherwise && self.channels => Effect::Unknown,
            _ if self.parsed_otherwise => Effect::ParsedOtherwise,
            _ if !self.settings.is_empty() => Effect::Settings(self.settings),
            _ if self.channels => Effect::Channels,
            _ => Effect::Nothing,
        }
    }
}

/// Words that begin statements without lasting effect beyond what their functions do.
fn is_plain_word(word: &[u8]) -> bool {
    const WORDS: &[&[u8]] = &[
        b"select",
        b"insert",
        b"update",
        b"delete",
        b"begin",
        b"commit",
        b"rollback",
        b"with",
        b"start",
        b"end",
        b"values",
        b"merge",
        b"savepoint",
        b"release",
        b"truncate",
        b"show",
        b"explain",
        b"copy",
        b"vacuum",
        b"analyze",
        b"",
    ];
    WORDS.iter().any(|w| word.eq_ignore_ascii_case(w))
}

/// Whether there is no second statement.
fn single(text: &[u8]) -> bool {
    match memchr(b';', text) {
        None => true,
        Some(at) => text[at + 1..].iter().all(|b| b.is_ascii_whitespace() || *b == b';'),
    }
}

/// Whether nothing of [`SUSPECTS`] that matters is in it, by a cheaper look: all but two are functions,
/// and those two have a letter that is rare.
fn is_above_suspicion(text: &[u8]) -> bool {
    let like =
        |range: Option<&[u8]>, word: &[u8]| range.is_some_and(|found| found.eq_ignore_ascii_case(word));
    memchr(b'(', text).is_none()
        && !memchr::memchr2_iter(b'p', b'P', text).any(|at| {
            like(at.checked_sub(3).and_then(|from| text.get(from..=at)), b"temp")
                || like(text.get(at..at + 11), b"pg_settings")
        })
}

/// The same, of a text that calls functions of somebody's own beside.
fn with_functions(effect: Effect, text: &[u8]) -> Effect {
    use Effect::{AnySetting, Nothing, ParsedOtherwise, Settings, Unknown};
    match effect {
        Nothing | ParsedOtherwise | Settings(_) | AnySetting if harmless::calls_unknown(text) => Unknown,
        effect => effect,
    }
}

fn suspects(text: &[u8]) -> Effect {
    if is_above_suspicion(text) {
        return Effect::Nothing;
    }
    let mut effect = Effect::Nothing;
    let mut settings = Vec::new();
    let mut parsed_otherwise = false;
    for found in SUSPECTS.find_iter(text) {
        let after = &text[found.end()..];
        match found.pattern().as_usize() {
            0 => {
                // Local to the transaction unless its third argument is false; whatever cannot be
                // told apart is taken for lasting.
                match set_config(after) {
                    SetConfig::Local(name) if name.as_deref().is_some_and(|name| !is_parsed_by(name)) => {}
                    SetConfig::Local(_) => parsed_otherwise = true,
                    SetConfig::Lasting(Some(name)) => settings.push(name),
                    SetConfig::Lasting(None) => effect = Effect::AnySetting,
                }
            }
            1 => {
                let before = &text[..found.start()];
                if !before.ends_with(b"xact_") && !ends_with_xact(before) {
                    return Effect::Pin(Pin::AdvisoryLock);
                }
            }
            2 => {
                // SELECT .. INTO TEMP, CREATE TEMP inside EXPLAIN; also any column named so.
                let mut before = text[..found.start()].trim_ascii_end();
                for scope in [&b"local"[..], b"global"] {
                    if word_before(before, scope) {
                        before = before[..before.len() - scope.len()].trim_ascii_end();
                    }
                }
                // Of pg_temp it is not told whether it is behind this INTO.
                let into_schema = || {
                    word_before(before, b"pg_") && text.windows(4).any(|w| w.eq_ignore_ascii_case(b"into"))
                };
                if word_before(before, b"into") || word_before(before, b"create") || into_schema() {
                    return Effect::Pin(Pin::Temporary);
                }
            }
            // UPDATE pg_settings sets what it is told to.
            6 if text.get(..6).is_some_and(|word| word.eq_ignore_ascii_case(b"update")) => {
                effect = Effect::AnySetting;
            }
            6 => {}
            _ => return Effect::Unknown,
        }
    }
    match (effect, settings.is_empty()) {
        (Effect::Nothing, false) if parsed_otherwise => Effect::AnySetting,
        (Effect::Nothing, false) => Effect::Settings(settings),
        (Effect::Nothing, true) if parsed_otherwise => Effect::ParsedOtherwise,
        (effect, _) => effect,
    }
}

/// `pg_advisory_xact_lock`, whose name has `xact_` in front of `lock`, never matches
/// `advisory_lock`; `pg_try_advisory_xact_lock` neither. Kept for names of one's own.
fn ends_with_xact(before: &[u8]) -> bool {
    before.len() >= 5 && before[before.len() - 5..].eq_ignore_ascii_case(b"xact_")
}

fn word_before(before: &[u8], word: &[u8]) -> bool {
    let before = before.trim_ascii_end();
    before.len() >= word.len() && before[before.len() - word.len()..].eq_ignore_ascii_case(word)
}

/// What a call of `set_config` does.
#[derive(Debug, PartialEq, Eq)]
enum SetConfig {
    /// It lasts as long as the transaction; the name, where it stands in the text.
    Local(Option<String>),
    /// It lasts; the name, where it stands in the text.
    Lasting(Option<String>),
}

/// Reads the arguments that follow the name of the function.
fn set_config(after: &[u8]) -> SetConfig {
    let mut depth = 0_usize;
    let mut quoted = false;
    let mut begin = None;
    for (i, b) in after.iter().enumerate() {
        match b {
            b'\'' => quoted = !quoted,
            _ if quoted => {}
            b'(' => {
                depth += 1;
                begin.get_or_insert(i + 1);
            }
            b')' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    let inside = after[begin.unwrap_or(i)..i].trim_ascii();
                    let name = inside.strip_prefix(b"'").and_then(|rest| {
                        let end = memchr(b'\'', rest)?;
                        rest[end + 1..].trim_ascii_start().starts_with(b",").then_some(&rest[..end])
                    });
                    let name = name.map(|name| String::from_utf8_lossy(name).to_ascii_lowercase());
                    let last = inside.rsplit(|b| *b == b',').next().unwrap_or(inside).trim_ascii();
                    if last.eq_ignore_ascii_case(b"true") || last.eq_ignore_ascii_case(b"'t'") {
                        return SetConfig::Local(name);
                    }
                    return SetConfig::Lasting(name);
                }
            }
            _ => {}
        }
    }
    SetConfig::Lasting(None)
}

/// Whatever in `text` may be the name of a setting of somebody's own (`app.user`): for statements of
/// which it is not known what they set.
pub(crate) fn custom_names(text: &[u8]) -> Vec<String> {
    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.') || b >= 0x80;
    let mut names = Vec::new();
    let mut at = 0;
    while let Some(found) = memchr(b'.', &text[at..]) {
        let dot = at + found;
        let start = text[at..dot].iter().rposition(|b| !is_name(*b)).map_or(at, |i| at + i + 1);
        let end = text[dot..].iter().position(|b| !is_name(*b)).map_or(text.len(), |i| dot + i);
        at = end.max(dot + 1);
        let before = text[..start].last();
        let within = start < dot && end > dot + 1 && !text[start].is_ascii_digit();
        // In quotes, as a function is given it, or behind SET; not a column of a table.
        let called_so = before == Some(&b'\'')
            || word_before(&text[..start], b"set")
            || word_before(&text[..start], b"session")
            || word_before(&text[..start], b"reset");
        if within && called_so && end - start < 64 && names.len() < NAMES_MAX {
            names.extend(std::str::from_utf8(&text[start..end]).ok().map(str::to_ascii_lowercase));
        }
    }
    names
}

/// Most names of settings that are taken from one text.
const NAMES_MAX: usize = 32;

/// One statement that is out of the ordinary.
fn one(text: &[u8]) -> Effect {
    let mut words = Words { rest: text };
    let Some(first) = words.next() else { return Effect::Nothing };
    match first.as_str() {
        "set" => match set(&mut words) {
            Effect::Set(name) if is_default(text, &name) => Effect::Reset(name),
            effect => effect,
        },
        "reset" => match words.next().as_deref() {
            Some("all") => Effect::ResetAll,
            Some("session") | None => Effect::Pin(Pin::Setting),
            Some("role") => Effect::Settings(vec!["role".to_owned()]),
            Some("time") => Effect::Reset("timezone".to_owned()),
            Some(name) if is_in_parts(name, words.rest) => Effect::Pin(Pin::Setting),
            Some(name) => Effect::Reset(name.to_owned()),
        },
        "listen" | "unlisten" => Effect::Channels,
        "notify" | "close" | "fetch" | "move" | "lock" | "comment" | "grant" | "revoke" | "alter"
        | "drop" | "cluster" | "reindex" | "checkpoint" | "abort" | "refresh" | "security" | "import"
        | "reassign" => Effect::Nothing,
        "prepare" => match words.next().as_deref() {
            Some("transaction") => Effect::Nothing,
            Some(name) => Effect::Prepare(name.to_owned()),
            None => Effect::Nothing,
        },
        "execute" => words.next().map_or(Effect::Nothing, Effect::Execute),
        "deallocate" => {
            let mut name = words.next();
            if name.as_deref() == Some("prepare") {
                name = words.next();
            }
            Effect::Deallocate(name.filter(|n| n != "all"))
        }
        "declare" => {
            let lower = text.to_ascii_lowercase();
            let hold = memchr::memmem::find(&lower, b"with hold").is_some();
            if hold || memchr::memmem::find(&lower, b"hold").is_some() {
                Effect::Pin(Pin::HoldCursor)
            } else {
                Effect::Nothing
            }
        }
        "load" => Effect::Pin(Pin::Load),
        "discard" => match words.next().as_deref() {
            Some("all") => Effect::DiscardAll,
            _ => Effect::Unknown,
        },
        "create" => {
            let temporary = (0..4).map_while(|_| words.next()).any(|w| w == "temp" || w == "temporary");
            let lower = text.to_ascii_lowercase();
            if temporary || memchr::memmem::find(&lower, b"pg_temp").is_some() {
                Effect::Pin(Pin::Temporary)
            } else {
                Effect::Nothing
            }
        }
        word if is_plain_word(word.as_bytes()) => with_functions(suspects(text), text),
        // DO, CALL, EXECUTE, and what we do not know.
        _ => Effect::Unknown,
    }
}

/// Whether this SET of `name` is a RESET of it: `SET x TO DEFAULT`, `SET TIME ZONE LOCAL`, `SET NAMES`.
fn is_default(text: &[u8], name: &str) -> bool {
    let words: Vec<_> = text.trim_ascii_end().split(|b| b.is_ascii_whitespace() || *b == b'=').collect();
    let is = |word: &[u8], expected: &str| word.eq_ignore_ascii_case(expected.as_bytes());
    match words.last() {
        Some(last) if is(last, "default") => true,
        Some(last) if is(last, "local") => name == "timezone" && words.iter().any(|word| is(word, "zone")),
        Some(last) => is(last, "names") && name == "client_encoding",
        None => false,
    }
}

fn set(words: &mut Words<'_>) -> Effect {
    let mut word = words.next();
    match word.as_deref() {
        Some("constraints" | "transaction") => return Effect::Nothing,
        Some("local") => {
            let name = match words.next().as_deref() {
                Some("time") => "timezone".to_owned(),
                Some("names") => "client_encoding".to_owned(),
                Some("schema") => "search_path".to_owned(),
                Some("xml") => "xmloption".to_owned(),
                // SESSION AUTHORIZATION
                Some("session") => "session_authorization".to_owned(),
                name => name.unwrap_or_default().to_owned(),
            };
            return if is_parsed_by(&name) { Effect::ParsedOtherwise } else { Effect::Nothing };
        }
        Some("session") => {
            word = words.next();
            match word.as_deref() {
                Some("authorization") => return Effect::Pin(Pin::Setting),
                Some("characteristics") => {
                    let names = ["isolation", "read_only", "deferrable"];
                    return Effect::Settings(
                        names.map(|name| format!("default_transaction_{name}")).into_iter().collect(),
                    );
                }
                _ => {}
            }
        }
        _ => {}
    }
    match word.as_deref() {
        // Written in parts of which some are quoted: too rare to be understood.
        Some(name) if is_in_parts(name, words.rest) => Effect::Pin(Pin::Setting),
        None if skip_blank(words.rest).starts_with(b".") => Effect::Pin(Pin::Setting),
        None => Effect::Nothing,
        Some("role") => Effect::Settings(vec!["role".to_owned()]),
        Some("time") => Effect::Set("timezone".to_owned()),
        Some("names") => Effect::Set("client_encoding".to_owned()),
        Some("schema") => Effect::Set("search_path".to_owned()),
        Some("seed") => Effect::Unknown,
        Some("xml") => Effect::Settings(vec!["xmloption".to_owned()]),
        Some(name) => Effect::Set(name.to_owned()),
    }
}

/// Whether `name` is only a part of a name that `rest` goes on with, or one that is written in escapes.
fn is_in_parts(name: &str, rest: &[u8]) -> bool {
    name.ends_with('.') || skip_blank(rest).starts_with(b".") || (name == "u" && rest.starts_with(b"&"))
}

/// Words of a statement, in lower case unless quoted; dots belong to words, quotes do not.
struct Words<'a> {
    rest: &'a [u8],
}

impl Iterator for Words<'_> {
    type Item = String;
    fn next(&mut self) -> Option<String> {
        self.rest = skip_blank(self.rest);
        if let Some(quoted) = self.rest.strip_prefix(b"\"") {
            let end = memchr(b'"', quoted)?;
            let word = String::from_utf8_lossy(&quoted[..end]).into_owned();
            self.rest = &quoted[end + 1..];
            return Some(word);
        }
        let is_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'$') || *b >= 0x80;
        let end = self.rest.iter().position(|b| !is_word(b)).unwrap_or(self.rest.len());
        if end == 0 {
            return None;
        }
        let word = String::from_utf8_lossy(&self.rest[..end]).to_ascii_lowercase();
        self.rest = &self.rest[end..];
        Some(word)
    }
}

/// Skips white space and comments.
pub(crate) fn skip_blank(mut sql: &[u8]) -> &[u8] {
    loop {
        sql = sql.trim_ascii_start();
        if sql.starts_with(b"--") {
            sql = memchr(b'\n', sql).map_or(&[][..], |at| &sql[at + 1..]);
        } else if sql.starts_with(b"/*") {
            sql = &sql[comment_len(sql)..];
        } else {
            return sql;
        }
    }
}

/// Length of the block comment that `sql` begins with; comments nest.
fn comment_len(sql: &[u8]) -> usize {
    let mut depth = 0;
    let mut i = 0;
    while i + 1 < sql.len() {
        match &sql[i..i + 2] {
            b"/*" => {
                depth += 1;
                i += 2;
            }
            b"*/" => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    sql.len()
}

/// The first statement of `sql`, and what follows its semicolon.
pub(crate) fn split(sql: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut i = 0;
    while i < sql.len() {
        match sql[i] {
            b';' => return (&sql[..i], Some(&sql[i + 1..])),
            quote @ (b'\'' | b'"') => {
                let escapes = quote == b'\'' && i > 0 && sql[i - 1].eq_ignore_ascii_case(&b'e');
                i += 1;
                while i < sql.len() && sql[i] != quote {
                    i += if escapes && sql[i] == b'\\' { 2 } else { 1 };
                }
                i += 1;
            }
            b'-' if sql[i..].starts_with(b"--") => {
                i = memchr(b'\n', &sql[i..]).map_or(sql.len(), |at| i + at + 1);
            }
            b'/' if sql[i..].starts_with(b"/*") => i += comment_len(&sql[i..]),
            b'$' => i += dollar_len(&sql[i..]),
            _ => i += 1,
        }
    }
    (sql, None)
}

/// Length of the dollar-quoted string that `sql` begins with, or 1 if it is none.
fn dollar_len(sql: &[u8]) -> usize {
    let Some(end) = sql[1..].iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_')) else {
        return 1;
    };
    if sql[1 + end] != b'$' {
        return 1;
    }
    let tag = &sql[..end + 2];
    memchr::memmem::find(&sql[tag.len()..], tag).map_or(sql.len(), |at| tag.len() + at + tag.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_texts_leave_behind() {
        let set = |n: &str| Effect::Set(n.to_owned());
        let pin = Effect::Pin;
        for (sql, effect) in [
            ("SELECT 1", Effect::Nothing),
            ("select abalance from pgbench_accounts where aid = 7;", Effect::Nothing),
            ("select setseed, currval from pg_class p", Effect::Nothing),
            ("select * into Temp x from y", pin(Pin::Temporary)),
            ("update pG_settings set setting = 1", Effect::AnySetting),
            ("", Effect::Nothing),
            (";;", Effect::Nothing),
            ("/* a */ -- b\n select 1", Effect::Nothing),
            ("BEGIN; SET LOCAL app.tenant_id = 'x'; SELECT 1; COMMIT", Effect::Nothing),
            ("SET LOCAL x TO 1", Effect::Nothing),
            ("SET LOCAL search_path TO a", Effect::ParsedOtherwise),
            ("BEGIN; set local TIME ZONE 'UTC'; SELECT 1", Effect::ParsedOtherwise),
            ("SET LOCAL role TO a; SET b = 1", Effect::AnySetting),
            ("SELECT set_config('search_path', $1, true)", Effect::ParsedOtherwise),
            ("SELECT set_config($1, $2, true)", Effect::ParsedOtherwise),
            ("SELECT set_config('search_path', $1, true), f()", Effect::Unknown),
            ("SELECT set_config('a.b', $1, false), f()", Effect::Unknown),
            ("SET search_path TO a, b", set("search_path")),
            ("set SESSION statement_timeout=5", set("statement_timeout")),
            ("SET TIME ZONE 'UTC'", set("timezone")),
            ("SET TIME ZONE LOCAL", Effect::Reset("timezone".to_owned())),
            ("SET time zone default ", Effect::Reset("timezone".to_owned())),
            ("SET work_mem TO DEFAULT", Effect::Reset("work_mem".to_owned())),
            ("SET work_mem=default", Effect::Reset("work_mem".to_owned())),
            ("SET NAMES", Effect::Reset("client_encoding".to_owned())),
            ("SET synchronous_commit = local", set("synchronous_commit")),
            ("SET my.a = 'default'", set("my.a")),
            ("SET NAMES 'utf8'", set("client_encoding")),
            ("SET \"App\".x = 1", pin(Pin::Setting)),
            ("DEALLOCATE \"S_1\"", Effect::Deallocate(Some("S_1".to_owned()))),
            ("SET ROLE bob", Effect::Settings(vec!["role".to_owned()])),
            ("SET SESSION AUTHORIZATION bob", pin(Pin::Setting)),
            ("SET a=1; SET b=2", Effect::Settings(vec!["a".to_owned(), "b".to_owned()])),
            ("SET a=1; SELECT 1", Effect::Settings(vec!["a".to_owned()])),
            ("BEGIN; SET a=1; ROLLBACK", Effect::Settings(vec!["a".to_owned()])),
            ("SET a=1; SET ROLE x", Effect::Settings(vec!["a".to_owned(), "role".to_owned()])),
            ("SET a=1; SET SESSION AUTHORIZATION x", pin(Pin::Setting)),
            ("RESET a", Effect::Reset("a".to_owned())),
            ("RESET ALL", Effect::ResetAll),
            ("SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;", Effect::AnyReset(vec![])),
            ("RESET ALL; SET a = 1", Effect::AnyReset(vec!["a".to_owned()])),
            ("DISCARD ALL", Effect::DiscardAll),
            ("DEALLOCATE ALL", Effect::Deallocate(None)),
            ("DEALLOCATE PREPARE foo", Effect::Deallocate(Some("foo".to_owned()))),
            ("LISTEN x", Effect::Channels),
            ("SELECT 1; UNLISTEN x; CLOSE ALL", Effect::Channels),
            ("PREPARE a AS SELECT 1", Effect::Prepare("a".to_owned())),
            ("PREPARE a AS SELECT 1; SELECT 2", pin(Pin::Prepare)),
            ("execute a(1)", Effect::Execute("a".to_owned())),
            ("PREPARE TRANSACTION 'x'", Effect::Nothing),
            ("DECLARE c CURSOR FOR SELECT 1", Effect::Nothing),
            ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", pin(Pin::HoldCursor)),
            ("CREATE TEMP TABLE x(a int)", pin(Pin::Temporary)),
            ("create local temporary table x(a int)", pin(Pin::Temporary)),
            ("CREATE TABLE pg_temp.x(a int)", pin(Pin::Temporary)),
            ("CREATE TABLE temperature(a int)", Effect::Nothing),
            ("SELECT 1 AS template", Effect::Nothing),
            ("SELECT 1 INTO TEMP x", pin(Pin::Temporary)),
            ("SELECT 1 INTO LOCAL TEMP x", pin(Pin::Temporary)),
            ("SELECT 1 INTO global temporary x", pin(Pin::Temporary)),
            ("SELECT * INTO pg_temp.x FROM y", pin(Pin::Temporary)),
            ("SELECT * INTO \"pg_temp\".x FROM y", pin(Pin::Temporary)),
            ("SELECT * FROM pg_temp.x", Effect::Nothing),
            ("SET app . theme = 'dark'", pin(Pin::Setting)),
            ("SET app. theme = 'dark'", pin(Pin::Setting)),
            ("SET app/* a */.theme = 'dark'", pin(Pin::Setting)),
            ("SET U&\"app\" = 'dark'", pin(Pin::Setting)),
            ("RESET app . theme", pin(Pin::Setting)),
            ("SELECT 1 -- the user's context\n, set_tenant('x')", Effect::Unknown),
            ("SELECT pg_advisory_lock(1)", pin(Pin::AdvisoryLock)),
            ("SELECT pg_advisory_xact_lock(1)", Effect::Nothing),
            ("SELECT set_config('a.b', $1, true)", Effect::Nothing),
            ("SELECT set_config('a.B', 'x', false)", Effect::Settings(vec!["a.b".to_owned()])),
            ("SELECT SET_CONFIG('a.b', 'x,(', $1)", Effect::Settings(vec!["a.b".to_owned()])),
            ("SELECT set_config($1, $2, false)", Effect::AnySetting),
            ("SELECT set_config(name, 'x', false) FROM t", Effect::AnySetting),
            ("UPDATE pg_settings SET setting = 'x' WHERE name = 'y'", Effect::AnySetting),
            ("SELECT * FROM pg_settings", Effect::Nothing),
            ("DO $$ begin perform 1; end $$", Effect::Unknown),
            ("CALL f()", Effect::Unknown),
            ("SELECT ';'; SELECT $a$;$a$, E'\\';', \";\"", Effect::Nothing),
            ("SELECT nextval('s')", Effect::Nothing),
            ("SELECT set_tenant('x')", Effect::Unknown),
            ("SELECT 1; SELECT set_tenant('x')", Effect::Unknown),
            ("SELECT currval('s')", Effect::Unknown),
        ] {
            assert_eq!(classify(sql.as_bytes()), effect, "{sql}");
        }
    }

    #[test]
    fn names_of_settings() {
        let text =
            b"DO $$ BEGIN SET my.a = 1; PERFORM set_config('My.b', t.c, false); RESET x.y; END $$ 1.5 a. .b";
        assert_eq!(custom_names(text), ["my.a", "my.b", "x.y"]);
    }

    proptest::proptest! {
        #[test]
        fn names_are_found_in_any_text(sql in "[ '.a1_;$]{0,40}") {
            custom_names(sql.as_bytes());
        }

        #[test]
        fn any_text_is_classified(sql in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            classify(&sql);
        }

        #[test]
        fn odd_texts_are_classified(sql in "[ ;'\"$a/*E\\\\-]{0,40}") {
            classify(sql.as_bytes());
        }
    }
}
