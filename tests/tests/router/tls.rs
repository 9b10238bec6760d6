//! TLS toward clients and toward shards.

use switchyard_tests::drivers::{psql, psql_ok};
use switchyard_tests::raw::messages as m;
use switchyard_tests::setup::PASSWORD;
use switchyard_tests::{Certs, Refused, Setup};

fn setup() -> Setup {
    Setup::new().shards(1).tenants(["acme"])
}

#[test]
fn plain_text_is_refused_in_words_where_tls_is_required() {
    let s = setup().tls("require").start();
    let plain = s.router.target().user("app.acme").password(PASSWORD).database("crm");
    match plain.refused() {
        Refused::Error { error, .. } => {
            assert_eq!(error.severity, "FATAL");
            assert!(
                error.message.to_lowercase().contains("tls") || error.message.contains("SSL"),
                "{error:?}"
            );
        }
        Refused::Closed(why) => panic!("no word: {why}"),
    }
    assert_eq!(psql_ok(&s.url("acme"), &["SELECT count(*) FROM clients"]), "3");
    let other = Certs::new();
    let stranger =
        s.url("acme").replace(&s.certs.ca().display().to_string(), &other.ca().display().to_string());
    assert!(!psql(&stranger, &["SELECT 1"]).status.success());
}

#[test]
fn allowed_is_not_required() {
    let s = setup().tls("allow").start();
    assert_eq!(s.login("acme").value("SELECT count(*) FROM clients"), "3");
    let plain = s.router.target().user("app.acme").password(PASSWORD).database("crm");
    assert_eq!(plain.connect().value("SELECT count(*) FROM clients"), "3");
}

#[test]
fn a_client_may_go_on_in_plain_text_after_no() {
    let s = setup().start();
    let target = s.target("acme");
    let mut raw = target.open().unwrap();
    // As libpq does it: GSS, then TLS, then plain.
    for request in [m::gss_request(), m::ssl_request()] {
        raw.send(&request);
        assert_eq!(raw.byte().unwrap(), b'N');
    }
    raw.send(&target.startup());
    raw.authenticate("app.acme", Some(PASSWORD), false).unwrap();
    assert_eq!(raw.value("SELECT count(*) FROM clients"), "3");
}

#[test]
fn bytes_before_the_handshake_are_never_part_of_the_session() {
    let s = setup().tls("allow").start();
    let plain = || s.router.target().user("app.acme").password(PASSWORD).database("crm");
    for request in [m::ssl_request(), m::gss_request()] {
        let mut raw = plain().open().unwrap();
        raw.send(&[request, plain().startup()].concat());
        // However it is refused, it is not answered as a startup packet would be.
        while let Ok(byte) = raw.byte() {
            assert!(byte != b'R', "the stuffed startup packet was read");
        }
    }
    // The handshake itself must not follow stuffing either.
    let mut raw = plain().open().unwrap();
    raw.send(&[m::ssl_request(), m::startup(&[("user", "app.acme")])].concat());
    let _ = raw.byte();
    assert!(raw.upgrade(&s.certs.client(None), "localhost").is_err());
}

#[test]
fn tls_is_asked_for_once() {
    let s = setup().tls("allow").start();
    let mut raw = s.target("acme").open().unwrap();
    raw.send(&m::ssl_request());
    let answer = raw.byte();
    assert!(!matches!(answer, Ok(b'S' | b'N')), "TLS within TLS: {answer:?}");
}

#[test]
fn a_new_certificate_is_shown_after_a_reload() {
    let s = setup().tls("require").start();
    let mut before = s.login("acme");
    let (cert, key) = (s.certs.cert("server"), s.certs.key("server"));
    s.certs.issue("server", "server");
    assert!(s.router.reload_files());
    let mut after = s.login("acme");
    assert_ne!(before.peer_certificate(), after.peer_certificate());
    assert_eq!(before.value("SELECT 1"), "1");
    assert_eq!(after.value("SELECT 1"), "1");
    // A key that does not fit is refused, and the old one stays.
    let kept = std::fs::read(&key).unwrap();
    s.certs.issue("other", "other");
    std::fs::copy(s.certs.key("other"), &key).unwrap();
    assert!(!s.router.reload_files());
    assert_eq!(s.login("acme").peer_certificate(), after.peer_certificate());
    std::fs::write(&cert, "nonsense").unwrap();
    std::fs::write(&key, kept).unwrap();
    assert!(!s.router.reload_files());
    assert_eq!(s.login("acme").peer_certificate(), after.peer_certificate());
}

#[test]
fn tls_toward_the_shards() {
    for (client, shard) in [("require", "verify-full"), ("allow", "verify-ca"), ("allow", "require")] {
        let s = setup().tls(client).shard_tls(shard).start();
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        assert_eq!(s.login("acme").value(sql), "t", "{shard}");
    }
}

#[test]
fn a_shard_with_a_strangers_certificate_gets_no_password() {
    let mut s = setup().shard_tls("verify-full").start();
    assert_eq!(s.login("acme").value("SELECT 1"), "1");
    let other = Certs::new();
    let (ours, theirs) = (s.certs.ca().display().to_string(), other.ca().display().to_string());
    assert!(s.reload(|toml| toml.replace(&ours, &theirs)));
    let refused = match s.target("acme").try_connect() {
        Ok(mut session) => session.error("SELECT 1").sqlstate,
        Err(refused) => refused.sqlstate().to_owned(),
    };
    assert!(refused.starts_with("08") || refused.starts_with("57"), "{refused}");
}

#[test]
fn direct_tls_needs_the_protocol_by_name() {
    let s = setup().tls("allow").start();
    let target = s.router.target().user("app.acme").password(PASSWORD).database("crm");
    let with = |protocols: &[&str]| {
        let mut config = (*s.certs.client(None)).clone();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        target.open().unwrap().upgrade(&std::sync::Arc::new(config), "localhost")
    };
    for protocols in [&["postgresql"][..], &["h2", "postgresql"]] {
        let mut raw = with(protocols).unwrap();
        raw.send(&target.startup());
        raw.authenticate("app.acme", Some(PASSWORD), true).unwrap();
        assert_eq!(raw.value("SELECT count(*) FROM clients"), "3");
    }
    for protocols in [&[][..], &["h2"], &["http/1.1", "h2"]] {
        // The handshake fails, or is all that there is.
        if let Ok(mut raw) = with(protocols) {
            raw.send(&target.startup());
            assert!(raw.try_read().is_err(), "{protocols:?}");
        }
    }
    // TLS within TLS is no way in either.
    let mut raw = with(&["postgresql"]).unwrap();
    raw.send(&m::ssl_request());
    assert_eq!(raw.read().sqlstate(), "0A000");
}
