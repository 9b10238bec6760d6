//! Prepared statements: the messages that make, use and close them.

use std::sync::Arc;

use smallvec::SmallVec;
use switchyard_wire::error::{ErrorResponse, sqlstate};
use switchyard_wire::frame::{self, frontend};
use switchyard_wire::{build, message};

use super::client_half::{built, violation};
use super::pending::Pending;
use super::relay::Relay;
use super::{Core, End};
use crate::classify::reach::reach;
use crate::classify::{Effect, asks_for_last_values, classify, read_only};
use crate::context::is_parsed_by;
use crate::exchange::Owed;
use crate::server::UNNAMED_OF_NOBODY;
use crate::statements::{NAME_PREFIX, NO_STATEMENT, Statement, TRIED_STATEMENT};

/// Room for the text of a Parse that a relay keeps for the next one, in bytes.
const PARSING_BYTES: usize = 4096;

impl Relay {
    pub(super) fn client_parse(&mut self, core: &mut Core, len: usize) -> Result<bool, End> {
        let max = core.shared.settings().limits.statement_bytes;
        if len > max && self.c.buffer.fresh().get(frame::HEADER) == Some(&0) {
            // Too large to be kept, and without a name: it passes, and is good for this exchange.
            self.drop_unnamed(core);
            if let Some(server) = &mut self.server {
                server.unnamed_of = core.unnamed();
            }
            self.exchange.sent_extended(Owed::ParseUnnamed(core.statements().unnamed_serial()));
            self.c.forward(len);
            return Ok(true);
        }
        if !self.is_whole(len, max)? {
            return Ok(false);
        }
        let mut body = std::mem::take(&mut self.parsing);
        body.extend_from_slice(&self.c.buffer.fresh()[frame::HEADER..len]);
        let dealt_with = self.client_parse_body(core, len, &body);
        if body.capacity() <= PARSING_BYTES {
            body.clear();
            self.parsing = body;
        }
        dealt_with
    }

