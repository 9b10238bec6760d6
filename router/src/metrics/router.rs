//! Series of the router as a whole and of its shards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use switchyard_config::ShardName;

use super::family::{Durations, Family, Samples};
use super::names::router as names;
use super::process;
use super::tenants::Tenants;
use crate::classify::Pin;
use crate::pool::{Pool, PoolCounters, PoolGauges};
use crate::session::handle::Activity;
use crate::shared::Shared;
use crate::stats::{Method, Rejected, TimeLimit};

/// Shows everything but tenants.
pub(super) struct RouterCollector {
    shared: Arc<Shared>,
    tenants: Arc<Tenants>,
    pools: Mutex<BTreeMap<ShardName, Counted>>,
    descs: Vec<Desc>,
}

impl RouterCollector {
    pub(super) fn new(shared: Arc<Shared>, tenants: Arc<Tenants>) -> prometheus::Result<Self> {
        let descs = names::ALL.iter().map(Family::describe).collect::<Result<_, _>>()?;
        Ok(Self { shared, tenants, pools: Mutex::default(), descs })
    }
}

impl Collector for RouterCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::with_capacity(names::ALL.len());
        let pools = self.shared.pools();
        configuration(&self.shared, &mut families);
        clients(&self.shared, &pools, &mut families);
        let (standbys, primaries): (Vec<_>, Vec<_>) =
            pools.iter().cloned().partition(|pool| pool.is_of_standbys());
        gauges_of_pools(&primaries, &mut families);
        gauges_of_standbys(&standbys, &mut families);
        self.counts_of_pools(&pools, &mut families);
        transactions(&self.shared, &mut families);
        self.work(&mut families);
        process::collect(&mut families);
        families
    }
}

fn configuration(shared: &Shared, families: &mut Vec<MetricFamily>) {
    let mut build = names::BUILD_INFO.samples();
    let commit = option_env!("SWITCHYARD_COMMIT").unwrap_or("unknown");
    build.add(&[("commit", commit), ("version", env!("CARGO_PKG_VERSION"))], 1.0);
    families.push(build.finish());

    families.push(names::CONFIG_GENERATION.single(shared.generation() as f64));
    let mut reloads = names::CONFIG_RELOADS.samples();
    reloads.add(&[("outcome", "success")], shared.stats.reloads_succeeded.get() as f64);
    reloads.add(&[("outcome", "failure")], shared.stats.reloads_failed.get() as f64);
    families.push(reloads.finish());

    let topology = shared.topology();
    families.push(names::TOPOLOGY_VERSION.single(topology.version as f64));
    families.push(names::TOPOLOGY_SHARDS.single(topology.shards.len() as f64));
    families.push(names::TOPOLOGY_TENANTS.single(topology.tenants.len() as f64));
    families.push(names::READY.single(u8::from(crate::http::unready(shared).is_none()).into()));

    if let Some(catalog) = shared.catalog_status.get() {
        families.push(names::CATALOG_CONNECTED.single(u8::from(catalog.connected()).into()));
        let age = catalog.age().map_or_else(|| f64::from(crate::clock::seconds()), |age| age.as_secs_f64());
        families.push(names::CATALOG_STALENESS.single(age));
        families.push(names::CATALOG_FAILURES.single(catalog.failures() as f64));
    }
}

fn clients(shared: &Shared, pools: &[Arc<Pool>], families: &mut Vec<MetricFamily>) {
    let (mut idle, mut active, mut in_transaction) = (0_usize, 0_usize, 0_usize);
    for session in &shared.sessions {
        match session.activity().0 {
            Activity::Idle => idle += 1,
            Activity::Active => active += 1,
            Activity::IdleInTransaction => in_transaction += 1,
        }
    }
    // Whoever waits for a server connection is active to the registry.
    let waiting = pools.iter().map(|pool| pool.gauges().waiting).sum::<usize>().min(active);
    let mut states = names::CLIENT_CONNECTIONS.samples();
    for (state, n) in [
        ("login", shared.connections().1),
        ("idle", idle),
        ("active", active - waiting),
        ("waiting", waiting),
        ("idle_in_transaction", in_transaction),
    ] {
        states.add(&[("state", state)], n as f64);
    }
    families.push(states.finish());
    families.push(names::CLIENT_CONNECTIONS_MAX.single(shared.settings().limits.clients as f64));

    let stats = &shared.stats;
    families.push(names::ACCEPTED.single(stats.accepted.get() as f64));
    let mut rejected = names::REJECTED.samples();
    for (why, reason) in Rejected::ALL {
        rejected.add(&[("reason", reason)], stats.rejected.get_at(why as usize) as f64);
    }
    families.push(rejected.finish());
    let mut attempts = names::AUTH_ATTEMPTS.samples();
    for (method, name) in Method::ALL {
        let (good, bad) = (&stats.logins_succeeded, &stats.logins_failed);
        attempts.add(&[("method", name), ("outcome", "success")], good.get_at(method as usize) as f64);
        attempts.add(&[("method", name), ("outcome", "failure")], bad.get_at(method as usize) as f64);
    }
    families.push(attempts.finish());
}

