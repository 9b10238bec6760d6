//! What a server connection must carry before a client's statement may run on it, and the bytes
//! that bring it there.
//!
//! Invariant: no server connection serves a tenant whose context it does not carry. It is kept by
//! construction: the bytes of [`handover`] stand in front of the client's first bytes, in the same
//! write, and either succeed, or keep the client's statement from running:
//!
//! * Where the connection last served somebody else, `DISCARD ALL` goes first, by the extended
//!   protocol and without a Sync. It commits at once (`XACT_FLAGS_NEEDIMMEDIATECOMMIT`,
//!   src/backend/tcop/postgres.c), so what follows is not part of its transaction.
//! * The context follows as `BEGIN`, one `SELECT set_config(..)` for all of it, `COMMIT`, again by the
//!   extended protocol and without a Sync. It is committed before the client's statement begins, so
//!   that an error there does not revert it, and `VACUUM` and its like still run.
//! * If any part fails, PostgreSQL skips everything up to a Sync, the client's statement included.
//!   Then nothing has run, and the relay tries another connection.
//!
//! There is no ReadyForQuery in it, so the replies arrive together with the client's own.
//!
//! `docs/decisions/0002-context-handover.md` has the experiment.

mod prefix;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use switchyard_config::TenantId;
use switchyard_config::topology::ContextTemplate;
use switchyard_wire::build::{self, BuildError};

use crate::seal::{SealError, Sealed};
use crate::server::{Carried, Route};
pub(crate) use prefix::Prefix;

/// OID of `set_config(text, text, bool)`. // src/include/catalog/pg_proc.dat
const SET_CONFIG_OID: u32 = 2078;

/// The setting by which transactions begin as read-only.
const READ_ONLY: &str = "default_transaction_read_only";

/// A tenant's context, rendered for one user.
#[derive(Debug)]
pub(crate) struct TenantContext {
    /// Never used twice in the life of the process, so that an id left on a connection can only
    /// ever mean this very context. 0 is no context: a clean connection.
    pub(crate) id: u64,
    /// Database and login that connections for it must have.
    pub(crate) route: Route,
    /// Variables and values.
    variables: Vec<(String, String)>,
    /// The value of `search_path`.
    search_path: Option<String>,
    /// The role to run as.
    role: Option<String>,
    /// The tenant's transactions are read-only: one of `variables` says so.
    pub(crate) read_only: bool,
    /// What the shard is told under seal, where the context is sealed.
    pub(crate) sealed: Option<Sealed>,
}

impl TenantContext {
    /// Its variables and their values.
    pub(crate) fn variables(&self) -> &[(String, String)] {
        &self.variables
    }

    /// Its `search_path`, if it has one.
    pub(crate) fn search_path(&self) -> Option<&String> {
        self.search_path.as_ref()
    }

    /// Whether setting `name` is the router's business and not the session's.
    pub(crate) fn owns(&self, name: &str) -> bool {
        self.variables.iter().any(|(variable, _)| variable.eq_ignore_ascii_case(name))
            || (name == "role" && self.role.is_some())
            || name == "session_authorization"
            || (name == crate::seal::PARAMETER && self.sealed.is_some())
    }
}

/// What a session asked for by startup parameters and plain `SET`, the same for all sessions that
/// asked for the same. Its id, like a context's, is never used twice; 0 asks for nothing.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) id: u64,
    /// By name in lower case.
    pub(crate) values: BTreeMap<String, Wish>,
    /// The parameters that the server reports, once they have been seen with these wishes.
    pub(crate) reported: std::sync::OnceLock<Vec<(Vec<u8>, Vec<u8>)>>,
    /// Those of them that texts are parsed by, if any.
    parsing: Option<Arc<Parsing>>,
}

impl Wishes {
    /// What texts of SQL are parsed under; the same for all sessions for which a text means the same.
    #[inline]
    pub(crate) fn parsed_under(&self) -> u64 {
        self.parsing.as_ref().map_or(0, |parsing| parsing.id)
    }
}

/// What asks for nothing.
static NO_WISHES: Wishes =
    Wishes { id: 0, values: BTreeMap::new(), reported: std::sync::OnceLock::new(), parsing: None };

