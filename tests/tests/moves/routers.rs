//! Routers that hear nothing of a move: the fence keeps them from what they should not do any more, and tells them where
//! the tenant is.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, TryStreamExt};
use switchyard_tests::raw::messages::query;
use switchyard_tests::wait;
use tokio_postgres::NoTls;

use crate::world::{MODELS, Model, World};

/// A row that nobody else writes.
fn mark(n: i64) -> String {
    format!("INSERT INTO marks (tenant_id, writer, n) VALUES ('acme', 9, {n})")
}

/// A router that the catalog cannot reach has an old topology. Its client is told to try again, and then it works.
fn partitioned(model: Model, write_first: bool) {
    let mut world = World::start(model, true);
    let errors = world.check();
    assert_eq!(errors, [""; 0]);
    let mut client = world.m.login(&world.acme, 1);
    client.rows(&mark(1));
    world.m.catalog_proxy.as_ref().expect("there is one").stall();
    let moved = world.start_move(&[]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    assert_eq!(moved["receipt"]["pause"]["silent"], 1, "{moved}");
    world.home = 1;
    // It has heard nothing: what it sends goes where the tenant was.
    let late = match write_first {
        true => client.try_rows(&mark(2)),
        false => client.try_rows("SELECT count(*) FROM marks"),
    };
    assert_eq!(late.expect_err("the fence stops it").sqlstate, "40001");
    client.rows(&mark(3));
    client.rows("BEGIN ISOLATION LEVEL SERIALIZABLE");
    client.rows(&mark(4));
    client.rows("COMMIT");
    assert_eq!(world.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM marks WHERE writer = 9"), "1,3,4");
    let done = world.m.cli(&["move", "complete", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    client.rows(&mark(5));
    assert_eq!(client.column("SELECT count(*) FROM marks WHERE writer = 9"), ["4"]);
    world.m.catalog_proxy.as_ref().expect("there is one").resume();
    world.nothing_left();
}

#[test]
fn heavy_a_router_that_hears_nothing_is_told_by_the_fence() {
    std::thread::scope(|scope| {
        let others = scope.spawn(|| partitioned(Model::Schema, false));
        partitioned(Model::Rows, true);
        others.join().expect("the schema");
    });
}

#[test]
#[ignore = "takes minutes: make faults-moves"]
fn heavy_in_every_model() {
    for model in MODELS {
        partitioned(model, true);
        partitioned(model, false);
    }
}

/// What is named with a schema that is gone is not looked for elsewhere, and said to be missing by another error.
#[test]
fn heavy_a_router_that_hears_nothing_asks_the_fence_where_a_schema_is_gone() {
    let mut world = World::start(Model::Schema, true);
    assert_eq!(world.check(), [""; 0]);
    world.sql("CREATE FUNCTION tell() RETURNS int LANGUAGE sql RETURN 1");
    let mut client = world.m.login(&world.acme, 1);
    assert_eq!(client.column("SELECT t_acme.tell()"), ["1"]);
    world.m.catalog_proxy.as_ref().expect("there is one").stall();
    let moved = world.start_move(&[]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    let done = world.m.cli(&["move", "complete", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    assert_eq!(world.m.one(0, "SELECT count(*) FROM pg_namespace WHERE nspname = 't_acme'"), "0");
    let late = client.try_rows("SELECT t_acme.tell()");
    assert_eq!(late.expect_err("it is not there any more").sqlstate, "40001");
    assert_eq!(client.column("SELECT t_acme.tell()"), ["1"]);
    let nowhere = client.try_rows("SELECT t_nobody.tell()").expect_err("it never was");
    assert_eq!(nowhere.sqlstate, "3F000", "{nowhere:?}");
    world.m.catalog_proxy.as_ref().expect("there is one").resume();
}

/// Between a shard's refusal and the router's look at it, the router may hear where the tenant has gone: the fence that it
/// would ask then is that of another shard, which has nothing against the tenant.
fn hears_before_it_looks(model: Model) {
    let mut world = World::start(model, true);
    assert_eq!(world.check(), [""; 0]);
    let mut client = world.m.login(&world.acme, 1);
    client.rows(&mark(1));
    let catalog = world.m.catalog_proxy.as_ref().expect("there is one");
    catalog.stall();
    let moved = world.start_move(&[]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    world.home = 1;
    // The shard refuses this when the router has heard, and not before.
    let table = if model == Model::Schema { "t_acme.marks" } else { "marks" };
    let mut way = world.m.shards[0].admin();
    way.rows("BEGIN");
    way.rows(&format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"));
    client.send(&query("SELECT count(*) FROM marks"));
    let waits = "SELECT count(*) FROM pg_stat_activity
                 WHERE wait_event_type = 'Lock' AND query LIKE '%count(*) FROM marks%' AND usename = 'app'";
    wait::until_true("the shard to have the statement", || world.m.one(0, waits) == "1");
    let before = world.m.routers[1].log().len();
    catalog.resume();
    wait::until_true("the router to hear of it", || {
        world.m.routers[1].log()[before..].contains("topology changed")
    });
    way.rows("ROLLBACK");
    let answer = client.until_ready();
    let error = answer.iter().find(|m| m.tag == b'E').expect("it is not served there");
    assert_eq!(error.sqlstate(), "40001", "{model:?}");
    client.rows(&mark(2));
    assert_eq!(world.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM marks WHERE writer = 9"), "1,2");
    let done = world.m.cli(&["move", "complete", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    world.nothing_left();
}

#[test]
fn heavy_a_router_that_hears_of_a_move_before_it_looks_at_a_refusal_says_try_again() {
    std::thread::scope(|scope| {
        let own = scope.spawn(|| hears_before_it_looks(Model::Schema));
        hears_before_it_looks(Model::Rows);
        own.join().expect("the schema");
    });
}

/// A router that stands still while a tenant moves has transactions under way when it wakes up.
#[test]
fn heavy_a_router_that_stood_still_has_lost_nothing() {
    let mut world = World::start(Model::Database, false);
    world.stop_router(1);
    let moved = world.start_move(&[]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    world.home = 1;
    world.m.routers[1].signal("CONT");
    world.wait_write();
    let log = || world.m.routers[1].log();
    wait::until_true("the router to hear of it", || {
        log().contains("tenant has moved")
            || log().contains("tenant released")
            || log().contains("no word from the mover")
    });
    let errors = world.check();
    assert!(errors.iter().all(|e| e.starts_with("40001")), "{errors:?}");
    let done = world.m.cli(&["move", "complete", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    world.nothing_left();
}

/// What clients had sent to a router that stood still is stale when it wakes up, if it ran where the tenant was: of what
/// another router has written since, all is seen or an error.
fn wakes_up_late(model: Model) {
    let mut world = World::start(model, false);
    let count = "SELECT count(*) FROM marks WHERE writer = 9";
    let client = |world: &World, router: usize| world.m.login(&world.acme, router);
    let begins = ["", "BEGIN ISOLATION LEVEL REPEATABLE READ; ", "BEGIN READ ONLY; "];
    let mut readers = begins.map(|begin| (begin, client(&world, 1)));
    let mut writers = [2, 3].map(|n| (n, client(&world, 1)));
    for (_, reader) in &mut readers {
        assert_eq!(reader.value(count), "0");
    }
    for (_, writer) in &mut writers {
        writer.rows(count);
    }
    world.stop_router(1);
    for (begin, reader) in &mut readers {
        reader.send(&query(&format!("{begin}{count}")));
    }
    for (n, writer) in &mut writers {
        writer.send(&query(&mark(*n)));
    }
    let moved = world.start_move(&[]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    world.home = 1;
    client(&world, 0).rows(&mark(1));
    world.m.routers[1].signal("CONT");
    for (begin, reader) in &mut readers {
        let answer = reader.until_ready();
        match answer.iter().find(|m| m.tag == b'E') {
            Some(error) => assert_eq!(error.sqlstate(), "40001", "{model:?}, `{begin}`"),
            None => {
                let row = answer.iter().find(|m| m.tag == b'D').expect("a row").values();
                // Of the two that write beside it, any may be there.
                assert!(row[0].as_deref().is_some_and(|n| n != "0"), "{model:?}, `{begin}`: a stale read");
            }
        }
        let _ = reader.try_rows("ROLLBACK");
    }
    let mut there = vec!["1".to_owned()];
    for (n, writer) in &mut writers {
        let answer = writer.until_ready();
        match answer.iter().find(|m| m.tag == b'E') {
            Some(error) => assert_eq!(error.sqlstate(), "40001", "{model:?}"),
            None => there.push(n.to_string()),
        }
        writer.rows(&mark(*n + 10));
        there.push((*n + 10).to_string());
    }
    there.sort_by_key(|n| n.parse::<i64>().ok());
    assert_eq!(
        world.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM marks WHERE writer = 9"),
        there.join(","),
        "{model:?}"
    );
    let errors = world.check();
    assert!(errors.iter().all(|e| e.starts_with("40001")), "{errors:?}");
    let done = world.m.cli(&["move", "complete", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    world.nothing_left();
}

#[test]
fn heavy_what_a_router_that_stood_still_was_sent_is_not_read_where_the_tenant_was() {
    std::thread::scope(|scope| {
        let own = scope.spawn(|| wakes_up_late(Model::Schema));
        wakes_up_late(Model::Rows);
        own.join().expect("the schema");
    });
}

#[test]
#[ignore = "takes minutes: make faults-moves"]
fn heavy_what_a_router_was_sent_that_stood_still_in_every_model() {
    for model in MODELS {
        wakes_up_late(model);
    }
}

/// What a roaming session does, over and over, each time for a number of its own.
async fn roam(url: String, writer: i32, stop: Arc<AtomicBool>) -> Result<i64, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let insert = format!("INSERT INTO marks (tenant_id, writer, n) VALUES ('acme', {writer}, {n})");
        let local = "BEGIN; SET LOCAL app.tenant_id = 'acme'";
        match n % 3 {
            0 => client.batch_execute(&format!("{local}; {insert}; COMMIT")).await?,
            1 => {
                client.batch_execute("SET app.tenant_id = 'acme'").await?;
                client.batch_execute(&insert).await?;
            }
            // Tables under row-level security take no COPY: by way of one without.
            _ => {
                client.batch_execute("BEGIN").await?;
                client.batch_execute("SET LOCAL app.tenant_id = 'acme'").await?;
                let mut copy = Box::pin(client.copy_in("COPY scratch.items (id) FROM STDIN").await?);
                copy.send(Cursor::new(format!("{}\n", i64::from(writer) << 32 | n).into_bytes())).await?;
                copy.close().await?;
                client
                    .batch_execute(&format!(
                        "{insert}; DELETE FROM scratch.items WHERE id >> 32 = {writer}; COMMIT"
                    ))
                    .await?;
                let out = format!("COPY (SELECT n FROM marks WHERE writer = {writer}) TO STDOUT");
                let rows: Vec<_> = client.copy_out(&out).await?.try_collect().await?;
                assert_eq!(rows.len() as i64, n, "what it has written is all there");
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(n)
}

#[test]
fn heavy_roaming_sessions_go_where_the_tenant_goes() {
    let mut world = World::start(Model::Rows, false);
    let made = world.m.cli(&["user", "create", "service", "--any-tenant", "--roaming"]);
    let password = made["new_password"].as_str().expect("it is told once").to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (runtime, stop) = (runtime.expect("a runtime"), Arc::new(AtomicBool::new(false)));
    let service = |router: usize| {
        let port = world.m.routers[router].address().port();
        format!("postgres://service:{password}@127.0.0.1:{port}/crm")
    };
    wait::until_true("the routers to know the user", || {
        (0..2).all(|r| runtime.block_on(tokio_postgres::connect(&service(r), NoTls)).is_ok())
    });
    let running: Vec<_> =
        (0..4).map(|n| runtime.spawn(roam(service(n % 2), 10 + n as i32, stop.clone()))).collect();
    for _ in 0..4 {
        let moved = world.start_move(&[]);
        assert_eq!(moved["phase"], "moved", "{moved}");
        let done = world.m.cli(&["move", "complete", "acme", "--wait", "--timeout", "60"]);
        assert_eq!(done["outcome"], "completed", "{done}");
        world.home = 1 - world.home;
    }
    stop.store(true, Ordering::SeqCst);
    for (n, one) in running.into_iter().enumerate() {
        let written = runtime.block_on(one).expect("it ends").expect("it sees no error");
        let sql = format!("SELECT count(*) || ' ' || count(DISTINCT n) FROM marks WHERE writer = {}", 10 + n);
        assert_eq!(world.sql(&sql), format!("{written} {written}"));
    }
    assert_eq!(world.check(), [""; 0]);
    world.nothing_left();
}
