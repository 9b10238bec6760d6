//! How a server is connected to.

use std::net::Ipv4Addr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::{IpAddr, ServerName};
use switchyard_config::topology::{ServerTls, SslMode};

use super::verifier::{ServerVerifier, Trusted};
use super::{ALPN_POSTGRESQL, TlsError, certificates, certified_key, client_builder, provider, root_store};

/// Reads the files that `settings` names. None with `disable`.
///
/// As in libpq, a `root_cert` is never given in vain: with it, the chain is verified in `allow`, `prefer` and
/// `require` too (`initialize_SSL`, src/interfaces/libpq/fe-secure-openssl.c).
///
/// # Errors
/// If a file is unreadable, if our certificate and key do not fit, or if the mode needs authorities and
/// there are none.
pub fn client_config(settings: &ServerTls) -> Result<Option<ClientConfig>, TlsError> {
    let mode = settings.mode;
    if mode == SslMode::Disable {
        return Ok(None);
    }
    let verifier = ServerVerifier {
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
    Ok(Some(config))
}

/// The name that `host` goes by in the handshake, also sent to the server if it is not an address.
///
/// # Errors
/// With `verify-full`, if a certificate cannot name `host`.
pub fn server_name(mode: SslMode, host: &str) -> Result<ServerName<'static>, TlsError> {
    match ServerName::try_from(host.to_owned()) {
        Ok(name) => Ok(name),
        Err(_) if mode == SslMode::VerifyFull => Err(TlsError::HostName(host.to_owned())),
        // The name is not looked at, and an address is not sent.
        Err(_) => Ok(ServerName::IpAddress(IpAddr::from(std::net::IpAddr::from(Ipv4Addr::UNSPECIFIED)))),
    }
}

fn trusted(settings: &ServerTls) -> Result<Option<Trusted>, TlsError> {
    let demanded = matches!(settings.mode, SslMode::VerifyCa | SslMode::VerifyFull);
    match &settings.root_cert {
        Some(file) => Ok(Some(Trusted { roots: root_store(Some(file))?, pinned: certificates(file)? })),
        None if demanded => Ok(Some(Trusted { roots: root_store(None)?, pinned: Vec::new() })),
        None => Ok(None),
    }
}
