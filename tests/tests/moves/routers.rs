//! Routers that hear nothing of a move: the fence keeps them from what they should not do any more, and tells them where
//! the tenant is.

use switchyard_tests::wait;

use crate::world::{MODELS, Model, World};

/// A row that nobody else writes.
fn mark(n: i64) -> String {
    format!("INSERT INTO marks (tenant_id, writer, n) VALUES ('acme', 9, {n})")
}

/// A router that the catalog cannot reach has an old topology. Its client is told to try again, and then it works.
fn partitioned(model: Model) {
    let mut world = World::start(model, true);
    let errors = world.check();
    assert_eq!(errors, [""; 0]);
    let target = world.m.routers[1].target().user(&world.acme.id).password(&world.acme.password);
    let mut client = target.database("crm").connect();
    client.rows(&mark(1));
    world.m.catalog_proxy.as_ref().expect("there is one").stall();
    let moved = world.m.cli(&[
        "move",
        "start",
        "acme",
        "--to",
        "s1",
        "--attempts",
        "1000",
        "--wait",
        "--timeout",
        "60",
    ]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    assert_eq!(moved["receipt"]["pause"]["silent"], 1, "{moved}");
    world.home = 1;
    // It has heard nothing: what it sends goes where the tenant was.
    let late = client.try_rows(&mark(2)).expect_err("the fence stops it");
    assert_eq!(late.sqlstate, "40001");
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
        let others = scope.spawn(|| partitioned(Model::Schema));
        partitioned(Model::Rows);
        others.join().expect("the schema");
    });
}

#[test]
#[ignore = "takes minutes: make faults-moves"]
fn heavy_in_every_model() {
    MODELS.into_iter().for_each(partitioned);
}

/// A router that stands still while a tenant moves has transactions under way when it wakes up.
#[test]
fn heavy_a_router_that_stood_still_has_lost_nothing() {
    let mut world = World::start(Model::Database, false);
    world.m.routers[1].signal("STOP");
    let moved = world.m.cli(&[
        "move",
        "start",
        "acme",
        "--to",
        "s1",
        "--attempts",
        "1000",
        "--wait",
        "--timeout",
        "60",
    ]);
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
