//! Statements, as far as the tenant of a roaming session is concerned.

use super::lexer::{TOKENS_MAX, Token, next};
use super::{Named, Rules};
use crate::classify::{skip_blank, split};

/// What a statement does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something for the tenant.
    Runs,
    /// Changes or shows settings, and touches nothing of anybody's.
    Settings,
    /// The same, and only within a transaction: may be put off until it is known where that runs.
    InBlock,
    /// Sets the setting that names the tenant: by a call in a `SELECT`, which may do something else as well (`runs`),
    /// or by `SET` or `RESET`.
    Set { to: Named, local: bool, select: bool, runs: bool },
    /// Calls `set_config` with arguments that may be parameters; `runs` says that it does something else as well.
    Config { calls: Vec<Call>, runs: bool },
    /// `RESET ALL`
    ResetAll,
    /// `DISCARD ALL`
    DiscardAll,
    /// `SHOW` of the setting, or `current_setting`: the name of the column, and whether an unknown one is NULL.
    Show { column: &'static str, missing_ok: bool },
    /// Begins a transaction, which is answered with this tag.
    Begin(&'static str),
    /// Ends it.
    Commit { chain: bool },
    /// Takes it back.
    Rollback { chain: bool },
    /// Ends it, and is something of the tenant's.
    PrepareTransaction,
    /// By this name.
    Savepoint(String),
    /// To this one.
    RollbackTo(String),
    /// This one.
    Release(String),
    /// `LISTEN`
    Listen,
    /// Takes back what a session without a server connection does not have: with this tag.
    Nothing(&'static str),
    /// `SELECT pg_advisory_unlock_all()`
    UnlockAll,
    /// `DEALLOCATE ALL`
    DeallocateAll,
}

/// A call of `set_config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    name: Arg,
    value: Arg,
    local: Arg,
}

/// An argument.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Arg {
    Text(String),
    Parameter(usize),
    Bool(bool),
    Null,
    Other,
}

/// A parameter of a Bind: none is NULL.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parameter<'a> {
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) binary: bool,
}

/// A statement and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statement<'t> {
    pub(crate) step: Step,
    pub(crate) text: &'t [u8],
}

/// The statements in `sql`. For the usual one that is its first word, and a search for two names.
pub(crate) fn read<'t>(rules: &Rules, sql: &'t [u8]) -> Vec<Statement<'t>> {
    if is_usual(rules, sql) {
        return vec![Statement { step: Step::Runs, text: sql }];
    }
    let mut statements = Vec::new();
    let mut rest = sql;
    loop {
        let (text, after) = split(rest);
        if !skip_blank(text).is_empty() {
            let step = one(rules, text);
            // The semicolons in such a body do not part statements.
            let atomic =
                step == Step::Runs && memchr::memmem::find(&text.to_ascii_lowercase(), b"atomic").is_some();
            if atomic && after.is_some() {
                statements.push(Statement { step, text: rest });
                return statements;
            }
            statements.push(Statement { step, text });
        }
        match after {
            Some(after) => rest = after,
            None => return statements,
        }
    }
}

/// Whether `sql` is one statement that begins with a word that says nothing, and in which nothing is named.
fn is_usual(rules: &Rules, sql: &[u8]) -> bool {
    const WORDS: [&[u8]; 7] = [b"select", b"insert", b"update", b"delete", b"with", b"values", b"copy"];
    let text = skip_blank(sql);
    let end = text.iter().position(|b| !b.is_ascii_alphabetic()).unwrap_or(text.len());
    WORDS.iter().any(|word| text[..end].eq_ignore_ascii_case(word))
        && !rules.occurs_in(text)
        && memchr::memchr(b';', text).is_none_or(|at| skip_blank(&text[at + 1..]).is_empty())
        && memchr::memmem::find(text, b"pg_advisory_unlock_all").is_none()
}

/// The tokens of a statement, and how far they are read.
struct Tokens {
    tokens: Vec<Token>,
    at: usize,
}

