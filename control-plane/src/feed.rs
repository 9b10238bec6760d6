//! Wakes those who wait for something to happen in the catalog.

use std::time::Duration;

use futures_util::future::poll_fn;
use secrecy::SecretString;
use switchyard_catalog::{CatalogError, Endpoint};
use tokio::sync::watch;
use tokio_postgres::AsyncMessage;

/// Channel of events, as the catalog's triggers name it.
const EVENTS: &str = "switchyard_events";

/// Channel of operations that may be due.
pub(crate) const OPERATIONS: &str = "switchyard_operations";

/// Pause before a connection that was lost is made again.
const PAUSE: Duration = Duration::from_secs(1);

/// Counts what was announced: who waits for a change of it looks into the catalog then. Whoever
/// waits looks now and then anyway, as an announcement may be lost with its connection.
#[derive(Clone)]
pub(crate) struct Feed {
    events: watch::Receiver<u64>,
    operations: watch::Receiver<u64>,
}

impl Feed {
    /// Listens until everybody has dropped it.
    pub(crate) fn start(url: &SecretString) -> Result<Self, CatalogError> {
        let endpoint = Endpoint::new(url, "switchyard-feed")?;
        let (tell_events, events) = watch::channel(0);
        let (tell_operations, operations) = watch::channel(0);
        tokio::spawn(async move {
            while !tell_events.is_closed() {
                if let Err(error) = listen(&endpoint, &tell_events, &tell_operations).await {
                    tracing::debug!(%error, "the catalog's announcements are not heard for now");
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Ok(Self { events, operations })
    }

    /// Done at the next event, or after `at_most`.
    pub(crate) async fn event(&mut self, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.events.changed()).await;
    }

    /// Done when an operation may be due, or after `at_most`.
    pub(crate) async fn operation(&mut self, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.operations.changed()).await;
    }

    /// Takes everything up to now as seen.
    pub(crate) fn mark_seen(&mut self) {
        self.events.mark_unchanged();
    }
}

async fn listen(
    endpoint: &Endpoint,
    events: &watch::Sender<u64>,
    operations: &watch::Sender<u64>,
) -> Result<(), CatalogError> {
    let (client, mut connection) = endpoint.config.connect(endpoint.tls.clone()).await?;
    let (heard, mut next) = tokio::sync::mpsc::unbounded_channel();
    let driver = tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(n) = message
                && heard.send(n.channel() == OPERATIONS).is_err()
            {
                break;
            }
        }
    });
    client.batch_execute(&format!("LISTEN {EVENTS}; LISTEN {OPERATIONS}")).await?;
    // What happened before that may have been missed.
    events.send_modify(|n| *n += 1);
    operations.send_modify(|n| *n += 1);
    while let Some(is_operation) = next.recv().await {
        let tell = if is_operation { operations } else { events };
        tell.send_modify(|n| *n += 1);
        if events.is_closed() {
            break;
        }
    }
    driver.abort();
    Ok(())
}
