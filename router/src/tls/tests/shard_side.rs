//! Every mode against every kind of certificate, as libpq would have it.

use switchyard_config::settings::ClientTls;
use switchyard_config::topology::{ServerTls, SslMode};

use std::sync::Arc;

use switchyard_tls::ALPN_POSTGRESQL;

use super::*;

const HOST: &str = "shard1.example.com";

/// A shard with a certificate of its own. What PostgreSQL does is rustls's to do here.
fn shard(pair: &Pair) -> TlsAcceptor {
    let settings =
        ClientTls { cert: Some(pair.cert.clone()), key: Some(pair.key.clone()), ..ClientTls::default() };
    ClientTlsContext::load(&settings).unwrap().acceptor()
}

fn router(mode: SslMode, root: Option<&Path>) -> ShardTlsContext {
    let settings = ServerTls { mode, root_cert: root.map(Path::to_owned), ..ServerTls::default() };
    ShardTlsContext::load(&settings).unwrap()
}

async fn connect(context: &ShardTlsContext, pair: &Pair, host: &str) -> Result<Ends, String> {
    let name = context.server_name(host).map_err(|e| e.to_string())?;
    shake(context.connector().unwrap(), shard(pair), name).await
}

#[tokio::test]
async fn modes_and_certificates() {
    use SslMode::{Allow, Prefer, Require, VerifyCa, VerifyFull};
    let dir = Dir::new();
    let (ours, other) = (Ca::new("ours"), Ca::new("other"));
    let root = dir.write("root.crt", &ours.pem);
    let good = Pair::signed(&dir, "good", &ours, &leaf("shard", &[HOST]));
    let wrong_ca = Pair::signed(&dir, "wrong-ca", &other, &leaf("shard", &[HOST]));
    let wrong_name = Pair::signed(&dir, "wrong-name", &ours, &leaf(HOST, &["shard2.example.com"]));
    let too_old = Pair::signed(&dir, "expired", &ours, &expired(leaf("shard", &[HOST])));
    let self_signed = Pair::self_signed(&dir, "self", &leaf("shard", &[HOST]));

    // Without authorities of their own, these three ask for nothing but a key that fits the certificate.
    for mode in [Allow, Prefer, Require] {
        for pair in [&good, &wrong_ca, &wrong_name, &too_old, &self_signed] {
            connect(&router(mode, None), pair, HOST).await.unwrap();
        }
    }
    for mode in [Allow, Prefer, Require, VerifyCa, VerifyFull] {
        let context = router(mode, Some(&root));
        let failure = async |pair: &Pair| connect(&context, pair, HOST).await.err().unwrap_or_default();
        assert_eq!(failure(&good).await, "", "{mode:?}");
        assert!(failure(&wrong_ca).await.contains("UnknownIssuer"), "{mode:?}");
        assert!(failure(&too_old).await.contains("expired"), "{mode:?}");
        assert!(failure(&self_signed).await.contains("UnknownIssuer"), "{mode:?}");
        let name = failure(&wrong_name).await;
        assert_eq!(name.contains("not valid for name"), mode == VerifyFull, "{mode:?} {name}");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_can_be_its_own_authority() {
    let dir = Dir::new();
    // What `openssl req -x509` makes, as in PostgreSQL's own documentation: an authority, with a common name only.
    let as_authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let own = Pair::self_signed(&dir, "own", &as_authority(HOST));
    let twin = Pair::self_signed(&dir, "twin", &as_authority(HOST));
    for mode in [SslMode::VerifyCa, SslMode::VerifyFull] {
        connect(&router(mode, Some(&own.cert)), &own, HOST).await.unwrap();
        connect(&router(mode, Some(&own.cert)), &twin, HOST).await.unwrap_err();
    }
    connect(&router(SslMode::VerifyCa, Some(&own.cert)), &own, "elsewhere").await.unwrap();
    connect(&router(SslMode::VerifyFull, Some(&own.cert)), &own, "elsewhere").await.unwrap_err();
    let old = Pair::self_signed(&dir, "old", &expired(as_authority(HOST)));
    let error = connect(&router(SslMode::VerifyCa, Some(&old.cert)), &old, HOST).await.unwrap_err();
    assert!(error.contains("expired"), "{error}");
}

#[tokio::test]
async fn certificates_of_version_1() {
    // Made by the recipe in PostgreSQL's documentation, but for a hundred years and with EC keys for shortness;
    // rcgen makes none of this version.
    let dir = Dir::new();
    let root = dir.write("root.crt", include_str!("version1/root.crt"));
    let other = dir.write("other.crt", &Ca::new("test authority").pem);
    let key = dir.write("shard.key", include_str!("version1/shard.key"));
    let write =
        |name: &str, cert: &str, key: &Path| Pair { cert: dir.write(name, cert), key: key.to_owned() };
    let good = write("shard.crt", include_str!("version1/shard.crt"), &key);
    let too_old = write("expired.crt", include_str!("version1/expired.crt"), &key);
    let rsa_key = dir.write("rsa.key", include_str!("version1/rsa.key"));
    let rsa = write("rsa.crt", include_str!("version1/rsa.crt"), &rsa_key);
    for pair in [&good, &rsa] {
        connect(&router(SslMode::Require, None), pair, HOST).await.unwrap();
        for mode in [SslMode::VerifyCa, SslMode::VerifyFull] {
            connect(&router(mode, Some(&root)), pair, HOST).await.unwrap();
            let error = connect(&router(mode, Some(&other)), pair, HOST).await.unwrap_err();
            assert!(error.contains("UnknownIssuer"), "{error}");
            // It is no authority, even where it is trusted as it is.
            connect(&router(mode, Some(&pair.cert)), pair, HOST).await.unwrap();
        }
        let error = connect(&router(SslMode::VerifyFull, Some(&root)), pair, "elsewhere").await.unwrap_err();
        assert!(error.contains("NotValidForName"), "{error}");
    }
    let error = connect(&router(SslMode::VerifyCa, Some(&root)), &too_old, HOST).await.unwrap_err();
    assert!(error.contains("expired"), "{error}");

    // The shard must hold the key, by TLS 1.2 too.
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let stranger = provider().key_provider.load_private_key(too_old.private_key()).unwrap();
        for (chain, expected) in [(good.chain(), true), (rsa.chain(), false)] {
            let key = Arc::new(rustls::sign::CertifiedKey::new(chain, stranger.clone()));
            let config = rustls::ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
            let context = router(SslMode::Require, None);
            let name = context.server_name(HOST).unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(config));
            let result = shake(context.connector().unwrap(), acceptor, name).await;
            assert_eq!(result.is_ok(), expected, "{version:?} {:?}", result.err());
        }
    }
}

