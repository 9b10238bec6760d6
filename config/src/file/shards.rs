//! `pool`, `shards` and `buckets`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::{At, Table};
use super::units;
use super::value::Value;
use crate::ids::{BUCKETS, ShardName};
use crate::topology::{Endpoint, PoolLimits, ServerLogin, ServerSecret, Shard, ShardIndex, Topology};
use crate::url::{MAX_HOSTS, shard_from_url};
use crate::verifier::parse_scram_keys;

/// Most shards in a file; more than there are buckets would make no sense.
const MAX_SHARDS: usize = BUCKETS as usize;

/// The names of all shards that the file speaks of, also where the rest of a shard is wrong, so
/// that one mistake does not become many. The index is that in the list of good shards.
pub(super) struct ShardNames(HashMap<String, Option<ShardIndex>>);

impl ShardNames {
    /// Reads the name of a shard that must be among these.
    pub(super) fn read(&self, v: &Value<'_>) -> Option<ShardName> {
        let name = v.text()?;
        if self.0.contains_key(name) {
            return ShardName::new(name).ok();
        }
        match units::nearest(name, self.0.keys().map(String::as_str)) {
            Some(near) => v.error(format!("there is no shard {name:?}; did you mean `{near}`?")),
            None => v.error(format!("there is no shard {name:?}")),
        }
    }
}

pub(super) fn read(root: &Table<'_>, catalog: bool) -> (Vec<Shard>, ShardNames) {
    let mut defaults = PoolLimits::default();
    root.set("pool", &mut defaults, |v| Some(pool(v.table()?, &PoolLimits::default())));
    let tables = root.tables("shards");
    if tables.is_empty() && !catalog && !root.has("shards") {
        root.ctx.error(&root.at_key("shards"), "is missing: give at least one [[shards]], or a [catalog]");
    } else if tables.len() > MAX_SHARDS {
        root.ctx.error(&root.at_key("shards"), format!("there may be at most {MAX_SHARDS}"));
    }
    let mut names = ShardNames(HashMap::new());
    let mut shards: Vec<Shard> = Vec::new();
    for table in tables {
        let at = table.at.clone();
        let name = table.need("name", |v| {
            let name = ShardName::new(v.text()?).or_else(|e| v.error(e.to_string()).ok_or(())).ok()?;
            if names.0.insert(name.as_str().to_owned(), None).is_some() {
                return v.error(format!("there is another shard `{name}`"));
            }
            Some(name)
        });
        let Some(shard) = shard(table, name.as_ref(), &defaults) else { continue };
        let same = |s: &&Shard| s.host == shard.host && s.port == shard.port && s.database == shard.database;
        if let Some(other) = shards.iter().find(same) {
            let other = &other.name;
            root.ctx.warn(&at, format!("is the same database as shard `{other}`"));
        }
        names.0.insert(shard.name.as_str().to_owned(), Some(shards.len() as ShardIndex));
        shards.push(shard);
    }
    (shards, names)
}

fn shard(t: Table<'_>, name: Option<&ShardName>, defaults: &PoolLimits) -> Option<Shard> {
    // A URL is looked at even where the name is wrong, to find its mistakes too.
    let stand_in = ShardName::new("unnamed").ok()?;
    let url = t.need("url", |v| match shard_from_url(name.unwrap_or(&stand_in), v.text()?) {
        Ok(shard) => Some((v.at.clone(), shard)),
        Err(e) => v.error(e.to_string()),
    });
    let secret = server_secret(&t, "password", "scram_keys");
    let hosts = t.opt("hosts", |v| v.array(|v| super::peers::address(v)));
    let mut pool_limits = defaults.clone();
    t.set("pool", &mut pool_limits, |v| Some(pool(v.table()?, defaults)));
    let mut cordoned = false;
    t.set("cordoned", &mut cordoned, Value::boolean);
    if let Some((at, shard)) = &url
        && matches!(shard.login.secret, ServerSecret::Password(_))
        && (t.has_secret("password") || t.has_secret("scram_keys"))
    {
        t.ctx.error(at, "holds a password, and another is given beside it");
    }
    let shard = url.map(|(at, mut shard)| {
        for path in [&mut shard.tls.root_cert, &mut shard.tls.cert, &mut shard.tls.key] {
            resolve_existing(&t, &at, path);
        }
        if let Some(secret) = secret {
            shard.login.secret = secret;
        }
        for (host, port) in hosts.unwrap_or_default() {
            let host = Endpoint { host, port };
            if !shard.endpoints().contains(&host) {
                shard.other_hosts.push(host);
            }
        }
        if shard.other_hosts.len() >= MAX_HOSTS {
            t.ctx.error(&at, format!("a shard may have at most {MAX_HOSTS} hosts"));
        }
        Shard { pool: pool_limits, cordoned, ..shard }
    });
    t.finish();
    name.and(shard)
}

/// What proves a role on the shards: a password or SCRAM keys, each as a secret of its own.
pub(super) fn server_secret(t: &Table<'_>, password: &str, keys: &str) -> Option<ServerSecret> {
    let (found_password, found_keys) = (t.secret(password), t.secret(keys));
    if t.has_secret(password) && t.has_secret(keys) {
        t.ctx.error(&t.at, format!("give `{password}` or `{keys}`, not both"));
        return None;
    }
    if let Some(found) = found_keys {
        return match parse_scram_keys(found.expose()) {
            Ok(secret) => Some(secret),
            Err(e) => {
                t.ctx.error(&found.at, e.to_string());
                None
            }
        };
    }
    found_password.map(|p| ServerSecret::Password(p.text))
}

