//! A router process: start, signals, changes of topology, upkeep, the end.

mod leave;
mod notify;
mod successor;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use secrecy::SecretString;
use switchyard_catalog::Watcher;
use switchyard_config::file::{self, Loaded};
use switchyard_config::settings::RouterSettings;
use switchyard_config::topology::Topology;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::cancel;
use crate::console::{Control, Shutdown};
use crate::listen::{self, UnixPath};
use crate::notifications::elsewhere;
use crate::notifications::link::Means;
use crate::session::expiry::shorter;
use crate::session::handle::{Activity, Order};
use crate::shared::{Shared, Stage, StartError};
use crate::worker;
pub use successor::Successor;

/// How often idle connections and sessions are looked at.
const UPKEEP: Duration = Duration::from_secs(1);

/// How long a start waits for the key of notifications, and to be told who listens at other routers.
const KEY_TIMEOUT: Duration = Duration::from_secs(3);

/// How long sessions get to say goodbye after the drain's deadline.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// A router that serves.
pub struct Router {
    shared: Arc<Shared>,
    accepting: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
    unix: Vec<UnixPath>,
    http: Option<SocketAddr>,
    tasks: JoinSet<()>,
    config: Option<PathBuf>,
    watcher: Option<Watcher>,
}

/// How a router process begins, and what comes after it.
#[derive(Default)]
pub struct Life {
    /// The file to read again on SIGHUP.
    pub config: Option<PathBuf>,
    /// The process to take over from: it is told, by SIGUSR1, once this one serves.
    pub takes_over_from: Option<u32>,
    /// What to start on SIGUSR2.
    pub successor: Option<Successor>,
}

