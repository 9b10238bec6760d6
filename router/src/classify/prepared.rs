//! Which prepared statements a text uses by their names.

use std::sync::LazyLock;

use super::lexer::{Words, skip_blank, split};

/// What is done with a prepared statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// `EXECUTE`
    Execute,
    /// `DEALLOCATE`
    Deallocate,
}

static VERBS: LazyLock<aho_corasick::AhoCorasick> = LazyLock::new(|| {
    aho_corasick::AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .build(["execute", "deallocate"])
        .unwrap_or_else(|_| unreachable!("the patterns are constants"))
});

/// What `sql` may do with prepared statements, and with which. Of EXECUTE also what only looks like it, in a constant or a
/// comment, where it does no harm.
pub(crate) fn mentioned(sql: &[u8]) -> impl Iterator<Item = (Verb, String)> {
    VERBS.find_iter(sql).filter_map(|found| {
        let is_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.') || *b >= 0x80;
        let (before, after) = (&sql[..found.start()], &sql[found.end()..]);
        if before.last().is_some_and(is_word) || after.first().is_some_and(is_word) {
            return None;
        }
        let verb = [Verb::Execute, Verb::Deallocate][found.pattern().as_usize()];
        if verb == Verb::Deallocate && !begins_at(sql, found.start()) {
            return None;
        }
        let mut words = Words { rest: skip_blank(after) };
        let mut name = words.next()?;
        if verb == Verb::Deallocate && name == "prepare" {
            name = words.next()?;
        }
        Some((verb, name))
    })
}

/// Whether a statement of `sql` begins there.
fn begins_at(sql: &[u8], at: usize) -> bool {
    let mut rest = Some(sql);
    while let Some(of) = rest {
        let begin = sql.len() - skip_blank(of).len();
        if begin >= at {
            return begin == at;
        }
        rest = split(of).1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_wherever_they_stand() {
        let of = |sql: &str| -> Vec<String> {
            mentioned(sql.as_bytes()).map(|(verb, name)| format!("{verb:?} {name}")).collect()
        };
        assert_eq!(
            of("SELECT 1; execute a (1, 2); EXPLAIN EXECUTE /* b */ \"B c\""),
            ["Execute a", "Execute B c"]
        );
        assert_eq!(of("BEGIN; DEALLOCATE PREPARE a; Deallocate b"), ["Deallocate a", "Deallocate b"]);
        assert_eq!(of("SELECT 'deallocate a', $$; deallocate b$$ -- ; deallocate c"), [""; 0]);
        assert_eq!(of("/* ; deallocate a */ ; ; deallocate b"), ["Deallocate b"]);
        assert_eq!(of("SELECT executed, to_execute, execute.a FROM t; EXECUTE"), [""; 0]);
    }
}
