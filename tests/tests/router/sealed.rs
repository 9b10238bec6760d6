//! Contexts that the shard believes because they are signed.

use switchyard_shard_schema::install::{Form, Revokes};
use switchyard_tests::{Setup, wait};

const NAMES: &str = "SELECT name FROM clients ORDER BY id";

fn setup(form: Form) -> Setup {
    Setup::new().shards(1).tenants(["acme", "globex"]).pool("size = 1").sealed(form, Revokes::default())
}

#[test]
fn each_tenant_sees_its_own_rows_on_one_connection() {
    for form in [Form::Parameter, Form::Sequence] {
        let s = setup(form).start();
        let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
        for _ in 0..5 {
            assert_eq!(acme.column(NAMES), s.canaries("acme"));
            assert_eq!(acme.column(NAMES), s.canaries("acme"));
            assert_eq!(globex.column(NAMES), s.canaries("globex"));
        }
        assert_eq!(globex.value("SELECT switchyard.tenant_id()"), "globex");
        let refused = acme.error("INSERT INTO clients VALUES ('globex', 77, 'mine')");
        assert_eq!(refused.sqlstate, "42501");
        acme.rows("INSERT INTO clients VALUES ('acme', 77, 'mine')");
    }
}

#[test]
fn ids_of_any_characters() {
    let long = "x".repeat(128);
    let ids = ["a b", "ü", "1'; DROP TABLE clients; --", "a_b", "_", "\u{1f980}", "A.B.C", long.as_str()];
    for form in [Form::Parameter, Form::Sequence] {
        let s = Setup::new().shards(1).tenants(ids).pool("size = 1").sealed(form, Revokes::default()).start();
        for id in ids {
            let target =
                s.plain_target("app", switchyard_tests::setup::PASSWORD).param("switchyard.tenant", id);
            assert_eq!(target.connect().column(NAMES), s.canaries(id), "{id}");
        }
    }
}

#[test]
fn what_a_session_does_to_itself_is_mended() {
    let s = setup(Form::Parameter).start();
    let mut globex = s.login("globex");
    for script in [
        "RESET ALL",
        "DISCARD ALL",
        "SET default_transaction_read_only = on",
        "SET default_transaction_isolation = 'serializable'",
        "SET client_encoding = 'LATIN1'",
        "SET search_path TO scratch",
        "BEGIN; SELECT 1/0",
        "BEGIN; SELECT 1",
        "DO $$ BEGIN RESET ALL; END $$",
        "DO $$ BEGIN SET work_mem = '3MB'; PERFORM set_config('my.x', 'y', false); END $$",
    ] {
        let mut acme = s.login("acme");
        let _ = acme.try_rows(script);
        let _ = acme.try_rows("ROLLBACK");
        let names = NAMES.replace("clients", "public.clients");
        assert_eq!(acme.column(&names), s.canaries("acme"), "after {script}");
        assert_eq!(s.login("acme").column(NAMES), s.canaries("acme"), "after {script}");
        drop(acme);
        assert_eq!(globex.column(NAMES), s.canaries("globex"), "after {script}");
    }
}

#[test]
fn a_token_is_not_in_the_text_of_a_statement() {
    let s = setup(Form::Parameter).pool("size = 2").start();
    let mut acme = s.login("acme");
    let query = "SELECT string_agg(query, E'\\n') FROM pg_stat_activity WHERE usename = 'app'";
    s.login("globex").rows("SELECT 1");
    let seen = acme.value(query);
    assert!(!seen.contains(".1."), "{seen}");
    let mut admin = s.shards[0].admin();
    admin.rows("ALTER SYSTEM SET log_statement = 'all'; ");
    admin.rows("SELECT pg_reload_conf()");
    wait::until_true("the setting", || s.shards[0].value("SHOW log_statement") == "all");
    s.login("globex").rows("SELECT 1");
    wait::until_true("the log", || s.shards[0].log().contains("switchyard.enter($1)"));
}

