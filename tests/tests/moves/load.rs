//! Moves under load: nothing is lost, nothing doubled, and no client sees an error.
//!
//! With `SWITCHYARD_TESTS_MOVES=200`, as `make bench-moves` asks for, this is the measurement of the pause too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use switchyard_tests::moves::{Moving, Tenant};
use tokio_postgres::{Client, Error, IsolationLevel, NoTls, Statement, Transaction};

use crate::TABLES;

/// Moves back and forth per isolation level; `SWITCHYARD_TESTS_MOVES` asks for others.
fn moves() -> usize {
    std::env::var("SWITCHYARD_TESTS_MOVES").ok().and_then(|n| n.parse().ok()).unwrap_or(6)
}

/// Longest time that the moves of one level may take; what is not done by then is left out, and said.
const LONGEST: Duration = Duration::from_secs(12 * 60);

/// Every so manieth move is rolled back.
const ROLLED_BACK: usize = 5;

/// Every so many moves it is said how far it is.
const TOLD: usize = 10;

/// What a client may wait for: the budget that moves have unless they are given another, in milliseconds.
const BUDGET: f64 = 250.0;

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
    /// Each transaction, from its first statement to its end, without those that the client was asked to try again.
    took: Vec<Took>,
}

/// Microseconds since 1970, and how many.
#[derive(Debug, Clone, Copy)]
struct Took {
    end: u64,
    us: u64,
}

impl Took {
    fn since(began: Instant) -> Self {
        Self { end: unix_us(), us: began.elapsed().as_micros() as u64 }
    }

    fn overlaps(&self, (from, to): (u64, u64)) -> bool {
        self.end >= from && self.end - self.us <= to
    }
}

fn unix_us() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_micros() as u64
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
                    seen.took.push(Took::since(began));
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

/// Rows of the ledger that are not there although they were acknowledged, and those that are there more than once.
fn lost_and_doubled(m: &Moving, here: usize, seen: &[Seen]) -> (i64, i64) {
    let mut found = (0, 0);
    for (n, seen) in seen.iter().enumerate() {
        let count = |what: &str| -> i64 {
            let sql =
                format!("SELECT count({what}) FROM ledger WHERE client = {n} AND seq > {}", seen.checked);
            m.one(here, &sql).parse().expect("a number")
        };
        let (all, distinct) = (count("*"), count("DISTINCT seq"));
        found.0 += seen.acknowledged - seen.checked - distinct;
        found.1 += all - distinct;
    }
    found
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
    let at = (values.len().saturating_sub(1) as f64 * q).round() as usize;
    values.get(at).copied().unwrap_or_default()
}

/// One cutover that succeeded.
struct Cutover {
    back: bool,
    pause: Value,
    /// The move or rollback around it, since 1970 in microseconds.
    within: (u64, u64),
    /// Longest wait in an attempt before it that was given up, in milliseconds.
    given_up: f64,
    attempts: u64,
}

impl Cutover {
    fn ms(&self, field: &str) -> f64 {
        self.pause[field].as_u64().unwrap_or_else(|| panic!("{field} of {}", self.pause)) as f64 / 1000.0
    }

    /// While clients were held, by the clock of the wall.
    fn held(&self) -> (u64, u64) {
        let field = |name: &str| self.pause[name].as_u64().expect("a number");
        let began = field("began_unix_us");
        (began, began + field("total_us"))
    }
}

/// Pauses of moves, where their time went, and what of them is physics.
#[derive(Default)]
struct Pauses(Vec<Cutover>);

impl Pauses {
    /// Moves the tenant to `to`, and remembers how that was. The move.
    fn one(&mut self, m: &Moving, acme: &Tenant, to: usize) -> String {
        let began = unix_us();
        let shard = format!("s{to}");
        let start = ["move", "start", &acme.id, "--to", &shard, "--complete-previous", "--attempts", "1000"];
        let moved = m.cli(&[&start[..], &["--wait", "--timeout", "180"]].concat());
        assert_eq!(moved["phase"], "moved", "{moved}");
        self.add(&moved, "pause", began);
        moved["id"].to_string()
    }

    /// Has it go back.
    fn back(&mut self, m: &Moving, id: &str) {
        let began = unix_us();
        let back = m.cli(&["move", "rollback", id, "--wait", "--timeout", "180"]);
        assert_eq!(back["outcome"], "rolled_back", "{back}");
        self.add(&back, "rollback_pause", began);
    }

    fn add(&mut self, moved: &Value, pause: &str, began: u64) {
        let receipt = &moved["receipt"];
        let cutover = Cutover {
            back: pause != "pause",
            pause: receipt[pause].clone(),
            within: (began, unix_us()),
            given_up: receipt["longest_given_up_us"].as_u64().unwrap_or(0) as f64 / 1000.0,
            attempts: receipt["attempts"].as_u64().expect("a number"),
        };
        if std::env::var_os("SWITCHYARD_TESTS_VERBOSE").is_some() {
            eprintln!("{} {}, attempts {}, {}", moved["id"], pause, cutover.attempts, cutover.pause);
        }
        self.0.push(cutover);
    }

