//! What may be said to the console, and by whom.

use std::borrow::Cow;

use switchyard_config::topology::ConsoleRole;
use switchyard_wire::error::{ErrorResponse, sqlstate};

use super::Shutdown;
use super::lexer::{Token, syntax};
use super::select::{self, Constant};
use super::show::Subject;
use super::table::Columns;

/// A command, understood.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    /// A table.
    Show(Subject, Page),
    /// What SHOW HELP says, as a notice.
    Help,
    /// A constant, for health checks and drivers.
    Constant(Constant),
    /// What a driver says to a server and that has nothing to set here. By its tag.
    Accepted(&'static str),
    Begin,
    Commit,
    Rollback,
    Act(Act),
}

/// What changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Pause(Scope),
    Resume(Scope),
    Reconnect(Scope),
    WaitClose(Scope),
    Disable(Scope),
    Enable(Scope),
    Kill(Scope),
    KillClient(u32),
    Reload,
    Shutdown(Shutdown),
}

/// What a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    /// By name, or as `database@name`.
    Shard(String),
    Tenant(String),
}

/// Which rows are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// Rows whose key is like this.
    pub(super) like: Option<String>,
    /// Rows behind this key.
    pub(super) after: Option<String>,
    pub(super) limit: Option<usize>,
    /// Rows of this tenant.
    pub(super) tenant: Option<String>,
}

impl Command {
    /// Who may say it: whoever has this role, or a higher one. There is no command without an answer here.
    pub(super) fn needs(&self) -> ConsoleRole {
        match self {
            Self::Show(..)
            | Self::Help
            | Self::Constant(_)
            | Self::Accepted(_)
            | Self::Begin
            | Self::Commit
            | Self::Rollback => ConsoleRole::Viewer,
            Self::Act(act) => act.needs(),
        }
    }

    /// The columns of its result; none if it has no rows.
    pub(super) fn columns(&self) -> Option<Columns> {
        match self {
            Self::Show(subject, _) => Some(Cow::Borrowed(subject.columns())),
            Self::Constant(constant) => Some(constant.columns()),
            _ => None,
        }
    }

    pub(super) fn tag(&self) -> Cow<'static, str> {
        match self {
            Self::Show(..) | Self::Help => "SHOW".into(),
            Self::Constant(constant) => constant.tag().into(),
            Self::Accepted(tag) => (*tag).into(),
            Self::Begin => "BEGIN".into(),
            Self::Commit => "COMMIT".into(),
            Self::Rollback => "ROLLBACK".into(),
            Self::Act(act) => act.tag().into(),
        }
    }
}

impl Act {
    fn needs(&self) -> ConsoleRole {
        match self {
            Self::Pause(_)
            | Self::Resume(_)
            | Self::Reconnect(_)
            | Self::WaitClose(_)
            | Self::Disable(_)
            | Self::Enable(_)
            | Self::Kill(Scope::Tenant(_))
            | Self::KillClient(_)
            | Self::Reload => ConsoleRole::Operator,
            Self::Kill(Scope::All | Scope::Shard(_)) | Self::Shutdown(_) => ConsoleRole::Admin,
        }
    }

    pub(super) fn tag(&self) -> &'static str {
        match self {
            Self::Pause(_) => "PAUSE",
            Self::Resume(_) => "RESUME",
            Self::Reconnect(_) => "RECONNECT",
            Self::WaitClose(_) => "WAIT_CLOSE",
            Self::Disable(_) => "DISABLE",
            Self::Enable(_) => "ENABLE",
            Self::Kill(_) => "KILL",
            Self::KillClient(_) => "KILL_CLIENT",
            Self::Reload => "RELOAD",
            Self::Shutdown(_) => "SHUTDOWN",
        }
    }
}

/// What is left of a command.
pub(super) struct Rest<'t>(pub(super) &'t [Token]);

impl<'t> Rest<'t> {
    fn next(&mut self) -> Option<&'t Token> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// Takes `word`, in any case, if it comes next.
    fn take(&mut self, word: &str) -> bool {
        let found = matches!(self.0.first(), Some(Token::Word(w)) if w.eq_ignore_ascii_case(word));
        if found {
            self.next();
        }
        found
    }

    /// A name or value, however it is written.
    fn value(&mut self, what: &str) -> Result<String, ErrorResponse> {
        match self.next() {
            Some(Token::Word(text) | Token::Text(text) | Token::Name(text)) => Ok(text.clone()),
            // Not bound yet: only its being there counts.
            Some(Token::Param(number)) => Ok(format!("${number}")),
            _ => Err(syntax(&format!("{what} is missing"))),
        }
    }

