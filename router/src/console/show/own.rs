//! Our own tables: tenants, shards, sessions, pins.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;

use switchyard_config::TenantId;
use switchyard_wire::error::{ErrorResponse, sqlstate};

use crate::console::client_id;
use crate::console::command::Page;
use crate::console::table::{Column, Table, Value, big, int, num, row, text};
use crate::console::time::{ago, moment};
use crate::console::view::{Client, View, mode};
use crate::pool::Doing;
use crate::shared::Shared;
use crate::stats::TenantStats;

/// The columns of a tenant, in both tables.
macro_rules! tenant_columns {
    ($($more:expr),*) => {
        &[
            text("tenant"),
            text("shard"),
            text("state"),
            int("paused"),
            int("disabled"),
            int("clients"),
            int("waiting"),
            int("servers"),
            num("transactions"),
            num("statements"),
            num("errors"),
            num("bytes_in"),
            num("bytes_out"),
            num("busy_us"),
            num("wait_us"),
            $($more),*
        ]
    };
}

pub(super) const TENANTS: &[Column] = tenant_columns!();
pub(super) const TENANT: &[Column] = tenant_columns!(
    text("name"),
    int("bucket"),
    text("placement"),
    big("epoch"),
    text("pool_mode"),
    int("pinned"),
    text("reads_from")
);

pub(super) const SHARDS: &[Column] = &[
    text("shard"),
    text("host"),
    int("port"),
    text("database"),
    text("state"),
    int("clients"),
    int("waiting"),
    big("oldest_wait_us"),
    int("size"),
    int("open"),
    int("lent"),
    int("idle"),
    int("connecting"),
    num("connects"),
    num("connect_failures"),
    num("queue_timeouts"),
    num("contexts"),
    num("cleanings"),
];

pub(super) const SESSIONS: &[Column] = &[
    int("id"),
    text("tenant"),
    text("user"),
    text("shard"),
    text("state"),
    int("seconds"),
    text("pin"),
    int("server_pid"),
    text("pool_mode"),
    text("addr"),
    int("port"),
    text("tls"),
    text("application_name"),
    text("connect_time"),
];

pub(super) const PINS: &[Column] = &[
    int("id"),
    text("tenant"),
    text("user"),
    text("shard"),
    text("reason"),
    text("since"),
    int("seconds"),
    int("server_pid"),
    text("state"),
    text("application_name"),
];

fn shard_name(client: &Client) -> String {
    client.shard.as_ref().map(|shard| shard.name.as_str().to_owned()).unwrap_or_default()
}

fn is_of(client: &Client, tenant: Option<&str>) -> bool {
    tenant.is_none_or(|id| client.handle.tenant().as_str() == id)
}

pub(super) fn sessions(view: &View, tenant: Option<&str>) -> Vec<Vec<Value>> {
    let row = |client: &Client| {
        let handle = &client.handle;
        let facts = handle.facts.get()?;
        let (doing, seconds) = client.doing();
        let peer = facts.socket.peer;
        Some(row![
            client_id(handle.number()),
            handle.tenant().as_str().to_owned(),
            handle.who.user.clone(),
            shard_name(client),
            doing,
            seconds,
            handle.pin().map(|(pin, _)| pin.label()),
            client.server.as_ref().map(|server| server.pid),
            mode(client.mode),
            peer.map(|peer| peer.ip().to_string()),
            peer.map(|peer| u32::from(peer.port())),
            facts.socket.tls.as_deref().map(str::to_owned),
            facts.application_name.to_string(),
            moment(facts.began),
        ])
    };
    view.clients.iter().filter(|client| is_of(client, tenant)).filter_map(row).collect()
}

pub(super) fn pins(view: &View, tenant: Option<&str>) -> Vec<Vec<Value>> {
    let row = |client: &Client| {
        let handle = &client.handle;
        let (pin, seconds) = handle.pin()?;
        let name = handle.facts.get().map(|facts| facts.application_name.to_string());
        Some(row![
            client_id(handle.number()),
            handle.tenant().as_str().to_owned(),
            handle.who.user.clone(),
            shard_name(client),
            pin.label(),
            ago(seconds),
            seconds,
            client.server.as_ref().map(|server| server.pid),
            client.doing().0,
            name,
        ])
    };
    view.clients.iter().filter(|client| is_of(client, tenant)).filter_map(row).collect()
}

pub(super) fn shards(view: &View) -> Vec<Vec<Value>> {
    let clients = view.clients_by_shard();
    let row = |(pool, look): &(std::sync::Arc<crate::pool::Pool>, crate::pool::Look)| {
        let shard = &pool.shard;
        let state = match () {
            () if view.held.is_shard_paused(&shard.name) => "paused",
            () if view.held.disabled_shards.contains(&shard.name) => "disabled",
            () if shard.cordoned => "cordoned",
            () => "active",
        };
        let counters = &pool.counters;
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let oldest = look.waiting.iter().map(|(_, waited)| *waited).max().unwrap_or_default();
        row![
            shard.name.as_str().to_owned(),
            shard.host.clone(),
            u32::from(shard.port),
            shard.database.clone(),
            state,
            clients.get(shard.name.as_str()).copied().unwrap_or(0),
            look.waiting.len(),
            oldest.as_micros() as u64,
            shard.pool.size,
            look.open,
            look.count(Doing::Lent),
            look.count(Doing::Idle) + look.count(Doing::Unchecked),
            look.connecting,
            count(&counters.connects),
            count(&counters.connect_failures),
            count(&counters.queue_timeouts),
            count(&counters.contexts),
            count(&counters.cleanings),
        ]
    };
    view.pools.iter().filter(|(pool, _)| !pool.is_of_standbys()).map(row).collect()
}

