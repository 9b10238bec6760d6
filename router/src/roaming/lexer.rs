//! Tokens of SQL, as far as statements that set something need them. // src/backend/parser/scan.l

use memchr::memchr;

use crate::classify::skip_blank;

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A word in lower case: a keyword or a name.
    Word(String),
    /// A quoted name.
    Name(String),
    /// A string; none if it is written in a way that is not read here.
    Text(Option<String>),
    /// A number, as it stands.
    Number(String),
    /// `$1` and so on.
    Parameter(usize),
    /// `::`
    Cast,
    /// Any other character.
    Sign(u8),
}

/// Most tokens that are kept of one statement; what is longer sets nothing that could be told.
pub(super) const TOKENS_MAX: usize = 512;

/// Takes the next token off `rest`.
pub(super) fn next(rest: &mut &[u8]) -> Option<Token> {
    *rest = skip_blank(rest);
    let text = *rest;
    let first = *text.first()?;
    let (token, len) = match first {
        b'\'' => string(text, 1, false),
        b'e' | b'E' if text.get(1) == Some(&b'\'') => string(text, 2, true),
        b'b' | b'B' | b'x' | b'X' | b'n' | b'N' if text.get(1) == Some(&b'\'') => {
            (Token::Text(None), string(text, 2, false).1)
        }
        b'u' | b'U' if text.get(1) == Some(&b'&') && text.get(2) == Some(&b'\'') => {
            (Token::Text(None), string(text, 3, false).1)
        }
        b'u' | b'U' if text.get(1) == Some(&b'&') && text.get(2) == Some(&b'"') => {
            let (_, len) = name(&text[2..]);
            (Token::Text(None), len + 2)
        }
        b'"' => {
            let (name, len) = name(text);
            (Token::Name(name), len)
        }
        b'$' if text.get(1).is_some_and(u8::is_ascii_digit) => {
            let digits = text[1..].iter().take_while(|b| b.is_ascii_digit()).count();
            let number = std::str::from_utf8(&text[1..=digits]).ok().and_then(|n| n.parse().ok());
            (Token::Parameter(number.unwrap_or(0)), digits + 1)
        }
        b'$' => dollar(text),
        b'0'..=b'9' => {
            let is = |b: &&u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_');
            let len = text.iter().take_while(is).count();
            (Token::Number(String::from_utf8_lossy(&text[..len]).into_owned()), len)
        }
        b':' if text.get(1) == Some(&b':') => (Token::Cast, 2),
        b if is_word(b) => {
            let len = text.iter().take_while(|b| is_word(**b) || b.is_ascii_digit() || **b == b'$').count();
            (Token::Word(String::from_utf8_lossy(&text[..len]).to_ascii_lowercase()), len)
        }
        b => (Token::Sign(b), 1),
    };
    *rest = &text[len.min(text.len())..];
    Some(token)
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphabetic() || b == b'_' || b >= 0x80
}

/// The string whose quote ends at `start`, and the length of the token.
fn string(text: &[u8], start: usize, escapes: bool) -> (Token, usize) {
    let mut value = Vec::new();
    let mut plain = true;
    let mut i = start;
    while i < text.len() {
        match text[i] {
            b'\'' if text.get(i + 1) == Some(&b'\'') => {
                value.push(b'\'');
                i += 2;
            }
            b'\'' => {
                // A backslash means what standard_conforming_strings says, and a string may go on in the next line.
                let goes_on = skip_blank(&text[i + 1..]).first() == Some(&b'\'');
                let read = if plain && !goes_on { String::from_utf8(value).ok() } else { None };
                return (Token::Text(read), i + 1);
            }
            b'\\' => {
                plain = false;
                i += if escapes { 2 } else { 1 };
            }
            b => {
                value.push(b);
                i += 1;
            }
        }
    }
    (Token::Text(None), text.len())
}

