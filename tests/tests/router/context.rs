//! What the router sets for a tenant.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Setup, wait};

const NAMES: &str = "SELECT name FROM clients ORDER BY id";

fn setup() -> Setup {
    Setup::new().shards(1).pool("size = 1").tenants(["acme", "globex"])
}

#[test]
fn several_variables() {
    let context = "[context.variables]\n\"app.tenant_id\" = \"{tenant}\"\n\"app.current_client_id\" = \"c-{tenant}\"\n\"app.who\" = \"{user}\"";
    let s = setup().context(context).start();
    let sql = "SELECT current_setting('app.tenant_id') || ' ' || current_setting('app.current_client_id') || ' ' || current_setting('app.who')";
    for tenant in ["acme", "globex", "acme"] {
        let mut session = s.login(tenant);
        assert_eq!(session.value(sql), format!("{tenant} c-{tenant} app"));
        assert_eq!(session.column(NAMES), s.canaries(tenant));
    }
}

#[test]
fn a_schema_per_tenant() {
    let mut sql = String::new();
    for tenant in ["acme", "globex"] {
        sql += &format!(
            "CREATE SCHEMA \"t_{tenant}\"; CREATE TABLE \"t_{tenant}\".own AS SELECT '{tenant}'::text AS name; GRANT USAGE ON SCHEMA \"t_{tenant}\" TO app; GRANT SELECT ON \"t_{tenant}\".own TO app;"
        );
    }
    let s = setup().context("[context]\nsearch_path = [\"t_{tenant}\", \"public\"]").sql(&sql).start();
    for tenant in ["acme", "globex", "acme"] {
        let mut session = s.login(tenant);
        assert_eq!(session.value("SELECT name FROM own"), tenant);
        // Also prepared under one name, whose meaning is the tenant's.
        let rows = session.round(
            &[m::parse("s", "SELECT name FROM own"), m::bind("", "s", &[]), m::execute("", 0), m::sync()]
                .concat(),
        );
        assert!(rows.iter().any(|m| m.tag == b'D' && m.values() == [Some(tenant.to_owned())]), "{rows:?}");
    }
}

#[test]
fn a_role_that_is_not_there_fails_closed() {
    let sql = "CREATE ROLE r_acme NOLOGIN; GRANT r_acme TO app; GRANT SELECT ON clients TO r_acme";
    let context = "[context]\nrole = \"r_{tenant}\"\n[context.variables]\n\"app.tenant_id\" = \"{tenant}\"";
    let s = setup().context(context).sql(sql).start();
    let mut acme = s.login("acme");
    assert_eq!(acme.value("SELECT current_user"), "r_acme");
    assert_eq!(acme.column(NAMES), s.canaries("acme"));
    // There is no r_globex: whatever globex sends, none of it runs, under nobody's context.
    for bytes in [
        m::query("INSERT INTO scratch.items VALUES (1, 'ran')"),
        m::extended("INSERT INTO scratch.items VALUES (2, 'ran')", &[]),
        [m::query("BEGIN"), m::query("INSERT INTO scratch.items VALUES (3, 'ran')"), m::query("COMMIT")]
            .concat(),
        m::query("SELECT name FROM clients"),
    ] {
        let Ok(mut globex) = s.target("globex").try_connect() else { continue };
        globex.send(&bytes);
        let answer = globex.until_ready_or_end();
        assert!(answer.iter().any(|m| m.tag == b'E'), "{answer:?}");
        assert!(answer.iter().all(|m| m.tag != b'D' && m.tag != b'C'), "{answer:?}");
    }
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "0");
    assert_eq!(acme.column(NAMES), s.canaries("acme"));
}

#[test]
fn a_database_per_tenant() {
    let s = setup().context("[context]\ndatabase = \"db_{tenant}\"").sql("SELECT 1").start();
    for tenant in ["acme", "globex"] {
        s.shards[0].sql(&format!("CREATE DATABASE db_{tenant}"));
    }
    for tenant in ["acme", "globex", "acme", "globex"] {
        assert_eq!(s.login(tenant).value("SELECT current_database()"), format!("db_{tenant}"));
    }
}

#[test]
fn a_tenant_may_have_its_own() {
    let own = "[[tenants]]\nid = \"special\"\n[tenants.context.variables]\n\"app.tenant_id\" = \"acme\"\n\"app.extra\" = \"x\"";
    let s = setup().section(own).start();
    let mut session = s.login("special");
    assert_eq!(session.column(NAMES), s.canaries("acme"));
    assert_eq!(session.value("SELECT current_setting('app.extra')"), "x");
    let mut globex = s.login("globex");
    assert_eq!(globex.value("SELECT coalesce(current_setting('app.extra', true), '')"), "");
    assert_eq!(globex.column(NAMES), s.canaries("globex"));
}

#[test]
fn the_context_is_not_written_again_where_it_stands() {
    let s = setup().proxied().start();
    let mut acme = s.login("acme");
    let query = m::query("SELECT 1");
    acme.round(&query);
    // What runs behind statements has been looked at when the next is answered.
    acme.round(&query);
    let before = s.proxies[0].bytes_to_server();
    for _ in 0..10 {
        acme.round(&query);
    }
    assert_eq!(s.proxies[0].bytes_to_server() - before, 10 * query.len());
}

#[test]
fn a_reload_changes_the_context_of_new_transactions() {
    let mut s = setup().start();
    let mut acme = s.login("acme");
    assert_eq!(acme.column(NAMES), s.canaries("acme"));
    assert!(s.reload(|toml| toml.replace("\"{tenant}\"", "\"{tenant}\"\n\"app.more\" = \"m-{tenant}\"")));
    wait::until_true("the new context", || {
        acme.value("SELECT coalesce(current_setting('app.more', true), '')") == "m-acme"
    });
    assert_eq!(acme.column(NAMES), s.canaries("acme"));
}