/// What the sessions of one tenant are doing.
#[derive(Default, Clone, Copy)]
struct Sessions {
    all: usize,
    waiting: usize,
    servers: usize,
    pinned: usize,
}

fn sessions_by_tenant(view: &View) -> HashMap<TenantId, Sessions> {
    let mut all: HashMap<TenantId, Sessions> = HashMap::new();
    for client in &view.clients {
        let sessions = all.entry(client.handle.tenant()).or_default();
        sessions.all += 1;
        sessions.waiting += usize::from(client.waiting.is_some());
        sessions.servers += usize::from(client.server.is_some());
        sessions.pinned += usize::from(client.handle.pin().is_some());
    }
    all
}

/// Tenants in order of their ids, without what stands before the page: those of the topology, and those that have been
/// here.
pub(super) fn tenants(shared: &Shared, view: &View, page: &Page, limit: usize) -> Table {
    let wanted = |id: &TenantId| {
        page.like.as_ref().is_none_or(|pattern| super::is_like(id.as_str(), pattern))
            && page.after.as_ref().is_none_or(|after| id.as_str() > after.as_str())
    };
    let known = view.topology.tenants.keys().filter(|id| wanted(id)).cloned();
    let seen = shared.stats.tenants.iter().map(|tenant| tenant.key().clone()).filter(wanted);
    let ids: BTreeSet<TenantId> = known.chain(seen).collect();
    let by_tenant = sessions_by_tenant(view);
    let rows = ids.iter().take(limit).map(|id| {
        let sessions = by_tenant.get(id.as_str()).copied().unwrap_or_default();
        tenant_row(shared, view, id, sessions)
    });
    let mut table = Table::new(TENANTS, rows.collect());
    table.is_cut = ids.len() > limit;
    table
}

pub(super) fn tenant(shared: &Shared, view: &View, id: &str) -> Result<Vec<Value>, ErrorResponse> {
    let missing = || {
        let text = format!("no such tenant: {}", crate::console::shown(id));
        ErrorResponse::error(sqlstate::UNDEFINED_OBJECT, text)
    };
    let id = TenantId::new(id).map_err(|_| missing())?;
    let tenant = view.topology.tenant(&id).ok_or_else(missing)?;
    let sessions = sessions_by_tenant(view).get(id.as_str()).copied().unwrap_or_default();
    let mut row = tenant_row(shared, view, &id, sessions);
    let placed = view.topology.place(&tenant);
    let template = tenant.context.as_ref().unwrap_or(&view.topology.context);
    let has_standbys = placed
        .is_some_and(|placed| shared.has_standbys(&view.topology.shards[usize::from(placed.shard)].name));
    // Who serves its sessions that are declared read-only.
    let reads_from = match has_standbys {
        false => "primary",
        true if template.mode.is_plain() => "standbys",
        true => "primary, as its context is sealed",
    };
    row.extend(row![
        tenant.name.clone(),
        u32::from(id.bucket().0),
        if tenant.placement.is_some() { "explicit" } else { "bucket" },
        placed.map(|placed| placed.epoch),
        mode(tenant.pool_mode.unwrap_or(view.settings.pool_mode)),
        sessions.pinned,
        reads_from,
    ]);
    Ok(row)
}

fn tenant_row(shared: &Shared, view: &View, id: &TenantId, sessions: Sessions) -> Vec<Value> {
    let tenant = view.topology.tenant(id);
    let placed = tenant.as_ref().and_then(|tenant| view.topology.place(tenant));
    let shard = placed.map(|placed| view.topology.shards[usize::from(placed.shard)].name.as_str().to_owned());
    let state = tenant.map_or("gone", |tenant| tenant.state.as_str());
    let stats = shared.stats.tenants.get(id).map(|stats| stats.clone());
    let sum = |of: fn(&crate::stats::TenantAccount) -> u64| {
        let accounts = stats.iter().flat_map(|stats: &std::sync::Arc<TenantStats>| &stats.accounts);
        accounts.map(|account| of(account)).sum::<u64>()
    };
    row![
        id.as_str().to_owned(),
        shard,
        state,
        view.held.tenants.contains(id),
        view.held.disabled_tenants.contains(id),
        sessions.all,
        sessions.waiting,
        sessions.servers,
        sum(|a| a.transactions.get()),
        sum(|a| a.statements.get()),
        sum(|a| a.errors.get()),
        sum(|a| a.bytes_in.get()),
        sum(|a| a.bytes_out.get()),
        sum(|a| a.busy_us.get()),
        sum(|a| a.wait_us.get()),
    ]
}
