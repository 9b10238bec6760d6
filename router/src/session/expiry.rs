//! Time limits on a tenant's statements and transactions.
//!
//! PostgreSQL's own settings for these are the session's to change, so the router holds them itself: it cancels a
//! statement that takes too long, and ends a session whose transaction does. The client is told so in
//! PostgreSQL's words. A tenant without such limits costs one comparison each time its session has
//! nothing to do.

use std::future::Future;
use std::pin::Pin as StdPin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use switchyard_config::limits::TenantLimits;
use switchyard_config::settings::Limits;
use switchyard_wire::error::{ErrorResponse, sqlstate};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::handle::Canceled;
use super::relay::Relay;
use super::{Core, End};
use crate::stats::TimeLimit;

/// How soon a statement is canceled again that has not ended: a function may catch the first attempt.
const AGAIN: Duration = Duration::from_secs(1);

/// Time limits of one tenant, as they hold here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TimeLimits {
    /// Longest that a statement may run.
    statement: Option<Duration>,
    /// Longest that a transaction may be open.
    transaction: Option<Duration>,
}

impl TimeLimits {
    /// Of two limits, the tenant's and the router's, the shorter holds.
    pub(crate) fn new(tenant: &TenantLimits, router: &Limits) -> Self {
        Self {
            statement: shorter(tenant.statement_timeout, router.statement_timeout),
            transaction: shorter(tenant.transaction_timeout, router.transaction_timeout),
        }
    }

    #[inline]
    fn is_any(self) -> bool {
        self.statement.is_some() || self.transaction.is_some()
    }
}

/// The shorter of a tenant's limit and the router's, of which 0 is none.
pub(crate) fn shorter(tenant: Option<Duration>, router: Duration) -> Option<Duration> {
    let router = (!router.is_zero()).then_some(router);
    tenant.into_iter().chain(router).min()
}

/// What is timed in a relay.
pub(super) struct Expiry {
    /// Wakes the session at the next limit.
    timer: StdPin<Box<Sleep>>,
    /// Since when the server has been at work on the statement.
    statement: Option<Instant>,
    /// The statement has been canceled for its time.
    canceled: Option<Instant>,
    /// The cancel request is under way.
    arriving: Option<oneshot::Receiver<()>>,
}

impl Relay {
    /// Looks at the limits when nothing moves. Whether something has changed.
    #[inline]
    pub(super) fn poll_expiry(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.server.is_none() || !core.seat.times.is_any() {
            return Ok(false);
        }
        self.look_at_time(core, cx)
    }

    fn look_at_time(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Result<bool, End> {
        let now = Instant::now();
        let limits = core.seat.times;
        let at_work = self.exchange.is_at_work();
        let expiry = self.expiry.get_or_insert_with(|| {
            let timer = Box::pin(tokio::time::sleep_until(now.into()));
            Box::new(Expiry { timer, statement: None, canceled: None, arriving: None })
        });
        if let Some(arriving) = &mut expiry.arriving
            && StdPin::new(arriving).poll(cx).is_ready()
        {
            expiry.arriving = None;
            return Ok(true);
        }
        let mut next: Option<Instant> = None;
        if let (Some(limit), Some(began)) = (limits.transaction, self.began) {
            if began + limit <= now {
                core.shared.stats.time_limits.add(TimeLimit::Transaction);
                return Err(End::Fatal(ErrorResponse::fatal(
                    sqlstate::TRANSACTION_TIMEOUT,
                    "terminating connection due to transaction timeout",
                )));
            }
            next = Some(began + limit);
        }
        if let Some(limit) = limits.statement
            && at_work
        {
            let mut due = match expiry.canceled {
                Some(canceled) => canceled + AGAIN,
                None => *expiry.statement.get_or_insert(now) + limit,
            };
            if due <= now && expiry.arriving.is_none() {
                if expiry.canceled.is_none() {
                    core.shared.stats.time_limits.add(TimeLimit::Statement);
                }
                expiry.canceled = Some(now);
                due = now + AGAIN;
                if let Canceled::On(identity) = core.handle.cancel() {
                    let (arrived, arriving) = oneshot::channel();
                    let shared = core.shared.clone();
                    tokio::spawn(async move {
                        crate::cancel::send(&shared, &identity).await;
                        let _ = arrived.send(());
                    });
                    expiry.arriving = Some(arriving);
                    return Ok(true);
                }
            }
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        let Some(next) = next else { return Ok(false) };
        if expiry.timer.deadline() != next.into() {
            expiry.timer.as_mut().reset(next.into());
        }
        // Past already, if time has passed since: then it looks again.
        Ok(matches!(expiry.timer.as_mut().poll(cx), Poll::Ready(())))
    }

    /// A statement has ended: the next one has its own time.
    #[inline]
    pub(super) fn statement_ended(&mut self) {
        if let Some(expiry) = &mut self.expiry {
            (expiry.statement, expiry.canceled) = (None, None);
        }
    }

    /// Whether a cancel request for the time of a statement is under way: it must not meet the next one.
    #[inline]
    pub(super) fn is_expiring(&self) -> bool {
        self.expiry.as_ref().is_some_and(|expiry| expiry.arriving.is_some())
    }

    /// Whether the statement under way was canceled for its time.
    pub(super) fn has_expired(&self) -> bool {
        self.expiry.as_ref().is_some_and(|expiry| expiry.canceled.is_some())
    }
}

/// // src/backend/tcop/postgres.c ProcessInterrupts
pub(super) fn statement_timeout() -> ErrorResponse {
    ErrorResponse::error(sqlstate::QUERY_CANCELED, "canceling statement due to statement timeout")
}
