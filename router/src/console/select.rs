//! What a server is asked by drivers and health checks rather than by operators.

use std::borrow::Cow;

use switchyard_wire::error::{ErrorResponse, sqlstate};

use super::PARAMETERS;
use super::lexer::Token;
use super::table::{Column, Columns, Kind, Table, Value};

/// One row of one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Constant {
    name: Cow<'static, str>,
    kind: Kind,
    value: Value,
    is_setting: bool,
}

impl Constant {
    pub(super) fn columns(&self) -> Columns {
        Cow::Owned(vec![Column { name: self.name.clone(), kind: self.kind }])
    }

    pub(super) fn tag(&self) -> &'static str {
        if self.is_setting { "SHOW" } else { "SELECT 1" }
    }

    pub(super) fn table(&self) -> Table {
        Table { columns: self.columns(), rows: vec![vec![self.value.clone()]], is_cut: false }
    }
}

/// Settings that are asked for, beside those reported at login.
const SETTINGS: [(&str, &str); 8] = [
    ("application_name", ""),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "off"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("search_path", ""),
];

/// Settings of a session that drivers set; nothing here depends on them.
const ACCEPTED: [&str; 19] = [
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "lock_timeout",
    "names",
    "search_path",
    "session",
    "standard_conforming_strings",
    "statement_timeout",
    "time",
    "timezone",
    "transaction",
];

/// What stands behind SHOW, if it is a setting.
pub(super) fn setting(tokens: &[Token]) -> Option<Constant> {
    let words: Option<Vec<_>> = tokens
        .iter()
        .map(|token| match token {
            Token::Word(word) | Token::Name(word) => Some(word.to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    // As PostgreSQL: the names in words are other spellings. // src/backend/parser/gram.y VariableShowStmt
    let name = match words?.join(" ").as_str() {
        "transaction isolation level" => "transaction_isolation".to_owned(),
        "time zone" => "timezone".to_owned(),
        name => name.to_owned(),
    };
    let (name, value) =
        PARAMETERS.iter().chain(&SETTINGS).find(|(known, _)| known.eq_ignore_ascii_case(&name))?;
    Some(Constant { name: Cow::Borrowed(name), kind: Kind::Text, value: (*value).into(), is_setting: true })
}

/// What stands behind SELECT, if it is a constant or a function that health checks call.
pub(super) fn constant(tokens: &[Token]) -> Option<Constant> {
    let text = |name: &'static str, value: String| Constant {
        name: name.into(),
        kind: Kind::Text,
        value: value.into(),
        is_setting: false,
    };
    match tokens {
        [Token::Word(number)] => {
            let value = number.parse::<u32>().ok().filter(|n| *n <= i32::MAX as u32)?;
            Some(Constant {
                name: "?column?".into(),
                kind: Kind::Int4,
                value: value.into(),
                is_setting: false,
            })
        }
        [Token::Text(value)] => Some(text("?column?", value.clone())),
        [Token::Word(name), Token::Sign('('), Token::Sign(')')] => {
            let name = name.to_ascii_lowercase();
            match name.strip_prefix("pg_catalog.").unwrap_or(&name) {
                "version" => Some(text("version", super::show::version())),
                "current_schema" => Some(Constant {
                    name: "current_schema".into(),
                    kind: Kind::Text,
                    value: Value::Null,
                    is_setting: false,
                }),
                _ => None,
            }
        }
        _ => None,
    }
}

/// A SET of a setting of the session: its tag.
///
/// # Errors
/// If it is none. Configuration is not changed from here.
pub(super) fn set(tokens: &[Token]) -> Result<&'static str, ErrorResponse> {
    let name = tokens.iter().find_map(|token| match token {
        Token::Word(word) | Token::Name(word) => {
            let word = word.to_ascii_lowercase();
            let is_scope =
                tokens.len() > 2 && (word == "local" || (word == "session" && !is_characteristics(tokens)));
            (!is_scope).then_some(word)
        }
        _ => None,
    });
    match name {
        Some(name) if ACCEPTED.contains(&name.as_str()) => Ok("SET"),
        name => Err(ErrorResponse::error(
            sqlstate::CANT_CHANGE_RUNTIME_PARAM,
            format!("parameter \"{}\" cannot be changed here", super::shown(&name.unwrap_or_default())),
        )
        .hint("Change the configuration file, then RELOAD.")),
    }
}

/// `SESSION CHARACTERISTICS AS TRANSACTION ...`.
fn is_characteristics(tokens: &[Token]) -> bool {
    matches!(tokens, [_, Token::Word(word), ..] if word.eq_ignore_ascii_case("characteristics"))
}

#[cfg(test)]
mod tests {
    use super::super::lexer::statements;
    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        statements(text).unwrap().remove(0)
    }

    #[test]
    fn settings() {
        let value = |text: &str| setting(&tokens(text)).map(|c| c.value);
        assert_eq!(value("client_encoding"), Some("UTF8".into()));
        assert_eq!(value("DATESTYLE"), Some("ISO".into()));
        assert_eq!(value("transaction isolation level"), Some("read committed".into()));
        assert_eq!(value("pools"), None);
    }

    #[test]
    fn constants() {
        let value = |text: &str| constant(&tokens(text)).map(|c| c.value);
        assert_eq!(value("1"), Some(1_u32.into()));
        assert_eq!(value("'x'"), Some("x".to_owned().into()));
        assert!(matches!(value("pg_catalog.version()"), Some(Value::Text(_))));
        for text in ["99999999999", "1, 2", "now()", "-1", "*"] {
            assert_eq!(value(text), None, "{text}");
        }
    }

    #[test]
    fn sets() {
        for text in [
            "extra_float_digits = 3",
            "application_name TO ''",
            "LOCAL statement_timeout = 0",
            "session datestyle to iso",
            "SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "TIME ZONE 'UTC'",
        ] {
            assert_eq!(set(&tokens(text)).map_err(|e| e.message), Ok("SET"), "{text}");
        }
        for text in ["max_client_conn = 5", "role admin", "local role x"] {
            assert!(set(&tokens(text)).is_err(), "{text}");
        }
    }
}