    fn print(&self, what: &str, value: impl Fn(&Cutover) -> f64) {
        self.print_of(what, |_| true, value);
    }

    #[allow(clippy::print_stdout, reason = "what was measured is part of the test's answer")]
    fn print_of(&self, what: &str, which: impl Fn(&Cutover) -> bool, value: impl Fn(&Cutover) -> f64) {
        let mut values: Vec<_> = self.0.iter().filter(|c| which(c)).map(value).collect();
        let v = &mut values;
        println!("  {what:<56} {:>8.1} {:>8.1} {:>8.1}", at(v, 0.5), at(v, 0.99), at(v, 1.0));
    }

    /// Longest transaction of clients for whom no row of another is in the way, in milliseconds, among those that `is`
    /// counts.
    fn longest(seen: &[Seen], is: impl Fn(&Took) -> bool) -> f64 {
        let of_ledger = seen.iter().filter(|s| s.work == Work::Ledger).flat_map(|s| &s.took);
        of_ledger.filter(|t| is(t)).map(|t| t.us).max().unwrap_or(0) as f64 / 1000.0
    }

    #[allow(clippy::print_stdout, reason = "what was measured is part of the test's answer")]
    fn table(&self, seen: &[Seen]) {
        println!("  {:<56} {:>8} {:>8} {:>8}", "ms, over the cutovers", "p50", "p99", "max");
        let waits = |c: &Cutover| c.ms("clients_us");
        self.print_of("longest wait of a client at a router, moves", |c| !c.back, waits);
        self.print_of("  the same, rollbacks", |c| c.back, waits);
        self.print("longest transaction of a client across the cutover", |c| {
            Self::longest(seen, |t| t.overlaps(c.held()))
        });
        self.print("  the same, elsewhere while it is moved", |c| {
            Self::longest(seen, |t| t.overlaps(c.within) && !t.overlaps(c.held()))
        });
        self.print("the physical floor, timed before each cutover", |c| c.ms("floor_us"));
        println!("  where the time goes, each step by itself:");
        self.print("  the order to wait is with the catalog", |c| c.ms("ordered_us"));
        self.print("  routers have heard it, wait for open transactions", |c| c.ms("drain_us"));
        self.print("  all of that, and word of it with the mover", |c| c.ms("drained_us"));
        self.print("  the freezing", |c| c.ms("frozen_us") - c.ms("drained_us"));
        self.print("  the last changes, and the activation", |c| c.ms("active_us") - c.ms("frozen_us"));
        self.print("  the order to go on", |c| c.ms("released_us") - c.ms("active_us"));
        self.print("longest wait in an attempt that was given up", |c| c.given_up);
        let waits = self.0.iter().flat_map(|c| [c.ms("clients_us"), c.given_up]);
        let above = waits.filter(|ms| *ms > BUDGET).count();
        let long = self.0.iter().filter(|c| Self::longest(seen, |t| t.overlaps(c.held())) > BUDGET).count();
        println!("  above the budget of {BUDGET} ms: {above} waits, {long} transactions across a cutover");
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
    let (began, mut made, mut home) = (Instant::now(), 0, 0);
    while made < moves() && began.elapsed() < LONGEST {
        let id = pauses.one(&m, &acme, 1 - home);
        made += 1;
        match made % ROLLED_BACK {
            0 => pauses.back(&m, &id),
            _ => home = 1 - home,
        }
        let ended = running.iter().position(tokio::task::JoinHandle::is_finished);
        assert_eq!(ended, None, "a client ended early; move {made}");
        if made % TOLD == 0 {
            let seconds = began.elapsed().as_secs();
            eprintln!("{level:?}: {made} of {} moves, {seconds} s", moves());
        }
    }
    let took = began.elapsed().as_secs();
    plan.stop.store(true, Ordering::Relaxed);
    let ended = runtime.block_on(futures_util::future::join_all(running));
    let (clients, errors) = (ended.len(), ended.iter().filter(|one| one.is_err()).count());
    let seen: Vec<_> = ended.into_iter().filter_map(Result::ok).collect();
    assert_eq!(seen.len(), clients, "{errors} clients saw an error");
    // The last may have been rolled back, and is over then.
    if made % ROLLED_BACK != 0 {
        let done = m.cli(&["move", "complete", "acme", "--wait", "--timeout", "120"]);
        assert_eq!(done["outcome"], "completed", "{done}");
    }
    let (lost, doubled) = lost_and_doubled(&m, home, &seen);
    let total: i64 = seen.iter().map(|s| s.acknowledged).sum();
    let attempts: u64 = pauses.0.iter().map(|c| c.attempts).sum();
    let back = pauses.0.iter().filter(|c| c.back).count();
    println!(
        "\n{level:?}: {made} of {} moves in {took} s, {back} of them rolled back; {attempts} attempts at the cutover\n  \
         {total} transactions acknowledged, {errors} client errors, {lost} lost, {doubled} doubled, {} told to try again by \
         PostgreSQL; predicted by rehearsal {predicted:.1} ms",
        moves(),
        plan.retried.load(Ordering::Relaxed),
    );
    pauses.table(&seen);
    assert_eq!((lost, doubled), (0, 0));
    m.nothing_left();
    check(&m, home, &seen);
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
