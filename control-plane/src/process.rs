//! The control plane as a process.

use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use switchyard_catalog::disk::write_private;
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::api::{self, App};
use crate::credentials::{NoRandomness, new_token};
use crate::feed::Feed;
use crate::listen::{Listener, Peer, acceptor};
use crate::metrics::Metrics;
use crate::oidc::Oidc;
use crate::settings::Settings;
use crate::store::passwords::Administrator;
use crate::store::{Store, StoreError};
use crate::vault::Keys;
use crate::{jobs, leader, runner};

/// How long requests that are under way may take after we are told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Fewest characters of a token that somebody wrote into the bootstrap file.
const MIN_TOKEN_CHARS: usize = 16;

/// Why the control plane ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The catalog.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address.
    #[error("cannot listen on {0}: {1}")]
    Listen(std::net::SocketAddr, io::Error),
    /// Its certificate.
    #[error("tls: {0}")]
    Tls(io::Error),
    /// The file of keys.
    #[error("{0}: {1}")]
    KeysFile(PathBuf, io::Error),
    /// The file of the first token.
    #[error("{0}: {1}")]
    TokenFile(PathBuf, io::Error),
    /// The file holds no good token.
    #[error("{0}: a token must be at least {MIN_TOKEN_CHARS} characters without spaces")]
    WeakToken(PathBuf),
    /// The system gives no randomness to make a token of.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The listener failed.
    #[error("the listener failed: {0}")]
    Serve(io::Error),
}

/// Brings the catalog up to date, calls `up_to_date`, and serves until `stop` is done; then ends requests in good
/// order.
///
/// # Errors
/// If the catalog cannot be opened, or the address not be listened on.
pub async fn run(
    settings: Settings,
    up_to_date: impl FnOnce(),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), StartError> {
    // First of all, so that an address in use is told before anything is changed.
    let listener =
        TcpListener::bind(settings.listen).await.map_err(|e| StartError::Listen(settings.listen, e))?;
    let address = listener.local_addr().map_err(StartError::Serve)?;
    let tls = match &settings.tls {
        Some(tls) => Some(acceptor(&tls.cert, &tls.key).map_err(StartError::Tls)?),
        None => None,
    };
    if !address.ip().is_loopback() && tls.is_none() {
        warn!(%address, "serving without TLS beyond loopback: put something that adds it in front");
    }
    let store = Store::open(&settings.catalog_url).await?.with_keys(keys(&settings)?);
    store.seal_passwords().await?;
    up_to_date();
    if let Some(path) = &settings.bootstrap_token_file {
        store.set_bootstrap_token(&bootstrap_token(path)?).await?;
    }
    let app = App {
        store,
        metrics: Arc::new(Metrics::new()?),
        client_url: Arc::new(settings.client_url),
        open_metrics: settings.open_metrics,
        oidc: settings.oidc.map(|oidc| Arc::new(Oidc::new(oidc))),
        feed: Feed::start(&settings.catalog_url).map_err(StoreError::from)?,
        delete_grace: settings.delete_grace,
    };
    let name = settings.name.unwrap_or_else(own_name);
    let term = leader::start(&settings.catalog_url, name).map_err(StoreError::from)?;
    tokio::spawn(jobs::run(app.store.clone(), term.clone(), settings.measure_storage));
    tokio::spawn(runner::run(app.store.clone(), term, app.feed.clone()));
    let listener = Listener::new(listener, tls).map_err(StartError::Serve)?;
    info!(%address, "control plane ready");

    let (told, mut stopping) = tokio::sync::watch::channel(());
    let mut also_stopping = stopping.clone();
    let service = api::router(app).into_make_service_with_connect_info::<Peer>();
    let serve = axum::serve(listener, service).with_graceful_shutdown(async move {
        let _ = also_stopping.changed().await;
    });
    tokio::spawn(async move {
        stop.await;
        info!("stopping");
        let _ = told.send(());
    });
    tokio::select! {
        served = serve => served.map_err(StartError::Serve),
        // A request that does not end must not keep the process.
        () = async { let _ = stopping.changed().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    }
}

fn keys(settings: &Settings) -> Result<Option<Keys>, StartError> {
    let load = |path: &PathBuf| Keys::load_or_make(path).map_err(|e| StartError::KeysFile(path.clone(), e));
    settings.keys_file.as_ref().map(load).transpose()
}

/// Opens the passwords of movers, which the catalog has sealed.
#[derive(Debug, Clone)]
pub struct Opener(Keys);

impl Opener {
    /// The opener with the keys of the control plane, if it has any; makes their file if it does not exist.
    ///
    /// # Errors
    /// If the file cannot be read or made.
    pub fn of(settings: &Settings) -> Result<Option<Self>, StartError> {
        Ok(keys(settings)?.map(Self))
    }

    /// The password of the mover on a shard; none if the key is missing or the text was changed.
    pub fn open(&self, shard: &str, key: &str, sealed: &[u8]) -> Option<SecretString> {
        Administrator::Moves.open(&self.0, shard, key, sealed)
    }
}

/// Host name and process id.
fn own_name() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}", host.trim(), std::process::id())
}

/// The token in the file, or a new one, which is written there.
fn bootstrap_token(path: &Path) -> Result<SecretString, StartError> {
    let failed = |e| StartError::TokenFile(path.to_owned(), e);
    match fs::read_to_string(path) {
        Ok(text) => {
            let token = text.trim();
            if token.len() < MIN_TOKEN_CHARS || token.contains(char::is_whitespace) {
                return Err(StartError::WeakToken(path.to_owned()));
            }
            Ok(SecretString::from(token))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let token = new_token()?;
            write_private(path, format!("{}\n", token.expose_secret()).as_bytes()).map_err(failed)?;
            info!(path = %path.display(), "wrote an administrator's token");
            Ok(token)
        }
        Err(e) => Err(failed(e)),
    }
}
