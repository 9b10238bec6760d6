//! What a text may reach that it does not name: see [`crate::hidden`].

use super::skip_blank;
use crate::hidden::{DEFINES, READS, WRITES};

/// Words of which one stands in every statement that changes what is behind the texts of others.
const DEFINED: [&[u8]; 13] = [
    b"function",
    b"procedure",
    b"trigger",
    b"view",
    b"rule",
    b"policy",
    b"operator",
    b"default",
    b"extension",
    b"cast",
    b"domain",
    b"check",
    b"generated",
];

/// Whether `sql` reads, writes, or defines.
pub(crate) fn reach(sql: &[u8]) -> u8 {
    let text = skip_blank(sql);
    let end = text.iter().position(|b| !b.is_ascii_alphabetic()).unwrap_or(text.len());
    let is = |words: &[&[u8]]| words.iter().any(|word| text[..end].eq_ignore_ascii_case(word));
    let single = super::single(text);
    if single {
        if is(&[b"select", b"values", b"table", b"fetch", b"move", b"declare"]) || text.first() == Some(&b'(')
        {
            return READS;
        }
        if is(&[
            b"insert",
            b"update",
            b"delete",
            b"with",
            b"merge",
            b"copy",
            b"truncate",
            b"explain",
            b"execute",
        ]) {
            return READS | WRITES;
        }
        if text.is_empty() || is(HARMLESS) {
            return 0;
        }
    }
    let lower = text.to_ascii_lowercase();
    let has = |word: &[u8]| memchr::memmem::find(&lower, word).is_some();
    let defines = (has(b"create") || has(b"alter") || has(b"drop")) && DEFINED.into_iter().any(has);
    READS | WRITES | if defines { DEFINES } else { 0 }
}

/// Words that begin statements which reach nothing.
const HARMLESS: &[&[u8]] = &[
    b"begin",
    b"start",
    b"commit",
    b"end",
    b"rollback",
    b"abort",
    b"savepoint",
    b"release",
    b"set",
    b"reset",
    b"show",
    b"listen",
    b"unlisten",
    b"notify",
    b"close",
    b"deallocate",
    b"discard",
    b"prepare",
    b"lock",
    b"checkpoint",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_texts_reach() {
        for (sql, reached) in [
            ("", 0),
            (" /* a */ BEGIN;", 0),
            ("SET a = 1", 0),
            ("select 1", READS),
            ("(SELECT 1)", READS),
            ("INSERT INTO t VALUES (1)", READS | WRITES),
            ("WITH x AS (DELETE FROM t) SELECT 1", READS | WRITES),
            ("BEGIN; SELECT 1; COMMIT", READS | WRITES),
            ("CREATE TABLE t (a int)", READS | WRITES),
            ("create table t (a int DEFAULT f())", READS | WRITES | DEFINES),
            ("SELECT 1; DROP TRIGGER t ON x", READS | WRITES | DEFINES),
            (
                "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                READS | WRITES | DEFINES,
            ),
        ] {
            assert_eq!(reach(sql.as_bytes()), reached, "{sql}");
        }
    }
}
