//! `SHOW LIMITS`: what is limited, by how much, and how much of it is used now. With TENANT, what that tenant's
//! plan and its own limits come to.

use std::time::Duration;

use switchyard_config::TenantId;
use switchyard_config::limits::{Quota, Rate, TenantLimits};
use switchyard_wire::error::{ErrorResponse, sqlstate};

use crate::console::table::{Column, Value, num, row, text};
use crate::console::view::View;
use crate::shared::Shared;

pub(super) const COLUMNS: &[Column] =
    &[text("scope"), text("name"), text("limit"), text("value"), text("unit"), num("used")];

/// Rows about one thing.
struct Limits {
    scope: &'static str,
    name: String,
    rows: Vec<Vec<Value>>,
}

impl Limits {
    fn of(scope: &'static str, name: &str) -> Self {
        Self { scope, name: name.to_owned(), rows: Vec::new() }
    }

    /// One limit. Without a value there is none.
    fn add(&mut self, limit: &'static str, value: Option<String>, unit: &'static str, used: Option<u64>) {
        let value = value.unwrap_or_else(|| "none".to_owned());
        self.rows.push(row![self.scope, self.name.clone(), limit, value, unit, used]);
    }

    fn count(&mut self, limit: &'static str, value: u64, unit: &'static str, used: Option<u64>) {
        self.add(limit, Some(value.to_string()), unit, used);
    }

    /// In milliseconds; zero is no limit.
    fn time(&mut self, limit: &'static str, value: Duration) {
        let value = Some(value).filter(|value| !value.is_zero());
        self.add(limit, value.map(|value| value.as_millis().to_string()), "ms", None);
    }
}

pub(super) fn rows(
    shared: &Shared,
    view: &View,
    tenant: Option<&str>,
) -> Result<Vec<Vec<Value>>, ErrorResponse> {
    let Some(id) = tenant else {
        let mut rows = router(shared, view);
        rows.extend(console(shared, view));
        let primaries = view.pools.iter().filter(|(pool, _)| !pool.is_of_standbys());
        primaries.for_each(|(pool, look)| rows.extend(shard(pool, look)));
        return Ok(rows);
    };
    let missing = || {
        let text = format!("no such tenant: {}", crate::console::shown(id));
        ErrorResponse::error(sqlstate::UNDEFINED_OBJECT, text)
    };
    let tenant_id = TenantId::new(id).map_err(|_| missing())?;
    let found = view.topology.tenant(&tenant_id).ok_or_else(missing)?;
    let sessions = view.clients.iter().filter(|client| client.handle.tenant() == tenant_id);
    let (mut connections, mut lent) = (0, 0);
    for client in sessions {
        connections += 1;
        lent += u64::from(client.server.is_some());
    }
    Ok(of_tenant(id, &found.limits, connections, lent))
}

fn router(shared: &Shared, view: &View) -> Vec<Vec<Value>> {
    let limits = &view.settings.limits;
    let (clients, unauthenticated) = shared.connections();
    let mut all = Limits::of("router", "");
    all.count("clients", limits.clients as u64, "sessions", Some(clients as u64));
    all.count("unauthenticated", limits.unauthenticated as u64, "connections", Some(unauthenticated as u64));
    all.count("unauthenticated_per_address", limits.unauthenticated_per_address as u64, "connections", None);
    all.count("startup_bytes", limits.startup_bytes as u64, "bytes", None);
    all.count("token_bytes", limits.token_bytes as u64, "bytes", None);
    all.count("statement_bytes", limits.statement_bytes as u64, "bytes", None);
    all.count("statements_per_client", limits.statements_per_client as u64, "statements", None);
    all.count("channels_per_tenant", limits.channels_per_tenant as u64, "channels", None);
    all.time("login_timeout", limits.login_timeout);
    all.time("client_idle_timeout", limits.client_idle_timeout);
    all.time("idle_in_transaction_timeout", limits.idle_in_transaction_timeout);
    all.time("statement_timeout", limits.statement_timeout);
    all.time("transaction_timeout", limits.transaction_timeout);
    all.time("drain_timeout", limits.drain_timeout);
    all.time("cancel_timeout", limits.cancel_timeout);
    all.rows
}

