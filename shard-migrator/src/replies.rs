//! What routers answer to the mover: one connection to the catalog hears it for all moves. Of many that listen, PostgreSQL
//! wakes each for every word.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use serde::Serialize;
use switchyard_catalog::CatalogError;
use switchyard_catalog::signals::{REPLIES, Reply, Signals, Voice};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::MoveError;
use crate::apply::Turn;

/// Who hears of a takeover of a move, by its name.
#[derive(Clone, Default)]
struct Listeners(Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Reply>>>>);

impl Listeners {
    fn all(&self) -> MutexGuard<'_, HashMap<String, mpsc::UnboundedSender<Reply>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands on what comes until the connection ends, and says so by saying nothing any more.
    async fn hand_on(self, mut signals: Signals) {
        while let Some(reply) = signals.next::<Reply>().await {
            // Behind the takeover stands which attempt it is.
            let of = reply.attempt.rsplit_once('.').map(|(of, _)| of.to_owned()).unwrap_or_default();
            if let Some(listener) = self.all().get(&of) {
                let _ = listener.send(reply);
            }
        }
        self.all().clear();
    }
}

struct Shared {
    voice: Voice,
    listeners: Listeners,
    hearing: JoinHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.hearing.abort();
    }
}

/// See the module.
pub(crate) struct Replies {
    catalog: SecretString,
    shared: tokio::sync::Mutex<Option<Shared>>,
}

impl Replies {
    /// Of routers that follow the catalog at this URL.
    pub(crate) fn new(catalog: SecretString) -> Self {
        Self { catalog, shared: tokio::sync::Mutex::default() }
    }

    /// Speaks to routers for a move, and hears what they answer to it.
    pub(crate) async fn to(&self, turn: &Turn) -> Result<Talk, MoveError> {
        let (tell, heard) = mpsc::unbounded_channel();
        let of = format!("{}.{}", turn.id, turn.term);
        let (voice, listeners) = self.open().await?;
        listeners.all().insert(of.clone(), tell);
        Ok(Talk { voice, heard, listeners, of })
    }

    /// Says something that nobody answers.
    pub(crate) async fn say(&self, channel: &str, message: &impl Serialize) -> Result<(), MoveError> {
        let (voice, _) = self.open().await?;
        Ok(voice.say(channel, message).await?)
    }

    /// The connection, and who hears by it.
    async fn open(&self) -> Result<(Voice, Listeners), MoveError> {
        let mut shared = self.shared.lock().await;
        let open = match shared.take().filter(|s| !s.hearing.is_finished() && !s.voice.is_closed()) {
            Some(open) => open,
            None => {
                let signals = Signals::connect(&self.catalog, "switchyard-mover-signals", REPLIES).await?;
                let (voice, listeners) = (signals.voice(), Listeners::default());
                let hearing = tokio::spawn(listeners.clone().hand_on(signals));
                Shared { voice, listeners, hearing }
            }
        };
        let of = (open.voice.clone(), open.listeners.clone());
        *shared = Some(open);
        Ok(of)
    }
}

/// A move's talk with the routers.
pub(crate) struct Talk {
    voice: Voice,
    heard: mpsc::UnboundedReceiver<Reply>,
    listeners: Listeners,
    of: String,
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.listeners.all().remove(&self.of);
    }
}

impl Talk {
    /// The next answer to this move, if it comes within `limit`.
    pub(crate) async fn next_within(&mut self, limit: Duration) -> Option<Reply> {
        match tokio::time::timeout(limit, self.heard.recv()).await {
            Ok(Some(reply)) => Some(reply),
            // The connection has ended: nothing will come, and who asks again is not to ask at once.
            Ok(None) => {
                tokio::time::sleep(limit).await;
                None
            }
            Err(_) => None,
        }
    }

    /// Says something.
    pub(crate) async fn say(&self, channel: &str, message: &impl Serialize) -> Result<(), CatalogError> {
        self.voice.say(channel, message).await
    }

    /// The routers that hear orders now, by the process ids of their backends.
    pub(crate) async fn routers(&self) -> Result<Vec<i32>, CatalogError> {
        self.voice.routers().await
    }
}