/// The settings by which PostgreSQL reads a text and the constants in it, and finds what it names.
const PARSING: [&str; 15] = [
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "lc_monetary",
    "lc_numeric",
    "role",
    "search_path",
    "session_authorization",
    "standard_conforming_strings",
    "timezone",
    "timezone_abbreviations",
    "transform_null_equals",
    "xmloption",
];

/// Whether texts are parsed by setting `name`, which is in lower case.
pub(crate) fn is_parsed_by(name: &str) -> bool {
    PARSING.contains(&name)
}

/// What sessions wish of [`PARSING`].
#[derive(Debug)]
struct Parsing {
    /// Never used twice in the life of the process, and never 0, which is the server's own settings.
    id: u64,
}

/// One wish of a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Wish {
    /// A value, from the startup packet or as PostgreSQL shows it.
    Value(String),
    /// The session's own `SET` statement, which PostgreSQL has accepted once.
    Statement(String),
}

impl Wish {
    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Value(text) | Self::Statement(text) => text.len(),
        }
    }
}

/// Makes contexts and wishes, so that equal ones share one id.
#[derive(Default)]
pub(crate) struct Interner {
    contexts: DashMap<ContextKey, Weak<TenantContext>>,
    wishes: DashMap<BTreeMap<String, Wish>, Weak<Wishes>>,
    parsing: DashMap<BTreeMap<String, Wish>, Weak<Parsing>>,
    /// The last few, kept although no session has them: applications that connect for each request
    /// ask for the same each time, and trying it out costs a turn on the shard.
    recent: Mutex<VecDeque<Arc<Wishes>>>,
    last_id: AtomicU64,
}

/// Bytes of names and values up to which wishes are kept although no session has them.
const RECENT_BYTES: usize = 4096;

/// Wishes that are kept although no session has them.
const RECENT_WISHES: usize = 64;

/// Two contexts are the same only if the tenant is the same, whatever they set.
/// The epoch is there for sealed contexts only, which carry it.
type ContextKey = (TenantId, Route, Vec<(String, String)>, Option<String>, Option<String>, Option<u64>);

impl Interner {
    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The context of `tenant` for `user`. `route` has the database and the login that apply where
    /// the template has no database; `epoch` is the placement's; `read_only` makes transactions so by default.
    pub(crate) fn context(
        &self,
        template: &ContextTemplate,
        tenant: &TenantId,
        user: &str,
        mut route: Route,
        epoch: u64,
        read_only: bool,
    ) -> Arc<TenantContext> {
        let render = |t: &str| switchyard_config::template::render(t, tenant.as_str(), user);
        let mut variables: Vec<_> = template.variables.iter().map(|(k, v)| (k.clone(), render(v))).collect();
        if read_only {
            variables.push((READ_ONLY.to_owned(), "on".to_owned()));
        }
        let search_path = template.search_path.as_ref().map(|path| {
            let schemas: Vec<_> = path.iter().map(|s| quote_identifier(&render(s))).collect();
            schemas.join(", ")
        });
        let role = template.role.as_deref().map(render);
        if let Some(database) = &template.database {
            route.database = render(database).into();
        }
        let epoch = (!template.mode.is_plain()).then_some(epoch);
        let key = (tenant.clone(), route, variables, search_path, role, epoch);
        intern(&self.contexts, key, |(tenant, route, variables, search_path, role, epoch)| TenantContext {
            id: self.next_id(),
            route: route.clone(),
            variables: variables.clone(),
            search_path: search_path.clone(),
            role: role.clone(),
            read_only,
            sealed: epoch.map(|epoch| Sealed::new(tenant, epoch)),
        })
    }

    fn parsing(&self, values: &BTreeMap<String, Wish>) -> Option<Arc<Parsing>> {
        let wanted = values.iter().filter(|(name, _)| is_parsed_by(name));
        let wanted: BTreeMap<_, _> = wanted.map(|(name, wish)| (name.clone(), wish.clone())).collect();
        if wanted.is_empty() {
            return None;
        }
        Some(intern(&self.parsing, wanted, |_| Parsing { id: self.next_id() }))
    }

