//! Tables that look as if they could be moved: what is refused, and what is fenced.

use serde_json::Value;
use switchyard_tests::cluster::{DATABASE, SUPERUSER, SUPERUSER_PASSWORD};
use switchyard_tests::moves::{Moving, Tenant};

use crate::TABLES;

const POLICY: &str = "tenant_id = current_setting('app.tenant_id', true)";

/// A table under row-level security, which applications may write to.
fn table(name: &str, definition: &str, policy: &str) -> String {
    format!(
        "CREATE TABLE {name} ({definition}; ALTER TABLE {name} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY tenant ON {name} USING ({policy}); GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO app;"
    )
}

fn refusals(m: &Moving, args: &[&str]) -> Vec<Value> {
    let args = [&["move", "start", "acme", "--to", "s1", "--wait", "-o", "json"], args].concat();
    let output = m.command(&args);
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    let refused: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(refused["outcome"], "refused", "{refused}");
    let findings = refused["plan"]["findings"].as_array().expect("a list");
    findings.iter().filter(|f| f["refuses"] == true).cloned().collect()
}

#[track_caller]
fn expect(findings: &[Value], expected: &[(&str, &str, &str)]) {
    for (about, reason, mend) in expected {
        let holds = |f: &Value, field: &str, part: &str| f[field].as_str().expect("a text").contains(part);
        let found = findings
            .iter()
            .any(|f| f["about"] == *about && holds(f, "reason", reason) && holds(f, "mend", mend));
        assert!(found, "{about}: {findings:#?}");
    }
    let about: Vec<_> = expected.iter().map(|e| e.0).collect();
    let more: Vec<_> =
        findings.iter().filter(|f| !about.contains(&f["about"].as_str().expect("a text"))).collect();
    assert!(more.is_empty(), "{more:#?}");
}