/// The role on the shards under `server_user` and its secret.
pub(super) fn server_login(t: &Table<'_>) -> Option<ServerLogin> {
    let user = t.opt("server_user", |v| v.name(63));
    let secret = server_secret(t, "server_password", "server_scram_keys");
    for key in ["server_password", "server_scram_keys"] {
        if t.has_secret(key) && !t.has("server_user") {
            t.ctx.error(&t.at_key(key), "needs `server_user` too");
        }
    }
    Some(ServerLogin { user: user?.to_owned(), secret: secret.unwrap_or(ServerSecret::None) })
}

fn resolve_existing(t: &Table<'_>, at: &At, path: &mut Option<PathBuf>) {
    let Some(given) = path else { return };
    *given = t.ctx.resolve(&given.to_string_lossy());
    if let Err(e) = std::fs::metadata(&given) {
        t.ctx.error(at, format!("{}: {}", given.display(), super::io_reason(&e)));
    }
}

fn pool(t: Table<'_>, defaults: &PoolLimits) -> PoolLimits {
    const MS: Duration = Duration::from_millis(1);
    const HOUR: Duration = Duration::from_secs(3600);
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    let mut p = defaults.clone();
    t.set("size", &mut p.size, |v| v.integer(1..=10_000));
    t.set("min", &mut p.min, |v| v.integer(0..=10_000));
    t.set("queue_timeout", &mut p.queue_timeout, |v| v.duration(MS..=24 * HOUR));
    t.set("queue_notice", &mut p.queue_notice, |v| v.duration(Duration::ZERO..=24 * HOUR));
    t.set("lifetime", &mut p.lifetime, |v| v.duration(1000 * MS..=YEAR));
    t.set("idle_timeout", &mut p.idle_timeout, |v| v.duration(1000 * MS..=YEAR));
    t.set("connect_timeout", &mut p.connect_timeout, |v| v.duration(100 * MS..=HOUR));
    t.set("backoff_max", &mut p.backoff_max, |v| v.duration(50 * MS..=HOUR));
    t.set("failover_timeout", &mut p.failover_timeout, |v| v.duration(Duration::ZERO..=24 * HOUR));
    t.set("max_standby_lag", &mut p.max_standby_lag, |v| v.duration(1000 * MS..=HOUR));
    t.set("reads_from_primary", &mut p.reads_from_primary, Value::boolean);
    t.set("check_after", &mut p.check_after, |v| v.duration(Duration::ZERO..=YEAR));
    t.set("statements", &mut p.statements, |v| v.integer(1..=100_000));
    if p.min > p.size && (t.has("min") || t.has("size")) {
        let message = format!("must not be more than `size`, which is {}", p.size);
        t.ctx.error(&t.at_key("min"), message);
    }
    t.finish();
    p
}

/// The bucket map: the ranges given, or an even deal over the shards that are not cordoned.
pub(super) fn read_buckets(root: &Table<'_>, shards: &[Shard], names: &ShardNames) -> Vec<ShardIndex> {
    let tables = root.opt("buckets", Value::tables);
    if !root.has("buckets") {
        let open: Vec<ShardIndex> = (0..).zip(shards).filter(|(_, s)| !s.cordoned).map(|(i, _)| i).collect();
        if open.is_empty() && !shards.is_empty() && shards.len() == names.0.len() {
            let message = "every shard is cordoned: leave one open, or give [[buckets]]";
            root.ctx.error(&root.at_key("shards"), message);
        }
        return Topology::even_buckets(open.len()).into_iter().map(|i| open[usize::from(i)]).collect();
    }
    let mut map: Vec<Option<ShardIndex>> = vec![None; usize::from(BUCKETS)];
    // Gaps are looked for only where every range was understood.
    let mut whole = tables.is_some();
    for table in tables.unwrap_or_default() {
        let shard = table.need("shard", |v| names.read(v));
        let last = u64::from(BUCKETS) - 1;
        let from: Option<usize> = table.need("from", |v| v.integer(0..=last));
        let to: Option<usize> = table.need("to", |v| v.integer(0..=last));
        match (shard, from, to) {
            (Some(_), Some(from), Some(to)) if from > to => {
                table.ctx.error(&table.at_key("to"), "must not be less than `from`");
                whole = false;
            }
            (Some(shard), Some(from), Some(to)) => {
                let taken = map[from..=to].iter().position(Option::is_some);
                if let Some(taken) = taken {
                    table.ctx.error(&table.at, format!("bucket {} is given twice", from + taken));
                    whole = false;
                }
                // Of a shard that was refused nothing will be used; 0 stands in for it.
                let index = names.0.get(shard.as_str()).copied().flatten().unwrap_or(0);
                map[from..=to].fill(Some(index));
            }
            _ => whole = false,
        }
        table.finish();
    }
    if let Some(missing) = map.iter().position(Option::is_none)
        && whole
    {
        let end = map[missing..].iter().position(Option::is_some).map_or(map.len(), |n| missing + n) - 1;
        let message = format!("{missing} to {end} belong to no shard; all of 0 to {} must", BUCKETS - 1);
        root.ctx.error(&root.at_key("buckets"), message);
    }
    map.into_iter().map(Option::unwrap_or_default).collect()
}
