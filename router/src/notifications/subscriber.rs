//! A session that listens, as hubs have it: its mailbox.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use switchyard_wire::error::{ErrorResponse, Severity, sqlstate};

use super::voice::Voice;
use crate::session::handle::{Order, SessionHandle};

/// A notification on its way to sessions, which share it.
pub(crate) struct Note {
    pub(crate) channel: Box<[u8]>,
    /// The whole NotificationResponse.
    pub(crate) frame: Box<[u8]>,
}

/// See the module.
pub(crate) struct Subscriber {
    pub(crate) voice: Arc<Voice>,
    handle: Arc<SessionHandle>,
    /// Most bytes that wait for the session.
    limit: usize,
    mail: Mutex<Mail>,
    /// Whether there is something in it.
    full: AtomicBool,
}

#[derive(Default)]
struct Mail {
    notes: VecDeque<Arc<Note>>,
    bytes: usize,
    /// There was more than the limit.
    overflowed: bool,
    /// A hub was away for a while.
    gap: bool,
}

/// There was more in a mailbox than the limit.
#[derive(Debug)]
pub(crate) struct Overflowed {
    pub(crate) limit: usize,
}

impl Subscriber {
    pub(crate) fn new(voice: Arc<Voice>, handle: Arc<SessionHandle>, limit: usize) -> Self {
        Self { voice, handle, limit, mail: Mutex::default(), full: AtomicBool::new(false) }
    }

    /// Puts a notification into the mailbox. False if there is no room: the session will end.
    pub(crate) fn deliver(&self, note: &Arc<Note>) -> bool {
        let mut mail = self.mail.lock();
        if mail.overflowed {
            return false;
        }
        mail.bytes += note.frame.len();
        let fits = mail.bytes <= self.limit;
        if fits {
            mail.notes.push_back(note.clone());
        } else {
            mail.overflowed = true;
            mail.notes = VecDeque::new();
        }
        drop(mail);
        if fits {
            self.announce();
        } else {
            // It may have looked already, and may be in a transaction: this it must know now.
            self.full.store(true, Ordering::Release);
            self.handle.command(Order::Mail);
        }
        fits
    }

    /// Notes that something may have been missed.
    pub(crate) fn gap(&self) {
        self.mail.lock().gap = true;
        self.announce();
    }

    fn announce(&self) {
        if !self.full.swap(true, Ordering::AcqRel) {
            self.handle.command(Order::Mail);
        }
    }

    /// Has the session look where its tenant lives.
    pub(crate) fn look_again(&self) {
        self.handle.command(Order::Refresh);
    }

    /// Whether there is something in the mailbox.
    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Whether there was more than the limit.
    pub(crate) fn has_overflowed(&self) -> bool {
        self.has_mail() && self.mail.lock().overflowed
    }

    /// Empties the mailbox into `out`, as messages. How many notifications there were.
    pub(crate) fn take(&self, out: &mut Vec<u8>) -> Result<usize, Overflowed> {
        let mut mail = self.mail.lock();
        // Before it is emptied: what comes in behind it announces itself.
        self.full.store(false, Ordering::Release);
        if mail.overflowed {
            return Err(Overflowed { limit: self.limit });
        }
        if std::mem::take(&mut mail.gap) {
            let text = "notifications may have been missed: the connection to the shard was lost";
            ErrorResponse::new(Severity::Warning, sqlstate::WARNING, text).encode(out);
        }
        mail.bytes = 0;
        let notes = std::mem::take(&mut mail.notes);
        notes.iter().for_each(|note| out.extend_from_slice(&note.frame));
        Ok(notes.len())
    }

    /// Drops what waits and came by this channel.
    pub(crate) fn forget(&self, channel: &[u8]) {
        let mut mail = self.mail.lock();
        mail.notes.retain(|note| *note.channel != *channel);
        mail.bytes = mail.notes.iter().map(|note| note.frame.len()).sum();
    }
}
