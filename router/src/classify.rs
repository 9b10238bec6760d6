//! What a statement's text says of the state it will leave behind.
//!
//! This decides what is convenient (carry a `SET`, keep a connection for a temporary table, clean
//! one before another session of the same tenant uses it), never what is safe: between tenants
//! every connection is cleaned whatever its statements looked like.

pub(crate) mod channels;
mod harmless;
mod lexer;
mod names;
pub(crate) mod prepared;
pub(crate) mod reach;
pub(crate) mod read_only;
mod suspects;

use memchr::memchr;

use self::lexer::Words;
pub(crate) use self::lexer::{skip_blank, split};
pub(crate) use self::names::custom_names;
pub(crate) use self::suspects::asks_for_last_values;
use self::suspects::{suspects, with_functions};
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

/// One statement that is out of the ordinary.
fn one(text: &[u8]) -> Effect {
    let mut words = Words { rest: text };
    let Some(first) = words.next() else { return Effect::Nothing };
    match first.as_str() {
        // Names of settings are the same in either case, also where they are quoted.
        "set" => match set(&mut words) {
            Effect::Set(name) if is_default(text, &name) => Effect::Reset(name.to_ascii_lowercase()),
            Effect::Set(name) => Effect::Set(name.to_ascii_lowercase()),
            effect => effect,
        },
        "reset" => match words.next().as_deref() {
            Some("all") => Effect::ResetAll,
            Some("session") | None => Effect::Pin(Pin::Setting),
            Some("role") => Effect::Settings(vec!["role".to_owned()]),
            Some("time") => Effect::Reset("timezone".to_owned()),
            Some(name) if is_in_parts(name, words.rest) => Effect::Pin(Pin::Setting),
            Some(name) => Effect::Reset(name.to_ascii_lowercase()),
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
                // What it calls is called when it is read from.
                with_functions(suspects(text), text)
            }
        }
        "load" => Effect::Pin(Pin::Load),
        "discard" => match words.next().as_deref() {
            Some("all") => Effect::DiscardAll,
            _ => Effect::Unknown,
        },
        "create" => {
            let first: Vec<_> = (0..4).map_while(|_| words.next()).collect();
            let temporary = first.iter().any(|w| w == "temp" || w == "temporary");
            let runs_a_query = first.iter().take(2).any(|w| w == "table" || w == "materialized");
            let lower = text.to_ascii_lowercase();
            if temporary || memchr::memmem::find(&lower, b"pg_temp").is_some() {
                Effect::Pin(Pin::Temporary)
            } else if runs_a_query && memchr::memmem::find(&lower, b"select").is_some() {
                with_functions(suspects(text), text)
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

#[cfg(test)]
mod tests;
