//! Connections to the catalog.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::poll_fn;
use secrecy::{ExposeSecret, SecretString};
use switchyard_config::ShardName;
use switchyard_config::topology::{ServerSecret, SslMode};
use switchyard_config::url::shard_from_url;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode as Asked;
use tokio_postgres::{AsyncMessage, Client, Config};
use tracing::debug;

use crate::tls::Tls;
use crate::{CatalogError, SCHEMA};

/// Deadline of connecting and logging in.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Writers take turns. One that somebody blocks, by an open transaction in psql say, fails rather
/// than to hold up all that come after it.
const PATIENCE: &str =
    "-c lock_timeout=5s -c statement_timeout=30s -c idle_in_transaction_session_timeout=30s";

/// Where the catalog is, and how it is reached.
#[derive(Clone)]
pub struct Endpoint {
    /// Address, login, and what every connection has: the search path, and settings by which a
    /// dead peer is noticed within about 15 s.
    pub config: Config,
    /// TLS.
    pub tls: Tls,
}

impl Endpoint {
    /// Reads the catalog's URL, which has the form of a shard's, with libpq's modes of TLS.
    ///
    /// # Errors
    /// If the URL is not valid, or a file that it names is not. The error holds no secret.
    pub fn new(url: &SecretString, application_name: &str) -> Result<Self, CatalogError> {
        // The name is for errors about shards, of which there are none here.
        let name = ShardName::new("catalog").map_err(CatalogError::id("shard", "catalog"))?;
        let at = shard_from_url(&name, url.expose_secret()).map_err(CatalogError::Url)?;
        let mut config = Config::new();
        config
            .host(&at.host)
            .port(at.port)
            .dbname(&at.database)
            .user(&at.login.user)
            .ssl_mode(match at.tls.mode {
                SslMode::Disable => Asked::Disable,
                SslMode::Allow | SslMode::Prefer => Asked::Prefer,
                SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Asked::Require,
            })
            // `pg_temp` last, or temporary tables would come first.
            .options(format!("-c search_path={SCHEMA},pg_temp {PATIENCE}"))
            .application_name(application_name)
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(3))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(15));
        if let ServerSecret::Password(password) = &at.login.secret {
            config.password(password.expose_secret());
        }
        Ok(Self { config, tls: Tls::new(&at.tls)? })
    }
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

pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Connected, CatalogError> {
    let (client, mut connection) =
        tokio::time::timeout(CONNECT_TIMEOUT, endpoint.config.connect(endpoint.tls.clone()))
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
