//! `users`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::reader::Table;
use super::settings::POOL_MODES;
use super::shards::server_login;
use super::tenants;
use super::value::Value;
use crate::ids::TenantId;
use crate::settings::LoginSettings;
use crate::topology::{ConsoleRole, LoginMethods, Tenant, TenantGrant, UnknownTenants, User, Verifier};
use crate::verifier::check_verifier;

/// Longest user name, in bytes. Above PostgreSQL's 63, as it need be no role there.
const MAX_USER_BYTES: usize = 128;

/// The words of `console`.
const CONSOLE_ROLES: [(&str, ConsoleRole); 3] =
    [("viewer", ConsoleRole::Viewer), ("operator", ConsoleRole::Operator), ("admin", ConsoleRole::Admin)];

/// What users are checked against.
pub(super) struct Known<'k> {
    /// Which ways to log in are on.
    pub(super) login: LoginSettings,
    /// Whether client certificates are asked for.
    pub(super) client_ca: bool,
    /// Whether any issuer of JWTs is trusted.
    pub(super) issuers: bool,
    /// Whether tenants and issuers may come from a catalog too.
    pub(super) catalog: bool,
    /// What happens to tenants that are not in `tenants`.
    pub(super) unknown_tenants: UnknownTenants,
    /// The tenants of the file.
    pub(super) tenants: &'k HashMap<TenantId, Arc<Tenant>>,
}

pub(super) fn read(root: &Table<'_>, known: &Known<'_>) -> HashMap<String, Arc<User>> {
    let mut users = HashMap::new();
    if !root.has("users") && !known.catalog {
        root.ctx.warn(&root.at_key("users"), "there are none, so that nobody can log in");
    }
    let mut names = HashSet::new();
    for table in root.tables("users") {
        let name = table.need("name", |v| {
            let name = v.name(MAX_USER_BYTES)?;
            if names.insert(name) { Some(name) } else { v.error(format!("there is another user {name:?}")) }
        });
        if let Some(user) = user(table, name, known) {
            users.insert(user.name.clone(), Arc::new(user));
        }
    }
    users
}

fn user(t: Table<'_>, name: Option<&str>, known: &Known<'_>) -> Option<User> {
    let verifier = verifier(&t, known);
    let methods = methods(&t, known);
    let any = methods.jwt || methods.cert || methods.trust || t.has_secret("verifier");
    if !any {
        let message = "has no way to log in: give `verifier` (made by `switchyard auth hash`), `jwt`, `cert` or `trust`";
        t.ctx.error(&t.at, message);
    }
    let tenants = grant(&t, known, methods.console.is_some());
    let pool_mode = t.opt("pool_mode", |v| v.one_of(&POOL_MODES));
    let server_login = server_login(&t).map(Arc::new);
    t.finish();
    Some(User { name: name?.to_owned(), verifier, methods, tenants: tenants?, pool_mode, server_login })
}

fn verifier(t: &Table<'_>, known: &Known<'_>) -> Option<Verifier> {
    let found = t.secret("verifier")?;
    match check_verifier(found.expose()) {
        Ok(Verifier::Md5(_)) if !known.login.md5 => {
            t.ctx.error(
                &found.at,
                "is md5, which is off: set `md5 = true` in [login], or make a SCRAM verifier",
            );
            None
        }
        Ok(verifier) => Some(verifier),
        Err(e) => {
            t.ctx.error(&found.at, e.to_string());
            None
        }
    }
}

fn methods(t: &Table<'_>, known: &Known<'_>) -> LoginMethods {
    let mut methods = LoginMethods::default();
    t.set("jwt", &mut methods.jwt, Value::boolean);
    t.set("cert", &mut methods.cert, Value::boolean);
    t.set("trust", &mut methods.trust, Value::boolean);
    t.set("read_only", &mut methods.read_only, Value::boolean);
    t.set("roaming", &mut methods.roaming, Value::boolean);
    if methods.roaming && t.has("tenant") {
        t.ctx.error(
            &t.at_key("roaming"),
            "is for users with `tenants`: who has one `tenant` has nowhere to roam",
        );
    }
    methods.console = t.opt("console", |v| v.one_of(&CONSOLE_ROLES));
    if methods.trust && !known.login.trust {
        t.ctx.error(&t.at_key("trust"), "is off: set `trust = true` in [login]");
    }
    if methods.cert && !known.client_ca {
        t.ctx.error(&t.at_key("cert"), "needs `client_ca` in [tls]");
    }
    if methods.jwt && !known.issuers && !known.catalog {
        t.ctx.error(&t.at_key("jwt"), "needs an issuer: give [[jwt]], or one of a tenant in [[tenants.jwt]]");
    }
    methods
}

/// For whom the user may act: exactly one of `tenant` and `tenants`; who has the console may act for nobody.
fn grant(t: &Table<'_>, known: &Known<'_>, console: bool) -> Option<TenantGrant> {
    let one = t.opt("tenant", |v| {
        let id = tenants::id(v)?;
        warn_unknown(v, &id, known);
        Some(TenantGrant::One(id))
    });
    let many = t.opt("tenants", |v| match v.value.as_str() {
        Some("*") => Some(TenantGrant::Any),
        Some(_) => v.error("must be \"*\" or an array; for one tenant there is `tenant`"),
        None => {
            let list = v.array(|v| {
                let id = tenants::id(v)?;
                warn_unknown(v, &id, known);
                Some(id)
            })?;
            if v.value.as_array().is_some_and(|a| a.is_empty()) {
                return v.error("must name at least one tenant");
            }
            let mut seen = HashSet::new();
            if let Some(twice) = list.iter().find(|id| !seen.insert(*id)) {
                return v.error(format!("names tenant {twice:?} twice"));
            }
            Some(TenantGrant::List(list))
        }
    });
    match (t.has("tenant"), t.has("tenants")) {
        (true, true) => {
            t.ctx.error(&t.at_key("tenants"), "give `tenant` or `tenants`, not both");
            None
        }
        (false, false) if console => Some(TenantGrant::List(Vec::new())),
        (false, false) => {
            let message =
                "is missing: say for whom the user may act, by `tenant` or `tenants` (\"*\" is for all)";
            t.ctx.error(&t.at_key("tenants"), message);
            None
        }
        _ => one.or(many),
    }
}

fn warn_unknown(v: &Value<'_>, id: &TenantId, known: &Known<'_>) {
    let refused = known.unknown_tenants == UnknownTenants::Refuse && !known.catalog;
    if refused && !known.tenants.contains_key(id) {
        v.ctx.warn(&v.at, format!("tenant {id:?} is not in [[tenants]], so that it is refused"));
    }
}
