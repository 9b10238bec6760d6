//! Templates of the context: text with `{tenant}` and `{user}`, and what may be set by them.
//!
//! `{{` and `}}` stand for the braces themselves. A rendered value is plain text: who writes it
//! into SQL must still quote it.

use crate::topology::ContextTemplate;

/// Longest name of a session variable, role, schema or database, in bytes
/// (`NAMEDATALEN - 1`, src/include/pg_config_manual.h).
pub const MAX_NAME_BYTES: usize = 63;

/// Why a template was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Something in braces that is no placeholder.
    #[error("knows {{tenant}} and {{user}} only, not {{{0}}}; write {{{{ for a brace")]
    Placeholder(String),
    /// A `{` that is never closed.
    #[error("has a {{ that is not closed; write {{{{ for a brace")]
    Unclosed,
    /// A `}` that closes nothing.
    #[error("has a }} that closes nothing; write }}}} for a brace")]
    Unopened,
    /// A character that PostgreSQL cannot hold, or that has no place in a setting.
    #[error("must not contain control characters")]
    Control,
    /// Nothing, where a name is made.
    #[error("must not be empty")]
    Empty,
}

/// Why a session variable may not be part of a context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    /// Not a name that PostgreSQL takes.
    #[error("must be a setting's name: letters, digits, `_` and `.`, such as app.tenant_id")]
    Name,
    /// Too long, in bytes.
    #[error("must be at most {MAX_NAME_BYTES} bytes")]
    TooLong,
    /// There is a key of its own for it.
    #[error("cannot be set as a variable: use `{0}`")]
    Key(&'static str),
    /// The router relies on it.
    #[error("cannot be set as a variable: the router relies on it")]
    Reserved,
}

/// Where in a [`ContextTemplate`] a mistake is, by its key, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextProblem {
    /// `variables`, `search_path`, `role` or `database`.
    pub key: &'static str,
    /// The variable's name, or the schema's index.
    pub entry: Option<String>,
    /// What is wrong: lower case, no full stop.
    pub message: String,
}

enum Piece<'t> {
    Text(&'t str),
    Tenant,
    User,
}

/// Cuts the first piece off `rest`.
fn piece(rest: &str) -> Result<(Piece<'_>, &str), TemplateError> {
    for (two, one) in [("{{", "{"), ("}}", "}")] {
        if let Some(after) = rest.strip_prefix(two) {
            return Ok((Piece::Text(one), after));
        }
    }
    if let Some(inner) = rest.strip_prefix('{') {
        let (name, after) = inner.split_once('}').ok_or(TemplateError::Unclosed)?;
        return match name {
            "tenant" => Ok((Piece::Tenant, after)),
            "user" => Ok((Piece::User, after)),
            _ if name.contains('{') || name.len() > MAX_NAME_BYTES => Err(TemplateError::Unclosed),
            _ => Err(TemplateError::Placeholder(name.to_owned())),
        };
    }
    if rest.starts_with('}') {
        return Err(TemplateError::Unopened);
    }
    let end = rest.find(['{', '}']).unwrap_or(rest.len());
    Ok((Piece::Text(&rest[..end]), &rest[end..]))
}

/// Checks that [`render`] will understand all of `template`.
///
/// # Errors
/// If a brace is out of place, a placeholder is unknown, or there is a control character.
pub fn check_template(template: &str) -> Result<(), TemplateError> {
    if template.chars().any(char::is_control) {
        return Err(TemplateError::Control);
    }
    let mut rest = template;
    while !rest.is_empty() {
        rest = piece(rest)?.1;
    }
    Ok(())
}

/// Fills in `template`. What [`check_template`] would refuse is kept as it stands.
///
/// What is filled in is not looked at again: a tenant named `{user}` stays that.
pub fn render(template: &str, tenant: &str, user: &str) -> String {
    let mut out = String::with_capacity(template.len() + tenant.len());
    let mut rest = template;
    while let Some(first) = rest.chars().next() {
        rest = match piece(rest) {
            Ok((Piece::Text(text), after)) => {
                out.push_str(text);
                after
            }
            Ok((Piece::Tenant, after)) => {
                out.push_str(tenant);
                after
            }
            Ok((Piece::User, after)) => {
                out.push_str(user);
                after
            }
            Err(_) => {
                out.push(first);
                &rest[first.len_utf8()..]
            }
        };
    }
    out
}

