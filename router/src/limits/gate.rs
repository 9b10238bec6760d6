//! What a tenant has used of its limits in this process, and what part of them this router has.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use switchyard_catalog::leases::{Asked, Granted, LeaseKind};
use switchyard_config::limits::{Rate, TenantLimits};
use tokio::sync::Notify;

use super::bucket::{Bucket, Flow, PARTS};
use crate::stats::TenantStats;

/// A router that serves a tenant keeps one part in so many of its rates and open transactions at hand, though it
/// may not use them.
const AT_HAND: u64 = 20;

/// See the module.
#[derive(Default)]
pub(crate) struct Gate {
    pub(super) state: Mutex<State>,
    /// A place among the open transactions has become free.
    pub(super) freed: Notify,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) transactions: Bucket,
    pub(super) bytes: Bucket,
    /// Bytes of the tenant that [`State::bytes`] has been told of.
    pub(super) bytes_seen: Option<u64>,
    /// Transactions that are open, and sessions that wait to open one.
    pub(super) open: u32,
    pub(super) waiting: u32,
    /// Most of both together since the last lease.
    pub(super) peak: u32,
    /// Transactions that wait for the rates to allow them.
    pub(super) delayed: u32,
    /// Clients that are let in and no sessions yet, and those that wait for a connection that another router has.
    pub(super) arriving: u32,
    pub(super) hoping: u32,
    /// Since the last lease.
    asked: u64,
    bytes_leased: u64,
    rate_wanted: u64,
    bytes_wanted: u64,
    leased_at: Option<Instant>,
    held: Held,
}

/// This router's part of each limit. None where the catalog has not said: then it is all of it.
#[derive(Default, Clone, Copy)]
struct Held {
    connections: Option<u64>,
    transactions: Option<u64>,
    rate: Option<u64>,
    bytes: Option<u64>,
    /// Connections at other routers.
    elsewhere: u64,
}

impl State {
    pub(super) fn rate(&self, rate: Rate) -> Flow {
        Flow::part(rate, self.held.rate)
    }

    pub(super) fn byte_rate(&self, rate: Rate) -> Flow {
        Flow::part(rate, self.held.bytes)
    }

    /// Open transactions that this router may have of `limit`.
    pub(super) fn places(&self, limit: u32) -> u32 {
        within(limit, self.held.transactions)
    }

    /// Connections that this router may have of `limit`.
    pub(super) fn connections(&self, limit: u32) -> u32 {
        within(limit, self.held.connections)
    }

    /// Connections of the tenant here, with those that are about to be.
    pub(super) fn here(&self, stats: &TenantStats) -> u64 {
        let sessions = u64::try_from(stats.sessions.load(Ordering::Relaxed)).unwrap_or_default();
        sessions + u64::from(self.arriving)
    }

    /// Whether the catalog has said what this router has of each of these limits.
    pub(super) fn knows(&self, limits: &TenantLimits) -> bool {
        let known = |limited: bool, held: Option<u64>| !limited || held.is_some();
        known(limits.connections.is_some(), self.held.connections)
            && known(limits.concurrent_transactions.is_some(), self.held.transactions)
            && known(limits.transaction_rate.is_some(), self.held.rate)
            && known(limits.byte_rate.is_some(), self.held.bytes)
    }

    /// Connections at other routers, as they said last.
    pub(super) fn elsewhere(&self) -> u64 {
        self.held.elsewhere
    }

    pub(super) fn note_asked(&mut self) {
        self.asked += 1;
    }

    pub(super) fn note_places(&mut self) {
        self.peak = self.peak.max(self.open + self.waiting);
    }
}

fn within(limit: u32, held: Option<u64>) -> u32 {
    held.map_or(limit, |held| u32::try_from(held).unwrap_or(u32::MAX).min(limit))
}

/// What to ask for of a rate. Never more than all of it: a client that tries again at once when it is refused wants no
/// more than one that waits. What was wanted before is forgotten by and by, or parts would go to and fro.
fn wanted_of(most: u64, now: u64, before: u64) -> u64 {
    now.max(before / 4 * 3).clamp(most / AT_HAND, most)
}

