//! `SHOW POOLS` and `SHOW DATABASES`: a shard is what PgBouncer calls a database.

use std::collections::BTreeMap;
use std::time::Duration;

use switchyard_config::settings::ListenAddress;
use switchyard_config::topology::PoolMode;

use crate::console::OWN_DATABASE;
use crate::console::table::{Column, Value, int, row, text};
use crate::console::view::{View, database_of, mode};
use crate::pool::Doing;
use crate::shared::Shared;

pub(super) const POOLS: &[Column] = &[
    text("database"),
    text("user"),
    int("cl_active"),
    int("cl_waiting"),
    int("cl_active_cancel_req"),
    int("cl_waiting_cancel_req"),
    int("sv_active"),
    int("sv_active_cancel"),
    int("sv_being_canceled"),
    int("sv_idle"),
    int("sv_used"),
    int("sv_tested"),
    int("sv_login"),
    int("maxwait"),
    int("maxwait_us"),
    text("pool_mode"),
    text("load_balance_hosts"),
];

pub(super) const DATABASES: &[Column] = &[
    text("name"),
    text("host"),
    int("port"),
    text("database"),
    text("force_user"),
    int("pool_size"),
    int("min_pool_size"),
    int("reserve_pool_size"),
    int("server_lifetime"),
    text("pool_mode"),
    text("load_balance_hosts"),
    int("max_connections"),
    int("current_connections"),
    int("max_client_connections"),
    int("current_client_connections"),
    int("paused"),
    int("disabled"),
];

/// What belongs to one shard and one user.
#[derive(Default)]
struct Line {
    clients: usize,
    waiting: usize,
    lent: usize,
    cancels: usize,
    being_canceled: usize,
    idle: usize,
    unchecked: usize,
    tested: usize,
    connecting: usize,
    longest_wait: Duration,
    mode: Option<PoolMode>,
}

/// A line for each shard and each user with a session there. Connections are shared by the users of a shard: one that is lent
/// counts for the user who has it, any other for the role that it is logged in as, which has a line of its own.
/// So the lines of a shard sum up to what it has.
pub(super) fn pools(shared: &Shared, view: &View) -> Vec<Vec<Value>> {
    let mut lines: BTreeMap<(String, String), Line> = BTreeMap::new();
    for client in &view.clients {
        let line = lines.entry((client.database(), client.handle.who.user.clone())).or_default();
        line.mode = Some(client.mode);
        match client.waiting {
            Some(waiting) => {
                line.waiting += 1;
                line.longest_wait = line.longest_wait.max(waiting);
            }
            None => line.clients += 1,
        }
    }
    for (pool, look) in &view.pools {
        let database = database_of(pool);
        let own = (database.clone(), pool.shard.login.user.clone());
        lines.entry(own.clone()).or_default().connecting += look.connecting;
        for (server, doing) in &look.servers {
            let user = match (doing, view.client(server.holder())) {
                (Doing::Lent, Some(client)) => client.handle.who.user.clone(),
                _ => server.role.clone(),
            };
            let line = lines.entry((database.clone(), user)).or_default();
            line.cancels += server.cancels() as usize;
            *match doing {
                Doing::Lent => &mut line.lent,
                Doing::Idle => &mut line.idle,
                Doing::Unchecked => &mut line.unchecked,
                Doing::Tested => &mut line.tested,
                Doing::BeingCanceled => &mut line.being_canceled,
            } += 1;
        }
    }
    let default = view.settings.pool_mode;
    let mut rows: Vec<_> = lines
        .into_iter()
        .map(|((database, user), line)| {
            row![
                database,
                user,
                line.clients,
                line.waiting,
                line.cancels,
                // None waits: each gets a connection of its own.
                0_u32,
                line.lent,
                line.cancels,
                line.being_canceled,
                line.idle,
                line.unchecked,
                line.tested,
                line.connecting,
                line.longest_wait.as_secs(),
                line.longest_wait.subsec_micros(),
                mode(line.mode.unwrap_or(default)),
                Value::Null,
            ]
        })
        .collect();
    let own = shared.console.sessions.len();
    let zeros = std::iter::repeat_n(Value::Number(0), 12);
    let head = row![OWN_DATABASE, OWN_DATABASE, own];
    rows.push(head.into_iter().chain(zeros).chain(row!["statement", Value::Null]).collect());
    rows
}

pub(super) fn databases(shared: &Shared, view: &View) -> Vec<Vec<Value>> {
    let clients = view.clients_by_shard();
    let mut rows: Vec<_> = view
        .pools
        .iter()
        .map(|(pool, look)| {
            let shard = &pool.shard;
            row![
                database_of(pool),
                shard.host.clone(),
                u32::from(shard.port),
                shard.database.clone(),
                shard.login.user.clone(),
                shard.pool.size,
                shard.pool.min,
                0_u32,
                shard.pool.lifetime.as_secs(),
                mode(view.settings.pool_mode),
                Value::Null,
                shard.pool.size,
                look.open,
                // Clients are limited as a whole only.
                0_u32,
                clients.get(shard.name.as_str()).copied().unwrap_or(0),
                view.held.is_shard_paused(&shard.name),
                view.held.disabled_shards.contains(&shard.name),
            ]
        })
        .collect();
    let port = view.settings.listen.iter().map(|address| match address {
        ListenAddress::Tcp(address) => address.port(),
        ListenAddress::Unix { port, .. } => *port,
    });
    let settings = &view.settings.console;
    rows.push(row![
        OWN_DATABASE,
        Value::Null,
        u32::from(port.clone().next().unwrap_or(0)),
        OWN_DATABASE,
        OWN_DATABASE,
        0_u32,
        0_u32,
        0_u32,
        0_u32,
        "statement",
        Value::Null,
        0_u32,
        0_u32,
        settings.sessions,
        shared.console.sessions.len(),
        0_u32,
        settings.databases.is_empty(),
    ]);
    rows
}
