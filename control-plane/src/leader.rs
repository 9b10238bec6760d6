//! Which of several control planes does what only one may do.
//!
//! Whoever holds an advisory lock in the catalog, on a connection of its own, leads. The lock goes
//! with the connection, so a control plane that dies or is cut off stops leading as far as the
//! catalog can see; and because it may not know, each leader has a term, which is higher than that
//! of all before, and what it writes names it.

use std::time::Duration;

use secrecy::SecretString;
use switchyard_catalog::{CatalogError, Endpoint};
use tokio::sync::watch;
use tokio_postgres::Client;

/// How often somebody who does not lead tries to, and somebody who does makes sure.
const BEAT: Duration = Duration::from_secs(1);

/// A leader that hears nothing of the catalog for this long takes itself for none.
const PATIENCE: Duration = Duration::from_secs(3);

/// The term of this process, while it leads.
pub(crate) type Term = watch::Receiver<Option<i64>>;

/// Keeps trying to lead, under this name, until everybody has dropped the term.
pub(crate) fn start(url: &SecretString, name: String) -> Result<Term, CatalogError> {
    let endpoint = Endpoint::new(url, "switchyard-leader")?;
    let (tell, term) = watch::channel(None);
    tokio::spawn(async move {
        while !tell.is_closed() {
            if let Err(error) = lead(&endpoint, &name, &tell).await {
                tracing::debug!(%error, "not leading");
            }
            if tell.send_replace(None).is_some() {
                tracing::warn!("not leading any more");
            }
            tokio::time::sleep(BEAT).await;
        }
    });
    Ok(term)
}

async fn lead(
    endpoint: &Endpoint,
    name: &str,
    tell: &watch::Sender<Option<i64>>,
) -> Result<(), CatalogError> {
    let (client, connection) = endpoint.config.connect(endpoint.tls.clone()).await?;
    let driver = tokio::spawn(connection);
    let led = beat(&client, name, tell).await;
    driver.abort();
    led
}

async fn beat(client: &Client, name: &str, tell: &watch::Sender<Option<i64>>) -> Result<(), CatalogError> {
    let mut leads = false;
    while !tell.is_closed() {
        let step = async {
            if leads {
                client.query_one("SELECT 1", &[]).await?;
                return Ok(None);
            }
            let got = client.query_one("SELECT pg_try_advisory_lock(leader_lock())", &[]).await?;
            if !got.get::<_, bool>(0) {
                return Ok(None);
            }
            let sql = "UPDATE leader SET term = term + 1, name = $1, since = now() RETURNING term";
            Ok(Some(client.query_one(sql, &[&name]).await?.get::<_, i64>(0)))
        };
        match tokio::time::timeout(PATIENCE, step).await {
            Err(_) => return Err(CatalogError::Timeout),
            Ok(Err(error)) => return Err(CatalogError::Postgres(error)),
            Ok(Ok(Some(term))) => {
                tracing::info!(term, "leading");
                leads = true;
                tell.send_replace(Some(term));
            }
            Ok(Ok(None)) => {}
        }
        tokio::time::sleep(BEAT).await;
    }
    Ok(())
}
