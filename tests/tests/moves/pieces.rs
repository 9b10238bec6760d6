//! Large tables are copied in pieces: what a mover has brought is not brought again, whatever is written meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use switchyard_tests::dice::Dice;
use switchyard_tests::moves::Moving;
use switchyard_tests::wait;
use tokio_postgres::NoTls;

use crate::TABLES;

const EVENTS: &str = "
CREATE TABLE events (
    tenant_id text NOT NULL DEFAULT current_setting('app.tenant_id', true),
    at bigint, seq int, body text, n int DEFAULT 0, PRIMARY KEY (tenant_id, at, seq)
);
CREATE INDEX ON events (tenant_id, n);
ALTER TABLE events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON events USING (tenant_id = current_setting('app.tenant_id', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON events TO app;
";

const ROWS: i64 = 20_000;

fn start() -> Moving {
    let m = Moving::start(1, &format!("{TABLES}{EVENTS}"));
    m.shards[0].sql(&format!(
        "INSERT INTO events SELECT 'acme', n / 3, n % 3, repeat('x', 150) || n FROM generate_series(1, {ROWS}) n;
         INSERT INTO events SELECT 'other', n, 0, 'y' FROM generate_series(1, 5000) n;
         INSERT INTO clients SELECT 'acme', n, 'c' FROM generate_series(1, 200) n;
         ANALYZE"
    ));
    m
}

/// Writes all over the keys until told to stop: new rows, other values, other keys, and none. How many statements.
async fn scribble(url: String, seed: u64, stop: Arc<AtomicBool>) -> u64 {
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a session");
    tokio::spawn(connection);
    let mut dice = Dice::new(seed);
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        let at = dice.roll(8000);
        let sql = match dice.roll(6) {
            0 => format!("INSERT INTO events (at, seq, body) VALUES ({at}, {}, 'new') ON CONFLICT DO NOTHING", 10 + seed),
            1 => format!("DELETE FROM events WHERE at = {at} AND seq = 1"),
            2 => format!("UPDATE events SET n = n + 1 WHERE at = {at}"),
            // Over whatever the copy has reached, in both directions.
            3 => format!("UPDATE events SET at = at + 20000 WHERE at = {at} AND seq = 2"),
            4 => format!("UPDATE events SET at = at - 20000 WHERE at BETWEEN 20000 + {at} AND 20020 + {at} AND seq = 2"),
            _ => format!(
                "DELETE FROM events WHERE at = {at} AND seq = 0; INSERT INTO events (at, seq, body) VALUES ({at}, 0, 'again')
                 ON CONFLICT DO NOTHING"
            ),
        };
        match client.batch_execute(&sql).await {
            Ok(()) => done += 1,
            // Two of them at one key.
            Err(error) => assert_eq!(error.code().map(|c| c.code()), Some("23505"), "{sql}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    done
}

fn events(m: &Moving, id: &str) -> String {
    let output = m.command(&["move", "show", id]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn moved(m: &Moving, id: &str) -> Value {
    wait::until_true("the move", || {
        let found = m.cli(&["move", "show", id]);
        assert_ne!(found["phase"], "done", "{found}");
        found["phase"] == "moved"
    });
    m.cli(&["move", "show", id])
}

/// Rows that have ever been inserted into the table at the target.
fn inserted(m: &Moving) -> i64 {
    m.one(1, "SELECT pg_stat_force_next_flush()");
    let sql = "SELECT pg_stat_get_tuples_inserted('events'::regclass)";
    m.one(1, sql).parse().expect("a number")
}

#[test]
fn a_copy_that_is_interrupted_goes_on_from_the_last_piece() {
    let mut m = start();
    let acme = m.tenant("acme", 0);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writing: Vec<_> =
        (1..4).map(|seed| runtime.spawn(scribble(m.url(&acme, 0), seed, stop.clone()))).collect();
    m.kill_control_plane();
    m.start_control_plane_to_end_at("piece copied");
    let args = ["move", "start", "acme", "--to", "s1", "--piece-bytes", "131072", "--attempts", "1000"];
    let id = m.cli(&args)["id"].to_string();
    m.wait_control_plane_end();
    let mut before = 0;
    for _ in 0..4 {
        let there: i64 = m.one(1, "SELECT sum(rows) FROM switchyard.copies").parse().expect("a number");
        assert!(there > before, "{there} after {before}");
        before = there;
        m.start_control_plane_to_end_at("piece copied");
        m.wait_control_plane_end();
    }
    // The copy can be interrupted behind its end, too.
    m.start_control_plane_to_end_at("verified");
    m.wait_control_plane_end();
    m.start_control_plane();
    m.wait_ready();
    let moved = moved(&m, &id);
    assert_eq!(moved["receipt"]["verified"], true);
    stop.store(true, Ordering::Relaxed);
    let written: u64 =
        writing.into_iter().map(|w| runtime.block_on(w).expect("no client saw an error")).sum();
    assert!(written > 0);
    let told = events(&m, &id);
    assert_eq!(told.matches("going on with what is there").count(), 6, "{told}");
    assert!(!told.contains("begins anew"), "{told}");
    // What each mover had on its way when it ended comes again: two pieces of some 700 rows, and what was written.
    let all = inserted(&m);
    assert!(all < 2 * ROWS, "{all} rows were inserted");
    m.cli(&["move", "rollback", &id, "--wait"]);
    m.nothing_left();
    assert_eq!(m.one(1, "SELECT count(*) FROM switchyard.copies"), "0");
    assert_eq!(m.one(0, "SELECT count(*) FROM events WHERE tenant_id = 'other'"), "5000");
}

#[test]
fn a_copy_stands_still_and_goes_on_when_it_is_told_to() {
    let mut m = start();
    let acme = m.tenant("acme", 0);
    let args = ["move", "start", "acme", "--to", "s1", "--piece-bytes", "131072", "--rate", "500000"];
    let id = m.cli(&args)["id"].to_string();
    let there =
        || m.one(1, "SELECT coalesce(sum(rows), 0) FROM switchyard.copies").parse::<i64>().expect("one");
    wait::until_true("a piece", || {
        m.one(1, "SELECT to_regclass('switchyard.copies') IS NOT NULL") == "t" && there() > 0
    });
    let show = || m.cli(&["move", "show", &id]);
    wait::until_true("progress", || show()["progress"]["rows"].as_u64().is_some_and(|rows| rows > 0));
    let shown = show();
    assert!(shown["progress"]["eta_s"].as_f64().is_some_and(|s| s > 0.0), "{shown}");
    let each = shown["progress"]["each"].as_array().expect("tables").clone();
    assert_eq!(each[0]["table"], "public.events", "the largest comes first: {each:?}");
    m.cli(&["move", "pause", &id]);
    wait::until_true("it to stand still", || events(&m, &id).contains("standing still"));
    let halted = there();
    assert!(halted < ROWS, "{halted}");
    // What is written meanwhile is applied to what is there, and to nothing else.
    let mut client = m.login(&acme, 0);
    client.rows(
        "UPDATE events SET n = 7; DELETE FROM events WHERE at < 5; INSERT INTO events VALUES ('acme', -1, 1)",
    );
    wait::until_true("the changes", || m.one(1, "SELECT count(*) FROM events WHERE at = -1") == "1");
    assert_eq!(m.one(1, "SELECT count(*) FROM events WHERE at BETWEEN 0 AND 4 OR n = 0"), "1");
    assert_eq!(there(), halted);
    m.kill_control_plane();
    m.start_control_plane();
    m.wait_ready();
    m.cli(&["move", "resume", &id]);
    moved(&m, &id);
    assert!(events(&m, &id).contains("going on with what is there"), "{}", events(&m, &id));
    assert_eq!(client.column("SELECT count(*) FROM events WHERE n = 7"), [(ROWS - 14).to_string()]);
}

#[test]
fn a_change_of_key_that_the_stream_tells_in_part_has_the_copy_begin_anew() {
    let m = start();
    let acme = m.tenant("acme", 0);
    m.shards[0].sql(
        "ALTER TABLE events ALTER body SET STORAGE EXTERNAL;
         INSERT INTO events VALUES ('acme', 999999, 0, repeat('long', 5000))",
    );
    let args = ["move", "start", "acme", "--to", "s1", "--piece-bytes", "131072", "--rate", "500000"];
    let id = m.cli(&args)["id"].to_string();
    wait::until_true("a piece", || {
        m.one(1, "SELECT to_regclass('switchyard.copies') IS NOT NULL") == "t"
            && m.one(1, "SELECT count(*) FROM switchyard.copies WHERE upto IS NOT NULL") == "1"
    });
    m.cli(&["move", "pause", &id]);
    wait::until_true("it to stand still", || events(&m, &id).contains("standing still"));
    let mut client = m.login(&acme, 0);
    client.rows("UPDATE events SET at = -7 WHERE at = 999999");
    wait::until_true("it to begin anew", || {
        m.cli(&["move", "show", &id])["error"].as_str().is_some_and(|e| e.contains("begins anew"))
    });
    m.cli(&["move", "resume", &id]);
    moved(&m, &id);
    assert_eq!(client.column("SELECT length(body) FROM events WHERE at = -7"), ["20000"]);
}