    /// The Parse of `len` bytes that the fresh bytes begin with, of which `body` is a copy.
    fn client_parse_body(&mut self, core: &mut Core, len: usize, body: &[u8]) -> Result<bool, End> {
        let mut parse = message::parse(body).map_err(|_| violation("invalid message format".to_owned()))?;
        if self.exchange.is_skipping() {
            self.c.forward(len);
            return Ok(true);
        }
        core.seat.shard_account.parses.add(1);
        let refused = core.seat.context.read_only && read_only::asks_to_write(parse.sql);
        if refused {
            parse.sql = read_only::REFUSAL;
        }
        if parse.name.is_empty() {
            // What it does is noted now: it is seldom prepared and not run.
            let mut instead = refused.then(|| parse.sql.to_vec());
            let effect = classify(parse.sql);
            let (reach, is_noted) = (reach(parse.sql), effect == Effect::Unknown);
            match &effect {
                Effect::Nothing if core.pin.is_none() => {
                    self.ensure_mentioned(core, len, frame::HEADER + 1);
                    self.note_plain(core, parse.sql);
                }
                Effect::Deallocate(Some(name)) => instead = self.deallocation(core, name)?,
                effect => {
                    match effect {
                        Effect::Execute(name) | Effect::Prepare(name) => self.ensure_by_name(core, name),
                        _ => self.ensure_mentioned(core, len, frame::HEADER + 1),
                    }
                    self.note_effect(core, effect.clone(), String::from_utf8(parse.sql.to_vec()).ok());
                }
            }
            self.note_reach(core, reach, is_noted, |_| String::from_utf8(parse.sql.to_vec()).ok());
            self.parsed_unnamed = true;
            if self.exchange.may_skip() {
                self.drop_unnamed(core);
            }
            core.statements().keep_unnamed(parse.sql, parse.types, effect);
            if let Some(server) = &mut self.server {
                server.unnamed_of = core.unnamed();
            }
            if let Some(sql) = instead {
                self.c.discard(len);
                built(build::parse(self.c.own(), b"", &sql, parse.types))?;
            } else {
                self.c.forward(len);
            }
            self.exchange.sent_extended(Owed::ParseUnnamed(core.statements().unnamed_serial()));
            core.seat.shard_account.server_parses.add(1);
            return Ok(true);
        }
        // If the server skips it after an error, the name means what it meant: what follows this
        // group must wait until that is known.
        self.stall = true;
        let settings = self.parsed_under(core);
        let statement = core.shared.statements.get(parse.sql, parse.types, settings);
        self.arm_replan(&statement);
        if statement.effect == Effect::Unknown && asks_for_last_values(parse.sql) {
            core.seat.hidden.has_used_last_values();
        }
        self.c.discard(len);
        let by_sql = std::str::from_utf8(parse.name).ok();
        if core.statements().contains(parse.name)
            || by_sql.is_some_and(|name| core.statements().by_sql(name).is_some())
        {
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
        let is_there = server.statements.touch(statement.id);
        if is_there && (self.exchange.status == b'E' || !self.exchange.is_calm()) {
            // Where the transaction has failed, or may have by what is on its way, PostgreSQL must be the one to
            // refuse most texts.
            built(build::parse(self.c.own(), TRIED_STATEMENT, parse.sql, parse.types))?;
            self.exchange.sent_extended(Owed::ParseAgain(parse.name.into()));
            built(build::close(self.c.own(), b'S', TRIED_STATEMENT))?;
            self.exchange.sent_extended(Owed::CloseTried);
        } else if is_there {
            built(build::close(self.c.own(), b'S', NO_STATEMENT))?;
            self.exchange.sent_extended(Owed::ParseAsClose(parse.name.into()));
            core.shared.stats.statement_reuses.add(1);
        } else {
            self.make_room_for(core, &statement)?;
            built(build::parse(self.c.own(), &statement.name, parse.sql, parse.types))?;
            self.exchange.sent_extended(Owed::Parse(parse.name.into(), statement.clone()));
            core.shared.stats.statement_parses.add(1);
            core.seat.shard_account.server_parses.add(1);
        }
        core.statements().insert(parse.name, statement);
        Ok(true)
    }

    /// The unnamed statement goes with what is sent next; it is put back if the server skips that.
    pub(super) fn drop_unnamed(&mut self, core: &mut Core) {
        if self.exchange.may_skip() {
            let on_server_of = self.server.as_ref().map_or(UNNAMED_OF_NOBODY, |server| server.unnamed_of);
            self.exchange.replaces(core.statements().save_unnamed(), on_server_of);
            // What it is must be known before anything else is done with it.
            self.stall = true;
        } else if let Some(statements) = &mut core.statements {
            statements.forget_unnamed();
        }
    }

    /// Notes that the server gets `statement`, and closes the one that makes room for it.
    fn make_room_for(&mut self, core: &Core, statement: &Arc<Statement>) -> Result<(), End> {
        let Some(server) = &mut self.server else { return Ok(()) };
        if let Some(evicted) = server.statements.insert(statement) {
            built(build::close(self.c.own(), b'S', &evicted.name))?;
            self.exchange.sent_extended(Owed::Evict(Some(evicted)));
            core.shared.stats.statement_evictions.add(1);
        }
        Ok(())
    }

    /// The settings that a text is parsed under which is sent now; none if they are not known.
    fn parsed_under(&self, core: &Core) -> Option<u64> {
        use super::pending::Pending::{DiscardAll, ResetAll, Unwish, Wish};
        let touched = self.touched.as_ref();
        let unknown = self.parses_otherwise
            || core.parses_unknown
            || touched.is_some_and(|t| t.all || t.names.iter().any(|name| is_parsed_by(name)))
            || self.pending.any(|pending| match pending {
                Wish(name, _) | Unwish(name) => is_parsed_by(name),
                ResetAll | DiscardAll => true,
                _ => false,
            });
        (!unknown).then(|| core.wishes.parsed_under())
    }

    /// Whether the server has `statement`.
    fn has(&mut self, statement: &Statement) -> bool {
        self.server.as_mut().is_some_and(|server| server.statements.touch(statement.id))
    }

    /// What the client's statement `name` is where the server lacks it: `statement`, or another one where that
    /// would be parsed under other settings than it is known by.
    #[cold]
    fn renewed(&self, core: &mut Core, name: &[u8], statement: Arc<Statement>) -> Arc<Statement> {
        let settings = self.parsed_under(core);
        if statement.parsed_under.is_none() || statement.parsed_under == settings {
            return statement;
        }
        let anew = core.shared.statements.get(statement.sql(), statement.types(), settings);
        core.statements().insert(name, anew.clone());
        anew
    }

    /// Prepares `statement` on the server, if it is not there.
    fn ensure_statement(&mut self, core: &Core, statement: &Arc<Statement>) -> Result<(), End> {
        let Some(server) = &mut self.server else { return Ok(()) };
        if server.statements.touch(statement.id) {
            return Ok(());
        }
        self.make_room_for(core, statement)?;
        built(build::parse(self.c.own(), &statement.name, statement.sql(), statement.types()))?;
        self.exchange.sent_extended(Owed::Inject(Some(statement.clone())));
        // It is counted on ahead: what comes behind this group waits until that is known.
        self.stall = true;
        core.shared.stats.statement_parses.add(1);
        core.seat.shard_account.server_parses.add(1);
        Ok(())
    }

    /// Prepares the session's unnamed statement on the server, if it has another one there.
    fn ensure_unnamed(&mut self, core: &mut Core) -> Result<(), End> {
        let Some(server) = &mut self.server else { return Ok(()) };
        if server.unnamed_of == core.unnamed() {
            return Ok(());
        }
        if let Some((sql, types)) = core.statements.as_ref().and_then(|s| s.unnamed()) {
            built(build::parse(self.c.own(), b"", sql, types))?;
            self.exchange.sent_extended(Owed::Inject(None));
        } else {
            // Another session's, or the router's own, or none: none is what the client must find.
            built(build::close(self.c.own(), b'S', b""))?;
            self.exchange.sent_extended(Owed::Evict(None));
        }
        server.unnamed_of = core.unnamed();
        self.stall = true;
        Ok(())
    }

    pub(super) fn client_bind(&mut self, core: &mut Core, len: usize) -> Result<bool, End> {
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
        core.seat.shard_account.binds.add(1);
        let of_unnamed = names.portal.is_empty();
        if names.statement.is_empty() {
            let after = frame::HEADER + names.rest;
            // What it does was noted with its Parse, for the first time that it is bound.
            if !std::mem::take(&mut self.parsed_unnamed) {
                self.note_unnamed_again(core);
            }
            self.note_parameters(after, len);
            self.ensure_unnamed(core)?;
            self.exchange.sent_bind(of_unnamed);
            self.c.forward(len);
            return Ok(true);
        }
        let mut known = core.statements.as_ref().and_then(|s| s.get(names.statement)).cloned();
        let unknown_of_ours = known.is_none() && names.statement.starts_with(NAME_PREFIX);
        if known.is_none() && !unknown_of_ours {
            if let Ok(name) = std::str::from_utf8(names.statement) {
                let name = name.to_owned();
                self.ensure_by_name(core, &name);
            }
            // PostgreSQL says by the client's own name that there is none, or knows it from PREPARE.
            self.exchange.sent_bind(of_unnamed);
            self.c.forward(len);
            return Ok(true);
        }
        let (rest, old) = (frame::HEADER + names.rest, names.statement.len());
        let portal: SmallVec<[u8; 64]> = SmallVec::from_slice(names.portal);
        if let Some(statement) = &mut known {
            let name: SmallVec<[u8; 64]> = SmallVec::from_slice(names.statement);
            let there = self.has(statement);
            if !there {
                *statement = self.renewed(core, &name, statement.clone());
            }
            self.arm_replan(statement);
            if statement.effect == Effect::Nothing {
                self.note_plain(core, statement.sql());
            } else {
                let text = String::from_utf8(statement.sql().to_vec()).ok();
                self.note_effect(core, statement.effect.clone(), text);
                self.note_parameters(rest, len);
            }
            let is_noted = statement.effect == Effect::Unknown;
            self.note_reach(core, statement.reach, is_noted, |_| {
                String::from_utf8(statement.sql().to_vec()).ok()
            });
            if !there {
                self.ensure_statement(core, statement)?;
            }
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
        self.exchange.sent_bind(of_unnamed);
        self.c.forward(len - rest);
        Ok(true)
    }

    /// The unnamed statement is used in another group than it was prepared in.
    fn note_unnamed_again(&mut self, core: &mut Core) {
        let Some(statements) = &core.statements else { return };
        let effect = statements.unnamed_effect().cloned();
        let Some((sql, _)) = statements.unnamed() else { return };
        let (reach, is_noted) = (reach(sql), effect == Some(Effect::Unknown));
        let text = || String::from_utf8(sql.to_vec()).ok();
        self.note_reach(core, reach, is_noted, |_| text());
        if let Some(effect) = effect {
            let text = text();
            self.note_effect(core, effect, text);
        }
    }

    /// Where a setting was touched whose name is not known: it may be among the parameters of the Bind
    /// of `len` bytes, that follow its first `after`.
    fn note_parameters(&mut self, after: usize, len: usize) {
        let Some(touched) = self.touched.as_mut().filter(|touched| touched.all) else { return };
        let fresh = self.c.buffer.fresh();
        let Some(Ok(parameters)) = fresh.get(after..len).map(message::bind_parameters) else { return };
        let texts = parameters.values.filter_map(|value| std::str::from_utf8(value.ok()??).ok());
        let names = texts.filter(|text| text.len() < 64 && text.contains('.') && !text.contains(['\0', ' ']));
        touched.names.extend(names.take(8).map(str::to_ascii_lowercase));
    }

    /// The name on the server of the client's statement, which is prepared there if need be. None
    /// if the client has no such statement: then the server is asked by the client's own name, and
    /// says what it always says.
    fn server_name_of(&mut self, core: &mut Core, name: Vec<u8>) -> Result<Option<Box<[u8]>>, End> {
        match core.statements.as_ref().and_then(|s| s.get(&name)).cloned() {
            Some(mut statement) => {
                let there = self.has(&statement);
                if !there {
                    statement = self.renewed(core, &name, statement);
                }
                self.arm_replan(&statement);
                if !there {
                    self.ensure_statement(core, &statement)?;
                }
                Ok(Some(statement.name.clone()))
            }
            // A name of ours on the server is nobody's to guess.
            None if name.starts_with(NAME_PREFIX) => Ok(Some(NO_STATEMENT.into())),
            None => Ok(None),
        }
    }

    pub(super) fn client_describe(&mut self, core: &mut Core, len: usize) -> Result<bool, End> {
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
        } else if let Some(server_name) = self.server_name_of(core, name.clone())? {
            self.c.discard(len);
            built(build::describe(self.c.own(), b'S', &server_name))?;
            self.exchange.sent_extended(Owed::Describe);
            return Ok(true);
        } else if let Ok(name) = String::from_utf8(name) {
            self.ensure_by_name(core, &name);
        }
        self.exchange.sent_extended(Owed::Describe);
        self.c.forward(len);
        Ok(true)
    }

    pub(super) fn client_close(&mut self, core: &mut Core, len: usize) -> Result<bool, End> {
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
            self.drop_unnamed(core);
            self.exchange.sent_extended(Owed::Close);
            self.c.forward(len);
            return Ok(true);
        }
        let by_name = std::str::from_utf8(&name).ok();
        let by_name =
            by_name.filter(|name| self.server.as_ref().is_some_and(|s| s.sql_names.contains(*name)));
        let by_name: Option<Box<str>> = by_name.map(Into::into);
        if let Some(server) = &mut self.server
            && let Some(name) = &by_name
        {
            // As below: what follows must wait until it is known whether this was skipped.
            self.stall = true;
            server.sql_names.remove(&**name);
        }
        let Some(statement) = core.statements().remove(&name) else {
            if let Ok(name) = std::str::from_utf8(&name)
                && let Some(sql) = core.statements().take_by_sql(name)
            {
                self.stall = true;
                let (name, on_server) = (name.into(), by_name.is_some());
                self.c.forward(len);
                self.exchange.sent_extended(Owed::ClosePrepared { name, sql, on_server });
                return Ok(true);
            }
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
        self.exchange.sent_extended(Owed::CloseStatement { name: name.clone().into(), statement, on_server });
        if let Some(by_name) = by_name {
            built(build::close(self.c.own(), b'S', &name))?;
            self.exchange.sent_extended(Owed::CloseByName(by_name));
        }
        Ok(true)
    }

    /// The text that deallocates on the server what the client calls `name`, if the client has
    /// prepared that by the protocol.
    pub(super) fn deallocation(&mut self, core: &mut Core, name: &str) -> Result<Option<Vec<u8>>, End> {
        if core.statements.as_ref().is_some_and(|s| s.by_sql(name).is_some()) {
            self.ensure_by_name(core, name);
            self.expect(Pending::Deallocate(name.as_bytes().into()));
            return Ok(None);
        }
        let Some(statement) = core.statements.as_ref().and_then(|s| s.get(name.as_bytes())).cloned() else {
            // One that the connection has for others is not the client's to take away.
            let foreign = name.as_bytes().starts_with(NAME_PREFIX);
            return Ok(foreign.then(|| [b"DEALLOCATE ", NO_STATEMENT].concat()));
        };
        if self.server.as_ref().is_some_and(|server| server.sql_names.contains(name)) {
            self.expect(Pending::Deallocate(name.as_bytes().into()));
            return Ok(None);
        }
        self.ensure_statement(core, &statement)?;
        self.expect(Pending::Deallocate(name.as_bytes().into()));
        Ok(Some([b"DEALLOCATE ", &statement.name[..]].concat()))
    }
}