fn psql(url: &str, sql: &str) -> Result<String, String> {
    let mut command = std::process::Command::new("psql");
    let output =
        command.args([url, "-XAtqv", "ON_ERROR_STOP=1", "-c", sql]).output().expect("psql is installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A database of a shard, as the superuser.
fn at(m: &Moving, shard: usize, database: &str) -> String {
    format!("postgres://{SUPERUSER}:{SUPERUSER_PASSWORD}@127.0.0.1:{}/{database}", m.shards[shard].port())
}

#[test]
fn keys_that_would_have_updates_fail_or_tell_too_little_are_refused() {
    let m = Moving::start(1, TABLES);
    let good = "tenant_id text, id int, PRIMARY KEY (tenant_id, id))";
    for shard in &m.shards {
        shard.sql(&table("later", "tenant_id text, id int, PRIMARY KEY (tenant_id, id) DEFERRABLE)", POLICY));
        shard.sql(&table("blind", "tenant_id text, id int PRIMARY KEY)", POLICY));
        shard.sql(&table("seen", "tenant_id text, id int PRIMARY KEY)", POLICY));
        shard.sql("ALTER TABLE seen REPLICA IDENTITY FULL");
    }
    m.shards[0].sql(&table("there", good, POLICY));
    m.shards[1].sql(&table(
        "there",
        "tenant_id text, id int, PRIMARY KEY (tenant_id, id) DEFERRABLE)",
        POLICY,
    ));
    m.tenant("acme", 0);
    let later = "ALTER TABLE \"public\".\"later\" DROP CONSTRAINT \"later_pkey\", ADD PRIMARY KEY (\"tenant_id\", \"id\")";
    let blind = "ALTER TABLE \"public\".\"blind\" REPLICA IDENTITY FULL";
    expect(
        &refusals(&m, &[]),
        &[
            ("public.later", "deferrable", later),
            ("public.later on shard s1", "deferrable", later),
            ("public.there on shard s1", "deferrable", "DROP CONSTRAINT \"there_pkey\""),
            ("public.blind", "does not tell the tenant", blind),
            ("public.blind on shard s1", "does not tell the tenant", blind),
        ],
    );
    // What mends it does.
    for shard in &m.shards {
        shard.sql(&format!("{later}; {blind}"));
    }
    m.shards[1].sql("ALTER TABLE there DROP CONSTRAINT there_pkey, ADD PRIMARY KEY (tenant_id, id)");
    let moved = m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
}

#[test]
fn ids_that_the_log_shows_otherwise_and_variables_of_others_are_refused() {
    let m = Moving::start(1, TABLES);
    for shard in &m.shards {
        shard
            .sql("CREATE COLLATION calm (provider = icu, locale = 'und-u-ks-level2', deterministic = false)");
        for (name, kind) in [
            ("padded", "char(10)"),
            ("fitting", "char(4)"),
            ("calmed", "text COLLATE calm"),
            ("blank", "bpchar"),
            ("cut", "varchar(3)"),
            ("number", "bigint"),
        ] {
            let definition = format!("tenant_id {kind}, id int, PRIMARY KEY (tenant_id, id))");
            shard.sql(&table(name, &definition, "tenant_id::text = current_setting('app.tenant_id', true)"));
        }
        let definition = "tenant_id text, id int, PRIMARY KEY (tenant_id, id))";
        shard.sql(&table("elsewhere", definition, "tenant_id = current_setting('app.customer', true)"));
    }
    m.tenant("acme", 0);
    let kinds: Vec<_> = [
        ("padded", "shows the tenant's id as `acme      `"),
        ("calmed", "the collation of tenant_id takes different ids for equal"),
        ("blank", "of which equal values may look different"),
        ("cut", "shows the tenant's id as `acm`"),
        ("number", "is no value of the type bigint"),
        ("elsewhere", "its policies ask app.customer, and the tenant's context sets app.tenant_id"),
    ]
    .into_iter()
    .flat_map(|(name, reason)| ["", " on shard s1"].map(|s| (format!("public.{name}{s}"), reason)))
    .collect();
    let expected: Vec<_> = kinds.iter().map(|(about, reason)| (about.as_str(), *reason, "")).collect();
    expect(&refusals(&m, &[]), &expected);
}

const PARTS: &str = "
CREATE TABLE events (tenant_id text NOT NULL, id int, body text, PRIMARY KEY (tenant_id, id)) PARTITION BY RANGE (id);
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (100);
CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (100) TO (1000) PARTITION BY RANGE (id);
CREATE TABLE events_2a PARTITION OF events_2 FOR VALUES FROM (100) TO (500);
CREATE TABLE events_2b PARTITION OF events_2 FOR VALUES FROM (500) TO (1000);
";

/// Policies for all of them.
const PARTS_SECURE: &str = "
DO $$ DECLARE t text; BEGIN
    FOREACH t IN ARRAY ARRAY['events', 'events_1', 'events_2', 'events_2a', 'events_2b'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY tenant ON %I USING (tenant_id = current_setting(''app.tenant_id'', true))', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO app', t);
    END LOOP;
END $$;
";

#[test]
fn parts_that_cannot_be_followed_are_refused() {
    let m = Moving::start(1, &format!("{TABLES}{PARTS}{PARTS_SECURE}"));
    m.shards[0].sql(
        "ALTER TABLE events_1 SET UNLOGGED; ALTER TABLE events_2a REPLICA IDENTITY NOTHING;
         ALTER TABLE events_2b DISABLE ROW LEVEL SECURITY;
         CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
         CREATE TABLE far (tenant_id text NOT NULL, id int) PARTITION BY LIST (id);
         ALTER TABLE far ENABLE ROW LEVEL SECURITY;
         CREATE FOREIGN TABLE far_1 PARTITION OF far FOR VALUES IN (1) SERVER files OPTIONS (filename '/dev/null')",
    );
    m.tenant("acme", 0);
    expect(
        &refusals(&m, &[]),
        &[
            ("public.events_1", "not logged", "ALTER TABLE \"public\".\"events_1\" SET LOGGED"),
            ("public.events_2a", "no replica identity", "REPLICA IDENTITY DEFAULT"),
            ("public.events_2b", "no row-level security", "\"events_2b\" ENABLE ROW LEVEL SECURITY"),
            ("public.far", "", ""),
            ("public.far_1", "foreign table", "ALTER TABLE \"public\".\"far\" DETACH PARTITION"),
        ],
    );
}

/// What sessions that name the tenant get from each part, where it does not live any more. Where it has no rows, nothing
/// is asked about those that are read.
fn sessions_at(m: &Moving, shard: usize, tenant: &Tenant, rows: bool) {
    let variable = format!("-c app.tenant_id={}", tenant.id);
    let mut old = m.shards[shard].app().param("options", &variable).connect();
    for part in ["events", "events_1", "events_2", "events_2a", "events_2b"] {
        let late = format!("INSERT INTO {part} VALUES ('{}', 700, 'late')", tenant.id);
        assert_eq!(old.try_rows(&late).expect_err("it is refused").sqlstate, "TN002", "{part}");
        if rows {
            assert_eq!(
                old.try_rows(&format!("DELETE FROM {part}")).expect_err("it is refused").sqlstate,
                "TN002",
                "{part}"
            );
        }
    }
}

#[test]
fn each_part_is_fenced_and_no_fence_is_trusted_by_its_name() {
    let m = Moving::start(1, &format!("{TABLES}{PARTS}{PARTS_SECURE}"));
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO events SELECT 'acme', n, 'x' FROM generate_series(1, 900) n");
    m.cli(&["move", "rehearse", "acme", "--to", "s1", "--wait"]);
    let policies = "SELECT string_agg(polrelid::regclass || ' ' || oid, ',' ORDER BY oid) FROM pg_policy
                    WHERE polname = 'switchyard_fence' AND polrelid::regclass::text <> 'ledger'";
    let before = m.one(0, policies);
    // As if the context had had another variable.
    m.shards[0].sql(
        "DROP POLICY switchyard_fence ON ledger;
         CREATE POLICY switchyard_fence ON ledger AS RESTRICTIVE
         USING ((SELECT switchyard.admit(current_setting('app.customer', true))))",
    );
    let moved = m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    assert_eq!(m.one(0, policies), before, "what is right already is not made again");
    sessions_at(&m, 0, &acme, true);
    let mut old = m.shards[0].app().param("options", "-c app.tenant_id=acme").connect();
    let late = "INSERT INTO ledger (client, seq) VALUES (1, 1)";
    assert_eq!(old.try_rows(late).expect_err("it is refused").sqlstate, "TN002");
    // Written into a part, and there after the way back.
    psql(
        &m.url(&acme, 0),
        "UPDATE events_2b SET body = 'y' WHERE id = 600; DELETE FROM events_1 WHERE id = 7",
    )
    .unwrap();
    let back = m.cli(&["move", "rollback", "acme", "--wait"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
    let count = "SELECT count(*) || ' ' || count(*) FILTER (WHERE body = 'y') FROM events";
    assert_eq!(psql(&m.url(&acme, 0), count).unwrap(), "899 1");
    assert_eq!(m.one(1, "SELECT count(*) FROM events"), "0");
    sessions_at(&m, 1, &acme, false);
}

#[test]
fn two_moves_may_tell_their_tenants_by_different_columns() {
    let either = "current_setting('app.tenant_id', true) IN (tenant_id, owner_id)";
    let shared = table(
        "shared",
        "tenant_id text, owner_id text, id int, PRIMARY KEY (tenant_id, owner_id, id))",
        either,
    );
    let m = Moving::start(1, &format!("{TABLES}{shared}"));
    let acme = m.tenant("acme", 0);
    m.tenant("zeta", 0);
    m.shards[0].sql("INSERT INTO shared VALUES ('acme', 'x', 1), ('y', 'zeta', 1)");
    m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
    m.cli(&["move", "start", "zeta", "--to", "s1", "--tenant-column", "owner_id", "--wait"]);
    psql(&m.url(&acme, 0), "INSERT INTO shared VALUES ('acme', 'x', 2)").unwrap();
    let back = m.cli(&["move", "rollback", "acme", "--wait"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
    assert_eq!(psql(&m.url(&acme, 0), "SELECT count(*) FROM shared").unwrap(), "2");
}

#[test]
fn a_table_without_a_key_that_only_the_target_has_is_not_in_the_way() {
    let m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    m.shards[1].sql("CREATE TABLE keyless (tenant_id text, n int); INSERT INTO keyless VALUES ('other', 1)");
    m.shards[0].sql("INSERT INTO clients SELECT 'acme', n, 'c' FROM generate_series(1, 10) n");
    let done = m.cli(&["move", "rehearse", "acme", "--to", "s1", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "rehearsed", "{done}");
    assert_eq!(m.one(1, "SELECT string_agg(tenant_id, ',') FROM keyless"), "other");
    m.nothing_left();
}

#[test]
fn views_are_filled_and_names_of_objects_are_kept_in_a_schema_of_its_own() {
    let m = Moving::start(1, "");
    m.context(r#"{"search_path": ["t_{tenant}"]}"#);
    // OIDs of the two shards are not the same.
    m.shards[1].sql("CREATE TABLE others (x int); CREATE TABLE further (x int)");
    m.shards[0].sql(
        "CREATE SCHEMA t_acme; SET search_path = t_acme;
         CREATE DOMAIN table_name AS regclass;
         CREATE TABLE things (id int PRIMARY KEY, kind regclass, kinds regclass[], named table_name);
         INSERT INTO things SELECT n, 'things', '{things,pg_class}', 'things' FROM generate_series(1, 50) n;
         CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM things;
         CREATE MATERIALIZED VIEW a_second AS SELECT n * 2 AS n FROM counted;
         CREATE MATERIALIZED VIEW unfilled AS SELECT n FROM counted WITH NO DATA;
         CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
         GRANT USAGE ON SCHEMA t_acme TO app;
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA t_acme TO app",
    );
    let acme = m.known_tenant("acme", 0, &["--no-provision"]);
    // A trigger of the fence's name that was made for another tenant, as in a schema that was copied.
    m.cli(&["move", "rehearse", "acme", "--to", "s1", "--wait"]);
    m.shards[0].sql(
        "DROP TRIGGER switchyard_fence ON t_acme.things;
         CREATE TRIGGER switchyard_fence BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON t_acme.things
         FOR EACH STATEMENT EXECUTE FUNCTION switchyard.admit_trigger('template')",
    );
    let moved = m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    assert_eq!(moved["receipt"]["verified"], true);
    let url = m.url(&acme, 0);
    let things = "SELECT DISTINCT concat_ws(' ', kind, kinds, named, kind::oid = 't_acme.things'::regclass::oid) FROM things";
    assert_eq!(psql(&url, things).unwrap(), "things {things,pg_class} things t");
    assert_eq!(psql(&url, "SELECT c.n + s.n FROM counted c, a_second s").unwrap(), "150");
    assert_eq!(m.one(1, "SELECT relispopulated FROM pg_class WHERE relname = 'unfilled'"), "f");
    let mut old = m.shards[0].app().connect();
    for late in ["UPDATE t_acme.things SET id = 1", "INSERT INTO t_acme.parts_1 VALUES (1)"] {
        assert_eq!(old.try_rows(late).expect_err("it is refused").sqlstate, "TN002", "{late}");
    }
}

#[test]
fn large_objects_and_foreign_tables_are_refused_in_a_database_of_its_own() {
    let m = Moving::start(1, "");
    m.context(r#"{"database": "crm_{tenant}"}"#);
    psql(&at(&m, 0, DATABASE), "CREATE DATABASE crm_acme").unwrap();
    let own = at(&m, 0, "crm_acme");
    psql(
        &own,
        "CREATE TABLE things (id int PRIMARY KEY); SELECT lo_create(0);
         CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
         CREATE FOREIGN TABLE far (id int) SERVER files OPTIONS (filename '/dev/null')",
    )
    .unwrap();
    psql(&own, "GRANT CONNECT ON DATABASE crm_acme TO app").unwrap();
    m.known_tenant("acme", 0, &["--no-provision"]);
    expect(
        &refusals(&m, &[]),
        &[("public.far", "foreign table", "DROP FOREIGN TABLE"), ("s0", "1 large objects", "lo_unlink")],
    );
}
