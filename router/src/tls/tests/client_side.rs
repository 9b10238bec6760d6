//! What clients meet: versions, ALPN, certificates of both sides.

use std::net::IpAddr;

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use switchyard_config::settings::ClientTls;

use std::sync::Arc;

use switchyard_tls::ALPN_POSTGRESQL;

use super::*;

const HOST: &str = "acme.db.example.com";

struct Router {
    dir: Dir,
    ca: Ca,
    settings: ClientTls,
    pair: Pair,
}

impl Router {
    fn new() -> Self {
        let dir = Dir::new();
        let ca = Ca::new("ours");
        let pair = Pair::signed(&dir, "router", &ca, &leaf("router", &["*.db.example.com"]));
        let settings =
            ClientTls { cert: Some(pair.cert.clone()), key: Some(pair.key.clone()), ..ClientTls::default() };
        Self { dir, ca, settings, pair }
    }

    fn asking_for_certificates() -> Self {
        let mut router = Self::new();
        router.settings.client_ca = Some(router.dir.write("clients.crt", &router.ca.pem));
        router
    }

    fn load(&self) -> ClientTlsContext {
        ClientTlsContext::load(&self.settings).unwrap()
    }

    /// A client that trusts the router's authority.
    fn client(&self, pair: Option<&Pair>, alpn: &[&str]) -> TlsConnector {
        let roots = root_store(Some(&self.dir.write("root.crt", &self.ca.pem))).unwrap();
        let builder = client_builder().unwrap().with_root_certificates(roots);
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some(pair) => builder.with_client_auth_cert(pair.chain(), pair.private_key()).unwrap(),
        };
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    async fn connect(&self, client: TlsConnector, host: &str) -> Result<Ends, String> {
        let host = ServerName::try_from(host.to_owned()).unwrap();
        shake(client, self.load().acceptor(), host).await
    }
}

#[tokio::test]
async fn alpn_may_be_absent_but_not_another() {
    let router = Router::new();
    for (alpn, negotiated) in [
        (&[][..], None),
        (&["postgresql"], Some(ALPN_POSTGRESQL)),
        (&["h2", "postgresql"], Some(ALPN_POSTGRESQL)),
    ] {
        let (_, far) = router.connect(router.client(None, alpn), HOST).await.unwrap();
        assert_eq!(far.get_ref().1.alpn_protocol(), negotiated);
    }
    let error = router.connect(router.client(None, &["http/1.1"]), HOST).await.unwrap_err();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
}

#[tokio::test]
async fn server_names_and_channel_binding() {
    let router = Router::new();
    let (near, far) = router.connect(router.client(None, &[]), HOST).await.unwrap();
    assert_eq!(sni(far.get_ref().1), Some(HOST));
    let shown = &near.get_ref().1.peer_certificates().unwrap()[0];
    assert_eq!(router.load().end_point_hash().unwrap(), sha256(shown));
    assert_eq!(peer_common_name(far.get_ref().1), None);
    assert_eq!(peer_alternative_names(far.get_ref().1), []);
}

#[tokio::test]
async fn an_ed25519_certificate_has_no_end_point() {
    let mut router = Router::new();
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let cert = leaf("ed", &[HOST]).self_signed(&key).unwrap();
    let pair = Pair::write(&router.dir, "ed", &cert, &key);
    (router.settings.cert, router.settings.key) = (Some(pair.cert), Some(pair.key));
    assert_eq!(router.load().end_point_hash(), None);
}

#[tokio::test]
async fn versions() {
    let router = Router::new();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let roots = root_store(Some(&router.dir.write("root.crt", &router.ca.pem))).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (near, _) = router.connect(TlsConnector::from(Arc::new(config)), HOST).await.unwrap();
        assert_eq!(near.get_ref().1.protocol_version(), Some(version.version));
    }
}

