//! A source that does not come back after the cutover, and a target before it.

use switchyard_tests::moves::Moving;
use switchyard_tests::wait;

use crate::TABLES;
use crate::world::{Model, World};

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";

/// So many megabytes of log.
fn log(m: &Moving, shard: usize, mb: u32) {
    let sql = format!(
        "SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))) FROM generate_series(1, {mb})"
    );
    m.one(shard, &sql);
}

#[test]
fn a_move_is_ended_without_its_source_and_nothing_is_held_back_for_that() {
    let mut m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let moved = m.cli(&["move", "start", "acme", "--to", "s1", "--wal-budget", "50000000", "--wait"]);
    let id = moved["id"].to_string();
    // Nobody reads the target's slot any more, and nobody who comes can.
    m.kill_control_plane();
    m.shards[0].kill9();
    log(&m, 1, 60);
    assert_eq!(m.one(1, SLOTS), "1");
    m.start_control_plane();
    m.wait_ready();
    wait::until_true("the slot to be dropped", || m.one(1, SLOTS) == "0");
    let events = format!(
        "SELECT count(*) FROM switchyard.move_events WHERE move_id = {id} AND what LIKE '%was dropped%'"
    );
    wait::until_true("the word", || m.catalog.value(&events) == "1");
    let mut client = m.login(&acme, 0);
    client.rows("UPDATE clients SET name = 'there'");

    let vain = m.command(&["move", "complete", &id, "--wait", "--timeout", "2"]);
    assert_eq!(vain.status.code(), Some(5), "it needs the source");
    let done = m.cli(&["move", "complete", &id, "--without-source", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    let left = done["receipt"]["left_behind"].as_str().unwrap_or_default();
    assert!(left.contains("shard s0 was not asked: rows whose tenant_id is acme"), "{done}");
    assert_eq!(m.one(1, "SELECT count(*) FROM switchyard.moves"), "0");
    assert_eq!(m.one(1, "SELECT concat_ws(' ', state, move_id) FROM switchyard.fence"), "active");
    assert_eq!(client.column("SELECT name FROM clients"), ["there"]);

    // Back after all, it serves nobody what it has, and retains nothing.
    m.shards[0].start_again();
    let mut old = m.shards[0].app().param("options", "-c app.tenant_id=acme").connect();
    assert_eq!(old.try_rows("SELECT name FROM clients").expect_err("it has moved").sqlstate, "TN002");
    wait::until_true("its slot to be dropped", || m.one(0, SLOTS) == "0");
    wait::until_true("its record to be gone", || m.one(0, "SELECT count(*) FROM switchyard.moves") == "0");
    let fence =
        "SELECT concat_ws(' ', state, moved_to, move_id) FROM switchyard.fence WHERE tenant_id = 'acme'";
    assert_eq!(m.one(0, fence), "moved s1");
    m.shards[0].sql("DELETE FROM clients");
    let back = m.cli(&["move", "start", "acme", "--to", "s0", "--wait", "--timeout", "60"]);
    assert_eq!(back["phase"], "moved", "{back}");
    m.cli(&["move", "complete", "acme", "--wait"]);
    m.nothing_left();
}

#[test]
fn a_tenant_whose_source_dies_as_it_arrives_is_served() {
    let mut m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let mut client = m.login(&acme, 0);
    m.kill_control_plane();
    m.start_control_plane_to_end_at("activated");
    let id = m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
    m.wait_control_plane_end();
    m.shards[0].kill9();
    m.start_control_plane();
    m.wait_ready();
    wait::until_true("the tenant to be served", || {
        client.try_rows("UPDATE clients SET name = 'there'").is_ok()
    });
    assert_eq!(m.one(1, "SELECT name FROM clients"), "there");
    assert_eq!(m.cli(&["tenant", "show", "acme"])["shard"], "s1");
    assert_eq!(m.cli(&["move", "show", &id])["phase"], "moved");
    // It comes back, and follows.
    m.shards[0].start_again();
    wait::until_true("the source to follow", || m.one(0, "SELECT name FROM clients") == "there");
    let back = m.cli(&["move", "rollback", &id, "--wait", "--timeout", "60"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
    assert_eq!(client.column("SELECT name FROM clients"), ["there"]);
    m.nothing_left();
}

/// A move whose target is killed with this left to do, and that is given up without it. Its number.
fn given_up_without_its_target(world: &mut World) -> String {
    world.m.kill_control_plane();
    world.m.start_control_plane_to_end_at("copied");
    let id = world.m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
    world.m.wait_control_plane_end();
    world.m.shards[1].kill9();
    world.m.start_control_plane();
    world.m.wait_ready();
    let vain = world.m.command(&["move", "abort", &id, "--wait", "--timeout", "2"]);
    assert_eq!(vain.status.code(), Some(5), "it needs the target");
    wait::until_true("the hint", || world.show(&id, "error").contains("`move abort --without-target`"));
    let done = world.m.cli(&["move", "abort", &id, "--without-target", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "aborted", "{done}");
    let left = done["receipt"]["left_behind"].as_str().unwrap_or_default();
    assert!(left.starts_with("shard s1 was not asked"), "{done}");
    assert_eq!(world.m.one(0, SLOTS), "0", "nothing is held back for it");
    assert_eq!(world.sql("SELECT count(*) FROM switchyard.moves"), "0");
    assert_eq!(world.sql("SELECT concat_ws(' ', state, move_id) FROM switchyard.fence"), "active");
    world.wait_write();
    let again = world.m.command(&["move", "start", "acme", "--to", "s1"]);
    assert_eq!(again.status.code(), Some(4), "first it is cleared");
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not cleared yet"), "{again:?}");
    id
}

fn wait_cleared(world: &World, id: &str) {
    let events = format!(
        "SELECT count(*) FROM switchyard.move_events WHERE move_id = {id} AND what LIKE 'what was left%is cleared'"
    );
    wait::until_true("the target to be cleared", || world.m.catalog.value(&events) == "1");
}

/// There is the whole of a move after it.
fn moves_after_all(world: &mut World) {
    let moved = world.start_move(&[]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    world.home = 1;
}

fn target_that_comes_back(model: Model) {
    let mut world = World::start(model, false);
    let id = given_up_without_its_target(&mut world);
    world.m.shards[1].start_again();
    wait_cleared(&world, &id);
    world.nothing_left();
    moves_after_all(&mut world);
    let done = world.m.cli(&["move", "complete", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    assert_eq!(world.check(), [""; 0], "no client is to see an error");
    world.nothing_left();
}

#[test]
fn heavy_a_move_is_given_up_without_its_target_which_is_cleared_when_it_is_back() {
    std::thread::scope(|scope| {
        let own = scope.spawn(|| target_that_comes_back(Model::Schema));
        target_that_comes_back(Model::Rows);
        own.join().expect("the schema");
    });
}

/// The next move of the tenant must not meet who clears what one before has left.
fn sleeps_in_the_clearing(model: Model) {
    let mut world = World::start(model, false);
    let id = given_up_without_its_target(&mut world);
    world.m.kill_control_plane();
    world.m.start_control_plane_to_end_at("stop:clearing");
    world.m.shards[1].start_again();
    world.m.wait_control_plane_stopped();
    world.m.start_second_control_plane();
    wait_cleared(&world, &id);
    moves_after_all(&mut world);
    world.m.thaw_control_plane();
    world.m.wait_followed();
    world.wait_write();
    let done = world.m.cli(&["move", "complete", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    assert_eq!(world.check(), [""; 0], "no client is to see an error");
    world.nothing_left();
}

#[test]
fn heavy_who_wakes_up_in_a_clearing_deletes_nothing_of_the_next_move() {
    sleeps_in_the_clearing(Model::Rows);
}

#[test]
#[ignore = "takes minutes: make faults-moves"]
fn heavy_a_target_of_something_of_its_own_too() {
    target_that_comes_back(Model::Database);
    sleeps_in_the_clearing(Model::Schema);
}

/// Who was frozen when the target went may have written there: nobody says otherwise who has not asked it.
#[test]
fn a_move_is_not_given_up_without_its_target_where_the_tenant_may_have_arrived() {
    let mut world = World::start(Model::Rows, false);
    world.m.kill_control_plane();
    world.m.start_control_plane_to_end_at("activated");
    let id = world.m.cli(&["move", "start", "acme", "--to", "s1", "--attempts", "1000"])["id"].to_string();
    world.m.wait_control_plane_end();
    world.m.shards[1].kill9();
    world.m.start_control_plane();
    world.m.wait_ready();
    world.m.command(&["move", "abort", &id, "--without-target", "--wait", "--timeout", "2"]);
    let events = format!(
        "SELECT count(*) FROM switchyard.move_events WHERE move_id = {id} AND what LIKE '%may have arrived on shard s1%'"
    );
    wait::until_true("the word", || world.m.catalog.value(&events) == "1");
    assert_eq!(world.m.one(0, "SELECT state FROM switchyard.fence"), "frozen");
    world.m.shards[1].start_again();
    wait::until_true("the move", || world.show(&id, "phase") == "moved");
    world.home = 1;
    world.wait_write();
    world.check();
}
