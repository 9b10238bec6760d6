//! TLS toward PostgreSQL servers, shards and the catalog alike, by libpq's rules; and reading PEM files.
//!
//! TLS 1.2 and 1.3 by rustls with aws-lc; there is no renegotiation and no early data. Whoever connects to a
//! server, the router, the control plane or the mover, judges its certificate by the same rules.

pub mod names;
mod old_certificates;
mod server;
mod verifier;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

pub use server::{client_config, server_name};

/// The protocol's ALPN name, which direct TLS must have negotiated
/// (`PG_ALPN_PROTOCOL`, src/include/libpq/pqcomm.h).
pub const ALPN_POSTGRESQL: &[u8] = b"postgresql";

/// Why TLS cannot be set up from the files given. Names files, never what is in them.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A setting that is needed is missing.
    #[error("tls needs {0}")]
    Missing(&'static str),
    /// A file cannot be read.
    #[error("cannot read {}: {error}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file is not what it must be.
    #[error("{}: {problem}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A key and a certificate that do not belong together, or that cannot be used.
    #[error("key {} and certificate {}: {problem}", key.display(), cert.display())]
    Pair {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        cert: PathBuf,
        /// What is wrong with them.
        problem: String,
    },
    /// The system's authorities are asked for, and there are none.
    #[error("the system has no trusted certificate authorities: {0}")]
    NoSystemRoots(String),
    /// A host that cannot stand in a certificate.
    #[error("{0:?} is not a host name that a certificate can be checked for")]
    HostName(String),
    /// rustls refuses what it was given.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// The cryptography used everywhere, whatever a library has made the process's default.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The beginning of every configuration of ours as a client: TLS 1.2 and 1.3.
///
/// # Errors
/// Never with the cryptography that is used.
pub fn client_builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?)
}

/// The authorities in a PEM file, or the system's.
///
/// # Errors
/// If the file cannot be read, holds something else, or the system has none.
pub fn root_store(file: Option<&Path>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(file) => {
            for certificate in certificates(file)? {
                roots
                    .add(certificate)
                    .map_err(|error| TlsError::File { file: file.to_owned(), problem: error.to_string() })?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            // One of the system's that rustls cannot read is no reason not to trust the others.
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
                return Err(TlsError::NoSystemRoots(errors.join("; ")));
            }
        }
    }
    Ok(Arc::new(roots))
}

/// All certificates in a PEM file, at least one.
///
/// # Errors
/// If the file cannot be read, or has none.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let certificates = found.map_err(|error| pem_error(file, "certificate", error))?;
    if certificates.is_empty() {
        return Err(pem_error(file, "certificate", pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

/// The first private key in a PEM file.
fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| pem_error(file, "unencrypted private key", error))
}

fn pem_error(file: &Path, wanted: &str, error: pem::Error) -> TlsError {
    let file = file.to_owned();
    match error {
        pem::Error::Io(error) if error.kind() != ErrorKind::InvalidData => TlsError::Io { file, error },
        pem::Error::NoItemsFound => TlsError::File { file, problem: format!("no PEM {wanted} in it") },
        _ => TlsError::File { file, problem: format!("not a PEM file with a {wanted}") },
    }
}

/// A certificate and its key, made sure to belong together.
///
/// What rustls has for this would read the certificate by webpki, which knows none of version 1.
///
/// # Errors
/// If a file cannot be read, or they do not belong together.
pub fn certified_key(cert: &Path, key: &Path) -> Result<SingleCertAndKey, TlsError> {
    let problem = |problem: String| TlsError::Pair { key: key.to_owned(), cert: cert.to_owned(), problem };
    let chain = certificates(cert)?;
    let signing =
        provider().key_provider.load_private_key(private_key(key)?).map_err(|e| problem(e.to_string()))?;
    let certified = match chain.first().map(|leaf| X509Certificate::from_der(leaf)) {
        Some(Ok((_, leaf))) => leaf.public_key().raw.to_vec(),
        _ => return Err(problem("the certificate cannot be read".to_owned())),
    };
    if signing.public_key().is_some_and(|own| *own != *certified) {
        return Err(problem("they do not belong together".to_owned()));
    }
    Ok(SingleCertAndKey::from(CertifiedKey::new(chain, signing)))
}
