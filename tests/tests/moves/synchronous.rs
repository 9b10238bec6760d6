//! A shard with a synchronous standby: a transaction that has committed in the log, and is told of by the change stream, is
//! not seen by anybody until the standby has it.

use switchyard_tests::wait;

use crate::world::{Model, World};

const ROUNDS: usize = 4;

#[test]
fn what_has_committed_and_is_not_seen_yet_goes_along() {
    let mut world = World::start(Model::Rows, false);
    let standby = world.m.shards[0].standby();
    standby.sql("ALTER SYSTEM SET recovery_min_apply_delay = '60ms'");
    standby.sql("SELECT pg_reload_conf()");
    let primary = &world.m.shards[0];
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
    // Of the applications: the mover's own are on the standby's disk at once.
    primary.sql("ALTER SYSTEM SET synchronous_commit = 'remote_apply'");
    primary.sql("SELECT pg_reload_conf()");
    let waiting =
        "SELECT count(*) > 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = 'app'";
    for round in 0..ROUNDS {
        wait::until_true("writers that wait for the standby", || world.m.one(0, waiting) == "t");
        let moved = world.start_move(&[]);
        assert_eq!(moved["phase"], "moved", "round {round}: {moved}");
        let back = world.m.cli(&["move", "rollback", "acme", "--wait", "--timeout", "60"]);
        assert_eq!(back["outcome"], "rolled_back", "round {round}: {back}");
    }
    assert_eq!(world.check(), [""; 0], "no client is to see an error");
    world.nothing_left();
}
