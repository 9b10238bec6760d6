//! The way back is kept whatever breaks while the source follows, and nothing is deleted that was not moved.

use std::thread;
use std::time::Duration;

use switchyard_tests::moves::Moving;
use switchyard_tests::wait;

use crate::TABLES;

const MOVERS: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name ~ '^switchyard-mover'";

/// What a move writes to the catalog by, and not what the leading process holds its lock by.
const JOURNALS: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE application_name = 'switchyard-mover' AND pid NOT IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')";

fn moved(m: &Moving) -> String {
    let moved = m.cli(&["move", "start", "acme", "--to", "s1", "--wait", "--timeout", "60"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    moved["id"].to_string()
}

/// The number of the journal's takeovers.
fn term(m: &Moving, id: &str) -> i64 {
    let term = m.catalog.value(&format!("SELECT term FROM switchyard.moves WHERE id = {id}"));
    term.parse().expect("a number")
}

fn roll_back(m: &Moving, id: &str) {
    let back = m.cli(&["move", "rollback", id, "--wait", "--timeout", "60"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
}

#[test]
fn what_breaks_while_the_source_follows_does_not_take_the_way_back() {
    let m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.tenant("other", 1);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let id = moved(&m);
    let mut client = m.login(&acme, 0);
    let mut neighbour = 0;
    for round in 0..3 {
        let before = term(&m, &id);
        client.rows(&format!("INSERT INTO clients VALUES ('acme', {}, 'before')", 10 + round));
        match round {
            0 => m.catalog.sql(JOURNALS),
            1 => m.shards[1].sql(MOVERS),
            _ => m.shards[0].sql(MOVERS),
        };
        // The log of the target goes on meanwhile.
        wait::until_true("another takeover", || {
            neighbour += 1;
            m.shards[1].sql(&format!("INSERT INTO clients VALUES ('other', {neighbour}, 'n')"));
            client.rows("UPDATE clients SET name = name || '.' WHERE id = 1");
            // A failure of the source or the catalog alone is got over without one.
            thread::sleep(Duration::from_millis(50));
            term(&m, &id) > before || (round != 1 && neighbour > 60)
        });
        wait::until_true("the source to follow", || {
            m.one(0, "SELECT name FROM clients WHERE tenant_id = 'acme' AND id = 1")
                == m.one(1, "SELECT name FROM clients WHERE tenant_id = 'acme' AND id = 1")
        });
    }
    roll_back(&m, &id);
    assert_eq!(m.one(0, "SELECT count(*) FROM clients WHERE tenant_id = 'acme'"), "4");
    assert_eq!(m.one(1, "SELECT count(*) FROM clients WHERE tenant_id = 'acme'"), "0");
    m.nothing_left();
}

#[test]
fn attempts_at_going_back_that_are_used_up_do_not_take_the_way_back() {
    let m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let moved =
        m.cli(&["move", "start", "acme", "--to", "s1", "--attempts", "2", "--wait", "--timeout", "60"]);
    let id = moved["id"].to_string();
    let mut open = m.login(&acme, 0);
    open.rows("BEGIN; UPDATE clients SET name = 'there'");
    m.cli(&["move", "rollback", &id]);
    let before = term(&m, &id);
    wait::until_true("all attempts to be used up, twice", || term(&m, &id) > before + 1);
    open.rows("COMMIT");
    wait::until_true("the way back", || m.cli(&["move", "show", &id])["outcome"] == "rolled_back");
    assert_eq!(m.one(0, "SELECT name FROM clients"), "there");
    m.nothing_left();
}

#[test]
fn a_table_that_appears_before_the_cutover_ends_the_move() {
    let mut m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    m.kill_control_plane();
    m.start_control_plane_to_end_at("stop:way back prepared");
    let id = m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
    m.wait_control_plane_stopped();
    for shard in &m.shards {
        shard.sql("CREATE TABLE late (tenant_id text, id int, PRIMARY KEY (tenant_id, id))");
    }
    m.shards[0].sql("INSERT INTO late VALUES ('acme', 1)");
    m.thaw_control_plane();
    wait::until_true("the end", || m.cli(&["move", "show", &id])["phase"] == "done");
    let shown = m.cli(&["move", "show", &id]);
    assert_eq!(shown["outcome"], "failed", "{shown}");
    assert!(shown["error"].as_str().unwrap().contains("tables changed"), "{shown}");
    assert_eq!(
        m.one(0, "SELECT (SELECT count(*) FROM late) || ' ' || (SELECT count(*) FROM clients)"),
        "1 1"
    );
    assert_eq!(m.one(1, "SELECT count(*) FROM clients"), "0");
    m.nothing_left();
}

#[test]
fn rows_that_were_not_moved_are_not_deleted() {
    let m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let id = moved(&m);
    for shard in &m.shards {
        shard.sql("CREATE TABLE late (tenant_id text, id int, PRIMARY KEY (tenant_id, id))");
    }
    m.shards[0].sql("INSERT INTO late VALUES ('acme', 1)");
    m.cli(&["move", "complete", &id]);
    wait::until_true("the refusal", || {
        m.cli(&["move", "show", &id])["error"].as_str().is_some_and(|e| e.contains("public.late has rows"))
    });
    let shown = m.cli(&["move", "show", &id]);
    assert_eq!((&shown["phase"], &shown["wish"]), (&"moved".into(), &"run".into()), "{shown}");
    assert_eq!(m.one(0, "SELECT count(*) FROM clients"), "1");
    // The source follows still.
    let mut client = m.login(&acme, 0);
    client.rows("UPDATE clients SET name = 'later'");
    wait::until_true("the source to follow", || m.one(0, "SELECT name FROM clients") == "later");
    m.shards[0].sql("DELETE FROM late");
    let done = m.cli(&["move", "complete", &id, "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    assert_eq!(m.one(0, "SELECT count(*) FROM clients"), "0");
    m.nothing_left();
}

#[test]
fn the_log_of_the_source_is_not_held_back_for_a_tenant_that_has_gone() {
    let m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let id = moved(&m);
    m.shards[0].sql("INSERT INTO clients SELECT 'other', n, 'n' FROM generate_series(1, 100) n");
    let now = m.one(0, "SELECT pg_current_wal_lsn()");
    wait::until_true("the slot to go on", || {
        m.one(0, &format!("SELECT confirmed_flush_lsn >= '{now}' FROM pg_replication_slots")) == "t"
    });
    roll_back(&m, &id);
}
