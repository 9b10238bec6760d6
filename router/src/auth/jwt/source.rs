//! Where keys come from, and what is kept of them.
//!
//! A file is looked at on every login and read again when it is another one. An address is fetched
//! when its keys are old, in the background, or when a token is perhaps signed by a newer key, in which case
//! the login waits. What was held stays until something better is there: a fetch that fails changes nothing.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use switchyard_config::topology::{JwtIssuer, JwtKeys};
use tokio::sync::watch;
use tracing::{info, warn};

use super::fetch::{self, Endpoint};
use super::jwks::{self, Jwks};
use super::keys::{self, KeySet};
use super::seconds;

/// Most fetches at a time over all addresses, so that logins that name many tenants cannot start a
/// thread for each.
const MAX_FETCHES: usize = 8;

/// How many files and addresses are kept before those that nobody asks for are forgotten.
const MAX_SOURCES: usize = 1024;

/// After this time without a question, a file or an address may be forgotten.
const FORGET_AFTER: Duration = seconds(3600);

/// How often an address may be asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Least time between two fetches while keys are held.
    pub(super) again: Duration,
    /// The same, while there are none.
    pub(super) first: Duration,
    /// Time for one fetch.
    pub(super) timeout: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { again: seconds(10), first: seconds(1), timeout: seconds(5) }
    }
}

/// Keys, and where to ask for newer ones, if that makes sense.
pub(super) struct Held {
    pub(super) keys: Arc<KeySet>,
    pub(super) source: Option<Arc<UrlSource>>,
}

/// All files and addresses of a process.
#[derive(Debug)]
pub(super) struct Sources {
    pace: Pace,
    fetches: Arc<AtomicUsize>,
    known: Mutex<HashMap<Place, Known>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    File(PathBuf),
    Url { url: String, ca: Option<PathBuf> },
}

#[derive(Debug)]
struct Known {
    source: Source,
    asked: Instant,
}

#[derive(Debug, Clone)]
enum Source {
    File(Arc<FileSource>),
    Url(Arc<UrlSource>),
}

impl Sources {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, fetches: Arc::default(), known: Mutex::default() }
    }

    /// The keys of `issuer`, waiting for them if there are none yet.
    pub(super) async fn keys(&self, issuer: &JwtIssuer) -> Option<Held> {
        match &issuer.keys {
            JwtKeys::Static(list) => Some(Held { keys: keys::usable(list).into(), source: None }),
            JwtKeys::File(path) => match self.source(Place::File(path.clone())) {
                Source::File(file) => Some(Held { keys: file.keys()?, source: None }),
                Source::Url(_) => None,
            },
            JwtKeys::Url { url, refresh, ca } => {
                match self.source(Place::Url { url: url.clone(), ca: ca.clone() }) {
                    Source::Url(url) => Some(Held { keys: url.keys(*refresh).await?, source: Some(url) }),
                    Source::File(_) => None,
                }
            }
        }
    }

    fn source(&self, place: Place) -> Source {
        let now = Instant::now();
        let mut known = self.known.lock();
        if let Some(found) = known.get_mut(&place) {
            found.asked = now;
            return found.source.clone();
        }
        if known.len() >= MAX_SOURCES {
            known.retain(|_, known| now.duration_since(known.asked) < FORGET_AFTER);
        }
        let source = match &place {
            Place::File(path) => Source::File(Arc::new(FileSource::new(path.clone()))),
            Place::Url { url, ca } => {
                let fetches = self.fetches.clone();
                Source::Url(Arc::new(UrlSource::new(url, ca.clone(), self.pace, fetches)))
            }
        };
        known.insert(place, Known { source: source.clone(), asked: now });
        source
    }
}

/// A file, and what it held when it was last read.
#[derive(Debug)]
struct FileSource {
    path: PathBuf,
    state: Mutex<FileState>,
}

#[derive(Debug, Default)]
struct FileState {
    /// What was last looked at, good or bad; none if it could not even be opened.
    stamp: Option<Stamp>,
    /// That it could not be opened has been logged.
    missing: bool,
    keys: Option<Arc<KeySet>>,
}

/// Tells one version of a file from another: it changes with a rename over it and with a write into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl FileSource {
    fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::default() }
    }

    fn keys(&self) -> Option<Arc<KeySet>> {
        let mut state = self.state.lock();
        let stamp = match std::fs::metadata(&self.path) {
            Ok(file) => Stamp::from(&file),
            Err(error) => {
                if !std::mem::replace(&mut state.missing, true) {
                    warn!(file = %self.path.display(), %error, "cannot read jwks file, keeping the keys held");
                }
                return state.keys.clone();
            }
        };
        state.missing = false;
        if state.stamp != Some(stamp) {
            match read(&self.path) {
                Ok((stamp, jwks)) => {
                    info!(
                        file = %self.path.display(), keys = jwks.keys.len(), ignored = jwks.ignored,
                        "read jwks file"
                    );
                    state.stamp = Some(stamp);
                    state.keys = Some(jwks.keys.into());
                }
                Err(error) => {
                    // Not read again before it changes, so that it is logged once.
                    state.stamp = Some(stamp);
                    warn!(file = %self.path.display(), %error, "cannot read jwks file, keeping the keys held");
                }
            }
        }
        state.keys.clone()
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("not a regular file")]
    NotAFile,
    #[error(transparent)]
    Jwks(#[from] jwks::JwksError),
}

