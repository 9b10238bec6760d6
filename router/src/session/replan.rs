//! `cached plan must not change result type`: a table has changed under a prepared statement.
//!
//! PostgreSQL refuses the old plan, and goes on refusing it until the statement is prepared anew,
//! which an application behind a pool has no reason to do. Where nothing else was sent and no
//! transaction is open, the router does it: it closes the statement, prepares it again and sends the
//! client's messages once more. The client sees the new columns, as on a new connection.

use std::sync::Arc;

use switchyard_wire::error::sqlstate;
use switchyard_wire::frame::{self, backend};
use switchyard_wire::{build, message};

use super::borrow::{ATTEMPTS, REPLAY_BYTES};
use super::relay::Relay;
use super::{Core, End};
use crate::buffer::{BUFFER_BYTES, Buffer};
use crate::exchange::Owed;
use crate::statements::Statement;

/// What is known of the group under way that begins with the use of a prepared statement.
#[derive(Debug)]
pub(super) enum Replan {
    /// It may have to be sent again; its bytes are kept in `replay`.
    Armed(Arc<Statement>),
    /// It was refused; when the server is ready it is sent again.
    Due(Arc<Statement>),
}

impl Relay {
    /// The group that the fresh bytes begin with uses `statement` first. Costs a copy of its bytes.
    #[inline]
    pub(super) fn arm_replan(&mut self, statement: &Arc<Statement>) {
        if !self.exchange.is_untouched() || self.attempts >= ATTEMPTS {
            return;
        }
        let fresh = self.c.buffer.fresh();
        if fresh.len() > REPLAY_BYTES {
            return;
        }
        if !self.can_replay {
            self.replay.clear();
            self.replay.extend_from_slice(fresh);
        }
        self.replan = Some(Replan::Armed(statement.clone()));
    }

    /// Whether the message that has come stands in front of a refusal, so that the client must not see
    /// it. None if more is needed to tell. Only of a group that may be sent again.
    pub(super) fn refused_ahead(&self, header: &frame::Header) -> Option<bool> {
        let armed = matches!(self.replan, Some(Replan::Armed(_)));
        // Without its Sync a group may be waited for as far as it goes.
        if !armed || !comes_first(header.tag) || !self.exchange.is_one_group() {
            return Some(false);
        }
        let fresh = self.s.buffer.fresh();
        let mut at = 0;
        while let Ok(Some(next)) = frame::header(&fresh[at..]) {
            match next.tag {
                tag if comes_first(tag) && next.len <= fresh.len() - at => at += next.len,
                backend::ERROR if fresh.len() - at >= next.len => {
                    let fields = message::ErrorFields::parse(&fresh[at + frame::HEADER..at + next.len]);
                    return Some(
                        fields.is_ok_and(|fields| is_stale_plan(&fields)) && self.exchange.is_one_group(),
                    );
                }
                tag if (tag == backend::ERROR || comes_first(tag)) && next.len < BUFFER_BYTES / 2 => {
                    return None;
                }
                _ => return Some(false),
            }
            if at >= fresh.len() {
                return None;
            }
        }
        None
    }

    /// Whether the refusal that has just come can be kept from the client. The group must be all
    /// that is under way, and wholly sent.
    pub(super) fn can_replan(&mut self) -> bool {
        let Some(Replan::Armed(statement)) = &self.replan else { return false };
        if self.exchange.status != b'I'
            || !self.exchange.is_one_group()
            || self.c.has_output()
            || self.c.pass > 0
            || self.c.drop > 0
        {
            return false;
        }
        self.replan = Some(Replan::Due(statement.clone()));
        true
    }

    /// The server is ready after a refusal: the statement is prepared anew, and the group sent again.
    #[cold]
    pub(super) fn send_again(&mut self, core: &Core, statement: &Arc<Statement>) -> Result<(), End> {
        let Some(server) = &mut self.server else { return Ok(()) };
        tracing::debug!(session = core.id, tenant = %core.who.tenant, pid = server.identity.pid,
            "a table has changed under a prepared statement; prepared again");
        self.attempts += 1;
        self.failed = false;
        self.stall = false;
        self.pending.clear();
        self.c.clear();
        self.c.buffer = Buffer::holding(&self.replay);
        server.statements.remove(statement.id);
        super::client_half::built(build::close(self.c.own(), b'S', &statement.name))?;
        self.exchange.sent_extended(Owed::Evict(None));
        Ok(())
    }
}

/// Whether a message may come in front of a refusal.
fn comes_first(tag: u8) -> bool {
    matches!(tag, backend::PARSE_COMPLETE | backend::CLOSE_COMPLETE | backend::PARAMETER_DESCRIPTION)
}

/// Whether an error is this refusal. // src/backend/utils/cache/plancache.c RevalidateCachedQuery
pub(super) fn is_stale_plan(fields: &message::ErrorFields<'_>) -> bool {
    fields.code() == Some(&sqlstate::FEATURE_NOT_SUPPORTED.0[..])
        && fields.message().is_some_and(|text| text.starts_with(b"cached plan must not change"))
}