/// Serves until SIGTERM or SIGINT, then drains; a second one ends it at once. SIGHUP reads the
/// configuration again. SIGUSR2 starts the process that takes over, and SIGUSR1 says that it has: no clients
/// are taken any more, and sessions leave in their own time.
///
/// # Errors
/// If the router cannot start.
pub async fn run(loaded: Loaded, life: Life) -> Result<(), StartError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Worker)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Worker)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(StartError::Worker)?;
    let mut take_over = signal(SignalKind::user_defined2()).map_err(StartError::Worker)?;
    let mut taken_over = signal(SignalKind::user_defined1()).map_err(StartError::Worker)?;
    let mut router = Router::start(loaded, life.config).await?;
    if let Some(old) = life.takes_over_from {
        successor::take_over(old)?;
    }
    notify::ready();
    let mut successor = successor::Starting::new(life.successor);
    let mut asked = router.shared.console.listen();
    let why = loop {
        tokio::select! {
            _ = hangup.recv() => {
                notify::reloading();
                router.reload();
                notify::ready();
            }
            _ = take_over.recv() => successor.begin(),
            () = successor.failed() => {}
            Some(control) = asked.recv() => match control {
                // Nobody listens if the client has gone meanwhile.
                Control::Reload(answer) => drop(answer.send(router.try_reload())),
                Control::Shutdown(how) => break Why::Told(how),
            },
            _ = taken_over.recv() => break Why::HandedOver,
            _ = terminate.recv() => break Why::Told(Shutdown::WaitForServers),
            _ = interrupt.recv() => break Why::Told(Shutdown::WaitForServers),
        }
    };
    if why == Why::HandedOver {
        tokio::select! {
            () = router.hand_over() => return end(router).await,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    } else {
        // Of a process that has handed over, systemd is told by the next one.
        notify::tell("STOPPING=1");
    }
    if why == Why::Told(Shutdown::WaitForClients) {
        tokio::select! {
            () = router.wait_for_clients() => {}
            () = until_shutdown(&mut asked) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    // From here on whoever asks is told that the process is ending.
    drop(asked);
    if why == Why::Told(Shutdown::Now) {
        return end(router).await;
    }
    tokio::select! {
        () = router.drain() => {}
        // Asked twice: now.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    end(router).await
}

/// Why a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Another has taken over.
    HandedOver,
    /// It was told to, by signal or in the console.
    Told(Shutdown),
}

async fn end(router: Router) -> Result<(), StartError> {
    router.stop().await;
    Ok(())
}

impl Router {
    /// Starts workers and everything around them. `config` is the file to read again on
    /// [`Self::reload`].
    ///
    /// # Errors
    /// If an address is taken, a certificate unusable, or there is no topology to be had.
    pub async fn start(loaded: Loaded, config: Option<PathBuf>) -> Result<Self, StartError> {
        let Loaded { settings, topology, warnings } = loaded;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        clock_begins();
        let workers = match settings.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let bound = listen::bind(&settings.listen, workers, settings.reuse_port)?;
        let key = notification_key(&settings).await;
        let shared = Arc::new(Shared::new(settings, workers, key.as_ref())?);
        shared.notifications.run_on(tokio::runtime::Handle::current());
        let mut tasks = JoinSet::new();
        if let Some(listener) = shared.processes.lock().take() {
            listener.set_nonblocking(true).map_err(StartError::Worker)?;
            let listener = UnixListener::from_std(listener).map_err(StartError::Worker)?;
            tasks.spawn(cancel::serve_processes(shared.clone(), listener));
        }
        let catalog = shared.settings().catalog.clone();
        let watcher = match catalog {
            Some(catalog) => {
                let url = catalog.url.clone();
                let watcher = follow(&shared, &topology, Watcher::start(catalog).await?, &mut tasks)?;
                tasks.spawn(crate::holds::follow(shared.clone(), url));
                Some(watcher)
            }
            None => {
                shared.replace_topology(Arc::new(topology))?;
                None
            }
        };
        let http_listen = shared.settings().http_listen;
        let http = match http_listen {
            Some(address) => Some(crate::http::serve(&shared, address, &mut tasks).await?),
            None => None,
        };
        tasks.spawn(upkeep(shared.clone()));
        let (accepting, receiver) = watch::channel(true);
        if let Some(catalog) = shared.settings().catalog.clone() {
            let id = crate::report::RouterId::new();
            tasks.spawn(crate::leases::run(shared.clone(), catalog.url.clone(), id.id.clone()));
            tasks.spawn(crate::report::run(shared.clone(), catalog.url, id, receiver.clone()));
        }
        if key.is_some()
            && let Some(means) = Means::of(&shared)
        {
            let (ready, others_told) = oneshot::channel();
            let first = means.come_first();
            tasks.spawn(elsewhere::follow(&shared, means, first.then_some(ready)));
            if first {
                // Who listens at other routers is to hear the first client too.
                let _ = tokio::time::timeout(KEY_TIMEOUT, others_told).await;
            }
        }
        let threads = worker::start(&shared, bound.listeners, &receiver)?;
        for address in &bound.tcp {
            tracing::info!(%address, workers, "listening");
        }
        for socket in &bound.unix {
            tracing::info!(path = %socket.path.display(), workers, "listening");
        }
        if let Some(address) = http {
            tracing::info!(%address, "listening for http");
        }
        Ok(Self {
            shared,
            accepting,
            threads,
            addresses: bound.tcp,
            unix: bound.unix,
            http,
            tasks,
            config,
            watcher,
        })
    }

    /// The addresses that clients can connect to.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The address of `/metrics`.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Reads the configuration file again. If anything is wrong with it, everything stays as it is.
    pub fn reload(&mut self) {
        let _ = self.try_reload();
    }

    /// The same, and says what was wrong.
    fn try_reload(&mut self) -> Result<(), String> {
        let Some(path) = &self.config else { return Err("there is no configuration file".to_owned()) };
        match self.reload_from(path) {
            Ok(()) => {
                self.shared.stats.reloads_succeeded.add(1);
                tracing::info!("configuration reloaded");
                Ok(())
            }
            Err(error) => {
                self.shared.stats.reloads_failed.add(1);
                tracing::error!(%error, "configuration not reloaded");
                Err(error.to_string())
            }
        }
    }

    fn reload_from(&self, path: &Path) -> Result<(), StartError> {
        let loaded = file::load(path).map_err(|e| StartError::Configuration(e.to_string()))?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let topology = self.watcher.is_none().then(|| {
            let mut topology = loaded.topology;
            topology.version = self.shared.topology().version + 1;
            Arc::new(topology)
        });
        self.shared.reload(loaded.settings, topology)
    }

    /// Ends what is left.
    pub async fn stop(mut self) {
        let _ = self.accepting.send(false);
        self.shared.command_all(Order::Terminate);
        let gone = async {
            while !self.shared.sessions.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, gone).await;
        for pool in self.shared.pools() {
            pool.close();
        }
        self.tasks.abort_all();
        drop(self.accepting);
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|t| drop(t.join())));
        let _ = tokio::time::timeout(Duration::from_secs(2), joined).await;
        drop(self.unix);
        tracing::info!("stopped");
    }
}

