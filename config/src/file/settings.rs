//! The sections of the process: `router`, `tls`, `login`, `identity`, `limits`, `catalog`.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use secrecy::SecretString;

use super::peers;
use super::reader::Table;
use super::value::Value;
use crate::ids::ShardName;
use crate::seal::parse_seal_keys;
use crate::settings::{
    CatalogSettings, ClientTls, ClientTlsMode, ConsoleSettings, IdentitySettings, Limits, ListenAddress,
    LoginSettings, MAX_ROUTER_ID, RoamingSettings, RouterSettings, SealSettings,
};
use crate::template;
use crate::topology::{PoolMode, UnknownTenants};

/// The words of `pool_mode`.
pub(super) const POOL_MODES: [(&str, PoolMode); 2] =
    [("transaction", PoolMode::Transaction), ("session", PoolMode::Session)];

const DAY: Duration = Duration::from_secs(86_400);
const MS: Duration = Duration::from_millis(1);

pub(super) fn read(root: &Table<'_>) -> (RouterSettings, UnknownTenants) {
    let mut s = RouterSettings::default();
    let mut unknown = UnknownTenants::default();
    root.set("tls", &mut s.tls, |v| Some(tls(v.table()?)));
    if let Some(t) = root.table("router") {
        t.set("id", &mut s.id, |v| v.integer(1..=u64::from(MAX_ROUTER_ID)));
        t.set("listen", &mut s.listen, listen);
        t.set("reuse_port", &mut s.reuse_port, Value::boolean);
        t.set("http_listen", &mut s.http_listen, |v| match v.text()? {
            "" => Some(None),
            _ => address(v).map(Some),
        });
        t.set("proxy_protocol", &mut s.proxy_protocol, |v| {
            v.array(|v| match v.text()?.parse() {
                Ok(network) => Some(network),
                Err(()) => v.error("must be a network or an address, such as 10.0.0.0/8 or 2001:db8::/32"),
            })
        });
        t.set("workers", &mut s.workers, |v| v.integer(0..=1024));
        t.set("pool_mode", &mut s.pool_mode, |v| v.one_of(&POOL_MODES));
        t.set("metrics_tenants", &mut s.metrics_tenants, |v| v.integer(0..=100_000));
        let words = [("refuse", UnknownTenants::Refuse), ("create", UnknownTenants::Create)];
        t.set("unknown_tenants", &mut unknown, |v| v.one_of(&words));
        if s.tls.mode == ClientTlsMode::Disable && s.listen.iter().any(reachable) && !root.has("tls") {
            t.ctx
                .warn(&t.at_key("listen"), "clients beyond this machine are accepted without TLS; see [tls]");
        }
        t.finish();
    }
    root.set("login", &mut s.login, |v| Some(login(v.table()?)));
    root.set("identity", &mut s.identity, |v| Some(identity(v.table()?)));
    root.set("roaming", &mut s.roaming, |v| Some(roaming(v.table()?)));
    root.set("limits", &mut s.limits, |v| Some(limits(v.table()?)));
    root.set("console", &mut s.console, |v| Some(console(v.table()?)));
    s.catalog = root.opt("catalog", |v| Some(catalog(v.table()?)));
    s.peers = peers::read(root, s.id);
    s.seal = root.opt("seal", |v| seal(v.table()?));
    s.notification_key = root.opt("notifications", |v| notification_key(v.table()?));
    (s, unknown)
}

/// Shortest key of notifications.
const NOTIFICATION_KEY_BYTES: usize = 32;

fn reachable(address: &ListenAddress) -> bool {
    matches!(address, ListenAddress::Tcp(a) if !a.ip().is_loopback())
}

fn address(v: &Value<'_>) -> Option<SocketAddr> {
    match v.text()?.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            v.error("must be an address and a port, such as 127.0.0.1:6432, [::1]:6432 or 0.0.0.0:6432")
        }
    }
}

fn listen(v: &Value<'_>) -> Option<Vec<ListenAddress>> {
    let addresses = v.array(|v| match v.text()?.strip_prefix("unix:") {
        None => address(v).map(ListenAddress::Tcp),
        Some(rest) => {
            let read = rest.rsplit_once(':').and_then(|(dir, port)| {
                let port = port.parse::<u16>().ok().filter(|p| *p > 0)?;
                (dir.starts_with('/') && !dir.contains('\0'))
                    .then(|| ListenAddress::Unix { dir: dir.into(), port })
            });
            read.or_else(|| {
                v.error("must be unix:, an absolute directory and a port, such as unix:/run/switchyard:6432")
            })
        }
    })?;
    for (i, a) in addresses.iter().enumerate() {
        // Any number of listeners may ask for a free port.
        let free = matches!(a, ListenAddress::Tcp(a) if a.port() == 0);
        if !free && addresses[..i].contains(a) {
            return v.error("holds the same address twice");
        }
    }
    if v.value.as_array().is_some_and(|a| a.is_empty()) {
        return v.error("must hold at least one address");
    }
    Some(addresses)
}

