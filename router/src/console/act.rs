//! What the console does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard_config::{ShardName, TenantId};
use switchyard_wire::error::{ErrorResponse, sqlstate};
use tokio::sync::oneshot;

use super::command::{Act, Scope};
use super::{Control, client_id};
use crate::pauses::Held;
use crate::session::handle::{Activity, Order, SessionHandle};
use crate::shared::Shared;

/// How often it is looked whether what is waited for has come about.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Sessions that are named where they are in the way; more are counted.
const NAMED: usize = 20;

type Notices = Vec<ErrorResponse>;

/// Does it. Whoever drops the future before it is done gives up: what was begun is undone.
pub(super) async fn run(shared: &Arc<Shared>, act: &Act) -> Result<Notices, ErrorResponse> {
    match act {
        Act::Pause(scope) => pause(shared, Target::find(shared, scope)?).await.map(|()| Notices::new()),
        Act::Resume(scope) => resume(shared, &Target::known(shared, scope)?).map(|()| Notices::new()),
        Act::Reconnect(scope) => reconnect(shared, &Target::find(shared, scope)?),
        Act::WaitClose(scope) => wait_close(shared, &Target::find(shared, scope)?).await,
        Act::Disable(scope) => disable(shared, Target::find(shared, scope)?, true),
        Act::Enable(scope) => disable(shared, Target::known(shared, scope)?, false),
        Act::Kill(scope) => Ok(kill(shared, &Target::find(shared, scope)?)),
        Act::KillClient(id) => kill_client(shared, *id),
        Act::Reload => reload(shared).await,
        // Done once the answer is written.
        Act::Shutdown(_) => Ok(Notices::new()),
    }
}

/// What a command is about, once found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    All,
    Shard(ShardName),
    Tenant(TenantId),
}

impl Target {
    /// What the scope names, which must be there.
    fn find(shared: &Shared, scope: &Scope) -> Result<Self, ErrorResponse> {
        let target = Self::named(scope)?;
        let there = match &target {
            Self::All => true,
            Self::Shard(name) => shared.topology().shards.iter().any(|shard| shard.name == *name),
            Self::Tenant(id) => shared.topology().tenant(id).is_some(),
        };
        if there { Ok(target) } else { Err(target.missing()) }
    }

    /// What the scope names, which must be there, or have been.
    fn known(shared: &Shared, scope: &Scope) -> Result<Self, ErrorResponse> {
        let target = Self::named(scope)?;
        let held = shared.pauses.now();
        let held = match &target {
            Self::All => true,
            Self::Shard(name) => held.shards.contains(name) || held.disabled_shards.contains(name),
            Self::Tenant(id) => held.tenants.contains(id) || held.disabled_tenants.contains(id),
        };
        if held { Ok(target) } else { Self::find(shared, scope) }
    }

    fn named(scope: &Scope) -> Result<Self, ErrorResponse> {
        match scope {
            Scope::All => Ok(Self::All),
            Scope::Shard(name) => {
                // As SHOW DATABASES calls it, or alone.
                let alone = name.rsplit_once('@').map_or(name.as_str(), |(_, shard)| shard);
                let missing = |_| no_such(&format!("shard: {}", super::shown(name)));
                ShardName::new(alone).map(Self::Shard).map_err(missing)
            }
            Scope::Tenant(id) => TenantId::new(id)
                .map(Self::Tenant)
                .map_err(|_| no_such(&format!("tenant: {}", super::shown(id)))),
        }
    }

    fn missing(&self) -> ErrorResponse {
        no_such(&self.to_string().replacen(' ', ": ", 1))
    }

    /// Whether a session is concerned, whose tenant lives on `shard`.
    fn concerns(&self, session: &SessionHandle, shard: Option<&ShardName>) -> bool {
        match self {
            Self::All => true,
            Self::Shard(name) => shard == Some(name),
            Self::Tenant(id) => session.tenant() == *id,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("everything"),
            Self::Shard(name) => write!(f, "shard {name}"),
            Self::Tenant(id) => write!(f, "tenant {id}"),
        }
    }
}

fn no_such(what: &str) -> ErrorResponse {
    ErrorResponse::error(sqlstate::UNDEFINED_OBJECT, format!("no such {what}"))
}

fn state(text: String) -> ErrorResponse {
    ErrorResponse::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text)
}

// --- pause and resume ---

