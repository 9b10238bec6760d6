//! TLS toward shards: we are the client, by libpq's rules.

use std::net::Ipv4Addr;
use std::sync::Arc;

use rustls::ClientConnection;
use rustls::client::Resumption;
use rustls::pki_types::{IpAddr, ServerName};
use switchyard_config::topology::{ServerTls, SslMode};
use switchyard_wire::tls_endpoint::server_end_point;
use tokio_rustls::TlsConnector;

use super::verifier::{ShardVerifier, Trusted};
use super::{ALPN_POSTGRESQL, TlsError, certificates, certified_key, client_builder, provider, root_store};

/// How a shard is connected to, made from files once.
///
/// As in libpq, a `root_cert` is never given in vain: with it, the chain is verified in `allow`, `prefer` and
/// `require` too (`initialize_SSL`, src/interfaces/libpq/fe-secure-openssl.c).
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
        let mode = settings.mode;
        if mode == SslMode::Disable {
            return Ok(Self { mode, connector: None });
        }
        let verifier = ShardVerifier {
            trusted: trusted(settings)?,
            check_name: mode == SslMode::VerifyFull,
            algorithms: provider().signature_verification_algorithms,
        };
        let builder = client_builder()?.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match (&settings.cert, &settings.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => builder.with_client_cert_resolver(Arc::new(certified_key(cert, key)?)),
            (Some(_), None) => return Err(TlsError::Missing("the key of its certificate")),
            (None, Some(_)) => return Err(TlsError::Missing("the certificate of its key")),
        };
        // Since PostgreSQL 17, libpq says so after an SSLRequest too; older servers do not look.
        config.alpn_protocols = vec![ALPN_POSTGRESQL.to_vec()];
        // PostgreSQL never resumes a session.
        config.resumption = Resumption::disabled();
        Ok(Self { mode, connector: Some(TlsConnector::from(Arc::new(config))) })
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
        match ServerName::try_from(host.to_owned()) {
            Ok(name) => Ok(name),
            Err(_) if self.mode == SslMode::VerifyFull => Err(TlsError::HostName(host.to_owned())),
            // The name is not looked at, and an address is not sent.
            Err(_) => Ok(ServerName::IpAddress(IpAddr::from(std::net::IpAddr::from(Ipv4Addr::UNSPECIFIED)))),
        }
    }
}

/// The `tls-server-end-point` of the shard's certificate, for SCRAM-SHA-256-PLUS toward it. None before the
/// handshake is over, and for certificates that have none (Ed25519).
pub fn peer_end_point_hash(connection: &ClientConnection) -> Option<Vec<u8>> {
    server_end_point(connection.peer_certificates()?.first()?)
}

fn trusted(settings: &ServerTls) -> Result<Option<Trusted>, TlsError> {
    let demanded = matches!(settings.mode, SslMode::VerifyCa | SslMode::VerifyFull);
    match &settings.root_cert {
        Some(file) => Ok(Some(Trusted { roots: root_store(Some(file))?, pinned: certificates(file)? })),
        None if demanded => Ok(Some(Trusted { roots: root_store(None)?, pinned: Vec::new() })),
        None => Ok(None),
    }
}
