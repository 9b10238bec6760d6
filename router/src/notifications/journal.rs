//! What a session's transaction does to the channels it listens on, without IO.
//!
//! LISTEN and UNLISTEN take effect when their transaction commits. PostgreSQL is the one to accept
//! or refuse them; this follows what it says, by the tags of completed commands.

use std::collections::VecDeque;

use crate::classify::channels::Step;

/// A change that has been committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Listen on this channel.
    Listen(Box<[u8]>),
    /// No longer listen on this channel.
    Unlisten(Box<[u8]>),
    /// Listen on nothing.
    UnlistenAll,
    /// A channel whose name was not understood.
    Unreadable,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Journal {
    /// Sent and not completed, in order.
    expected: VecDeque<Step>,
    /// Done in the transaction that is open.
    tentative: Vec<Step>,
    /// Committed within the group that is under way.
    committed: Vec<Change>,
}

impl Journal {
    /// Whether there is nothing to follow.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.expected.is_empty() && self.tentative.is_empty() && self.committed.is_empty()
    }

    /// Whether a transaction is open that has changed something: then its savepoints matter.
    #[inline]
    pub(crate) fn is_in_transaction(&self) -> bool {
        !self.tentative.is_empty() || !self.expected.is_empty()
    }

    /// These were sent to the server.
    pub(crate) fn sent(&mut self, steps: Vec<Step>) {
        self.expected.extend(steps);
    }

    /// The server says that a command is complete.
    pub(crate) fn completed(&mut self, tag: &[u8]) {
        match tag {
            b"COMMIT" => self.commit(),
            b"ROLLBACK" => match self.expected.front() {
                Some(Step::RollbackTo(name)) => {
                    let at = self.savepoint(name);
                    // One that is not known here was set before anything that is.
                    self.tentative.truncate(at.map_or(0, |at| at + 1));
                    self.expected.pop_front();
                }
                _ => self.tentative.clear(),
            },
            b"RELEASE" => {
                if let Some(Step::Release(name)) = self.expected.front() {
                    if let Some(at) = self.savepoint(name) {
                        let released = self.tentative.split_off(at);
                        self.tentative
                            .extend(released.into_iter().filter(|s| !matches!(s, Step::Savepoint(_))));
                    }
                    self.expected.pop_front();
                }
            }
            b"LISTEN" | b"UNLISTEN" | b"SAVEPOINT" => self.tentative.extend(self.expected.pop_front()),
            _ => {}
        }
    }

    fn savepoint(&self, name: &[u8]) -> Option<usize> {
        self.tentative.iter().rposition(|s| matches!(s, Step::Savepoint(n) if **n == *name))
    }

    fn commit(&mut self) {
        self.committed.extend(self.tentative.drain(..).filter_map(|step| match step {
            Step::Listen(name) => Some(Change::Listen(name)),
            Step::Unlisten(name) => Some(Change::Unlisten(name)),
            Step::UnlistenAll => Some(Change::UnlistenAll),
            Step::Unreadable => Some(Change::Unreadable),
            Step::Savepoint(_) | Step::RollbackTo(_) | Step::Release(_) => None,
        }));
    }

    /// The server is ready: all that was sent has been dealt with. `failed` says that an error was
    /// the last that was heard of the group. What has been committed by now.
    pub(crate) fn ready(&mut self, status: u8, failed: bool) -> Vec<Change> {
        self.expected.clear();
        if status == b'I' {
            // What had no COMMIT of its own ends with its group.
            if failed {
                self.tentative.clear();
            } else {
                self.commit();
            }
        }
        std::mem::take(&mut self.committed)
    }

    /// Whether the transaction that has just been committed, or is about to be, listens on `channel`.
    pub(crate) fn listens_on(&self, channel: &[u8]) -> bool {
        self.committed.iter().any(|change| matches!(change, Change::Listen(name) if **name == *channel))
            || self.tentative.iter().any(|step| matches!(step, Step::Listen(name) if **name == *channel))
    }

    /// Nothing of it has happened, or will.
    pub(crate) fn clear(&mut self) {
        self.expected.clear();
        self.tentative.clear();
        self.committed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::channels::steps;

    /// Runs groups of (text, tags that complete, status, failed).
    fn run(groups: &[(&str, &[&str], u8, bool)]) -> Vec<String> {
        let mut journal = Journal::default();
        let mut seen = Vec::new();
        for (sql, tags, status, failed) in groups {
            journal.sent(steps(sql.as_bytes()));
            for tag in *tags {
                journal.completed(tag.as_bytes());
            }
            seen.extend(journal.ready(*status, *failed).into_iter().map(|change| match change {
                Change::Listen(name) => format!("+{}", String::from_utf8_lossy(&name)),
                Change::Unlisten(name) => format!("-{}", String::from_utf8_lossy(&name)),
                Change::UnlistenAll => "-*".to_owned(),
                Change::Unreadable => "?".to_owned(),
            }));
        }
        assert!(journal.is_empty(), "{groups:?}");
        seen
    }

    #[test]
    fn what_counts_is_what_commits() {
        assert_eq!(run(&[("LISTEN a", &["LISTEN"], b'I', false)]), ["+a"]);
        assert_eq!(run(&[("LISTEN a", &[], b'I', true)]), [""; 0]);
        // All statements of one Query are one transaction.
        assert_eq!(run(&[("LISTEN a; SELECT 1/0", &["LISTEN"], b'I', true)]), [""; 0]);
        let tags = &["BEGIN", "LISTEN", "COMMIT"];
        assert_eq!(run(&[("BEGIN; LISTEN a; COMMIT; SELECT 1/0", tags, b'I', true)]), ["+a"]);
        let both = &["LISTEN", "UNLISTEN", "LISTEN"];
        assert_eq!(run(&[("LISTEN a; UNLISTEN *; LISTEN b", both, b'I', false)]), ["+a", "-*", "+b"]);
    }

    #[test]
    fn transactions_over_several_messages() {
        let begun = [("BEGIN", &["BEGIN"][..], b'T', false), ("LISTEN a", &["LISTEN"][..], b'T', false)];
        let end = |sql, tag: &'static [&'static str]| run(&[begun[0], begun[1], (sql, tag, b'I', false)]);
        assert_eq!(end("COMMIT", &["COMMIT"]), ["+a"]);
        assert_eq!(end("ROLLBACK", &["ROLLBACK"]), [""; 0]);
        // COMMIT of a failed transaction.
        let failed = ("SELECT 1/0", &[][..], b'E', true);
        assert_eq!(run(&[begun[0], begun[1], failed, ("COMMIT", &["ROLLBACK"], b'I', false)]), [""; 0]);
        let chained = ("ROLLBACK AND CHAIN", &["ROLLBACK"][..], b'T', false);
        assert_eq!(run(&[begun[0], begun[1], chained, ("COMMIT", &["COMMIT"], b'I', false)]), [""; 0]);
    }

    #[test]
    fn savepoints() {
        let tags: &[&str] = &["BEGIN", "LISTEN", "SAVEPOINT", "LISTEN", "ROLLBACK", "LISTEN", "COMMIT"];
        let sql = "BEGIN; LISTEN a; SAVEPOINT s; LISTEN b; ROLLBACK TO s; LISTEN c; COMMIT";
        assert_eq!(run(&[(sql, tags, b'I', false)]), ["+a", "+c"]);
        // Set before anything was followed.
        let groups: [(&str, &[&str], u8, bool); 5] = [
            ("BEGIN", &["BEGIN"], b'T', false),
            ("LISTEN b", &["LISTEN"], b'T', false),
            ("ROLLBACK TO s", &["ROLLBACK"], b'T', false),
            ("LISTEN c", &["LISTEN"], b'T', false),
            ("COMMIT", &["COMMIT"], b'I', false),
        ];
        assert_eq!(run(&groups), ["+c"]);
        let sql = "BEGIN; SAVEPOINT s; LISTEN a; SAVEPOINT s; LISTEN b; RELEASE s; ROLLBACK TO s; COMMIT";
        let tags: &[&str] =
            &["BEGIN", "SAVEPOINT", "LISTEN", "SAVEPOINT", "LISTEN", "RELEASE", "ROLLBACK", "COMMIT"];
        assert_eq!(run(&[(sql, tags, b'I', false)]), [""; 0]);
        let sql = "BEGIN; SAVEPOINT s; LISTEN a; SAVEPOINT s; LISTEN b; RELEASE s; COMMIT";
        let tags: &[&str] = &["BEGIN", "SAVEPOINT", "LISTEN", "SAVEPOINT", "LISTEN", "RELEASE", "COMMIT"];
        assert_eq!(run(&[(sql, tags, b'I', false)]), ["+a", "+b"]);
    }
}
