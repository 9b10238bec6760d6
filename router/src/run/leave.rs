//! How a process parts from its sessions: at once where it ends for good, one by one where another
//! process has taken over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Router;
use crate::listen;
use crate::session::handle::{Activity, Order, SessionHandle};
use crate::shared::{Shared, Stage};

/// How often sessions are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How long sessions that are busy are not asked to go, where there is another process that takes
/// clients. At most half of `drain_timeout`.
const GENTLE: Duration = Duration::from_secs(5);

/// Seconds after which a session counts as idle, rather than as between two statements.
const IDLE_SECONDS: u32 = 2;

impl Router {
    /// Stops accepting, lets transactions end and closes idle sessions, until all are gone or
    /// `drain_timeout` is over.
    pub async fn drain(&mut self) {
        let limits = self.shared.settings().limits.clone();
        tracing::info!(timeout_s = limits.drain_timeout.as_secs(), "draining");
        // First of all `/readyz` says so.
        self.shared.enter(Stage::Draining);
        tokio::time::sleep(limits.drain_delay).await;
        let began = Instant::now();
        self.stop_accepting().await;
        let others = self.addresses.iter().any(|address| listen::is_taken(*address));
        // Without them nobody is served meanwhile: the sooner it is over the better.
        let gentle = if others { GENTLE.min(limits.drain_timeout / 2) } else { Duration::ZERO };
        while !is_left(&self.shared) {
            let since = began.elapsed();
            if since >= limits.drain_timeout {
                let sessions = self.shared.sessions.len();
                tracing::warn!(sessions, "drain timeout: ending open sessions");
                return;
            }
            if since < gentle {
                ask_idle(&self.shared, usize::MAX);
            } else {
                ask_all(&self.shared);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Another process has taken over: sessions go on, and those that are idle are asked to go one by
    /// one, until `handover_timeout` is over and the rest is drained.
    pub async fn hand_over(&mut self) {
        let limits = self.shared.settings().limits.clone();
        let total = limits.handover_timeout;
        tracing::info!(timeout_s = total.as_secs(), sessions = self.shared.sessions.len(), "handing over");
        self.shared.enter(Stage::HandedOver);
        let began = Instant::now();
        self.stop_accepting().await;
        let at_first = self.shared.sessions.len();
        while !is_left(&self.shared) {
            let since = began.elapsed();
            if since >= total {
                return self.drain().await;
            }
            let allowed = allowed(at_first, since, total);
            ask_idle(&self.shared, self.shared.sessions.len().saturating_sub(allowed));
            tokio::time::sleep(LOOK).await;
        }
        tracing::info!("handed over");
    }

    /// Takes no new clients, and waits for those that are here to leave by themselves.
    pub(super) async fn wait_for_clients(&mut self) {
        tracing::info!(sessions = self.shared.sessions.len(), "waiting for clients to leave");
        self.shared.enter(Stage::Draining);
        self.stop_accepting().await;
        while !is_left(&self.shared) {
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn stop_accepting(&mut self) {
        if self.accepting.send_replace(false) {
            tokio::time::sleep(listen::LAST_CLIENTS).await;
        }
    }
}

/// How many of the sessions that were there at first may still be there. They go evenly, and the
/// last somewhat before the end, so that the busy ones get their turn too.
fn allowed(at_first: usize, since: Duration, total: Duration) -> usize {
    let part = since.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE) / 0.9;
    (at_first as f64 * (1.0 - part).max(0.0)).ceil() as usize
}

/// Whether nobody is left, and nobody is about to log in.
fn is_left(shared: &Shared) -> bool {
    shared.sessions.is_empty() && shared.connections().1 == 0
}

/// Asks this many sessions to go that have been idle for long, the longest first.
fn ask_idle(shared: &Shared, count: usize) {
    let asked = |s: &Arc<SessionHandle>| s.has(Order::Drain);
    let mut idle: Vec<_> = shared
        .sessions
        .iter()
        .filter_map(|s| match s.activity() {
            (Activity::Idle, seconds) if seconds >= IDLE_SECONDS && !asked(&s) => Some((seconds, s.clone())),
            _ => None,
        })
        .collect();
    idle.sort_unstable_by_key(|(seconds, _)| std::cmp::Reverse(*seconds));
    idle.iter().take(count).for_each(|(_, session)| session.command(Order::Drain));
}

fn ask_all(shared: &Shared) {
    for session in &shared.sessions {
        if !session.has(Order::Drain) {
            session.command(Order::Drain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_go_evenly() {
        let total = Duration::from_secs(100);
        let at = |s| allowed(90, Duration::from_secs(s), total);
        assert_eq!([at(0), at(45), at(89), at(90), at(100)], [90, 45, 1, 0, 0]);
        assert_eq!(allowed(90, Duration::ZERO, Duration::ZERO), 90);
        assert_eq!(allowed(90, Duration::from_nanos(1), Duration::ZERO), 0);
    }
}
