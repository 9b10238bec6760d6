//! Tenants whose state is `read-only`.

use switchyard_shard_schema::install::{Form, Revokes};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Running, Setup};

const NAMES: &str = "SELECT name FROM clients ORDER BY id";

fn setup() -> Setup {
    Setup::new().shards(1).pool("size = 1").tenants(["globex"])
}

fn archive() -> &'static str {
    "[[tenants]]\nid = \"archive\"\nstate = \"read-only\""
}

fn items(s: &Running) -> String {
    s.shards[0].value("SELECT count(*) FROM scratch.items")
}

#[test]
fn it_reads_and_does_not_write() {
    for sealed in [false, true] {
        let setup = if sealed { setup().sealed(Form::Parameter, Revokes::default()) } else { setup() };
        let s = setup.section(archive()).start();
        let (mut archive, mut globex) = (s.login("archive"), s.login("globex"));
        for way in [
            "INSERT INTO scratch.items VALUES (1, 'x')",
            "BEGIN; INSERT INTO scratch.items VALUES (1, 'x')",
            "BEGIN READ WRITE; INSERT INTO scratch.items VALUES (1, 'x')",
            "BEGIN ISOLATION LEVEL SERIALIZABLE, READ WRITE",
            "SET TRANSACTION READ WRITE",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
            "SET default_transaction_read_only = off",
            "SELECT set_config('default_transaction_read_only', 'off', false)",
            "RESET ALL; COMMIT; INSERT INTO scratch.items VALUES (1, 'x')",
            "SET LOCAL transaction_read_only = off; INSERT INTO scratch.items VALUES (1, 'x')",
        ] {
            let refused = archive.error(way);
            assert_eq!(refused.sqlstate, "25006", "{way}: {refused:?}");
            let _ = archive.try_rows("ROLLBACK");
            let answer = archive.round(&m::extended(way.rsplit("; ").next().unwrap(), &[]));
            assert!(answer.iter().any(|m| m.tag == b'E' && m.sqlstate() == "25006"), "{way}: {answer:?}");
        }
        // What cannot be read from the text changes no transaction that is open, and none that follows.
        for hidden in [
            "RESET ALL",
            "DISCARD ALL",
            "DO $$ BEGIN EXECUTE 'SET default_' || 'transaction_read_only = off'; END $$",
            "DO $$ BEGIN EXECUTE 'RESET ALL'; END $$",
            "SET default_transaction_read_only = on",
        ] {
            archive.rows(hidden);
            let refused = archive.error("INSERT INTO scratch.items VALUES (2, 'y')");
            assert_eq!(refused.sqlstate, "25006", "{hidden}");
            archive.rows(hidden);
            archive.rows("BEGIN");
            let refused = archive.error("INSERT INTO scratch.items VALUES (2, 'y')");
            assert_eq!(refused.sqlstate, "25006", "{hidden}");
            archive.rows("ROLLBACK");
        }
        let inner = "DO $$ BEGIN EXECUTE 'SET transaction_' || 'read_only = off'; END $$";
        assert_eq!(archive.error(inner).sqlstate, "25001");
        archive.rows("BEGIN READ ONLY; SELECT 1; COMMIT");
        assert_eq!(archive.value("SHOW transaction_read_only"), "on");
        // On the same connection.
        globex.rows("INSERT INTO scratch.items VALUES (3, 'z')");
        assert_eq!(globex.column(NAMES), s.canaries("globex"));
        assert_eq!(items(&s), "1");
    }
}

#[test]
fn startup_parameters_do_not_help() {
    let s = setup().section(archive()).start();
    for (name, value) in [
        ("default_transaction_read_only", "off"),
        ("options", "-c default_transaction_read_only=off"),
        ("options", "--transaction_read_only=off"),
    ] {
        if let Ok(mut session) = s.target("archive").param(name, value).try_connect() {
            let refused = session.error("INSERT INTO scratch.items VALUES (1, 'x')");
            assert_eq!(refused.sqlstate, "25006", "{name} = {value}");
        }
    }
    assert_eq!(items(&s), "0");
}

#[test]
fn it_begins_and_ends_with_the_next_transaction() {
    let mut s = setup().section("[[tenants]]\nid = \"archive\"\nstate = \"active\"").start();
    let write = "INSERT INTO scratch.items SELECT count(*), 'x' FROM scratch.items";
    let mut archive = s.login("archive");
    let mut kept = s.login("archive");
    archive.rows(write);
    archive.rows("BEGIN; SELECT 1");
    assert!(s.reload(|toml| toml.replace("state = \"active\"", "state = \"read-only\"")));
    archive.rows(write);
    archive.rows("COMMIT");
    assert_eq!(archive.error(write).sqlstate, "25006");
    assert_eq!(kept.error(write).sqlstate, "25006");
    assert!(s.reload(|toml| toml.replace("state = \"read-only\"", "state = \"active\"")));
    archive.rows(write);
    // One that keeps its connection would lose what it keeps it for, and ends.
    kept.rows("CREATE TEMP TABLE t (x int)");
    assert!(s.reload(|toml| toml.replace("state = \"active\"", "state = \"read-only\"")));
    assert_eq!(kept.error("INSERT INTO t VALUES (1)").sqlstate, "57P01");
}