    fn number<T: std::str::FromStr + Default>(&mut self, what: &str) -> Result<T, ErrorResponse> {
        if let Some(Token::Param(_)) = self.0.first() {
            self.next();
            return Ok(T::default());
        }
        let text = self.value(what)?;
        text.parse().map_err(|_| syntax(&format!("{what} must be a whole number")))
    }

    fn end(&self) -> Result<(), ErrorResponse> {
        match self.0.first() {
            None => Ok(()),
            Some(Token::Word(t) | Token::Text(t) | Token::Name(t)) => {
                Err(syntax(&format!("syntax error at or near \"{}\"", super::shown(t))))
            }
            Some(Token::Param(n)) => Err(syntax(&format!("syntax error at or near \"${n}\""))),
            Some(Token::Sign(c)) => Err(syntax(&format!("syntax error at or near \"{c}\""))),
        }
    }
}

/// Understands a statement, which is not empty.
///
/// # Errors
/// If there is no such command, or it was not written as it must be.
pub(super) fn parse(tokens: &[Token]) -> Result<Command, ErrorResponse> {
    let mut rest = Rest(tokens);
    let first = match rest.next() {
        Some(Token::Word(word)) => word.to_ascii_lowercase(),
        _ => return Err(syntax("a command begins with a word")),
    };
    let command = match first.as_str() {
        "show" => return show(rest),
        // PgBouncer takes SELECT for SHOW.
        "select" => return select(rest),
        "help" => Command::Help,
        "begin" | "start" => return Ok(Command::Begin),
        "commit" | "end" => return Ok(Command::Commit),
        "rollback" | "abort" => return Ok(Command::Rollback),
        "set" => return select::set(rest.0).map(Command::Accepted),
        "reset" => return Ok(Command::Accepted("RESET")),
        "discard" => return Ok(Command::Accepted("DISCARD ALL")),
        "deallocate" => return Ok(Command::Accepted("DEALLOCATE")),
        "pause" => Command::Act(Act::Pause(scope(&mut rest)?)),
        "resume" => Command::Act(Act::Resume(scope(&mut rest)?)),
        "reconnect" => Command::Act(Act::Reconnect(no_tenant(scope(&mut rest)?)?)),
        "wait_close" => Command::Act(Act::WaitClose(no_tenant(scope(&mut rest)?)?)),
        "disable" => Command::Act(Act::Disable(not_all(scope(&mut rest)?)?)),
        "enable" => Command::Act(Act::Enable(not_all(scope(&mut rest)?)?)),
        "kill" => Command::Act(Act::Kill(scope(&mut rest)?)),
        "kill_client" => Command::Act(Act::KillClient(rest.number("the id of SHOW CLIENTS")?)),
        "reload" => Command::Act(Act::Reload),
        "shutdown" => Command::Act(Act::Shutdown(match () {
            () if rest.take("wait_for_servers") => Shutdown::WaitForServers,
            () if rest.take("wait_for_clients") => Shutdown::WaitForClients,
            () => Shutdown::Now,
        })),
        "suspend" => {
            return Err(ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, "there is no SUSPEND here")
                .hint("PAUSE holds the clients; a new process takes the port over by itself."));
        }
        other => return Err(unknown(other)),
    };
    rest.end()?;
    Ok(command)
}

fn unknown(command: &str) -> ErrorResponse {
    syntax(&format!("there is no command \"{}\"", super::shown(command)))
}

fn scope(rest: &mut Rest<'_>) -> Result<Scope, ErrorResponse> {
    if rest.0.is_empty() {
        return Ok(Scope::All);
    }
    // A shard may be called `tenant`, if nothing follows.
    let is_named = rest.0.len() > 1;
    if is_named && rest.take("tenant") {
        return rest.value("the tenant").map(Scope::Tenant);
    }
    if is_named {
        rest.take("shard");
    }
    rest.value("the shard").map(Scope::Shard)
}

fn no_tenant(scope: Scope) -> Result<Scope, ErrorResponse> {
    match scope {
        Scope::Tenant(_) => Err(syntax("tenants have no server connections of their own: name a shard")),
        other => Ok(other),
    }
}

fn not_all(scope: Scope) -> Result<Scope, ErrorResponse> {
    match scope {
        Scope::All => Err(syntax("name a shard, or TENANT and a tenant")),
        other => Ok(other),
    }
}

