//! How routers reach each other to speak of who listens: by the catalog that they share or, without one, by
//! the addresses at which they serve clients.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use secrecy::SecretString;
use switchyard_catalog::CatalogError;
use switchyard_catalog::listening::{NAME, WORDS, Word};
use switchyard_catalog::signals::Signals;
use switchyard_wire::build;
use switchyard_wire::startup::{Startup, VERSION_3_0};
use tokio::sync::mpsc;

use crate::shared::Shared;

/// The parameter of a startup packet that brings a word of a peer, behind its signature and a dot.
const PARAMETER: &str = "switchyard.word";

/// Longest that a peer takes to hear a word.
const SAY: Duration = Duration::from_secs(1);

/// How others are reached.
pub(crate) enum Means {
    /// By the catalog at this URL.
    Catalog(SecretString),
    /// By the addresses of peers.
    Peers(Arc<Shared>),
}

impl Means {
    /// Those of this router, if there are any.
    pub(crate) fn of(shared: &Arc<Shared>) -> Option<Self> {
        let settings = shared.settings();
        match &settings.catalog {
            Some(catalog) => Some(Self::Catalog(catalog.url.clone())),
            None => settings.notification_key.is_some().then(|| Self::Peers(shared.clone())),
        }
    }

    /// Whether others can be heard before clients are served.
    pub(crate) fn come_first(&self) -> bool {
        matches!(self, Self::Catalog(_))
    }
}

/// Others cannot be heard, and why.
pub(super) struct Lost(pub(super) String);

impl From<CatalogError> for Lost {
    fn from(error: CatalogError) -> Self {
        Self(error.to_string())
    }
}

/// Where words of peers go.
pub(super) struct Inbox {
    put: mpsc::UnboundedSender<Word>,
    taken: Mutex<Option<mpsc::UnboundedReceiver<Word>>>,
}

impl Default for Inbox {
    fn default() -> Self {
        let (put, taken) = mpsc::unbounded_channel();
        Self { put, taken: Mutex::new(Some(taken)) }
    }
}

/// Whether a startup packet is a word of a peer, which is passed on then. Whoever cannot sign is a client like
/// others, with a setting of its own.
pub(crate) fn from_peer(shared: &Shared, startup: &Startup) -> bool {
    let Some(text) = startup.get(PARAMETER).filter(|_| shared.voices.is_shared) else { return false };
    let Some((signature, word)) = text.split_once('.') else { return false };
    if !shared.voices.key.signs_word(signature, word) {
        return false;
    }
    match serde_json::from_str(word) {
        // Who does not listen to peers has a catalog.
        Ok(word) => drop(shared.notifications.elsewhere.inbox.put.send(word)),
        Err(error) => tracing::warn!(%error, "a word of a peer is not understood"),
    }
    true
}

/// A connection to all other routers.
pub(super) enum Link {
    Catalog(Signals),
    Peers(Peers),
}

/// See [`Means::Peers`].
pub(super) struct Peers {
    shared: Arc<Shared>,
    heard: mpsc::UnboundedReceiver<Word>,
    /// Who has heard the last word.
    reached: HashSet<i32>,
    said: u64,
    /// Number of the last word of each router. Older ones have been said again by somebody else.
    last: HashMap<u64, u64>,
}

impl Link {
    pub(super) async fn connect(means: &Means) -> Result<Self, Lost> {
        match means {
            Means::Catalog(url) => Ok(Self::Catalog(Signals::connect(url, NAME, WORDS).await?)),
            Means::Peers(shared) => {
                let heard = shared.notifications.elsewhere.inbox.taken.lock().take();
                let heard = heard.ok_or_else(|| Lost("somebody else hears them".to_owned()))?;
                let (reached, last) = (HashSet::new(), HashMap::new());
                Ok(Self::Peers(Peers { shared: shared.clone(), heard, reached, said: 0, last }))
            }
        }
    }

    /// What this router is called by the others.
    pub(super) fn seat(&self) -> i32 {
        match self {
            Self::Catalog(signals) => signals.pid,
            Self::Peers(peers) => peers.shared.settings().id.into(),
        }
    }

    /// Those who hear what is said; of peers, those who have heard the last word.
    pub(super) async fn others(&self) -> Result<HashSet<i32>, Lost> {
        match self {
            Self::Catalog(signals) => {
                let all = signals.connected_as(NAME).await?;
                Ok(all.into_iter().filter(|pid| *pid != signals.pid).collect())
            }
            Self::Peers(peers) => Ok(peers.reached.clone()),
        }
    }

    /// Says something to all of them.
    pub(super) async fn say(&mut self, word: Word) -> Result<(), Lost> {
        match self {
            Self::Catalog(signals) => Ok(signals.say(WORDS, &word).await?),
            Self::Peers(peers) => {
                peers.say(word).await;
                Ok(())
            }
        }
    }

    /// The next that is said by anybody.
    pub(super) async fn next(&mut self) -> Result<Word, Lost> {
        let word = match self {
            Self::Catalog(signals) => signals.next().await,
            Self::Peers(peers) => peers.next().await,
        };
        word.ok_or_else(|| Lost("it ended".to_owned()))
    }
}

impl Peers {
    async fn say(&mut self, word: Word) {
        self.said += 1;
        let text = serde_json::to_string(&Word { number: self.said, ..word }).unwrap_or_default();
        let value = format!("{}.{text}", self.shared.voices.key.of_word(&text));
        let mut packet = Vec::new();
        if build::startup(&mut packet, VERSION_3_0, &[("user", "switchyard"), (PARAMETER, &value)]).is_err() {
            return;
        }
        let peers = self.shared.settings().peers.clone();
        let each = peers.iter().map(|peer| {
            let packet = &packet;
            async move {
                let said = tokio::time::timeout(SAY, crate::cancel::relay::to_peer(peer, packet)).await;
                matches!(said, Ok(Ok(()))).then_some(i32::from(peer.id))
            }
        });
        self.reached = join_all(each).await.into_iter().flatten().collect();
    }

    async fn next(&mut self) -> Option<Word> {
        loop {
            let word = self.heard.recv().await?;
            let last = self.last.entry(word.from).or_default();
            if word.number > *last {
                *last = word.number;
                return Some(word);
            }
        }
    }
}
