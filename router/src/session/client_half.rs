//! What the client says: which messages pass as they are, and the few that are looked at.

use std::task::{Context, Poll};

use smallvec::SmallVec;
use switchyard_wire::error::{ErrorResponse, sqlstate};
use switchyard_wire::frame::{self, frontend};
use switchyard_wire::{build, message};

use super::relay::{Pending, Relay};
use super::{Core, End};
use crate::classify::{Effect, Pin, classify};
use crate::exchange::Owed;
use crate::server::UNNAMED_OF_NOBODY;
use crate::statements::{NAME_PREFIX, NO_STATEMENT, Statement};

/// What stopped the look at the client's messages.
enum Stop {
    /// Everything there was looked at, or the rest is not complete.
    Empty,
    /// A message needs a server connection.
    NeedServer,
    /// The next message must wait for a reply of the server.
    Stalled,
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
            let mut stalled = false;
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
                    }
                    // What the server has said before it went is still to be read.
                    Poll::Ready(Err(_)) | Poll::Pending => return Ok(moved),
                }
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
            let header = match frame::header(self.c.buffer.fresh()) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(Stop::Empty),
                Err(_) => return Err(violation("invalid message length".to_owned())),
            };
            if self.skip_to_sync && !matches!(header.tag, frontend::SYNC | frontend::TERMINATE) {
                self.c.discard(header.len);
                continue;
            }
            if self.server.is_none() {
                match header.tag {
                    // With nothing open these have no effect but their reply.
                    frontend::SYNC => {
                        self.skip_to_sync = false;
                        self.c.discard(header.len);
                        build::ready_for_query(self.s.own(), b'I');
                        continue;
                    }
                    frontend::FLUSH | frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => {
                        self.c.discard(header.len);
                        continue;
                    }
                    frontend::TERMINATE => return Err(End::Terminated),
                    tag if is_known(tag) => return Ok(Stop::NeedServer),
                    tag => return Err(violation(format!("invalid frontend message type {tag}"))),
                }
            }
            if self.must_stall(header.tag) || self.exchange.must_wait() {
                return Ok(Stop::Stalled);
            }
            if self.exchange.is_over() && header.tag != frontend::TERMINATE {
                self.begin_again(core)?;
            }
            if !self.client_frame(core, header)? {
                return Ok(Stop::Empty);
            }
        }
    }

    /// Whether the reply to a group that is wholly sent must be seen before a message of this kind.
    /// What a COPY waits for is part of its group.
    fn must_stall(&self, tag: u8) -> bool {
        let of_copy = matches!(tag, frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL);
        self.stall && !of_copy && !self.exchange.is_open() && !self.exchange.is_quiet()
    }

    /// Deals with one message. False if more of it is needed first.
    fn client_frame(&mut self, core: &mut Core, header: frame::Header) -> Result<bool, End> {
        let len = header.len;
        match header.tag {
            frontend::QUERY => self.client_query(core, len)?,
            frontend::SYNC => {
                self.exchange.sent_sync();
                self.c.forward(len);
            }
            frontend::EXECUTE => {
                core.account.statements.add(1);
                self.exchange.sent_extended(Owed::Execute);
                self.c.forward(len);
            }
            frontend::FLUSH => self.c.forward(len),
            frontend::PARSE => return self.client_parse(core, len),
            frontend::BIND => return self.client_bind(core, len),
            frontend::DESCRIBE => return self.client_describe(core, len),
            frontend::CLOSE => return self.client_close(core, len),
            frontend::FUNCTION_CALL => {
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
    fn is_whole(&mut self, len: usize, max: usize) -> Result<bool, End> {
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

    fn client_query(&mut self, core: &mut Core, len: usize) -> Result<(), End> {
        let fresh = self.c.buffer.fresh();
        let whole = fresh.len() >= len;
        let text = &fresh[frame::HEADER..fresh.len().min(len)];
        let text = if whole { text.strip_suffix(&[0]).unwrap_or(text) } else { text };
        core.account.statements.add(1);
        let effect = classify(text);
        let mut instead = None;
        if let Effect::Deallocate(Some(name)) = &effect {
            instead = self.deallocation(core, name)?;
        } else if effect != Effect::Nothing {
            let text = whole.then(|| String::from_utf8(text.to_vec()).ok()).flatten();
            self.note_effect(core, effect, text);
        }
        if let Some(statements) = &mut core.statements {
            statements.forget_unnamed();
        }
        if let Some(server) = &mut self.server {
            // Gone, unless the server skips this Query.
            server.unnamed_of = UNNAMED_OF_NOBODY;
        }
        match instead {
            Some(sql) => {
                self.c.discard(len);
                built(build::query(self.c.own(), &sql))?;
            }
            None => self.c.forward(len),
        }
        self.exchange.sent_query();
        Ok(())
    }

    /// `text` is given where the statement stands alone and can be repeated on another connection.
    fn note_effect(&mut self, core: &mut Core, effect: Effect, text: Option<String>) {
        let Some(server) = &mut self.server else { return };
        let alone = self.exchange.is_untouched();
        // Only an error from here on keeps the effect from happening.
        self.failed = false;
        match effect {
            Effect::Nothing => {}
            Effect::Unknown => server.carried.dirty = true,
            // The tenant's own variables are the router's: they are as they were before the next
            // transaction begins, whatever this one does with them.
            Effect::Set(name) | Effect::Reset(name) if core.seat.context.owns(&name) => {
                server.carried.lost = true;
                self.stall = true;
            }
            Effect::Settings(names) if names.iter().all(|name| core.seat.context.owns(name)) => {
                server.carried.lost = true;
                self.stall = true;
            }
            Effect::Settings(names) => {
                server.short_lived |= names.iter().any(|name| name == "idle_session_timeout");
                self.pin(core, Pin::Setting);
            }
            // It would end the connection in the pool, under whoever has it then.
            Effect::Set(name) if name == "idle_session_timeout" => {
                server.short_lived = true;
                self.pin(core, Pin::Setting);
            }
            Effect::Set(name) => match text {
                Some(text) if alone => {
                    self.pending = Some(Pending::Wish(name, text));
                    self.stall = true;
                }
                _ => self.pin(core, Pin::Setting),
            },
            Effect::Reset(name) => {
                if alone {
                    self.pending = Some(Pending::Unwish(name));
                    self.stall = true;
                } else {
                    self.pin(core, Pin::Setting);
                }
            }
            Effect::ResetAll => {
                // The tenant's variables go with the rest; they are set again before anything else.
                server.carried.lost = true;
                self.stall = true;
                self.pending = Some(Pending::ResetAll);
            }
            Effect::DiscardAll => {
                server.carried.lost = true;
                self.stall = true;
                self.pending = Some(Pending::DiscardAll);
            }
            Effect::Deallocate(None) => {
                self.stall = true;
                self.pending = Some(Pending::DeallocateAll);
            }
            Effect::Deallocate(Some(_)) => {}
            Effect::Pin(pin) => self.pin(core, pin),
        }
    }

    fn pin(&mut self, core: &mut Core, pin: Pin) {
        if let Some(server) = &mut self.server {
            server.carried.dirty = true;
            // Whatever was set may have been the tenant's own variable.
            server.carried.lost |= pin == Pin::Setting;
        }
        if core.pin.is_none() {
            self.fresh_pin = true;
            core.pin = Some(pin);
            core.shared.stats.pins.add(pin);
            tracing::debug!(session = core.id, tenant = %core.who.tenant, reason = pin.label(), "session pinned");
        }
    }

    fn client_parse(&mut self, core: &mut Core, len: usize) -> Result<bool, End> {
        let max = core.shared.settings().limits.statement_bytes;
        if len > max && self.c.buffer.fresh().get(frame::HEADER) == Some(&0) {
            // Too large to be kept, and without a name: it passes, and is good for this exchange.
            core.statements().forget_unnamed();
            self.exchange.sent_extended(Owed::ParseUnnamed);
            self.c.forward(len);
            return Ok(true);
        }
        if !self.is_whole(len, max)? {
            return Ok(false);
        }
        let body = self.c.buffer.fresh()[frame::HEADER..len].to_vec();
        let parse = message::parse(&body).map_err(|_| violation("invalid message format".to_owned()))?;
        if self.exchange.is_skipping() {
            self.c.forward(len);
            return Ok(true);
        }
        if parse.name.is_empty() {
            // What it does is noted now: it is seldom prepared and not run.
            let mut instead = None;
            match classify(parse.sql) {
                Effect::Nothing => {}
                Effect::Deallocate(Some(name)) => instead = self.deallocation(core, &name)?,
                effect => self.note_effect(core, effect, String::from_utf8(parse.sql.to_vec()).ok()),
            }
            core.statements().keep_unnamed(parse.sql, parse.types);
            if let Some(server) = &mut self.server {
                server.unnamed_of = core.id;
            }
            if let Some(sql) = instead {
                self.c.discard(len);
                built(build::parse(self.c.own(), b"", &sql, parse.types))?;
            } else {
                self.c.forward(len);
            }
            self.exchange.sent_extended(Owed::ParseUnnamed);
            return Ok(true);
        }
        // If the server skips it after an error, the name means what it meant: what follows this
        // group must wait until that is known.
        self.stall = true;
        self.c.discard(len);
        let statement = core.shared.statements.get(parse.sql, parse.types);
        if core.statements().contains(parse.name) {
            // PostgreSQL must be the one to refuse it: the text, or the transaction, may be at fault
            // as well. So the text gets a name of ours, and then is given that name once more.
            self.ensure_statement(core, &statement)?;
            built(build::parse(self.c.own(), &statement.name, parse.sql, parse.types))?;
            self.exchange.sent_extended(Owed::ParseDuplicate(parse.name.into()));
            return Ok(true);
        }
        let limit = core.shared.settings().limits.statements_per_client;
        if core.statements().len() >= limit {
            return Err(End::Fatal(
                ErrorResponse::fatal(sqlstate::PROGRAM_LIMIT_EXCEEDED, "too many prepared statements")
                    .detail(format!("The limit is {limit} for each client.")),
            ));
        }
        let Some(server) = &mut self.server else { return Ok(true) };
        if self.exchange.status != b'E' && server.statements.touch(statement.id) {
            built(build::close(self.c.own(), b'S', NO_STATEMENT))?;
            self.exchange.sent_extended(Owed::ParseAsClose(parse.name.into()));
            core.shared.stats.statement_reuses.add(1);
        } else {
            self.make_room_for(core, &statement)?;
            built(build::parse(self.c.own(), &statement.name, parse.sql, parse.types))?;
            self.exchange.sent_extended(Owed::Parse(parse.name.into(), statement.clone()));
            core.shared.stats.statement_parses.add(1);
        }
        core.statements().insert(parse.name, statement);
        Ok(true)
    }

    /// Notes that the server gets `statement`, and closes the one that makes room for it.
    fn make_room_for(&mut self, core: &Core, statement: &std::sync::Arc<Statement>) -> Result<(), End> {
        let Some(server) = &mut self.server else { return Ok(()) };
        if let Some(evicted) = server.statements.insert(statement) {
            built(build::close(self.c.own(), b'S', &evicted.name))?;
            self.exchange.sent_extended(Owed::Evict(Some(evicted)));
            core.shared.stats.statement_evictions.add(1);
        }
        Ok(())
    }

    /// Prepares `statement` on the server, if it is not there.
    fn ensure_statement(&mut self, core: &Core, statement: &std::sync::Arc<Statement>) -> Result<(), End> {
        let Some(server) = &mut self.server else { return Ok(()) };
        if server.statements.touch(statement.id) {
            return Ok(());
        }
        self.make_room_for(core, statement)?;
        built(build::parse(self.c.own(), &statement.name, statement.sql(), statement.types()))?;
        self.exchange.sent_extended(Owed::Inject(Some(statement.clone())));
        core.shared.stats.statement_parses.add(1);
        Ok(())
    }

    /// Prepares the session's unnamed statement on the server, if it has another one there.
    fn ensure_unnamed(&mut self, core: &mut Core) -> Result<(), End> {
        let Some(server) = &mut self.server else { return Ok(()) };
        if server.unnamed_of == core.id {
            return Ok(());
        }
        if let Some((sql, types)) = core.statements.as_ref().and_then(|s| s.unnamed()) {
            built(build::parse(self.c.own(), b"", sql, types))?;
            self.exchange.sent_extended(Owed::Inject(None));
            server.unnamed_of = core.id;
        } else {
            // Another session's, or the router's own, or none: none is what the client must find.
            built(build::close(self.c.own(), b'S', b""))?;
            self.exchange.sent_extended(Owed::Evict(None));
            server.unnamed_of = core.id;
        }
        Ok(())
    }

    fn client_bind(&mut self, core: &mut Core, len: usize) -> Result<bool, End> {
        let fresh = self.c.buffer.fresh();
        let here = fresh.len().min(len);
        let names = message::bind_names(&fresh[frame::HEADER..here])
            .map_err(|_| violation("invalid message format".to_owned()))?;
        let Some(names) = names else {
            if here == len || self.c.buffer.room().is_empty() {
                return Err(violation("invalid message format".to_owned()));
            }
            return Ok(false);
        };
        if self.exchange.is_skipping() {
            self.c.forward(len);
            return Ok(true);
        }
        if names.statement.is_empty() {
            self.ensure_unnamed(core)?;
            self.exchange.sent_extended(Owed::Bind);
            self.c.forward(len);
            return Ok(true);
        }
        let known = core.statements.as_ref().and_then(|s| s.get(names.statement)).cloned();
        let unknown_of_ours = known.is_none() && names.statement.starts_with(NAME_PREFIX);
        if known.is_none() && !unknown_of_ours {
            // PostgreSQL says by the client's own name that there is none, or knows it from PREPARE.
            self.exchange.sent_extended(Owed::Bind);
            self.c.forward(len);
            return Ok(true);
        }
        let (rest, old) = (frame::HEADER + names.rest, names.statement.len());
        let portal: SmallVec<[u8; 64]> = SmallVec::from_slice(names.portal);
        if let Some(statement) = &known {
            if statement.effect != Effect::Nothing {
                let text = String::from_utf8(statement.sql().to_vec()).ok();
                self.note_effect(core, statement.effect.clone(), text);
            }
            self.ensure_statement(core, statement)?;
        }
        let server_name = known.as_ref().map_or(NO_STATEMENT, |statement| &statement.name);
        let declared = (len - 1 - old + server_name.len()) as u32;
        self.c.buffer.swallow(rest);
        let out = self.c.own();
        out.push(frontend::BIND);
        out.extend_from_slice(&declared.to_be_bytes());
        out.extend_from_slice(&portal);
        out.push(0);
        out.extend_from_slice(server_name);
        out.push(0);
        self.exchange.sent_extended(Owed::Bind);
        self.c.forward(len - rest);
        Ok(true)
    }

    /// The name on the server of the client's statement, which is prepared there if need be. None
    /// if the client has no such statement: then the server is asked by the client's own name, and
    /// says what it always says.
    fn server_name_of(&mut self, core: &mut Core, name: Vec<u8>) -> Result<Option<Box<[u8]>>, End> {
        match core.statements.as_ref().and_then(|s| s.get(&name)).cloned() {
            Some(statement) => {
                self.ensure_statement(core, &statement)?;
                Ok(Some(statement.name.clone()))
            }
            // A name of ours on the server is nobody's to guess.
            None if name.starts_with(NAME_PREFIX) => Ok(Some(NO_STATEMENT.into())),
            None => Ok(None),
        }
    }

    fn client_describe(&mut self, core: &mut Core, len: usize) -> Result<bool, End> {
        if !self.is_whole(len, crate::buffer::BUFFER_BYTES)? {
            return Ok(false);
        }
        let body = &self.c.buffer.fresh()[frame::HEADER..len];
        let target = message::describe(body).map_err(|_| violation("invalid message format".to_owned()))?;
        if self.exchange.is_skipping() || target.kind != b'S' {
            self.exchange.sent_extended(Owed::Describe);
            self.c.forward(len);
            return Ok(true);
        }
        let name = target.name.to_vec();
        if name.is_empty() {
            self.ensure_unnamed(core)?;
        } else if let Some(server_name) = self.server_name_of(core, name)? {
            self.c.discard(len);
            built(build::describe(self.c.own(), b'S', &server_name))?;
            self.exchange.sent_extended(Owed::Describe);
            return Ok(true);
        }
        self.exchange.sent_extended(Owed::Describe);
        self.c.forward(len);
        Ok(true)
    }

    fn client_close(&mut self, core: &mut Core, len: usize) -> Result<bool, End> {
        if !self.is_whole(len, crate::buffer::BUFFER_BYTES)? {
            return Ok(false);
        }
        let body = &self.c.buffer.fresh()[frame::HEADER..len];
        let target = message::close(body).map_err(|_| violation("invalid message format".to_owned()))?;
        if self.exchange.is_skipping() {
            self.c.forward(len);
            return Ok(true);
        }
        let (kind, name) = (target.kind, target.name.to_vec());
        if kind != b'S' {
            self.exchange.sent_extended(Owed::Close);
            self.c.forward(len);
            return Ok(true);
        }
        if name.is_empty() {
            core.statements().forget_unnamed();
            self.exchange.sent_extended(Owed::Close);
            self.c.forward(len);
            return Ok(true);
        }
        let Some(statement) = core.statements().remove(&name) else {
            if name.starts_with(NAME_PREFIX) {
                self.c.discard(len);
                built(build::close(self.c.own(), b'S', NO_STATEMENT))?;
            } else {
                self.c.forward(len);
            }
            self.exchange.sent_extended(Owed::Close);
            return Ok(true);
        };
        // If the server skips it after an error, the client still has it: what follows must wait.
        self.stall = true;
        // Closed on the server as well: drivers do this to have a statement prepared anew after its
        // tables have changed.
        self.c.discard(len);
        let on_server = self.server.as_mut().is_some_and(|server| server.statements.remove(statement.id));
        let there: &[u8] = if on_server { &statement.name } else { NO_STATEMENT };
        built(build::close(self.c.own(), b'S', there))?;
        self.exchange.sent_extended(Owed::CloseStatement { name: name.into(), statement, on_server });
        Ok(true)
    }

    /// The text that deallocates on the server what the client calls `name`, if the client has
    /// prepared that by the protocol.
    fn deallocation(&mut self, core: &mut Core, name: &str) -> Result<Option<Vec<u8>>, End> {
        let Some(statement) = core.statements.as_ref().and_then(|s| s.get(name.as_bytes())).cloned() else {
            return Ok(None);
        };
        self.ensure_statement(core, &statement)?;
        self.stall = true;
        self.failed = false;
        self.pending = Some(Pending::Deallocate(name.as_bytes().into()));
        Ok(Some([b"DEALLOCATE ", &statement.name[..]].concat()))
    }
}

/// What was read from the client within its limits can always be built again.
fn built(built: Result<(), build::BuildError>) -> Result<(), End> {
    built.map_err(|error| violation(error.to_string()))
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

fn violation(text: String) -> End {
    End::Fatal(ErrorResponse::fatal(sqlstate::PROTOCOL_VIOLATION, text))
}
