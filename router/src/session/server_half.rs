//! What the server says: nearly everything passes as it is.

use std::task::{Context, Poll};

use switchyard_wire::error::{ErrorResponse, SqlState, sqlstate};
use switchyard_wire::frame::{self, backend};
use switchyard_wire::message;

use super::doubt::Doubt;
use super::expiry::statement_timeout;
use super::relay::Relay;
use super::replan::{Replan, is_stale_plan};
use super::rows::rows_of;
use super::{Core, End, Reads};
use crate::exchange::{Desync, ErrorIs, Undo};
use crate::holds;
use crate::server::UNNAMED_OF_NOBODY;

/// Largest message of the server that is held whole, in bytes: errors, and what the router has
/// asked for itself. Larger ones pass by count.
pub(super) const WHOLE_BYTES: usize = crate::buffer::BUFFER_BYTES;

/// Longest command tag, with its end. // src/include/tcop/cmdtag.h COMPLETION_TAG_BUFSIZE
const TAG_BYTES: usize = 64;

impl Relay {
    /// Moves what the server has sent. Whether anything moved.
    pub(super) fn poll_server_half(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        loop {
            if self.s.has_output() {
                let client = &mut core.client;
                match self.s.poll_write(cx, |cx, bytes| client.poll_write(cx, bytes)) {
                    Poll::Ready(Ok(n)) => moved |= n > 0,
                    Poll::Ready(Err(_)) => return Err(End::ClientGone),
                    Poll::Pending => return Ok(moved),
                }
                if core.client.poll_flush(cx).map_err(|_| End::ClientGone)?.is_pending() {
                    return Ok(moved);
                }
            }
            if self.gate.is_some() {
                if self.poll_gate(core, cx)?.is_pending() {
                    return Ok(moved);
                }
                self.server_has_said(core)?;
                moved = true;
                continue;
            }
            if matches!(self.doubt, Some(Doubt::Asked(_))) {
                if self.poll_doubt(cx).is_pending() {
                    return Ok(moved);
                }
                self.server_has_said(core)?;
                moved = true;
                continue;
            }
            let Some(server) = &mut self.server else { return Ok(moved) };
            match server.stream.poll_read(cx, self.s.buffer.room()) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(0)) => self.server_lost(core, None)?,
                Poll::Ready(Err(e)) => self.server_lost(core, Some(&e))?,
                Poll::Ready(Ok(n)) => {
                    self.s.buffer.filled(n);
                    core.account.bytes_out.add(n as u64);
                    core.seat.shard_account.bytes_out.add(n as u64);
                    self.server_has_said(core)?;
                    self.reads_again &= !self.s.has_output();
                }
            }
            moved = true;
        }
    }

    #[inline]
    fn server_has_said(&mut self, core: &mut Core) -> Result<(), End> {
        if let Err(Desync) = self.server_frames(core)? {
            return Err(self.desync(core));
        }
        // Before the client's socket is written to: somebody may be waiting for it.
        self.give_back_if_over(core);
        Ok(())
    }

    fn desync(&mut self, core: &Core) -> End {
        if let Some(server) = &mut self.server {
            tracing::error!(session = core.id, tenant = %core.who.tenant, shard = %server.identity.shard.name,
                pid = server.identity.pid, "shard sent a message that does not belong here");
            server.broken = true;
        }
        End::Fatal(ErrorResponse::fatal(sqlstate::PROTOCOL_VIOLATION, "the shard broke the protocol"))
    }

    #[inline]
    fn server_frames(&mut self, core: &mut Core) -> Result<Result<(), Desync>, End> {
        loop {
            if !self.s.continue_message() {
                return Ok(Ok(()));
            }
            let fresh = self.s.buffer.fresh();
            let header = match frame::header(fresh) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(Ok(())),
                Err(_) => return Ok(Err(Desync)),
            };
            if self.exchange.prefix.is_pending() {
                match self.prefix_frame(core, &header)? {
                    Ok(true) => continue,
                    Ok(false) => return Ok(Ok(())),
                    Err(desync) => return Ok(Err(desync)),
                }
            }
            if self.exchange.is_own_next() {
                match self.own_frame(core, &header)? {
                    Ok(true) => continue,
                    Ok(false) => return Ok(Ok(())),
                    Err(desync) => return Ok(Err(desync)),
                }
            }
            if self.replan.is_some() {
                match self.refused_ahead(&header) {
                    Some(true) => {
                        let mut undo = std::mem::take(&mut self.undo);
                        let known = self.exchange.got_passed_over(header.tag, &mut undo);
                        undo.drain(..).rev().for_each(|what| self.undo_one(core, what));
                        self.undo = undo;
                        if known.is_err() {
                            return Ok(Err(Desync));
                        }
                        self.s.discard(header.len);
                        continue;
                    }
                    Some(false) => {}
                    None => return Ok(Ok(())),
                }
            }
            match header.tag {
                // By far the most common, and nothing depends on it.
                backend::DATA_ROW => {
                    self.rows = self.rows.wrapping_add(1);
                    self.s.forward(header.len);
                }
                backend::COPY_DATA => self.s.forward(header.len),
                backend::READY_FOR_QUERY => {
                    if header.len != frame::HEADER + 1 {
                        return Ok(Err(Desync));
                    }
                    if fresh.len() < header.len {
                        return Ok(Ok(()));
                    }
                    let status = fresh[frame::HEADER];
                    if !self.may_be_ready(core, status) {
                        return Ok(Ok(()));
                    }
                    if !matches!(status, b'I' | b'T' | b'E') || self.exchange.got_ready(status).is_err() {
                        return Ok(Err(Desync));
                    }
                    if self.last_words.is_some() {
                        // It goes on after its last words.
                        return Ok(Err(Desync));
                    }
                    if self.replan.is_some()
                        && let Some(Replan::Due(statement)) = self.replan.take()
                    {
                        self.s.discard(header.len);
                        self.send_again(core, &statement)?;
                        return Ok(Ok(()));
                    }
                    self.statement_ended();
                    self.ready_later = self.sets_back && self.exchange.is_own_next();
                    if self.ready_later {
                        self.s.discard(header.len);
                    } else {
                        self.s.forward(header.len);
                    }
                    let next = self.s.buffer.fresh().first();
                    let unasked = matches!(next, Some(&(backend::DATA_ROW | backend::COPY_DATA)));
                    if unasked && self.exchange.is_quiet() {
                        return Ok(Err(Desync));
                    }
                    if !self.pending.is_empty() {
                        self.settle(core);
                    }
                    self.failed = false;
                    core.server_ready(status, self.exchange.is_quiet());
                }
                _ => match self.server_frame(core, &header)? {
                    Ok(true) => {}
                    Ok(false) => return Ok(Ok(())),
                    Err(desync) => return Ok(Err(desync)),
                },
            }
        }
    }

    /// A message that is not a row. False if more of it is needed.
    fn server_frame(&mut self, core: &mut Core, header: &frame::Header) -> Result<Result<bool, Desync>, End> {
        if self.replan.is_some() && is_answer(header.tag) {
            // It is under way: what the client has seen of it cannot be taken back.
            self.replan = None;
        }
        match header.tag {
            backend::COMMAND_COMPLETE | backend::EMPTY_QUERY | backend::PORTAL_SUSPENDED => {
                if header.tag == backend::COMMAND_COMPLETE && header.len <= frame::HEADER + TAG_BYTES {
                    let fresh = self.s.buffer.fresh();
                    if fresh.len() < header.len {
                        return Ok(Ok(false));
                    }
                    self.rows = rows_of(&fresh[frame::HEADER..header.len]).unwrap_or(self.rows);
                }
                core.account.rows.add(std::mem::take(&mut self.rows));
                if !self.journal.is_empty() && header.tag == backend::COMMAND_COMPLETE {
                    let fresh = self.s.buffer.fresh();
                    if fresh.len() < header.len && header.len <= WHOLE_BYTES {
                        return Ok(Ok(false));
                    }
                    let body = &fresh[frame::HEADER..header.len.min(fresh.len())];
                    self.journal.completed(body.strip_suffix(&[0]).unwrap_or(body));
                }
                if self.exchange.got_completion().is_err() {
                    return Ok(Err(Desync));
                }
                if header.tag == backend::COMMAND_COMPLETE
                    && self.pending.want(header.len.saturating_sub(frame::HEADER + 1))
                {
                    // As short as a tag of interest is, all of it is there.
                    let fresh = self.s.buffer.fresh();
                    let body = &fresh[frame::HEADER..header.len.min(fresh.len())];
                    self.pending.reached(self.exchange.take_reached());
                    if let Some(done) = self.pending.completed(body.strip_suffix(&[0]).unwrap_or(body)) {
                        self.settle_one(core, done);
                    }
                }
                self.statement_ended();
                core.statement_completed();
                if self.fresh_pin && header.tag == backend::COMMAND_COMPLETE {
                    let fresh = self.s.buffer.fresh();
                    let tag = &fresh[frame::HEADER.min(fresh.len())..];
                    self.fresh_pin &= !tag.starts_with(b"COMMIT");
                    self.rolled_back = tag.starts_with(b"ROLLBACK");
                }
                self.s.forward(header.len);
            }
            backend::ROW_DESCRIPTION | backend::NO_DATA => match self.exchange.got_description() {
                Ok(true) => self.s.forward(header.len),
                Ok(false) => self.s.discard(header.len),
                Err(desync) => return Ok(Err(desync)),
            },
            backend::BIND_COMPLETE => {
                if self.exchange.got_bind_complete().is_err() {
                    return Ok(Err(Desync));
                }
                self.s.forward(header.len);
            }
            backend::PARAMETER_DESCRIPTION
            | backend::FUNCTION_RESULT
            | backend::COPY_OUT
            | backend::COPY_DONE => {
                if self.exchange.is_quiet() {
                    return Ok(Err(Desync));
                }
                self.s.forward(header.len);
            }
            backend::NOTICE | backend::PARAMETER_STATUS => self.s.forward(header.len),
            backend::PARSE_COMPLETE => match self.exchange.got_parse_complete() {
                Ok(true) => self.s.forward(header.len),
                Ok(false) => self.s.discard(header.len),
                Err(desync) => return Ok(Err(desync)),
            },
            backend::CLOSE_COMPLETE => match self.exchange.got_close_complete() {
                Ok(Some(tag)) => {
                    self.s.buffer.fresh_mut()[0] = tag;
                    self.s.forward(header.len);
                }
                Ok(None) => self.s.discard(header.len),
                Err(desync) => return Ok(Err(desync)),
            },
            backend::ERROR => return self.server_error(core, header),
            backend::NOTIFICATION if !self.journal.is_empty() && header.len <= WHOLE_BYTES => {
                if self.s.buffer.fresh().len() < header.len {
                    return Ok(Ok(false));
                }
                if self.is_own_notification(core, header.len) {
                    self.s.forward(header.len);
                } else {
                    self.s.discard(header.len);
                }
            }
            // Whoever listens hears by a hub, which knows whose it is.
            backend::NOTIFICATION => self.s.discard(header.len),
            backend::COPY_IN => {
                self.exchange.got_copy_in();
                self.s.forward(header.len);
            }
            backend::COPY_BOTH => {
                self.exchange.got_copy_both();
                self.s.forward(header.len);
            }
            _ => return Ok(Err(Desync)),
        }
        Ok(Ok(true))
    }

    pub(super) fn server_error(
        &mut self,
        core: &mut Core,
        header: &frame::Header,
    ) -> Result<Result<bool, Desync>, End> {
        let fresh = self.s.buffer.fresh();
        if header.len <= WHOLE_BYTES && fresh.len() < header.len {
            return Ok(Ok(false));
        }
        let Some(fenced) = self.is_behind(core, code_of(&fresh[frame::HEADER..fresh.len().min(header.len)]))
        else {
            return Ok(Ok(false));
        };
        let fresh = self.s.buffer.fresh();
        self.failed = true;
        core.account.rows.add(std::mem::take(&mut self.rows));
        let quiet = self.exchange.is_quiet();
        let fields = message::ErrorFields::parse(&fresh[frame::HEADER..fresh.len().min(header.len)]).ok();
        let code = fields.as_ref().and_then(|f| f.code()).and_then(|c| <[u8; 5]>::try_from(c).ok());
        let ends = fields.as_ref().and_then(|f| f.severity()).is_some_and(|s| s == b"FATAL" || s == b"PANIC");
        if ends && code == Some(sqlstate::PROTOCOL_VIOLATION.0) {
            // The client is out of step: there is no going on for it on any connection.
            let text = text_of(fields.as_ref()).map(|m| String::from_utf8_lossy(m).into_owned());
            return Err(End::Fatal(ErrorResponse::fatal(
                sqlstate::PROTOCOL_VIOLATION,
                text.unwrap_or_else(|| "protocol violation".to_owned()),
            )));
        }
        // Behind the router's own question: the client has its answer, and nothing here that would end.
        if ends
            && self.exchange.is_over()
            && !self.reads_again
            && !self.c.has_output()
            && core.is_pooled()
            && core.pin.is_none()
            && self.touched.is_none()
            && header.len <= WHOLE_BYTES
            && let Some(server) = &mut self.server
        {
            server.broken = true;
            self.s.discard(header.len);
            return Ok(Ok(true));
        }
        // A connection to a standby may end before the statement, which is sent once more, has left.
        if ends && (!quiet || self.reads_again) && header.len <= WHOLE_BYTES {
            // The backend is about to close. Whether the session survives is decided then.
            let text = text_of(fields.as_ref()).map(|m| String::from_utf8_lossy(m).into_owned());
            self.last_words = Some(ErrorResponse::error(
                SqlState(code.unwrap_or(*b"XX000")),
                text.unwrap_or_else(|| "the shard ended the connection".to_owned()),
            ));
            self.s.discard(header.len);
            return Ok(Ok(true));
        }
        if fenced && let Some(detail) = fields.as_ref().and_then(|f| f.detail()) {
            core.shared.holds.learn_from(&core.shared, &core.who.tenant, detail);
        }
        let expired = code == Some(sqlstate::QUERY_CANCELED.0) && self.has_expired();
        let stale = fields.as_ref().is_some_and(is_stale_plan);
        let again = stale && self.can_replan();
        if !again {
            core.account.errors.add(1);
            self.replan = None;
        }
        if stale
            && !again
            && let Some(server) = &mut self.server
        {
            // Drivers prepare again: they must not find the old one here, neither in this transaction nor
            // later, so the connection is cleaned before anybody uses it.
            self.parses_otherwise = true;
            if core.is_pooled() {
                server.carried.dirty = true;
                server.carried.session = 0;
            } else {
                // It keeps what it has there; what it prepares from now on is its own.
                core.parses_unknown = true;
            }
        }
        if code == Some(*b"25006")
            && let Some(server) = &mut self.server
            && !server.identity.shard.other_hosts.is_empty()
            && core.who.reads == Reads::Anything
        {
            // The client may have asked for read-only transactions, or this host is no primary any more: the
            // next connection is looked at anew.
            server.short_lived = true;
        }
        let because = code == Some(sqlstate::IN_FAILED_SQL_TRANSACTION.0);
        let late = because.then(|| core.put_off_error()).flatten();
        let mut undo = std::mem::take(&mut self.undo);
        let is = self.exchange.got_error(code, &mut undo);
        if self.exchange.is_in_doubt()
            && let Some(server) = &mut self.server
        {
            server.short_lived = true;
        }
        for what in undo.drain(..).rev() {
            self.undo_one(core, what);
        }
        self.undo = undo;
        match is {
            ErrorIs::Duplicate(name) if code == Some(sqlstate::DUPLICATE_PREPARED_STATEMENT.0) => {
                self.s.discard(header.len);
                let name = String::from_utf8_lossy(&name).into_owned();
                ErrorResponse::error(
                    sqlstate::DUPLICATE_PREPARED_STATEMENT,
                    format!("prepared statement \"{name}\" already exists"),
                )
                .encode(self.s.own());
            }
            _ if late.is_some() => {
                self.s.discard(header.len);
                late.iter().for_each(|error| error.encode(self.s.own()));
            }
            ErrorIs::Instead(error) => {
                self.s.discard(header.len);
                error.encode(self.s.own());
            }
            _ if again => self.s.discard(header.len),
            _ if expired && header.len <= WHOLE_BYTES => {
                self.s.discard(header.len);
                statement_timeout().encode(self.s.own());
            }
            // This router was late: what applications do about a failed serialisation is right here too.
            _ if fenced && header.len <= WHOLE_BYTES => {
                self.s.discard(header.len);
                holds::late().encode(self.s.own());
            }
            _ => self.s.forward(header.len),
        }
        Ok(Ok(true))
    }

    pub(super) fn undo_one(&mut self, core: &mut Core, undo: Undo) {
        let server = self.server.as_mut();
        match undo {
            Undo::Parsed(name, statement) => {
                core.statements().remove(&name);
                if let Some(server) = server {
                    server.statements.remove(statement.id);
                }
            }
            Undo::Named(name) => {
                core.statements().remove(&name);
            }
            Undo::Injected(statement) => {
                if let Some(server) = server {
                    server.statements.remove(statement.id);
                }
            }
            Undo::Evicted(statement) => {
                if let Some(server) = server {
                    server.statements.keep(&statement);
                }
            }
            Undo::Closed(name, statement, on_server) => {
                if let Some(server) = server.filter(|_| on_server) {
                    server.statements.keep(&statement);
                }
                if !core.statements().contains(&name) {
                    core.statements().insert(&name, statement);
                }
            }
            Undo::Unnamed(serial) => core.statements().refuse_unnamed(serial),
            Undo::Replaced(before) => {
                let (unnamed, on_server_of) = *before;
                core.statements().restore_unnamed(unnamed);
                // What the router has sent since, of its own, may have taken it away.
                if let Some(server) = server.filter(|server| server.unnamed_of != UNNAMED_OF_NOBODY) {
                    server.unnamed_of = on_server_of;
                }
            }
            Undo::BySql(name) => {
                if let Some(server) = server {
                    server.sql_names.remove(&*name);
                }
            }
            Undo::StillByName(name) => {
                if let Some(server) = server {
                    server.sql_names.insert(name.into());
                }
            }
            Undo::StillPrepared(name, sql, on_server) => {
                if let Some(server) = server.filter(|_| on_server) {
                    server.sql_names.insert(name.clone().into());
                }
                core.statements().insert_by_sql(name.into(), sql);
            }
            Undo::OnServer => {
                if let Some(server) = server {
                    server.unnamed_of = UNNAMED_OF_NOBODY;
                }
            }
        }
    }
}

/// The SQLSTATE of an error.
fn code_of(body: &[u8]) -> Option<[u8; 5]> {
    message::ErrorFields::parse(body).ok()?.code()?.try_into().ok()
}

/// // src/backend/tcop/postgres.c ProcessInterrupts
pub(super) fn canceled_by_user() -> ErrorResponse {
    ErrorResponse::error(sqlstate::QUERY_CANCELED, "canceling statement due to user request")
}

/// Whether a message answers a use of a prepared statement.
fn is_answer(tag: u8) -> bool {
    matches!(
        tag,
        backend::BIND_COMPLETE | backend::PARAMETER_DESCRIPTION | backend::ROW_DESCRIPTION | backend::NO_DATA
    )
}

pub(super) fn text_of<'a>(fields: Option<&message::ErrorFields<'a>>) -> Option<&'a [u8]> {
    fields.and_then(|fields| fields.message())
}