impl Tokens {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    /// Takes the next token if it is this word.
    fn word(&mut self, word: &str) -> bool {
        let is = matches!(self.peek(), Some(Token::Word(found)) if found == word);
        self.at += usize::from(is);
        is
    }

    fn words(&mut self, words: &[&str]) -> bool {
        let before = self.at;
        let all = words.iter().all(|word| self.word(word));
        if !all {
            self.at = before;
        }
        all
    }

    fn sign(&mut self, sign: u8) -> bool {
        let is = self.peek() == Some(&Token::Sign(sign));
        self.at += usize::from(is);
        is
    }

    fn is_over(&self) -> bool {
        self.at >= self.tokens.len()
    }

    /// A name in parts, as PostgreSQL keeps that of a setting.
    fn name(&mut self) -> Option<String> {
        let mut name = self.identifier()?;
        while self.sign(b'.') {
            name = format!("{name}.{}", self.identifier()?);
        }
        // Settings are found without regard to case.
        Some(name.to_ascii_lowercase())
    }

    fn identifier(&mut self) -> Option<String> {
        match self.take()? {
            Token::Word(word) => Some(word),
            Token::Name(name) => Some(name),
            _ => None,
        }
    }

    /// A name by itself, to the end.
    fn last_identifier(&mut self) -> Option<String> {
        let name = self.identifier()?;
        self.is_over().then_some(name)
    }
}

fn one(rules: &Rules, text: &[u8]) -> Step {
    let mut rest = text;
    let mut tokens = Vec::new();
    while tokens.len() < TOKENS_MAX
        && let Some(token) = next(&mut rest)
    {
        tokens.push(token);
    }
    let mut t = Tokens { tokens, at: 0 };
    let Some(Token::Word(first)) = t.take() else { return anything(rules, &t) };
    let step = match first.as_str() {
        "set" => Some(set(rules, &mut t)),
        "reset" => reset(rules, &mut t),
        "discard" => (t.word("all") && t.is_over()).then_some(Step::DiscardAll),
        "show" => show(rules, &mut t),
        "begin" => modes(&mut t, true).then_some(Step::Begin("BEGIN")),
        "start" => {
            (t.word("transaction") && modes(&mut t, false)).then_some(Step::Begin("START TRANSACTION"))
        }
        "commit" | "end" => end(&mut t).map(|chain| Step::Commit { chain }),
        "abort" => end(&mut t).map(|chain| Step::Rollback { chain }),
        "rollback" => rollback(&mut t),
        "savepoint" => t.last_identifier().map(Step::Savepoint),
        "release" => {
            if t.tokens.len() > t.at + 1 {
                t.word("savepoint");
            }
            t.last_identifier().map(Step::Release)
        }
        "prepare" if t.word("transaction") => Some(Step::PrepareTransaction),
        "listen" => Some(Step::Listen),
        "unlisten" => (t.sign(b'*') && t.is_over()).then_some(Step::Nothing("UNLISTEN")),
        "close" => (t.word("all") && t.is_over()).then_some(Step::Nothing("CLOSE CURSOR ALL")),
        "deallocate" => {
            t.word("prepare");
            (t.word("all") && t.is_over()).then_some(Step::DeallocateAll)
        }
        "select" => select(rules, &mut t),
        _ => None,
    };
    step.unwrap_or_else(|| anything(rules, &t))
}

/// Whatever else: it runs, and may set something on the way.
fn anything(rules: &Rules, t: &Tokens) -> Step {
    let mut calls = Vec::new();
    for at in 0..t.tokens.len() {
        if matches!(&t.tokens[at], Token::Word(word) | Token::Name(word) if word == "set_config")
            && t.tokens.get(at + 1) == Some(&Token::Sign(b'('))
        {
            let mut rest = Tokens { tokens: t.tokens[at + 2..].to_vec(), at: 0 };
            calls.push(arguments(&mut rest).unwrap_or(Call {
                name: Arg::Other,
                value: Arg::Other,
                local: Arg::Other,
            }));
        }
    }
    if calls.iter().any(|call| call.may_set(rules)) { Step::Config { calls, runs: true } } else { Step::Runs }
}

