//! Moves under load: nothing is lost, nothing doubled, and no client sees an error.
//!
//! With `SWITCHYARD_TESTS_MOVES=200`, as `make bench-moves` asks for, this is the measurement of the pause too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use switchyard_tests::moves::{Moving, Tenant};
use tokio_postgres::{Client, Error, IsolationLevel, NoTls, Statement, Transaction};

use crate::TABLES;

/// Moves back and forth per isolation level; `SWITCHYARD_TESTS_MOVES` asks for others.
fn moves() -> usize {
    std::env::var("SWITCHYARD_TESTS_MOVES").ok().and_then(|n| n.parse().ok()).unwrap_or(6)
}

const CLIENTS: usize = 16;
const ACCOUNTS: i32 = 20;

/// Of the pgbench-like load: accounts of one branch with a teller for each client.
const BENCH_ACCOUNTS: i32 = 1000;

/// What a client does in each of its transactions, beside writing into the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Nothing: no row of another client is in its way, so what it waits for is the move.
    Ledger,
    /// Moves money between two accounts.
    Bank,
    /// As pgbench's standard script.
    Bench,
    /// As [`Work::Ledger`], with a new connection each time.
    Connecting,
}

impl Work {
    fn of(client: usize) -> Self {
        match client {
            0 => Self::Connecting,
            1..6 => Self::Ledger,
            6..11 => Self::Bank,
            _ => Self::Bench,
        }
    }
}

/// Rows of the ledger that a client leaves before it checks that all are there, and takes them away: else each move
/// would have more to copy than the one before.
const CHECKED_AT: i64 = 400;

struct Seen {
    work: Work,
    /// Up to where it has checked by itself.
    checked: i64,
    acknowledged: i64,
    /// When each transaction ended, and how long it took.
    took: Vec<(Instant, Duration)>,
}

struct Statements {
    write: Statement,
    take: Statement,
    account: Statement,
    teller: Statement,
    branch: Statement,
    history: Statement,
    check: Statement,
    fold: Statement,
}

impl Statements {
    async fn prepare(client: &Client) -> Result<Self, Error> {
        Ok(Self {
            write: client.prepare("INSERT INTO ledger (client, seq) VALUES ($1, $2)").await?,
            take: client.prepare("UPDATE accounts SET balance = balance + $2 WHERE id = $1").await?,
            account: client
                .prepare("UPDATE bench_accounts SET balance = balance + $2 WHERE id = $1 RETURNING balance")
                .await?,
            teller: client.prepare("UPDATE bench_tellers SET balance = balance + $2 WHERE id = $1").await?,
            branch: client.prepare("UPDATE bench_branches SET balance = balance + $1 WHERE id = 1").await?,
            history: client
                .prepare("INSERT INTO bench_history (teller, account, delta) VALUES ($1, $2, $3)")
                .await?,
            check: client
                .prepare(
                    "WITH gone AS (DELETE FROM ledger WHERE client = $1 AND seq <= $2 RETURNING seq)
                     SELECT count(*), count(DISTINCT seq), coalesce(min(seq), 0), coalesce(max(seq), 0) FROM gone",
                )
                .await?,
            fold: client
                .prepare(
                    "WITH gone AS (DELETE FROM bench_history WHERE teller = $1 RETURNING delta)
                     INSERT INTO bench_history (teller, account, delta)
                     SELECT $1, 0, coalesce(sum(delta), 0) FROM gone",
                )
                .await?,
        })
    }

    /// Everything of the client's own up to `seq` is there once; then it is taken away.
    async fn check(&self, t: &Transaction<'_>, number: i32, (after, seq): (i64, i64)) -> Result<(), Error> {
        let row = t.query_one(&self.check, &[&number, &seq]).await?;
        let found: [i64; 4] = [row.get(0), row.get(1), row.get(2), row.get(3)];
        assert_eq!(found, [seq - after, seq - after, after + 1, seq], "rows of client {number}");
        t.execute(&self.fold, &[&number]).await?;
        Ok(())
    }