#[tokio::test]
async fn names_of_hosts() {
    let dir = Dir::new();
    let ca = Ca::new("ours");
    let context = router(SslMode::VerifyFull, Some(&dir.write("root.crt", &ca.pem)));
    let mut next = 0;
    for (common_name, alternatives, host, expected) in [
        ("x", &["*.example.com"][..], HOST, true),
        ("x", &["*.example.com"], "a.shard1.example.com", false),
        ("x", &["127.0.0.1"], "127.0.0.1", true),
        ("x", &["127.0.0.1"], "127.0.0.2", false),
        ("x", &["::1"], "::1", true),
        // The common name counts only where there is no alternative name of a host.
        (HOST, &[], HOST, true),
        ("*.example.com", &[], HOST, true),
        ("127.0.0.1", &[], "127.0.0.1", true),
        ("other", &[], HOST, false),
        (HOST, &["other.example.com"], HOST, false),
        (HOST, &["10.0.0.1"], HOST, false),
    ] {
        next += 1;
        let pair = Pair::signed(&dir, &next.to_string(), &ca, &leaf(common_name, alternatives));
        let result = connect(&context, &pair, host).await;
        assert_eq!(result.is_ok(), expected, "{common_name} {alternatives:?} {host} {:?}", result.err());
    }
    let mut nul = leaf("shard1.example.com\0.evil.org", &[]);
    nul.is_ca = IsCa::NoCa;
    let pair = Pair::signed(&dir, "nul", &ca, &nul);
    connect(&context, &pair, HOST).await.unwrap_err();
}

#[tokio::test]
async fn what_is_sent_and_kept() {
    let dir = Dir::new();
    let ca = Ca::new("ours");
    let pair = Pair::signed(&dir, "good", &ca, &leaf("shard", &[HOST]));
    let context = router(SslMode::Require, None);
    let (near, far) = connect(&context, &pair, HOST).await.unwrap();
    let leaf = &pair.chain()[0];
    assert_eq!(peer_end_point_hash(near.get_ref().1), Some(sha256(leaf)));
    assert_eq!(sni(far.get_ref().1), Some(HOST));
    assert_eq!(far.get_ref().1.alpn_protocol(), Some(ALPN_POSTGRESQL));
    // A host that is no name in DNS is not sent; only `verify-full` minds.
    for host in ["127.0.0.1", "not a host", "/run/postgresql"] {
        let (_, far) = connect(&context, &pair, host).await.unwrap();
        assert_eq!(sni(far.get_ref().1), None, "{host}");
    }
    let strict = router(SslMode::VerifyFull, Some(&dir.write("root.crt", &ca.pem)));
    assert!(matches!(strict.server_name("not a host"), Err(TlsError::HostName(_))));
    let (_, far) = connect(&context, &pair, "db_1").await.unwrap();
    assert_eq!(sni(far.get_ref().1), Some("db_1"));
}