/// The template around `{tenant}`, with its braces undone, for templates that are read backwards:
/// `tenant_{tenant}` is `("tenant_", "")`.
///
/// `None` unless `{tenant}` occurs exactly once and `{user}` not at all.
pub fn around_tenant(template: &str) -> Option<(String, String)> {
    let (mut before, mut after): (String, Option<String>) = (String::new(), None);
    let mut rest = template;
    while !rest.is_empty() {
        let (first, next) = piece(rest).ok()?;
        match first {
            Piece::Text(text) => after.as_mut().unwrap_or(&mut before).push_str(text),
            Piece::Tenant if after.is_none() => after = Some(String::new()),
            Piece::Tenant | Piece::User => return None,
        }
        rest = next;
    }
    after.map(|after| (before, after))
}

/// Checks that `name` is a session variable that a context may set.
///
/// # Errors
/// If it is no name of a setting, has a key of its own, or is one whose change would break the
/// router. Names are compared without regard to case, as PostgreSQL does.
pub fn check_variable(name: &str) -> Result<(), VariableError> {
    if name.len() > MAX_NAME_BYTES {
        return Err(VariableError::TooLong);
    }
    // Stricter than PostgreSQL's valid_custom_variable_name (src/backend/utils/misc/guc.c), which
    // takes `$` and bytes above 127 too.
    let part = |p: &str| {
        p.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    if !name.split('.').all(part) {
        return Err(VariableError::Name);
    }
    let lower = name.to_ascii_lowercase();
    match lower.as_str() {
        "role" => Err(VariableError::Key("role")),
        "search_path" => Err(VariableError::Key("search_path")),
        // The encoding and the quoting of strings are what the context itself is written in; the
        // transaction's own settings last for one transaction only; who we are must not change.
        "client_encoding"
        | "session_authorization"
        | "standard_conforming_strings"
        | "backslash_quote"
        | "transaction_isolation"
        | "transaction_read_only"
        | "transaction_deferrable"
        | "is_superuser"
        | "server_encoding"
        | "server_version"
        | "integer_datetimes" => Err(VariableError::Reserved),
        other if other.starts_with("switchyard.") => Err(VariableError::Reserved),
        _ => Ok(()),
    }
}

/// Checks a whole context and returns every mistake in it.
pub fn check_context(context: &ContextTemplate) -> Vec<ContextProblem> {
    let mut problems = Vec::new();
    let mut note = |key, entry: Option<String>, message: String| {
        problems.push(ContextProblem { key, entry, message });
    };
    let name_template = |template: &str| match check_template(template) {
        Ok(()) if template.is_empty() => Err(TemplateError::Empty),
        checked => checked,
    };
    let mut seen: Vec<String> = Vec::new();
    for (name, template) in &context.variables {
        if let Err(e) = check_variable(name) {
            note("variables", Some(name.clone()), e.to_string());
        }
        let lower = name.to_ascii_lowercase();
        if seen.contains(&lower) {
            note("variables", Some(name.clone()), "is given twice (case does not matter)".to_owned());
        }
        seen.push(lower);
        if let Err(e) = check_template(template) {
            note("variables", Some(name.clone()), e.to_string());
        }
    }
    if let Some(schemas) = &context.search_path {
        if schemas.is_empty() {
            note("search_path", None, "must name at least one schema".to_owned());
        }
        for (i, schema) in schemas.iter().enumerate() {
            if let Err(e) = name_template(schema) {
                note("search_path", Some(i.to_string()), e.to_string());
            }
        }
    }
    for (key, template) in [("role", &context.role), ("database", &context.database)] {
        if let Some(Err(e)) = template.as_deref().map(name_template) {
            note(key, None, e.to_string());
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendering() {
        for (template, expected) in [
            ("{tenant}", "acme"),
            ("tenant_{tenant}", "tenant_acme"),
            ("{tenant}/{user}/{tenant}", "acme/app/acme"),
            ("{{tenant}}", "{tenant}"),
            ("{{{tenant}}}", "{acme}"),
            ("{{}}", "{}"),
            ("", ""),
            ("plain ü", "plain ü"),
        ] {
            assert_eq!(check_template(template), Ok(()), "{template}");
            assert_eq!(render(template, "acme", "app"), expected, "{template}");
        }
    }

    #[test]
    fn what_is_filled_in_is_not_a_template() {
        assert_eq!(render("{tenant}-{user}", "{user}", "{{tenant}}"), "{user}-{{tenant}}");
    }

    #[test]
    fn bad_templates() {
        for (template, error) in [
            ("{tennant}", TemplateError::Placeholder("tennant".to_owned())),
            ("{}", TemplateError::Placeholder(String::new())),
            ("{ tenant }", TemplateError::Placeholder(" tenant ".to_owned())),
            ("{tenant", TemplateError::Unclosed),
            ("a{", TemplateError::Unclosed),
            ("{a{tenant}", TemplateError::Unclosed),
            ("tenant}", TemplateError::Unopened),
            ("{tenant}}", TemplateError::Unopened),
            ("a\0", TemplateError::Control),
            ("a\nb", TemplateError::Control),
        ] {
            assert_eq!(check_template(template), Err(error), "{template:?}");
        }
        let text = TemplateError::Placeholder("x".to_owned()).to_string();
        assert_eq!(text, "knows {tenant} and {user} only, not {x}; write {{ for a brace");
    }

    #[test]
    fn templates_read_backwards() {
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(around_tenant("tenant_{tenant}"), pair("tenant_", ""));
        assert_eq!(around_tenant("{{{tenant}_db"), pair("{", "_db"));
        for template in ["", "db", "{tenant}{tenant}", "{tenant}_{user}", "{tenant"] {
            assert_eq!(around_tenant(template), None, "{template}");
        }
    }

    #[test]
    fn variables() {
        for name in ["app.tenant_id", "app.a.b", "statement_timeout", "_x.Y1", "TimeZone"] {
            assert_eq!(check_variable(name), Ok(()), "{name}");
        }
        for name in
            ["", "app.", ".app", "app..x", "app.tenant id", "app.tenant-id", "1app.x", "app.x'", "äpp.x"]
        {
            assert_eq!(check_variable(name), Err(VariableError::Name), "{name}");
        }
        assert_eq!(check_variable("Search_Path"), Err(VariableError::Key("search_path")));
        assert_eq!(check_variable("ROLE"), Err(VariableError::Key("role")));
        for name in ["Client_Encoding", "session_authorization", "switchyard.tenant", "SWITCHYARD.x"] {
            assert_eq!(check_variable(name), Err(VariableError::Reserved), "{name}");
        }
        assert_eq!(check_variable(&"x".repeat(64)), Err(VariableError::TooLong));
    }

    #[test]
    fn every_mistake_of_a_context_is_found() {
        let context = ContextTemplate {
            mode: crate::topology::ContextMode::Plain,
            variables: [("app.x", "{y}"), ("APP.X", "ok"), ("role", "r")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            search_path: Some(vec!["{tenant}".to_owned(), String::new()]),
            role: Some("}".to_owned()),
            database: Some(String::new()),
        };
        let found: Vec<_> = check_context(&context).into_iter().map(|p| (p.key, p.entry)).collect();
        let entry = |e: &str| Some(e.to_owned());
        assert_eq!(
            found,
            [
                ("variables", entry("app.x")),
                ("variables", entry("app.x")),
                ("variables", entry("role")),
                ("search_path", entry("1")),
                ("role", None),
                ("database", None),
            ]
        );
    }
}
