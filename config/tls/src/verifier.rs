//! How much is asked of a server's certificate.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::names::common_name_is_host;
use super::old_certificates as old;

/// Trusted certificates.
pub(super) struct Trusted {
    /// As authorities.
    pub(super) roots: Arc<RootCertStore>,
    /// The same as they are: a server's self-signed certificate is often its own authority, which libpq
    /// accepts and webpki does not.
    pub(super) pinned: Vec<CertificateDer<'static>>,
}

/// A verifier of servers' certificates. That the server holds the certificate's key is verified in all modes.
pub(super) struct ServerVerifier {
    /// Who may have signed the certificate; anybody if none.
    pub(super) trusted: Option<Trusted>,
    /// Whether it must name the host.
    pub(super) check_name: bool,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").field("check_name", &self.check_name).finish_non_exhaustive()
    }
}

impl ServerVerifier {
    fn check_chain(
        &self,
        trusted: &Trusted,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = self.algorithms.all;
        if old::is_version_1(end_entity) {
            check_validity(end_entity, now)?;
            let issuer = old::issuer_among(&trusted.pinned, end_entity, algorithms)?;
            return check_validity(issuer, now);
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &trusted.roots, intermediates, now, algorithms)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trusted) = &self.trusted {
            if trusted.pinned.contains(end_entity) {
                check_validity(end_entity, now)?;
            } else {
                self.check_chain(trusted, end_entity, intermediates, now)?;
            }
        }
        if self.check_name {
            let host = server_name.to_str();
            let named =
                ParsedCertificate::try_from(end_entity).and_then(|c| verify_server_name(&c, server_name));
            match named {
                Err(_) if common_name_is_host(end_entity, &host) => {}
                Err(_) if old::is_version_1(end_entity) => {
                    return Err(CertificateError::NotValidForName.into());
                }
                result => result?,
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if old::is_version_1(cert) {
            return old::verify_tls12_signature(message, cert, dss, &self.algorithms);
        }
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if old::is_version_1(cert) {
            return verify_tls13_signature_with_raw_key(
                message,
                &old::public_key(cert)?,
                dss,
                &self.algorithms,
            );
        }
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A certificate trusted as it is needs no signature, but its time may be over.
fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.validity();
    let time = |at: i64| UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(at).unwrap_or(0)));
    let (not_before, not_after) =
        (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()));
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    Ok(())
}
