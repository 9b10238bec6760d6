//! What a tenant may use: limits as they are said in plans and overrides, and as they hold.
//!
//! A plan is a named [`LimitSet`] that may extend another; a tenant has a plan (or the default
//! one) and may say otherwise for itself. [`Plans::resolve`] makes of these the [`TenantLimits`]
//! that a router enforces. Tenants that say nothing of their own share those of their plan.

mod plans;
mod range;

pub use plans::{MAX_DEPTH, Plan, PlanError, Plans};
pub use range::{InvalidRange, IpRange};

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Share of a full pool that a tenant has by default, relative to others.
pub const DEFAULT_WEIGHT: u32 = 100;

/// How long a transaction over a limit waits by default before it is refused.
pub const DEFAULT_WAIT_BUDGET: Duration = Duration::from_secs(5);

/// Limits as they are said: what is absent is inherited, and `0` takes an inherited limit away.
/// (`0` is no limit for PostgreSQL's timeouts too.) Fields that are not known are left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitSet {
    /// Client connections, over all routers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Transactions that are open on the shard at once, over all routers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_transactions: Option<u32>,
    /// Transactions begun per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transactions_per_second: Option<u32>,
    /// Transactions that may be begun at once after a pause; as many as per second if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction_burst: Option<u32>,
    /// Bytes per second, both directions together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Bytes that may pass at once after a pause; as many as per second if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub byte_burst: Option<u64>,
    /// Transactions per day, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily_transactions: Option<u64>,
    /// Bytes per day, in UTC, both directions together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily_bytes: Option<u64>,
    /// Transactions per calendar month, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly_transactions: Option<u64>,
    /// Bytes per calendar month, in UTC, both directions together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly_bytes: Option<u64>,
    /// Longest that a statement may run, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement_timeout_ms: Option<u64>,
    /// Longest that a transaction may be open, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction_timeout_ms: Option<u64>,
    /// Longest that a session may be idle within a transaction, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_in_transaction_timeout_ms: Option<u64>,
    /// Bytes on the shard, as the control plane measures them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<u64>,
    /// What happens over `storage_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_storage: Option<OverStorage>,
    /// Addresses that clients may come from; an empty list allows all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<IpRange>>,
    /// Share of a full pool, relative to other tenants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// How long a transaction over a limit waits before it is refused, in milliseconds; `0` does
    /// not wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_budget_ms: Option<u64>,
}

/// What happens to a tenant that holds more than its storage limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverStorage {
    /// Somebody is told.
    #[default]
    Alert,
    /// Somebody is told, and the tenant is read-only until it holds less.
    ReadOnly,
}

impl LimitSet {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What holds where `self` has the first word and `inherited` the second.
    pub fn over(&self, inherited: &Self) -> Self {
        Self {
            connections: self.connections.or(inherited.connections),
            concurrent_transactions: self.concurrent_transactions.or(inherited.concurrent_transactions),
            transactions_per_second: self.transactions_per_second.or(inherited.transactions_per_second),
            transaction_burst: self.transaction_burst.or(inherited.transaction_burst),
            bytes_per_second: self.bytes_per_second.or(inherited.bytes_per_second),
            byte_burst: self.byte_burst.or(inherited.byte_burst),
            daily_transactions: self.daily_transactions.or(inherited.daily_transactions),
            daily_bytes: self.daily_bytes.or(inherited.daily_bytes),
            monthly_transactions: self.monthly_transactions.or(inherited.monthly_transactions),
            monthly_bytes: self.monthly_bytes.or(inherited.monthly_bytes),
            statement_timeout_ms: self.statement_timeout_ms.or(inherited.statement_timeout_ms),
            transaction_timeout_ms: self.transaction_timeout_ms.or(inherited.transaction_timeout_ms),
            idle_in_transaction_timeout_ms: self
                .idle_in_transaction_timeout_ms
                .or(inherited.idle_in_transaction_timeout_ms),
            storage_bytes: self.storage_bytes.or(inherited.storage_bytes),
            over_storage: self.over_storage.or(inherited.over_storage),
            allow: self.allow.clone().or_else(|| inherited.allow.clone()),
            weight: self.weight.or(inherited.weight),
            wait_budget_ms: self.wait_budget_ms.or(inherited.wait_budget_ms),
        }
    }
}

/// So many per second, and so many at once after a pause (a token bucket).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Refilled per second; never 0.
    pub per_second: u64,
    /// Size of the bucket; never 0.
    pub burst: u64,
}

/// So much within a day or a month of UTC. What is used is summed up by the control plane, which
/// marks the tenant as [restricted](crate::topology::Restriction) when it is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// Transactions.
    pub transactions: Option<u64>,
    /// Bytes, both directions together.
    pub bytes: Option<u64>,
}

