//! A source that does not come back after the cutover.

use switchyard_tests::moves::Moving;
use switchyard_tests::wait;

use crate::TABLES;

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
    let mut client = m.routers[0].target().user(&acme.id).password(&acme.password).database("crm").connect();
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
    let mut client = m.routers[0].target().user(&acme.id).password(&acme.password).database("crm").connect();
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
