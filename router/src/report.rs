//! Reports to the catalog: that this router lives, what tenants have used, and who signed in.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use secrecy::SecretString;
use switchyard_catalog::{Report, Reporter, TenantUsage};
use switchyard_config::TenantId;
use switchyard_config::settings::ListenAddress;

use crate::shared::Shared;
use crate::stats::TenantStats;

/// How often a router reports. Quotas are behind by about as much.
const INTERVAL: Duration = Duration::from_secs(10);

/// Reports for as long as the process lives, and once more on `last`.
pub(crate) async fn run(
    shared: Arc<Shared>,
    url: SecretString,
    router: RouterId,
    last: tokio::sync::watch::Receiver<bool>,
) {
    let mut reporter = Reporter::new(url);
    let mut ledger = Ledger::new(&shared, router);
    let mut accepting = last;
    let mut unsent: Option<Report> = None;
    let mut failing = false;
    loop {
        let ends = tokio::select! {
            () = tokio::time::sleep(INTERVAL) => false,
            changed = accepting.wait_for(|accepting| !accepting) => { let _ = changed; true }
        };
        // One that was not answered goes first, just as it was.
        let report = unsent.take().unwrap_or_else(|| ledger.next(&shared));
        match reporter.send(&report).await {
            Ok(_) => {
                if failing {
                    tracing::info!("reports reach the catalog again");
                }
                failing = false;
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "a report did not reach the catalog; it is sent again");
                }
                failing = true;
                unsent = Some(report);
            }
        }
        if ends {
            // The drain goes on; what it does yet is little, and told until the process ends.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// What a router calls itself in the catalog.
pub(crate) struct RouterId {
    /// The same process never starts twice at the same time on the same host.
    pub(crate) id: String,
    name: String,
    /// When it started, in seconds since 1970.
    started: f64,
}

impl RouterId {
    /// That of a process which starts now.
    pub(crate) fn new() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let pid = std::process::id();
        Self {
            id: format!("{}-{pid}-{:x}", host.trim().chars().take(32).collect::<String>(), started.to_bits()),
            name: format!("{}/{pid}", host.trim()),
            started,
        }
    }
}

/// What has been reported so far.
struct Ledger {
    router: RouterId,
    address: Option<String>,
    sequence: u64,
    /// Totals of each tenant at the last report.
    seen: HashMap<TenantId, TenantUsage>,
}

impl Ledger {
    fn new(shared: &Shared, router: RouterId) -> Self {
        let address = shared.settings().listen.iter().find_map(|a| match a {
            ListenAddress::Tcp(address) => Some(address.to_string()),
            ListenAddress::Unix { .. } => None,
        });
        Self { router, address, sequence: 0, seen: HashMap::new() }
    }

    fn next(&mut self, shared: &Shared) -> Report {
        self.sequence += 1;
        let mut usage = Vec::new();
        let mut seen = HashMap::with_capacity(self.seen.len());
        for entry in &shared.stats.tenants {
            let (tenant, now) = (entry.key(), totals(entry.key(), entry.value()));
            let before = self.seen.remove(tenant).unwrap_or_default();
            if let Some(done) = difference(&now, &before) {
                usage.push(done);
            }
            seen.insert(tenant.clone(), now);
        }
        self.seen = seen;
        Report {
            id: self.router.id.clone(),
            name: self.router.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: self.address.clone(),
            topology: shared.topology().version,
            sequence: self.sequence,
            clients: shared.sessions.len() as u64,
            started: self.router.started,
            usage,
            sign_ins: shared.stats.sign_ins.take(),
        }
    }
}

fn totals(tenant: &TenantId, stats: &TenantStats) -> TenantUsage {
    let mut sum = TenantUsage {
        tenant: tenant.as_str().to_owned(),
        connections: stats.sessions.load(Ordering::Relaxed).max(0),
        ..TenantUsage::default()
    };
    for account in &stats.accounts {
        sum.transactions += account.transactions.get();
        sum.statements += account.statements.get();
        sum.errors += account.errors.get();
        sum.rows += account.rows.get();
        sum.limited += account.limited.get();
        sum.bytes_in += account.bytes_in.get();
        sum.bytes_out += account.bytes_out.get();
        sum.server_us += account.busy_us.get();
        sum.wait_us += account.wait_us.get();
    }
    sum
}

/// What was done in between; none if that is nothing at all and nobody is connected.
fn difference(now: &TenantUsage, before: &TenantUsage) -> Option<TenantUsage> {
    let since = |get: fn(&TenantUsage) -> u64| {
        // A tenant that was forgotten and has come back counts from nothing.
        let (now, before) = (get(now), get(before));
        if now >= before { now - before } else { now }
    };
    let done = TenantUsage {
        tenant: now.tenant.clone(),
        transactions: since(|u| u.transactions),
        statements: since(|u| u.statements),
        rows: since(|u| u.rows),
        errors: since(|u| u.errors),
        limited: since(|u| u.limited),
        bytes_in: since(|u| u.bytes_in),
        bytes_out: since(|u| u.bytes_out),
        server_us: since(|u| u.server_us),
        wait_us: since(|u| u.wait_us),
        connections: now.connections,
    };
    let nothing = TenantUsage { tenant: now.tenant.clone(), ..TenantUsage::default() };
    (done != nothing).then_some(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reported_is_what_was_done_since() {
        let usage = |transactions, connections| TenantUsage {
            tenant: "acme".into(),
            transactions,
            connections,
            ..TenantUsage::default()
        };
        assert_eq!(difference(&usage(7, 1), &usage(5, 1)), Some(usage(2, 1)));
        assert_eq!(difference(&usage(7, 0), &usage(7, 3)), None);
        assert_eq!(difference(&usage(7, 1), &usage(7, 0)), Some(usage(0, 1)));
        assert_eq!(difference(&usage(3, 0), &usage(7, 0)), Some(usage(3, 0)), "counted anew");
    }
}
