//! What a move may hold back on the source, and standbys of the target that cannot keep up.

use switchyard_tests::moves::Moving;
use switchyard_tests::wait;

use crate::TABLES;

#[test]
fn a_slot_that_retains_too_much_is_told_of_and_then_dropped_with_its_moves() {
    let m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql(
        "INSERT INTO clients VALUES ('acme', 1, 'c'); INSERT INTO leads SELECT 'acme', n, 1, 'f', repeat('x', 1000), NULL FROM generate_series(1, 5000) n",
    );
    // So slow that the log waits.
    let args = ["move", "start", "acme", "--to", "s1", "--rate", "20000", "--wal-budget", "100000000"];
    let id = m.cli(&args)["id"].to_string();
    wait::until_true("the copy", || m.cli(&["move", "show", &id])["phase"] == "copying");
    // What is written before the slot is there is not retained.
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE active";
    wait::until_true("the stream", || m.one(0, slots) == "1");
    let log = |mb: u32| {
        let sql = format!(
            "SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))) FROM generate_series(1, {mb})"
        );
        m.one(0, &sql);
    };
    log(70);
    wait::until_true("the alarm", || {
        m.metrics().contains("what=\"retained\"} 7") || m.metrics().contains("what=\"retained\"} 8")
    });
    wait::until_true("the alert", || {
        m.catalog.value(
            "SELECT count(*) FROM switchyard.alerts WHERE kind = 'log_retained' AND cleared_at IS NULL",
        ) == "1"
    });
    assert!(m.log().contains("more than half of the log"), "it is in the log, too");
    assert_eq!(m.cli(&["move", "show", &id])["phase"], "copying", "it goes on");
    log(60);
    wait::until_true("the end", || m.cli(&["move", "show", &id])["phase"] == "done");
    let ended = m.cli(&["move", "show", &id]);
    assert_eq!(ended["outcome"], "failed", "{ended}");
    assert!(ended["error"].as_str().is_some_and(|e| e.contains("above the budget")), "{ended}");
    assert_eq!(m.one(1, "SELECT count(*) FROM leads"), "0");
    m.nothing_left();
    let mut client = m.login(&acme, 0);
    assert_eq!(client.column("SELECT count(*) FROM leads"), ["5000"]);
}

#[test]
fn a_tenant_that_has_moved_keeps_what_it_has_when_its_way_back_is_given_up() {
    let m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let id = m.cli(&["move", "start", "acme", "--to", "s1", "--wal-budget", "50000000", "--wait"])["id"]
        .to_string();
    // The source stands still: what the tenant writes at the target waits in its log.
    let mut holder = m.shards[0].admin();
    holder.rows("BEGIN; LOCK TABLE clients IN ACCESS EXCLUSIVE MODE");
    let mut client = m.login(&acme, 0);
    client.rows("UPDATE clients SET name = 'there'");
    m.one(
        1,
        "SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))) FROM generate_series(1, 60)",
    );
    wait::until_true("the slot to be dropped", || {
        m.one(1, "SELECT count(*) FROM pg_replication_slots") == "0"
    });
    holder.rows("ROLLBACK");
    wait::until_true("the word", || {
        m.cli(&["move", "show", &id])["error"].as_str().is_some_and(|e| e.contains("cannot be rolled back"))
    });
    assert_eq!(client.column("SELECT name FROM clients"), ["there"]);
    let done = m.cli(&["move", "complete", &id, "--wait"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    m.nothing_left();
}

#[test]
fn a_copy_waits_for_a_standby_of_the_target_that_does_not_replay() {
    let m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    m.shards[0].sql(
        "INSERT INTO clients VALUES ('acme', 1, 'c');
         INSERT INTO leads SELECT 'acme', n, 1, 'f', repeat(md5(n::text), 30), NULL FROM generate_series(1, 10000) n",
    );
    let standby = m.shards[1].standby();
    standby.value("SELECT pg_wal_replay_pause()");
    let args = ["--max-target-lag", "300", "--piece-bytes", "200000", "--rate", "4000000"];
    let id = m.cli(&[&["move", "start", "acme", "--to", "s1"], &args[..]].concat())["id"].to_string();
    let progress = || m.cli(&["move", "show", &id])["progress"].clone();
    wait::until_true("the copy to be held", || progress()["held"] == true);
    // What was under way when it was noticed comes to its end.
    let (mut before, mut same) = (String::new(), 0);
    wait::until_true("it to stand still", || {
        let now = m.one(1, "SELECT count(*) FROM leads");
        same = if now == before { same + 1 } else { 0 };
        before = now;
        std::thread::sleep(std::time::Duration::from_millis(200));
        same >= 5
    });
    assert!(before.parse::<u32>().is_ok_and(|rows| rows < 10_000), "{before}");
    assert!(progress()["lag_ms"].as_u64().is_some_and(|lag| lag > 300), "{}", progress());
    assert_eq!(m.cli(&["move", "show", &id])["phase"], "copying");
    standby.value("SELECT pg_wal_replay_resume()");
    wait::until_true("the move", || m.cli(&["move", "show", &id])["phase"] == "moved");
    m.shards[1].wait_replayed(&standby);
    assert_eq!(standby.value("SELECT count(*) FROM leads"), "10000");
    m.cli(&["move", "complete", &id, "--wait"]);
    m.nothing_left();
}
