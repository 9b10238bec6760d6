//! Logging in by password, certificate, or nothing at all; what a refusal gives away.

use switchyard_tests::drivers::{psql, psql_ok};
use switchyard_tests::raw::messages as m;
use switchyard_tests::raw::{Refused, md5_verifier};
use switchyard_tests::setup::{PASSWORD, user_toml};
use switchyard_tests::{Router, Running, Setup, wait};

fn setup() -> Setup {
    Setup::new().shards(1).tenants(["acme", "globex"])
}

#[test]
fn scram_by_our_client_and_by_libpq() {
    let s = setup().start();
    assert_eq!(s.login("acme").column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
    let names = psql_ok(&s.url("globex"), &["SELECT name FROM clients ORDER BY id"]);
    assert_eq!(names, s.canaries("globex").join("\n"));
    let socket = s.router.socket().parent().expect("a directory").display().to_string();
    let port = s.router.address().port();
    let by_socket = format!("host={socket} port={port} user=app.acme password={PASSWORD} dbname=crm");
    assert_eq!(psql_ok(&by_socket, &["SELECT count(*) FROM clients"]), "3");
}

#[test]
fn scram_plus_where_the_client_insists() {
    let s = setup().tls("allow").start();
    let url = format!("{}&channel_binding=require", s.url("acme"));
    assert_eq!(psql_ok(&url, &["SELECT count(*) FROM clients"]), "3");
    s.target("acme").channel_binding().connect();
    let without_tls = format!("{}&channel_binding=require", s.url("acme").replace("verify-full", "disable"));
    assert!(!psql(&without_tls, &["SELECT 1"]).status.success());
}

#[test]
fn a_downgrade_of_channel_binding_is_noticed() {
    let s = setup().tls("allow").start();
    let mut raw = s.target("acme").open().unwrap();
    raw.send(&s.target("acme").startup());
    let offer = raw.read();
    assert!(offer.text().contains("SCRAM-SHA-256-PLUS"), "{offer:?}");
    // "y": I could bind, but the server does not offer it. It did.
    let first = b"y,,n=,r=rOprNGfwEbeRWgbNEkqO";
    let mut body = m::strings(&["SCRAM-SHA-256"]);
    body.extend((first.len() as u32).to_be_bytes());
    body.extend(first);
    raw.send(&m::frame(b'p', &body));
    let answer = raw.read();
    assert_eq!(answer.tag, b'E', "{answer:?}");
}

/// What a refusal looks like, with the name that the client gave taken out.
fn look(s: &Running, user: &str, password: &str) -> (String, Vec<(u8, usize)>) {
    match s.plain_target(user, password).refused() {
        Refused::Error { bytes, shape, .. } => {
            (String::from_utf8_lossy(&bytes[5..]).replace(user, "<user>"), shape)
        }
        Refused::Closed(why) => panic!("no word: {why}"),
    }
}

#[test]
fn refusals_look_the_same() {
    let suspended = "[[tenants]]\nid = \"susp\"\nstate = \"suspended\"";
    let bound = user_toml("bnd", "its-secret", "tenant = \"globex\"");
    let s = setup().section(suspended).section(&bound).start();
    let wrong_password = look(&s, "app.acme", "wrong");
    assert!(wrong_password.0.contains("28P01"), "{wrong_password:?}");
    for (user, password, what) in [
        ("abc.acme", PASSWORD, "an unknown user"),
        ("app.acmf", PASSWORD, "an unknown tenant"),
        ("app.acmf", "wrong", "an unknown tenant and a wrong password"),
        ("app.susp", "wrong", "a suspended tenant and a wrong password"),
        ("bnd.acme", "its-secret", "a tenant that the user may not act for"),
    ] {
        assert_eq!(look(&s, user, password), wrong_password, "{what}");
    }
    // The log is for the operator, who can tell them apart.
    let log = s.router.log();
    for name in ["acmf", "abc"] {
        assert!(log.contains(name), "{name} is not in the log:\n{log}");
    }
    assert!(!log.contains(PASSWORD) && !log.contains("its-secret"), "a password is in the log");
}

#[test]
fn a_suspended_tenant_is_told_so_once_it_has_proved_who_it_is() {
    let s = setup().section("[[tenants]]\nid = \"susp\"\nstate = \"suspended\"").start();
    match s.plain_target("app.susp", PASSWORD).refused() {
        Refused::Error { error, .. } => assert!(error.message.contains("suspended"), "{error:?}"),
        Refused::Closed(why) => panic!("no word: {why}"),
    }
}

#[test]
fn a_client_certificate() {
    let by_cert = "[[users]]\nname = \"robot\"\ncert = true\ntenants = [\"acme\"]";
    let s = setup().tls("require").section(by_cert).start();
    s.certs.issue("robot", "robot");
    s.certs.issue("other", "other");
    let target = s.router.target().user("robot").database("crm");
    let mut session = target.clone().tls(&s.certs.client(Some("robot")), "localhost").connect();
    assert_eq!(session.column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
    for shown in [None, Some("other")] {
        let refused = target.clone().tls(&s.certs.client(shown), "localhost").refused();
        assert!(matches!(refused, Refused::Error { .. }), "{refused:?}");
    }
    // An authority of somebody else.
    let others = switchyard_tests::Certs::new();
    others.issue("robot", "robot");
    std::fs::copy(s.certs.ca(), others.ca()).unwrap();
    assert!(target.tls(&others.client(Some("robot")), "localhost").try_connect().is_err());
}

#[test]
fn md5_is_off_by_default_and_can_be_had() {
    let user = format!(
        "[[users]]\nname = \"old\"\nverifier = \"{}\"\ntenant = \"acme\"\n",
        md5_verifier("old", "pw")
    );
    let shard =
        "[[shards]]\nname = \"s\"\nurl = \"postgres://app@127.0.0.1:1/crm\"\n[[tenants]]\nid = \"acme\"\n";
    let said = Router::refused(&format!("[router]\n{shard}{user}"));
    assert!(said.contains("md5"), "{said}");
    let s = setup().section("[login]\nmd5 = true").section(&user).start();
    let mut session = s.plain_target("old", "pw").connect();
    assert_eq!(session.column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
    assert_eq!(s.plain_target("old", "wrong").refused().sqlstate(), "28P01");
}

#[test]
fn trust_where_it_is_configured() {
    let user = "[[users]]\nname = \"local\"\ntrust = true\ntenants = \"*\"\n";
    let shard = "[[shards]]\nname = \"s\"\nurl = \"postgres://app@127.0.0.1:1/crm\"\n";
    let said = Router::refused(&format!("[router]\n{shard}{user}"));
    assert!(said.contains("trust"), "{said}");
    let s = setup().section("[login]\ntrust = true").section(user).start();
    for target in [s.router.target(), s.router.unix_target()] {
        let mut session = target.user("local.acme").database("crm").connect();
        assert_eq!(session.value("SELECT count(*) FROM clients"), "3");
    }
    // Trust is the user's, not everybody's.
    assert_eq!(s.plain_target("app.acme", "wrong").refused().sqlstate(), "28P01");
}

#[test]
fn a_statement_before_the_login_is_never_run() {
    let s = setup().start();
    let mut raw = s.target("acme").open().unwrap();
    raw.send(
        &[s.target("acme").startup(), m::query("INSERT INTO scratch.items VALUES (1, 'early')")].concat(),
    );
    assert!(raw.ends());
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "0");
}

#[test]
fn a_password_that_changes_on_the_shard() {
    let mut s = setup().pool("size = 2").start();
    let mut acme = s.login("acme");
    assert_eq!(acme.value("SELECT 1"), "1");
    s.shards[0].sql("ALTER ROLE app PASSWORD 'another-secret'");
    // What is connected stays; what is not fails in words that give nothing away.
    assert_eq!(acme.value("SELECT 1"), "1");
    s.shards[0].sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'");
    let said = wait::until("a new connection to be needed", || acme.try_rows("SELECT 1").err());
    assert!(!said.message.contains("another-secret") && !said.message.contains("app-secret"), "{said:?}");
    assert!(s.reload(|toml| toml.replace("app-secret", "another-secret")));
    wait::until_true("the new password to be used", || acme.try_rows("SELECT 1").is_ok());
    assert_eq!(acme.column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
}
