//! Roaming sessions among the connections of the tenants that they speak for.

use switchyard_tests::{Raw, Running, wait};

use super::{NAMES, service};

const SET: &str = "SET app.tenant_id = 'limited'";

/// A tenant of two connections beside the others.
fn limited() -> Running {
    let tenant = "[[tenants]]\nid = \"limited\"\nlimits = { connections = 2 }";
    super::with_home().section(tenant).start()
}

#[test]
fn a_roaming_session_counts_for_the_tenant_that_it_speaks_for() {
    let s = limited();
    let mut others = [service(&s), service(&s)];
    let mut late = service(&s);
    for r in &mut others {
        r.rows(SET);
        assert_eq!(r.value("SELECT 1"), "1");
    }
    // Neither another of its kind nor a client of the tenant's own has a place.
    let error = late.error(SET);
    assert_eq!(error.sqlstate, "53300");
    assert!(error.message.contains("limit of 2 connections"), "{error:?}");
    assert_eq!(s.target("limited").try_connect().err().expect("one too many").sqlstate(), "53300");
    // It can speak for others, and those who have a place keep it.
    late.rows("SET app.tenant_id = 'acme'");
    assert_eq!(late.error(SET).sqlstate, "53300");
    assert_eq!(late.column(NAMES), s.canaries("acme"), "it is whose it was");
    assert_eq!(others[0].value("SELECT 2"), "2");

    // One that speaks for another tenant gives its place back, one that names nobody any more, and one that leaves.
    others[0].rows("SET app.tenant_id = 'globex'");
    let own = s.login("limited");
    assert_eq!(late.error(SET).sqlstate, "53300");
    drop(own);
    wait::until_true("the place", || late.try_rows(SET).is_ok());
    late.rows("RESET app.tenant_id");
    wait::until_true("the place", || s.target("limited").try_connect().is_ok());
    wait::until_true("its place", || late.try_rows(SET).is_ok());
    let [_, second] = others;
    drop(second);
    wait::until_true("the other place", || s.target("limited").try_connect().is_ok());
}

#[test]
fn a_tenant_that_is_named_for_one_transaction_has_the_session_for_that_long() {
    let s = limited();
    let mut many: Vec<Raw> = (0..5).map(|_| service(&s)).collect();
    for r in &mut many {
        for statement in ["BEGIN", "SET LOCAL app.tenant_id = 'limited'", "SELECT 1", "COMMIT"] {
            r.rows(statement);
        }
        assert_eq!(r.value("/* tenant='limited' */ SELECT 1"), "1");
    }
    // All of them have spoken for it, and none does any more.
    let (one, _two) = (s.login("limited"), s.login("limited"));
    assert_eq!(many[0].error("/* tenant='limited' */ SELECT 1").sqlstate, "53300");
    drop(one);
    wait::until_true("the place", || many[0].try_rows("/* tenant='limited' */ SELECT 1").is_ok());
    for statement in ["BEGIN", "SET LOCAL app.tenant_id = 'limited'", "SELECT 1"] {
        many[0].rows(statement);
    }
    many[1].rows("BEGIN");
    assert_eq!(many[1].error("SET LOCAL app.tenant_id = 'limited'").sqlstate, "53300");
    assert_eq!(many[1].error("SELECT 1").sqlstate, "25P02", "the transaction has failed");
    many[1].rows("ROLLBACK");
    many[0].rows("COMMIT");
    assert_eq!(many[1].value("/* tenant='limited' */ SELECT 1"), "1");
}