fn show(mut rest: Rest<'_>) -> Result<Command, ErrorResponse> {
    if let Some(constant) = select::setting(rest.0) {
        return Ok(Command::Constant(constant));
    }
    let what = rest.value("what to show")?.to_ascii_lowercase();
    if what == "help" {
        rest.end()?;
        return Ok(Command::Help);
    }
    if what == "tenant" {
        let id = rest.value("the tenant")?;
        rest.end()?;
        return Ok(Command::Show(Subject::Tenant(id), Page::default()));
    }
    let subject = Subject::by_name(&what)
        .ok_or_else(|| syntax(&format!("there is no SHOW {}", super::shown(&what.to_ascii_uppercase()))))?;
    let mut page = Page::default();
    while !rest.0.is_empty() {
        if rest.take("like") {
            page.like = Some(rest.value("a pattern")?);
        } else if rest.take("after") {
            page.after = Some(rest.value("the last key seen")?);
        } else if rest.take("limit") {
            page.limit = Some(rest.number("the limit")?);
        } else if subject.is_of_tenants() && rest.take("tenant") {
            page.tenant = Some(rest.value("the tenant")?);
        } else {
            break;
        }
    }
    rest.end()?;
    Ok(Command::Show(subject, page))
}

fn select(rest: Rest<'_>) -> Result<Command, ErrorResponse> {
    match select::constant(rest.0) {
        Some(constant) => Ok(Command::Constant(constant)),
        None => show(rest).map_err(|_| {
            ErrorResponse::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "the console is no database: it has no tables",
            )
            .hint("SHOW HELP lists what there is. SELECT 1 is answered for health checks.")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::lexer::statements;
    use super::*;

    fn parsed(text: &str) -> Result<Command, ErrorResponse> {
        parse(&statements(text)?[0])
    }

    #[test]
    fn commands() {
        let act = |act| Ok(Command::Act(act));
        let tenant = |id: &str| Scope::Tenant(id.to_owned());
        let shard = |name: &str| Scope::Shard(name.to_owned());
        assert_eq!(parsed("PAUSE"), act(Act::Pause(Scope::All)));
        assert_eq!(parsed("pause s-1;"), act(Act::Pause(shard("s-1"))));
        assert_eq!(parsed("Pause \"crm@s1\""), act(Act::Pause(shard("crm@s1"))));
        assert_eq!(parsed("pause tenant"), act(Act::Pause(shard("tenant"))));
        assert_eq!(parsed("PAUSE TENANT acme"), act(Act::Pause(tenant("acme"))));
        assert_eq!(parsed("PAUSE TENANT 'it''s'"), act(Act::Pause(tenant("it's"))));
        assert_eq!(parsed("kill_client 17"), act(Act::KillClient(17)));
        assert_eq!(parsed("SHUTDOWN WAIT_FOR_CLIENTS"), act(Act::Shutdown(Shutdown::WaitForClients)));
        assert_eq!(
            parsed("SHOW TENANT acme"),
            Ok(Command::Show(Subject::Tenant("acme".into()), Page::default()))
        );
        let page = Page { like: Some("a%".into()), limit: Some(5), after: Some("ab".into()), tenant: None };
        assert_eq!(
            parsed("show tenants like 'a%' limit 5 after ab"),
            Ok(Command::Show(Subject::Tenants, page))
        );
        assert_eq!(parsed("select stats"), parsed("SHOW STATS"));
        assert_eq!(parsed("SHOW HELP"), Ok(Command::Help));
    }

    #[test]
    fn what_is_no_command() {
        for text in [
            "PAUSE a b",
            "DISABLE",
            "RECONNECT TENANT x",
            "KILL_CLIENT",
            "KILL_CLIENT x",
            "SHOW",
            "SHOW NOTHING",
            "SHOW POOLS LIMIT x",
            "SHOW POOLS TENANT x",
            "SHOW FDS",
            "SHUTDOWN SOON",
            "DROP TABLE x",
            "'a'",
        ] {
            assert_eq!(parsed(text).map_err(|e| e.code), Err(sqlstate::SYNTAX_ERROR), "{text}");
        }
        for text in ["SELECT * FROM pg_class", "SUSPEND", "SELECT"] {
            assert_eq!(parsed(text).map_err(|e| e.code), Err(sqlstate::FEATURE_NOT_SUPPORTED), "{text}");
        }
    }

    #[test]
    fn who_may() {
        use ConsoleRole::{Admin, Operator, Viewer};
        for (text, role) in [
            ("SHOW CONFIG", Viewer),
            ("SELECT 1", Viewer),
            ("PAUSE", Operator),
            ("KILL TENANT a", Operator),
            ("KILL_CLIENT 1", Operator),
            ("KILL s1", Admin),
            ("KILL", Admin),
            ("SHUTDOWN", Admin),
        ] {
            assert_eq!(parsed(text).unwrap().needs(), role, "{text}");
        }
    }
}
