//! A tenant in each of the ways in which one can lie on a shard, with writers that never stop, and what must hold of it
//! whatever happens.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use switchyard_shard_schema::install::{Form, Revokes};
use switchyard_tests::cluster::{DATABASE, SUPERUSER, SUPERUSER_PASSWORD};
use switchyard_tests::moves::{Moving, Tenant};
use switchyard_tests::sealed::{SEAL_KEY, seal};
use switchyard_tests::wait;
use tokio_postgres::{Client, NoTls};

/// How a tenant's rows lie on a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    /// In shared tables.
    Rows,
    /// In shared tables, under the seal.
    Sealed,
    /// In a schema of its own.
    Schema,
    /// In a database of its own.
    Database,
}

pub(crate) const MODELS: [Model; 4] = [Model::Rows, Model::Sealed, Model::Schema, Model::Database];

const ROUTERS: usize = 2;
const WRITERS: usize = 4;

/// Rows that are there before, so that there is something to copy.
const ROWS: usize = 300;

/// What the writers write into. A mark has no key of the writer's choice: one that came twice would be there twice.
const TABLES: &str = "
CREATE TABLE marks (
    tenant_id text NOT NULL, row uuid DEFAULT gen_random_uuid(), writer int NOT NULL, n bigint NOT NULL,
    PRIMARY KEY (tenant_id, row)
);
CREATE TABLE counters (tenant_id text NOT NULL, writer int, n bigint NOT NULL, PRIMARY KEY (tenant_id, writer));
CREATE TABLE ballast (tenant_id text NOT NULL, id int, body text, PRIMARY KEY (tenant_id, id));
";

/// Longest wait for an answer of a router before a writer connects anew.
const PATIENCE: Duration = Duration::from_secs(30);

fn policies(condition: &str) -> String {
    ["marks", "counters", "ballast"]
        .map(|t| {
            format!(
                "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
             CREATE POLICY tenant ON {t} USING (tenant_id = {condition});
             GRANT SELECT, INSERT, UPDATE, DELETE ON {t} TO app;"
            )
        })
        .concat()
}

/// What a writer knows.
#[derive(Debug, Default)]
struct Written {
    attempted: i64,
    acknowledged: BTreeSet<i64>,
    errors: Vec<String>,
    longest: Duration,
}

