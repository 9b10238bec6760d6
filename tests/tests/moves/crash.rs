//! The mover ends at each named point, as if it were killed. Another goes on or goes back by itself: nothing is lost,
//! nothing is there twice, nothing is left, no client sees an error, and the tenant can write as soon as a mover is there.

use std::time::Duration;

use switchyard_tests::wait;

use crate::world::{MODELS, Model, World};

/// Longest time from a control plane that is ready to a write, as the tests insist on it. What was seen is printed: it is
/// to be below two seconds, and on a machine with other things to do it may be more.
const WRITABLE: Duration = Duration::from_secs(6);

/// What is asked for, and whether the mover is to end on the way there or on the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Move,
    Rehearse,
    Rollback,
    Complete,
}

/// Every point, with what leads there.
const POINTS: [(&str, Act); 29] = [
    ("database made", Act::Move),
    ("taken over", Act::Move),
    ("structure made", Act::Move),
    ("target fenced", Act::Move),
    ("source fenced", Act::Move),
    ("published", Act::Move),
    ("prepared", Act::Move),
    ("slot made", Act::Move),
    ("subscribed", Act::Move),
    ("copied", Act::Move),
    ("verified", Act::Move),
    ("way back prepared", Act::Move),
    ("held", Act::Move),
    ("frozen", Act::Move),
    ("activated", Act::Move),
    ("moved", Act::Move),
    ("placed", Act::Move),
    ("following", Act::Move),
    ("completing", Act::Complete),
    ("deleted", Act::Complete),
    ("slot dropped", Act::Complete),
    ("going back", Act::Rollback),
    ("held", Act::Rollback),
    ("frozen", Act::Rollback),
    ("activated", Act::Rollback),
    ("gone back", Act::Rollback),
    ("settled", Act::Rollback),
    ("clearing", Act::Rehearse),
    ("cleared", Act::Rehearse),
];

/// Points that only tenants with something of their own pass.
fn is_passed(point: &str, model: Model) -> bool {
    match point {
        "database made" => model == Model::Database,
        "structure made" => matches!(model, Model::Schema | Model::Database),
        // With the database its fence is gone.
        "cleared" => model != Model::Database,
        _ => true,
    }
}

impl World {
    /// Starts a mover that ends at the point, has it do the act, and lets another take over. The longest it took until
    /// somebody could write.
    fn crash_at(&mut self, point: &str, act: Act) -> Duration {
        let id = match act {
            Act::Move => {
                self.m.kill_control_plane();
                self.m.start_control_plane_to_end_at(point);
                self.m.cli(&["move", "start", "acme", "--to", &self.other()])["id"].to_string()
            }
            Act::Rehearse => {
                self.m.kill_control_plane();
                self.m.start_control_plane_to_end_at(point);
                self.m.cli(&["move", "rehearse", "acme", "--to", &self.other()])["id"].to_string()
            }
            Act::Rollback | Act::Complete => {
                let to = self.other();
                let moved =
                    self.m.cli(&["move", "start", "acme", "--to", &to, "--attempts", "1000", "--wait"]);
                assert_eq!(moved["phase"], "moved", "{moved}");
                let id = moved["id"].to_string();
                self.m.kill_control_plane();
                self.m.start_control_plane_to_end_at(point);
                self.m.cli(&["move", if act == Act::Rollback { "rollback" } else { "complete" }, &id]);
                id
            }
        };
        self.m.wait_control_plane_end();
        self.m.start_control_plane();
        self.m.wait_ready();
        let writable = self.wait_write();
        assert!(writable < WRITABLE, "`{point}`: {writable:?} until a write");
        let ended = if act == Act::Move { "moved" } else { "done" };
        wait::until_true(&format!("the end after `{point}`"), || self.show(&id, "phase") == ended);
        match act {
            Act::Move => {
                let done = self.m.cli(&["move", "complete", &id, "--wait", "--timeout", "60"]);
                assert_eq!(done["outcome"], "completed", "{done}");
                self.home = 1 - self.home;
            }
            Act::Complete => self.home = 1 - self.home,
            Act::Rollback => assert_eq!(self.show(&id, "outcome"), "rolled_back"),
            Act::Rehearse => assert_eq!(self.show(&id, "outcome"), "rehearsed"),
        }
        self.nothing_left();
        writable
    }
}

