//! What the client says: which messages pass as they are, and the few that are looked at.

use std::task::{Context, Poll};

use switchyard_wire::build;
use switchyard_wire::error::{ErrorResponse, sqlstate};
use switchyard_wire::frame::{self, frontend};

use super::relay::Relay;
use super::roaming::Look;
use super::{Core, End};
use crate::classify::reach::reach;
use crate::classify::{Effect, Pin, classify, read_only};
use crate::exchange::{Owed, Unnamed};
use crate::hidden::{READS, WRITES};
use crate::statements::TRIED_STATEMENT;

/// Bytes of the router's own answers that may wait for a client to read, before it is listened to again.
const UNSENT_BYTES: usize = 64 * 1024;

/// Functions on large objects, which drivers call by messages of their own.
// src/include/catalog/pg_proc.dat
const LARGE_OBJECTS: [u32; 16] =
    [715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172];

/// What stopped the look at the client's messages.
enum Stop {
    /// Everything there was looked at, or the rest is not complete.
    Empty,
    /// A message needs a server connection.
    NeedServer,
    /// The next message must wait for a reply of the server.
    Stalled,
    /// The client has said goodbye, and is still to get what it has asked for.
    Leaving,
}

impl Relay {
    /// Moves what the client has sent. Whether anything moved.
    pub(super) fn poll_client_half(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        loop {
            match self.poll_wait(core, cx) {
                Poll::Ready(done) => done?,
                Poll::Pending => return self.watch_client(core, cx).map(|()| moved),
            }
            let (mut stalled, mut leaving) = (false, false);
            if !self.c.buffer.fresh().is_empty() {
                match self.client_frames(core)? {
                    Stop::NeedServer => {
                        // Nothing is written yet: what makes the connection ready and the client's
                        // own bytes go out together.
                        self.borrow_server(core)?;
                        moved = true;
                        continue;
                    }
                    Stop::Stalled => stalled = true,
                    Stop::Leaving => leaving = true,
                    Stop::Empty => {}
                }
            }
            if let Some(server) = &mut self.server
                && self.c.has_output()
            {
                let stream = &mut server.stream;
                match self.c.poll_write(cx, |cx, bytes| stream.poll_write(cx, bytes)) {
                    Poll::Ready(Ok(n)) => {
                        moved |= n > 0;
                        if let Poll::Ready(Err(e)) = stream.poll_flush(cx) {
                            self.server_lost(core, Some(&e))?;
                            continue;
                        }
                        // Where the server has answered before it was sent everything, as to a COPY that fails.
                        self.give_back_if_over(core);
                    }
                    // What the server has said before it went is still to be read.
                    Poll::Ready(Err(_)) | Poll::Pending => return Ok(moved),
                }
            }
            if leaving {
                // Nothing more comes from it but the end, and then nobody waits for the answer.
                return match core.client.poll_read(cx, &mut [0; 64]) {
                    Poll::Ready(Ok(0) | Err(_)) => Err(End::ClientGone),
                    _ => Ok(moved),
                };
            }
            if stalled || (self.server.is_none() && self.c.is_done()) {
                // Without a server connection and anything to say: idle, the session reads.
                return Ok(moved);
            }
            match core.client.poll_read(cx, self.c.buffer.room()) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(0) | Err(_)) => return Err(End::ClientGone),
                Poll::Ready(Ok(n)) => {
                    self.c.buffer.filled(n);
                    self.note_for_replay(n);
                    core.account.bytes_in.add(n as u64);
                    core.seat.shard_account.bytes_in.add(n as u64);
                    moved = true;
                }
            }
        }
    }

    /// While a session waits for a connection: notices when the client has gone.
    fn watch_client(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Result<(), End> {
        if self.c.buffer.fresh().len() >= crate::buffer::BUFFER_BYTES / 8 {
            return Ok(());
        }
        let mut bytes = [0; 1024];
        loop {
            match core.client.poll_read(cx, &mut bytes) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0) | Err(_)) => return Err(End::ClientGone),
                Poll::Ready(Ok(n)) => {
                    self.c.buffer.extend(&bytes[..n]);
                    if self.c.buffer.fresh().len() >= crate::buffer::BUFFER_BYTES / 8 {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn client_frames(&mut self, core: &mut Core) -> Result<Stop, End> {
        loop {
            if !self.c.continue_message() || self.c.buffer.fresh().is_empty() {
                return Ok(Stop::Empty);
            }
            if self.s.unsent_own() > UNSENT_BYTES {
                return Ok(Stop::Stalled);
            }
            let header = match frame::header(self.c.buffer.fresh()) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(Stop::Empty),
                Err(_) => return Err(violation("invalid message length".to_owned())),
            };
            if frame::is_oversized(header) {
                return Err(violation("invalid message length".to_owned()));
            }
            if matches!(header.tag, frontend::SYNC | frontend::FLUSH) && header.len != frame::HEADER {
                return Err(violation("invalid message format".to_owned()));
            }
            if self.skip_to_sync && !matches!(header.tag, frontend::SYNC | frontend::TERMINATE) {
                self.c.discard(header.len);
                continue;
            }
            if self.server.is_none() {
                if core.roaming.is_some() {
                    match self.scout(core, header)? {
                        Look::On => {}
                        Look::Done => continue,
                        Look::More => return Ok(Stop::Empty),
                        Look::Wait => return Ok(Stop::Stalled),
                        Look::Borrow => return Ok(Stop::NeedServer),
                    }
                }
                match header.tag {
                    // With nothing open these have no effect but their reply.
                    frontend::SYNC => {
                        self.skip_to_sync = false;
                        self.c.discard(header.len);
                        build::ready_for_query(self.s.own(), core.idle_status());
                        continue;
                    }
                    frontend::FLUSH | frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => {
                        self.c.discard(header.len);
                        continue;
                    }
                    frontend::TERMINATE if self.s.has_output() => return Ok(Stop::Leaving),
                    frontend::TERMINATE => return Err(End::Terminated),
                    tag if is_known(tag) => return Ok(Stop::NeedServer),
                    tag => return Err(violation(format!("invalid frontend message type {tag}"))),
                }
            }
            if self.exchange.is_copying_in() && !belongs_to_copy(header.tag) {
                // PostgreSQL ends the session. If the COPY has failed meanwhile it would carry this out, and what it
                // answers would be counted for nobody.
                let text = format!("unexpected message type 0x{:02X} during COPY from stdin", header.tag);
                if self.s.pass == 0 {
                    ErrorResponse::error(sqlstate::PROTOCOL_VIOLATION, text).encode(self.s.own());
                }
                let end = "terminating connection because protocol synchronization was lost";
                return Err(violation(end.to_owned()));
            }
            if self.must_be_answered(header.tag) {
                if self.exchange.asks_for_answers() {
                    build::flush(self.c.own());
                }
                return Ok(Stop::Stalled);
            }
            if self.must_stall(header.tag)
                || self.must_be_alone(header)
                || self.exchange.must_wait()
                || self.probe.is_some()
                || self.look.is_some()
                || self.is_expiring()
            {
                return Ok(Stop::Stalled);
            }
            if header.tag == frontend::TERMINATE && (self.exchange.answers_come() || self.s.has_output()) {
                // What was asked before the goodbye is answered before it.
                return Ok(Stop::Leaving);
            }
            if header.tag == frontend::EXECUTE && !self.exchange.runs_what_was_bound() {
                match self.guard_unnamed_portal(core, header.len)? {
                    Look::On => {}
                    Look::Done => continue,
                    Look::More => return Ok(Stop::Empty),
                    Look::Wait | Look::Borrow => return Ok(Stop::Stalled),
                }
            }
            if core.roaming.is_some() {
                match self.escort(core, header)? {
                    Look::On => {}
                    Look::Done => continue,
                    Look::More => return Ok(Stop::Empty),
                    Look::Wait | Look::Borrow => return Ok(Stop::Stalled),
                }
            }
            if self.exchange.is_over() && header.tag != frontend::TERMINATE && !self.begin_again(core)? {
                return Ok(Stop::Stalled);
            }
            if !self.client_frame(core, header)? {
                return Ok(Stop::Empty);
            }
        }
    }

    /// Looks at an Execute of `len` bytes behind no Bind in its group: no session may run the portal that a Query has
    /// left which failed, and end the shard with it. The server is sent what it answers as it should that Execute: it says
    /// that there is no such portal, if there is none; or nothing, and then that the transaction has failed.
    #[inline(never)]
    fn guard_unnamed_portal(&mut self, core: &Core, len: usize) -> Result<Look, End> {
        match self.c.buffer.fresh().get(frame::HEADER) {
            None => return Ok(Look::More),
            Some(0) => {}
            Some(_) => return Ok(Look::On),
        }
        match self.exchange.unnamed_portal() {
            Unnamed::Sound => return Ok(Look::On),
            Unnamed::Unknown => return Ok(Look::Wait),
            Unnamed::Left => {}
        }
        core.account.statements.add(1);
        core.seat.shard_account.statements.add(1);
        self.c.discard(len);
        built(build::describe(self.c.own(), b'P', b""))?;
        self.exchange.sent_extended(Owed::IsPortalThere);
        built(build::parse(self.c.own(), TRIED_STATEMENT, b"SELECT", &[0, 0]))?;
        self.exchange.sent_extended(Owed::Execute);
        Ok(Look::Done)
    }

    /// Whether the reply to a group that is wholly sent must be seen before a message of this kind.
    /// What a COPY waits for is part of its group.
    fn must_stall(&self, tag: u8) -> bool {
        self.stall && !is_of_copy(tag) && !self.exchange.is_open() && !self.exchange.is_quiet()
    }

    /// Whether what was sent must be answered before a message of this kind, which the server need not do before a
    /// Sync.
    #[inline]
    fn must_be_answered(&self, tag: u8) -> bool {
        self.exchange.must_be_answered() && tag != frontend::SYNC && !is_of_copy(tag)
    }

    /// Whether it is a Query that takes away all of the session's statements, or everything: what it takes away
    /// must be known, and whether it succeeds, before anything else.
    fn must_be_alone(&self, header: frame::Header) -> bool {
        if header.tag != frontend::QUERY || self.exchange.is_calm() || self.exchange.is_open() {
            return false;
        }
        let text = crate::classify::skip_blank(self.query_text(header.len));
        let begins = |word: &[u8]| text.get(..word.len()).is_some_and(|t| t.eq_ignore_ascii_case(word));
        begins(b"discard") || begins(b"deallocate")
    }

    /// Deals with one message. False if more of it is needed first.
    fn client_frame(&mut self, core: &mut Core, header: frame::Header) -> Result<bool, End> {
        let len = header.len;
        match header.tag {
            frontend::QUERY => return self.client_query(core, len),
            frontend::SYNC => {
                self.exchange.sent_sync();
                self.c.forward(len);
                self.parsed_unnamed = false;
                self.send_after();
            }
            frontend::EXECUTE => {
                core.account.statements.add(1);
                core.seat.shard_account.statements.add(1);
                self.exchange.sent_extended(Owed::Execute);
                if self.pending.may_be_final() {
                    self.exchange.wants_answers();
                }
                self.c.forward(len);
            }
            frontend::FLUSH => self.c.forward(len),
            frontend::PARSE => return self.client_parse(core, len),
            frontend::BIND => return self.client_bind(core, len),
            frontend::DESCRIBE => return self.client_describe(core, len),
            frontend::CLOSE => return self.client_close(core, len),
            frontend::FUNCTION_CALL => {
                let whole = len <= crate::buffer::BUFFER_BYTES;
                if whole && !self.is_whole(len, crate::buffer::BUFFER_BYTES)? {
                    return Ok(false);
                }
                // The function's OID stands first.
                let fresh = self.c.buffer.fresh();
                let body = &fresh[frame::HEADER..fresh.len().min(len)];
                let oid = body.first_chunk().map(|oid| u32::from_be_bytes(*oid));
                if !oid.is_some_and(|oid| LARGE_OBJECTS.contains(&oid)) && !self.exchange.is_skipping() {
                    // As if its arguments were written down: names of settings may be among them.
                    let text = body.iter().map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '\'' });
                    let text = whole.then(|| text.collect());
                    self.reached |= READS | WRITES;
                    self.note_effect(core, Effect::Unknown, text);
                    if !whole {
                        self.pin(core, Pin::Setting);
                    }
                }
                self.exchange.sent_call();
                self.c.forward(len);
            }
            frontend::COPY_DATA => self.c.forward(len),
            frontend::COPY_DONE | frontend::COPY_FAIL => {
                self.exchange.sent_copy_end();
                self.c.forward(len);
            }
            frontend::TERMINATE => return Err(End::Terminated),
            tag => return Err(violation(format!("invalid frontend message type {tag}"))),
        }
        Ok(true)
    }

    /// Whether the message of `len` bytes is there as a whole; makes room for it where it may
    /// become as large as `max`.
    pub(super) fn is_whole(&mut self, len: usize, max: usize) -> Result<bool, End> {
        if self.c.buffer.fresh().len() >= len {
            return Ok(true);
        }
        if !self.c.buffer.could_hold(len) && self.c.buffer.room().is_empty() && !self.c.buffer.grow(max) {
            return Err(End::Fatal(
                ErrorResponse::fatal(sqlstate::PROGRAM_LIMIT_EXCEEDED, "message too large to be kept")
                    .detail(format!("The message has {len} bytes, the limit is {max}.")),
            ));
        }
        Ok(false)
    }

    /// False if more of it is needed first.
    fn client_query(&mut self, core: &mut Core, len: usize) -> Result<bool, End> {
        let whole = len <= crate::buffer::BUFFER_BYTES;
        if whole && !self.is_whole(len, crate::buffer::BUFFER_BYTES)? {
            return Ok(false);
        }
        core.account.statements.add(1);
        core.seat.shard_account.statements.add(1);
        if self.exchange.is_skipping() {
            // The server does not look at it.
            self.c.forward(len);
            return Ok(true);
        }
        // One that is not held as a whole may do anything, in the part that is not seen.
        let effect = if whole { classify(self.query_text(len)) } else { Effect::Unknown };
        let effect = core.own_effect(effect);
        let is_noted = effect == Effect::Unknown;
        let reach = if whole { reach(self.query_text(len)) } else { READS | WRITES };
        let mut instead = None;
        if core.seat.context.read_only && read_only::asks_to_write(self.query_text(len)) {
            instead = Some(read_only::REFUSAL.to_vec());
        } else if let Effect::Deallocate(Some(name)) = &effect {
            instead = self.deallocation(core, name)?;
        } else if effect != Effect::Nothing || core.pin.is_some() {
            match &effect {
                Effect::Execute(name) | Effect::Prepare(name) => self.ensure_by_name(core, name),
                _ if whole => self.ensure_mentioned(core, len, frame::HEADER),
                _ => {}
            }
            let text = whole.then(|| String::from_utf8(self.query_text(len).to_vec()).ok()).flatten();
            self.note_effect(core, effect, text);
        } else {
            if whole {
                self.ensure_mentioned(core, len, frame::HEADER);
            }
            if self.follows_channels(core) {
                let text = self.query_text(len).to_vec();
                self.note_plain(core, &text);
            }
        }
        self.note_reach(core, reach, is_noted, |relay| {
            String::from_utf8(relay.query_text(len).to_vec()).ok().filter(|_| whole)
        });
        self.drop_unnamed(core);
        if let Some(server) = &mut self.server {
            // None, which is what the session has. // src/backend/tcop/postgres.c exec_simple_query
            server.unnamed_of = core.unnamed();
        }
        match instead {
            Some(sql) => {
                self.c.discard(len);
                built(build::query(self.c.own(), &sql))?;
            }
            None => self.c.forward(len),
        }
        self.exchange.sent_query();
        self.send_after();
        Ok(true)
    }

    /// The text of the Query of `len` bytes that the fresh bytes begin with.
    pub(super) fn query_text(&self, len: usize) -> &[u8] {
        let fresh = self.c.buffer.fresh();
        let text = &fresh[frame::HEADER..fresh.len().min(len)];
        text.strip_suffix(&[0]).unwrap_or(text)
    }
}

/// What was read from the client within its limits can always be built again.
pub(super) fn built(built: Result<(), build::BuildError>) -> Result<(), End> {
    built.map_err(|error| violation(error.to_string()))
}

fn is_of_copy(tag: u8) -> bool {
    matches!(tag, frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL)
}

/// What a server looks at while it copies what the client sends; and the goodbye.
fn belongs_to_copy(tag: u8) -> bool {
    is_of_copy(tag) || matches!(tag, frontend::FLUSH | frontend::SYNC | frontend::TERMINATE)
}

fn is_known(tag: u8) -> bool {
    matches!(
        tag,
        frontend::QUERY
            | frontend::PARSE
            | frontend::BIND
            | frontend::EXECUTE
            | frontend::DESCRIBE
            | frontend::CLOSE
            | frontend::FUNCTION_CALL
    )
}

pub(super) fn violation(text: String) -> End {
    End::Fatal(ErrorResponse::fatal(sqlstate::PROTOCOL_VIOLATION, text))
}
