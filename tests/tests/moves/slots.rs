//! Slots that moves need of a shard, where each tenant has a database.

use switchyard_tests::wait;

use crate::world::{Model, World};

#[test]
fn heavy_a_shard_that_has_no_slot_for_a_move_is_noticed_before_it_begins() {
    let mut world = World::start(Model::Database, false);
    world.m.shards[0].sql("CREATE DATABASE crm_globex");
    world.database(
        0,
        "crm_globex",
        "CREATE TABLE clients (id int PRIMARY KEY, name text); INSERT INTO clients VALUES (1, 'c')",
    );
    world.m.known_tenant("globex", 0, &["--no-provision"]);
    // Of the ten that there are, one is left.
    world.m.shards[1]
        .sql("SELECT pg_create_physical_replication_slot('other_' || n) FROM generate_series(1, 9) n");
    let moved = world.start_move(&[]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    world.home = 1;
    // It keeps that for the way back.
    let refused = world.m.command(&["move", "start", "globex", "--to", "s1", "--wait", "--timeout", "60"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        said.contains(
            "max_replication_slots is 10: 9 are taken by others, and moves that are not done need 2"
        ),
        "{said}"
    );
    assert!(said.contains("SET max_replication_slots = 11"), "{said}");
    assert_eq!(world.m.one(1, "SELECT count(*) FROM pg_database WHERE datname = 'crm_globex'"), "0");
    // What the slot retains is looked at by way of the shard's own database.
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'crm_acme' AND backend_type = 'client backend'
                    AND application_name ~ '^switchyard-(mover|slots)'";
    wait::until_true("no session of the mover in the tenant's database", || world.m.one(1, sessions) == "0");
    let done = world.m.cli(&["move", "complete", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    let moved = world.m.cli(&["move", "start", "globex", "--to", "s1", "--wait", "--timeout", "60"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    let done = world.m.cli(&["move", "complete", "globex", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    assert_eq!(world.check(), [""; 0], "no client is to see an error");
}
