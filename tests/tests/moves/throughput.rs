//! How fast a copy is beside what PostgreSQL's own programs reach, and what neighbours feel of it. Run by
//! `make bench-copy`.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use switchyard_tests::cluster::{DATABASE, SUPERUSER, SUPERUSER_PASSWORD};
use switchyard_tests::moves::Moving;
use tokio_postgres::NoTls;

/// Rows of the tenant, about 180 bytes each as they travel.
const ROWS: u64 = 1_000_000;

/// Of each way of copying; the median counts.
const RUNS: usize = 3;

const BIG: &str = "
CREATE TABLE big (
    tenant_id text NOT NULL DEFAULT current_setting('app.tenant_id', true),
    id bigint, account int, at timestamptz, amount numeric, body text, PRIMARY KEY (tenant_id, id)
);
CREATE INDEX ON big (tenant_id, account);
CREATE INDEX ON big (tenant_id, at);
ALTER TABLE big ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON big USING (tenant_id = current_setting('app.tenant_id', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON big TO app;
";

fn fill(m: &Moving) {
    m.shards[0].sql(&format!(
        "INSERT INTO big SELECT 'acme', n, n::bigint * 7919 % 10000, timestamptz '2026-01-01' + n * interval '1 s',
                n % 100000 / 100.0, repeat(md5(n::text), 3) FROM generate_series(1, {ROWS}) n;
         INSERT INTO big SELECT 'other', n, n, now(), n, md5(n::text) FROM generate_series(1, 20000) n"
    ));
    // Not within the transaction that several statements are.
    m.shards[0].sql("VACUUM ANALYZE big");
    m.shards[0].sql("CHECKPOINT");
}

fn url(m: &Moving, shard: usize) -> String {
    format!("postgres://{SUPERUSER}:{SUPERUSER_PASSWORD}@127.0.0.1:{}/{DATABASE}", m.shards[shard].port())
}

/// `COPY ... BINARY | COPY ... BINARY`, by two of psql.
fn raw(m: &Moving) -> Duration {
    let began = Instant::now();
    let psql = |shard, sql: &str| {
        let mut command = Command::new("psql");
        command.args([&url(m, shard), "-Xqc", sql]);
        command
    };
    let out = "COPY (SELECT * FROM big WHERE tenant_id = 'acme') TO STDOUT (FORMAT binary)";
    let mut from = psql(0, out).stdout(Stdio::piped()).spawn().expect("psql runs");
    let pipe = from.stdout.take().expect("a pipe");
    let to = psql(1, "COPY big FROM STDIN (FORMAT binary)").stdin(pipe).status().expect("psql runs");
    assert!(to.success() && from.wait().expect("it ends").success());
    began.elapsed()
}

fn emptied(m: &Moving) {
    m.shards[1].sql("TRUNCATE big; CHECKPOINT");
}

fn median(mut seen: Vec<f64>) -> f64 {
    seen.sort_by(f64::total_cmp);
    seen[seen.len() / 2]
}

#[test]
#[ignore = "a measurement: make bench-copy"]
#[allow(clippy::print_stdout, reason = "what was measured is the answer")]
fn copying_beside_psql() {
    let m = Moving::start(0, BIG);
    m.cli(&["tenant", "create", "acme", "--shard", "s0"]);
    fill(&m);
    let (mut raws, mut ours, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        raws.push(raw(&m).as_secs_f64());
        assert_eq!(m.one(1, "SELECT count(*) FROM big"), ROWS.to_string());
        for (workers, seen) in [("2", &mut ours), ("1", &mut alone)] {
            emptied(&m);
            // The rows go by themselves at the end; in one batch, as this is not what is measured.
            let args = [
                "move",
                "rehearse",
                "acme",
                "--to",
                "s1",
                "--workers",
                workers,
                "--delete-batch",
                "10000000",
            ];
            let done = m.cli(&[&args[..], &["--wait"]].concat());
            assert_eq!(done["outcome"], "rehearsed", "{done}");
            let took = done["receipt"]["durations_ms"]["copy"].as_f64().expect("a number") / 1000.0;
            let bytes = done["receipt"]["bytes"].as_f64().expect("a number");
            println!(
                "{workers} workers: {took:.2} s, {:.1} MB/s, {}",
                bytes / took / 1e6,
                done["receipt"]["durations_ms"]
            );
            seen.push(took);
        }
        emptied(&m);
    }
    let (raw, ours, alone) = (median(raws), median(ours), median(alone));
    println!(
        "{ROWS} rows into a table with three indexes: psql | psql {raw:.2} s; with 2 workers {ours:.2} s, {:.2} of its \
         throughput; with 1 worker {alone:.2} s, {:.2}",
        raw / ours,
        raw / alone
    );
}

/// Reads and writes rows of its own, 100 times a second, until told to stop. How long each took, in milliseconds.
async fn neighbour(url: String, number: i64, stop: Arc<AtomicBool>) -> Vec<f64> {
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a session");
    tokio::spawn(connection);
    let write = client.prepare("UPDATE big SET amount = amount + 1 WHERE id = $1").await.expect("it is");
    let read =
        client.prepare("SELECT sum(amount) FROM big WHERE id BETWEEN $1 AND $1 + 20").await.expect("it is");
    let (mut took, mut n) = (Vec::new(), number * 1000);
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        n += 1;
        let id = n % 20_000 + 1;
        let began = Instant::now();
        client.execute(&write, &[&id]).await.expect("no neighbour sees an error");
        client.query_one(&read, &[&id]).await.expect("no neighbour sees an error");
        took.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    took
}

#[test]
#[ignore = "a measurement: make bench-copy"]
#[allow(clippy::print_stdout, reason = "what was measured is the answer")]
fn neighbours_of_a_move() {
    let m = Moving::start(1, BIG);
    m.cli(&["tenant", "create", "acme", "--shard", "s0"]);
    let other = m.tenant("other", 0);
    fill(&m);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("one");
    let during = |what: &str, work: &dyn Fn()| {
        let stop = Arc::new(AtomicBool::new(false));
        let running: Vec<_> =
            (0..4).map(|n| runtime.spawn(neighbour(m.url(&other, 0), n, stop.clone()))).collect();
        work();
        stop.store(true, Ordering::Relaxed);
        let mut took: Vec<f64> =
            running.into_iter().flat_map(|r| runtime.block_on(r).expect("no error")).collect();
        took.sort_by(f64::total_cmp);
        let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
        println!(
            "{what}: {} pairs, p50 {:.2} ms, p99 {:.2} ms, longest {:.1} ms",
            took.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    };
    during("warming up", &|| std::thread::sleep(Duration::from_secs(3)));
    during("without a move", &|| std::thread::sleep(Duration::from_secs(15)));
    for rate in ["0", "20000000"] {
        let args = ["move", "rehearse", "acme", "--to", "s1", "--rate", rate, "--wait"];
        during(&format!("while a neighbour is rehearsed at {rate} bytes/s (0: at full speed)"), &|| {
            let done = m.cli(&args);
            assert_eq!(done["outcome"], "rehearsed", "{done}");
        });
        emptied(&m);
    }
}
