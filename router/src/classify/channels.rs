//! The statements that decide which channels a session listens on: LISTEN, UNLISTEN, and the
//! savepoints that take them back.
//!
//! The names matter only where PostgreSQL has accepted the statement, so what it refuses need not
//! be refused here.

use super::{skip_blank, split};

/// Longest name, in bytes. // NAMEDATALEN - 1, src/include/pg_config_manual.h
const NAME_BYTES: usize = 63;

/// A statement, as far as channels are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// `LISTEN name`
    Listen(Box<[u8]>),
    /// `UNLISTEN name`
    Unlisten(Box<[u8]>),
    /// `UNLISTEN *`
    UnlistenAll,
    /// LISTEN or UNLISTEN of a name that is written in a way not understood here.
    Unreadable,
    /// `SAVEPOINT name`
    Savepoint(Box<[u8]>),
    /// `ROLLBACK TO name`
    RollbackTo(Box<[u8]>),
    /// `RELEASE name`
    Release(Box<[u8]>),
}

/// The steps in `sql`, in order.
pub(crate) fn steps(sql: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = sql;
    loop {
        let (statement, after) = split(rest);
        steps.extend(step(skip_blank(statement)));
        match after {
            Some(after) => rest = after,
            None => return steps,
        }
    }
}

/// Whether `sql` may hold a LISTEN or an UNLISTEN: a look that costs little.
pub(crate) fn may_listen(sql: &[u8]) -> bool {
    memchr::memchr2_iter(b'l', b'L', sql)
        .any(|at| sql.get(at..at + 6).is_some_and(|word| word.eq_ignore_ascii_case(b"listen")))
}

/// Whether `sql` says that it notifies.
pub(crate) fn may_notify(sql: &[u8]) -> bool {
    memchr::memchr2_iter(b'n', b'N', sql)
        .any(|at| sql.get(at..at + 6).is_some_and(|word| word.eq_ignore_ascii_case(b"notify")))
}

fn step(statement: &[u8]) -> Option<Step> {
    let (word, rest) = keyword(statement)?;
    match word.as_slice() {
        b"listen" => Some(name(rest).map_or(Step::Unreadable, Step::Listen)),
        b"unlisten" if rest.starts_with(b"*") => Some(Step::UnlistenAll),
        b"unlisten" => Some(name(rest).map_or(Step::Unreadable, Step::Unlisten)),
        b"savepoint" => name(rest).map(Step::Savepoint),
        b"release" => name(skip_word(rest, b"savepoint")).map(Step::Release),
        b"rollback" => {
            let rest = skip_word(skip_word(rest, b"work"), b"transaction");
            let (to, rest) = keyword(rest)?;
            (to == b"to").then(|| name(skip_word(rest, b"savepoint"))).flatten().map(Step::RollbackTo)
        }
        _ => None,
    }
}

/// The word that `text` begins with, in lower case, and what follows it.
fn keyword(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let end = text.iter().position(|b| !is_part(*b)).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    (!word.is_empty()).then(|| (word.to_ascii_lowercase(), skip_blank(rest)))
}

/// Without `word`, where that is not itself the name.
fn skip_word<'a>(text: &'a [u8], word: &[u8]) -> &'a [u8] {
    match keyword(text) {
        Some((found, rest)) if found == word && !rest.is_empty() => rest,
        _ => text,
    }
}

/// A letter, digit or the like, as part of a name. // src/backend/parser/scan.l ident_cont
fn is_part(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$') || b >= 0x80
}

/// The name that `text` consists of, as PostgreSQL has it: in lower case unless quoted, and cut.
fn name(text: &[u8]) -> Option<Box<[u8]>> {
    let text = match text {
        [b'u' | b'U', b'&', b'"', ..] => return None,
        text => text,
    };
    let (mut name, rest) = match text.strip_prefix(b"\"") {
        Some(quoted) => quoted_name(quoted)?,
        None => {
            let (name, rest) = keyword(text)?;
            (name, rest)
        }
    };
    if !skip_blank(rest).is_empty() || name.is_empty() {
        return None;
    }
    name.truncate(cut(&name));
    Some(name.into())
}

fn quoted_name(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut name = Vec::new();
    let mut rest = text;
    loop {
        let end = memchr::memchr(b'"', rest)?;
        name.extend_from_slice(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix(b"\"") {
            Some(more) => {
                name.push(b'"');
                rest = more;
            }
            None => return Some((name, rest)),
        }
    }
}

/// How much of a name PostgreSQL keeps: whole characters. // src/backend/utils/mb/mbutils.c pg_mbcliplen
fn cut(name: &[u8]) -> usize {
    if name.len() <= NAME_BYTES {
        return name.len();
    }
    let mut end = NAME_BYTES;
    while end > 0 && name[end] & 0xC0 == 0x80 {
        end -= 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(name: &str) -> Vec<Step> {
        vec![Step::Listen(name.as_bytes().into())]
    }

    #[test]
    fn names_are_as_postgresql_has_them() {
        for (sql, steps_there) in [
            ("LISTEN news", listen("news")),
            ("listen /* a */ News ; ", listen("news")),
            ("-- c\nLISTEN \"News \"\"1\"\"\"", listen("News \"1\"")),
            ("LISTEN größe", listen("größe")),
            ("LISTEN", vec![Step::Unreadable]),
            ("LISTEN a b", vec![Step::Unreadable]),
            ("LISTEN U&\"d\\0061ta\"", vec![Step::Unreadable]),
            ("UNLISTEN *", vec![Step::UnlistenAll]),
            ("unlisten x", vec![Step::Unlisten((*b"x").into())]),
            ("SELECT 'LISTEN x'; NOTIFY x", vec![]),
            ("SAVEPOINT s", vec![Step::Savepoint((*b"s").into())]),
            ("RELEASE SAVEPOINT s", vec![Step::Release((*b"s").into())]),
            ("RELEASE savepoint", vec![Step::Release((*b"savepoint").into())]),
            ("ROLLBACK WORK TO SAVEPOINT S", vec![Step::RollbackTo((*b"s").into())]),
            ("ROLLBACK TRANSACTION TO s", vec![Step::RollbackTo((*b"s").into())]),
            ("ROLLBACK", vec![]),
            ("ROLLBACK AND CHAIN", vec![]),
        ] {
            assert_eq!(steps(sql.as_bytes()), steps_there, "{sql}");
        }
        let several =
            steps(b"SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nLISTEN a;\nRESET ALL;");
        assert_eq!(several, [Step::UnlistenAll, Step::Listen((*b"a").into())]);
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(steps(format!("LISTEN {}", "x".repeat(70)).as_bytes()), listen(&"x".repeat(63)));
        let odd = format!("x{}", "ö".repeat(40));
        assert_eq!(steps(format!("LISTEN {odd}").as_bytes()), listen(&odd[..63]));
        let even = "ö".repeat(40);
        assert_eq!(steps(format!("LISTEN {even}").as_bytes()), listen(&even[..62]));
    }

    #[test]
    fn a_look() {
        assert!(may_listen(b"begin; UnListen *"));
        assert!(!may_listen(b"select list_of_all"));
        assert!(may_notify(b"select pg_notify('a', 'b')"));
        assert!(!may_notify(b"select not"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(sql in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            steps(&sql);
        }
    }
}
