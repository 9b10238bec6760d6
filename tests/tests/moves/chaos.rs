//! Things that break at any moment of a move, alone and in pairs: nothing is lost, nothing is there twice, the move goes on
//! or back by itself, and nothing of it is left.
//!
//! What happens when is decided by a seed, which is printed; `SWITCHYARD_TESTS_SEED` repeats one.

use std::time::{Duration, Instant};

use switchyard_tests::{Dice, wait};

use crate::world::{MODELS, Model, World};

/// Latest moment of a fault after the start of a move, in milliseconds: a move takes about so long.
const WITHIN_MS: usize = 1500;

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    KillControlPlane,
    /// For longer than it may be silent without losing the lead.
    FreezeControlPlane,
    KillRouter,
    FreezeRouter,
    KillShard,
    KillCatalog,
    /// All connections to a shard break, and no new ones are made for a while.
    CutShard,
    /// Nothing goes to or from a shard, and nobody is told.
    StallShard,
    /// A router hears nothing from the catalog.
    StallRouter,
    /// Every session of the mover on a shard ends: those that copy, apply, and the stream.
    TerminateMover,
    TerminateStream,
}

const FAULTS: [Fault; 11] = [
    Fault::KillControlPlane,
    Fault::FreezeControlPlane,
    Fault::KillRouter,
    Fault::FreezeRouter,
    Fault::KillShard,
    Fault::KillCatalog,
    Fault::CutShard,
    Fault::StallShard,
    Fault::StallRouter,
    Fault::TerminateMover,
    Fault::TerminateStream,
];

/// What clients may be told: by SQLSTATE, or by the end of the connection. Nothing of it is an acknowledgement.
const ALLOWED: [&str; 9] =
    ["08", "40001", "53", "57", "58", "connection closed", "error communicating", "db error", "no answer"];

/// What a fault needs to be mended again.
fn ms(from: u64, dice: &mut Dice, more: usize) -> Duration {
    Duration::from_millis(from + dice.roll(more) as u64)
}

