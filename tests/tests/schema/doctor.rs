//! Every planted mistake is found, and on a correct database there is nothing to find.

use switchyard_shard_schema::connect::Session;
use switchyard_shard_schema::doctor::{Expected, Finding, Severity, compare, examine};
use switchyard_shard_schema::install::{Form, InstallOptions, install};
use switchyard_shard_schema::keys;
use switchyard_shard_schema::protect::{Mode, ProtectOptions, apply};
use switchyard_tests::Cluster;

use crate::session;

const GOOD: &str = include_str!("good.sql");

fn expected(mode: &Mode) -> Expected {
    Expected {
        column: "tenant_id".to_owned(),
        mode: mode.clone(),
        roles: vec!["app".to_owned()],
        kids: if *mode == Mode::Sealed { vec![1] } else { vec![] },
        shards: 1,
    }
}

fn modes() -> [Mode; 2] {
    [Mode::Plain("app.tenant_id".to_owned()), Mode::Sealed]
}

fn protection(mode: &Mode) -> ProtectOptions {
    ProtectOptions { column: "tenant_id".to_owned(), mode: mode.clone(), tables: vec![], replace: false }
}

async fn good(mode: &Mode) -> (Cluster, Session) {
    let cluster = Cluster::start();
    cluster.sql(GOOD);
    let mut client = session(&cluster).await;
    if *mode == Mode::Sealed {
        install(&mut client, &InstallOptions::default()).await.expect("it installs");
        keys::add(&mut client, &[keys::generate(1).expect("a key")]).await.expect("the key is taken");
    }
    apply(&mut client, &protection(mode), 1000).await.expect("the policies are made");
    (cluster, client)
}

async fn findings(client: &Session, mode: &Mode) -> Vec<Finding> {
    let (mut findings, facts) = examine(&**client, "s1", &expected(mode)).await.expect("it answers");
    findings.extend(compare(&[facts]));
    findings
}

#[tokio::test]
async fn a_correct_database_has_no_findings() {
    for mode in modes() {
        let (_cluster, client) = good(&mode).await;
        assert_eq!(findings(&client, &mode).await, []);
    }
}

