use switchyard_config::TenantId;
use switchyard_config::settings::RoamingSettings;
use switchyard_config::topology::ContextTemplate;

use super::*;

fn by_variable() -> Rules {
    let context = ContextTemplate {
        variables: [("app.tenant_id".to_owned(), "{tenant}".to_owned())].into(),
        ..ContextTemplate::default()
    };
    Rules::new(&RoamingSettings::default(), &context).unwrap()
}

fn by_schema() -> Rules {
    let context = ContextTemplate {
        search_path: Some(vec!["tenant_{tenant}".to_owned(), "public".to_owned()]),
        ..ContextTemplate::default()
    };
    Rules::new(&RoamingSettings::default(), &context).unwrap()
}

fn tenant(id: &str) -> Named {
    Named::Tenant(TenantId::new(id).unwrap())
}

fn steps(rules: &Rules, sql: &str) -> Vec<Step> {
    read(rules, sql.as_bytes()).into_iter().map(|s| s.step.with(rules, &[])).collect()
}

fn set_by(to: Named, local: bool, sql: &str) -> Vec<Step> {
    let select = sql.to_ascii_lowercase().starts_with("select");
    vec![Step::Set { to, local, select, runs: false }]
}

#[test]
fn all_ways_to_set() {
    let rules = by_variable();
    for sql in [
        "SET app.tenant_id = 'acme'",
        "set session APP.Tenant_Id to acme;",
        "SET \"app\".\"tenant_id\" = 'acme'",
        "/* c */ SET SESSION app.tenant_id='acme' -- x",
        "SELECT set_config('app.tenant_id', 'acme', false)",
        "select pg_catalog.set_config('App.tenant_id'::text, 'acme'::text, 'f') AS x",
        "SELECT set_config('app.tenant_id', 'acme', false), set_config('app.user', '7', true)",
    ] {
        assert_eq!(steps(&rules, sql), set_by(tenant("acme"), false, sql), "{sql}");
    }
    for sql in ["SET LOCAL app.tenant_id = 'acme'", "SELECT set_config('app.tenant_id', 'acme', true)"] {
        assert_eq!(steps(&rules, sql), set_by(tenant("acme"), true, sql), "{sql}");
    }
    for sql in ["RESET app.tenant_id", "SET app.tenant_id TO DEFAULT", "SET app.tenant_id = ''"] {
        assert_eq!(steps(&rules, sql), set_by(Named::Nobody, false, sql), "{sql}");
    }
    for sql in [
        "SET app.tenant_id = E'a\\'b'",
        "SET app.tenant_id = U&'a'",
        "SELECT set_config('app.tenant_id', lower('A'), false)",
        "SELECT set_config('app.tenant_id', 'a', false), set_config('app.tenant_id', 'b', false)",
    ] {
        assert_eq!(steps(&rules, sql), set_by(Named::Unreadable, false, sql), "{sql}");
    }
    let runs = Step::Set { to: tenant("b"), local: true, select: true, runs: true };
    assert_eq!(
        steps(&rules, "SELECT id, set_config('app.tenant_id', 'b', true) FROM leads"),
        std::slice::from_ref(&runs)
    );
    assert_eq!(steps(&rules, "WITH x AS (SELECT set_config('app.tenant_id', 'b', true)) SELECT 1"), [runs]);
}

#[test]
fn parameters() {
    let rules = by_variable();
    let with = |sql: &str, values: &[(&[u8], bool)]| {
        let values: Vec<_> =
            values.iter().map(|(value, binary)| Parameter { value: Some(value), binary: *binary }).collect();
        read(&rules, sql.as_bytes())[0].step.with(&rules, &values)
    };
    let local = Step::Set { to: tenant("acme"), local: true, select: true, runs: false };
    let lasting = Step::Set { to: tenant("acme"), local: false, select: true, runs: false };
    assert_eq!(with("SELECT set_config('app.tenant_id', $1, true)", &[(b"acme", false)]), local);
    assert_eq!(with("SELECT set_config('app.tenant_id', $1::text, false)", &[(b"acme", true)]), lasting);
    let all: [(&[u8], bool); 3] = [(b"app.tenant_id", false), (b"acme", false), (b"\x01", true)];
    assert_eq!(with("SELECT set_config($1, $2, $3)", &all), local);
    let other: [(&[u8], bool); 2] = [(b"app.user", false), (b"acme", false)];
    assert_eq!(with("SELECT set_config($1, $2, true)", &other), Step::Settings);
    let unreadable = Step::Set { to: Named::Unreadable, local: false, select: true, runs: false };
    assert_eq!(with("SELECT set_config('app.tenant_id', $2, true)", &[(b"acme", false)]), unreadable);
}