/// What all writers share.
struct Plan {
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

struct Writers {
    plan: Arc<Plan>,
    runtime: tokio::runtime::Runtime,
    running: Vec<tokio::task::JoinHandle<Written>>,
}

/// Everything of one tenant.
pub(crate) struct World {
    pub(crate) m: Moving,
    pub(crate) acme: Tenant,
    pub(crate) model: Model,
    /// The shard that it lives on.
    pub(crate) home: usize,
    writers: Option<Writers>,
    /// What writers of before have written.
    before: Vec<Written>,
}

impl World {
    /// A tenant on the first of two shards, and writers through two routers.
    pub(crate) fn start(model: Model, proxied: bool) -> Self {
        let (toml, context) = match model {
            Model::Rows => (String::new(), r#"{"variables": {"app.tenant_id": "{tenant}"}}"#),
            Model::Sealed => (
                format!("[seal]\nkey = {SEAL_KEY:?}"),
                r#"{"mode": "sealed", "variables": {"app.tenant_id": "{tenant}"}}"#,
            ),
            Model::Schema => (String::new(), r#"{"search_path": ["t_{tenant}"]}"#),
            Model::Database => (String::new(), r#"{"database": "crm_{tenant}"}"#),
        };
        let m = match proxied {
            true => Moving::start_proxied(ROUTERS, "", &toml),
            false => Moving::start_with(ROUTERS, "", &toml),
        };
        m.context(context);
        let grants = "GRANT SELECT, INSERT, UPDATE, DELETE ON marks, counters, ballast TO app";
        match model {
            Model::Rows => m.shards.iter().for_each(|shard| {
                shard.sql(&format!("{TABLES} {}", policies("current_setting('app.tenant_id', true)")));
            }),
            Model::Sealed => m.shards.iter().for_each(|shard| {
                seal(shard, Form::Parameter, Revokes::default());
                shard.sql(&format!("{TABLES} {}", policies("(SELECT switchyard.tenant_id())")));
            }),
            Model::Schema => {
                m.shards[0].sql(&format!(
                    "CREATE SCHEMA t_acme; SET search_path = t_acme; {TABLES} {grants};
                     GRANT USAGE ON SCHEMA t_acme TO app"
                ));
            }
            Model::Database => {
                let own = format!("{TABLES} {grants}");
                let world = at(&m, 0, DATABASE);
                psql(&world, "CREATE DATABASE crm_acme");
                psql(
                    &world,
                    "REVOKE ALL ON DATABASE crm_acme FROM PUBLIC; GRANT CONNECT ON DATABASE crm_acme TO app",
                );
                psql(&at(&m, 0, "crm_acme"), &own);
            }
        }
        let acme = m.known_tenant("acme", 0, if model == Model::Rows { &[] } else { &["--no-provision"] });
        let mut world = Self { m, acme, model, home: 0, writers: None, before: Vec::new() };
        world.sql(&format!(
            "INSERT INTO ballast SELECT 'acme', n, repeat('x', n) FROM generate_series(1, {ROWS}) n;
             INSERT INTO counters SELECT 'acme', n, 0 FROM generate_series(0, {WRITERS} - 1) n"
        ));
        world.begin_writing();
        world
    }

    fn begin_writing(&mut self) {
        let plan = Arc::new(Plan { stop: AtomicBool::new(false), acknowledged: AtomicU64::new(0) });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let running = (0..WRITERS)
            .map(|n| runtime.spawn(write(self.m.url(&self.acme, n % ROUTERS), n as i32, plan.clone())));
        let running = running.collect();
        self.writers = Some(Writers { plan, runtime, running });
    }

    /// SQL where the tenant lives, as the superuser.
    #[track_caller]
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.sql_on(self.home, sql)
    }

    #[track_caller]
    fn sql_on(&self, shard: usize, sql: &str) -> String {
        let (database, sql) = match self.model {
            Model::Rows | Model::Sealed => (DATABASE, sql.to_owned()),
            Model::Schema => (DATABASE, format!("SET search_path = t_acme; {sql}")),
            Model::Database => ("crm_acme", sql.to_owned()),
        };
        psql(&at(&self.m, shard, database), &sql)
    }

    /// Has a router stand still while none of its clients has a transaction open: one would hold up the beginning of a
    /// move, which is not what is looked at here.
    pub(crate) fn stop_router(&self, router: usize) {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state LIKE 'idle in transaction%'
                    AND state_change < clock_timestamp() - interval '300 ms'";
        wait::until_true("a moment between transactions", || {
            self.m.routers[router].signal("STOP");
            std::thread::sleep(Duration::from_millis(400));
            let between = self.m.one(self.home, open) == "0";
            if !between {
                self.m.routers[router].signal("CONT");
                std::thread::sleep(Duration::from_millis(20));
            }
            between
        });
    }

    /// SQL in a database of a shard, as the superuser.
    #[track_caller]
    pub(crate) fn database(&self, shard: usize, database: &str, sql: &str) -> String {
        psql(&at(&self.m, shard, database), sql)
    }

    /// Makes the rows that are only there some megabytes larger.
    pub(crate) fn grow(&self) {
        // Of what cannot be compressed.
        self.sql(
            "UPDATE ballast SET body = (SELECT string_agg(md5(id::text || n), '') FROM generate_series(1, 400) n)",
        );
    }

    /// Starts a move to the other shard, and waits until the tenant has moved.
    pub(crate) fn start_move(&self, further: &[&str]) -> serde_json::Value {
        let to = self.other();
        let start = ["move", "start", "acme", "--to", &to, "--attempts", "1000", "--wait", "--timeout", "60"];
        self.m.cli(&[&start[..], further].concat())
    }

    pub(crate) fn other(&self) -> String {
        format!("s{}", 1 - self.home)
    }

    pub(crate) fn show(&self, id: &str, field: &str) -> String {
        self.m.cli(&["move", "show", id])[field].as_str().unwrap_or_default().to_owned()
    }

    /// How long from now until a transaction that had not been acknowledged before is.
    pub(crate) fn wait_write(&self) -> Duration {
        let counter = &self.writers.as_ref().expect("they write").plan.acknowledged;
        let (before, began) = (counter.load(Ordering::SeqCst), Instant::now());
        wait::until_true("a write", || counter.load(Ordering::SeqCst) > before);
        began.elapsed()
    }

    /// Brings the writers to an end, and checks that all they have written is there once, and nothing anywhere else.
    /// The errors that they saw.
    #[allow(clippy::print_stdout, reason = "what was seen is part of the test's answer")]
    pub(crate) fn check(&mut self) -> Vec<String> {
        let writers = self.writers.take().expect("they write");
        writers.plan.stop.store(true, Ordering::SeqCst);
        let written: Vec<_> = writers
            .running
            .into_iter()
            .map(|one| writers.runtime.block_on(one).expect("it saw no error of its own"))
            .collect();
        self.check_rows(&written);
        let longest = written.iter().map(|w| w.longest).max().unwrap_or_default();
        let total: usize = written.iter().map(|w| w.acknowledged.len()).sum();
        let errors: Vec<_> = written.iter().flat_map(|w| w.errors.clone()).collect();
        println!(
            "{:?}: {total} transactions, {} errors, the longest took {} ms",
            self.model,
            errors.len(),
            longest.as_millis()
        );
        self.before = written;
        errors
    }

    fn check_rows(&self, written: &[Written]) {
        for (n, written) in written.iter().enumerate() {
            let list = self.sql(&format!(
                "SELECT coalesce(string_agg(n::text, ',' ORDER BY n), '') FROM marks WHERE writer = {n}"
            ));
            let there: Vec<i64> =
                list.split(',').filter(|t| !t.is_empty()).map(|t| t.parse().expect("a number")).collect();
            let once: BTreeSet<_> = there.iter().copied().collect();
            assert_eq!(once.len(), there.len(), "writer {n}: something is there twice");
            let lost: Vec<_> = written.acknowledged.difference(&once).collect();
            assert!(lost.is_empty(), "writer {n}: acknowledged and not there: {lost:?}");
            assert!(there.last().is_none_or(|n| *n <= written.attempted), "writer {n}");
            let counted = self.sql(&format!("SELECT n FROM counters WHERE writer = {n}"));
            assert_eq!(counted, there.len().to_string(), "counter of writer {n}");
        }
        assert_eq!(self.sql("SELECT count(*) FROM ballast"), ROWS.to_string());
    }

    /// Nothing of the tenant where it does not live, and nothing of moves anywhere.
    #[track_caller]
    pub(crate) fn nothing_left(&self) {
        let elsewhere = 1 - self.home;
        let left = match self.model {
            Model::Rows | Model::Sealed => {
                "SELECT (SELECT count(*) FROM marks) + (SELECT count(*) FROM counters) + (SELECT count(*) FROM ballast)"
            }
            Model::Schema => "SELECT count(*) FROM pg_namespace WHERE nspname = 't_acme'",
            Model::Database => "SELECT count(*) FROM pg_database WHERE datname = 'crm_acme'",
        };
        assert_eq!(self.m.one(elsewhere, left), "0", "rows on s{elsewhere}");
        for shard in 0..self.m.shards.len() {
            assert_eq!(
                self.m.one(shard, "SELECT count(*) FROM pg_replication_slots"),
                "0",
                "slots of s{shard}"
            );
            // A connection that was just closed takes a moment to end.
            let sessions =
                "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^switchyard-mover'";
            wait::until_true("the mover's sessions to end", || self.m.one(shard, sessions) == "0");
        }
        if self.model == Model::Database {
            let left =
                "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM switchyard.moves)";
            assert_eq!(self.sql(left), "0");
        } else {
            self.m.nothing_left();
        }
    }
}

/// A database of a shard, as the superuser.
fn at(m: &Moving, shard: usize, database: &str) -> String {
    format!("postgres://{SUPERUSER}:{SUPERUSER_PASSWORD}@127.0.0.1:{}/{database}", m.shards[shard].port())
}

#[track_caller]
fn psql(url: &str, sql: &str) -> String {
    let output = Command::new("psql").args([url, "-XAtqv", "ON_ERROR_STOP=1", "-c", sql]).output();
    let output = output.expect("psql is installed");
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

async fn session(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Writes until told to stop: each number once, whatever becomes of it.
async fn write(url: String, writer: i32, plan: Arc<Plan>) -> Written {
    let mut written = Written::default();
    let mut client: Option<Client> = None;
    while !plan.stop.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(8)).await;
        let connected = match client.take().filter(|c| !c.is_closed()) {
            Some(client) => client,
            None => match tokio::time::timeout(PATIENCE, session(&url)).await {
                Ok(Ok(client)) => client,
                // Nothing was attempted.
                Ok(Err(_)) | Err(_) => continue,
            },
        };
        written.attempted += 1;
        let n = written.attempted;
        let began = Instant::now();
        match tokio::time::timeout(PATIENCE, transaction(connected, writer, n)).await {
            Ok((same, Ok(()))) => {
                client = Some(same);
                written.acknowledged.insert(n);
                written.longest = written.longest.max(began.elapsed());
                plan.acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            Ok((same, Err(error))) => {
                written.errors.push(
                    error.as_db_error().map_or_else(
                        || error.to_string(),
                        |e| format!("{} {}", e.code().code(), e.message()),
                    ),
                );
                client = Some(same);
            }
            Err(_) => written.errors.push("no answer".to_owned()),
        }
    }
    written
}

async fn transaction(mut client: Client, writer: i32, n: i64) -> (Client, Result<(), tokio_postgres::Error>) {
    let done = async {
        let t = client.transaction().await?;
        t.execute("INSERT INTO marks (tenant_id, writer, n) VALUES ('acme', $1, $2)", &[&writer, &n]).await?;
        t.execute("UPDATE counters SET n = n + 1 WHERE tenant_id = 'acme' AND writer = $1", &[&writer])
            .await?;
        t.commit().await
    };
    let done = done.await;
    (client, done)
}