fn set(rules: &Rules, t: &mut Tokens) -> Step {
    if t.word("transaction") || t.word("constraints") {
        return Step::InBlock;
    }
    let local = t.word("local");
    if !local {
        t.word("session");
    }
    let others = if local { Step::InBlock } else { Step::Settings };
    let name = if t.word("schema") {
        "search_path".to_owned()
    } else {
        match t.name() {
            Some(name) => name,
            None => return Step::Runs,
        }
    };
    if name != rules.name {
        return others;
    }
    if t.tokens.get(1) != Some(&Token::Word("schema".to_owned())) && !(t.sign(b'=') || t.word("to")) {
        return Step::Runs;
    }
    if t.word("default") && t.is_over() {
        return Step::Set { to: Named::Nobody, local, select: false, runs: false };
    }
    let mut values = Vec::new();
    loop {
        match t.take() {
            Some(Token::Text(Some(text))) => values.push(text),
            Some(Token::Word(word)) => values.push(word),
            Some(Token::Name(name)) => values.push(name),
            Some(Token::Number(number)) => values.push(number),
            _ => return Step::Set { to: Named::Unreadable, local, select: false, runs: false },
        }
        if t.is_over() {
            break;
        }
        if !t.sign(b',') {
            return Step::Set { to: Named::Unreadable, local, select: false, runs: false };
        }
    }
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    Step::Set { to: rules.whom(&values), local, select: false, runs: false }
}

fn reset(rules: &Rules, t: &mut Tokens) -> Option<Step> {
    if t.word("all") {
        return t.is_over().then_some(Step::ResetAll);
    }
    let name = t.name()?;
    if name != rules.name {
        return Some(Step::Settings);
    }
    t.is_over().then_some(Step::Set { to: Named::Nobody, local: false, select: false, runs: false })
}

fn show(rules: &Rules, t: &mut Tokens) -> Option<Step> {
    let name = t.name()?;
    // What `search_path` is by default is the shard's to say.
    if name == rules.name && t.is_over() && !rules.is_search_path() {
        return Some(Step::Show { column: "", missing_ok: false });
    }
    Some(Step::Settings)
}

/// The modes of a transaction, to the end.
fn modes(t: &mut Tokens, noise: bool) -> bool {
    if noise && !t.word("work") {
        t.word("transaction");
    }
    loop {
        if t.is_over() {
            return true;
        }
        let known = t.words(&["isolation", "level", "serializable"])
            || t.words(&["isolation", "level", "repeatable", "read"])
            || t.words(&["isolation", "level", "read", "committed"])
            || t.words(&["isolation", "level", "read", "uncommitted"])
            || t.words(&["read", "write"])
            || t.words(&["read", "only"])
            || t.words(&["not", "deferrable"])
            || t.word("deferrable");
        if !known || (t.sign(b',') && t.is_over()) {
            return false;
        }
    }
}

/// What follows COMMIT: whether another transaction follows.
fn end(t: &mut Tokens) -> Option<bool> {
    if !t.word("work") {
        t.word("transaction");
    }
    let chain = t.words(&["and", "chain"]);
    if !chain {
        t.words(&["and", "no", "chain"]);
    }
    t.is_over().then_some(chain)
}

fn rollback(t: &mut Tokens) -> Option<Step> {
    let before = t.at;
    if let Some(chain) = end(t) {
        return Some(Step::Rollback { chain });
    }
    t.at = before;
    if !t.word("work") {
        t.word("transaction");
    }
    if !t.word("to") {
        return None;
    }
    if t.tokens.len() > t.at + 1 {
        t.word("savepoint");
    }
    t.last_identifier().map(Step::RollbackTo)
}

