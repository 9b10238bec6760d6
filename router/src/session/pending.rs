//! What statements under way will have changed in their session, once the server has said so.
//!
//! Invariant: what the router has noted of a session (its prepared statements of either kind, its unnamed statement, the
//! settings that it wishes) changes by what the server has answered, never by what was merely sent. What is noted
//! ahead, as later messages build upon it, is put back where the server skips it ([`crate::exchange::Undo`]);
//! what a command does waits here for the tag of its completion.

/// An effect of a statement that counts once the statement has succeeded.
#[derive(Debug)]
pub(super) enum Pending {
    /// The session now wishes this.
    Wish(String, String),
    /// The session wishes what it wished at startup.
    Unwish(String),
    /// The session wishes nothing but what it wished at startup.
    ResetAll,
    /// Everything of the session is gone.
    DiscardAll,
    /// It has prepared a statement of this name by this SQL.
    Prepared(String, String),
    /// Its prepared statements are gone.
    DeallocateAll,
    /// Its prepared statement of this name is gone.
    Deallocate(Box<[u8]>),
}

/// The tag of the command after which there are no prepared statements.
const DEALLOCATE_ALL: &[u8] = b"DEALLOCATE ALL";

/// Effects of statements that were prepared or bound and not run which are looked through when a command completes:
/// many more at once are nothing that a driver does.
const LOOKED_AT: usize = 256;

impl Pending {
    /// Whether this is the tag of the command that does it.
    fn is_by(&self, tag: &[u8]) -> bool {
        match self {
            Self::Wish(..) => tag == b"SET",
            // `SET TIME ZONE DEFAULT` is a reset with the tag of a SET.
            Self::Unwish(_) => tag == b"RESET" || tag == b"SET",
            Self::ResetAll => tag == b"RESET",
            Self::DiscardAll => tag == b"DISCARD ALL",
            Self::Prepared(..) => tag == b"PREPARE",
            Self::DeallocateAll => tag == DEALLOCATE_ALL,
            Self::Deallocate(_) => tag == b"DEALLOCATE",
        }
    }

    /// Whether nothing takes it back once it is done, as an error behind it, in the same transaction, does for others.
    fn is_final(&self) -> bool {
        !matches!(self, Self::Wish(..) | Self::Unwish(_) | Self::ResetAll)
    }
}

/// Effects that have not happened yet, in the order of their statements.
#[derive(Debug, Default)]
pub(super) struct PendingEffects {
    all: Vec<Awaited>,
    last: u64,
}

#[derive(Debug)]
struct Awaited {
    /// By which the exchange knows it.
    number: u64,
    pending: Pending,
    /// Whether the server has come to it. What is skipped, it never comes to.
    reached: bool,
    /// Whether the server has said that its command is complete: what is only prepared or bound has no effect.
    done: bool,
}

impl PendingEffects {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn clear(&mut self) {
        self.all.clear();
    }

    /// Whether one of them is such.
    pub(super) fn any(&self, is: impl Fn(&Pending) -> bool) -> bool {
        self.all.iter().any(|awaited| is(&awaited.pending))
    }

    /// Its number.
    pub(super) fn push(&mut self, pending: Pending) -> u64 {
        self.last += 1;
        self.all.push(Awaited { number: self.last, pending, reached: false, done: false });
        self.last
    }

    /// The server has come to these.
    pub(super) fn reached(&mut self, numbers: impl Iterator<Item = u64>) {
        for number in numbers {
            if let Ok(at) = self.all.binary_search_by_key(&number, |awaited| awaited.number) {
                self.all[at].reached = true;
            }
        }
    }

    /// A command is complete. What it has done for good, if it has.
    pub(super) fn completed(&mut self, tag: &[u8]) -> Option<Pending> {
        let waiting =
            self.all.iter().enumerate().rev().filter(|(_, awaited)| awaited.reached && !awaited.done);
        let by_it = waiting.take(LOOKED_AT).find(|(_, awaited)| awaited.pending.is_by(tag)).map(|(at, _)| at);
        match by_it {
            Some(at) if self.all[at].pending.is_final() => Some(self.all.remove(at).pending),
            Some(at) => {
                self.all[at].done = true;
                None
            }
            // By a portal that is run once more, or that nobody knows of: it means the same whoever has asked for it.
            None => (tag == DEALLOCATE_ALL).then_some(Pending::DeallocateAll),
        }
    }

    /// Whether what is run now may change for good what the next message refers to.
    #[inline]
    pub(super) fn may_be_final(&self) -> bool {
        !self.all.is_empty() && self.any(Pending::is_final)
    }

    /// The `PREPARE` under way that makes the statement of this name.
    pub(super) fn by_sql(&self, name: &str) -> Option<&str> {
        self.all.iter().rev().find_map(|awaited| match &awaited.pending {
            Pending::Prepared(made, sql) if made == name => Some(sql.as_str()),
            _ => None,
        })
    }

    /// Whether the end of a command with a tag of this length is of interest.
    #[inline]
    pub(super) fn want(&self, tag_len: usize) -> bool {
        !self.is_empty() || tag_len == DEALLOCATE_ALL.len()
    }

    /// A group has ended: what its commands have done, unless one has `failed`. `in_transaction`, what was bound may
    /// still be run; `quiet`, the server comes to nothing more.
    pub(super) fn ended(&mut self, in_transaction: bool, quiet: bool) -> Vec<Pending> {
        let mut done = Vec::new();
        for awaited in std::mem::take(&mut self.all) {
            if awaited.done {
                done.push(awaited.pending);
            } else if if awaited.reached { in_transaction } else { !quiet } {
                self.all.push(awaited);
            }
        }
        done
    }
}
