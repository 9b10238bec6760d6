//! TLS toward clients: we are the server.

use std::sync::Arc;

use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ServerConfig, ServerConnection};
use switchyard_config::settings::ClientTls;
use switchyard_wire::tls_endpoint::server_end_point;
use tokio_rustls::TlsAcceptor;

use switchyard_tls::names::{self, AlternativeName};
use switchyard_tls::{ALPN_POSTGRESQL, TlsError, certificates, certified_key, provider, root_store};

/// A certificate and what goes with it, made from files once. For a reload, load another and swap it in; one
/// that cannot be loaded leaves the old one as it is.
#[derive(Clone)]
pub struct ClientTlsContext {
    acceptor: TlsAcceptor,
    end_point_hash: Option<Arc<[u8]>>,
}

impl std::fmt::Debug for ClientTlsContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientTlsContext(..)")
    }
}

impl ClientTlsContext {
    /// Reads the files that `settings` names. Whether TLS is offered or demanded is not decided here.
    ///
    /// # Errors
    /// If the certificate or the key is missing, unreadable, or does not fit the other.
    pub fn load(settings: &ClientTls) -> Result<Self, TlsError> {
        let cert = settings.cert.as_deref().ok_or(TlsError::Missing("a certificate"))?;
        let key = settings.key.as_deref().ok_or(TlsError::Missing("the key of its certificate"))?;
        let pair = certified_key(cert, key)?;
        let end_point_hash =
            certificates(cert)?.first().and_then(|leaf| server_end_point(leaf)).map(Into::into);

        let builder =
            ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match &settings.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(root_store(Some(ca))?, provider())
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| TlsError::File { file: ca.clone(), problem: error.to_string() })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(pair));
        // Clients that offer no ALPN are let through, those that offer another one are not.
        config.alpn_protocols = vec![ALPN_POSTGRESQL.to_vec()];
        if settings.client_ca.is_some() {
            // A resumed session would not look at the client's certificate again.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else {
            config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
            config.send_tls13_tickets = 1;
        }
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), end_point_hash })
    }

    /// Does the handshake. To be given the bare socket, from which nothing beyond the `SSLRequest` has been read.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// The `tls-server-end-point` of our certificate; none where it has none (Ed25519), and then
    /// SCRAM-SHA-256-PLUS cannot be offered.
    pub fn end_point_hash(&self) -> Option<&[u8]> {
        self.end_point_hash.as_deref()
    }
}

/// The common name of the client's certificate, which was verified in the handshake. None if the client
/// showed none, if it has several, or if it has a control character.
pub fn peer_common_name(connection: &ServerConnection) -> Option<String> {
    names::common_name(connection.peer_certificates()?.first()?)
}

/// The subject alternative names of the client's certificate, which was verified in the handshake. Without those
/// that have a control character or are of another kind.
pub fn peer_alternative_names(connection: &ServerConnection) -> Vec<AlternativeName> {
    let leaf = connection.peer_certificates().and_then(|chain| chain.first());
    leaf.map(|leaf| names::alternative_names(leaf)).unwrap_or_default()
}

/// The server name that the client asked for. rustls has checked that it is a host name.
pub fn sni(connection: &ServerConnection) -> Option<&str> {
    connection.server_name()
}

/// Whether the client has asked for our protocol by ALPN.
pub fn is_for_postgresql(connection: &ServerConnection) -> bool {
    connection.alpn_protocol() == Some(ALPN_POSTGRESQL)
}
