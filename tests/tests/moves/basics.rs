//! One move, from all sides.

use serde_json::Value;
use switchyard_tests::moves::Moving;

use crate::TABLES;

const ROWS: &str = "
INSERT INTO clients SELECT 'acme', n, 'acme client ' || n FROM generate_series(1, 500) n;
INSERT INTO clients SELECT 'other', n, 'other client ' || n FROM generate_series(1, 20) n;
INSERT INTO leads SELECT 'acme', n, n, 'first', repeat('x', n % 3000), NULL FROM generate_series(1, 400) n;
SELECT setval('leads_id_seq', 400), setval('clients_id_seq', 500);
";

fn psql(url: &str, sql: &str) -> Result<String, String> {
    let output =
        std::process::Command::new("psql").args([url, "-XAtqc", sql]).output().expect("psql is installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn a_tenant_moves_comes_back_and_leaves_nothing_behind() {
    let m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.tenant("other", 0);
    m.shards[0].sql(ROWS);
    let url = m.url(&acme, 0);
    let all = "SELECT count(*) || ' ' || md5(string_agg(c::text, ',' ORDER BY id)) FROM clients c";
    let before = psql(&url, all).unwrap();

    let plan = m.cli(&["move", "start", "acme", "--to", "s1", "--dry-run"]);
    assert_eq!(plan["outcome"], "planned", "{plan}");
    // What is small is counted, though nothing has analysed it.
    assert_eq!(plan["plan"]["rows"], 900, "{plan}");
    assert_eq!(m.one(0, "SELECT to_regclass('switchyard.fence') IS NULL"), "t", "a plan touches nothing");

    let moved = m.cli(&["move", "start", "acme", "--to", "s1", "--wait", "--timeout", "60"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    let rows = |table: &str| {
        let tables = moved["receipt"]["tables"].as_array().unwrap();
        tables.iter().find(|t| t["table"] == table).unwrap()["rows"].as_u64().unwrap()
    };
    assert_eq!((rows("public.clients"), rows("public.leads"), rows("public.ledger")), (500, 400, 0));
    assert_eq!(psql(&url, all).unwrap(), before);
    assert_eq!(m.one(1, "SELECT count(*) FROM clients WHERE tenant_id = 'other'"), "0");
    // Nobody writes where the tenant was, not even with an old topology.
    let mut old = m.shards[0].app().param("options", "-c app.tenant_id=acme").connect();
    for late in
        ["INSERT INTO clients (tenant_id, name) VALUES ('acme', 'late')", "SELECT count(*) FROM clients"]
    {
        assert_eq!(old.try_rows(late).unwrap_err().sqlstate, "TN002", "{late}");
    }
    // A neighbour is not concerned.
    let mut other = m.shards[0].app().param("options", "-c app.tenant_id=other").connect();
    assert_eq!(other.column("SELECT count(*) FROM clients"), ["20"]);

    // Written at the target, and there after the way back; the sequence gives out no value twice.
    psql(
        &url,
        "INSERT INTO clients (tenant_id, name) VALUES ('acme', 'new one'); DELETE FROM clients WHERE id = 7",
    )
    .unwrap();
    let after = psql(&url, all).unwrap();
    let back = m.cli(&["move", "rollback", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
    assert!(back["receipt"]["rollback_pause"]["total_us"].as_u64().unwrap() > 0, "{back}");
    assert_eq!(psql(&url, all).unwrap(), after);
    assert_eq!(m.one(1, "SELECT count(*) FROM clients WHERE tenant_id = 'acme'"), "0");
    m.nothing_left();

    let again = m.cli(&["move", "start", "acme", "--to", "s1", "--wait", "--timeout", "60"]);
    assert_eq!(again["phase"], "moved", "{again}");
    let done = m.cli(&["move", "complete", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    assert_eq!(psql(&url, all).unwrap(), after);
    assert_eq!(m.one(0, "SELECT count(*) FROM clients WHERE tenant_id = 'acme'"), "0");
    assert_eq!(m.one(0, "SELECT count(*) FROM clients WHERE tenant_id = 'other'"), "20");
    m.nothing_left();

    let counted = m.metrics();
    for line in [
        "switchyard_moves{state=\"completed\"} 1",
        "switchyard_moves{state=\"rolled_back\"} 1",
        "switchyard_moved{what=\"tenants\"} 2",
        "switchyard_move_pauses{ms=\"10000\"} 2",
    ] {
        assert!(counted.contains(line), "{line}: {counted}");
    }
    let receipt = m.cli(&["move", "receipt", "acme"]);
    assert_eq!(receipt["verified"], Value::Bool(true), "{receipt}");
}

#[test]
fn what_cannot_be_moved_is_refused_with_what_mends_it() {
    let sql = "
        CREATE TABLE keyless (tenant_id text, x int);
        CREATE UNLOGGED TABLE volatile (tenant_id text, id int, PRIMARY KEY (tenant_id, id));
        CREATE TABLE open (tenant_id text, id int PRIMARY KEY);
        ALTER TABLE keyless ENABLE ROW LEVEL SECURITY; ALTER TABLE volatile ENABLE ROW LEVEL SECURITY;";
    let m = Moving::start(1, &format!("{TABLES}{sql}"));
    m.shards[1].sql("ALTER TABLE leads DROP COLUMN email");
    m.tenant("acme", 0);
    let output = m.command(&["move", "start", "acme", "--to", "s1", "--wait", "-o", "json"]);
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    let refused: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(refused["outcome"], "refused");
    let findings = refused["plan"]["findings"].as_array().unwrap();
    for (about, mend) in [
        ("public.keyless", "ALTER TABLE \"public\".\"keyless\" ADD PRIMARY KEY (\"tenant_id\", id)"),
        ("public.volatile", "ALTER TABLE \"public\".\"volatile\" SET LOGGED"),
        ("public.open", "ENABLE ROW LEVEL SECURITY"),
        ("public.leads on shard s1", "ALTER TABLE \"public\".\"leads\" ADD COLUMN \"email\" text"),
    ] {
        let found = findings.iter().any(|f| {
            f["about"] == about && f["refuses"] == true && f["mend"].as_str().unwrap().contains(mend)
        });
        assert!(found, "{about}: {findings:#?}");
    }
    assert_eq!(m.one(0, "SELECT count(*) FROM pg_replication_slots"), "0");
}

#[test]
fn a_rehearsal_leaves_everything_as_it_was() {
    let m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients SELECT 'acme', n, 'c' FROM generate_series(1, 50) n");
    let done = m.cli(&["move", "rehearse", "acme", "--to", "s1", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "rehearsed", "{done}");
    assert!(done["receipt"]["predicted_pause_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(m.one(1, "SELECT count(*) FROM clients"), "0");
    assert_eq!(psql(&m.url(&acme, 0), "SELECT count(*) FROM clients").unwrap(), "50");
    m.nothing_left();
}

#[test]
fn an_attempt_that_somebody_is_in_the_way_of_is_given_up_and_tried_again() {
    let m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let mut open = m.login(&acme, 0);
    // The fence's policies are made by this; a transaction that only reads is in the way of nothing else.
    m.cli(&["move", "rehearse", "acme", "--to", "s1", "--wait"]);
    open.rows("BEGIN; SELECT name FROM clients");
    let started = m.cli(&["move", "start", "acme", "--to", "s1"]);
    let id = started["id"].to_string();
    switchyard_tests::wait::until_true("an attempt that was given up", || {
        m.cli(&["move", "show", &id])["error"].as_str().is_some_and(|e| e.contains("in a transaction"))
    });
    // Others of the tenant have not been held up for longer than the budget.
    assert_eq!(psql(&m.url(&acme, 0), "SELECT name FROM clients").unwrap(), "c");
    open.rows("UPDATE clients SET name = 'held'; COMMIT");
    switchyard_tests::wait::until_true("the move", || m.cli(&["move", "show", &id])["phase"] == "moved");
    // The same session, which has never connected again.
    assert_eq!(open.column("SELECT name FROM clients"), ["held"]);
    assert_eq!(m.one(1, "SELECT name FROM clients"), "held");
}