/// Limits as they hold for one tenant. `None` is no limit. Connections, transactions and rates
/// are of the tenant over all routers: each router enforces its share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantLimits {
    /// Client connections.
    pub connections: Option<u32>,
    /// Transactions that are open at once.
    pub concurrent_transactions: Option<u32>,
    /// Transactions begun.
    pub transaction_rate: Option<Rate>,
    /// Bytes, both directions together.
    pub byte_rate: Option<Rate>,
    /// Per day of UTC.
    pub daily: Quota,
    /// Per calendar month of UTC.
    pub monthly: Quota,
    /// Longest that a statement may run.
    pub statement_timeout: Option<Duration>,
    /// Longest that a transaction may be open.
    pub transaction_timeout: Option<Duration>,
    /// Longest that a session may be idle within a transaction.
    pub idle_in_transaction_timeout: Option<Duration>,
    /// Bytes on the shard.
    pub storage_bytes: Option<u64>,
    /// What happens over `storage_bytes`.
    pub over_storage: OverStorage,
    /// Addresses that clients may come from; all if empty.
    pub allow: Vec<IpRange>,
    /// Share of a full pool, relative to other tenants; never 0. Default [`DEFAULT_WEIGHT`].
    pub weight: u32,
    /// How long a transaction over a limit waits before it is refused. Default
    /// [`DEFAULT_WAIT_BUDGET`].
    pub wait_budget: Duration,
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self::from(&LimitSet::default())
    }
}

impl From<&LimitSet> for TenantLimits {
    fn from(said: &LimitSet) -> Self {
        let count = |n: Option<u32>| n.filter(|n| *n > 0);
        let amount = |n: Option<u64>| n.filter(|n| *n > 0);
        let time = |ms: Option<u64>| amount(ms).map(Duration::from_millis);
        let rate = |per_second: Option<u64>, burst: Option<u64>| {
            amount(per_second)
                .map(|per_second| Rate { per_second, burst: amount(burst).unwrap_or(per_second) })
        };
        Self {
            connections: count(said.connections),
            concurrent_transactions: count(said.concurrent_transactions),
            transaction_rate: rate(
                said.transactions_per_second.map(u64::from),
                said.transaction_burst.map(u64::from),
            ),
            byte_rate: rate(said.bytes_per_second, said.byte_burst),
            daily: Quota { transactions: amount(said.daily_transactions), bytes: amount(said.daily_bytes) },
            monthly: Quota {
                transactions: amount(said.monthly_transactions),
                bytes: amount(said.monthly_bytes),
            },
            statement_timeout: time(said.statement_timeout_ms),
            transaction_timeout: time(said.transaction_timeout_ms),
            idle_in_transaction_timeout: time(said.idle_in_transaction_timeout_ms),
            storage_bytes: amount(said.storage_bytes),
            over_storage: said.over_storage.unwrap_or_default(),
            allow: said.allow.clone().unwrap_or_default(),
            weight: count(said.weight).unwrap_or(DEFAULT_WEIGHT),
            wait_budget: said.wait_budget_ms.map_or(DEFAULT_WAIT_BUDGET, Duration::from_millis),
        }
    }
}

impl TenantLimits {
    /// Whether a client at `address` may come in.
    pub fn allows(&self, address: std::net::IpAddr) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|range| range.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_word_counts_and_nought_takes_away() {
        let plan = LimitSet {
            connections: Some(10),
            statement_timeout_ms: Some(1000),
            transactions_per_second: Some(50),
            ..LimitSet::default()
        };
        let own = LimitSet { connections: Some(0), transaction_burst: Some(200), ..LimitSet::default() };
        let limits = TenantLimits::from(&own.over(&plan));
        assert_eq!(limits.connections, None);
        assert_eq!(limits.statement_timeout, Some(Duration::from_secs(1)));
        assert_eq!(limits.transaction_rate, Some(Rate { per_second: 50, burst: 200 }));
        assert_eq!((limits.weight, limits.wait_budget), (DEFAULT_WEIGHT, DEFAULT_WAIT_BUDGET));
        let hasty = LimitSet { wait_budget_ms: Some(0), ..LimitSet::default() };
        assert_eq!(TenantLimits::from(&hasty).wait_budget, Duration::ZERO);
    }

    #[test]
    fn addresses_are_checked_only_where_some_are_named() {
        let mut limits = TenantLimits::default();
        let here = std::net::IpAddr::from([127, 0, 0, 1]);
        assert!(limits.allows(here));
        limits.allow = vec!["10.0.0.0/8".parse().unwrap()];
        assert!(!limits.allows(here));
        assert!(limits.allows([10, 1, 2, 3].into()));
    }

    #[test]
    fn what_is_not_said_is_not_written() {
        assert_eq!(serde_json::to_string(&LimitSet::default()).unwrap(), "{}");
        let read: LimitSet = serde_json::from_str(r#"{"weight": 7, "later": true}"#).unwrap();
        assert_eq!(read, LimitSet { weight: Some(7), ..LimitSet::default() });
    }
}
