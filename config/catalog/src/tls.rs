//! TLS toward the catalog, by libpq's names.

use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use switchyard_config::topology::{ServerTls, SslMode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as Rustls;

use crate::CatalogError;

/// Makes TLS connections to the catalog. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
}

impl Tls {
    /// Reads the files that `settings` names.
    ///
    /// # Errors
    /// If one cannot be read or makes no sense.
    pub fn new(settings: &ServerTls) -> Result<Self, CatalogError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Verifier {
            trusted: trusted(settings)?,
            check_name: settings.mode == SslMode::VerifyFull,
            provider: provider.clone(),
        };
        let failed = |e: Error| CatalogError::Tls(e.to_string());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match (&settings.cert, &settings.key) {
            (Some(cert), Some(key)) => {
                let key = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable(key, &e))?;
                builder.with_client_auth_cert(certificates(cert)?, key).map_err(failed)?
            }
            _ => builder.with_no_client_auth(),
        };
        // What PostgreSQL 17 and later ask for.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)) })
    }
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> CatalogError {
    CatalogError::Tls(format!("{}: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CatalogError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(unreadable(path, &"there is no certificate in it")),
        Ok(found) => Ok(found),
        Err(e) => Err(unreadable(path, &e)),
    }
}

/// Whom a certificate may be signed by.
#[derive(Debug)]
struct Trusted {
    roots: RootCertStore,
    /// The same as they are: a server's self-signed certificate is often its own authority, which
    /// libpq accepts and webpki does not.
    pinned: Vec<CertificateDer<'static>>,
}

/// As in libpq, a `root_cert` is never given in vain: with it, the chain is verified in every mode.
fn trusted(settings: &ServerTls) -> Result<Option<Trusted>, CatalogError> {
    let mut roots = RootCertStore::empty();
    let pinned = match &settings.root_cert {
        Some(file) => certificates(file)?,
        None if matches!(settings.mode, SslMode::VerifyCa | SslMode::VerifyFull) => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Vec::new()
        }
        None => return Ok(None),
    };
    roots.add_parsable_certificates(pinned.iter().cloned());
    if roots.is_empty() {
        return Err(CatalogError::Tls("the system has no trusted authorities".to_owned()));
    }
    Ok(Some(Trusted { roots, pinned }))
}

#[derive(Debug)]
struct Verifier {
    /// Anybody if none.
    trusted: Option<Trusted>,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if let Some(Trusted { roots, pinned }) = &self.trusted
            && !pinned.contains(end_entity)
        {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        }
        if self.check_name {
            verify_server_name(&parsed, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// One connection to be made.
pub struct Connect {
    connector: TlsConnector,
    host: String,
}

/// A connection that was made. Without channel binding: who is at the other end is what the
/// certificate says.
pub struct Stream<S>(Rustls<S>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Tls {
    type Stream = Stream<S>;
    type TlsConnect = Connect;
    type Error = std::convert::Infallible;

    fn make_tls_connect(&mut self, host: &str) -> Result<Connect, Self::Error> {
        Ok(Connect { connector: self.connector.clone(), host: host.to_owned() })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Connect {
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        // A host that no certificate can name fails the check of names, where that is asked for.
        let unnamed = || ServerName::from(std::net::IpAddr::from(Ipv4Addr::UNSPECIFIED));
        let name = ServerName::try_from(self.host).unwrap_or_else(|_| unnamed());
        Box::pin(async move { Ok(Stream(self.connector.connect(name, stream).await?)) })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
