//! Which tenants are near or over what they may use, and how tenants are.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};
use switchyard_config::limits::{OverStorage, TenantLimits};
use switchyard_config::topology::Restriction;
use tokio::task::JoinSet;

use crate::provision::OnShard;
use crate::store::{Store, StoreError, Used};

/// A limit is near at this part of it, in percent.
const NEAR: u64 = 80;

/// Errors among statements from which on a tenant is not well, in percent, and the fewest
/// statements that say anything.
const ERRORS: (i64, i64) = (10, 50);

/// Mean time of a transaction from which on a tenant is not well, in microseconds.
const SLOW_US: i64 = 1_000_000;

/// Refused logins of one address within five minutes that are an attack.
const ATTACK: i64 = 50;

/// Deadline of a shard's answer.
const PING: Duration = Duration::from_secs(3);

/// Marks tenants that have used up what they may, takes the marks of others away, and raises alerts.
pub(super) async fn limits(store: &Store) -> Result<(), StoreError> {
    let plans = store.resolved_plans().await?;
    let (mut near, mut reached) = (Vec::new(), Vec::new());
    let mut marks: HashMap<String, Restriction> = HashMap::new();
    for used in store.used().await? {
        let limits = plans.resolve(used.plan.as_deref(), used.own.as_ref());
        for (name, amount, most, until) in bounded(&used, &limits) {
            let Some(most) = most else { continue };
            let detail = json!({ "limit": name, "used": amount, "of": most });
            let subject = (used.tenant.clone(), name.to_owned());
            if amount >= most {
                store.raise("limit_reached", Some(&used.tenant), name, detail).await?;
                reached.push(subject);
                if let Some(until) = until {
                    // The quota that lasts longest counts.
                    let later = match marks.get(&used.tenant) {
                        Some(Restriction::Quota { until: held }) => until.max(*held),
                        _ => until,
                    };
                    marks.insert(used.tenant.clone(), Restriction::Quota { until: later });
                } else if limits.over_storage == OverStorage::ReadOnly {
                    marks.entry(used.tenant.clone()).or_insert(Restriction::Storage);
                }
            } else if u128::from(amount) * 100 >= u128::from(most) * u128::from(NEAR) {
                store.raise("limit_near", Some(&used.tenant), name, detail).await?;
                near.push(subject);
            }
        }
    }
    store.clear_others("limit_near", &near).await?;
    store.clear_others("limit_reached", &reached).await?;
    store.mark(&marks).await
}

/// Name, amount used, limit, and when it begins anew.
type Bounded = (&'static str, u64, Option<u64>, Option<u64>);

fn bounded(used: &Used, limits: &TenantLimits) -> [Bounded; 5] {
    let (day, month) = (Some(used.day_ends), Some(used.month_ends));
    [
        ("daily_transactions", used.day.0, limits.daily.transactions, day),
        ("daily_bytes", used.day.1, limits.daily.bytes, day),
        ("monthly_transactions", used.month.0, limits.monthly.transactions, month),
        ("monthly_bytes", used.month.1, limits.monthly.bytes, month),
        ("storage", used.storage, limits.storage_bytes, None),
    ]
}

/// Looks at tenants that did something lately, or were not well, or live where nobody answers.
pub(super) async fn tenants(store: &Store) -> Result<(), StoreError> {
    let down = unreachable(store).await?;
    let mut changed = Vec::new();
    for seen in store.recent().await? {
        let mut reasons: Vec<Value> = Vec::new();
        let mut reason = |code: &str, detail: String| reasons.push(json!({ "code": code, "detail": detail }));
        let shard = seen.shard.as_deref().unwrap_or_default();
        let unreachable = down.contains(shard);
        if unreachable {
            reason("shard_unreachable", format!("shard {shard} does not answer"));
        }
        if seen.shard.is_none() {
            reason("no_shard", "no shard is found for it".to_owned());
        }
        if seen.statements >= ERRORS.1 && seen.errors * 100 >= seen.statements * ERRORS.0 {
            reason("errors", format!("{} errors in {} statements", seen.errors, seen.statements));
        }
        if seen.transactions > 0 && seen.server_us / seen.transactions >= SLOW_US {
            let ms = seen.server_us / seen.transactions / 1000;
            reason("slow", format!("a transaction takes {ms} ms on average"));
        }
        if seen.limits_reached > 0 {
            reason("limit_reached", "something that it may use is used up".to_owned());
        }
        let status = match reasons.is_empty() {
            true => "ok",
            false if unreachable || seen.shard.is_none() => "down",
            false => "degraded",
        };
        let reasons = Value::Array(reasons);
        if let Some(before) = store.set_health(&seen.tenant, status, &reasons).await? {
            let detail = json!({ "before": before, "now": status, "reasons": reasons });
            store.raise("health_changed", Some(&seen.tenant), status, detail).await?;
            changed.push((seen.tenant.clone(), status.to_owned()));
        }
    }
    // Told once: a change is over as soon as it has happened.
    store.clear_others("health_changed", &[]).await
}

/// Shards that do not answer.
async fn unreachable(store: &Store) -> Result<HashSet<String>, StoreError> {
    let mut pings = JoinSet::new();
    for shard in store.shards().await? {
        let access = store.shard_access(&shard.name, false).await?;
        pings.spawn(async move {
            let ping = async {
                let on = OnShard::connect(&access, None).await.ok()?;
                on.client.simple_query("").await.ok()
            };
            let answered = tokio::time::timeout(PING, ping).await;
            (shard.name, matches!(answered, Ok(Some(_))))
        });
    }
    let mut down = HashSet::new();
    while let Some(pinged) = pings.join_next().await {
        if let Ok((shard, false)) = pinged {
            down.insert(shard);
        }
    }
    Ok(down)
}

/// Raises alerts of addresses that try to get in.
pub(super) async fn sign_ins(store: &Store) -> Result<(), StoreError> {
    let mut still = Vec::new();
    for (tenant, source, refused) in store.refused_lately(ATTACK).await? {
        let detail = json!({ "source": source, "refused": refused, "within_seconds": 300 });
        store.raise("sign_in_attack", tenant.as_deref(), &source, detail).await?;
        still.push((tenant.unwrap_or_default(), source));
    }
    store.clear_others("sign_in_attack", &still).await
}

/// Part of the log that a move may have retained from which on somebody should know, in percent.
const LOG_NEAR: i64 = 50;

/// Raises alerts of shards that retain much log for moves. Beyond the budget the slot is dropped, and the moves end.
pub(super) async fn retained_logs(store: &Store) -> Result<(), StoreError> {
    let mut near = Vec::new();
    for stream in store.move_streams().await? {
        if stream.retained.saturating_mul(100) >= stream.budget.saturating_mul(LOG_NEAR) {
            let subject = format!("{}/{}", stream.shard, stream.database);
            let detail = json!({
                "shard": stream.shard, "database": stream.database, "retained_bytes": stream.retained,
                "budget_bytes": stream.budget,
            });
            store.raise("log_retained", None, &subject, detail).await?;
            near.push((String::new(), subject));
        }
    }
    store.clear_others("log_retained", &near).await
}
