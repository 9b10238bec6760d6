//! What a tenant may use, enforced where its transactions begin.
//!
//! A transaction over a limit waits for its turn up to the tenant's `wait_budget`; where that cannot be
//! enough, it is refused at once, with the time after which to try again. Sessions of tenants without
//! limits pass with one comparison.

mod bucket;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use switchyard_config::limits::TenantLimits;
use switchyard_config::topology::Tenant;
use switchyard_wire::error::{ErrorResponse, sqlstate};
use tokio::sync::Notify;

use crate::stats::TenantStats;
use bucket::Bucket;

/// The limits that are looked at when a transaction begins, of a tenant that has any.
pub(crate) struct Limited {
    limits: Arc<TenantLimits>,
    /// Until when the quota is used up, in seconds since 1970.
    out_of_quota: Option<u64>,
    stats: Arc<TenantStats>,
}

impl Limited {
    /// None for a tenant that nothing holds back.
    pub(crate) fn new(tenant: &Tenant, stats: Arc<TenantStats>) -> Option<Arc<Self>> {
        let limits = tenant.limits.clone();
        let out_of_quota = tenant.out_of_quota(unix_now());
        let any = limits.concurrent_transactions.is_some()
            || limits.transaction_rate.is_some()
            || limits.byte_rate.is_some()
            || out_of_quota.is_some();
        any.then(|| Arc::new(Self { limits, out_of_quota, stats }))
    }

    /// Asks to begin a transaction.
    pub(crate) fn enter(self: &Arc<Self>, now: Instant) -> Entry {
        match self.reserve(now, self.limits.wait_budget) {
            Ok(at) if at <= now => match self.take_place(true) {
                Some(turn) => Entry::Now(turn),
                None => Entry::Later(at),
            },
            Ok(at) => Entry::Later(at),
            Err(refused) => Entry::Refused(refused),
        }
    }

    /// Counts a transaction of a session that keeps its connection: others wait the longer for it.
    pub(crate) fn count(&self, now: Instant) {
        let _ = self.reserve(now, Duration::MAX);
    }

    /// Waits until `at`, from when the rates allow a transaction that has asked at `asked`, and then for a
    /// place among those that are open.
    pub(crate) async fn wait(self: Arc<Self>, at: Instant, asked: Instant) -> Result<Turn, Refused> {
        tokio::time::sleep_until(at.into()).await;
        let deadline = asked + self.limits.wait_budget;
        let _waiting = Waiting::new(&self.stats);
        loop {
            let notified = self.stats.gate.freed.notified();
            if let Some(turn) = self.take_place(false) {
                // Two places that become free at once may wake one only.
                self.stats.gate.freed.notify_one();
                return Ok(turn);
            }
            if tokio::time::timeout_at(deadline.into(), notified).await.is_err() {
                return Err(Refused::Concurrent(self.limits.concurrent_transactions.unwrap_or_default()));
            }
        }
    }

    /// When the rates allow another transaction, which is counted then.
    fn reserve(&self, now: Instant, budget: Duration) -> Result<Instant, Refused> {
        if let Some(until) = self.out_of_quota
            && let Some(left) = until.checked_sub(unix_now()).filter(|left| *left > 0)
            && budget != Duration::MAX
        {
            return Err(Refused::Quota(Duration::from_secs(left)));
        }
        let mut state = self.stats.gate.state.lock();
        let mut at = now;
        if let Some(rate) = self.limits.byte_rate {
            let bytes = self.stats.bytes();
            // What passed before there was a limit does not count.
            let new = bytes.saturating_sub(*state.bytes_seen.get_or_insert(bytes));
            state.bytes_seen = Some(bytes);
            state.bytes.spend(rate, new, now);
            at = at.max(state.bytes.ready_at(rate, now));
            if at.duration_since(now) > budget {
                return Err(Refused::Bytes(rate.per_second, at.duration_since(now)));
            }
        }
        if let Some(rate) = self.limits.transaction_rate {
            at = at.max(state.transactions.ready_at(rate, now));
            if at.duration_since(now) > budget {
                return Err(Refused::Transactions(rate.per_second, at.duration_since(now)));
            }
            state.transactions.spend(rate, 1, now);
        }
        Ok(at)
    }

