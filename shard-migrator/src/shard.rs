//! How the mover reaches a shard.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use switchyard_catalog::Tls;
use switchyard_config::ShardName;
use switchyard_config::topology::{ServerTls, SslMode};
use tokio_postgres::config::SslMode as Asked;
use tokio_postgres::{Client, Config};

use crate::MoveError;

/// Deadline of connecting and logging in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of every connection of the mover: values are to read the same everywhere, and nothing may
/// run away.
const OPTIONS: &str = "-c search_path=pg_catalog -c DateStyle=ISO -c IntervalStyle=postgres -c TimeZone=UTC \
     -c extra_float_digits=3 -c bytea_output=hex -c row_security=off -c statement_timeout=0 \
     -c idle_in_transaction_session_timeout=0 -c synchronous_commit=on \
     -c default_transaction_isolation=read\\ committed";

/// A shard as the mover reaches it: with a role that sees all rows and may replicate.
#[derive(Clone)]
pub(crate) struct ShardAccess {
    /// Its name.
    pub name: ShardName,
    /// Host name, address, or directory of a unix socket.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The database that the tenant's rows are in.
    pub database: String,
    /// The role.
    pub user: String,
    /// Its password, if it needs one.
    pub password: Option<SecretString>,
    /// TLS toward it.
    pub tls: ServerTls,
}

impl std::fmt::Debug for ShardAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardAccess({}/{})", self.name, self.database)
    }
}

impl ShardAccess {
    /// The same shard, another database.
    pub(crate) fn of_database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }

    pub(crate) fn failed(&self) -> impl Fn(tokio_postgres::Error) -> MoveError + Copy + '_ {
        |error| MoveError::Shard { shard: self.name.clone(), error }
    }

    /// Connects. The connection ends when the client is dropped.
    pub(crate) async fn connect(&self) -> Result<Client, MoveError> {
        let mut config = Config::new();
        config
            .host(&self.host)
            .port(self.port)
            .dbname(&self.database)
            .user(&self.user)
            .application_name("switchyard-mover")
            .options(OPTIONS)
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(5))
            .tcp_user_timeout(Duration::from_secs(15))
            .ssl_mode(match self.tls.mode {
                SslMode::Disable => Asked::Disable,
                SslMode::Allow | SslMode::Prefer => Asked::Prefer,
                SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Asked::Require,
            });
        if let Some(password) = &self.password {
            config.password(password.expose_secret());
        }
        let tls = Tls::new(&self.tls).map_err(|e| MoveError::Invalid(format!("shard {}: {e}", self.name)))?;
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(tls));
        let connected = connecting.await.map_err(|_| MoveError::Stream {
            shard: self.name.clone(),
            reason: format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        })?;
        let (client, connection) = connected.map_err(self.failed())?;
        let shard = self.name.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%shard, %error, "a connection of the mover ended");
            }
        });
        Ok(client)
    }
}