    /// The wishes of a session.
    pub(crate) fn wishes(&self, values: BTreeMap<String, Wish>) -> Arc<Wishes> {
        let mut made = false;
        let wishes = intern(&self.wishes, values, |values| {
            made = true;
            Wishes {
                id: if values.is_empty() { 0 } else { self.next_id() },
                values: values.clone(),
                reported: std::sync::OnceLock::new(),
                parsing: self.parsing(values),
            }
        });
        // Those that take much room are not worth it.
        let small = |wishes: &Wishes| {
            wishes.values.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() <= RECENT_BYTES
        };
        if made && small(&wishes) {
            let mut recent = self.recent.lock();
            recent.push_back(wishes.clone());
            if recent.len() > RECENT_WISHES {
                recent.pop_front();
            }
        }
        wishes
    }
}

pub(crate) fn intern<K, V>(map: &DashMap<K, Weak<V>>, key: K, make: impl FnOnce(&K) -> V) -> Arc<V>
where
    K: std::hash::Hash + Eq,
{
    if let Some(found) = map.get(&key).and_then(|weak| weak.upgrade()) {
        return found;
    }
    // Forget what nobody holds any more, now and then: each time the map has doubled.
    if map.len().is_power_of_two() && map.len() >= 64 {
        map.retain(|_, weak| weak.strong_count() > 0);
    }
    match map.entry(key) {
        dashmap::Entry::Occupied(mut entry) => match entry.get().upgrade() {
            Some(found) => found,
            None => {
                let made = Arc::new(make(entry.key()));
                entry.insert(Arc::downgrade(&made));
                made
            }
        },
        dashmap::Entry::Vacant(entry) => {
            let made = Arc::new(make(entry.key()));
            entry.insert(Arc::downgrade(&made));
            made
        }
    }
}