fn tls(t: Table<'_>) -> ClientTls {
    let mut tls = ClientTls {
        mode: ClientTlsMode::Disable,
        cert: t.opt("cert", Value::file),
        key: t.opt("key", Value::file),
        client_ca: t.opt("client_ca", Value::file),
    };
    let words = [
        ("disable", ClientTlsMode::Disable),
        ("allow", ClientTlsMode::Allow),
        ("require", ClientTlsMode::Require),
    ];
    let mode = t.opt("mode", |v| v.one_of(&words));
    tls.mode = mode.unwrap_or(if t.has("cert") { ClientTlsMode::Allow } else { ClientTlsMode::Disable });
    for (one, other) in [("cert", "key"), ("key", "cert"), ("client_ca", "cert")] {
        if t.has(one) && !t.has(other) {
            t.ctx.error(&t.at_key(one), format!("needs `{other}` too"));
        }
    }
    if tls.mode != ClientTlsMode::Disable && !t.has("cert") {
        t.ctx.error(&t.at_key("mode"), "needs `cert` and `key`");
    }
    t.finish();
    tls
}

fn login(t: Table<'_>) -> LoginSettings {
    let mut login = LoginSettings::default();
    t.set("md5", &mut login.md5, Value::boolean);
    t.set("trust", &mut login.trust, Value::boolean);
    t.finish();
    login
}