/// Adds the pool's connections by their state.
fn connections_of(pool: &Pool, connections: &mut Samples) -> PoolGauges {
    let now = pool.gauges();
    let active = now.open.saturating_sub(now.idle + now.connecting);
    for (state, n) in [("active", active), ("idle", now.idle), ("login", now.connecting)] {
        connections.add(&[("shard", pool.shard.name.as_str()), ("state", state)], n as f64);
    }
    now
}

fn gauges_of_pools(pools: &[Arc<Pool>], families: &mut Vec<MetricFamily>) {
    let mut connections = names::SERVER_CONNECTIONS.samples();
    let mut most = names::SERVER_CONNECTIONS_MAX.samples();
    let mut waiting = names::POOL_WAITING.samples();
    let mut oldest = names::POOL_OLDEST_WAIT.samples();
    for pool in pools {
        let name = pool.shard.name.as_str();
        let now = connections_of(pool, &mut connections);
        let shard = [("shard", name)];
        most.add(&shard, pool.shard.pool.size.into());
        waiting.add(&shard, now.waiting as f64);
        oldest.add(&shard, now.oldest_wait.as_secs_f64());
    }
    families.extend([connections, most, waiting, oldest].map(Samples::finish));
}

fn gauges_of_standbys(pools: &[Arc<Pool>], families: &mut Vec<MetricFamily>) {
    let mut connections = names::STANDBY_CONNECTIONS.samples();
    let mut lag = names::STANDBY_LAG.samples();
    let mut usable = names::STANDBY_USABLE.samples();
    for pool in pools {
        let name = pool.shard.name.as_str();
        connections_of(pool, &mut connections);
        for standby in pool.standbys() {
            let host = standby.endpoint.to_string();
            let labels = [("host", host.as_str()), ("shard", name)];
            usable.add(&labels, u8::from(standby.usable).into());
            if let Some(behind) = standby.lag {
                lag.add(&labels, behind.as_secs_f64());
            }
        }
    }
    families.extend([connections, lag, usable].map(Samples::finish));
}

fn transactions(shared: &Shared, families: &mut Vec<MetricFamily>) {
    let mut transactions = names::TRANSACTION.samples();
    shared.stats.each_shard(|shard, accounts| {
        let mut durations = Durations::default();
        for account in accounts {
            durations.add(&account.transactions);
        }
        transactions.add_histogram(&[("shard", shard.as_str())], &durations);
    });
    families.push(transactions.finish());
}

impl RouterCollector {
    fn counts_of_pools(&self, pools: &[Arc<Pool>], families: &mut Vec<MetricFamily>) {
        let mut connects = names::SERVER_CONNECTS.samples();
        let mut wait = names::POOL_WAIT.samples();
        let mut timeouts = names::POOL_TIMEOUTS.samples();
        let mut resets = names::SESSION_RESETS.samples();
        let mut shards = self.pools.lock();
        for pool in pools {
            shards.entry(pool.shard.name.clone()).or_default().meet(&pool.counters);
        }
        for (name, counted) in shards.iter_mut() {
            let counts = counted.read();
            let shard = ("shard", name.as_str());
            connects.add(&[("outcome", "success"), shard], counts.connects as f64);
            connects.add(&[("outcome", "failure"), shard], counts.connect_failures as f64);
            wait.add_histogram(&[shard], &counts.wait);
            timeouts.add(&[shard], counts.queue_timeouts as f64);
            resets.add(&[("kind", "clean"), shard], counts.cleanings as f64);
            resets.add(&[("kind", "context"), shard], counts.contexts as f64);
        }
        families.extend([connects, wait, timeouts, resets].map(Samples::finish));
    }

