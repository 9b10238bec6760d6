//! The cutover as a model: two routers, of which one hears no order to hold, two movers, of which one
//! does not know that it was overtaken, crashes, and every order of steps.
//!
//! The steps are those of the shards' functions (`freeze`, `activate`, `give_up`, `unfreeze`, `take_over`,
//! `admit`), each one atomic as it is there. With all conditions in place the properties hold; without any one
//! of them the checker must find what it is there for. `docs/decisions/` has what was learnt.

use stateright::{Checker, Model, Property};

/// A condition that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weakening {
    None,
    /// The freezing does not wait for transactions that hold the tenant's lock.
    NoDrain,
    /// REPEATABLE READ transactions read the fence by their own snapshot, without locking the row.
    NoRowLock,
    /// Any freezing in the stream counts as the end, not just the one of this attempt.
    AnyMark,
    /// The tenant goes on at the source without the attempt having been given up at the target.
    UnfreezeFirst,
    /// Neither term nor attempt are looked at when the target is activated.
    NoTurn,
    /// Progress is committed apart from the data.
    ProgressApart,
    /// A move is given up without its target, also where the source is frozen, and nobody has accepted the loss.
    AloneThoughFrozen,
    /// Whoever closes a target that was given up, and is back, does not take the move over there first.
    CloseAtOnce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fence {
    Active,
    Frozen,
    Importing,
    Closed,
}

/// What the stream of the source tells, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Record {
    Write(u8),
    Frozen(u8),
    Thawed,
}