#[tokio::test]
async fn our_certificate_is_shown_to_the_shard() {
    let dir = Dir::new();
    let ca = Ca::new("ours");
    let root = dir.write("root.crt", &ca.pem);
    let ours = Pair::signed(&dir, "ours", &ca, &leaf("switchyard", &[]));
    let theirs = Pair::signed(&dir, "shard", &ca, &leaf("shard", &[HOST]));
    let context = ShardTlsContext::load(&ServerTls {
        mode: SslMode::VerifyFull,
        root_cert: Some(root.clone()),
        cert: Some(ours.cert.clone()),
        key: Some(ours.key.clone()),
    })
    .unwrap();
    let shard = ClientTlsContext::load(&ClientTls {
        cert: Some(theirs.cert),
        key: Some(theirs.key),
        client_ca: Some(root),
        ..ClientTls::default()
    });
    let name = context.server_name(HOST).unwrap();
    let (_, far) = shake(context.connector().unwrap(), shard.unwrap().acceptor(), name).await.unwrap();
    assert_eq!(peer_common_name(far.get_ref().1).as_deref(), Some("switchyard"));
}

#[tokio::test]
async fn a_shard_without_the_certificates_key_is_refused_in_every_mode() {
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;

    /// Shows a certificate and signs with another key.
    #[derive(Debug)]
    struct Impostor(Arc<CertifiedKey>);
    impl ResolvesServerCert for Impostor {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }
    let dir = Dir::new();
    let ca = Ca::new("ours");
    let stolen = Pair::signed(&dir, "stolen", &ca, &leaf("shard", &[HOST]));
    let mine = Pair::self_signed(&dir, "mine", &leaf("mine", &[]));
    let key = provider().key_provider.load_private_key(mine.private_key()).unwrap();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Impostor(Arc::new(CertifiedKey::new(stolen.chain(), key.clone())))));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        for mode in [SslMode::Prefer, SslMode::Require] {
            let context = router(mode, None);
            let name = context.server_name(HOST).unwrap();
            let error = shake(context.connector().unwrap(), acceptor.clone(), name).await.unwrap_err();
            assert!(error.contains("BadSignature"), "{mode:?} {error}");
        }
    }
}

#[test]
fn what_modes_mean_before_the_handshake() {
    use SslMode::{Allow, Disable, Prefer, Require, VerifyCa, VerifyFull};
    let dir = Dir::new();
    let root = dir.write("root.crt", &Ca::new("ours").pem);
    for (mode, first, plain) in [
        (Disable, false, true),
        (Allow, false, true),
        (Prefer, true, true),
        (Require, true, false),
        (VerifyCa, true, false),
        (VerifyFull, true, false),
    ] {
        let context = router(mode, Some(&root));
        assert_eq!((context.tls_first(), context.plain_allowed()), (first, plain), "{mode:?}");
        assert_eq!(context.connector().is_some(), mode != Disable);
        assert_eq!(context.mode(), mode);
    }
}

#[test]
fn files_that_are_no_good() {
    let dir = Dir::new();
    let ca = Ca::new("ours");
    let (one, two) =
        (Pair::self_signed(&dir, "one", &leaf("a", &[])), Pair::self_signed(&dir, "two", &leaf("b", &[])));
    let root = dir.write("root.crt", &ca.pem);
    let load = |root: &Path, cert: Option<&Path>, key: Option<&Path>| {
        let settings = ServerTls {
            mode: SslMode::VerifyCa,
            root_cert: Some(root.to_owned()),
            cert: cert.map(Path::to_owned),
            key: key.map(Path::to_owned),
        };
        ShardTlsContext::load(&settings).unwrap_err().to_string()
    };
    let path = |name: &str| dir.path(name).display().to_string();
    let mismatch = load(&root, Some(&one.cert), Some(&two.key));
    assert_eq!(
        mismatch,
        format!("key {} and certificate {}: they do not belong together", path("two.key"), path("one.crt"))
    );
    assert_eq!(load(&root, Some(&one.cert), None), "tls needs the key of its certificate");
    assert_eq!(load(&root, None, Some(&one.key)), "tls needs the certificate of its key");
    assert!(load(&dir.path("absent"), None, None).starts_with(&format!("cannot read {}: ", path("absent"))));
    assert_eq!(load(&one.key, None, None), format!("{}: no PEM certificate in it", path("one.key")));
    let junk = dir.write("junk", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n");
    assert!(load(&junk, None, None).contains("not a PEM file"));
    let hollow = dir.write("hollow", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    assert!(load(&hollow, None, None).starts_with(&path("hollow")));
    // With `disable` nothing is read.
    ShardTlsContext::load(&ServerTls {
        mode: SslMode::Disable,
        root_cert: Some(dir.path("absent")),
        ..ServerTls::default()
    })
    .unwrap();
}