fn select(rules: &Rules, t: &mut Tokens) -> Option<Step> {
    let begin = t.at;
    let function = |t: &mut Tokens, name: &str| {
        if t.word("pg_catalog") && !t.sign(b'.') {
            return false;
        }
        t.word(name) && t.sign(b'(')
    };
    if function(t, "pg_advisory_unlock_all") {
        return (t.sign(b')') && t.is_over()).then_some(Step::UnlockAll);
    }
    t.at = begin;
    if function(t, "current_setting") {
        let Some(Token::Text(Some(name))) = t.take() else { return None };
        let missing_ok = t.sign(b',') && t.word("true");
        let whole = t.sign(b')') && t.is_over();
        let own = name.eq_ignore_ascii_case(&rules.name);
        return (whole && own && !rules.is_search_path())
            .then_some(Step::Show { column: "current_setting", missing_ok });
    }
    t.at = begin;
    let mut calls = Vec::new();
    loop {
        if !function(t, "set_config") {
            return None;
        }
        calls.push(arguments(t)?);
        cast(t);
        if t.word("as") || matches!(t.peek(), Some(Token::Word(_) | Token::Name(_))) {
            let keyword = matches!(t.peek(), Some(Token::Word(word)) if word == "from" || word == "where");
            if keyword {
                return None;
            }
            t.identifier()?;
        }
        if t.is_over() {
            break;
        }
        if !t.sign(b',') {
            return None;
        }
    }
    Some(Step::Config { calls, runs: false })
}

fn cast(t: &mut Tokens) {
    while t.peek() == Some(&Token::Cast) {
        t.at += 1;
        let _ = t.identifier();
    }
}

/// Three arguments and the parenthesis behind them.
fn arguments(t: &mut Tokens) -> Option<Call> {
    let name = argument(t)?;
    t.sign(b',').then_some(())?;
    let value = argument(t)?;
    t.sign(b',').then_some(())?;
    let local = argument(t)?;
    t.sign(b')').then_some(Call { name, value, local })
}

