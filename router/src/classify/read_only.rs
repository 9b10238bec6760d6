//! Whether a text asks for what a read-only tenant may not have: transactions that write.
//!
//! The tenant's transactions are read-only by default, by a setting of its context. PostgreSQL lets nobody out of a
//! read-only transaction once it has taken a snapshot, which whatever calls a function has. So only statements that
//! run without one can ask for more, and these show in the text.

use super::{Words, skip_blank, split};

/// What a statement that asks for more is replaced by: PostgreSQL fails it where it stands, and the transaction
/// with it.
pub(crate) const REFUSAL: &[u8] = b"DO $$BEGIN RAISE EXCEPTION USING ERRCODE = 'read_only_sql_transaction', \
    MESSAGE = 'cannot set transaction read-write mode: the tenant is read-only', \
    HINT = 'Ask whoever operates this service.'; END$$";

/// Words of which one stands in every text that asks for it.
const SUSPECTS: [&[u8]; 4] = [b"write", b"transaction_read_only", b"reset", b"discard"];

/// Whether one of the statements of `sql` asks for transactions that write.
pub(crate) fn asks_to_write(sql: &[u8]) -> bool {
    let lower = sql.to_ascii_lowercase();
    let has = |word: &[u8]| memchr::memmem::find(&lower, word).is_some();
    if !SUSPECTS.into_iter().any(has) {
        return false;
    }
    if has(b"set_config") && has(b"transaction_read_only") {
        return true;
    }
    let (mut count, mut resets) = (0, false);
    let mut rest = sql;
    loop {
        let (statement, after) = split(rest);
        if !skip_blank(statement).is_empty() {
            count += 1;
            let words = words(statement);
            let first = words.first().map(String::as_str).unwrap_or_default();
            let writes = match first {
                "begin" | "start" => words.windows(2).any(|pair| pair == ["read", "write"]),
                "set" | "reset" => {
                    let named = words.iter().any(|word| word.ends_with("transaction_read_only"));
                    let on = words.last().is_some_and(|w| ["on", "true", "yes", "1"].contains(&w.as_str()));
                    (named && !on) || words.windows(2).any(|pair| pair == ["read", "write"])
                }
                _ => false,
            };
            if writes {
                return true;
            }
            resets |= matches!(first, "reset" | "discard");
        }
        match after {
            Some(after) => rest = after,
            // The context is set again behind a message, not within one.
            None => return resets && count > 1,
        }
    }
}

/// All words, whatever stands between.
fn words(statement: &[u8]) -> Vec<String> {
    let mut words = Words { rest: statement };
    let mut all = Vec::new();
    loop {
        match words.next() {
            Some(word) => all.push(word),
            None if words.rest.len() < 2 => return all,
            None => words.rest = &words.rest[1..],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::asks_to_write;

    #[test]
    fn what_asks_for_it_and_what_does_not() {
        for sql in [
            "BEGIN READ WRITE",
            "begin isolation level serializable, read /* */ write",
            "START TRANSACTION READ WRITE; SELECT 1",
            "SET TRANSACTION READ WRITE",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ\n--\n WRITE",
            "set transaction_read_only = off",
            "SET LOCAL \"transaction_read_only\" TO 'f'",
            "SET default_transaction_read_only TO DEFAULT",
            "RESET default_transaction_read_only",
            "SELECT set_config('default_transaction_read_only', 'off', false)",
            "SELECT 1; SET transaction_read_only = 0",
            "RESET ALL; COMMIT; INSERT INTO t VALUES (1)",
            "DISCARD ALL; SELECT 1",
        ] {
            assert!(asks_to_write(sql.as_bytes()), "{sql}");
        }
        for sql in [
            "BEGIN",
            "BEGIN READ ONLY",
            "SELECT 'read write'",
            "INSERT INTO t VALUES ('set transaction read write')",
            "SET default_transaction_read_only = on",
            "SET transaction_read_only TO 'on'",
            "RESET ALL",
            "DISCARD ALL;",
            "SHOW transaction_read_only",
            "SET work_mem = '1MB'; SELECT 'write'",
        ] {
            assert!(!asks_to_write(sql.as_bytes()), "{sql}");
        }
    }
}