fn console(shared: &Shared, view: &View) -> Vec<Vec<Value>> {
    let settings = &view.settings.console;
    let mut all = Limits::of("console", "");
    all.count("sessions", settings.sessions as u64, "sessions", Some(shared.console.sessions.len() as u64));
    all.count("admin_sessions", settings.admin_sessions as u64, "sessions", None);
    all.time("drain_timeout", settings.drain_timeout);
    all.time("hold_timeout", settings.hold_timeout);
    all.rows
}

fn shard(pool: &crate::pool::Pool, look: &crate::pool::Look) -> Vec<Vec<Value>> {
    let limits = &pool.shard.pool;
    let mut all = Limits::of("shard", pool.shard.name.as_str());
    all.count("pool.size", limits.size.into(), "connections", Some(look.open as u64));
    all.count("pool.min", limits.min.into(), "connections", None);
    all.count("pool.statements", limits.statements.into(), "statements per connection", None);
    all.time("pool.queue_timeout", limits.queue_timeout);
    all.time("pool.queue_notice", limits.queue_notice);
    all.time("pool.lifetime", limits.lifetime);
    all.time("pool.idle_timeout", limits.idle_timeout);
    all.time("pool.connect_timeout", limits.connect_timeout);
    all.rows
}

/// Connections and transactions are limited over all routers; `connections` and `lent` are those of this one.
fn of_tenant(id: &str, limits: &TenantLimits, connections: u64, lent: u64) -> Vec<Vec<Value>> {
    let mut all = Limits::of("tenant", id);
    let text = |n: Option<u64>| n.map(|n| n.to_string());
    all.add("connections", text(limits.connections.map(u64::from)), "sessions", Some(connections));
    let transactions = text(limits.concurrent_transactions.map(u64::from));
    all.add("concurrent_transactions", transactions, "transactions", Some(lent));
    let mut rate = |name, burst, rate: Option<Rate>, unit, burst_unit| {
        all.add(name, text(rate.map(|rate| rate.per_second)), unit, None);
        all.add(burst, text(rate.map(|rate| rate.burst)), burst_unit, None);
    };
    let (per_second, at_once) = ("transactions per second", "transactions at once");
    rate("transactions_per_second", "transaction_burst", limits.transaction_rate, per_second, at_once);
    rate("bytes_per_second", "byte_burst", limits.byte_rate, "bytes per second", "bytes at once");
    let mut quota = |transactions, bytes, quota: Quota, unit, byte_unit| {
        all.add(transactions, text(quota.transactions), unit, None);
        all.add(bytes, text(quota.bytes), byte_unit, None);
    };
    quota("daily_transactions", "daily_bytes", limits.daily, "transactions per day", "bytes per day");
    let (per_month, bytes_per_month) = ("transactions per month", "bytes per month");
    quota("monthly_transactions", "monthly_bytes", limits.monthly, per_month, bytes_per_month);
    all.time("statement_timeout", limits.statement_timeout.unwrap_or_default());
    all.time("transaction_timeout", limits.transaction_timeout.unwrap_or_default());
    all.time("idle_in_transaction_timeout", limits.idle_in_transaction_timeout.unwrap_or_default());
    all.add("storage", text(limits.storage_bytes), "bytes", None);
    let allow: Vec<_> = limits.allow.iter().map(ToString::to_string).collect();
    all.add("allow", (!allow.is_empty()).then(|| allow.join(",")), "addresses", None);
    all.count("weight", limits.weight.into(), "share", None);
    all.count("wait_budget", limits.wait_budget.as_millis() as u64, "ms", None);
    all.rows
}
