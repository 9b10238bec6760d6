//! Whether what the router puts in front of a client's message must have been answered before that is sent.
//!
//! PostgreSQL reports a setting's value when it is ready, if that is another than it reported last. What a connection is set to for a
//! session, and what the session's own statement sets it back to, are no change if both are in one group: the session would
//! believe what it was told before, as of an encoding in which it then goes on to write.

use switchyard_wire::frame::{self, frontend};

use crate::classify::skip_blank;

/// How much of a text is looked at, in bytes.
const LOOKED_AT: usize = 4096;

/// Whether the first of these messages may set a parameter, by its text.
pub(super) fn may_set(messages: &[u8]) -> bool {
    let Some(&tag) = messages.first() else { return false };
    let body = messages.get(frame::HEADER..).unwrap_or_default();
    let text = match tag {
        frontend::QUERY => body,
        // Behind the statement's name.
        frontend::PARSE => match memchr::memchr(0, body) {
            Some(end) => &body[end + 1..],
            None => return false,
        },
        _ => return false,
    };
    let end = memchr::memchr(0, text).unwrap_or(text.len());
    let text = skip_blank(&text[..end.min(LOOKED_AT)]);
    let begins = |word: &[u8]| text.get(..word.len()).is_some_and(|of| of.eq_ignore_ascii_case(word));
    if [&b"SET"[..], b"RESET", b"DISCARD"].iter().any(|word| begins(word)) {
        return true;
    }
    let lower = text.to_ascii_lowercase();
    let has = |part: &[u8]| memchr::memmem::find(&lower, part).is_some();
    // Behind a BEGIN, or in a call.
    has(b"set_config") || (memchr::memchr(b';', &lower).is_some() && (has(b"set ") || has(b"discard")))
}

#[cfg(test)]
mod tests {
    use switchyard_wire::build;

    use super::*;

    #[test]
    fn what_may_set() {
        for (sql, may) in [
            ("SET NAMES 'UTF8'", true),
            (" /* it */ reset client_encoding", true),
            ("DISCARD ALL", true),
            ("SELECT set_config('TimeZone', 'UTC', false)", true),
            ("BEGIN; RESET ALL ; COMMIT", true),
            ("SELECT 1", false),
            ("UPDATE t SET n = 1", false),
            ("", false),
        ] {
            let (mut query, mut parse) = (Vec::new(), Vec::new());
            build::query(&mut query, sql.as_bytes()).unwrap();
            build::parse(&mut parse, b"name", sql.as_bytes(), &[]).unwrap();
            assert_eq!((may_set(&query), may_set(&parse)), (may, may), "{sql}");
            assert!(!may_set(&query[..3]) && !may_set(&parse[..7]));
        }
        let mut sync = Vec::new();
        build::sync(&mut sync);
        assert!(!may_set(&sync) && !may_set(b""));
    }
}