fn identity(t: Table<'_>) -> IdentitySettings {
    let mut identity = IdentitySettings::default();
    t.set("sni_suffix", &mut identity.sni_suffix, |v| {
        let suffix = v.name(253)?;
        let name = suffix.strip_prefix('.').is_some_and(|s| {
            s.split('.').all(|l| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
        });
        // Names of servers are compared without regard to case.
        if name {
            Some(Some(suffix.to_ascii_lowercase()))
        } else {
            v.error("must be such as .db.example.com")
        }
    });
    t.set("user_separators", &mut identity.user_separators, |v| {
        v.array(|v| {
            let mut chars = v.text()?.chars();
            match (chars.next(), chars.next()) {
                (Some(c), None) if !c.is_alphanumeric() && !c.is_control() && c != '_' => Some(c),
                _ => v.error("must be one character that is no letter, digit or `_`"),
            }
        })
    });
    t.set("startup_parameter", &mut identity.startup_parameter, |v| {
        let name = v.text()?;
        if name.is_empty() {
            return Some(None);
        }
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
        if !plain || name.len() > template::MAX_NAME_BYTES {
            return v.error("must be a parameter's name: letters, digits, `_` and `.`");
        }
        if ["user", "database", "options", "replication"].contains(&name) || name.starts_with("_pq_") {
            return v.error("has a meaning of its own in the protocol");
        }
        Some(Some(name.to_owned()))
    });
    t.set("database", &mut identity.database, |v| {
        let text = v.name(256)?;
        if let Err(e) = template::check_template(text) {
            return v.error(e.to_string());
        }
        match template::around_tenant(text) {
            Some(_) => Some(Some(text.to_owned())),
            None => v.error("must hold {tenant} once, and not {user}"),
        }
    });
    t.finish();
    identity
}

fn limits(t: Table<'_>) -> Limits {
    let mut l = Limits::default();
    t.set("clients", &mut l.clients, |v| v.integer(1..=10_000_000));
    t.set("unauthenticated", &mut l.unauthenticated, |v| v.integer(1..=1_000_000));
    t.set("unauthenticated_per_address", &mut l.unauthenticated_per_address, |v| v.integer(1..=1_000_000));
    t.set("failed_logins", &mut l.failed_logins, |v| v.integer(0..=1000));
    t.set("login_timeout", &mut l.login_timeout, |v| v.duration(100 * MS..=3600 * 1000 * MS));
    t.set("startup_bytes", &mut l.startup_bytes, |v| v.size(512..=65_536));
    t.set("token_bytes", &mut l.token_bytes, |v| v.size(1024..=1 << 20));
    t.set("statement_bytes", &mut l.statement_bytes, |v| v.size(1024..=1 << 30));
    t.set("statements_per_client", &mut l.statements_per_client, |v| v.integer(1..=1_000_000));
    t.set("mailbox_bytes", &mut l.mailbox_bytes, |v| v.size(16_384..=1 << 30));
    t.set("channels_per_tenant", &mut l.channels_per_tenant, |v| v.integer(1..=1_000_000));
    t.set("client_idle_timeout", &mut l.client_idle_timeout, |v| v.duration(Duration::ZERO..=365 * DAY));
    t.set("idle_in_transaction_timeout", &mut l.idle_in_transaction_timeout, |v| {
        v.duration(Duration::ZERO..=365 * DAY)
    });
    t.set("statement_timeout", &mut l.statement_timeout, |v| v.duration(Duration::ZERO..=365 * DAY));
    t.set("transaction_timeout", &mut l.transaction_timeout, |v| v.duration(Duration::ZERO..=365 * DAY));
    t.set("drain_delay", &mut l.drain_delay, |v| v.duration(Duration::ZERO..=3600 * 1000 * MS));
    t.set("handover_timeout", &mut l.handover_timeout, |v| v.duration(Duration::ZERO..=7 * DAY));
    t.set("drain_timeout", &mut l.drain_timeout, |v| v.duration(Duration::ZERO..=DAY));
    t.set("unknown_cancels", &mut l.unknown_cancels, |v| v.integer(1..=1_000_000));
    t.set("cancel_timeout", &mut l.cancel_timeout, |v| v.duration(100 * MS..=3600 * 1000 * MS));
    t.finish();
    l
}

fn seal(t: Table<'_>) -> Option<SealSettings> {
    let found = t.secret("key");
    if !t.has_secret("key") {
        t.ctx.error(&t.at_key("key"), "is missing: give `key`, `key_file` or `key_env`");
    }
    let keys = found.and_then(|found| match parse_seal_keys(found.expose()) {
        Ok(keys) => Some(keys),
        Err(e) => {
            t.ctx.error(&found.at, e.to_string());
            None
        }
    });
    let mut token_lifetime = Duration::from_secs(300);
    t.set("token_lifetime", &mut token_lifetime, |v| v.duration(1000 * MS..=DAY));
    t.finish();
    Some(SealSettings { keys: keys?, token_lifetime })
}

fn notification_key(t: Table<'_>) -> Option<SecretString> {
    let found = t.secret("key");
    if !t.has_secret("key") {
        t.ctx.error(&t.at_key("key"), "is missing: give `key`, `key_file` or `key_env`");
    }
    let key = found.and_then(|found| {
        let key = found.expose().trim();
        if key.len() < NOTIFICATION_KEY_BYTES {
            let least = format!("must have {NOTIFICATION_KEY_BYTES} bytes or more, which nobody can guess");
            t.ctx.error(&found.at, least);
            return None;
        }
        Some(key.to_owned().into())
    });
    t.finish();
    key
}

fn roaming(t: Table<'_>) -> RoamingSettings {
    let mut r = RoamingSettings::default();
    t.set("setting", &mut r.setting, |v| {
        let name = v.name(template::MAX_NAME_BYTES)?;
        let lower = name.to_ascii_lowercase();
        if lower != "search_path"
            && let Err(error) = template::check_variable(name)
        {
            return v.error(error.to_string());
        }
        Some(Some(lower))
    });
    t.set("comment", &mut r.comment, |v| {
        let key = v.name(template::MAX_NAME_BYTES)?;
        let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        if plain { Some(Some(key.to_owned())) } else { v.error("must be letters, digits, `_`, `-` and `.`") }
    });
    t.set("default_shard", &mut r.default_shard, |v| match ShardName::new(v.text()?) {
        Ok(name) => Some(Some(name)),
        Err(error) => v.error(error.to_string()),
    });
    t.finish();
    r
}

fn console(t: Table<'_>) -> ConsoleSettings {
    let mut c = ConsoleSettings::default();
    // As PostgreSQL's own names of databases. // NAMEDATALEN - 1, src/include/pg_config_manual.h
    t.set("databases", &mut c.databases, |v| v.array(|v| v.name(63).map(str::to_owned)));
    t.set("sessions", &mut c.sessions, |v| v.integer(1..=10_000));
    t.set("admin_sessions", &mut c.admin_sessions, |v| v.integer(0..=10_000));
    t.set("drain_timeout", &mut c.drain_timeout, |v| v.duration(MS..=DAY));
    t.set("hold_timeout", &mut c.hold_timeout, |v| v.duration(MS..=DAY));
    t.set("stats_period", &mut c.stats_period, |v| v.duration(1000 * MS..=DAY));
    if c.admin_sessions > c.sessions {
        t.ctx.error(&t.at_key("admin_sessions"), "is more than `sessions`");
    }
    t.finish();
    c
}

fn catalog(t: Table<'_>) -> CatalogSettings {
    let url = t.secret("url");
    if !t.has_secret("url") {
        t.ctx.error(&t.at_key("url"), "is missing: give `url`, `url_file` or `url_env`");
    }
    if let Some(url) = &url
        && !["postgres://", "postgresql://"].iter().any(|s| url.expose().starts_with(s))
    {
        t.ctx.error(&url.at, "must begin with postgres:// or postgresql://");
    }
    let state_file = t.opt("state_file", |v| {
        let path = v.path()?;
        let dir = path.parent().filter(|d| *d != Path::new(""));
        match dir {
            Some(dir) if !dir.is_dir() => v.error(format!("{}: no such directory", dir.display())),
            _ if path.is_dir() => v.error(format!("{} is a directory", path.display())),
            _ => Some(path),
        }
    });
    let mut poll = Duration::from_secs(5);
    t.set("poll", &mut poll, |v| v.duration(100 * MS..=3600 * 1000 * MS));
    t.finish();
    CatalogSettings { url: url.map(|u| u.text).unwrap_or_default(), state_file, poll }
}