impl World {
    fn terminate(&self, shard: usize, what: &str) {
        self.m.one(
            shard,
            &format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE application_name ~ '^switchyard-mover' AND {what}"
            ),
        );
    }

    /// Breaks something, and mends it.
    fn strike(&mut self, fault: Fault, dice: &mut Dice) {
        let shard = dice.roll(2);
        let router = dice.roll(2);
        match fault {
            Fault::KillControlPlane => {
                self.m.kill_control_plane();
                self.m.start_control_plane();
            }
            Fault::FreezeControlPlane => {
                self.m.freeze_control_plane();
                std::thread::sleep(ms(1000, dice, 6000));
                self.m.thaw_control_plane();
            }
            Fault::KillRouter => {
                self.m.routers[router].kill9();
                self.m.routers[router].start_again();
            }
            Fault::FreezeRouter => {
                self.m.routers[router].signal("STOP");
                std::thread::sleep(ms(500, dice, 3500));
                self.m.routers[router].signal("CONT");
            }
            Fault::KillShard => {
                self.m.shards[shard].kill9();
                self.m.shards[shard].start_again();
            }
            Fault::KillCatalog => {
                self.m.catalog.kill9();
                self.m.catalog.start_again();
            }
            Fault::CutShard => {
                self.m.proxies[shard].refuse(true);
                std::thread::sleep(ms(50, dice, 1500));
                self.m.proxies[shard].refuse(false);
            }
            Fault::StallShard => {
                self.m.proxies[shard].stall();
                std::thread::sleep(ms(50, dice, 3000));
                self.m.proxies[shard].resume();
            }
            Fault::StallRouter => {
                let proxy = self.m.catalog_proxy.as_ref().expect("there is one");
                proxy.stall();
                std::thread::sleep(ms(500, dice, 4000));
                proxy.resume();
            }
            Fault::TerminateMover => self.terminate(shard, "backend_type = 'client backend'"),
            Fault::TerminateStream => self.terminate(shard, "backend_type = 'walsender'"),
        }
    }

    /// A field of a move, as soon as the control plane answers.
    fn field(&self, id: &str, field: &str) -> String {
        wait::until("an answer of the control plane", || {
            let output = self.m.command(&["move", "show", id, "-o", "json"]);
            let json: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            output.status.success().then(|| json[field].as_str().unwrap_or_default().to_owned())
        })
    }

    /// Moves the tenant while these break, ends the move one way or the other, and looks whether all is well.
    fn round(&mut self, faults: &[Fault], dice: &mut Dice) -> Duration {
        let to = self.other();
        let id = self.m.cli(&["move", "start", "acme", "--to", &to, "--attempts", "1000"])["id"].to_string();
        for fault in faults {
            std::thread::sleep(ms(0, dice, WITHIN_MS));
            self.strike(*fault, dice);
        }
        self.m.wait_ready();
        let began = Instant::now();
        self.wait_write();
        let writable = began.elapsed();
        let end = Instant::now() + Duration::from_secs(90);
        loop {
            match self.field(&id, "phase").as_str() {
                "moved" => break,
                "done" => {
                    panic!("the move ended: {}, {}", self.field(&id, "outcome"), self.field(&id, "error"))
                }
                phase => assert!(Instant::now() < end, "{phase}: {}", self.field(&id, "error")),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let back = dice.roll(2) == 0;
        let verb = if back { "rollback" } else { "complete" };
        let done = self.m.cli(&["move", verb, &id, "--wait", "--timeout", "90"]);
        assert_eq!(done["phase"], "done", "{done}");
        if !back {
            self.home = 1 - self.home;
        }
        self.nothing_left();
        writable
    }
}

#[allow(clippy::print_stdout, reason = "the seed is what repeats a failure")]
fn rounds(model: Model, faults: &[Vec<Fault>], seed: u64) {
    let seed = std::env::var("SWITCHYARD_TESTS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(seed);
    let mut dice = Dice::new(seed);
    let mut world = World::start(model, true);
    for faults in faults {
        println!("SEEN {model:?}, seed {seed}: {faults:?}");
        let writable = world.round(faults, &mut dice);
        println!("SEEN {model:?}, seed {seed}: {faults:?}: writable {} ms after", writable.as_millis());
    }
    let errors = world.check();
    let odd: Vec<_> = errors.iter().filter(|e| !ALLOWED.iter().any(|a| e.starts_with(a))).collect();
    assert!(odd.is_empty(), "seed {seed}: {odd:?}");
}

/// A seed of the moment, for runs that are to see something new.
fn any_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |t| t.subsec_nanos().into())
}

#[test]
fn heavy_each_fault_alone() {
    let (even, odd): (Vec<_>, Vec<_>) =
        FAULTS.into_iter().map(|f| vec![f]).enumerate().partition(|(n, _)| n % 2 == 0);
    let of = |half: Vec<(usize, Vec<Fault>)>| half.into_iter().map(|(_, f)| f).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| rounds(Model::Sealed, &of(odd), 2));
        rounds(Model::Rows, &of(even), 1);
        other.join().expect("the other half");
    });
}

#[test]
fn the_way_back_is_not_lost_with_the_sessions_that_it_takes() {
    let mut world = World::start(Model::Rows, false);
    let moved = world.m.cli(&["move", "start", "acme", "--to", "s1", "--attempts", "1000", "--wait"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    world.home = 1;
    world.wait_write();
    for shard in [0, 1] {
        world.terminate(shard, "backend_type = 'client backend'");
    }
    world.wait_write();
    let back = world.m.cli(&["move", "rollback", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
    world.home = 0;
    assert_eq!(world.check(), [""; 0]);
    world.nothing_left();
}

#[test]
#[ignore = "takes minutes: make faults-moves"]
fn heavy_each_fault_in_each_model() {
    for model in MODELS {
        rounds(model, &FAULTS.map(|f| vec![f]), any_seed());
    }
}

#[test]
#[ignore = "takes minutes: make faults-moves"]
fn heavy_pairs_of_faults() {
    let seed = any_seed();
    let mut dice = Dice::new(seed);
    for model in MODELS {
        let pairs: Vec<_> = (0..12).map(|_| vec![*dice.pick(&FAULTS), *dice.pick(&FAULTS)]).collect();
        rounds(model, &pairs, seed);
    }
}
