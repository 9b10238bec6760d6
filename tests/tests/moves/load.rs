//! Moves under load: nothing is lost, nothing doubled, and no client sees an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use switchyard_tests::moves::Moving;
use tokio_postgres::{IsolationLevel, NoTls};

use crate::TABLES;

/// Moves back and forth per isolation level; `SWITCHYARD_TESTS_MOVES` asks for others.
fn moves() -> usize {
    std::env::var("SWITCHYARD_TESTS_MOVES").ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}

const CLIENTS: usize = 16;
const ACCOUNTS: i32 = 20;

struct Seen {
    acknowledged: u64,
    longest: Duration,
    waits: Vec<Duration>,
}

/// A client that writes into the ledger and moves money, until told to stop; each with one session.
async fn client(
    url: String,
    number: i32,
    level: IsolationLevel,
    stop: Arc<AtomicBool>,
    retried: Arc<AtomicU64>,
) -> Seen {
    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a session");
    let driver = tokio::spawn(connection);
    let mut seen = Seen { acknowledged: 0, longest: Duration::ZERO, waits: Vec::new() };
    let write = client.prepare("INSERT INTO ledger (client, seq) VALUES ($1, $2)").await.expect("prepared");
    let take =
        client.prepare("UPDATE accounts SET balance = balance + $2 WHERE id = $1").await.expect("prepared");
    let mut seq = 0i64;
    while !stop.load(Ordering::Relaxed) {
        seq += 1;
        let began = Instant::now();
        loop {
            let done = async {
                let t = client.build_transaction().isolation_level(level).start().await?;
                t.execute(&write, &[&number, &seq]).await?;
                let (a, b) = ((seq as i32 * 7 + number) % ACCOUNTS, (seq as i32 * 3 + number + 1) % ACCOUNTS);
                // In order, so that two clients do not wait for each other.
                t.execute(&take, &[&a.min(b), &if a < b { -1i64 } else { 1 }]).await?;
                t.execute(&take, &[&a.max(b), &if a < b { 1i64 } else { -1 }]).await?;
                t.commit().await
            };
            match done.await {
                Ok(()) => break,
                // What these levels ask every application to do, move or not.
                Err(e)
                    if !matches!(level, IsolationLevel::ReadCommitted)
                        && e.code().is_some_and(|c| c.code() == "40001") =>
                {
                    retried.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) => panic!("client {number} at {seq}: {e:?}"),
            }
        }
        seen.acknowledged = seq as u64;
        let took = began.elapsed();
        seen.longest = seen.longest.max(took);
        seen.waits.push(took);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(client);
    let _ = driver.await;
    seen
}

#[allow(clippy::print_stdout, reason = "what was measured is part of the test's answer")]
fn back_and_forth(level: IsolationLevel) {
    let m = Moving::start(2, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql(&format!(
        "INSERT INTO accounts SELECT 'acme', n, 100 FROM generate_series(0, {ACCOUNTS} - 1) n"
    ));
    let urls: Vec<_> = (0..CLIENTS).map(|n| m.url(&acme, n % 2)).collect();
    let (stop, retried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let running: Vec<_> = urls
        .into_iter()
        .enumerate()
        .map(|(n, url)| runtime.spawn(client(url, n as i32, level, stop.clone(), retried.clone())))
        .collect();
    let mut pauses = Vec::new();
    for n in 0..moves() {
        let to = if n % 2 == 0 { "s1" } else { "s0" };
        let moved = m.cli(&["move", "start", "acme", "--to", to, "--pause-budget", "2000", "--wait"]);
        assert_eq!(moved["phase"], "moved", "{moved}");
        let pause = &moved["receipt"]["pause"];
        let us = |field: &str| pause[field].as_u64().expect("a number");
        pauses.push((
            us("clients_us"),
            us("active_us") - us("drained_us"),
            moved["receipt"]["attempts"].as_u64().expect("a number"),
        ));
    }
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<_> = runtime.block_on(async {
        let mut seen = Vec::new();
        for one in running {
            seen.push(one.await.expect("no client saw an error"));
        }
        seen
    });
    let done = m.cli(&["move", "complete", "acme", "--wait", "--timeout", "120"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    m.nothing_left();
    let (here, there) = if moves().is_multiple_of(2) { (0, 1) } else { (1, 0) };
    for (n, seen) in seen.iter().enumerate() {
        let sql = format!(
            "SELECT count(*) || ' ' || count(DISTINCT seq) || ' ' || max(seq) FROM ledger WHERE client = {n}"
        );
        let all = seen.acknowledged;
        assert_eq!(m.one(here, &sql), format!("{all} {all} {all}"), "client {n}");
    }
    assert_eq!(m.one(here, "SELECT sum(balance) FROM accounts"), (ACCOUNTS * 100).to_string());
    assert_eq!(m.one(there, "SELECT (SELECT count(*) FROM ledger) + (SELECT count(*) FROM accounts)"), "0");
    let mut as_seen: Vec<_> = pauses.iter().map(|p| p.0).collect();
    let mut floor: Vec<_> = pauses.iter().map(|p| p.1).collect();
    as_seen.sort_unstable();
    floor.sort_unstable();
    let at = |sorted: &[u64], q: f64| sorted[((sorted.len() - 1) as f64 * q) as usize] as f64 / 1000.0;
    let total: u64 = seen.iter().map(|s| s.acknowledged).sum();
    let longest = seen.iter().map(|s| s.longest).max().unwrap_or_default();
    println!(
        "{level:?}: {} moves, {total} transactions, {} retried, attempts {:?}; pause of clients p50 {:.1} ms p99 {:.1} ms \
         max {:.1} ms; fence to activation p50 {:.1} ms max {:.1} ms; longest transaction {:.1} ms",
        moves(),
        retried.load(Ordering::Relaxed),
        pauses.iter().map(|p| p.2).collect::<Vec<_>>(),
        at(&as_seen, 0.5),
        at(&as_seen, 0.99),
        at(&as_seen, 1.0),
        at(&floor, 0.5),
        at(&floor, 1.0),
        longest.as_secs_f64() * 1000.0
    );
}

#[test]
fn heavy_read_committed() {
    back_and_forth(IsolationLevel::ReadCommitted);
}

#[test]
fn heavy_repeatable_read() {
    back_and_forth(IsolationLevel::RepeatableRead);
}

#[test]
fn heavy_serializable() {
    back_and_forth(IsolationLevel::Serializable);
}