    async fn run(&self, t: &Transaction<'_>, work: Work, number: i32, seq: i64) -> Result<(), Error> {
        t.execute(&self.write, &[&number, &seq]).await?;
        let seed = seq as i32;
        match work {
            Work::Ledger | Work::Connecting => {}
            Work::Bank => {
                let (a, b) = ((seed * 7 + number) % ACCOUNTS, (seed * 3 + number + 1) % ACCOUNTS);
                // In order, so that two clients do not wait for each other.
                t.execute(&self.take, &[&a.min(b), &if a < b { -1i64 } else { 1 }]).await?;
                t.execute(&self.take, &[&a.max(b), &if a < b { 1i64 } else { -1 }]).await?;
            }
            Work::Bench => {
                let (account, teller, delta) =
                    ((seed * 31 + number) % BENCH_ACCOUNTS, number, i64::from(seed % 99 - 49));
                t.query(&self.account, &[&account, &delta]).await?;
                t.execute(&self.history, &[&teller, &account, &delta]).await?;
                t.execute(&self.teller, &[&teller, &delta]).await?;
                t.execute(&self.branch, &[&delta]).await?;
            }
        }
        Ok(())
    }
}

/// What all clients have in common.
struct Plan {
    level: IsolationLevel,
    stop: AtomicBool,
    retried: AtomicU64,
}

async fn session(url: &str) -> (Client, Statements) {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("a session");
    tokio::spawn(connection);
    let statements = Statements::prepare(&client).await.expect("prepared");
    (client, statements)
}

/// A client that writes until told to stop.
async fn client(url: String, number: i32, plan: Arc<Plan>) -> Seen {
    let work = Work::of(number as usize);
    let (mut client, mut statements) = session(&url).await;
    let mut seen = Seen { work, checked: 0, acknowledged: 0, took: Vec::new() };
    while !plan.stop.load(Ordering::Relaxed) {
        let seq = seen.acknowledged + 1;
        if work == Work::Connecting {
            (client, statements) = session(&url).await;
        }
        let due = seen.acknowledged - seen.checked >= CHECKED_AT;
        loop {
            let began = Instant::now();
            let done = async {
                let t = client.build_transaction().isolation_level(plan.level).start().await?;
                match due {
                    true => statements.check(&t, number, (seen.checked, seen.acknowledged)).await?,
                    false => statements.run(&t, work, number, seq).await?,
                }
                t.commit().await
            };
            match done.await {
                Ok(()) if due => break seen.checked = seen.acknowledged,
                Ok(()) => {
                    seen.took.push((Instant::now(), began.elapsed()));
                    break seen.acknowledged = seq;
                }
                // What these levels ask every application to do, move or not.
                Err(e)
                    if !matches!(plan.level, IsolationLevel::ReadCommitted)
                        && e.code().is_some_and(|c| c.code() == "40001" || c.code() == "40P01") =>
                {
                    plan.retried.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) => panic!("client {number} ({work:?}) at {seq}: {e:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(if work == Work::Ledger { 4 } else { 15 })).await;
    }
    seen
}

/// All that must hold of the rows of both shards.
fn check(m: &Moving, here: usize, seen: &[Seen]) {
    for (n, seen) in seen.iter().enumerate() {
        let sql = format!(
            "SELECT count(*) || ' ' || count(DISTINCT seq) || ' ' || coalesce(max(seq), {}) FROM ledger WHERE client = {n}",
            seen.checked
        );
        let all = seen.acknowledged - seen.checked;
        assert_eq!(m.one(here, &sql), format!("{all} {all} {}", seen.acknowledged), "client {n}");
    }
    assert_eq!(m.one(here, "SELECT sum(balance) FROM accounts"), (ACCOUNTS * 100).to_string());
    let sums = "SELECT count(DISTINCT s) FROM (SELECT sum(balance) s FROM bench_accounts
                UNION ALL SELECT sum(balance) FROM bench_tellers UNION ALL SELECT sum(balance) FROM bench_branches
                UNION ALL SELECT coalesce(sum(delta), 0) FROM bench_history) x";
    assert_eq!(m.one(here, sums), "1", "sums of the pgbench-like load");
    let left = "SELECT (SELECT count(*) FROM ledger) + (SELECT count(*) FROM accounts)
                     + (SELECT count(*) FROM bench_accounts) + (SELECT count(*) FROM bench_history)";
    assert_eq!(m.one(1 - here, left), "0");
}

fn at(values: &mut [f64], q: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q).round() as usize]
}

/// Pauses of moves as clients saw them, and what of them is physics.
#[derive(Default)]
struct Pauses {
    clients: Vec<f64>,
    routers: Vec<f64>,
    floor: Vec<f64>,
    given_up: f64,
    attempts: u64,
    windows: Vec<(Instant, Instant)>,
}

