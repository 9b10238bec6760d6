//! What a move leaves in the logs of shards: nothing that somebody would have to look into.

use crate::world::{Model, World};

#[test]
fn heavy_an_ordinary_move_leaves_no_warning_about_transactions_in_the_logs_of_shards() {
    for model in [Model::Rows, Model::Schema] {
        let mut world = World::start(model, false);
        let moved = world.start_move(&["--workers", "4", "--piece-bytes", "2000"]);
        assert_eq!(moved["phase"], "moved", "{moved}");
        let back = world.m.cli(&["move", "rollback", "acme", "--wait", "--timeout", "60"]);
        assert_eq!(back["outcome"], "rolled_back", "{back}");
        assert_eq!(world.check(), [""; 0]);
        // Its sessions have been cleaned by then, and have ended.
        world.nothing_left();
        for shard in &world.m.shards {
            let log = shard.log();
            let about: Vec<_> = log.lines().filter(|line| line.contains("transaction in progress")).collect();
            assert_eq!(about, [""; 0], "{model:?}");
        }
    }
}