/// The stamp is that of the open file before it is read: a write in between makes it another one.
fn read(path: &Path) -> Result<(Stamp, Jwks), ReadError> {
    // Opening a pipe would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(ReadError::NotAFile);
    }
    let file = File::open(path)?;
    let stamp = Stamp::from(&file.metadata()?);
    let mut document = Vec::new();
    file.take(jwks::MAX_BYTES as u64 + 1).read_to_end(&mut document)?;
    Ok((stamp, jwks::parse(&document)?))
}

/// An address, and what it last answered.
#[derive(Debug)]
pub(super) struct UrlSource {
    /// The address, or why it is none: logged at each attempt to use it, as if it did not answer.
    endpoint: Result<Endpoint, fetch::FetchError>,
    ca: Option<PathBuf>,
    pace: Pace,
    /// Fetches under way, of all addresses.
    fetches: Arc<AtomicUsize>,
    state: Mutex<UrlState>,
    /// Counts the fetches that have ended.
    ended: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct UrlState {
    keys: Option<Arc<KeySet>>,
    /// When `keys` came.
    fetched: Option<Instant>,
    /// When the last fetch began.
    began: Option<Instant>,
    /// A fetch is under way.
    fetching: bool,
}

impl UrlSource {
    fn new(url: &str, ca: Option<PathBuf>, pace: Pace, fetches: Arc<AtomicUsize>) -> Self {
        Self {
            endpoint: Endpoint::parse(url),
            ca,
            pace,
            fetches,
            state: Mutex::default(),
            ended: watch::Sender::new(0),
        }
    }

    /// The keys held. If they are older than `refresh`, others are fetched for those who come later; if there are
    /// none, those fetched now.
    async fn keys(self: &Arc<Self>, refresh: Duration) -> Option<Arc<KeySet>> {
        let end = {
            let mut state = self.state.lock();
            if state.fetched.is_none_or(|at| at.elapsed() >= refresh) {
                self.start(&mut state);
            }
            if state.keys.is_some() || !state.fetching {
                return state.keys.clone();
            }
            self.ended.subscribe()
        };
        wait(end).await;
        self.state.lock().keys.clone()
    }

    /// Keys that came after `old`, which may be fetched for the purpose.
    pub(super) async fn newer_than(self: &Arc<Self>, old: &Arc<KeySet>) -> Option<Arc<KeySet>> {
        let newer = |state: &UrlState| state.keys.clone().filter(|keys| !Arc::ptr_eq(keys, old));
        let end = {
            let mut state = self.state.lock();
            if let Some(keys) = newer(&state) {
                return Some(keys);
            }
            self.start(&mut state);
            if !state.fetching {
                return None;
            }
            self.ended.subscribe()
        };
        wait(end).await;
        newer(&self.state.lock())
    }

    /// Starts a fetch, unless one is under way or was of late.
    ///
    /// It runs on a thread of its own: the runtime of the login that needs it may end, and the client may go
    /// away, without taking the keys from the others who wait for them.
    fn start(self: &Arc<Self>, state: &mut UrlState) {
        let pause = if state.keys.is_some() { self.pace.again } else { self.pace.first };
        if state.fetching || state.began.is_some_and(|began| began.elapsed() < pause) {
            return;
        }
        if self.fetches.fetch_add(1, Ordering::Relaxed) >= MAX_FETCHES {
            self.fetches.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        state.began = Some(Instant::now());
        state.fetching = true;
        let source = self.clone();
        let thread = std::thread::Builder::new().name("jwks".to_owned());
        if let Err(error) = thread.spawn(move || Fetching(source).run()) {
            warn!(%error, "cannot start a thread to fetch jwks");
            state.fetching = false;
            self.fetches.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Waits for the fetch that is under way to end, however it does.
async fn wait(mut end: watch::Receiver<u64>) {
    let _ = end.changed().await;
}

/// A fetch under way; it ends when this is dropped, also by a panic.
struct Fetching(Arc<UrlSource>);

impl Fetching {
    fn run(self) {
        let source = &self.0;
        let name = source.endpoint.as_ref().map_or_else(|_| "invalid".to_owned(), Endpoint::to_string);
        match self.fetch() {
            Ok(jwks) => {
                info!(url = name, keys = jwks.keys.len(), ignored = jwks.ignored, "fetched jwks");
                let mut state = source.state.lock();
                state.keys = Some(jwks.keys.into());
                state.fetched = Some(Instant::now());
            }
            Err(error) => warn!(url = name, %error, "cannot fetch jwks, keeping the keys held"),
        }
    }

    fn fetch(&self) -> Result<Jwks, fetch::FetchError> {
        let source = &self.0;
        let endpoint = source.endpoint.as_ref().map_err(Clone::clone)?;
        let document = fetch::fetch(endpoint, source.ca.as_deref(), source.pace.timeout)?;
        Ok(jwks::parse(&document)?)
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.0.fetches.fetch_sub(1, Ordering::Relaxed);
        self.0.state.lock().fetching = false;
        self.0.ended.send_modify(|ended| *ended += 1);
    }
}
