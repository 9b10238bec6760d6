//! A topology that stays fresh.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use secrecy::SecretString;
use switchyard_config::TenantId;
use switchyard_config::settings::CatalogSettings;
use switchyard_config::topology::Topology;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::{Catalog, CatalogError, disk};

/// First and longest pause between attempts to reach the catalog; it doubles in between.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Shortest time between two writings of the last topology.
const SAVE_PAUSE: Duration = Duration::from_secs(1);

/// First logins that may wait to be written; more are written when the tenant logs in again.
const REGISTRATIONS: usize = 1024;

/// Keeps a topology fresh for as long as it lives. Dropping it ends its tasks.
pub struct Watcher {
    topology: watch::Receiver<Arc<Topology>>,
    registrations: mpsc::Sender<TenantId>,
    status: Arc<Status>,
    _tasks: JoinSet<()>,
}

/// How the watcher fares; read by metrics and readiness.
#[derive(Debug)]
pub struct Status {
    started: Instant,
    connected: AtomicBool,
    /// Milliseconds after `started`, plus one; 0 is never.
    last_success: AtomicU64,
    failures: AtomicU64,
}

impl Status {
    /// Whether there is a connection to the catalog.
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// How long ago the catalog was last read or found unchanged; `None` if never, which is so
    /// when the topology came from disk.
    pub fn age(&self) -> Option<Duration> {
        let at = self.last_success.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(at)))
    }

    /// How often a connection was lost or could not be made.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    fn succeeded(&self) {
        self.connected.store(true, Ordering::Relaxed);
        self.last_success.store(self.started.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    fn failed(&self) {
        self.connected.store(false, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

impl Watcher {
    /// Reads the catalog, or, if that cannot be, the last topology on disk, and goes on from there.
    ///
    /// # Errors
    /// If neither is to be had; the error is the catalog's.
    pub async fn start(settings: CatalogSettings) -> Result<Self, CatalogError> {
        let status = Arc::new(Status {
            started: Instant::now(),
            connected: AtomicBool::new(false),
            last_success: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        });
        let (catalog, topology) = match first(&settings.url).await {
            Ok((catalog, topology)) => {
                status.succeeded();
                (Some(catalog), topology)
            }
            Err(error) => {
                status.failed();
                (None, last_on_disk(settings.state_file.as_deref(), error)?)
            }
        };
        info!(
            version = topology.version,
            shards = topology.shards.len(),
            tenants = topology.tenants.len(),
            users = topology.users.len(),
            from_disk = catalog.is_none(),
            "topology loaded"
        );
        let (publish, receiver) = watch::channel(Arc::new(topology));
        let (registrations, requests) = mpsc::channel(REGISTRATIONS);
        let mut tasks = JoinSet::new();
        if let Some(path) = settings.state_file.clone() {
            let mut changes = receiver.clone();
            if catalog.is_some() {
                changes.mark_changed();
            }
            tasks.spawn(keep_on_disk(path, changes));
        }
        let follower =
            Follower { url: settings.url, poll: settings.poll, publish, requests, status: status.clone() };
        tasks.spawn(follower.run(catalog));
        Ok(Self { topology: receiver, registrations, status, _tasks: tasks })
    }

    /// The topology, now and whenever it changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Topology>> {
        self.topology.clone()
    }

    /// How the watcher fares.
    pub fn status(&self) -> Arc<Status> {
        self.status.clone()
    }

    /// What has first logins written to the catalog.
    pub fn registrar(&self) -> Registrar {
        Registrar { registrations: self.registrations.clone() }
    }
}

/// Has tenants that log in for the first time written to the catalog. Cheap to clone.
#[derive(Clone)]
pub struct Registrar {
    registrations: mpsc::Sender<TenantId>,
}

impl Registrar {
    /// Has `id` written soon. While the catalog is away it may be forgotten: the tenant's next
    /// login asks again.
    pub fn register_tenant(&self, id: TenantId) {
        if let Err(error) = self.registrations.try_send(id) {
            let (mpsc::error::TrySendError::Full(id) | mpsc::error::TrySendError::Closed(id)) = error;
            warn!(tenant = %id, "too many new tenants at once: this one is not written to the catalog yet");
        }
    }
}

async fn first(url: &SecretString) -> Result<(Catalog, Topology), CatalogError> {
    let mut catalog = Catalog::connect(url).await?;
    let topology = catalog.snapshot().await?;
    Ok((catalog, topology))
}

fn last_on_disk(path: Option<&Path>, error: CatalogError) -> Result<Topology, CatalogError> {
    let Some(path) = path else { return Err(error) };
    match disk::load(path) {
        Ok(topology) => {
            warn!(%error, "the catalog cannot be read: going on with the last topology on disk");
            Ok(topology)
        }
        Err(disk_error) => {
            warn!(error = %disk_error, "there is no last topology to go on with");
            Err(error)
        }
    }
}

async fn keep_on_disk(path: PathBuf, mut changes: watch::Receiver<Arc<Topology>>) {
    while changes.changed().await.is_ok() {
        let topology = changes.borrow_and_update().clone();
        let to = path.clone();
        // A write of tens of megabytes has no place on a worker thread.
        match tokio::task::spawn_blocking(move || disk::save(&to, &topology)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the last topology was not written"),
            Err(error) => warn!(%error, "the last topology was not written"),
        }
        sleep(SAVE_PAUSE).await;
    }
}

/// The task that reads the catalog.
struct Follower {
    url: SecretString,
    poll: Duration,
    publish: watch::Sender<Arc<Topology>>,
    requests: mpsc::Receiver<TenantId>,
    status: Arc<Status>,
}

impl Follower {
    async fn run(mut self, mut catalog: Option<Catalog>) {
        let mut pause = BACKOFF.0;
        loop {
            let error = match catalog.take() {
                Some(catalog) => {
                    pause = BACKOFF.0;
                    self.follow(catalog).await
                }
                None => match first(&self.url).await {
                    Ok((reached, topology)) => {
                        info!(version = topology.version, "the catalog is back");
                        self.publish(topology);
                        catalog = Some(reached);
                        continue;
                    }
                    Err(error) => error,
                },
            };
            self.status.failed();
            warn!(%error, retry_in_ms = pause.as_millis() as u64, "the catalog cannot be read");
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// Follows the catalog until it fails. What is published must have come from this connection.
    async fn follow(&mut self, mut catalog: Catalog) -> CatalogError {
        loop {
            let held = self.publish.borrow().clone();
            match catalog.update(&held).await {
                Ok(None) => self.status.succeeded(),
                Ok(Some(topology)) => self.publish(topology),
                Err(error) => return error,
            }
            tokio::select! {
                changed = catalog.changed() => if let Err(error) = changed { return error },
                () = sleep(self.poll) => {}
                Some(id) = self.requests.recv() => if let Err(error) = self.register(&catalog, &id).await {
                    return error;
                }
            }
        }
    }

    async fn register(&self, catalog: &Catalog, id: &TenantId) -> Result<(), CatalogError> {
        if self.publish.borrow().tenants.contains_key(id) {
            return Ok(());
        }
        match catalog.register_tenant(id).await {
            // Refused, most likely for want of a right: the connection is as good as before.
            Err(CatalogError::Postgres(error)) if error.as_db_error().is_some() => {
                let error = CatalogError::from(error);
                warn!(tenant = %id, %error, "a new tenant could not be written to the catalog");
                Ok(())
            }
            done => done,
        }
    }

    fn publish(&self, topology: Topology) {
        self.status.succeeded();
        self.publish.send_replace(Arc::new(topology));
    }
}