/// The quoted name that `text` begins with, and the length of the token.
fn name(text: &[u8]) -> (String, usize) {
    let mut value = Vec::new();
    let mut i = 1;
    while i < text.len() {
        match text[i] {
            b'"' if text.get(i + 1) == Some(&b'"') => {
                value.push(b'"');
                i += 2;
            }
            b'"' => return (String::from_utf8_lossy(&value).into_owned(), i + 1),
            b => {
                value.push(b);
                i += 1;
            }
        }
    }
    (String::from_utf8_lossy(&value).into_owned(), text.len())
}

fn dollar(text: &[u8]) -> (Token, usize) {
    let Some(end) = text[1..].iter().position(|b| !(is_word(*b) || b.is_ascii_digit())) else {
        return (Token::Sign(b'$'), 1);
    };
    if text[1 + end] != b'$' {
        return (Token::Sign(b'$'), 1);
    }
    let tag = &text[..end + 2];
    let inside = &text[tag.len()..];
    match memchr::memmem::find(inside, tag) {
        Some(len) => {
            let value = String::from_utf8(inside[..len].to_vec()).ok();
            (Token::Text(value), 2 * tag.len() + len)
        }
        None => (Token::Text(None), text.len()),
    }
}

/// The names in a list such as `search_path` holds. // src/backend/utils/adt/varlena.c SplitIdentifierString
pub(super) fn list(value: &[u8]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = value.trim_ascii();
    while !rest.is_empty() {
        if rest[0] == b'"' {
            let (found, len) = name(rest);
            names.push(found);
            rest = rest[len..].trim_ascii_start();
        } else {
            let end = memchr(b',', rest).unwrap_or(rest.len());
            let word = rest[..end].trim_ascii();
            if word.is_empty() || word.iter().any(u8::is_ascii_whitespace) {
                return None;
            }
            names.push(std::str::from_utf8(word).ok()?.to_ascii_lowercase());
            rest = &rest[end..];
        }
        match rest.first() {
            None => break,
            Some(b',') => rest = rest[1..].trim_ascii_start(),
            Some(_) => return None,
        }
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(sql: &str) -> Vec<Token> {
        let mut rest = sql.as_bytes();
        std::iter::from_fn(|| next(&mut rest)).collect()
    }

    #[test]
    fn tokens() {
        let text = |t: &str| Token::Text(Some(t.to_owned()));
        assert_eq!(
            all("SET \"App\".x='a''b' -- c\n $12::text, 1.5 /* /* */ */ $q$d'$q$"),
            [
                Token::Word("set".into()),
                Token::Name("App".into()),
                Token::Sign(b'.'),
                Token::Word("x".into()),
                Token::Sign(b'='),
                text("a'b"),
                Token::Parameter(12),
                Token::Cast,
                Token::Word("text".into()),
                Token::Sign(b','),
                Token::Number("1.5".into()),
                text("d'"),
            ]
        );
        for unread in ["'a\\b'", "E'a\\'b'", "U&'a'", "x'12'", "'a'\n'b'", "'a"] {
            assert_eq!(all(unread)[0], Token::Text(None), "{unread}");
        }
        assert_eq!(all("E'ab'"), [text("ab")]);
    }

    #[test]
    fn lists() {
        let names = |value: &str| list(value.as_bytes());
        assert_eq!(names("A, \"B c\",public"), Some(vec!["a".into(), "B c".into(), "public".into()]));
        assert_eq!(names(""), Some(vec![]));
        assert_eq!(names("a b"), None);
        assert_eq!(names("\"a\" b"), None);
        assert_eq!(names(",a"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends(sql in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut rest = &sql[..];
            while next(&mut rest).is_some() {}
            list(&sql);
        }

        #[test]
        fn odd_texts_end(sql in "[ ;'\"$a/*Ee\\\\U&.:0-9-]{0,40}") {
            let mut rest = sql.as_bytes();
            while next(&mut rest).is_some() {}
        }
    }
}
