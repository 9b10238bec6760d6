//! What a server still owes for what it was sent.
//!
//! Sans-IO: the relay tells it each frame of either side that matters, and it answers when the
//! exchange is over, which replies are the router's own, and what is to be undone after an error.
//! The rules are those of `PostgresMain` (src/backend/tcop/postgres.c): Query, FunctionCall and
//! Sync each bring one ReadyForQuery; after an error in the extended protocol everything is
//! skipped up to the next Sync; during COPY IN, Sync and Flush are not even looked at.

mod copying;
mod owed;
mod portal;

use std::collections::VecDeque;

use switchyard_wire::error::ErrorResponse;

use crate::context::Prefix;
use crate::server::UnnamedOf;
use crate::statements::SavedUnnamed;
pub(crate) use owed::{Owed, Undo};
pub(crate) use portal::Unnamed;

/// Bytes of unnamed statements that are kept, to be put back if the server skips what has replaced them, before the
/// server is asked to answer.
const KEPT_BYTES: usize = 1024 * 1024;

/// The server said something that it cannot say at this point. It must not be used any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Desync;

/// What a reply to the router's own messages is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OwnReply {
    /// One of those that only say that all is well.
    Some,
    /// A row that was asked for.
    Row,
    /// The end of it.
    Ready,
    /// An error, which the client does not see; the name of what was to be prepared.
    Failed(Option<Box<str>>),
    /// An error within a group of the client's.
    FailedTheClients,
}

/// How an error is to be passed on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ErrorIs {
    /// As it is.
    Plain,
    /// As a duplicate of this statement name of the client.
    Duplicate(Box<[u8]>),
    /// In these words.
    Instead(Box<ErrorResponse>),
}

/// See the module.
pub(crate) struct Exchange {
    owed: VecDeque<Owed>,
    /// Replies to the router's own messages, ahead of all others.
    pub(crate) prefix: Prefix,
    /// Last transaction status: `I`, `T` or `E`.
    pub(crate) status: u8,
    /// Extended messages were sent that no Sync has followed.
    open: bool,
    /// The server skips everything up to a Sync that has not been sent yet.
    skipping: bool,
    copy_in: bool,
    /// Syncs that were left out of `owed`, as the server does not look at them while it copies.
    swallowed: u32,
    /// Of these, how many it may answer after all, since the COPY failed.
    doubtful: u32,
    copy_both: bool,
    /// Something was sent that brings ReadyForQuery while the prefix was pending.
    boundary: bool,
    /// How many of `owed` are the router's own.
    own: usize,
    /// The numbers of effects that the server has come to.
    reached: Vec<u64>,
    /// Bytes of the unnamed statements in `owed`.
    kept: usize,
    /// What was sent must be answered before more of the client's passes.
    barrier: bool,
    /// The server was asked to answer.
    asked: bool,
    portal: portal::Portal,
}

impl Exchange {
    pub(crate) fn new() -> Self {
        Self {
            owed: VecDeque::new(),
            prefix: Prefix::default(),
            status: b'I',
            open: false,
            skipping: false,
            copy_in: false,
            swallowed: 0,
            doubtful: 0,
            copy_both: false,
            boundary: false,
            own: 0,
            reached: Vec::new(),
            kept: 0,
            barrier: false,
            asked: false,
            portal: portal::Portal::default(),
        }
    }

    /// Begins anew on a server connection that is idle and outside a transaction.
    pub(crate) fn begin(&mut self, prefix: Prefix) {
        debug_assert!(self.is_over());
        self.prefix = prefix;
        self.status = b'I';
        self.boundary = false;
        self.copy_both = false;
        self.swallowed = 0;
        self.doubtful = 0;
        self.barrier = false;
        self.portal = portal::Portal::default();
    }

    /// Forgets everything, for reuse with another server.
    pub(crate) fn reset(&mut self) {
        self.owed.clear();
        *self = Self { owed: std::mem::take(&mut self.owed), ..Self::new() };
    }

