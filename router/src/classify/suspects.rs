//! The handful of names that make a plain statement one that leaves something behind.

use std::sync::LazyLock;

use memchr::memchr;

use super::lexer::trim_blank_end;
use super::{Effect, Pin, harmless};
use crate::context::is_parsed_by;

const LAST_VALUES: [&str; 2] = ["currval", "lastval"];

static SUSPECTS: LazyLock<aho_corasick::AhoCorasick> = LazyLock::new(|| {
    aho_corasick::AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .build([
            "set_config",
            "advisory_lock",
            "temp",
            LAST_VALUES[0],
            LAST_VALUES[1],
            "setseed",
            "pg_settings",
        ])
        .unwrap_or_else(|_| unreachable!("the patterns are constants"))
});

/// Whether a text may call `currval` or `lastval` by name.
pub(crate) fn asks_for_last_values(text: &[u8]) -> bool {
    let asks = |found: &[u8]| LAST_VALUES.iter().any(|name| found.eq_ignore_ascii_case(name.as_bytes()));
    SUSPECTS.find_iter(text).any(|found| asks(&text[found.range()]))
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
pub(super) fn with_functions(effect: Effect, text: &[u8]) -> Effect {
    use Effect::{AnySetting, Nothing, ParsedOtherwise, Settings, Unknown};
    match effect {
        Nothing | ParsedOtherwise | Settings(_) | AnySetting if harmless::calls_unknown(text) => Unknown,
        effect => effect,
    }
}

/// What the suspects that are in it leave behind.
pub(super) fn suspects(text: &[u8]) -> Effect {
    if is_above_suspicion(text) {
        return Effect::Nothing;
    }
    let mut effect = Effect::Nothing;
    let mut settings = Vec::new();
    let mut parsed_otherwise = false;
    let mut has_into = None;
    for found in SUSPECTS.find_iter(text) {
        let after = &text[found.end()..];
        match found.pattern().as_usize() {
            0 => {
                // Local to the transaction unless its third argument is false; whatever cannot be
                // told apart is taken for lasting.
                match set_config(&after[..after.len().min(CALL_BYTES)]) {
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
                let mut before = trim_blank_end(&text[..found.start()]);
                for scope in [&b"local"[..], b"global"] {
                    if word_before(before, scope) {
                        before = trim_blank_end(&before[..before.len() - scope.len()]);
                    }
                }
                // Of pg_temp it is not told whether it is behind this INTO.
                let mut into_schema = || {
                    word_before(before, b"pg_")
                        && *has_into
                            .get_or_insert_with(|| text.windows(4).any(|w| w.eq_ignore_ascii_case(b"into")))
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

/// Whether `before` ends with this word, and blanks.
pub(super) fn word_before(before: &[u8], word: &[u8]) -> bool {
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

/// Longest call of `set_config` that is read, in bytes; a longer one may set anything.
const CALL_BYTES: usize = 4096;

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