/// An argument up to the comma or the parenthesis behind it.
fn argument(t: &mut Tokens) -> Option<Arg> {
    let arg = match t.peek()? {
        Token::Text(Some(text)) => Arg::Text(text.clone()),
        Token::Parameter(number) => Arg::Parameter(*number),
        Token::Word(word) if word == "true" => Arg::Bool(true),
        Token::Word(word) if word == "false" => Arg::Bool(false),
        Token::Word(word) if word == "null" => Arg::Null,
        _ => Arg::Other,
    };
    if arg != Arg::Other {
        t.at += 1;
        cast(t);
        if matches!(t.peek(), Some(Token::Sign(b',' | b')'))) {
            return Some(arg);
        }
    }
    // An expression: to where it ends.
    let mut depth = 0_usize;
    loop {
        match t.peek()? {
            Token::Sign(b',') if depth == 0 => return Some(Arg::Other),
            Token::Sign(b')') if depth == 0 => return Some(Arg::Other),
            Token::Sign(b'(' | b'[') => depth += 1,
            Token::Sign(b')' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
        t.at += 1;
    }
}

impl Arg {
    /// The text of the argument: none if it cannot be told, NULL within.
    fn text(&self, parameters: &[Parameter<'_>]) -> Option<Option<String>> {
        match self {
            Self::Text(text) => Some(Some(text.clone())),
            Self::Null => Some(None),
            // Text is the same in text and in binary.
            Self::Parameter(number) => match parameters.get(number.checked_sub(1)?)?.value {
                Some(value) => String::from_utf8(value.to_vec()).ok().map(Some),
                None => Some(None),
            },
            Self::Bool(_) | Self::Other => None,
        }
    }

    /// As a truth value. // src/backend/utils/adt/bool.c parse_bool
    fn truth(&self, parameters: &[Parameter<'_>]) -> Option<bool> {
        let by_text = |text: &[u8]| match text.trim_ascii().to_ascii_lowercase().as_slice() {
            b"t" | b"tr" | b"tru" | b"true" | b"y" | b"ye" | b"yes" | b"on" | b"1" => Some(true),
            b"f" | b"fa" | b"fal" | b"fals" | b"false" | b"n" | b"no" | b"of" | b"off" | b"0" => Some(false),
            _ => None,
        };
        match self {
            Self::Bool(truth) => Some(*truth),
            Self::Text(text) => by_text(text.as_bytes()),
            Self::Parameter(number) => {
                let parameter = parameters.get(number.checked_sub(1)?)?;
                match parameter.value? {
                    [byte @ (0 | 1)] if parameter.binary => Some(*byte == 1),
                    text => by_text(text),
                }
            }
            Self::Null | Self::Other => None,
        }
    }
}

impl Call {
    /// Whether it may set the setting.
    fn may_set(&self, rules: &Rules) -> bool {
        match &self.name {
            Arg::Text(name) => name.eq_ignore_ascii_case(&rules.name),
            Arg::Null | Arg::Bool(_) => false,
            Arg::Parameter(_) | Arg::Other => true,
        }
    }
}

impl Step {
    /// What the statement does when it is run with these parameters.
    pub(crate) fn with(&self, rules: &Rules, parameters: &[Parameter<'_>]) -> Self {
        let Self::Config { calls, runs } = self else { return self.clone() };
        let otherwise = if *runs { Self::Runs } else { Self::Settings };
        let mut found: Option<(Named, bool)> = None;
        for call in calls.iter().filter(|call| call.may_set(rules)) {
            let (to, local) = match call.name.text(parameters) {
                // It is asked afterwards what has become of the setting.
                None if matches!(call.name, Arg::Other) => continue,
                None | Some(None) => continue,
                Some(Some(name)) if !name.eq_ignore_ascii_case(&rules.name) => continue,
                Some(Some(_)) => match (call.value.text(parameters), call.local.truth(parameters)) {
                    (Some(Some(value)), Some(local)) => (rules.whom_by_value(&value), local),
                    (Some(None), Some(local)) => (Named::Nobody, local),
                    // A function that gets NULL for a truth value does nothing.
                    (_, None) if matches!(call.local, Arg::Null) => continue,
                    _ => (Named::Unreadable, false),
                },
            };
            found = match found {
                Some((first, _)) if first != to => Some((Named::Unreadable, local)),
                _ => Some((to, local)),
            };
        }
        match found {
            Some((to, local)) => Self::Set { to, local, select: true, runs: *runs },
            None => otherwise,
        }
    }

    /// Whether it is of no account for the tenant.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Runs | Self::Settings)
    }

    /// Types of the parameters and names of the columns of a statement whose parameters may be described without
    /// a shard: none where they may not.
    pub(crate) fn shape(&self, rules: &Rules) -> Option<(usize, Vec<(String, u32)>)> {
        /// OIDs. // src/include/catalog/pg_type.dat
        const TEXT: u32 = 25;
        const VOID: u32 = 2278;
        Some(match self {
            Self::Config { calls, runs: false } => {
                let of = |arg: &Arg| if let Arg::Parameter(number) = arg { *number } else { 0 };
                let most = calls.iter().flat_map(|c| [of(&c.name), of(&c.value), of(&c.local)]).max();
                (most.unwrap_or(0), calls.iter().map(|_| ("set_config".to_owned(), TEXT)).collect())
            }
            Self::Show { column: "", .. } => (0, vec![(rules.name.clone(), TEXT)]),
            Self::Show { column, .. } => (0, vec![((*column).to_owned(), TEXT)]),
            Self::UnlockAll => (0, vec![("pg_advisory_unlock_all".to_owned(), VOID)]),
            Self::Runs | Self::Settings | Self::Config { .. } | Self::PrepareTransaction => return None,
            _ => (0, Vec::new()),
        })
    }

    /// Which parameters of a described `set_config` are truth values, by number.
    pub(crate) fn is_truth(&self, number: usize) -> bool {
        matches!(self, Self::Config { calls, .. } if calls.iter().any(|c| c.local == Arg::Parameter(number)))
    }
}

#[cfg(test)]
mod tests;