/// `name` as a quoted identifier; `$user` stays what it means in `search_path`.
pub(crate) fn quote_identifier(name: &str) -> String {
    if name == "$user" {
        return "\"$user\"".to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What makes the token of a sealed context.
pub(crate) type Mint<'a> = &'a mut dyn FnMut(&Sealed) -> Result<String, SealError>;

/// Why a connection cannot be made ready. Nothing has been sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoverError {
    /// Something is too long for a message.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// There is no token.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// How a connection is made ready for its next session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handover {
    /// It carries everything already.
    Nothing,
    /// The same tenant, other wishes.
    Wishes,
    /// A clean connection.
    Context,
    /// It served another tenant, or was left in a state that the wire showed to be changed.
    Clean,
}

/// Appends to `out` what makes a connection that carries `carried` ready for a session, and says
/// which replies are to be swallowed. The caller writes `out` ahead of the client's bytes, and
/// sends nothing behind the client's first Sync, Query or FunctionCall until the replies are in.
/// `announce` is a channel and what is to be said on it, committed before the client's statement begins.
pub(crate) fn handover(
    out: &mut Vec<u8>,
    carried: &Carried,
    session: u64,
    context: &TenantContext,
    wishes: &Wishes,
    mint: Mint<'_>,
    announce: Option<(&str, &str)>,
) -> Result<(Handover, Prefix), HandoverError> {
    let own = carried.session == session;
    let mut prefix = Prefix::default();
    let foreign = carried.context != 0 && carried.context != context.id;
    let same_wishes = carried.wishes.id == wishes.id;
    if foreign || (carried.dirty && !own) {
        extended(out, b"DISCARD ALL", &[])?;
        prefix.commands += 1;
        set_context(out, &mut prefix, context, wishes, mint, announce)?;
        return Ok((Handover::Clean, prefix));
    }
    if carried.context == 0 || carried.lost {
        // Wishes that are there stay as they are: a session that is kept to its connection may have
        // changed them in a way that cannot be carried.
        let there = carried.context != 0 && same_wishes;
        for name in carried.wishes.values.keys().filter(|name| !wishes.values.contains_key(*name)) {
            set_config(out, name, None)?;
            prefix.readies += 1;
        }
        let wishes = if there { &NO_WISHES } else { wishes };
        set_context(out, &mut prefix, context, wishes, mint, announce)?;
        return Ok((Handover::Context, prefix));
    }
    if let Some((channel, payload)) = announce {
        extended(out, b"BEGIN", &[])?;
        extended(out, b"SELECT pg_catalog.pg_notify($1, $2)", &[channel.as_bytes(), payload.as_bytes()])?;
        extended(out, b"COMMIT", &[])?;
        build::close(out, b'S', b"")?;
        prefix.commands += 3;
        prefix.closes += 1;
    }
    if same_wishes {
        let done = if announce.is_some() { Handover::Context } else { Handover::Nothing };
        return Ok((done, prefix));
    }
    for name in carried.wishes.values.keys() {
        if !wishes.values.contains_key(name) {
            // NULL asks set_config for what RESET does.
            set_config(out, name, None)?;
            prefix.readies += 1;
        }
    }
    for (name, wish) in &wishes.values {
        if carried.wishes.values.get(name) != Some(wish) {
            set_wish(out, &mut prefix, name, wish)?;
        }
    }
    Ok((if announce.is_some() { Handover::Context } else { Handover::Wishes }, prefix))
}

fn set_context(
    out: &mut Vec<u8>,
    prefix: &mut Prefix,
    context: &TenantContext,
    wishes: &Wishes,
    mint: Mint<'_>,
    announce: Option<(&str, &str)>,
) -> Result<(), HandoverError> {
    let mut settings: SmallVec<[(&str, &str); 8]> = SmallVec::new();
    // Minted first, so that nothing is written if it cannot be.
    let token = context.sealed.as_ref().map(mint).transpose()?;
    // The shard notes that a token has been used, whatever the session has made the default.
    extended(out, if token.is_some() { b"BEGIN READ WRITE" } else { b"BEGIN" }, &[])?;
    for (name, wish) in &wishes.values {
        match wish {
            Wish::Value(value) => settings.push((name, value)),
            Wish::Statement(sql) => {
                extended(out, sql.as_bytes(), &[])?;
                prefix.commands += 1;
            }
        }
    }
    // The context last, so that no wish can override the tenant.
    settings.extend(context.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    if let Some(path) = context.search_path.as_ref().filter(|_| !wishes.values.contains_key("search_path")) {
        settings.push(("search_path", path));
    }
    if let Some(role) = &context.role {
        settings.push(("role", role));
    }
    if !settings.is_empty() || token.is_some() || announce.is_some() {
        let mut sql = Vec::with_capacity(64);
        let mut values: SmallVec<[&[u8]; 16]> = SmallVec::new();
        // Before any change of role. A parameter is not shown in pg_stat_activity.
        if let Some((channel, payload)) = announce {
            sql.extend_from_slice(b"SELECT pg_catalog.pg_notify($1, $2)");
            values.extend([channel.as_bytes(), payload.as_bytes()]);
        }
        if let Some(token) = &token {
            sql.extend_from_slice(if values.is_empty() { b"SELECT " } else { b", " });
            sql.extend_from_slice(format!("switchyard.enter(${})", values.len() + 1).as_bytes());
            values.push(token.as_bytes());
        }
        for (name, value) in &settings {
            sql.extend_from_slice(if values.is_empty() { b"SELECT " } else { b", " });
            let name_at = values.len() + 1;
            let value_at = name_at + 1;
            sql.extend_from_slice(
                format!("pg_catalog.set_config(${name_at}, ${value_at}, false)").as_bytes(),
            );
            values.extend([name.as_bytes(), value.as_bytes()]);
        }
        extended(out, &sql, &values)?;
        prefix.commands += 1;
    }
    extended(out, b"COMMIT", &[])?;
    prefix.commands += 2;
    // The client must not find the router's own unnamed statement, whatever it sends.
    build::close(out, b'S', b"")?;
    prefix.closes += 1;
    Ok(())
}

fn set_wish(out: &mut Vec<u8>, prefix: &mut Prefix, name: &str, wish: &Wish) -> Result<(), BuildError> {
    match wish {
        Wish::Value(value) => set_config(out, name, Some(value))?,
        Wish::Statement(sql) => {
            build::query(out, sql.as_bytes())?;
            prefix.commands += 1;
        }
    }
    prefix.readies += 1;
    Ok(())
}

fn extended(out: &mut Vec<u8>, sql: &[u8], params: &[&[u8]]) -> Result<(), BuildError> {
    build::parse(out, b"", sql, &[0, 0])?;
    build::bind_text(out, b"", b"", params)?;
    build::execute(out, b"", 0)
}

/// A fast-path call of `set_config(name, value, false)`: a transaction of its own, without
/// parsing, which leaves the unnamed statement alone and is not seen in `pg_stat_activity`.
/// No value asks for what RESET does.
pub(crate) fn set_config(out: &mut Vec<u8>, name: &str, value: Option<&str>) -> Result<(), BuildError> {
    build::function_call_nullable(
        out,
        SET_CONFIG_OID,
        &[Some(name.as_bytes()), value.map(str::as_bytes), Some(b"f")],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route() -> Route {
        Route { database: "db".into(), login: 0 }
    }

    fn template(role: Option<&str>) -> ContextTemplate {
        ContextTemplate {
            variables: [("app.tenant_id".to_owned(), "{tenant}".to_owned())].into(),
            role: role.map(str::to_owned),
            ..ContextTemplate::default()
        }
    }

    fn carried(context: u64, dirty: bool, session: u64) -> Carried {
        Carried { context, dirty, lost: false, session, wishes: Arc::default() }
    }

    #[test]
    fn equal_contexts_of_two_tenants_differ() {
        let interner = Interner::default();
        let fixed = ContextTemplate {
            variables: [("app.x".to_owned(), "same".to_owned())].into(),
            ..ContextTemplate::default()
        };
        let a = interner.context(&fixed, &TenantId::new("a").unwrap(), "u", route(), 7, false);
        let b = interner.context(&fixed, &TenantId::new("b").unwrap(), "u", route(), 7, false);
        let again = interner.context(&fixed, &TenantId::new("a").unwrap(), "u", route(), 7, false);
        assert_ne!(a.id, b.id);
        assert_eq!(a.id, again.id);
        let before = a.id;
        drop((a, again));
        let anew = interner.context(&fixed, &TenantId::new("a").unwrap(), "u", route(), 7, false);
        assert_ne!(anew.id, before, "an id left on a connection must not come to life again");
    }

    #[test]
    fn what_is_written_ahead() {
        let interner = Interner::default();
        let a = interner.context(&template(None), &TenantId::new("a").unwrap(), "u", route(), 7, false);
        let none = interner.wishes(BTreeMap::new());
        let go = |c: &Carried, session, context: &TenantContext, wishes: &Wishes| {
            let mut out = Vec::new();
            let (kind, prefix) =
                handover(&mut out, c, session, context, wishes, &mut |_| unreachable!(), None).unwrap();
            assert_eq!(out.is_empty(), kind == Handover::Nothing);
            (kind, prefix.commands, prefix.readies)
        };
        assert_eq!(go(&carried(a.id, false, 1), 2, &a, &none), (Handover::Nothing, 0, 0));
        assert_eq!(go(&carried(a.id, true, 2), 2, &a, &none), (Handover::Nothing, 0, 0));
        assert_eq!(go(&carried(a.id, true, 1), 2, &a, &none), (Handover::Clean, 4, 0));
        assert_eq!(go(&carried(0, false, 0), 2, &a, &none), (Handover::Context, 3, 0));
        assert_eq!(go(&carried(a.id + 7, false, 2), 2, &a, &none), (Handover::Clean, 4, 0));
        let wish = |v: &str| Wish::Value(v.to_owned());
        let wishes = interner.wishes([("work_mem".to_owned(), wish("1MB"))].into());
        assert_eq!(go(&carried(a.id, false, 1), 2, &a, &wishes), (Handover::Wishes, 0, 1));
        let strict = interner.context(
            &template(Some("t_{tenant}")),
            &TenantId::new("a").unwrap(),
            "u",
            route(),
            7,
            false,
        );
        assert_eq!(go(&carried(a.id, false, 1), 2, &strict, &wishes), (Handover::Clean, 4, 0));
    }

    #[test]
    fn schemas_are_quoted() {
        assert_eq!(quote_identifier("a\"; DROP"), "\"a\"\"; DROP\"");
        assert_eq!(quote_identifier("$user"), "\"$user\"");
    }
}
