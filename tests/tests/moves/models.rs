//! Every way in which a tenant's rows can lie on a shard, moved there and back under writers that never stop.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use switchyard_shard_schema::install::{Form, Revokes};
use switchyard_tests::cluster::{DATABASE, SUPERUSER, SUPERUSER_PASSWORD};
use switchyard_tests::moves::Moving;
use switchyard_tests::sealed::{SEAL_KEY, seal};
use tokio_postgres::NoTls;

/// What a tenant of its own schema or database has.
const OWN: &str = "
CREATE TYPE mood AS ENUM ('calm', 'busy');
CREATE TABLE clients (tenant_id text NOT NULL, id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE visits (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    client bigint NOT NULL REFERENCES clients DEFERRABLE,
    mood mood DEFAULT 'calm', moods mood[] DEFAULT '{calm,busy}', note text,
    half bigint GENERATED ALWAYS AS (id / 2) STORED
);
CREATE INDEX ON visits (client);
CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.note := upper(NEW.note); RETURN NEW; END $$;
CREATE TRIGGER loud BEFORE INSERT ON visits FOR EACH ROW EXECUTE FUNCTION loud();
";

fn psql(url: &str, sql: &str) -> String {
    let output = Command::new("psql").args([url, "-XAtqv", "ON_ERROR_STOP=1", "-c", sql]).output();
    let output = output.expect("psql is installed");
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A database of a shard, as the superuser.
fn at(m: &Moving, shard: usize, database: &str) -> String {
    format!("postgres://{SUPERUSER}:{SUPERUSER_PASSWORD}@127.0.0.1:{}/{database}", m.shards[shard].port())
}

struct Writers {
    stop: Arc<AtomicBool>,
    runtime: tokio::runtime::Runtime,
    running: Vec<tokio::task::JoinHandle<i64>>,
}

impl Writers {
    /// Each writes rows of its own, one after the other; half of them in transactions.
    fn start(urls: Vec<String>, visits: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("one");
        let running = urls.into_iter().enumerate().map(|(n, url)| {
            let stop = stop.clone();
            runtime.spawn(async move {
                let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a session");
                tokio::spawn(connection);
                let (insert, mut written) =
                    ("INSERT INTO clients (tenant_id, id, name) VALUES ('acme', $1, 'w')", 0);
                while !stop.load(Ordering::Relaxed) {
                    let id = (n as i64 + 1) * 1_000_000 + written;
                    if n % 2 == 0 {
                        client.execute(insert, &[&id]).await.expect("no client sees an error");
                    } else {
                        let t = client.transaction().await.expect("no client sees an error");
                        t.execute(insert, &[&id]).await.expect("no client sees an error");
                        if visits {
                            let visit = "INSERT INTO visits (client, note) VALUES ($1, 'quiet')";
                            t.execute(visit, &[&id]).await.expect("no client sees an error");
                        }
                        t.commit().await.expect("no client sees an error");
                    }
                    written += 1;
                    tokio::time::sleep(Duration::from_millis(8)).await;
                }
                written
            })
        });
        let running = running.collect();
        Self { stop, runtime, running }
    }

    fn end(self) -> Vec<i64> {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.running.into_iter().map(|one| self.runtime.block_on(one).expect("it saw no error"));
        all.collect()
    }
}

/// There, back by a rollback, there again and completed: nothing is lost, and nothing left.
fn there_and_back(m: &Moving, visits: bool) {
    let acme = m.known_tenant("acme", 0, &["--no-provision"]);
    let urls = (0..4).map(|n| m.url(&acme, n % m.routers.len())).collect();
    let writers = Writers::start(urls, visits);
    let moved = m.cli(&["move", "start", "acme", "--to", "s1", "--attempts", "1000", "--wait"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    assert_eq!(moved["receipt"]["verified"], true);
    let back = m.cli(&["move", "rollback", "acme", "--wait"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
    let moved = m.cli(&["move", "start", "acme", "--to", "s1", "--attempts", "1000", "--wait"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    let done = m.cli(&["move", "complete", "acme", "--wait"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    let written = writers.end();
    let url = m.url(&acme, 0);
    for (n, written) in written.iter().enumerate() {
        let sql = format!("SELECT count(*) FROM clients WHERE id / 1000000 = {}", n + 1);
        assert_eq!(psql(&url, &sql), written.to_string(), "writer {n}");
    }
    if visits {
        let all = written[1] + written[3];
        assert_eq!(psql(&url, "SELECT count(DISTINCT id) FROM visits WHERE note = 'QUIET'"), all.to_string());
    }
}

#[test]
fn rows_under_the_seal() {
    let m = Moving::start_with(2, "", &format!("[seal]\nkey = {SEAL_KEY:?}"));
    for shard in &m.shards {
        seal(shard, Form::Parameter, Revokes::default());
    }
    m.context(r#"{"mode": "sealed", "variables": {"app.tenant_id": "{tenant}"}}"#);
    there_and_back(&m, false);
    m.nothing_left();
    assert_eq!(m.one(0, "SELECT count(*) FROM clients"), "0");
}

#[test]
fn a_schema_of_its_own() {
    let m = Moving::start(2, "");
    m.context(r#"{"search_path": ["t_{tenant}"]}"#);
    m.shards[0].sql(&format!(
        "CREATE SCHEMA t_acme; SET search_path = t_acme; {OWN};
         GRANT USAGE ON SCHEMA t_acme TO app; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA t_acme TO app"
    ));
    there_and_back(&m, true);
    m.nothing_left();
    assert_eq!(m.one(0, "SELECT to_regnamespace('t_acme') IS NULL"), "t");
}

#[test]
fn a_database_of_its_own() {
    let m = Moving::start(2, "");
    m.context(r#"{"database": "crm_{tenant}"}"#);
    psql(&at(&m, 0, DATABASE), "CREATE DATABASE crm_acme");
    psql(
        &at(&m, 0, DATABASE),
        "REVOKE ALL ON DATABASE crm_acme FROM PUBLIC; GRANT CONNECT ON DATABASE crm_acme TO app",
    );
    let grants = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app";
    psql(&at(&m, 0, "crm_acme"), &format!("{OWN} {grants}"));
    there_and_back(&m, true);
    for shard in [0, 1] {
        assert_eq!(m.one(shard, "SELECT count(*) FROM pg_replication_slots"), "0", "slots of s{shard}");
        let there = m.one(shard, "SELECT count(*) FROM pg_database WHERE datname = 'crm_acme'");
        assert_eq!(there, shard.to_string());
    }
    let left = "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM switchyard.moves)";
    assert_eq!(psql(&at(&m, 1, "crm_acme"), left), "0");
    assert_eq!(
        psql(&at(&m, 1, DATABASE), "SELECT has_database_privilege('other', 'crm_acme', 'CONNECT')"),
        "f"
    );
}

#[test]
fn a_rehearsal_of_a_schema_leaves_nothing() {
    let m = Moving::start(1, "");
    m.context(r#"{"search_path": ["t_{tenant}"]}"#);
    m.shards[0].sql(&format!("CREATE SCHEMA t_acme; SET search_path = t_acme; {OWN}"));
    m.known_tenant("acme", 0, &["--no-provision"]);
    let plan = m.cli(&["move", "start", "acme", "--to", "s1", "--dry-run"]);
    assert_eq!(plan["outcome"], "planned", "{plan}");
    let done = m.cli(&["move", "rehearse", "acme", "--to", "s1", "--wait"]);
    assert_eq!(done["outcome"], "rehearsed", "{done}");
    assert_eq!(m.one(1, "SELECT to_regnamespace('t_acme') IS NULL"), "t");
    m.nothing_left();
}
