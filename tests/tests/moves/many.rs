//! Many moves at once: one slot on the source however many, no more at a time than is allowed, no more sessions on a shard
//! than it can spare, and how fast they go.
//!
//! With `SWITCHYARD_TESTS_MANY=200`, as `make bench-copy` asks for, this is the measurement of small tenants.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use switchyard_tests::moves::Moving;
use switchyard_tests::wait;

use crate::TABLES;

/// Moves at a time from or to a shard.
const AT_A_TIME: i64 = 16;

/// Sessions that the mover may have on a shard, and connections that a shard lets in: of the suite, and of the measurement.
const FEW: (usize, usize) = (20, 40);
const MANY: (usize, usize) = (80, 120);

/// Those that stay: one looks at the slot that is read, one at others.
const WATCHING: i64 = 2;

fn tenants() -> usize {
    std::env::var("SWITCHYARD_TESTS_MANY").ok().and_then(|n| n.parse().ok()).unwrap_or(24)
}

/// Sessions of the mover on a shard, without the stream's, which is no connection of clients.
const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'switchyard-mover%'
                        AND backend_type = 'client backend'";

fn sessions(m: &Moving, shard: usize) -> i64 {
    m.one(shard, SESSIONS).parse().expect("one")
}

/// Moves that have ended well, by the catalog, or stand where they are to.
fn count(m: &Moving, condition: &str) -> i64 {
    m.catalog.value(&format!("SELECT count(*) FROM switchyard.moves WHERE {condition}")).parse().expect("one")
}

#[test]
#[allow(clippy::print_stdout, reason = "what was measured is part of the test's answer")]
fn heavy_many_moves_share_a_slot_and_keep_to_the_limit() {
    let mut m = Moving::start(1, TABLES);
    let (most, connections) = if tenants() > 24 { MANY } else { FEW };
    m.kill_control_plane();
    for shard in &mut m.shards {
        shard.sql(&format!("ALTER SYSTEM SET max_connections = {connections}"));
        shard.kill9();
        shard.start_again();
    }
    m.write(
        "control-plane.toml",
        &format!(
            "{}moves_per_shard = {AT_A_TIME}\nmove_sessions_per_shard = {most}\n",
            m.read("control-plane.toml")
        ),
    );
    m.start_control_plane();
    m.wait_ready();
    let all = tenants();
    let ids: Vec<_> = (0..all).map(|n| format!("t{n}")).collect();
    for id in &ids {
        m.cli(&["tenant", "create", id, "--shard", "s0"]);
    }
    m.shards[0].sql(&format!(
        "INSERT INTO clients SELECT 't' || t, n, 'c' FROM generate_series(0, {all} - 1) t, generate_series(1, 20) n;
         INSERT INTO leads SELECT 't' || t, n, n % 20 + 1, 'first', repeat('x', n % 500), NULL
             FROM generate_series(0, {all} - 1) t, generate_series(1, 100) n;
         INSERT INTO ledger SELECT 't' || t, 1, n FROM generate_series(0, {all} - 1) t, generate_series(1, 50) n;
         ANALYZE"
    ));
    m.write("tenants", &(ids.join("\n") + "\n"));
    let list = m.path("tenants");
    let list = list.to_str().expect("plain");
    let over = AtomicBool::new(false);
    let (took, slots, busiest, peak) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let (mut slots, mut busiest, mut peak) = (0, 0, 0);
            // A session each, kept: to open one takes more than many questions do.
            let (mut here, mut there, mut catalog) =
                (m.shards[0].admin(), m.shards[1].admin(), m.catalog.admin());
            let under_way =
                "SELECT count(*) FROM switchyard.moves WHERE phase NOT IN ('queued', 'moved', 'done')";
            let number = |text: String| text.parse::<i64>().expect("a number");
            while !over.load(Ordering::Relaxed) {
                slots = slots.max(number(here.value("SELECT count(*) FROM pg_replication_slots")));
                busiest = busiest.max(number(catalog.value(under_way)));
                peak = peak.max(number(here.value(SESSIONS))).max(number(there.value(SESSIONS)));
                std::thread::sleep(Duration::from_millis(50));
            }
            (slots, busiest, peak)
        });
        let before = m.processor_seconds();
        let began = Instant::now();
        let output = m.command(&[
            "move",
            "start",
            "--tenants-from",
            list,
            "--to",
            "s1",
            "--attempts",
            "1000",
            "--wait",
        ]);
        let took = began.elapsed();
        let after = m.processor_seconds();
        over.store(true, Ordering::Relaxed);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for ((part, before), (_, after)) in before.into_iter().zip(after) {
            println!("{part}: {:.1} ms of processor time a move", (after - before) * 1000.0 / all as f64);
        }
        let (slots, busiest, peak) = watching.join().expect("it watches");
        (took, slots, busiest, peak)
    });
    println!(
        "{all} tenants of 170 rows, {AT_A_TIME} at a time: {:.1} s, {:.1} per second; at most {busiest} at a time, {slots} slot",
        took.as_secs_f64(),
        all as f64 / took.as_secs_f64()
    );
    assert_eq!(slots, 1);
    assert!((2..=AT_A_TIME).contains(&busiest), "{busiest}");
    assert_eq!(count(&m, "phase = 'moved'"), all as i64);
    // They all follow the one slot of the other side now.
    assert_eq!(m.one(1, "SELECT count(*) FROM pg_replication_slots"), "1");
    assert_eq!(m.one(1, "SELECT count(*) FROM leads"), (all * 100).to_string());
    assert!(peak <= most as i64, "{peak} sessions of the mover on a shard");
    // All of them write: what the source has may come over few sessions, and is there soon.
    m.shards[1].sql("UPDATE ledger SET at = 'epoch' WHERE client = 1");
    let behind = "SELECT count(*) FROM ledger WHERE at > 'epoch'";
    wait::until_true("the source to follow all of them", || m.one(0, behind) == "0");
    assert!((0..2).all(|shard| sessions(&m, shard) <= most as i64));
    // Those that write nothing need none.
    wait::until_true("sessions to end", || (0..2).all(|shard| sessions(&m, shard) <= WATCHING));
    println!(
        "at most {peak} sessions of the mover on a shard; {} on the source while {all} moves can be rolled back",
        sessions(&m, 0)
    );
    let back = m.cli(&["move", "rollback", &ids[0], "--wait", "--timeout", "60"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
    let ids = &ids[1..];
    for id in ids {
        m.cli(&["move", "complete", id]);
    }
    wait::until_true("all to be completed", || count(&m, "outcome = 'completed'") == ids.len() as i64);
    m.nothing_left();
    // Of the one that went back.
    assert_eq!(m.one(0, "SELECT count(*) FROM leads"), "100");
}
