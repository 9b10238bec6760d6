//! Series of tenants.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use switchyard_config::TenantId;
use switchyard_config::topology::{Topology, UnknownTenants};

use super::family::seconds;
use super::ledger::{IDLE, Ledger, Page, Reading, Totals};
use super::names::tenant as names;
use crate::shared::Shared;
use crate::stats::TenantStats;

/// The value of the label `tenant` for all that have no series of their own.
const OTHER: &str = "_other";

/// All tenants that are counted, and where each is shown.
pub(super) struct Tenants {
    shared: Arc<Shared>,
    ledger: Mutex<Ledger>,
}

impl Tenants {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, ledger: Mutex::default() }
    }

    /// What all tenants together have done since the process started.
    pub(super) fn whole(&self) -> Totals {
        // Held throughout, so that nobody is forgotten half way.
        let ledger = self.ledger.lock();
        let mut whole = ledger.forgotten();
        for tenant in &self.shared.stats.tenants {
            whole.add(&Totals::read(&tenant));
        }
        whole
    }

    pub(super) fn page(&self, topology: &Topology, now: Instant) -> Page {
        let mut ledger = self.ledger.lock();
        self.forget_the_gone(&mut ledger, topology, now);
        let reading = |tenant: &TenantId, stats: &TenantStats| Reading {
            tenant: tenant.clone(),
            totals: Totals::read(stats),
            clients: stats.sessions.load(Ordering::Relaxed),
            known: topology.unknown_tenants == UnknownTenants::Create
                || topology.tenants.contains_key(tenant),
        };
        let readings = self.shared.stats.tenants.iter().map(|t| reading(t.key(), t.value())).collect();
        ledger.scrape(readings, self.shared.settings().metrics_tenants, now)
    }

    /// Drops the counts of tenants that the topology does not have (any more) once no session can
    /// add to them: else tenants that come and go would be memory that never comes back.
    fn forget_the_gone(&self, ledger: &mut Ledger, topology: &Topology, now: Instant) {
        let tenants = &self.shared.stats.tenants;
        let is_gone = |tenant: &TenantId| match topology.unknown_tenants {
            _ if topology.tenants.contains_key(tenant) => false,
            UnknownTenants::Refuse => true,
            UnknownTenants::Create => {
                ledger.idle_since(tenant).is_some_and(|since| now.saturating_duration_since(since) >= IDLE)
            }
        };
        let gone: Vec<TenantId> = tenants.iter().map(|t| t.key().clone()).filter(is_gone).collect();
        for tenant in gone {
            // Sessions get their accounts from the map alone, and it is locked meanwhile.
            if let Some((tenant, stats)) = tenants.remove_if(&tenant, |_, stats| is_held_by_none(stats)) {
                ledger.forget(&tenant, &Totals::read(&stats));
            }
        }
    }
}

fn is_held_by_none(stats: &Arc<TenantStats>) -> bool {
    Arc::strong_count(stats) == 1
        && stats.sessions.load(Ordering::Acquire) == 0
        && stats.accounts.iter().all(|account| Arc::strong_count(account) == 1)
}

/// Shows [`Tenants`].
pub(super) struct TenantCollector {
    tenants: Arc<Tenants>,
    descs: Vec<Desc>,
}

impl TenantCollector {
    pub(super) fn new(tenants: Arc<Tenants>) -> prometheus::Result<Self> {
        let descs = names::ALL.iter().map(super::family::Family::describe).collect::<Result<_, _>>()?;
        Ok(Self { tenants, descs })
    }
}

impl Collector for TenantCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let topology = self.tenants.shared.topology();
        render(&self.tenants.page(&topology, Instant::now()), &topology)
    }
}

fn render(page: &Page, topology: &Topology) -> Vec<MetricFamily> {
    let mut transactions = names::TRANSACTIONS.samples();
    let mut statements = names::STATEMENTS.samples();
    let mut errors = names::ERRORS.samples();
    let mut bytes = names::BYTES.samples();
    let mut busy = names::BUSY.samples();
    let mut wait = names::WAIT.samples();
    let mut waits = names::WAITS.samples();
    let mut shed = names::SHED.samples();
    let mut rows = names::ROWS.samples();
    let mut limited = names::LIMITED.samples();
    let mut clients = names::CLIENTS.samples();
    let mut info = names::INFO.samples();
    let own = page.own.iter().map(|(tenant, totals, clients)| (label(tenant.as_str()), totals, *clients));
    let other = std::iter::once((Cow::Borrowed(OTHER), &page.other.0, page.other.1));
    for (label, totals, connected) in own.chain(other) {
        let tenant = [("tenant", label.as_ref())];
        transactions.add(&tenant, totals.transactions() as f64);
        statements.add(&tenant, totals.statements() as f64);
        errors.add(&tenant, totals.errors() as f64);
        bytes.add(&[("direction", "in"), tenant[0]], totals.bytes_in() as f64);
        bytes.add(&[("direction", "out"), tenant[0]], totals.bytes_out() as f64);
        busy.add(&tenant, seconds(totals.busy_us()));
        wait.add(&tenant, seconds(totals.wait_us()));
        waits.add(&tenant, totals.waits() as f64);
        shed.add(&tenant, totals.shed() as f64);
        rows.add(&tenant, totals.rows() as f64);
        limited.add(&tenant, totals.limited() as f64);
        clients.add(&tenant, connected.max(0) as f64);
    }
    for (id, _, _) in &page.own {
        let Some(tenant) = topology.tenant(id) else { continue };
        let placed = topology.place(&tenant).and_then(|p| topology.shards.get(usize::from(p.shard)));
        let shard = placed.map_or("", |shard| shard.name.as_str());
        info.add(&[("shard", shard), ("state", tenant.state.as_str()), ("tenant", &label(id.as_str()))], 1.0);
    }
    let mut families: Vec<_> =
        [transactions, statements, errors, bytes, busy, wait, waits, shed, rows, limited, clients, info]
            .into_iter()
            .map(super::family::Samples::finish)
            .collect();
    families.push(names::ACTIVE.single(page.active as f64));
    families.push(names::DROPPED.single(page.folded as f64));
    families
}

/// The label of a tenant: its id, except that what could be taken for [`OTHER`] gets one more
/// underscore. No two tenants have the same label.
fn label(id: &str) -> Cow<'_, str> {
    let bare = id.trim_start_matches('_');
    if bare == "other" && bare != id { Cow::Owned(format!("_{id}")) } else { Cow::Borrowed(id) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_taken_for_the_others() {
        let cases = [
            ("_other", "__other"),
            ("__other", "___other"),
            ("other", "other"),
            ("_others", "_others"),
            ("_", "_"),
        ];
        for (id, expected) in cases {
            assert_eq!(label(id), expected);
        }
    }
}
