//! What follows a cutover as a model: the source is settled, then emptied or gone back to, by a mover that may stand still at
//! any step and wake up when another has done the rest and the tenant has come back.
//!
//! What it does on shards it does in sessions. Who takes over raises the term in the catalog, then ends the sessions of
//! those before; a session that is opened later is used only if the term is still one's own. The order matters, and the checker
//! finds what it is for.

use stateright::{Checker, Model, Property};

/// A condition that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weakening {
    None,
    /// Who takes over leaves the sessions of those before it alone.
    SessionsStay,
    /// It ends them before it raises the term.
    EndsFirst,
    /// A new session is used without a look at the term.
    NoLook,
}

const SOURCE: usize = 0;
const TARGET: usize = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fence {
    Active,
    Frozen,
    Moved,
}

/// As the catalog has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Moved,
    Completing,
    RollingBack,
    Done,
}

/// What a mover does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Next {
    /// Nothing yet.
    Nothing,
    Claim,
    EndSessions,
    Settle,
    /// Waits for what operators want.
    Follow,
    Check,
    Delete,
    GoBack,
    DeleteBack,
    Forget,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Mover {
    next: Next,
    session: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    fences: [Fence; 2],
    /// Whether a fence is part of this move.
    tied: [bool; 2],
    /// Whether the tenant's rows are there, all of them.
    rows: [bool; 2],
    phase: Phase,
    owner: usize,
    movers: [Mover; 2],
    /// A move that came later has brought the tenant back to the source.
    came_back: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// A mover does what is next; where operators choose, whether they complete.
    Step(usize, bool),
    /// A mover opens a session, as the one that it had is gone.
    Open(usize),
    TakeOver,
    ComeBack,
}

struct After(Weakening);

impl After {
    /// What a mover that has taken over begins with.
    fn begin(s: &State) -> Next {
        match s.phase {
            Phase::Moved => Next::Settle,
            Phase::Completing => Next::Check,
            Phase::RollingBack if s.fences[SOURCE] == Fence::Active => Next::DeleteBack,
            Phase::RollingBack => Next::Settle,
            Phase::Done => Next::Ended,
        }
    }

    fn step(&self, s: &mut State, n: usize, complete: bool) -> Option<()> {
        let on_shard = !matches!(s.movers[n].next, Next::Claim | Next::EndSessions | Next::Follow);
        if on_shard && !s.movers[n].session {
            // It may open another, or fail.
            s.movers[n].next = Next::Ended;
            return Some(());
        }
        s.movers[n].next = match s.movers[n].next {
            Next::Nothing | Next::Ended => return None,
            Next::Claim => {
                s.owner = n;
                if self.0 == Weakening::EndsFirst { Self::begin(s) } else { Next::EndSessions }
            }
            Next::EndSessions => {
                if self.0 != Weakening::SessionsStay {
                    s.movers[1 - n].session = false;
                }
                if self.0 == Weakening::EndsFirst { Next::Claim } else { Self::begin(s) }
            }
            Next::Settle => {
                if s.tied[SOURCE] {
                    s.fences[SOURCE] = Fence::Moved;
                }
                Next::Follow
            }
            Next::Follow if s.owner != n => Next::Ended,
            Next::Follow if s.phase == Phase::RollingBack => Next::GoBack,
            Next::Follow => {
                s.phase = if complete { Phase::Completing } else { Phase::RollingBack };
                if complete { Next::Check } else { Next::GoBack }
            }
            Next::Check if s.fences[SOURCE] == Fence::Moved => Next::Delete,
            Next::Check => Next::Ended,
            Next::Delete => {
                s.rows[SOURCE] = false;
                Next::Forget
            }
            // One act, as the model of the cutover has it: term and epoch are looked at.
            Next::GoBack if s.owner != n => Next::Ended,
            Next::GoBack => {
                s.fences = [Fence::Active, Fence::Moved];
                Next::DeleteBack
            }
            Next::DeleteBack => {
                s.rows[TARGET] = false;
                Next::Forget
            }
            Next::Forget => {
                s.tied = [false; 2];
                if s.owner == n {
                    s.phase = Phase::Done;
                }
                Next::Ended
            }
        };
        Some(())
    }
}

impl Model for After {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            fences: [Fence::Frozen, Fence::Active],
            tied: [true; 2],
            rows: [true; 2],
            phase: Phase::Moved,
            owner: 0,
            movers: [
                Mover { next: Next::Settle, session: true },
                Mover { next: Next::Nothing, session: false },
            ],
            came_back: false,
        }]
    }

    fn actions(&self, s: &State, out: &mut Vec<Action>) {
        for n in 0..2 {
            match s.movers[n].next {
                Next::Nothing | Next::Ended => {}
                Next::Follow => out.extend([Action::Step(n, true), Action::Step(n, false)]),
                _ => out.push(Action::Step(n, true)),
            }
            if !s.movers[n].session && !matches!(s.movers[n].next, Next::Nothing | Next::Ended) {
                out.push(Action::Open(n));
            }
        }
        if s.movers[1].next == Next::Nothing {
            out.push(Action::TakeOver);
        }
        if s.phase == Phase::Done && s.fences[TARGET] == Fence::Active && !s.came_back {
            out.push(Action::ComeBack);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut s = last.clone();
        match action {
            Action::Step(n, complete) => self.step(&mut s, n, complete)?,
            Action::Open(n) => match s.owner == n || self.0 == Weakening::NoLook {
                true => s.movers[n].session = true,
                false => s.movers[n].next = Next::Ended,
            },
            Action::TakeOver => {
                let first = if self.0 == Weakening::EndsFirst { Next::EndSessions } else { Next::Claim };
                s.movers[1] = Mover { next: first, session: true };
            }
            Action::ComeBack => {
                s.fences = [Fence::Active, Fence::Moved];
                s.rows = [true, false];
                s.tied = [false; 2];
                s.came_back = true;
            }
        }
        Some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the tenant is writable on one side", |_, s: &State| {
                s.fences.iter().filter(|f| **f == Fence::Active).count() == 1
            }),
            Property::always("its rows are where it is writable", |_, s: &State| {
                (0..2).all(|side| s.fences[side] != Fence::Active || s.rows[side])
            }),
            Property::sometimes("it is completed by the second", |_, s: &State| {
                s.phase == Phase::Done && s.owner == 1 && s.fences[TARGET] == Fence::Active
            }),
            Property::sometimes("it goes back with the second", |_, s: &State| {
                s.phase == Phase::Done && s.owner == 1 && s.fences[SOURCE] == Fence::Active && !s.came_back
            }),
            Property::sometimes("it comes back while the first stands still", |_, s: &State| {
                s.came_back && s.movers[0].next == Next::Delete
            }),
        ]
    }
}

#[test]
fn what_follows_a_cutover_holds() {
    let checker = After(Weakening::None).checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn each_condition_is_needed() {
    let (writable, rows) = ("the tenant is writable on one side", "its rows are where it is writable");
    for (weakening, broken) in [
        (Weakening::SessionsStay, writable),
        (Weakening::SessionsStay, rows),
        (Weakening::EndsFirst, writable),
        (Weakening::EndsFirst, rows),
        (Weakening::NoLook, rows),
    ] {
        let checker = After(weakening).checker().threads(2).spawn_bfs().join();
        let path = checker.discovery(broken).unwrap_or_else(|| panic!("{weakening:?} breaks nothing"));
        println!("{weakening:?}: {broken}, after {:?}", path.into_actions());
    }
}
