//! What a tenant may use, enforced where its transactions begin.
//!
//! A transaction over a limit waits for its turn up to the tenant's `wait_budget`; where that cannot be
//! enough, it is refused at once, with the time after which to try again. Sessions of tenants without
//! limits pass with one comparison.

mod bucket;
mod gate;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use switchyard_config::limits::TenantLimits;
use switchyard_config::topology::Tenant;
use switchyard_wire::error::{ErrorResponse, sqlstate};

use crate::leases::Leasing;
use crate::stats::TenantStats;
pub(crate) use gate::Gate;
use gate::State;

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
        {
            let _delayed = Counted::new(&self.stats, |state| &mut state.delayed);
            tokio::time::sleep_until(at.into()).await;
        }
        let deadline = asked + self.limits.wait_budget;
        let _waiting = Counted::new(&self.stats, |state| &mut state.waiting);
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
        state.note_asked();
        let mut at = now;
        if let Some(rate) = self.limits.byte_rate {
            let bytes = self.stats.bytes();
            // What passed before there was a limit does not count.
            let new = bytes.saturating_sub(*state.bytes_seen.get_or_insert(bytes));
            state.bytes_seen = Some(bytes);
            let flow = state.byte_rate(rate);
            state.bytes.spend(flow, new, now);
            at = at.max(state.bytes.ready_at(flow, now));
            if at.duration_since(now) > budget {
                return Err(Refused::Bytes(rate.per_second, at.duration_since(now)));
            }
        }
        if let Some(rate) = self.limits.transaction_rate {
            let flow = state.rate(rate);
            at = at.max(state.transactions.ready_at(flow, now));
            if at.duration_since(now) > budget {
                return Err(Refused::Transactions(rate.per_second, at.duration_since(now)));
            }
            state.transactions.spend(flow, 1, now);
        }
        Ok(at)
    }

    /// A place among the open transactions, if there is one; a newcomer passes nobody who waits.
    fn take_place(&self, newcomer: bool) -> Option<Turn> {
        let Some(limit) = self.limits.concurrent_transactions else { return Some(Turn { of: None }) };
        let mut state = self.stats.gate.state.lock();
        if state.open >= state.places(limit) || (newcomer && state.waiting > 0) {
            return None;
        }
        state.open += 1;
        state.note_places();
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

/// One that waits, counted.
struct Counted<'a>(&'a TenantStats, fn(&mut State) -> &mut u32);

impl<'a> Counted<'a> {
    fn new(stats: &'a TenantStats, count: fn(&mut State) -> &mut u32) -> Self {
        let mut state = stats.gate.state.lock();
        *count(&mut state) += 1;
        state.note_places();
        Self(stats, count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        *self.1(&mut self.0.gate.state.lock()) -= 1;
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

/// How long a login waits for a connection that another router has and does not use.
const SPARE_WAIT: Duration = Duration::from_millis(2500);

/// A client that is let in and is no session yet.
pub(crate) struct Arrival(Arc<TenantStats>);

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.gate.state.lock().arriving -= 1;
    }
}

impl Arrival {
    /// It counts from now on.
    pub(crate) fn stay(self) -> Presence {
        Presence::new(self.0.clone())
    }
}

/// A session that counts among the tenant's connections.
pub(crate) struct Presence(Arc<TenantStats>);

impl Presence {
    fn new(stats: Arc<TenantStats>) -> Self {
        stats.sessions.fetch_add(1, Ordering::Relaxed);
        Self(stats)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one more session among the tenant's connections, if that can be said at once; else [`admit`] can.
pub(crate) fn try_join(
    limits: &TenantLimits,
    stats: &Arc<TenantStats>,
    leasing: &Leasing,
) -> Option<Presence> {
    let Some(limit) = limits.connections else { return Some(Presence::new(stats.clone())) };
    let state = stats.gate.state.lock();
    let known = state.knows(limits) || !leasing.works();
    (known && state.here(stats) < u64::from(state.connections(limit))).then(|| Presence::new(stats.clone()))
}

/// Lets a client of the tenant at this address in, as one more of its sessions. The arrival is to be kept until the
/// session is counted.
///
/// # Errors
/// What the client is told if it may not log in.
pub(crate) async fn admit(
    limits: &TenantLimits,
    stats: &Arc<TenantStats>,
    address: Option<std::net::IpAddr>,
    leasing: &Leasing,
) -> Result<Arrival, ErrorResponse> {
    if address.is_some_and(|address| !limits.allows(address)) {
        let text = "connections of this tenant are not allowed from this address";
        return Err(ErrorResponse::fatal(sqlstate::INVALID_AUTHORIZATION, text)
            .hint("Ask whoever operates this service to allow it."));
    }
    let limit = limits.connections.unwrap_or(u32::MAX);
    let deadline = Instant::now() + SPARE_WAIT;
    let hope = Counted::new(stats, |state| &mut state.hoping);
    let mut patience = 3;
    loop {
        {
            let mut state = stats.gate.state.lock();
            let here = state.here(stats);
            // What other routers have is known before the first transaction, not after it.
            let known = state.knows(limits) || !leasing.works();
            if known && here < u64::from(state.connections(limit)) {
                state.arriving += 1;
                drop(state);
                drop(hope);
                return Ok(Arrival(stats.clone()));
            }
            // An arrival may just be counted twice, as it becomes a session.
            let settled = state.arriving == 0 || patience == 0;
            let all = here + state.elsewhere() >= u64::from(limit);
            let over = known && (all || !leasing.works()) && settled;
            if over || Instant::now() >= deadline {
                break;
            }
        }
        patience = i32::max(patience - 1, 0);
        if leasing.works() {
            leasing.ask_now().await;
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let text = format!("the tenant's limit of {limit} connections is reached");
    Err(ErrorResponse::fatal(sqlstate::TOO_MANY_CONNECTIONS, text)
        .hint("Try again when one of the tenant's clients has disconnected."))
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