/// A transaction at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Transaction {
    None,
    /// Open; the version of the fence that its snapshot saw, if it keeps one.
    Open {
        saw: Option<u8>,
        wrote: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    Frozen { mark: u8, attempt: u8 },
    GaveUp,
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Mover {
    term: u8,
    step: Step,
    alive: bool,
    /// How far a takeover is: source, then target.
    taken: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    source: Fence,
    /// Raised with each change of the source's fence.
    version: u8,
    target: Fence,
    attempt: u8,
    terms: (u8, u8),
    log: Vec<Record>,
    applied: usize,
    /// How often each write is at the target.
    rows: [u8; 2],
    acknowledged: [bool; 2],
    transactions: [Transaction; 2],
    written: [bool; 2],
    held: bool,
    movers: [Mover; 2],
    marks: u8,
    /// The move was given up without its target: the source knows nothing of it any more.
    alone: bool,
    /// In this, an operator has given up what may have been written at the target.
    accepted: bool,
    /// A target that was given up is back, and has been closed.
    closed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    /// Router, and whether with a snapshot of its own.
    Begin(usize, bool),
    Write(usize),
    Commit(usize),
    Hold,
    Release,
    Freeze(usize),
    Apply(usize),
    /// Data without progress, before a crash.
    ApplyTorn(usize),
    Activate(usize),
    GiveUp(usize),
    Unfreeze(usize),
    Crash,
    TakeOver,
    /// Gives the move up by what the source says, which was taken over.
    AbortAlone,
    /// The same where the source is frozen, by an operator's word that the target is lost.
    AcceptLoss,
    /// That target is back.
    CloseLeft,
}

struct Cutover(Weakening);

/// Freezings that are tried, over all movers.
const MARKS: u8 = 2;

impl Cutover {
    fn is(&self, weakening: Weakening) -> bool {
        self.0 == weakening
    }

    /// Whether the mover's turn is on, as the shard sees it.
    fn turn(mover: &Mover, term: u8) -> bool {
        mover.alive && mover.term == term
    }
}

impl Model for Cutover {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mover = |term, taken| Mover { term, step: Step::Idle, alive: true, taken };
        vec![State {
            source: Fence::Active,
            version: 0,
            target: Fence::Importing,
            attempt: 0,
            terms: (1, 1),
            log: Vec::new(),
            applied: 0,
            rows: [0; 2],
            acknowledged: [false; 2],
            transactions: [Transaction::None; 2],
            written: [false; 2],
            held: false,
            movers: [mover(1, 2), mover(2, 0)],
            marks: 0,
            alone: false,
            accepted: false,
            closed: false,
        }]
    }

    fn actions(&self, s: &State, out: &mut Vec<Action>) {
        for router in 0..2 {
            match s.transactions[router] {
                // The first router obeys, the second has heard nothing.
                Transaction::None if !(s.written[router] || router == 0 && s.held) => {
                    out.push(Action::Begin(router, false));
                    if router == 1 {
                        out.push(Action::Begin(router, true));
                    }
                }
                Transaction::None => {}
                Transaction::Open { wrote: false, .. } => out.push(Action::Write(router)),
                Transaction::Open { wrote: true, .. } => out.push(Action::Commit(router)),
            }
        }
        if !s.held && s.target != Fence::Active && s.source == Fence::Active && s.marks == 0 {
            out.push(Action::Hold);
        }
        if s.held {
            out.push(Action::Release);
        }
        for (n, mover) in s.movers.iter().enumerate().filter(|(_, m)| m.alive && m.taken == 2) {
            match mover.step {
                Step::Idle if s.marks < MARKS => out.push(Action::Freeze(n)),
                Step::Frozen { .. } => {
                    out.push(Action::Activate(n));
                    if s.attempt < 3 {
                        out.push(Action::GiveUp(n));
                    }
                    if self.is(Weakening::UnfreezeFirst) {
                        out.push(Action::Unfreeze(n));
                    }
                }
                Step::GaveUp => out.push(Action::Unfreeze(n)),
                Step::Idle | Step::Ended => {}
            }
            if s.applied < s.log.len() {
                out.push(Action::Apply(n));
                if self.is(Weakening::ProgressApart) && n == 0 {
                    out.push(Action::ApplyTorn(n));
                }
            }
        }
        if s.movers[0].alive {
            out.push(Action::Crash);
        }
        if s.movers[1].taken < 2 && !s.alone {
            out.push(Action::TakeOver);
        }
        if s.movers[1].taken == 1 && !s.alone {
            out.push(Action::AbortAlone);
            if s.source == Fence::Frozen {
                out.push(Action::AcceptLoss);
            }
        }
        if s.accepted && !s.closed {
            out.push(Action::CloseLeft);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut s = last.clone();
        match action {
            Action::Begin(router, snapshot) => {
                let saw = snapshot.then_some(s.version);
                s.transactions[router] = Transaction::Open { saw, wrote: false };
            }
            Action::Write(router) => {
                let Transaction::Open { saw, .. } = s.transactions[router] else { return None };
                let current = s.source == Fence::Active;
                let admitted = match saw {
                    None => current,
                    // The row that the snapshot sees was active if no change came before it.
                    Some(version) if self.is(Weakening::NoRowLock) => current || version < s.version,
                    // Locking the row fails if it has changed since.
                    Some(version) => current && version == s.version,
                };
                s.transactions[router] = match admitted {
                    true => Transaction::Open { saw, wrote: true },
                    false => Transaction::None,
                };
                s.written[router] |= !admitted;
            }
            Action::Commit(router) => {
                s.transactions[router] = Transaction::None;
                s.written[router] = true;
                s.acknowledged[router] = true;
                s.log.push(Record::Write(router as u8));
            }
            Action::Hold => s.held = true,
            Action::Release => s.held = false,
            Action::Freeze(n) => {
                if !Self::turn(&s.movers[n], s.terms.0) || s.source != Fence::Active || s.alone {
                    return None;
                }
                let locked =
                    s.transactions.iter().any(|t| matches!(t, Transaction::Open { wrote: true, .. }));
                if locked && !self.is(Weakening::NoDrain) {
                    return None;
                }
                s.marks += 1;
                s.version += 1;
                s.source = Fence::Frozen;
                s.log.push(Record::Frozen(s.marks));
                s.movers[n].step = Step::Frozen { mark: s.marks, attempt: s.attempt };
            }
            Action::Apply(n) => {
                if !Self::turn(&s.movers[n], s.terms.1) || s.target == Fence::Active {
                    return None;
                }
                let record = s.log[s.applied];
                if let Record::Write(write) = record {
                    s.rows[usize::from(write)] += 1;
                }
                s.applied += 1;
            }
            Action::ApplyTorn(n) => {
                if !Self::turn(&s.movers[n], s.terms.1) || s.target == Fence::Active {
                    return None;
                }
                let Record::Write(write) = s.log[s.applied] else { return None };
                s.rows[usize::from(write)] += 1;
                s.movers[n].alive = false;
            }
            Action::Activate(n) => {
                let Step::Frozen { mark, attempt } = s.movers[n].step else { return None };
                let turn = Self::turn(&s.movers[n], s.terms.1) && attempt == s.attempt;
                if s.target == Fence::Active || !(turn || self.is(Weakening::NoTurn)) {
                    return None;
                }
                // All that stands in front of the mark has been applied; it is the next in the stream, or was the last.
                let at = s.log[..(s.applied + 1).min(s.log.len())].iter().rposition(|r| match r {
                    Record::Frozen(found) => *found == mark || self.is(Weakening::AnyMark),
                    _ => false,
                });
                at?;
                s.target = Fence::Active;
                s.movers[n].step = Step::Ended;
                s.held = false;
            }
            Action::GiveUp(n) => {
                if !Self::turn(&s.movers[n], s.terms.1) {
                    return None;
                }
                s.attempt += 1;
                s.movers[n].step = if s.target == Fence::Active { Step::Ended } else { Step::GaveUp };
            }
            Action::Unfreeze(n) => {
                if !Self::turn(&s.movers[n], s.terms.0) {
                    return None;
                }
                if s.source == Fence::Frozen {
                    s.source = Fence::Active;
                    s.version += 1;
                    s.log.push(Record::Thawed);
                }
                let again = !self.is(Weakening::UnfreezeFirst);
                if again {
                    s.movers[n].step = Step::Idle;
                }
            }
            Action::Crash => s.movers[0].alive = false,
            Action::TakeOver => {
                let taken = s.movers[1].taken;
                if taken == 0 {
                    s.terms.0 = 2;
                } else {
                    s.terms.1 = 2;
                    // What it finds is given up first, whatever it was.
                    s.movers[1].step = Step::Frozen { mark: u8::MAX, attempt: u8::MAX };
                }
                s.movers[1].taken = taken + 1;
            }
            Action::AbortAlone => {
                if s.source != Fence::Active {
                    if !self.is(Weakening::AloneThoughFrozen) {
                        return None;
                    }
                    s.source = Fence::Active;
                    s.version += 1;
                    s.log.push(Record::Thawed);
                }
                s.alone = true;
            }
            Action::AcceptLoss => {
                s.source = Fence::Active;
                s.version += 1;
                s.log.push(Record::Thawed);
                s.alone = true;
                s.accepted = true;
            }
            Action::CloseLeft => {
                if !self.is(Weakening::CloseAtOnce) {
                    s.terms.1 = 2;
                }
                if s.target == Fence::Active {
                    s.target = Fence::Closed;
                }
                s.closed = true;
            }
        }
        Some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            // Where the loss of the target was accepted, routers know of a higher epoch at the source, until it is closed.
            Property::always("at most one side is writable", |_, s: &State| {
                s.accepted && !s.closed || !(s.source == Fence::Active && s.target == Fence::Active)
            }),
            Property::always("who was closed does not arrive", |_, s: &State| {
                !(s.closed && s.target == Fence::Active)
            }),
            // What is acknowledged at the source behind an accepted loss is there, and nowhere else.
            Property::always("what was acknowledged is at the target", |_, s: &State| {
                s.accepted || s.target != Fence::Active || (0..2).all(|w| !s.acknowledged[w] || s.rows[w] > 0)
            }),
            Property::always("nothing is applied twice", |_, s: &State| s.rows.iter().all(|n| *n <= 1)),
            Property::always("nobody stays frozen", |model: &Self, s: &State| {
                let stuck = {
                    let mut actions = Vec::new();
                    model.actions(s, &mut actions);
                    actions.into_iter().all(|a| model.next_state(s, a).is_none())
                };
                !stuck || s.source == Fence::Active || s.target == Fence::Active
            }),
            Property::always("who was given up does not arrive", |_, s: &State| {
                !(s.alone && !s.accepted && s.target == Fence::Active)
            }),
            Property::sometimes(
                "the loss of a target is accepted where the tenant had arrived",
                |_, s: &State| s.accepted && s.target == Fence::Closed,
            ),
            Property::sometimes("a move is given up without its target", |_, s: &State| s.alone),
            Property::sometimes("a tenant moves", |_, s: &State| s.target == Fence::Active),
            Property::sometimes("a second mover moves it", |_, s: &State| {
                s.target == Fence::Active && s.movers[1].step == Step::Ended && s.marks > 1
            }),
        ]
    }
}

#[test]
fn the_protocol_holds() {
    let checker = Cutover(Weakening::None).checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn each_condition_is_needed() {
    for (weakening, broken) in [
        (Weakening::NoDrain, "what was acknowledged is at the target"),
        (Weakening::NoRowLock, "what was acknowledged is at the target"),
        (Weakening::AnyMark, "what was acknowledged is at the target"),
        (Weakening::UnfreezeFirst, "at most one side is writable"),
        (Weakening::NoTurn, "at most one side is writable"),
        (Weakening::ProgressApart, "nothing is applied twice"),
        (Weakening::AloneThoughFrozen, "at most one side is writable"),
        (Weakening::CloseAtOnce, "who was closed does not arrive"),
    ] {
        let checker = Cutover(weakening).checker().threads(2).spawn_bfs().join();
        let found = checker.discovery(broken);
        let path = found.unwrap_or_else(|| panic!("{weakening:?} breaks nothing"));
        println!("{weakening:?}: {broken}, after {:?}", path.into_actions());
    }
}
