//! Words, strings and signs of a console command.

use switchyard_wire::error::{ErrorResponse, sqlstate};

/// A piece of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A bare word or number, as written.
    Word(String),
    /// A string in single quotes, or the value of a parameter.
    Text(String),
    /// A name in double quotes.
    Name(String),
    /// `$1` is 1.
    Param(u16),
    /// Any other sign.
    Sign(char),
}

/// Takes a text apart into statements, and these into tokens. Comments are left out; empty statements too.
///
/// # Errors
/// A string, name or comment without an end.
pub(super) fn statements(text: &str) -> Result<Vec<Vec<Token>>, ErrorResponse> {
    let mut all = Vec::new();
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        rest = match first {
            c if c.is_whitespace() => &rest[c.len_utf8()..],
            '-' if rest.starts_with("--") => rest.split_once('\n').map_or("", |(_, after)| after),
            '/' if rest.starts_with("/*") => comment(rest)?,
            '\'' | '"' => {
                let (inside, after) = quoted(rest, first)?;
                tokens.push(if first == '\'' { Token::Text(inside) } else { Token::Name(inside) });
                after
            }
            ';' => {
                all.push(std::mem::take(&mut tokens));
                &rest[1..]
            }
            '$' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                let (digits, after) = split_where(&rest[1..], |c| !c.is_ascii_digit());
                let number =
                    digits.parse().map_err(|_| syntax(&format!("there is no parameter ${digits}")))?;
                tokens.push(Token::Param(number));
                after
            }
            c if is_of_word(c) => {
                let (word, after) = split_where(rest, |c| !is_of_word(c));
                tokens.push(Token::Word(word.to_owned()));
                after
            }
            c => {
                tokens.push(Token::Sign(c));
                &rest[c.len_utf8()..]
            }
        };
    }
    all.push(tokens);
    all.retain(|tokens| !tokens.is_empty());
    Ok(all)
}

/// Names of databases here are `database@shard`, names of shards have dots and dashes.
fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '@' | '-' | '+')
}

fn split_where(text: &str, end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(end).unwrap_or(text.len()))
}

/// What follows the comment that `text` begins with. They nest. // src/backend/parser/scan.l
fn comment(text: &str) -> Result<&str, ErrorResponse> {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Ok(&text[at..]);
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    Err(syntax("unterminated /* comment"))
}

/// What stands between `quote`s at the beginning of `text`, where a doubled one stands for itself, and what follows.
fn quoted(text: &str, quote: char) -> Result<(String, &str), ErrorResponse> {
    let mut inside = String::new();
    let mut rest = &text[1..];
    loop {
        let Some((before, after)) = rest.split_once(quote) else {
            return Err(syntax("unterminated quoted string or name"));
        };
        inside.push_str(before);
        match after.strip_prefix(quote) {
            Some(after) => {
                inside.push(quote);
                rest = after;
            }
            None => return Ok((inside, after)),
        }
    }
}

/// An error in what was written.
pub(super) fn syntax(message: &str) -> ErrorResponse {
    ErrorResponse::error(sqlstate::SYNTAX_ERROR, message).hint("SHOW HELP lists what there is.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(w: &str) -> Token {
        Token::Word(w.to_owned())
    }

    #[test]
    fn pieces() {
        let text = "show /* a /* b */ ; */ pools; -- x;\n PAUSE \"a\"\"b\" 'it''s' crm@s-1.x $12 = 5;;";
        let expected = vec![
            vec![word("show"), word("pools")],
            vec![
                word("PAUSE"),
                Token::Name("a\"b".into()),
                Token::Text("it's".into()),
                word("crm@s-1.x"),
                Token::Param(12),
                Token::Sign('='),
                word("5"),
            ],
        ];
        assert_eq!(statements(text).unwrap(), expected);
        assert!(statements(" ; -- nothing").unwrap().is_empty());
    }

    #[test]
    fn what_does_not_end() {
        for text in ["'a", "\"a", "'a''", "/* a", "/*/**/", "$99999999"] {
            assert!(statements(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text(text in ".{0,60}") {
            let _ = statements(&text);
        }
    }
}
