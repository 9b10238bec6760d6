//! How the tenant of a session is found.

use switchyard_tests::setup::{PASSWORD, user_toml};
use switchyard_tests::{Running, Setup, Target};

const NAMES: &str = "SELECT name FROM clients ORDER BY id";

fn setup() -> Setup {
    Setup::new().shards(1).tenants(["acme", "globex"])
}

fn app(s: &Running) -> Target {
    s.plain_target("app", PASSWORD)
}

#[track_caller]
fn is(s: &Running, target: &Target, tenant: &str) {
    assert_eq!(target.connect().column(NAMES), s.canaries(tenant));
}

#[track_caller]
fn refused(target: &Target) {
    let refused = target.refused();
    assert!(refused.sqlstate().starts_with("28"), "{refused:?}");
}

#[test]
fn the_user_name() {
    let s = setup().start();
    is(&s, &s.plain_target("app.acme", PASSWORD), "acme");
    is(&s, &s.plain_target("app@globex", PASSWORD), "globex");
    refused(&s.plain_target("app", PASSWORD));
    refused(&s.plain_target("app.", PASSWORD));
    refused(&s.plain_target("app.ACME", PASSWORD));
    refused(&s.plain_target(".acme", PASSWORD));
}

#[test]
fn the_startup_parameter_and_options() {
    let s = setup().start();
    is(&s, &app(&s).param("switchyard.tenant", "acme"), "acme");
    is(&s, &app(&s).param("options", "-c switchyard.tenant=globex"), "globex");
    is(&s, &app(&s).param("options", "-c work_mem=5MB --switchyard.tenant=globex"), "globex");
    refused(&app(&s).param("switchyard.tenant", "nowhere"));
    refused(&app(&s).param("switchyard.tenant", ""));
}

#[test]
fn the_server_name() {
    let s = setup().tls("require").section("[identity]\nsni_suffix = \".db.example.com\"").start();
    let tls = s.certs.client(None);
    is(&s, &app(&s).tls(&tls, "acme.db.example.com"), "acme");
    is(&s, &app(&s).tls(&tls, "globex.db.example.com"), "globex");
    is(&s, &s.plain_target("app.acme", PASSWORD).tls(&tls, "acme.db.example.com"), "acme");
    refused(&s.plain_target("app.globex", PASSWORD).tls(&tls, "acme.db.example.com"));
    refused(&app(&s).tls(&tls, "nowhere.db.example.com"));
    // A name beyond the suffix says nothing.
    is(&s, &s.plain_target("app.acme", PASSWORD).tls(&tls, "localhost"), "acme");
}

#[test]
fn the_database_name() {
    let s = setup().section("[identity]\ndatabase = \"tenant_{tenant}\"").start();
    is(&s, &app(&s).database("tenant_acme"), "acme");
    is(&s, &s.plain_target("app.globex", PASSWORD).database("tenant_globex"), "globex");
    refused(&s.plain_target("app.acme", PASSWORD).database("tenant_globex"));
    refused(&app(&s).database("tenant_"));
}

#[test]
fn the_credential() {
    let bound = user_toml("bound", "pw", "tenant = \"acme\"");
    let few = user_toml("few", "pw", "tenants = [\"acme\", \"globex\"]");
    let s = setup().section(&bound).section(&few).start();
    is(&s, &s.plain_target("bound", "pw"), "acme");
    is(&s, &s.plain_target("bound.acme", "pw"), "acme");
    is(&s, &s.plain_target("few.globex", "pw"), "globex");
    refused(&s.plain_target("bound.globex", "pw"));
    refused(&s.plain_target("bound", "pw").param("switchyard.tenant", "globex"));
    refused(&s.plain_target("few", "pw"));
}

#[test]
fn sources_must_agree() {
    let s = setup().start();
    let acme = || s.plain_target("app.acme", PASSWORD);
    is(&s, &acme().param("switchyard.tenant", "acme"), "acme");
    is(&s, &acme().param("options", "-c switchyard.tenant=acme"), "acme");
    refused(&acme().param("switchyard.tenant", "globex"));
    refused(&acme().param("options", "-c switchyard.tenant=globex"));
    refused(&app(&s).param("switchyard.tenant", "acme").param("options", "-c switchyard.tenant=globex"));
    // The variable of the context is another way to say it, never a way around it.
    for (name, value) in [("app.tenant_id", "globex"), ("options", "-c app.tenant_id=globex")] {
        match acme().param(name, value).try_connect() {
            Ok(mut session) => assert_eq!(session.column(NAMES), s.canaries("acme"), "{name}"),
            Err(refused) => assert!(refused.sqlstate().starts_with("28"), "{refused:?}"),
        }
    }
}

#[test]
fn an_id_may_be_any_text() {
    let ids = [
        "o'brien",
        "x'; DROP TABLE clients; --",
        "a\"b",
        "back\\slash",
        "ünïcödé",
        "e\u{301}",
        "with space",
        "trailing ",
        "{tenant}",
        "$1",
        "-",
        "a.b@c",
        "😀",
        "E'\\047'",
    ];
    let s = Setup::new().shards(1).tenants(ids).start();
    for id in ids {
        assert_eq!(s.login(id).column(NAMES), s.canaries(id), "{id}");
        assert_eq!(s.login(id).value("SELECT current_setting('app.tenant_id')"), id);
    }
    let longest = "x".repeat(128);
    let s = Setup::new().shards(1).tenants([longest.as_str()]).start();
    assert_eq!(s.login(&longest).column(NAMES), s.canaries(&longest));
}
