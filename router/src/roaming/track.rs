//! The setting through a transaction, as PostgreSQL has it: `SET` lasts if the transaction is committed, `SET LOCAL` to
//! its end, and a rollback to a savepoint takes back what came after it. // src/backend/utils/misc/guc.c AtEOXact_GUC

use super::Named;
use super::read::Step;

/// The values of the setting at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Values {
    /// In force.
    now: Named,
    /// In force if the transaction is committed now.
    lasting: Named,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Track {
    values: Values,
    /// When the transaction began.
    before: Values,
    /// A transaction block is open.
    pub(crate) block: bool,
    savepoints: Vec<(String, Values)>,
}

impl Track {
    /// Outside a transaction, where the session has set this.
    pub(crate) fn new(session: Named) -> Self {
        let values = Values { now: session.clone(), lasting: session };
        Self { before: values.clone(), values, block: false, savepoints: Vec::new() }
    }

    /// Whom the setting names.
    pub(crate) fn now(&self) -> &Named {
        &self.values.now
    }

    /// What the session has set, if the transaction is committed now.
    pub(crate) fn lasting(&self) -> &Named {
        &self.values.lasting
    }

    /// Whether a savepoint of that name is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.savepoints.iter().any(|(own, _)| own == name)
    }

    /// A statement has been carried out.
    pub(crate) fn apply(&mut self, step: &Step) {
        match step {
            Step::Set { to, local, .. } => {
                self.values.now = to.clone();
                if !local {
                    self.values.lasting = to.clone();
                }
            }
            Step::ResetAll | Step::DiscardAll => {
                self.values = Values { now: Named::Nobody, lasting: Named::Nobody };
            }
            Step::Begin(_) => self.block = true,
            Step::Commit { chain } => self.end(self.values.lasting.clone(), *chain),
            Step::PrepareTransaction => self.end(self.values.lasting.clone(), false),
            Step::Rollback { chain } => self.end(self.before.lasting.clone(), *chain),
            Step::Savepoint(name) => self.savepoints.push((name.clone(), self.values.clone())),
            Step::RollbackTo(name) => {
                if let Some(at) = self.savepoints.iter().rposition(|(own, _)| own == name) {
                    self.values = self.savepoints[at].1.clone();
                    self.savepoints.truncate(at + 1);
                }
            }
            Step::Release(name) => {
                if let Some(at) = self.savepoints.iter().rposition(|(own, _)| own == name) {
                    self.savepoints.truncate(at);
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, session: Named, chain: bool) {
        let block = self.block && chain;
        *self = Self::new(session);
        self.block = block;
    }
}

#[cfg(test)]
mod tests {
    use switchyard_config::TenantId;

    use super::*;

    fn named(id: &str) -> Named {
        Named::Tenant(TenantId::new(id).unwrap())
    }

    fn run(steps: &[Step]) -> Track {
        let mut track = Track::new(named("s"));
        steps.iter().for_each(|step| track.apply(step));
        track
    }

    #[test]
    fn as_postgresql_has_it() {
        let set = |id: &str, local| Step::Set { to: named(id), local, select: false, runs: false };
        let begin = Step::Begin("BEGIN");
        let (commit, rollback) = (Step::Commit { chain: false }, Step::Rollback { chain: false });
        let save = |name: &str| Step::Savepoint(name.to_owned());
        let back = |name: &str| Step::RollbackTo(name.to_owned());
        for (steps, now) in [
            (vec![begin.clone(), set("a", true)], "a"),
            (vec![begin.clone(), set("a", true), commit.clone()], "s"),
            (vec![begin.clone(), set("a", false), commit.clone()], "a"),
            (vec![begin.clone(), set("a", false), rollback.clone()], "s"),
            (vec![begin.clone(), set("a", false), set("b", true), commit.clone()], "a"),
            (vec![begin.clone(), set("a", true), set("b", false)], "b"),
            (vec![begin.clone(), save("x"), set("a", true), back("x")], "s"),
            (vec![begin.clone(), set("a", true), save("x"), set("b", true), back("x")], "a"),
            (vec![begin.clone(), save("x"), save("x"), set("a", true), back("x"), back("x")], "s"),
            (
                vec![
                    begin.clone(),
                    save("x"),
                    set("a", true),
                    save("x"),
                    Step::Release("x".to_owned()),
                    back("x"),
                ],
                "s",
            ),
            (vec![begin.clone(), set("a", true), Step::Commit { chain: true }], "s"),
        ] {
            assert_eq!(run(&steps).now(), &named(now), "{steps:?}");
        }
        assert!(run(&[begin.clone(), Step::Commit { chain: true }]).block);
        assert!(!run(&[begin, commit]).block);
    }
}
