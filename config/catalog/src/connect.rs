//! Connections to the catalog.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::poll_fn;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};
use tracing::debug;

use crate::{CatalogError, SCHEMA};

/// Deadline of connecting and logging in.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the catalog's URL and adds what every connection to it has: the search path, and
/// settings by which a dead peer is noticed within about 15 s.
///
/// # Errors
/// If the URL is not one of `tokio_postgres`. The error says nothing of its text, as that holds
/// the password.
pub fn options(url: &SecretString, application_name: &str) -> Result<Config, CatalogError> {
    let mut config: Config = url.expose_secret().parse().map_err(|_| CatalogError::Url)?;
    // `pg_temp` last, or temporary tables would come first.
    let path = format!("-c search_path={SCHEMA},pg_temp");
    let options = match config.get_options() {
        Some(given) => format!("{given} {path}"),
        None => path,
    };
    config
        .options(options)
        .application_name(application_name)
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives_idle(Duration::from_secs(5))
        .keepalives_interval(Duration::from_secs(3))
        .keepalives_retries(3)
        .tcp_user_timeout(Duration::from_secs(15));
    Ok(config)
}

/// A client, and the task that drives its connection and passes on notifications.
pub(crate) struct Connected {
    pub(crate) client: Client,
    pub(crate) notified: Arc<Notify>,
    driver: JoinHandle<()>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pub(crate) async fn connect(config: &Config) -> Result<Connected, CatalogError> {
    let (client, mut connection) = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls))
        .await
        .map_err(|_| CatalogError::Timeout)??;
    let notified = Arc::new(Notify::new());
    let notify = notified.clone();
    let driver = tokio::spawn(async move {
        loop {
            match poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(_))) => notify.notify_one(),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    debug!(%error, "the connection to the catalog failed");
                    break;
                }
                None => break,
            }
        }
        // Dropped here, so that who is woken finds the client closed.
        drop(connection);
        notify.notify_one();
    });
    Ok(Connected { client, notified, driver })
}
