//! TLS toward shards: we are the client, by libpq's rules.

use std::sync::Arc;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use switchyard_config::topology::{ServerTls, SslMode};
use switchyard_wire::tls_endpoint::server_end_point;
use tokio_rustls::TlsConnector;

use super::TlsError;

/// How a shard is connected to, made from files once.
#[derive(Clone)]
pub struct ShardTlsContext {
    mode: SslMode,
    /// None with `disable`.
    connector: Option<TlsConnector>,
}

impl std::fmt::Debug for ShardTlsContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardTlsContext").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl ShardTlsContext {
    /// Reads the files that `settings` names; none with `disable`.
    ///
    /// # Errors
    /// If a file is unreadable, if our certificate and key do not fit, or if the mode needs authorities and
    /// there are none.
    pub fn load(settings: &ServerTls) -> Result<Self, TlsError> {
        let config = switchyard_tls::client_config(settings)?;
        let connector = config.map(|config| TlsConnector::from(Arc::new(config)));
        Ok(Self { mode: settings.mode, connector })
    }

    /// Does the handshake; none with [`SslMode::Disable`]. To be given the bare socket, from which exactly the `S` that
    /// answers an `SSLRequest` has been read: more is not of the shard (CVE-2021-23222).
    pub fn connector(&self) -> Option<TlsConnector> {
        self.connector.clone()
    }

    /// The mode, for what happens before and after a handshake: see [`Self::tls_first`] and [`Self::plain_allowed`].
    pub fn mode(&self) -> SslMode {
        self.mode
    }

    /// Whether TLS is asked for in the first attempt. With `allow` it is so only after the shard has refused
    /// a plain connection.
    pub fn tls_first(&self) -> bool {
        !matches!(self.mode, SslMode::Disable | SslMode::Allow)
    }

    /// Whether a plain connection will do: with `prefer` after the shard has answered `N` or TLS has failed.
    pub fn plain_allowed(&self) -> bool {
        matches!(self.mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer)
    }

    /// The name that `host` goes by in the handshake, also sent to the shard if it is not an address.
    ///
    /// # Errors
    /// With `verify-full`, if a certificate cannot name `host`.
    pub fn server_name(&self, host: &str) -> Result<ServerName<'static>, TlsError> {
        switchyard_tls::server_name(self.mode, host)
    }
}

/// The `tls-server-end-point` of the shard's certificate, for SCRAM-SHA-256-PLUS toward it. None before the
/// handshake is over, and for certificates that have none (Ed25519).
pub fn peer_end_point_hash(connection: &ClientConnection) -> Option<Vec<u8>> {
    server_end_point(connection.peer_certificates()?.first()?)
}
