//! Certificates for both sides of the router, from an authority of our own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::process::{TempDir, give_to_postgres};

/// An authority, and the certificates that it has signed. Files live as long as this does.
pub struct Certs {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
}

impl Certs {
    /// Makes an authority and a certificate `server` for `localhost`, `127.0.0.1` and
    /// `*.db.example.com`.
    ///
    /// # Panics
    /// If a key cannot be made.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("keys can be made");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let ca_pem = params.self_signed(&key).expect("the authority signs itself").pem();
        let certs = Self { dir: TempDir::new(), issuer: Issuer::new(params, key), ca_pem };
        certs.dir.write("ca.pem", &certs.ca_pem);
        certs.issue("server", "server");
        certs
    }

    /// Signs (again) a certificate with the common name `name`, as `<file>.pem` and `<file>.key`.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn issue(&self, file: &str, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("keys can be made");
        let hosts = ["localhost".to_owned(), "*.db.example.com".to_owned()];
        let mut params = CertificateParams::new(hosts).expect("the names are names");
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer).expect("the authority signs");
        let cert = self.dir.write(&format!("{file}.pem"), &cert.pem());
        let key = self.dir.write(&format!("{file}.key"), &key.serialize_pem());
        private(&key);
        (cert, key)
    }

    /// Signs (again) `server` for the one host that it has as common name, without alternative names.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn issue_by_common_name(&self, host: &str) {
        let key = KeyPair::generate().expect("keys can be made");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, host);
        let cert = params.signed_by(&key, &self.issuer).expect("the authority signs");
        self.dir.write("server.pem", &cert.pem());
        private(&self.dir.write("server.key", &key.serialize_pem()));
    }

    /// Puts a certificate of X.509 version 1 in place of `server`, and its authority in place of ours.
    pub fn version_1(&self) {
        self.dir.write("ca.pem", include_str!("../../router/src/tls/tests/version1/root.crt"));
        self.dir.write("server.pem", include_str!("../../router/src/tls/tests/version1/shard.crt"));
        private(&self.dir.write("server.key", include_str!("../../router/src/tls/tests/version1/shard.key")));
    }

    /// The authority's file.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The file of a certificate.
    pub fn cert(&self, file: &str) -> PathBuf {
        self.dir.path().join(format!("{file}.pem"))
    }

    /// The file of its key.
    pub fn key(&self, file: &str) -> PathBuf {
        self.dir.path().join(format!("{file}.key"))
    }

    /// A client that trusts this authority, and shows the certificate `show` if asked.
    ///
    /// # Panics
    /// If the files are not as [`Certs::issue`] made them.
    pub fn client(&self, show: Option<&str>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_file_iter(self.ca()).expect("a PEM file") {
            roots.add(cert.expect("a certificate")).expect("an authority");
        }
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("the provider has the default versions")
                .with_root_certificates(roots);
        let config = match show {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let chain = CertificateDer::pem_file_iter(self.cert(file)).expect("a PEM file");
                let chain = chain.collect::<Result<_, _>>().expect("certificates");
                let key = PrivateKeyDer::from_pem_file(self.key(file)).expect("a key");
                builder.with_client_auth_cert(chain, key).expect("the key fits the certificate")
            }
        };
        Arc::new(config)
    }
}

impl Default for Certs {
    fn default() -> Self {
        Self::new()
    }
}

/// PostgreSQL and libpq refuse keys that others may read.
fn private(key: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).expect("the key is ours");
}

/// Copies a certificate and its key to where PostgreSQL's account may read them.
///
/// # Panics
/// If they cannot be copied.
pub fn install_for_postgres(certs: &Certs, dir: &Path) {
    for (from, to) in
        [(certs.cert("server"), "server.crt"), (certs.key("server"), "server.key"), (certs.ca(), "ca.crt")]
    {
        let to = dir.join(to);
        std::fs::copy(from, &to).expect("certificates can be copied");
        private(&to);
        give_to_postgres(&to);
    }
}