#[tokio::test]
async fn certificates_of_clients() {
    let router = Router::asking_for_certificates();
    let mut params = leaf("app", &["app.example.com", "10.0.0.1"]);
    params.subject_alt_names.push(SanType::Rfc822Name("app@example.com".try_into().unwrap()));
    params.subject_alt_names.push(SanType::URI("spiffe://example.com/app".try_into().unwrap()));
    let app = Pair::signed(&router.dir, "app", &router.ca, &params);
    let (_, far) = router.connect(router.client(Some(&app), &[]), HOST).await.unwrap();
    assert_eq!(peer_common_name(far.get_ref().1).as_deref(), Some("app"));
    assert_eq!(
        peer_alternative_names(far.get_ref().1),
        [
            AlternativeName::Dns("app.example.com".to_owned()),
            AlternativeName::Ip(IpAddr::from([10, 0, 0, 1])),
            AlternativeName::Email("app@example.com".to_owned()),
            AlternativeName::Uri("spiffe://example.com/app".to_owned()),
        ]
    );

    // One that shows none is let in, to prove itself otherwise; one that shows a bad one is not.
    let (_, far) = router.connect(router.client(None, &[]), HOST).await.unwrap();
    assert_eq!(peer_common_name(far.get_ref().1), None);
    let stranger = Pair::signed(&router.dir, "stranger", &Ca::new("other"), &leaf("app", &[]));
    let late = Pair::signed(&router.dir, "late", &router.ca, &expired(leaf("app", &[])));
    let mut server_only = leaf("app", &[]);
    server_only.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let purpose = Pair::signed(&router.dir, "purpose", &router.ca, &server_only);
    for (pair, reason) in
        [(&stranger, "UnknownIssuer"), (&late, "expired"), (&purpose, "client authentication")]
    {
        let error = router.connect(router.client(Some(pair), &[]), HOST).await.unwrap_err();
        assert!(error.to_lowercase().contains(&reason.to_lowercase()), "{reason}: {error}");
    }
}

#[tokio::test]
async fn names_that_are_not_used() {
    let router = Router::asking_for_certificates();
    let connected = async |name: &str, params: &CertificateParams| {
        let pair = Pair::signed(&router.dir, name, &router.ca, params);
        let (_, far) = router.connect(router.client(Some(&pair), &[]), HOST).await.unwrap();
        peer_common_name(far.get_ref().1)
    };
    assert_eq!(connected("plain", &leaf("Bürö app.x", &[])).await.as_deref(), Some("Bürö app.x"));
    for name in ["app\0.evil", "app\nadmin", "\u{1b}[31m", ""] {
        assert_eq!(connected("odd", &leaf(name, &[])).await, None, "{name:?}");
    }
    // Which of two names counts is for nobody to guess. rcgen keeps one of a kind, so the second is made by hand.
    let mut params = leaf("app", &[]);
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "admin");
    assert_eq!(connected("two", &params).await, None);
}

#[tokio::test]
async fn no_session_outlives_the_trust_in_a_client() {
    for (router, expected) in [(Router::new(), true), (Router::asking_for_certificates(), false)] {
        let acceptor = router.load().acceptor();
        let client = router.client(None, &[]);
        let mut resumed = false;
        for _ in 0..2 {
            let host = ServerName::try_from(HOST).unwrap();
            let (near, _) = shake(client.clone(), acceptor.clone(), host).await.unwrap();
            resumed = near.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        }
        assert_eq!(resumed, expected);
    }
}

#[tokio::test]
async fn a_certificate_is_replaced_without_a_restart() {
    let router = Router::new();
    let served = ArcSwap::from_pointee(router.load());
    let shown = async || {
        let host = ServerName::try_from(HOST).unwrap();
        let ends = shake(router.client(None, &[]), served.load().acceptor(), host).await.unwrap();
        ends.0.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let first = shown().await;
    let next = Pair::signed(&router.dir, "next", &router.ca, &leaf("router", &[HOST]));

    // Half of a replacement: the certificate is there, its key is not yet.
    fs::copy(&next.cert, &router.pair.cert).unwrap();
    let error = ClientTlsContext::load(&router.settings).unwrap_err().to_string();
    let (key, cert) = (router.pair.key.display(), router.pair.cert.display());
    assert_eq!(error, format!("key {key} and certificate {cert}: they do not belong together"));
    assert_eq!(shown().await, first);

    fs::copy(&next.key, &router.pair.key).unwrap();
    served.store(Arc::new(router.load()));
    assert_eq!(shown().await, next.chain()[0]);
}

#[test]
fn settings_that_are_no_good() {
    let router = Router::new();
    let error = |settings: ClientTls| ClientTlsContext::load(&settings).unwrap_err().to_string();
    let good = &router.settings;
    assert_eq!(error(ClientTls { cert: None, ..good.clone() }), "tls needs a certificate");
    assert_eq!(error(ClientTls { key: None, ..good.clone() }), "tls needs the key of its certificate");
    let swapped = ClientTls { cert: good.key.clone(), key: good.cert.clone(), ..good.clone() };
    assert!(error(swapped).ends_with("router.key: no PEM certificate in it"));
    let no_key = ClientTls { key: good.cert.clone(), ..good.clone() };
    assert!(error(no_key).ends_with("router.crt: no PEM unencrypted private key in it"));
    let encrypted = read(&router.pair.key).replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let encrypted = ClientTls { key: Some(router.dir.write("enc.key", &encrypted)), ..good.clone() };
    assert!(error(encrypted).ends_with("enc.key: no PEM unencrypted private key in it"));
    let no_ca = ClientTls { client_ca: Some(router.dir.path("absent")), ..good.clone() };
    assert!(error(no_ca).starts_with("cannot read "));
}