    /// Nothing is owed, nothing is half sent, and no transaction is open.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.is_quiet() && self.status == b'I'
    }

    /// Nothing of the client is under way, and no transaction is open.
    pub(crate) fn is_untouched(&self) -> bool {
        self.owed.is_empty() && !self.open && !self.skipping && !self.copy_both && self.status == b'I'
    }

    /// Nothing is owed and nothing is half sent; a transaction may be open.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        self.owed.is_empty() && !self.open && !self.copy_both && !self.prefix.is_pending()
    }

    /// Whether frames of the client must wait until the prefix has succeeded: one pipelined group
    /// is skipped by the server if it fails, a second one would not be.
    #[inline]
    pub(crate) fn must_wait(&self) -> bool {
        self.boundary && self.prefix.is_pending()
    }

    /// Whether the server skips what it is sent now, up to a Sync.
    #[inline]
    pub(crate) fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Whether extended messages were sent that no Sync has followed.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// ReadyForQuery messages owed.
    pub(crate) fn readies_owed(&self) -> usize {
        self.owed.iter().filter(|o| o.brings_ready()).count()
    }

    /// Nothing of the client's is under way; a transaction may be open.
    pub(crate) fn is_calm(&self) -> bool {
        self.owed.len() == self.own && !self.open && !self.skipping && !self.copy_both
    }

    /// Whether all that is owed is owed to the router itself.
    pub(crate) fn owes_only_own(&self) -> bool {
        self.own == self.owed.len() && !self.open && !self.copy_both && !self.prefix.is_pending()
    }

    /// Whether what is owed is one group of the extended protocol with its Sync, and no more.
    pub(crate) fn is_one_group(&self) -> bool {
        matches!(self.owed.back(), Some(Owed::Sync)) && self.readies_owed() == 1 && self.own == 0
    }

    /// ReadyForQuery messages owed to the router itself.
    pub(crate) fn own_readies_owed(&self) -> usize {
        self.owed.iter().filter(|o| matches!(o, Owed::OwnQuery(_) | Owed::OwnSync)).count()
    }

    /// Whether the next reply is the router's own.
    #[inline]
    pub(crate) fn is_own_next(&self) -> bool {
        self.own > 0 && self.owed.front().is_some_and(Owed::is_own)
    }

    /// Whether the server is at work on what it was sent, and waits for nothing more to end it.
    pub(crate) fn answers_come(&self) -> bool {
        !self.copy_in && !self.copy_both && self.owed.iter().any(Owed::brings_ready)
    }

    /// Whether the server has been sent something of the client's that it has not answered, and waits for nothing
    /// more to do so.
    pub(crate) fn is_at_work(&self) -> bool {
        !self.copy_in && !self.copy_both && self.owed.len() > self.own
    }

    /// Whether the transaction that is open, or would be, spans more than one message.
    pub(crate) fn in_transaction(&self) -> bool {
        self.status != b'I'
    }

    // --- the client's side ---

    /// A Query was sent.
    #[inline]
    pub(crate) fn sent_query(&mut self) {
        // In an aborted extended group the server skips a Query too.
        if !self.skipping {
            self.owed.push_back(Owed::Query);
            self.portal.bound = false;
            // Its ReadyForQuery also ends what extended messages have begun without a Sync.
            self.open = false;
            self.boundary = true;
        }
    }

    /// A Query was sent that fails, so that the client gets `error`.
    pub(crate) fn sent_refused_query(&mut self, error: ErrorResponse) {
        if self.skipping {
            return;
        }
        self.sent_query();
        if let Some(owed @ Owed::Query) = self.owed.back_mut() {
            *owed = Owed::RefusedQuery(Box::new(error));
        }
    }

    /// A FunctionCall was sent.
    pub(crate) fn sent_call(&mut self) {
        if !self.skipping {
            self.owed.push_back(Owed::Call);
            self.open = false;
            self.boundary = true;
        }
    }

    /// A Sync was sent.
    #[inline]
    pub(crate) fn sent_sync(&mut self) {
        self.portal.bound = false;
        if self.copy_in {
            self.swallowed = self.swallowed.saturating_add(1);
            return;
        }
        self.owed.push_back(Owed::Sync);
        self.barrier = false;
        self.open = false;
        self.skipping = false;
        self.boundary = true;
    }

    /// A message of the extended protocol was sent, whose reply is `owed`.
    #[inline]
    pub(crate) fn sent_extended(&mut self, owed: Owed) {
        debug_assert!(!self.copy_in, "refused");
        self.open = true;
        if !self.skipping {
            self.owed.push_back(owed);
        }
    }

    /// Whether the server may skip what it is sent next, for an error that is not known yet.
    #[inline]
    pub(crate) fn may_skip(&self) -> bool {
        self.open && !self.skipping && !self.copy_in
    }

    /// What is sent next replaces the unnamed statement, which was this.
    pub(crate) fn replaces(&mut self, before: SavedUnnamed, on_server_of: UnnamedOf) {
        self.kept += before.bytes();
        self.owed.push_back(Owed::Replaced(Box::new((before, on_server_of))));
    }

    /// What comes next depends on the answer to what was sent.
    pub(crate) fn wants_answers(&mut self) {
        self.barrier = !self.skipping;
        self.asked = false;
    }

    /// Whether the server must answer before more of the client's passes: what that means depends on it, or so
    /// much is kept to be put back.
    #[inline]
    pub(crate) fn must_be_answered(&self) -> bool {
        self.barrier || self.kept > KEPT_BYTES
    }

    /// Whether the server is to be asked to answer, which it need not do before a Sync. Once each time.
    pub(crate) fn asks_for_answers(&mut self) -> bool {
        !std::mem::replace(&mut self.asked, true)
    }

    /// Whether the server may come to what it is sent next.
    pub(crate) fn may_reach(&self) -> bool {
        !self.skipping && !self.copy_in
    }

    /// What is sent next has the effect of this number.
    pub(crate) fn comes_to(&mut self, effect: u64) {
        self.owed.push_back(Owed::Effect(effect));
    }

    /// The numbers of effects that the server has come to since this was asked last.
    pub(crate) fn take_reached(&mut self) -> impl Iterator<Item = u64> {
        self.reached.drain(..)
    }

    /// A message of the router's own was sent, behind all else.
    pub(crate) fn sent_own(&mut self, owed: Owed) {
        debug_assert!(owed.is_own());
        // Where everything is skipped up to a Sync, so is this.
        if !self.skipping {
            self.own += 1;
            self.owed.push_back(owed);
        }
    }

    // --- the server's side ---

    fn pop(&mut self) -> Option<Owed> {
        let owed = self.owed.pop_front();
        self.own -= usize::from(self.own > 0 && owed.as_ref().is_some_and(Owed::is_own));
        if let Some(Owed::Replaced(before)) = &owed {
            self.kept -= before.0.bytes();
            self.asked &= self.kept > KEPT_BYTES;
        }
        // No reply comes to what is silent.
        self.barrier = self.barrier && self.owed.iter().any(|owed| !owed.is_silent());
        owed
    }

    /// A reply to a message of the router's own arrived, which is an error or none. What it was; none
    /// if the error is the client's after all, as it ends a group of the client's.
    pub(crate) fn got_own(&mut self, tag: u8, status: u8) -> Result<OwnReply, Desync> {
        use switchyard_wire::frame::backend;
        match (tag, self.owed.front()) {
            (backend::PARSE_COMPLETE, Some(Owed::OwnParse(_)))
            | (backend::BIND_COMPLETE, Some(Owed::OwnBind))
            | (backend::COMMAND_COMPLETE | backend::EMPTY_QUERY, Some(Owed::OwnExecute(_))) => {
                self.pop();
                Ok(OwnReply::Some)
            }
            (backend::DATA_ROW, Some(Owed::OwnExecute(_))) => Ok(OwnReply::Row),
            (backend::COMMAND_COMPLETE | backend::FUNCTION_RESULT, Some(Owed::OwnQuery(_))) => {
                Ok(OwnReply::Some)
            }
            (backend::READY_FOR_QUERY, Some(Owed::OwnQuery(_) | Owed::OwnSync)) => {
                self.status = status;
                self.portal.ready(status);
                self.pop();
                Ok(OwnReply::Ready)
            }
            (backend::ERROR, Some(Owed::OwnQuery(name))) => {
                self.portal.query_failed(None, self.status);
                Ok(OwnReply::Failed(name.clone()))
            }
            (backend::ERROR, Some(_)) => {
                let ends = self.owed.iter().find(|o| matches!(o, Owed::Sync | Owed::OwnSync));
                if !matches!(ends, Some(Owed::OwnSync)) {
                    return Ok(OwnReply::FailedTheClients);
                }
                let mut failed = None;
                while !matches!(self.owed.front(), Some(Owed::OwnSync) | None) {
                    if let Some(Owed::OwnParse(Some(name))) = self.pop() {
                        failed = Some(name);
                    }
                }
                Ok(OwnReply::Failed(failed))
            }
            _ => Err(Desync),
        }
    }

    /// ReadyForQuery arrived.
    #[inline]
    pub(crate) fn got_ready(&mut self, status: u8) -> Result<(), Desync> {
        self.status = status;
        self.portal.ready(status);
        self.copy_in = false;
        loop {
            match self.pop() {
                Some(Owed::Query | Owed::Call | Owed::Sync | Owed::RefusedQuery(_)) => break,
                Some(Owed::CopyEnd(_) | Owed::Replaced(_)) => {}
                Some(Owed::Effect(number)) => self.reached.push(number),
                // A Sync in front of data that was never read: with it the server ends what it skips.
                None if self.doubtful > 0 => {
                    self.doubtful -= 1;
                    self.open = false;
                    self.skipping = false;
                    return Ok(());
                }
                // Everything in front must have been answered.
                Some(_) | None => return Err(Desync),
            }
        }
        while matches!(self.owed.front(), Some(Owed::CopyEnd(_))) {
            self.owed.pop_front();
        }
        Ok(())
    }

    /// ParseComplete arrived. Whether the client sees it.
    pub(crate) fn got_parse_complete(&mut self) -> Result<bool, Desync> {
        self.skip_silent();
        match self.pop() {
            Some(Owed::ParseUnnamed(_) | Owed::Parse(..) | Owed::ParseAgain(_) | Owed::ParseDuplicate(_)) => {
                Ok(true)
            }
            Some(Owed::Inject(_) | Owed::InjectByName(_)) => Ok(false),
            _ => Err(Desync),
        }
    }

    /// CloseComplete arrived. The tag that the client sees, if it sees it.
    pub(crate) fn got_close_complete(&mut self) -> Result<Option<u8>, Desync> {
        self.skip_silent();
        match self.pop() {
            Some(Owed::Close | Owed::CloseStatement { .. } | Owed::ClosePrepared { .. }) => {
                Ok(Some(switchyard_wire::frame::backend::CLOSE_COMPLETE))
            }
            Some(Owed::ParseAsClose(_)) => Ok(Some(switchyard_wire::frame::backend::PARSE_COMPLETE)),
            Some(Owed::Evict(_) | Owed::CloseTried | Owed::CloseByName(_)) => Ok(None),
            _ => Err(Desync),
        }
    }

    /// BindComplete arrived.
    #[inline]
    pub(crate) fn got_bind_complete(&mut self) -> Result<(), Desync> {
        self.skip_silent();
        match self.pop() {
            Some(Owed::Bind { unnamed }) => {
                self.portal.was_bound(unnamed);
                Ok(())
            }
            _ => Err(Desync),
        }
    }

    /// RowDescription or NoData arrived: for a Describe, or within a Query. Whether the client sees it.
    #[inline]
    pub(crate) fn got_description(&mut self) -> Result<bool, Desync> {
        self.skip_silent();
        match self.owed.front() {
            Some(Owed::Describe) => drop(self.pop()),
            Some(Owed::Query) => {}
            Some(Owed::IsPortalThere) => {
                self.pop();
                return Ok(false);
            }
            _ => return Err(Desync),
        }
        Ok(true)
    }

    /// CommandComplete, EmptyQueryResponse or PortalSuspended arrived.
    #[inline]
    pub(crate) fn got_completion(&mut self) -> Result<(), Desync> {
        // A COPY that has come to its end has read what was sent before that.
        self.swallowed = 0;
        self.skip_silent();
        match self.owed.front() {
            Some(Owed::Execute) => drop(self.pop()),
            Some(Owed::Query) => self.portal.ran = true,
            // Replication says it once more when the stream has ended.
            _ if self.copy_both => {}
            _ => return Err(Desync),
        }
        Ok(())
    }

    /// A reply arrived that is kept from the client, as its group is sent again. `undo` gets what is
    /// undone for that.
    pub(crate) fn got_passed_over(&mut self, tag: u8, undo: &mut Vec<Undo>) -> Result<(), Desync> {
        use switchyard_wire::frame::backend;
        match tag {
            backend::PARSE_COMPLETE => self.got_parse_complete().map(drop),
            backend::CLOSE_COMPLETE => {
                self.skip_silent();
                match self.pop() {
                    Some(Owed::ParseAsClose(name)) => undo.push(Undo::Named(name)),
                    Some(
                        Owed::Close
                        | Owed::CloseStatement { .. }
                        | Owed::ClosePrepared { .. }
                        | Owed::Evict(_)
                        | Owed::CloseTried
                        | Owed::CloseByName(_),
                    ) => {}
                    _ => return Err(Desync),
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Passes what brings no reply of its own: the server has come to what is behind it.
    #[inline]
    fn skip_silent(&mut self) {
        while self.owed.front().is_some_and(Owed::is_silent) {
            if let Some(Owed::Effect(number)) = self.pop() {
                self.reached.push(number);
            }
        }
    }

    /// Whether more ReadyForQuery may come than are owed: where a COPY has failed, it is not known which Syncs it
    /// had read before. The connection is not for others then.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.doubtful > 0
    }

    /// Whether the server copies what the client sends, as far as is known.
    #[inline]
    pub(crate) fn is_copying_in(&self) -> bool {
        self.copy_in
    }

    /// ErrorResponse arrived, with this SQLSTATE. `undo` gets what the server skips because of it, in the order in which it
    /// was sent: to be undone from its end.
    pub(crate) fn got_error(&mut self, code: Option<[u8; 5]>, undo: &mut Vec<Undo>) -> ErrorIs {
        self.copy_in = false;
        self.doubtful = self.doubtful.saturating_add(std::mem::take(&mut self.swallowed));
        // What was refused has no effect.
        while self.owed.front().is_some_and(Owed::is_silent) {
            self.pop();
        }
        if matches!(self.owed.front(), Some(Owed::Query | Owed::RefusedQuery(_))) {
            self.portal.query_failed(code, self.status);
        }
        if matches!(self.owed.front(), Some(Owed::Query | Owed::Call)) {
            return ErrorIs::Plain;
        }
        if let Some(Owed::RefusedQuery(error)) = self.owed.front() {
            return ErrorIs::Instead(error.clone());
        }
        let mut is = ErrorIs::Plain;
        let mut first = true;
        loop {
            match self.owed.front() {
                // A Query in a group that is skipped is skipped as well.
                Some(Owed::Sync) => return is,
                Some(_) => {}
                None => {
                    // No Sync yet: it is still to come, if anything extended was sent at all.
                    self.skipping = self.open || !first;
                    self.open |= self.skipping;
                    return is;
                }
            }
            match self.pop() {
                Some(Owed::ParseDuplicate(name)) if first => is = ErrorIs::Duplicate(name),
                Some(Owed::RefusedGroup(error)) if first => {
                    is = ErrorIs::Instead(error);
                    undo.push(Undo::OnServer);
                }
                Some(owed) => undo.extend(owed.undo(first)),
                None => {}
            }
            first = false;
        }
    }

    /// The server has run nothing of what it was sent, and will not. All of it is undone, from its end.
    pub(crate) fn undo_all(&mut self, undo: &mut Vec<Undo>) {
        while let Some(owed) = self.pop() {
            undo.extend(owed.undo(true));
        }
        self.reset();
    }
}

#[cfg(test)]
mod tests;
