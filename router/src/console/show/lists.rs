//! `SHOW LISTS`, `STATE`, `USERS`, `MEM`, and the tables that are always empty here.

use std::collections::HashMap;

use crate::console::table::{Column, Value, big, int, row, text};
use crate::console::view::{View, mode};
use crate::pool::Doing;
use crate::shared::Shared;

pub(super) const LISTS: &[Column] = &[text("list"), int("items")];
pub(super) const STATE: &[Column] = &[text("key"), text("value")];
pub(super) const MEM: &[Column] = &[text("name"), int("size"), int("used"), int("free"), int("memtotal")];
pub(super) const PEERS: &[Column] = &[int("peer_id"), text("host"), int("port"), int("pool_size")];
pub(super) const PEER_POOLS: &[Column] = &[
    int("peer_id"),
    int("cl_active_cancel_req"),
    int("cl_waiting_cancel_req"),
    int("sv_active_cancel"),
    int("sv_login"),
];
pub(super) const DNS_HOSTS: &[Column] = &[text("hostname"), big("ttl"), text("addrs")];
pub(super) const DNS_ZONES: &[Column] = &[text("zonename"), big("serial"), int("count")];
pub(super) const USERS: &[Column] = &[
    text("name"),
    text("pool_size"),
    text("reserve_pool_size"),
    text("pool_mode"),
    int("max_user_connections"),
    int("current_connections"),
    int("max_user_client_connections"),
    int("current_client_connections"),
];

pub(super) fn lists(shared: &Shared, view: &View) -> Vec<Vec<Value>> {
    let (clients, logging_in) = shared.connections();
    let own = shared.console.sessions.len();
    let limits = &view.settings.limits;
    let open: usize = view.pools.iter().map(|(_, look)| look.open).sum();
    let most: usize = view.pools.iter().map(|(pool, _)| pool.shard.pool.size as usize).sum();
    let databases = view.pools.len() + 1;
    vec![
        row!["databases", databases],
        row!["users", view.topology.users.len()],
        row!["peers", view.settings.peers.len()],
        row!["pools", databases],
        row!["peer_pools", 0_u32],
        // Places rather than memory: what is free for those who come.
        row!["free_clients", limits.clients.saturating_sub(clients)],
        row!["used_clients", clients + own],
        row!["login_clients", logging_in],
        row!["free_servers", most.saturating_sub(open)],
        row!["used_servers", open],
        row!["dns_names", 0_u32],
        row!["dns_zones", 0_u32],
        row!["dns_queries", 0_u32],
        row!["dns_pending", 0_u32],
    ]
}

pub(super) fn state(shared: &Shared) -> Vec<Vec<Value>> {
    let paused = shared.pauses.now().everything;
    let word = |yes: bool| if yes { "yes" } else { "no" };
    vec![row!["active", word(!paused)], row!["paused", word(paused)], row!["suspended", "no"]]
}

pub(super) fn peers(shared: &Shared) -> Vec<Vec<Value>> {
    let row = |peer: &switchyard_config::settings::Peer| {
        row![u32::from(peer.id), peer.host.clone(), u32::from(peer.port), 0_u32]
    };
    shared.settings().peers.iter().map(row).collect()
}

/// Every user that may log in; there may be very many.
pub(super) fn users(view: &View) -> Vec<Vec<Value>> {
    let mut clients: HashMap<&str, usize> = HashMap::new();
    let mut servers: HashMap<&str, usize> = HashMap::new();
    for client in &view.clients {
        *clients.entry(&client.handle.who.user).or_default() += 1;
    }
    for (_, look) in &view.pools {
        for (server, _) in look.servers.iter().filter(|(_, doing)| *doing == Doing::Lent) {
            if let Some(client) = view.client(server.holder()) {
                *servers.entry(&client.handle.who.user).or_default() += 1;
            }
        }
    }
    let mut users: Vec<_> = view.topology.users.values().collect();
    users.sort_by(|a, b| a.name.cmp(&b.name));
    let row = |user: &std::sync::Arc<switchyard_config::topology::User>| {
        let name = user.name.as_str();
        row![
            user.name.clone(),
            // Pools and limits are not the users' here.
            "",
            "",
            user.pool_mode.map(mode),
            0_u32,
            servers.get(name).copied().unwrap_or(0),
            0_u32,
            clients.get(name).copied().unwrap_or(0),
        ]
    };
    users.into_iter().map(row).collect()
}

/// What one of each takes by itself, in bytes, without the buffers that it has while it is at work.
pub(super) fn mem(shared: &Shared, view: &View) -> Vec<Vec<Value>> {
    let (clients, _) = shared.connections();
    let servers: usize = view.pools.iter().map(|(_, look)| look.servers.len()).sum();
    let line = |name: &'static str, size: usize, used: usize| row![name, size, used, 0_u32, size * used];
    vec![
        line("session", crate::session::SESSION_BYTES, clients),
        line("server", std::mem::size_of::<crate::server::Server>(), servers),
        line(
            "console_session",
            std::mem::size_of::<crate::console::ConsoleSession>(),
            shared.console.sessions.len(),
        ),
    ]
}