/// Takes back a pause that did not come about.
struct Undo<'a> {
    shared: &'a Shared,
    target: Target,
    done: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.shared.change_holds(|held| set_paused(held, &self.target, false));
        }
    }
}

/// Whether that has changed anything.
fn set_paused(held: &mut Held, target: &Target, paused: bool) -> bool {
    match (target, paused) {
        (Target::All, _) => std::mem::replace(&mut held.everything, paused) != paused,
        (Target::Shard(name), true) => held.shards.insert(name.clone()),
        (Target::Shard(name), false) => held.shards.remove(name),
        (Target::Tenant(id), true) => held.tenants.insert(id.clone()),
        (Target::Tenant(id), false) => held.tenants.remove(id),
    }
}

async fn pause(shared: &Shared, target: Target) -> Result<(), ErrorResponse> {
    if !shared.change_holds(|held| set_paused(held, &target, true)) {
        return Err(state(format!("{target} is paused already")));
    }
    let mut undo = Undo { shared, target: target.clone(), done: false };
    let limit = shared.settings().console.drain_timeout;
    let began = Instant::now();
    loop {
        let users = in_use(shared, &target);
        if users.is_empty() {
            undo.done = true;
            return Ok(());
        }
        if began.elapsed() >= limit {
            let text = format!("{target} is still in use after {} ms, and is not paused", limit.as_millis());
            return Err(ErrorResponse::error(sqlstate::LOCK_NOT_AVAILABLE, text)
                .detail(tell(shared, users))
                .hint("KILL_CLIENT ends a session by its id."));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Which sessions have server connections that a pause must wait for, or 0 for the router itself; with the number of
/// connections.
fn in_use(shared: &Shared, target: &Target) -> BTreeMap<u64, usize> {
    let mut users = BTreeMap::new();
    let mut seen = HashSet::new();
    let sessions = by_number(shared);
    for pool in shared.pools() {
        if matches!(target, Target::Shard(name) if pool.shard.name != *name) {
            continue;
        }
        let look = pool.look();
        for server in look.busy() {
            let of_target = match (target, server.holder()) {
                (Target::Tenant(_), 0) => false,
                // Whoever is gone from the registry and has a connection is on the way out.
                (Target::Tenant(id), number) => sessions.get(&number).is_none_or(|s| s.tenant() == *id),
                _ => true,
            };
            if of_target && seen.insert(server.id) {
                *users.entry(server.holder()).or_default() += 1;
            }
        }
        if look.connecting > 0 && !matches!(target, Target::Tenant(_)) {
            *users.entry(0).or_default() += look.connecting;
        }
    }
    // Connections of pools that have been replaced since.
    for (number, session) in &sessions {
        if let Some(server) = session.target()
            && target.concerns(session, Some(&server.shard.name))
            && seen.insert(server.id)
        {
            *users.entry(*number).or_default() += 1;
        }
    }
    users
}

fn by_number(shared: &Shared) -> HashMap<u64, Arc<SessionHandle>> {
    shared.sessions.iter().map(|session| (session.number(), session.clone())).collect()
}

fn tell(shared: &Shared, users: BTreeMap<u64, usize>) -> String {
    let mut text = String::new();
    let more = users.len().saturating_sub(NAMED);
    let sessions = by_number(shared);
    for (number, connections) in users.into_iter().take(NAMED) {
        if !text.is_empty() {
            text.push_str("; ");
        }
        let Some(session) = sessions.get(&number) else {
            let _ = write!(text, "the router itself ({connections} connections)");
            continue;
        };
        let (activity, seconds) = session.activity();
        let doing = match (session.pin(), activity) {
            (_, Activity::IdleInTransaction) => "idle in a transaction",
            (_, Activity::Active) => "running a statement",
            (Some((pin, _)), Activity::Idle) => pin.label(),
            (None, Activity::Idle) => "keeping its connection",
        };
        let (tenant, user) = (session.tenant(), super::shown(&session.who.user));
        let _ = write!(
            text,
            "client {} of tenant {tenant}, user {user}: {doing} for {seconds} s",
            client_id(number)
        );
    }
    if more > 0 {
        let _ = write!(text, "; and {more} more");
    }
    text + "."
}

fn resume(shared: &Shared, target: &Target) -> Result<(), ErrorResponse> {
    if shared.change_holds(|held| set_paused(held, target, false)) {
        return Ok(());
    }
    let held = shared.pauses.now();
    let error = state(format!("{target} is not paused"));
    Err(match target {
        Target::All if !held.shards.is_empty() || !held.tenants.is_empty() => {
            let shards = held.shards.iter().map(|name| format!("RESUME {name}"));
            let tenants = held.tenants.iter().map(|id| format!("RESUME TENANT {id}"));
            let all: Vec<_> = shards.chain(tenants).take(NAMED).collect();
            error.hint(format!("Each is resumed as it was paused: {}.", all.join("; ")))
        }
        Target::Shard(_) if held.everything => error.hint("Everything is: say RESUME alone."),
        _ => error,
    })
}

// --- connections ---

fn reconnect(shared: &Shared, target: &Target) -> Result<Notices, ErrorResponse> {
    for pool in shared.pools() {
        if !matches!(target, Target::Shard(name) if pool.shard.name != *name) {
            pool.reconnect();
        }
    }
    Ok(Notices::new())
}

async fn wait_close(shared: &Shared, target: &Target) -> Result<Notices, ErrorResponse> {
    let limit = shared.settings().console.drain_timeout;
    let began = Instant::now();
    loop {
        let of_target = |name: &ShardName| !matches!(target, Target::Shard(wanted) if wanted != name);
        let left: usize =
            shared.pools().iter().filter(|pool| of_target(&pool.shard.name)).map(|pool| pool.stale()).sum();
        if left == 0 {
            return Ok(Notices::new());
        }
        if began.elapsed() >= limit {
            let text = format!("{left} connections are still in use after {} ms", limit.as_millis());
            return Err(ErrorResponse::error(sqlstate::LOCK_NOT_AVAILABLE, text));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

// --- who may log in ---

fn disable(shared: &Shared, target: Target, disabled: bool) -> Result<Notices, ErrorResponse> {
    let changed = shared.change_holds(|held| match (&target, disabled) {
        (Target::Shard(name), true) => held.disabled_shards.insert(name.clone()),
        (Target::Shard(name), false) => held.disabled_shards.remove(name),
        (Target::Tenant(id), true) => held.disabled_tenants.insert(id.clone()),
        (Target::Tenant(id), false) => held.disabled_tenants.remove(id),
        (Target::All, _) => false,
    });
    match (changed, disabled) {
        (true, _) => Ok(Notices::new()),
        (false, true) => Err(state(format!("{target} is disabled already"))),
        (false, false) => Err(state(format!("{target} is not disabled"))),
    }
}

// --- the end of sessions ---

/// As PgBouncer: a shard whose sessions are ended stays paused. A tenant's sessions may come back at once.
fn kill(shared: &Shared, target: &Target) -> Notices {
    let pauses = !matches!(target, Target::Tenant(_));
    if pauses {
        shared.change_holds(|held| set_paused(held, target, true));
    }
    let topology = shared.topology();
    let mut ended = 0_u64;
    for session in &shared.sessions {
        let home = || {
            let tenant = topology.tenant(&session.tenant())?;
            topology.place(&tenant).map(|placed| topology.shards[usize::from(placed.shard)].name.clone())
        };
        let shard = session.target().map(|server| server.shard.name.clone());
        if target.concerns(&session, shard.or_else(home).as_ref()) {
            session.command(Order::Terminate);
            ended += 1;
        }
    }
    let notice = |text: String| ErrorResponse::notice(sqlstate::SUCCESSFUL_COMPLETION, text);
    let mut notices = vec![notice(format!("{ended} sessions ended"))];
    if pauses {
        notices.push(notice(format!("{target} is paused until RESUME")));
    }
    notices
}

fn kill_client(shared: &Shared, id: u32) -> Result<Notices, ErrorResponse> {
    let session = shared.sessions.iter().find(|session| client_id(session.number()) == id);
    session.ok_or_else(|| no_such(&format!("client: {id}")))?.command(Order::Terminate);
    Ok(Notices::new())
}

// --- the process ---

async fn reload(shared: &Shared) -> Result<Notices, ErrorResponse> {
    let (answer, done) = oneshot::channel();
    shared.console.ask(Control::Reload(answer))?;
    let failed = || ErrorResponse::error(sqlstate::CONFIG_FILE_ERROR, "the configuration was not reloaded");
    match done.await {
        Ok(Ok(())) => Ok(Notices::new()),
        Ok(Err(cause)) => Err(failed().detail(cause)),
        Err(_) => Err(failed().detail("The process is ending.")),
    }
}
