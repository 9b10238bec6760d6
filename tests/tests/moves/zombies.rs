//! A control plane that stands still in the middle of a move, and wakes up when another has taken over and everything has
//! changed: it believes that it leads, and changes nothing.

use std::time::Instant;

use switchyard_tests::wait;

use crate::world::{Model, World};

/// Stops the mover at the point on the way of a move, lets a second one finish it and bring the tenant back, and then
/// wakes the first one up.
#[allow(clippy::print_stdout, reason = "what was seen is part of the test's answer")]
fn sleeps_at(model: Model, point: &str) {
    let mut world = World::start(model, false);
    world.m.kill_control_plane();
    world.m.start_control_plane_to_end_at(&format!("stop:{point}"));
    let id = world.m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
    if point == "completing" {
        wait::until_true("the move", || world.show(&id, "phase") == "moved");
        // Not by a command, which would wait for the answer of who stands still.
        world.m.catalog.sql(&format!("UPDATE switchyard.moves SET wish = 'complete' WHERE id = {id}"));
    }
    world.m.wait_control_plane_stopped();
    let began = Instant::now();
    world.m.start_second_control_plane();
    let ended = if point == "completing" { "done" } else { "moved" };
    wait::until_true("the second to end the move", || world.show(&id, "phase") == ended);
    let taken_over = began.elapsed();
    world.wait_write();
    // There and back: where the first one was about to write, the tenant lives again.
    if ended == "moved" {
        let done = world.m.cli(&["move", "complete", &id, "--wait", "--timeout", "60"]);
        assert_eq!(done["outcome"], "completed", "{done}");
    }
    world.home = 1;
    if point == "completing" {
        let back = world.m.cli(&["move", "start", "acme", "--to", "s0", "--attempts", "1000", "--wait"]);
        assert_eq!(back["phase"], "moved", "{back}");
        let done = world.m.cli(&["move", "complete", "acme", "--wait", "--timeout", "60"]);
        assert_eq!(done["outcome"], "completed", "{done}");
        world.home = 0;
    }
    world.nothing_left();
    world.m.thaw_control_plane();
    world.m.wait_followed();
    world.wait_write();
    let errors = world.check();
    assert_eq!(errors, [""; 0], "no client is to see an error");
    world.nothing_left();
    println!("{model:?}, `{point}`: moved {} ms after the second was started", taken_over.as_millis());
}

#[test]
fn heavy_who_stands_still_with_a_session_that_has_no_name_yet_leaves_none_behind() {
    sleeps_at(Model::Rows, "session opened");
}

#[test]
fn heavy_who_wakes_up_before_the_copy_does_not_empty_the_target() {
    sleeps_at(Model::Rows, "target fenced");
}

#[test]
fn heavy_who_wakes_up_behind_the_freezing_activates_nothing() {
    sleeps_at(Model::Rows, "frozen");
}

#[test]
fn heavy_who_wakes_up_behind_the_activation_settles_nothing() {
    sleeps_at(Model::Sealed, "activated");
}

#[test]
fn heavy_who_wakes_up_before_the_deletion_deletes_nothing_of_who_is_back() {
    sleeps_at(Model::Rows, "completing");
}

#[test]
fn heavy_who_wakes_up_before_the_schema_is_dropped_drops_nothing() {
    sleeps_at(Model::Schema, "completing");
}

#[test]
fn heavy_who_wakes_up_before_the_database_is_dropped_drops_nothing() {
    sleeps_at(Model::Database, "completing");
}