    /// A place among the open transactions, if there is one; a newcomer passes nobody who waits.
    fn take_place(&self, newcomer: bool) -> Option<Turn> {
        let Some(limit) = self.limits.concurrent_transactions else { return Some(Turn { of: None }) };
        let mut state = self.stats.gate.state.lock();
        if state.open >= limit || (newcomer && state.waiting > 0) {
            return None;
        }
        state.open += 1;
        Some(Turn { of: Some(self.stats.clone()) })
    }
}

/// The answer to who wants to begin a transaction.
pub(crate) enum Entry {
    Now(Turn),
    /// By [`Limited::wait`], from then on.
    Later(Instant),
    Refused(Refused),
}

/// The right to run one transaction. Its place is free again when this is dropped.
pub(crate) struct Turn {
    /// None where there is no limit on open transactions.
    of: Option<Arc<TenantStats>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(stats) = self.of.take() {
            let mut state = stats.gate.state.lock();
            state.open = state.open.saturating_sub(1);
            drop(state);
            stats.gate.freed.notify_one();
        }
    }
}

/// What a tenant has used of its limits in this process.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    /// A place among the open transactions has become free.
    freed: Notify,
}

#[derive(Default)]
struct State {
    transactions: Bucket,
    bytes: Bucket,
    /// Bytes of the tenant that [`State::bytes`] has been told of.
    bytes_seen: Option<u64>,
    /// Transactions that are open, and sessions that wait to open one.
    open: u32,
    waiting: u32,
}

/// One that waits for a place, counted.
struct Waiting<'a>(&'a TenantStats);

impl<'a> Waiting<'a> {
    fn new(stats: &'a TenantStats) -> Self {
        stats.gate.state.lock().waiting += 1;
        Self(stats)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.gate.state.lock().waiting -= 1;
    }
}

/// The limit that a transaction was refused by, with when to try again where that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the tenant's limit of {0} transactions at once is reached")]
    Concurrent(u32),
    #[error("the tenant's limit of {0} transactions per second is reached")]
    Transactions(u64, Duration),
    #[error("the tenant's limit of {0} bytes per second is reached")]
    Bytes(u64, Duration),
    #[error("the tenant's quota is used up")]
    Quota(Duration),
}

impl Refused {
    pub(crate) fn for_client(self) -> ErrorResponse {
        let (code, after) = match self {
            Self::Concurrent(_) => (sqlstate::TOO_MANY_CONNECTIONS, None),
            Self::Transactions(_, after) | Self::Bytes(_, after) | Self::Quota(after) => {
                (sqlstate::CONFIGURATION_LIMIT_EXCEEDED, Some(after))
            }
        };
        let hint = match after {
            Some(after) => format!("Try again in {} ms.", after.as_millis().max(1)),
            None => "Try again when one of the tenant's transactions has ended.".to_owned(),
        };
        ErrorResponse::error(code, self.to_string()).hint(hint)
    }
}

/// Whether a client of the tenant at this address may log in, as one more of its sessions.
///
/// # Errors
/// What the client is told if not.
pub(crate) fn admit(
    limits: &TenantLimits,
    stats: &TenantStats,
    address: Option<std::net::IpAddr>,
) -> Result<(), ErrorResponse> {
    if address.is_some_and(|address| !limits.allows(address)) {
        let text = "connections of this tenant are not allowed from this address";
        return Err(ErrorResponse::fatal(sqlstate::INVALID_AUTHORIZATION, text)
            .hint("Ask whoever operates this service to allow it."));
    }
    // A login that is under way beside this one is not seen: the limit may be passed by these.
    let sessions = stats.sessions.load(Ordering::Relaxed);
    match limits.connections {
        Some(limit) if sessions >= i64::from(limit) => Err(ErrorResponse::fatal(
            sqlstate::TOO_MANY_CONNECTIONS,
            format!("the tenant's limit of {limit} connections is reached"),
        )
        .hint("Try again when one of the tenant's clients has disconnected.")),
        _ => Ok(()),
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
