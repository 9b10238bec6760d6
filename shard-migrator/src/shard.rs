//! How the mover reaches a shard.

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use switchyard_catalog::Tls;
use switchyard_config::ShardName;
use switchyard_config::topology::{ServerTls, SslMode};
use tokio_postgres::config::SslMode as Asked;
use tokio_postgres::{Client, Config};

use crate::MoveError;
use crate::scope::literal;
use crate::sessions::{Session, Sessions, UNUSED};

/// Deadline of connecting and logging in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of every connection of the mover: values are to read the same everywhere, and nothing may
/// run away.
const OPTIONS: &str = "-c search_path=pg_catalog -c DateStyle=ISO -c IntervalStyle=postgres -c TimeZone=UTC \
     -c extra_float_digits=3 -c bytea_output=hex -c row_security=off -c statement_timeout=0 \
     -c idle_in_transaction_session_timeout=0 -c synchronous_commit=on \
     -c default_transaction_isolation=read\\ committed";

/// When a peer that answers nothing counts as gone: its system is asked after so much silence, so often, and has so long
/// to take what was sent. Less than the time for which routers wait for who takes over from a mover.
const SILENCE: Duration = Duration::from_secs(2);
const PROBES: (Duration, u32) = (Duration::from_secs(1), 3);
const UNSENT: Duration = Duration::from_secs(5);

/// Name of the mover's sessions, in front of the move and the takeover that one is for.
pub(crate) const SESSION: &str = "switchyard-mover";

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
    /// The shard's own database.
    pub home: String,
    /// The role.
    pub user: String,
    /// Its password, if it needs one.
    pub password: Option<SecretString>,
    /// TLS toward it.
    pub tls: ServerTls,
    /// `application_name` of its sessions: whoever takes the move over ends those of before by it.
    pub session: String,
    /// Where sessions come from that are open already.
    pub sessions: Arc<Sessions>,
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

    /// It does not say what it should.
    pub(crate) fn silent(&self, reason: &str) -> MoveError {
        MoveError::Stream { shard: self.name.clone(), reason: reason.to_owned() }
    }

    /// A session, in the move's name. It is another's when it is dropped.
    pub(crate) async fn connect(&self) -> Result<Session, MoveError> {
        let key = format!("{} {} {} {} {}", self.name, self.host, self.port, self.database, self.user);
        let name = format!("SET application_name = {}; SET idle_session_timeout = 0", literal(&self.session));
        while let Some(session) = self.sessions.take(&key) {
            let named = tokio::time::timeout(CONNECT_TIMEOUT, session.batch_execute(&name)).await;
            match named.map_err(|_| self.no_answer())? {
                Ok(()) => return Ok(session),
                // It has ended meanwhile.
                Err(error) => {
                    tracing::debug!(shard = %self.name, %error, "a session of the mover was not there")
                }
            }
        }
        let options = format!("{OPTIONS} -c idle_session_timeout={UNUSED}");
        let session = self.sessions.opened(self.open(&options).await?, key);
        crate::fault::point("session opened");
        session.batch_execute(&name).await.map_err(self.failed())?;
        Ok(session)
    }

    fn no_answer(&self) -> MoveError {
        self.silent(&format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))
    }

    /// A connection of one's own. It ends when the client is dropped.
    pub(crate) async fn connect_alone(&self) -> Result<Client, MoveError> {
        self.open(OPTIONS).await
    }

    async fn open(&self, options: &str) -> Result<Client, MoveError> {
        let mut config = Config::new();
        config
            .host(&self.host)
            .port(self.port)
            .dbname(&self.database)
            .user(&self.user)
            .application_name(SESSION)
            .options(options)
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(SILENCE)
            .keepalives_interval(PROBES.0)
            .keepalives_retries(PROBES.1)
            .tcp_user_timeout(UNSENT)
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
        let connected = connecting.await.map_err(|_| self.no_answer())?;
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
