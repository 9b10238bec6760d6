//! Connections of an operator to a shard.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use switchyard_catalog::Tls;
use switchyard_config::ShardName;
use switchyard_config::topology::{ServerSecret, Shard, SslMode};
use switchyard_config::url::shard_from_url;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode as Asked;
use tokio_postgres::{Client, Config};

use crate::SchemaError;

/// Deadline of connecting and logging in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A shard, as an operator reaches it.
#[derive(Clone)]
pub struct Target {
    /// Its name.
    pub name: ShardName,
    config: Config,
    tls: Tls,
}

/// A session on a shard. Its connection ends with it.
pub struct Session {
    client: Client,
    driver: JoinHandle<()>,
}

impl Target {
    /// Reads a URL, which has the form of a shard's.
    ///
    /// # Errors
    /// If the URL is not valid, or a file that it names is not. The error holds no secret.
    pub fn new(name: ShardName, url: &SecretString) -> Result<Self, SchemaError> {
        let shard = shard_from_url(&name, url.expose_secret())
            .map_err(|e| SchemaError::Address(format!("shard {name}: {e}")))?;
        Self::of(&shard)
    }

    /// The address and login that routers use.
    ///
    /// # Errors
    /// If a file that its TLS names is not valid, or its login holds keys and no password.
    pub fn of(shard: &Shard) -> Result<Self, SchemaError> {
        let mut config = Config::new();
        config
            .host(&shard.host)
            .port(shard.port)
            .dbname(&shard.database)
            .user(&shard.login.user)
            .ssl_mode(match shard.tls.mode {
                SslMode::Disable => Asked::Disable,
                SslMode::Allow | SslMode::Prefer => Asked::Prefer,
                SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Asked::Require,
            })
            .application_name("switchyard")
            .connect_timeout(CONNECT_TIMEOUT);
        match &shard.login.secret {
            ServerSecret::Password(password) => drop(config.password(password.expose_secret())),
            ServerSecret::None => {}
            ServerSecret::ScramKeys { .. } => {
                let text = format!("shard {}: its login has SCRAM keys and no password", shard.name);
                return Err(SchemaError::Address(text));
            }
        }
        let tls =
            Tls::new(&shard.tls).map_err(|e| SchemaError::Address(format!("shard {}: {e}", shard.name)))?;
        Ok(Self { name: shard.name.clone(), config, tls })
    }

    /// The role it logs in as.
    pub fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }

    /// Whether it has a password.
    pub fn has_password(&self) -> bool {
        self.config.get_password().is_some()
    }

    /// The same login by this password.
    pub fn use_password(&mut self, password: &SecretString) {
        self.config.password(password.expose_secret());
    }

    /// The same shard by another login.
    pub fn log_in_as(&mut self, user: &str, password: Option<&SecretString>) {
        self.config.user(user);
        if let Some(password) = password {
            self.config.password(password.expose_secret());
        }
    }

    /// Connects and logs in.
    ///
    /// # Errors
    /// If the shard cannot be reached within 10 s or refuses the login.
    pub async fn connect(&self) -> Result<Session, SchemaError> {
        let connecting = self.config.connect(self.tls.clone());
        let (client, connection) =
            tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| SchemaError::Timeout)??;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to a shard failed");
            }
        });
        // Whatever the role or the database has set, names mean what they say.
        client.batch_execute("SET search_path = pg_catalog, pg_temp").await?;
        Ok(Session { client, driver })
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