#[allow(clippy::print_stdout, reason = "what was seen is part of the test's answer")]
fn crashes(model: Model, points: impl Iterator<Item = (&'static str, Act)>) {
    let mut world = World::start(model, false);
    let mut longest = Duration::ZERO;
    for (point, act) in points.filter(|(point, _)| is_passed(point, model)) {
        let writable = world.crash_at(point, act);
        println!("{model:?}, `{point}` ({act:?}): writable {} ms after", writable.as_millis());
        longest = longest.max(writable);
    }
    let errors = world.check();
    assert_eq!(errors, [""; 0], "no client is to see an error");
    println!("{model:?}: writable within {} ms of a control plane that is ready", longest.as_millis());
}

#[test]
fn heavy_a_mover_that_ends_at_any_point_is_followed_by_another() {
    let half = |which| POINTS.into_iter().enumerate().filter(move |(n, _)| n % 2 == which).map(|(_, p)| p);
    std::thread::scope(|scope| {
        let even = scope.spawn(|| crashes(Model::Rows, half(0)));
        crashes(Model::Rows, half(1));
        even.join().expect("the other half");
    });
}

#[test]
fn heavy_a_mover_of_something_of_its_own_too() {
    let points = ["database made", "structure made", "frozen", "deleted", "settled", "clearing"];
    std::thread::scope(|scope| {
        let some = || {
            POINTS
                .into_iter()
                .filter(|(p, act)| points.contains(p) && (*p, *act) != ("frozen", Act::Rollback))
        };
        let database = scope.spawn(move || crashes(Model::Database, some()));
        crashes(Model::Schema, some());
        database.join().expect("the database");
    });
}

#[test]
#[ignore = "takes minutes: make faults-moves"]
fn heavy_every_model_at_every_point() {
    for model in MODELS {
        crashes(model, POINTS.into_iter());
    }
}

/// Mover and catalog end together with clients held, the tenant frozen, or just arrived: what is asked of the two that come back
/// is what is asked of one.
#[allow(clippy::print_stdout, reason = "what was seen is part of the test's answer")]
fn both_end(model: Model, points: &[&str]) {
    let mut world = World::start(model, false);
    for point in points {
        world.m.kill_control_plane();
        world.m.start_control_plane_to_end_at(&format!("stop:{point}"));
        let to = world.other();
        let id = world.m.cli(&["move", "start", "acme", "--to", &to, "--attempts", "1000"])["id"].to_string();
        world.m.wait_control_plane_stopped();
        world.m.catalog.kill9();
        world.m.kill_control_plane();
        world.m.catalog.start_again();
        world.m.start_control_plane();
        world.m.wait_ready();
        let writable = world.wait_write();
        println!("{model:?}, both at `{point}`: writable {} ms after", writable.as_millis());
        assert!(writable < WRITABLE, "`{point}`: {writable:?} until a write");
        wait::until_true(&format!("the move after `{point}`"), || world.show(&id, "phase") == "moved");
        let done = world.m.cli(&["move", "complete", &id, "--wait", "--timeout", "60"]);
        assert_eq!(done["outcome"], "completed", "{done}");
        world.home = 1 - world.home;
    }
    assert_eq!(world.check(), [""; 0], "no client is to see an error");
    world.nothing_left();
}

#[test]
fn heavy_a_mover_and_a_catalog_that_end_together_hold_nobody_up() {
    std::thread::scope(|scope| {
        let own = scope.spawn(|| both_end(Model::Schema, &["frozen", "activated"]));
        both_end(Model::Rows, &["way back prepared", "held", "frozen", "activated", "moved"]);
        own.join().expect("the schema");
    });
}