#[test]
fn transactions() {
    let rules = by_variable();
    for (sql, step) in [
        ("BEGIN", Step::Begin("BEGIN")),
        (
            "begin transaction isolation level repeatable read, read only, not deferrable;",
            Step::Begin("BEGIN"),
        ),
        ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE READ WRITE", Step::Begin("START TRANSACTION")),
        ("BEGIN ISOLATION LEVEL NONE", Step::Runs),
        ("BEGIN READ ONLY,", Step::Runs),
        ("COMMIT WORK AND CHAIN", Step::Commit { chain: true }),
        ("END", Step::Commit { chain: false }),
        ("COMMIT PREPARED 'x'", Step::Runs),
        ("ABORT", Step::Rollback { chain: false }),
        ("ROLLBACK AND NO CHAIN", Step::Rollback { chain: false }),
        ("ROLLBACK WORK TO SAVEPOINT \"A\"", Step::RollbackTo("A".to_owned())),
        ("ROLLBACK TO savepoint", Step::RollbackTo("savepoint".to_owned())),
        ("SAVEPOINT Sp", Step::Savepoint("sp".to_owned())),
        ("RELEASE SAVEPOINT sp", Step::Release("sp".to_owned())),
        ("RELEASE sp", Step::Release("sp".to_owned())),
        ("PREPARE TRANSACTION 'x'", Step::PrepareTransaction),
        ("SET TRANSACTION READ ONLY", Step::InBlock),
        ("SET LOCAL statement_timeout = 5", Step::InBlock),
        ("SET work_mem = '1MB'", Step::Settings),
        ("SHOW work_mem", Step::Settings),
        ("SHOW app.tenant_id", Step::Show { column: "", missing_ok: false }),
        (
            "SELECT current_setting('app.tenant_id', true)",
            Step::Show { column: "current_setting", missing_ok: true },
        ),
        ("SELECT * FROM leads", Step::Runs),
        ("LISTEN x", Step::Listen),
        ("DISCARD ALL", Step::DiscardAll),
        ("SELECT set_config('TimeZone', 'UTC', false)", Step::Settings),
    ] {
        assert_eq!(steps(&rules, sql), [step], "{sql}");
    }
    assert_eq!(steps(&rules, " ; -- x\n ;"), []);
    assert_eq!(
        steps(&rules, "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;"),
        [Step::UnlockAll, Step::Nothing("CLOSE CURSOR ALL"), Step::Nothing("UNLISTEN"), Step::ResetAll]
    );
    let body = "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; SELECT 1";
    assert_eq!(steps(&rules, body), [Step::Runs]);
}

#[test]
fn schemas() {
    let rules = by_schema();
    for (sql, to) in [
        ("SET search_path TO tenant_acme, public", tenant("acme")),
        ("SET search_path = 'tenant_acme','public'", tenant("acme")),
        ("SET SCHEMA 'tenant_acme'", tenant("acme")),
        ("SELECT set_config('search_path', 'tenant_acme, \"public\"', false)", tenant("acme")),
        ("SET search_path TO \"$user\", public", Named::Nobody),
        ("SET search_path TO DEFAULT", Named::Nobody),
        ("SET search_path TO reporting", Named::Nobody),
        ("SET search_path TO tenant_a, tenant_b", Named::Unreadable),
    ] {
        assert_eq!(steps(&rules, sql), set_by(to, false, sql), "{sql}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read(sql in "(SET|SELECT|RESET|;| |app.tenant_id|set_config|=|'a'|\\(|\\)|,|\\$1|TO|true){0,12}") {
        for rules in [by_variable(), by_schema()] {
            for statement in read(&rules, sql.as_bytes()) {
                statement.step.with(&rules, &[]);
                statement.step.shape(&rules);
            }
        }
    }
}