    fn work(&self, families: &mut Vec<MetricFamily>) {
        let stats = &self.shared.stats;
        let whole = self.tenants.whole();
        families.push(names::STATEMENTS.single(whole.statements() as f64));
        families.push(names::ERRORS.single(whole.errors() as f64));
        let mut bytes = names::BYTES.samples();
        bytes.add(&[("direction", "in"), ("side", "client")], whole.bytes_in() as f64);
        bytes.add(&[("direction", "out"), ("side", "client")], whole.bytes_out() as f64);
        families.push(bytes.finish());

        families.push(names::HANDOVER_FAILURES.single(stats.handover_failures.get() as f64));
        families.push(names::PROBES.single(stats.probes.get() as f64));
        let mut pins = names::PINS.samples();
        for pin in Pin::ALL {
            pins.add(&[("reason", pin.label())], stats.pins.get(pin) as f64);
        }
        families.push(pins.finish());
        let mut times = names::TIME_LIMITS.samples();
        for (which, limit) in TimeLimit::ALL {
            times.add(&[("limit", limit)], stats.time_limits.get(which) as f64);
        }
        families.push(times.finish());
        notifications(&self.shared, families);
        families.push(names::PREPARED_PARSES.single(stats.statement_parses.get() as f64));
        families.push(names::PREPARED_REUSES.single(stats.statement_reuses.get() as f64));
        families.push(names::PREPARED_EVICTIONS.single(stats.statement_evictions.get() as f64));
        let mut cancels = names::CANCELS.samples();
        cancels.add(&[("outcome", "forwarded")], stats.cancels_sent.get() as f64);
        cancels.add(&[("outcome", "ended_wait")], stats.cancels_of_waits.get() as f64);
        cancels.add(&[("outcome", "ignored")], stats.cancels_ignored.get() as f64);
        cancels.add(&[("outcome", "passed_on")], stats.cancels_passed_on.get() as f64);
        cancels.add(&[("outcome", "limited")], stats.cancels_limited.get() as f64);
        families.push(cancels.finish());
    }
}

fn notifications(shared: &Shared, families: &mut Vec<MetricFamily>) {
    let (listeners, hubs) = shared.notifications.gauges();
    families.push(names::LISTENERS.single(listeners as f64));
    families.push(names::HUBS.single(hubs as f64));
    let counts = &shared.notifications.counts;
    families.push(names::NOTIFICATIONS.single(counts.delivered.get() as f64));
    let mut dropped = names::NOTIFICATIONS_DROPPED.samples();
    for (reason, count) in
        [("unheard", &counts.unheard), ("unknown", &counts.unknown), ("overflow", &counts.overflowed)]
    {
        dropped.add(&[("reason", reason)], count.get() as f64);
    }
    families.push(dropped.finish());
    families.push(names::NOTIFICATION_GAPS.single(counts.gaps.get() as f64));
    families.push(names::NOTIFICATION_UNANSWERED.single(counts.unanswered.get() as f64));
    families.push(names::NOTIFICATION_FORGERIES.single(counts.forged.get() as f64));
}

/// What has been counted for a shard by all its pools: a shard whose address or size changes gets
/// a new pool, and its counters must not begin again.
#[derive(Default)]
struct Counted {
    /// By pools that are gone.
    past: Counts,
    pools: Vec<Arc<PoolCounters>>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    connects: u64,
    connect_failures: u64,
    cleanings: u64,
    contexts: u64,
    queue_timeouts: u64,
    wait: Durations,
}

impl Counted {
    /// Counts this pool in, if it is new.
    fn meet(&mut self, pool: &Arc<PoolCounters>) {
        if !self.pools.iter().any(|known| Arc::ptr_eq(known, pool)) {
            self.pools.push(pool.clone());
        }
    }

    fn read(&mut self) -> Counts {
        let past = &mut self.past;
        // What nobody else holds will not change any more.
        self.pools.retain(|pool| {
            let gone = Arc::strong_count(pool) == 1;
            if gone {
                past.add(pool);
            }
            !gone
        });
        let mut counts = self.past;
        self.pools.iter().for_each(|pool| counts.add(pool));
        counts
    }
}

impl Counts {
    fn add(&mut self, pool: &PoolCounters) {
        self.connects += pool.connects.load(Ordering::Relaxed);
        self.connect_failures += pool.connect_failures.load(Ordering::Relaxed);
        self.cleanings += pool.cleanings.load(Ordering::Relaxed);
        self.contexts += pool.contexts.load(Ordering::Relaxed);
        self.queue_timeouts += pool.queue_timeouts.load(Ordering::Relaxed);
        self.wait.add(&pool.wait);
    }
}