/// Waits until a process that is ending is asked to end otherwise.
async fn until_shutdown(asked: &mut mpsc::UnboundedReceiver<Control>) {
    while let Some(control) = asked.recv().await {
        if matches!(control, Control::Shutdown(_)) {
            return;
        }
    }
}

fn clock_begins() {
    crate::clock::tick();
}

/// What routers of one catalog, or peers, announce tenants by, so that listeners hear clients of all of them.
async fn notification_key(settings: &RouterSettings) -> Option<SecretString> {
    if let Some(key) = &settings.notification_key {
        return Some(key.clone());
    }
    let url = &settings.catalog.as_ref()?.url;
    let asked = tokio::time::timeout(KEY_TIMEOUT, switchyard_catalog::listening::notification_key(url)).await;
    let error = match asked {
        Ok(Ok(key)) => return Some(key),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    tracing::warn!(
        error,
        "no key for notifications: until this router starts again, LISTEN hears its own clients \
        only, and other routers' listeners do not hear these"
    );
    None
}

/// Takes over each topology that the catalog's watcher publishes.
fn follow(
    shared: &Arc<Shared>,
    from_file: &Topology,
    watcher: Watcher,
    tasks: &mut JoinSet<()>,
) -> Result<Watcher, StartError> {
    if !from_file.shards.is_empty() || !from_file.users.is_empty() {
        tracing::warn!("shards, tenants and users of the file are not used: they come from the catalog");
    }
    let mut topologies = watcher.subscribe();
    let first = topologies.borrow_and_update().clone();
    shared.replace_topology(first)?;
    let _ = shared.catalog_status.set(watcher.status());
    let registrar = watcher.registrar();
    let _ = shared.register_tenant.set(Box::new(move |tenant| registrar.register_tenant(tenant)));
    let shared = shared.clone();
    tasks.spawn(async move {
        while topologies.changed().await.is_ok() {
            let topology = topologies.borrow_and_update().clone();
            let version = topology.version;
            match shared.replace_topology(topology) {
                Ok(()) => tracing::info!(version, "topology changed"),
                Err(error) => tracing::error!(version, %error, "topology not taken over"),
            }
        }
    });
    Ok(watcher)
}

/// What must happen now and then, whoever is connected.
async fn upkeep(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(UPKEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        crate::clock::tick();
        for pool in shared.pools() {
            pool.upkeep(shared.stage() == Stage::HandedOver);
        }
        shared.measure_standbys();
        shared.console.tick(&shared);
        end_idle_sessions(&shared);
    }
}

/// Ends sessions that have been idle for too long, in a transaction or outside.
fn end_idle_sessions(shared: &Shared) {
    let limits = shared.settings().limits.clone();
    let (idle, in_transaction) = (limits.client_idle_timeout, limits.idle_in_transaction_timeout);
    let topology = shared.topology();
    for session in &shared.sessions {
        let (activity, seconds) = session.activity();
        let over = |limit: Duration| Duration::from_secs(seconds.into()) >= limit;
        match activity {
            Activity::Idle if !idle.is_zero() && over(idle) => session.command(Order::IdleTimeout),
            // Not within its first second, so that few are looked up.
            Activity::IdleInTransaction if seconds > 0 => {
                let tenant = topology.tenant(&session.who.tenant);
                let own = tenant.and_then(|tenant| tenant.limits.idle_in_transaction_timeout);
                if shorter(own, in_transaction).is_some_and(over) {
                    session.command(Order::IdleInTransactionTimeout);
                }
            }
            _ => {}
        }
    }
}
