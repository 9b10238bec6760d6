//! The mover ends at each named point. Another goes on or goes back, nothing is lost, and the tenant can write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use switchyard_tests::moves::Moving;
use tokio_postgres::NoTls;

use crate::TABLES;

/// Writes until told to stop; each write is tried again until it is known to be there. The writes, and the
/// longest time that one took.
async fn writer(url: String, stop: Arc<AtomicBool>) -> (u64, Duration) {
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a session");
    let driver = tokio::spawn(connection);
    let mut longest = Duration::ZERO;
    let mut seq = 0;
    while !stop.load(Ordering::Relaxed) {
        seq += 1;
        let began = Instant::now();
        client
            .execute("INSERT INTO ledger (client, seq) VALUES (1, $1)", &[&(seq as i64)])
            .await
            .expect("no error");
        longest = longest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(client);
    let _ = driver.await;
    (seq, longest)
}

fn phase(m: &Moving, id: &str) -> String {
    m.cli(&["move", "show", id])["phase"].as_str().expect("a phase").to_owned()
}

#[test]
fn heavy_a_mover_that_ends_at_any_point_is_followed_by_another() {
    let mut m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients SELECT 'acme', n, 'c' FROM generate_series(1, 200) n");
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let writing = runtime.spawn(writer(m.url(&acme, 0), stop.clone()));
    let mut home = 0;
    for point in [
        "taken over",
        "prepared",
        "subscribed",
        "copied",
        "verified",
        "way back prepared",
        "held",
        "frozen",
        "activated",
        "moved",
        "placed",
        "following",
        "completing",
        "deleted",
        "going back",
        "gone back",
    ] {
        m.kill_control_plane();
        m.start_control_plane_to_end_at(point);
        let to = format!("s{}", 1 - home);
        let id = m.cli(&["move", "start", "acme", "--to", &to, "--pause-budget", "2000"])["id"].to_string();
        let verb = match point {
            "completing" | "deleted" => Some("complete"),
            "going back" | "gone back" => Some("rollback"),
            _ => None,
        };
        if let Some(verb) = verb {
            switchyard_tests::wait::until_true("the move", || phase(&m, &id) == "moved");
            m.cli(&["move", verb, &id]);
        }
        m.wait_control_plane_end();
        m.start_control_plane();
        m.wait_ready();
        let ended = if verb.is_some() { "done" } else { "moved" };
        switchyard_tests::wait::until_true(&format!("the end after `{point}`"), || phase(&m, &id) == ended);
        if verb != Some("rollback") {
            home = 1 - home;
        }
        if verb.is_none() {
            m.cli(&["move", "complete", &id, "--wait", "--timeout", "60"]);
        }
        m.nothing_left();
        println!("`{point}`: over");
    }
    stop.store(true, Ordering::Relaxed);
    let (written, longest) = runtime.block_on(writing).expect("the writer saw no error");
    let all = m.one(home, "SELECT count(*) || ' ' || count(DISTINCT seq) || ' ' || max(seq) FROM ledger");
    assert_eq!(all, format!("{written} {written} {written}"));
    assert_eq!(m.one(home, "SELECT count(*) FROM clients"), "200");
    assert_eq!(m.one(1 - home, "SELECT (SELECT count(*) FROM ledger) + (SELECT count(*) FROM clients)"), "0");
    println!("{written} writes, the longest took {} ms", longest.as_millis());
}