#[test]
fn the_fence_keeps_a_tenant_out() {
    for form in [Form::Parameter, Form::Sequence] {
        let s = setup(form).start();
        let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
        assert_eq!(acme.column(NAMES), s.canaries("acme"));
        // Also where it names a shard that the router does not know, or not yet.
        for state in ["'frozen', 'm1', NULL", "'moved', 'm1', 'elsewhere'"] {
            s.shards[0].sql(&format!("INSERT INTO switchyard.fence VALUES ('acme', 2, {state})"));
            // At the next statement where the connection has been entered, else on entering: in either
            // case the client is to try again, in the same session.
            for _ in 0..3 {
                let refused = acme.error(NAMES);
                assert_eq!(refused.sqlstate, "40001", "{refused:?}");
                assert_eq!(globex.column(NAMES), s.canaries("globex"));
            }
            assert_eq!(s.login("acme").error(NAMES).sqlstate, "40001", "{state}");
            s.shards[0].sql("DELETE FROM switchyard.fence");
            assert_eq!(acme.column(NAMES), s.canaries("acme"), "{state}");
        }
        s.shards[0].sql("INSERT INTO switchyard.fence VALUES ('acme', 1, 'active')");
        assert_eq!(acme.error(NAMES).sqlstate, "40001", "an older epoch: the tenant has none");
    }
}

#[test]
fn keys_change_without_a_break() {
    let mut s = setup(Form::Parameter).start();
    let mut acme = s.login("acme");
    assert_eq!(acme.column(NAMES), s.canaries("acme"));
    let second = format!("2 {}", "5a".repeat(32));
    // A key that the shard does not know yet: nothing runs.
    let first = switchyard_tests::sealed::SEAL_KEY;
    assert!(s.reload(|toml| toml.replace(first, &second)));
    let mut globex = s.login("globex");
    let refused = globex.error(NAMES);
    assert_eq!(refused.sqlstate, "58000", "{refused:?}");
    // ipad and opad over the key.
    s.shards[0].sql(
        "INSERT INTO switchyard.seal_key (kid, k_in, k_out) VALUES
         (2, decode(repeat('6c', 32) || repeat('36', 32), 'hex'), decode(repeat('06', 32) || repeat('5c', 32), 'hex'))",
    );
    assert_eq!(globex.column(NAMES), s.canaries("globex"));
    s.shards[0].sql("DELETE FROM switchyard.seal_key WHERE kid = 1");
    assert_eq!(acme.column(NAMES), s.canaries("acme"));
}

#[test]
fn without_the_schema_nothing_runs_and_with_it_all_is_well() {
    let s = setup(Form::Parameter).sql("ALTER SCHEMA switchyard RENAME TO elsewhere").start();
    let mut acme = s.login("acme");
    let refused = acme.error("INSERT INTO scratch.items VALUES (1, 'ran')");
    assert_eq!(refused.sqlstate, "58000", "{refused:?}");
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "0");
    s.shards[0].sql("ALTER SCHEMA elsewhere RENAME TO switchyard");
    assert_eq!(acme.column(NAMES), s.canaries("acme"));
}

#[test]
fn a_sealed_and_a_plain_tenant_share_a_connection() {
    let s = setup(Form::Parameter)
        .section("[[tenants]]\nid = \"open\"\ncontext = { variables = { \"app.tenant_id\" = \"{tenant}\" } }")
        .start();
    let mut open = s.login("open");
    let mut acme = s.login("acme");
    for _ in 0..3 {
        assert_eq!(open.value("SELECT current_setting('app.tenant_id')"), "open");
        assert_eq!(open.error(NAMES).sqlstate, "TN001");
        assert_eq!(acme.column(NAMES), s.canaries("acme"));
    }
}

#[test]
fn a_crash_of_the_shard_is_survived() {
    let mut s = setup(Form::Parameter).start();
    let mut acme = s.login("acme");
    assert_eq!(acme.column(NAMES), s.canaries("acme"));
    s.shards[0].kill9();
    s.shards[0].start_again();
    wait::until_true("the shard to be used again", || {
        let mut acme = s.login("acme");
        acme.try_rows(NAMES).is_ok_and(|rows| rows.len() == 3)
    });
    assert_eq!(s.login("globex").column(NAMES), s.canaries("globex"));
}
