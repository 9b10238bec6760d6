//! Just enough of the lexical rules of SQL to find words and the ends of statements.

use memchr::memchr;

/// Words of a statement, in lower case unless quoted; dots belong to words, quotes do not.
pub(super) struct Words<'a> {
    pub(super) rest: &'a [u8],
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

/// Comments in front of a word are looked through for this many bytes: texts may be long, and have many words.
const BEHIND_BYTES: usize = 1024;

/// Drops white space and comments from the end, as far as they can be told from behind.
pub(super) fn trim_blank_end(sql: &[u8]) -> &[u8] {
    let first = sql.len().saturating_sub(BEHIND_BYTES);
    let mut end = sql.len();
    loop {
        end = first + sql[first..end].trim_ascii_end().len();
        let near = &sql[first..end];
        let line = near.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let comment = match near.strip_suffix(b"*/") {
            Some(before) => memchr::memmem::rfind(before, b"/*"),
            None => memchr::memmem::find(&near[line..], b"--").map(|at| line + at),
        };
        match comment {
            Some(at) => end = first + at,
            None => return &sql[..end],
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
