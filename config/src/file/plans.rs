//! `plans`, and the `limits` of a tenant.

use std::time::Duration;

use super::reader::Table;
use super::value::Value;
use crate::limits::{LimitSet, OverStorage, Plan, PlanError, Plans};

/// Longest name of a plan, in bytes.
pub(super) const MAX_PLAN_BYTES: usize = 63;

/// Largest amount that a limit can be; TOML's integers end there too.
const MOST: u64 = i64::MAX as u64;

const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn read(root: &Table<'_>) -> Plans {
    let mut plans = Vec::new();
    let mut default = None;
    for table in root.tables("plans") {
        let name = table.need("name", |v| v.name(MAX_PLAN_BYTES)).map(str::to_owned);
        let extends = table.opt("extends", |v| v.name(MAX_PLAN_BYTES)).map(str::to_owned);
        let is_default = table.opt("default", Value::boolean).unwrap_or_default();
        let limits = read_limits(&table);
        if let Some(name) = name {
            if is_default && default.replace(name.clone()).is_some() {
                table.ctx.error(&table.at_key("default"), "there is another default plan");
            }
            plans.push(Plan { name, extends, limits });
        }
        table.finish();
    }
    Plans::new(plans, default).unwrap_or_else(|error: PlanError| {
        root.ctx.error(&root.at_key("plans"), error.to_string());
        Plans::default()
    })
}

/// What a tenant has otherwise than its plan says.
pub(super) fn read_own(table: Table<'_>) -> LimitSet {
    let limits = read_limits(&table);
    table.finish();
    limits
}

fn read_limits(t: &Table<'_>) -> LimitSet {
    let count = |key| t.opt(key, |v| v.integer(0..=u64::from(u32::MAX)));
    let amount = |key| t.opt(key, |v| v.integer(0..=MOST));
    let bytes = |key| t.opt(key, |v| v.size(0..=MOST)).map(|n| n as u64);
    let time = |key| {
        let found = t.opt(key, |v| v.duration(Duration::ZERO..=DAY));
        found.map(|d| u64::try_from(d.as_millis()).unwrap_or(MOST))
    };
    let over = [("alert", OverStorage::Alert), ("read-only", OverStorage::ReadOnly)];
    let range = |v: &Value<'_>| match v.text()?.parse() {
        Ok(range) => Some(range),
        Err(error) => v.error(format!("{error}")),
    };
    LimitSet {
        connections: count("connections"),
        concurrent_transactions: count("concurrent_transactions"),
        transactions_per_second: count("transactions_per_second"),
        transaction_burst: count("transaction_burst"),
        bytes_per_second: bytes("bytes_per_second"),
        byte_burst: bytes("byte_burst"),
        daily_transactions: amount("daily_transactions"),
        daily_bytes: bytes("daily_bytes"),
        monthly_transactions: amount("monthly_transactions"),
        monthly_bytes: bytes("monthly_bytes"),
        statement_timeout_ms: time("statement_timeout"),
        transaction_timeout_ms: time("transaction_timeout"),
        idle_in_transaction_timeout_ms: time("idle_in_transaction_timeout"),
        storage_bytes: bytes("storage"),
        over_storage: t.opt("over_storage", |v| v.one_of(&over)),
        allow: t.opt("allow", |v| v.array(range)),
        weight: t.opt("weight", |v| v.integer(1..=10_000)),
        wait_budget_ms: time("wait_budget"),
    }
}