/// A mistake: SQL that makes it, the code it is found by, its severity, and what takes it back beside its own fix.
type Mistake = (&'static str, &'static str, Severity, &'static str);

const EITHER: &[Mistake] = &[
    ("ALTER ROLE app SUPERUSER", "role-superuser", Severity::Error, ""),
    ("ALTER ROLE app BYPASSRLS", "role-bypassrls", Severity::Error, ""),
    ("ALTER ROLE app CREATEROLE", "role-createrole", Severity::Error, ""),
    ("CREATE ROLE boss SUPERUSER; GRANT boss TO app", "role-member", Severity::Error, "DROP ROLE boss"),
    ("ALTER ROLE app SET search_path = evil", "role-setting", Severity::Warning, ""),
    ("ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY", "rls-off", Severity::Error, ""),
    ("ALTER TABLE shop.orders NO FORCE ROW LEVEL SECURITY", "owner-not-forced", Severity::Warning, ""),
    (
        "ALTER TABLE shop.orders NO FORCE ROW LEVEL SECURITY; ALTER TABLE shop.orders OWNER TO app",
        "owner-not-forced",
        Severity::Error,
        "ALTER TABLE shop.orders OWNER TO shop_owner; GRANT SELECT, INSERT, UPDATE, DELETE ON shop.orders TO app",
    ),
    ("DROP POLICY switchyard ON shop.orders", "no-policy", Severity::Error, ""),
    (
        "DROP POLICY switchyard ON shop.orders; ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY",
        "unprotected",
        Severity::Error,
        "",
    ),
    (
        "CREATE TABLE shop.notes (tenant_id uuid PRIMARY KEY, body text); GRANT SELECT ON shop.notes TO app",
        "unprotected",
        Severity::Error,
        "",
    ),
    (
        "CREATE POLICY wide ON shop.orders USING (tenant_id = current_setting('other.variable', true))",
        "policy-other",
        Severity::Error,
        "",
    ),
    ("CREATE POLICY all_of_it ON shop.orders FOR SELECT USING (true)", "policy-other", Severity::Error, ""),
    (
        "CREATE FUNCTION shop.mine(t text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN true; END';
         CREATE POLICY narrow ON shop.orders AS RESTRICTIVE USING (shop.mine(tenant_id))",
        "policy-immutable",
        Severity::Error,
        "",
    ),
    ("GRANT TRUNCATE ON shop.lines TO app", "truncate", Severity::Error, ""),
    (
        "ALTER TABLE shop.events_2026 DISABLE ROW LEVEL SECURITY; GRANT SELECT ON shop.events_2026 TO app",
        "rls-off",
        Severity::Error,
        "REVOKE SELECT ON shop.events_2026 FROM app",
    ),
    (
        "ALTER TABLE shop.lines DROP CONSTRAINT lines_pkey, ADD CONSTRAINT lines_pkey PRIMARY KEY (n)",
        "unique-without-tenant",
        Severity::Error,
        "",
    ),
    ("CREATE UNIQUE INDEX one_per_country ON shop.orders (country)", "unique-without-tenant", Severity::Error,
     "DROP INDEX IF EXISTS shop.one_per_country"),
    (
        "ALTER TABLE shop.orders ADD UNIQUE (id); ALTER TABLE shop.lines DROP CONSTRAINT lines_tenant_id_order_id_fkey;
         ALTER TABLE shop.lines ADD CONSTRAINT short FOREIGN KEY (order_id) REFERENCES shop.orders (id)",
        "reference-without-tenant",
        Severity::Error,
        "",
    ),
    (
        "CREATE TABLE shop.extras (id uuid PRIMARY KEY, t text, o uuid, FOREIGN KEY (t, o) REFERENCES shop.orders)",
        "unscoped-child",
        Severity::Error,
        "DROP TABLE shop.extras",
    ),
    ("GRANT INSERT ON shop.countries TO app", "unscoped-parent", Severity::Warning, ""),
    ("ALTER TABLE shop.lines REPLICA IDENTITY NOTHING", "replica-identity", Severity::Warning,
     "ALTER TABLE shop.lines REPLICA IDENTITY DEFAULT"),
    ("ALTER TABLE shop.lines SET UNLOGGED", "unlogged", Severity::Warning, ""),
    (
        "CREATE VIEW shop.everything AS SELECT * FROM shop.orders; GRANT SELECT ON shop.everything TO app",
        "view-not-invoker",
        Severity::Error,
        "",
    ),
    (
        "CREATE VIEW shop.inner_view AS SELECT * FROM shop.orders;
         CREATE VIEW shop.outer_view AS SELECT * FROM shop.inner_view; GRANT SELECT ON shop.outer_view TO app",
        "view-not-invoker",
        Severity::Error,
        "",
    ),
    (
        "CREATE MATERIALIZED VIEW shop.totals AS SELECT tenant_id, count(*) FROM shop.orders GROUP BY 1;
         GRANT SELECT ON shop.totals TO app",
        "materialized-view",
        Severity::Error,
        "",
    ),
    (
        "CREATE FUNCTION shop.peek() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = shop, pg_temp
         AS 'SELECT count(*) FROM orders'",
        "definer-function",
        Severity::Error,
        "",
    ),
    (
        "CREATE FUNCTION shop.loose() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';
         ALTER FUNCTION shop.loose() OWNER TO shop_owner",
        "definer-search-path",
        Severity::Warning,
        "",
    ),
];

const SEALED: &[Mistake] = &[
    ("GRANT switchyard_owner TO app", "role-member", Severity::Error, ""),
    ("GRANT SET ON PARAMETER backtrace_functions TO app", "role-parameter", Severity::Error, ""),
    (
        "ALTER POLICY switchyard ON shop.orders USING (tenant_id = current_setting('app.tenant_id', true))",
        "policy-other",
        Severity::Error,
        "",
    ),
    (
        "ALTER POLICY switchyard ON shop.orders USING (tenant_id = switchyard.tenant_id())",
        "policy-per-row",
        Severity::Warning,
        "",
    ),
    (
        "UPDATE switchyard.seal_key SET kid = 9",
        "key-missing",
        Severity::Error,
        "UPDATE switchyard.seal_key SET kid = 1",
    ),
    ("UPDATE switchyard.setting SET functions = '\\x00'", "schema-outdated", Severity::Warning, "again"),
];

#[tokio::test]
async fn each_planted_mistake_is_found_and_its_fix_mends_it() {
    for mode in modes() {
        let (cluster, mut client) = good(&mode).await;
        let only = if mode == Mode::Sealed { SEALED } else { &[] };
        for (plant, code, severity, besides) in EITHER.iter().chain(only) {
            cluster.sql(plant);
            let found = findings(&client, &mode).await;
            let of_code: Vec<_> =
                found.iter().filter(|f| f.code == *code && f.severity == *severity).collect();
            assert!(!of_code.is_empty(), "{mode:?}: {plant}\nfound {found:#?}");
            for finding in &found {
                // What cannot be said in SQL, or needs to be thought about, is in words.
                let fix = finding.fix.as_deref().unwrap_or_default();
                if !fix.contains("--") && !fix.contains("...") && !fix.starts_with("switchyard ") {
                    for part in fix.split("; ") {
                        cluster.sql(part);
                    }
                }
            }
            match *besides {
                "again" => drop(install(&mut client, &InstallOptions::default()).await.unwrap()),
                sql => drop(cluster.sql(&format!("SELECT 1; {sql}"))),
            }
            assert_eq!(findings(&client, &mode).await, [], "{mode:?}: after {plant} was mended");
        }
    }
}

#[tokio::test]
async fn what_is_missing_for_the_seal_is_said() {
    let mode = Mode::Sealed;
    let cluster = Cluster::start();
    cluster.sql(GOOD);
    let mut client = session(&cluster).await;
    let codes = |found: &[Finding]| found.iter().map(|f| f.code).collect::<Vec<_>>();
    assert!(codes(&findings(&client, &mode).await).contains(&"schema-missing"));
    let sequence = InstallOptions { form: Some(Form::Sequence), ..InstallOptions::default() };
    install(&mut client, &sequence).await.unwrap();
    apply(&mut client, &protection(&mode), 1000).await.unwrap();
    keys::add(&mut client, &[keys::generate(1).unwrap()]).await.unwrap();
    assert_eq!(codes(&findings(&client, &mode).await), ["form-sequence"]);
}

#[tokio::test]
async fn shards_are_compared() {
    let mode = Mode::Plain("app.tenant_id".to_owned());
    let (one, one_client) = good(&mode).await;
    let other =
        Cluster::builder().setting("wal_level = replica").setting("timezone = 'Europe/Berlin'").start();
    other.sql(GOOD);
    let mut other_client = session(&other).await;
    apply(&mut other_client, &protection(&mode), 1000).await.unwrap();
    other.sql("ALTER TABLE shop.orders ADD COLUMN note text; DROP VIEW shop.open_orders");
    for cluster in [&one, &other] {
        cluster.sql(
            "CREATE TABLE shop.bills (tenant_id text, id bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (tenant_id, id))",
        );
    }
    other.sql("CREATE TABLE shop.only_here (tenant_id text PRIMARY KEY)");
    let both = Expected { shards: 2, ..expected(&mode) };
    let facts = async || {
        let (_, a) = examine(&*one_client, "s1", &both).await.unwrap();
        let (_, b) = examine(&*other_client, "s2", &both).await.unwrap();
        compare(&[a, b])
    };
    let found = facts().await;
    let said: Vec<_> = found.iter().map(|f| (f.shard.as_str(), f.code, f.object.as_str())).collect();
    let bills = "shop.bills_id_seq";
    for expected in [
        ("s2", "wal-level", "wal_level"),
        ("s2", "parameter-skew", "TimeZone"),
        ("s2", "table-skew", "shop.orders"),
        ("s1", "table-skew", "shop.only_here"),
        ("s1", "sequence-collides", bills),
        ("s2", "sequence-collides", bills),
    ] {
        assert!(said.contains(&expected), "{expected:?} is not in {said:#?}");
    }
    assert_eq!(said.len(), 6, "{said:#?}");
    for finding in found.iter().filter(|f| f.code == "sequence-collides") {
        let cluster = if finding.shard == "s1" { &one } else { &other };
        cluster.sql(finding.fix.as_deref().unwrap());
    }
    assert!(facts().await.iter().all(|f| f.code != "sequence-collides"));
}