impl Pauses {
    /// Moves the tenant to `to`, and remembers how that was.
    fn one(&mut self, m: &Moving, acme: &Tenant, to: usize) {
        let began = Instant::now();
        let shard = format!("s{to}");
        let moved = m.cli(&[
            "move",
            "start",
            &acme.id,
            "--to",
            &shard,
            "--complete-previous",
            "--attempts",
            "1000",
            "--wait",
        ]);
        assert_eq!(moved["phase"], "moved", "{moved}");
        let receipt = &moved["receipt"];
        let ms = |field: &str| receipt["pause"][field].as_u64().expect("a number") as f64 / 1000.0;
        self.routers.push(ms("clients_us"));
        self.floor.push(ms("active_us") - ms("drained_us"));
        self.given_up =
            self.given_up.max(receipt["longest_given_up_us"].as_u64().unwrap_or(0) as f64 / 1000.0);
        self.attempts += receipt["attempts"].as_u64().expect("a number");
        self.windows.push((began, Instant::now()));
        if std::env::var_os("SWITCHYARD_TESTS_VERBOSE").is_some() {
            eprintln!(
                "move {} took {:.1} s, rows {}, durations {}, attempts {}, pause {}",
                moved["id"],
                began.elapsed().as_secs_f64(),
                receipt["rows"],
                receipt["durations_ms"],
                receipt["attempts"],
                receipt["pause"]
            );
        }
    }

    /// The longest transaction of a client that only the move can have kept waiting, per move.
    fn of_clients(&mut self, seen: &[Seen]) {
        for (from, to) in &self.windows {
            let within = seen.iter().filter(|s| s.work == Work::Ledger).flat_map(|s| &s.took);
            let longest = within.filter(|(end, _)| end >= from && end <= to).map(|(_, took)| *took).max();
            self.clients.push(longest.unwrap_or_default().as_secs_f64() * 1000.0);
        }
    }
}

#[allow(clippy::print_stdout, reason = "what was measured is part of the test's answer")]
fn back_and_forth(level: IsolationLevel) {
    let m = Moving::start(2, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql(&format!(
        "INSERT INTO accounts SELECT 'acme', n, 100 FROM generate_series(0, {ACCOUNTS} - 1) n;
         INSERT INTO bench_accounts SELECT 'acme', n, 0 FROM generate_series(0, {BENCH_ACCOUNTS} - 1) n;
         INSERT INTO bench_tellers SELECT 'acme', n, 0 FROM generate_series(0, {CLIENTS} - 1) n;
         INSERT INTO bench_branches VALUES ('acme', 1, 0);"
    ));
    let plan = Arc::new(Plan { level, stop: AtomicBool::new(false), retried: AtomicU64::new(0) });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let running: Vec<_> =
        (0..CLIENTS).map(|n| runtime.spawn(client(m.url(&acme, n % 2), n as i32, plan.clone()))).collect();
    let mut pauses = Pauses::default();
    let rehearsed = m.cli(&["move", "rehearse", "acme", "--to", "s1", "--wait"]);
    let predicted = rehearsed["receipt"]["predicted_pause_ms"].as_f64().expect("a prediction");
    for n in 0..moves() {
        pauses.one(&m, &acme, 1 - n % 2);
        let ended = running.iter().position(tokio::task::JoinHandle::is_finished);
        assert_eq!(ended, None, "a client ended early; move {n}");
    }
    plan.stop.store(true, Ordering::Relaxed);
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
    check(&m, moves() % 2, &seen);
    pauses.of_clients(&seen);
    let total: i64 = seen.iter().map(|s| s.acknowledged).sum();
    let (c, r, f) = (&mut pauses.clients, &mut pauses.routers, &mut pauses.floor);
    println!(
        "{level:?}: {} moves, {total} transactions, {} retried, {} attempts, longest wait in one given up {:.1} ms; \
         longest transaction of a client per move p50 {:.1} ms p99 {:.1} ms max {:.1} ms; \
         longest wait at a router p50 {:.1} ms p99 {:.1} ms max {:.1} ms; \
         freezing to activation p50 {:.1} ms p99 {:.1} ms; predicted by rehearsal {predicted:.1} ms",
        moves(),
        plan.retried.load(Ordering::Relaxed),
        pauses.attempts,
        pauses.given_up,
        at(c, 0.5),
        at(c, 0.99),
        at(c, 1.0),
        at(r, 0.5),
        at(r, 0.99),
        at(r, 1.0),
        at(f, 0.5),
        at(f, 0.99),
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