impl Gate {
    /// What to ask the catalog for, of a tenant that is served here or was since the last time; else what it had is
    /// given back.
    pub(crate) fn ask(
        &self,
        tenant: &str,
        limits: &TenantLimits,
        stats: &TenantStats,
        now: Instant,
    ) -> Vec<Asked> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let sessions = u64::try_from(stats.sessions.load(Ordering::Relaxed)).unwrap_or_default();
        let here = sessions + u64::from(state.arriving + state.hoping);
        let asked = std::mem::take(&mut state.asked);
        if here == 0 && asked == 0 && state.open == 0 {
            state.held = Held::default();
            state.leased_at = None;
            return Vec::new();
        }
        let passed = state.leased_at.map_or(Duration::from_secs(1), |at| now.saturating_duration_since(at));
        let per_second = |n: u64| n as f64 / passed.as_secs_f64().max(0.05) * PARTS as f64;
        let bytes = stats.bytes();
        let bytes_passed = bytes.saturating_sub(std::mem::replace(&mut state.bytes_leased, bytes));
        let since = state.leased_at.replace(now);
        let peak = std::mem::take(&mut state.peak).max(state.open + state.waiting);
        let mut all = Vec::new();
        let mut add = |kind, most: u64, used, demand: u64| {
            all.push(Asked { tenant: tenant.to_owned(), kind, most, used, demand });
        };
        if let Some(limit) = limits.connections {
            let used = sessions + u64::from(state.arriving);
            add(LeaseKind::Connections, limit.into(), used, used + u64::from(state.hoping));
        }
        if let Some(limit) = limits.concurrent_transactions {
            let demand = u64::from(peak).max(u64::from(limit) / AT_HAND);
            add(LeaseKind::Transactions, limit.into(), state.open.into(), demand);
        }
        if let Some(rate) = limits.transaction_rate {
            let most = rate.per_second.saturating_mul(PARTS);
            let wanted = per_second(asked) as u64 + u64::from(state.delayed) * PARTS;
            state.rate_wanted = wanted_of(most, wanted, state.rate_wanted);
            add(LeaseKind::Rate, most, 0, state.rate_wanted);
        }
        if let Some(rate) = limits.byte_rate {
            let most = rate.per_second.saturating_mul(PARTS);
            // What is held back cannot be told in bytes: as much as all of it.
            let wanted = match (state.delayed, since) {
                (0, Some(_)) => per_second(bytes_passed) as u64,
                _ => most,
            };
            state.bytes_wanted = wanted_of(most, wanted, state.bytes_wanted);
            add(LeaseKind::Bytes, most, 0, state.bytes_wanted);
        }
        all
    }

    /// Takes over what the catalog has answered.
    pub(crate) fn grant(&self, granted: &Granted, limits: &TenantLimits, now: Instant) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let held = Some(granted.held);
        match granted.kind {
            LeaseKind::Connections => {
                state.held.connections = held;
                state.held.elsewhere = granted.elsewhere;
            }
            LeaseKind::Transactions => state.held.transactions = held,
            LeaseKind::Rate => {
                let borrowed = state.held.rate.is_none() && !granted.alone;
                let before = std::mem::replace(&mut state.held.rate, held);
                if let Some(rate) = limits.transaction_rate {
                    let (before, after) = (Flow::part(rate, before), Flow::part(rate, held));
                    state.transactions.change(before, after, borrowed, now);
                }
            }
            LeaseKind::Bytes => {
                let borrowed = state.held.bytes.is_none() && !granted.alone;
                let before = std::mem::replace(&mut state.held.bytes, held);
                if let Some(rate) = limits.byte_rate {
                    let (before, after) = (Flow::part(rate, before), Flow::part(rate, held));
                    state.bytes.change(before, after, borrowed, now);
                }
            }
        }
        self.freed.notify_one();
    }
}
