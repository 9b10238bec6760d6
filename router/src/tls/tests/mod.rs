//! Real handshakes with certificates made for the purpose, in memory.

mod client_side;
mod shard_side;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use switchyard_tls::{certificates, provider};

use super::*;

/// A directory that goes away with the test.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("switchyard-tls-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A certificate authority.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn sign(&self, params: &CertificateParams, key: &KeyPair) -> Certificate {
        params.signed_by(key, &self.issuer).unwrap()
    }
}

/// A certificate and its key, in files.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

pub(crate) fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// What a shard or a client has: names, for both purposes, for a hundred years.
pub(crate) fn leaf(common_name: &str, hosts: &[&str]) -> CertificateParams {
    let mut params =
        CertificateParams::new(hosts.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = named(common_name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

pub(crate) fn expired(mut params: CertificateParams) -> CertificateParams {
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    params
}

impl Pair {
    pub(crate) fn signed(dir: &Dir, name: &str, ca: &Ca, params: &CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        Self::write(dir, name, &ca.sign(params, &key), &key)
    }

    pub(crate) fn self_signed(dir: &Dir, name: &str, params: &CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        Self::write(dir, name, &params.self_signed(&key).unwrap(), &key)
    }

    pub(crate) fn write(dir: &Dir, name: &str, cert: &Certificate, key: &KeyPair) -> Self {
        Self {
            cert: dir.write(&format!("{name}.crt"), &cert.pem()),
            key: dir.write(&format!("{name}.key"), &key.serialize_pem()),
        }
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        certificates(&self.cert).unwrap()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(&self.key).unwrap()
    }
}

pub(crate) type Ends = (client::TlsStream<DuplexStream>, server::TlsStream<DuplexStream>);

/// A handshake, and a byte each way: only the byte shows that with TLS 1.3 the server has accepted the
/// client's certificate. The error is the one of the side that refused.
pub(crate) async fn shake(
    connector: TlsConnector,
    acceptor: TlsAcceptor,
    host: rustls::pki_types::ServerName<'static>,
) -> Result<Ends, String> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let client = async move {
        let mut stream = connector.connect(host, near).await?;
        stream.write_all(b"q").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        std::io::Result::Ok(stream)
    };
    let server = async move {
        let mut stream = acceptor.accept(far).await?;
        stream.read_u8().await?;
        stream.write_all(b"r").await?;
        stream.flush().await?;
        std::io::Result::Ok(stream)
    };
    match tokio::join!(client, server) {
        (Ok(client), Ok(server)) => Ok((client, server)),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error.to_string()),
        (Err(client), Err(server)) => Err(format!("client: {client}; server: {server}")),
    }
}

/// The digest that RFC 5929 asks for with a certificate signed by ECDSA with SHA-256.
pub(crate) fn sha256(der: &[u8]) -> Vec<u8> {
    ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, der).as_ref().to_vec()
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}
