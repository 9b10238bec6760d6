//! The last changes of a cutover that cannot be applied, because somebody at the target is in the way: the attempt is given
//! up within the budget, also if the mover ends while it is.

use switchyard_tests::wait;

use crate::world::{Model, World};

/// Longest wait of a client in an attempt that is given up, in microseconds. The budget is a quarter of this: the rest is for
/// a machine that has other things to do.
const WAITED_US: u64 = 1_000_000;

/// Has the mover stop before its cutover, somebody hold the fence's row at the target, and the mover go on and meet that.
/// `ends` is the point at which it ends then, if it does.
fn meets_a_lock(ends: Option<&str>) {
    let mut world = World::start(Model::Rows, false);
    world.m.kill_control_plane();
    let faults = ["stop:way back prepared"].into_iter().chain(ends).collect::<Vec<_>>().join(",");
    world.m.start_control_plane_to_end_at(&faults);
    let id = world.m.cli(&["move", "start", "acme", "--to", "s1", "--attempts", "1000"])["id"].to_string();
    world.m.wait_control_plane_stopped();
    let mut somebody = world.m.shards[1].admin();
    somebody.rows("BEGIN; SELECT state FROM switchyard.fence WHERE tenant_id = 'acme' FOR UPDATE");
    world.m.thaw_control_plane();
    if ends.is_some() {
        world.m.wait_control_plane_end();
        world.m.start_control_plane();
        world.m.wait_ready();
    } else {
        wait::until_true("an attempt that was given up", || {
            world.show(&id, "error").contains("the last changes did not arrive")
        });
    }
    world.wait_write();
    somebody.rows("COMMIT");
    wait::until_true("the move", || world.show(&id, "phase") == "moved");
    let given_up = world.m.cli(&["move", "show", &id])["receipt"]["longest_given_up_us"].as_u64();
    assert!(given_up.is_none_or(|us| us < WAITED_US), "{given_up:?}");
    let done = world.m.cli(&["move", "complete", &id, "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    world.home = 1;
    assert_eq!(world.check(), [""; 0], "no client is to see an error");
    world.nothing_left();
}

#[test]
fn a_lock_at_the_target_is_not_waited_for() {
    meets_a_lock(None);
}

#[test]
fn a_mover_that_ends_behind_giving_up_is_followed_by_another() {
    meets_a_lock(Some("given up"));
}

#[test]
fn a_mover_that_ends_behind_unfreezing_is_followed_by_another() {
    meets_a_lock(Some("unfrozen"));
}
