//! Applications in the languages that people write them in: several clients of several tenants
//! at once over few server connections, by transaction and by session, in the clear and over TLS.

use std::pin::pin;

use futures_util::{SinkExt, StreamExt, TryStreamExt};
use serde_json::json;
use switchyard_tests::drivers::{node, psql_ok, python};
use switchyard_tests::tokio_tls::MakeTls;
use switchyard_tests::{Running, Setup};

const TENANTS: [&str; 4] = ["acme", "globex", "initech", "umbrella"];
const CLIENTS: usize = 2;

/// Runs an application in each mode, in the clear and over TLS.
fn each(app: impl Fn(&Running)) {
    for (mode, tls) in [("transaction", false), ("transaction", true), ("session", false), ("session", true)]
    {
        eprintln!("{mode} mode, {}", if tls { "TLS" } else { "plain" });
        // By session, every client keeps a connection for as long as it stays.
        let size = if mode == "session" { 10 } else { 2 };
        let mut setup = Setup::new().tenants(TENANTS).pool(&format!("size = {size}"));
        setup = setup.router(&format!("pool_mode = \"{mode}\""));
        if tls {
            setup = setup.tls("require");
        }
        app(&setup.start());
    }
}

fn input(s: &Running) -> serde_json::Value {
    let urls: serde_json::Map<_, _> = TENANTS.iter().map(|t| ((*t).to_owned(), s.url(t).into())).collect();
    json!({"urls": urls, "clients": CLIENTS, "rounds": 4})
}

/// The script has checked whose each row was; here, that there were some.
fn saw_rows(said: &serde_json::Value) {
    assert!(said["rows"].as_u64().is_some_and(|rows| rows > 100), "{said}");
}

/// Nothing that an application wrote is anybody else's.
fn nothing_foreign_was_written(s: &Running) {
    for shard in &s.shards {
        for table in ["leads", "scratch.imports"] {
            let foreign = format!("SELECT count(*) FROM {table} WHERE first_name NOT LIKE tenant_id || ' %'");
            assert_eq!(shard.value(&foreign), "0", "{table}");
        }
    }
}

fn by_python(script: &str) {
    each(|s| {
        saw_rows(&python(script, &input(s)));
        nothing_foreign_was_written(s);
    });
}

#[test]
fn psycopg() {
    by_python("psycopg_app.py");
}

#[test]
fn psycopg2() {
    by_python("psycopg2_app.py");
}

#[test]
fn asyncpg() {
    by_python("asyncpg_app.py");
}

#[test]
fn sqlalchemy() {
    by_python("sqlalchemy_app.py");
}

#[test]
fn node_postgres() {
    each(|s| {
        saw_rows(&node("pg_app.mjs", &input(s)));
        nothing_foreign_was_written(s);
    });
}

#[test]
fn psql() {
    each(|s| {
        std::thread::scope(|scope| {
            for tenant in TENANTS.iter().cycle().take(TENANTS.len() * CLIENTS) {
                scope.spawn(move || {
                    let copied = "COPY (SELECT name FROM clients ORDER BY id) TO STDOUT";
                    let said = psql_ok(
                        &s.url(tenant),
                        &[copied, "BEGIN", "SELECT name FROM clients ORDER BY id", "ROLLBACK", "\\d clients"],
                    );
                    let names = s.canaries(tenant).join("\n");
                    assert!(said.starts_with(&format!("{names}\n{names}\n")), "{said}");
                    assert!(said.contains("tenant_id"), "{said}");
                });
            }
        });
    });
}

#[test]
fn tokio_postgres() {
    each(|s| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let work =
                TENANTS.iter().cycle().take(TENANTS.len() * CLIENTS).map(|tenant| tokio_client(s, tenant));
            futures_util::future::try_join_all(work).await.unwrap();
        });
        nothing_foreign_was_written(s);
    });
}

async fn tokio_client(s: &Running, tenant: &str) -> Result<(), tokio_postgres::Error> {
    // It knows `require`, and checks the certificate by the connector that it is given.
    let url = s.url(tenant);
    let (url, query) = url.split_once('?').expect("a query");
    let sslmode = if query.contains("verify-full") { "require" } else { "disable" };
    let tls = MakeTls(s.certs.client(None));
    let (mut client, connection) = tokio_postgres::connect(&format!("{url}?sslmode={sslmode}"), tls).await?;
    let connection = tokio::spawn(connection);
    let own = |rows: &[tokio_postgres::Row]| {
        assert!(
            !rows.is_empty() && rows.iter().all(|r| r.get::<_, String>(0).starts_with(&format!("{tenant} ")))
        );
    };
    let by_id = client.prepare("SELECT name FROM clients WHERE id = $1").await?;
    for round in 0..10_i64 {
        own(&client.query("SELECT name FROM clients", &[]).await?);
        // Pipelined: all are sent before the first is answered.
        let ids = [1_i64, 2, 3];
        let several = futures_util::future::try_join_all(ids.iter().map(|id| {
            let (client, by_id) = (&client, &by_id);
            async move { client.query(by_id, &[id]).await }
        }));
        several.await?.iter().for_each(|rows| own(rows));
        let transaction = client.transaction().await?;
        let insert = "INSERT INTO leads (first_name, last_name) VALUES ($1, $2)";
        transaction.execute(insert, &[&format!("{tenant} t"), &round.to_string()]).await?;
        let portal = transaction.bind("SELECT first_name FROM leads", &[]).await?;
        own(&transaction.query_portal(&portal, 5).await?);
        transaction.commit().await?;
        let mut sink = pin!(client.copy_in("COPY scratch.imports (first_name, last_name) FROM STDIN").await?);
        sink.send(bytes(&format!("{tenant} copied\tx\n"))).await?;
        sink.close().await?;
        let out = client.copy_out("COPY (SELECT first_name FROM leads) TO STDOUT").await?;
        let chunks: Vec<_> = out.try_collect().await?;
        assert!(chunks.iter().all(|c| c.starts_with(format!("{tenant} ").as_bytes())));
        let error = client.query("SELECT 1 / 0", &[]).await.expect_err("no error");
        assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::DIVISION_BY_ZERO));
        let mut stream = pin!(client.query_raw("SELECT first_name FROM leads", [0_i32; 0]).await?);
        while let Some(row) = stream.next().await {
            own(&[row?]);
        }
    }
    drop(client);
    connection.await.expect("the connection does not panic")
}

fn bytes(text: &str) -> std::io::Cursor<Vec<u8>> {
    std::io::Cursor::new(text.as_bytes().to_vec())
}
