//! Keeps this router's parts of tenants' limits, which all routers share.
//!
//! Every [`RENEW`], and at once where somebody waits for more. A router that cannot reach the catalog keeps what it has;
//! one that never could has all of every limit, as a router without a catalog.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use switchyard_catalog::leases::Leases;
use switchyard_config::TenantId;
use tokio::sync::{Notify, watch};

use crate::shared::Shared;

/// How often parts are asked for anew. In the catalog, what is not renewed ends after ten times as much.
const RENEW: Duration = Duration::from_secs(1);

/// How soon they are asked for again, where somebody waits.
const SOON: Duration = Duration::from_millis(50);

/// What others know of it.
pub(crate) struct Leasing {
    /// The catalog has answered the last time.
    works: AtomicBool,
    wanted: Notify,
    /// Rises with every answer, and when there is none.
    round: watch::Sender<u64>,
}

impl Default for Leasing {
    fn default() -> Self {
        Self { works: AtomicBool::new(false), wanted: Notify::new(), round: watch::Sender::new(0) }
    }
}

impl Leasing {
    /// Whether the catalog divides the limits between routers now.
    pub(crate) fn works(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }

    /// Asks for more, and waits for the answer, or a while.
    pub(crate) async fn ask_now(&self) {
        let mut round = self.round.subscribe();
        round.mark_unchanged();
        self.wanted.notify_one();
        let _ = tokio::time::timeout(RENEW, round.changed()).await;
    }
}

/// Renews them for as long as the process lives. `router` tells it apart from all others.
pub(crate) async fn run(shared: Arc<Shared>, url: SecretString, router: String) {
    let mut leases = Leases::new(url, router);
    let leasing = &shared.leasing;
    // With an idle router there is nothing to ask for, but whether there is somebody to ask is known before the first login.
    let mut last = None;
    loop {
        let worked = leasing.works();
        match renew(&shared, &mut leases).await {
            Ok(()) => leasing.works.store(true, Ordering::Relaxed),
            Err(error) => {
                leasing.works.store(false, Ordering::Relaxed);
                if worked || last.is_none() {
                    tracing::warn!(%error, "limits are not divided with other routers; what this one has stays");
                }
            }
        }
        leasing.round.send_modify(|round| *round += 1);
        last = Some(Instant::now());
        let _ = tokio::time::timeout(RENEW, leasing.wanted.notified()).await;
        if let Some(left) = last.and_then(|at| SOON.checked_sub(at.elapsed())) {
            tokio::time::sleep(left).await;
        }
    }
}

async fn renew(shared: &Shared, leases: &mut Leases) -> Result<(), switchyard_catalog::CatalogError> {
    let topology = shared.topology();
    let now = Instant::now();
    let mut asked = Vec::new();
    for entry in &shared.stats.tenants {
        if let Some(tenant) = topology.tenant(entry.key()) {
            asked.extend(entry.gate.ask(entry.key().as_str(), &tenant.limits, entry.value(), now));
        }
    }
    let granted = leases.renew(&asked).await?;
    let now = Instant::now();
    for grant in granted {
        let Ok(id) = TenantId::new(&grant.tenant) else { continue };
        if let (Some(stats), Some(tenant)) = (shared.stats.tenants.get(&id), topology.tenant(&id)) {
            stats.gate.grant(&grant, &tenant.limits, now);
        }
    }
    Ok(())
}
