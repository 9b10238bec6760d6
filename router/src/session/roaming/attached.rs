//! What a roaming session's client sends while it has a server connection: whether it is still for the same tenant.

use switchyard_wire::error::{ErrorResponse, SqlState, sqlstate};
use switchyard_wire::frame::{self, frontend};
use switchyard_wire::{build, message};

use super::super::client_half::{built, violation};
use super::super::relay::Relay;
use super::super::{Core, End};
use super::scout::{Look, bound, text_of_roaming};
use super::{Need, Portal, Sent, changes};
use crate::classify::{Pin, read_only};
use crate::exchange::Owed;
use crate::roaming::comment;
use crate::roaming::read::{self, Step};

/// What the server is sent in place of what is refused: an error at once, whatever it is in the middle of.
const REFUSED: &[u8] = b"refused by the router";

/// OID of `set_config(text, text, bool)`. // src/include/catalog/pg_proc.dat
const SET_CONFIG_OID: [u8; 4] = 2078_u32.to_be_bytes();

impl Relay {
    /// A message that comes while there is a server connection.
    pub(in super::super) fn escort(&mut self, core: &mut Core, header: frame::Header) -> Result<Look, End> {
        let Some(roaming) = &mut core.roaming else { return Ok(Look::On) };
        let passes = matches!(
            header.tag,
            frontend::FLUSH
                | frontend::COPY_DATA
                | frontend::COPY_DONE
                | frontend::COPY_FAIL
                | frontend::TERMINATE
        );
        if passes {
            return Ok(Look::On);
        }
        if header.tag == frontend::SYNC {
            roaming.sent.push_back(Sent::End);
            roaming.portals.clear();
            return Ok(Look::On);
        }
        if self.exchange.is_skipping() {
            return Ok(Look::On);
        }
        let track = roaming.ahead(&core.wishes);
        if !self.exchange.is_open() && !self.exchange.is_calm() && !track.block {
            // Each is for whom it says, and for that the one before must be over.
            return Ok(Look::Wait);
        }
        match header.tag {
            frontend::QUERY => self.escort_query(core, header.len),
            frontend::BIND => self.escort_bind(core, header.len),
            frontend::EXECUTE => {
                if self.c.buffer.fresh().len() < header.len {
                    return if self.is_whole(header.len, crate::buffer::BUFFER_BYTES)? {
                        Ok(Look::On)
                    } else {
                        Ok(Look::More)
                    };
                }
                let body = &self.c.buffer.fresh()[frame::HEADER..header.len];
                let execute =
                    message::execute(body).map_err(|_| violation("invalid message format".to_owned()))?;
                let Some(roaming) = &mut core.roaming else { return Ok(Look::On) };
                let step = roaming.portals.iter().find(|portal| *portal.name == *execute.portal);
                let step = step.map_or(Step::Runs, |portal| portal.step.clone());
                self.stall |= !step.is_plain();
                roaming.sent.push_back(Sent::Step(step));
                Ok(Look::On)
            }
            frontend::FUNCTION_CALL => {
                if !self.is_whole(frame::HEADER + 4, crate::buffer::BUFFER_BYTES)? {
                    return Ok(Look::More);
                }
                let oid = self.c.buffer.fresh().get(frame::HEADER..frame::HEADER + 4);
                let refused = if oid == Some(&SET_CONFIG_OID) {
                    let text = "set_config cannot be called by the fast path";
                    Err(ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
                        .hint("Use SET, or SELECT set_config(..)."))
                } else {
                    check(core, &[Step::Runs], None, self.exchange.status)
                };
                if let Some(roaming) = &mut core.roaming {
                    roaming.sent.push_back(Sent::End);
                }
                if let Err(error) = refused {
                    self.c.discard(header.len);
                    self.refuse_query(core, error)?;
                    return Ok(Look::Done);
                }
                Ok(Look::On)
            }
            _ => Ok(Look::On),
        }
    }

    fn escort_query(&mut self, core: &mut Core, len: usize) -> Result<Look, End> {
        let max = core.shared.settings().limits.statement_bytes;
        if !self.is_whole(len, max)? {
            return Ok(Look::More);
        }
        let Some(roaming) = &mut core.roaming else { return Ok(Look::On) };
        let rules = roaming.rules.clone();
        let text = self.query_text(len);
        let steps: Vec<Step> =
            read::read(&rules, text).into_iter().map(|s| s.step.with(&rules, &[])).collect();
        let said = rules.comment.as_deref().and_then(|key| comment::whom(text, key));
        let checked = check(core, &steps, said.as_ref(), self.exchange.status);
        let Some(roaming) = &mut core.roaming else { return Ok(Look::On) };
        match checked {
            Ok(()) => {
                self.stall |= steps.iter().any(|step| !step.is_plain());
                roaming.sets_own = matches!(steps.as_slice(), [Step::Set { select: false, .. }]);
                roaming.sent.extend(steps.into_iter().map(Sent::Step));
                roaming.sent.push_back(Sent::End);
                Ok(Look::On)
            }
            Err(error) => {
                roaming.sent.push_back(Sent::End);
                self.c.discard(len);
                self.refuse_query(core, error)?;
                Ok(Look::Done)
            }
        }
    }

    fn escort_bind(&mut self, core: &mut Core, len: usize) -> Result<Look, End> {
        let malformed = || violation("invalid message format".to_owned());
        let fresh = self.c.buffer.fresh();
        let here = fresh.len().min(len);
        let Some(names) = message::bind_names(&fresh[frame::HEADER..here]).map_err(|_| malformed())? else {
            return if here == len { Err(malformed()) } else { Ok(Look::More) };
        };
        let Some(roaming) = &mut core.roaming else { return Ok(Look::On) };
        let rules = roaming.rules.clone();
        let portal: Box<[u8]> = names.portal.into();
        let Some(sql) = text_of_roaming(core.statements.as_deref(), &[], names.statement) else {
            // One that was made by PREPARE, or none.
            return self.bind_or_refuse(core, len, portal, Step::Runs, None);
        };
        let said = rules.comment.as_deref().and_then(|key| comment::whom(&sql, key));
        let rest = names.rest;
        let plain = super::scout::first(&rules, &sql) == Step::Runs;
        if !plain {
            let max = core.shared.settings().limits.statement_bytes;
            if !self.is_whole(len, max)? {
                return Ok(Look::More);
            }
        }
        let fresh = self.c.buffer.fresh();
        let after = fresh.get(frame::HEADER + rest..len.min(fresh.len()));
        let step = if plain { Step::Runs } else { bound(&rules, &sql, after) };
        self.bind_or_refuse(core, len, portal, step, said)
    }

    fn bind_or_refuse(
        &mut self,
        core: &mut Core,
        len: usize,
        portal: Box<[u8]>,
        step: Step,
        said: Option<crate::roaming::Named>,
    ) -> Result<Look, End> {
        let checked = check(core, std::slice::from_ref(&step), said.as_ref(), self.exchange.status);
        match checked {
            Ok(()) => {
                if let Some(roaming) = &mut core.roaming {
                    roaming.portals.retain(|other| other.name != portal);
                    roaming.portals.push(Portal { name: portal, step, text: Box::default() });
                }
                Ok(Look::On)
            }
            Err(error) => {
                core.account.errors.add(1);
                if let Some(server) = &mut self.server {
                    server.unnamed_of = crate::server::UNNAMED_OF_NOBODY;
                }
                built(build::parse(self.c.own(), b"", REFUSED, &[0, 0]))?;
                self.exchange.sent_extended(Owed::RefusedGroup(Box::new(error)));
                // The server skips it, and all up to the Sync.
                self.exchange.sent_bind(false);
                self.c.forward(len);
                self.stall = true;
                Ok(Look::Done)
            }
        }
    }

    /// Has the server fail a Query in place of the client's.
    fn refuse_query(&mut self, core: &mut Core, error: ErrorResponse) -> Result<(), End> {
        if let Some(server) = &mut self.server {
            server.unnamed_of = crate::server::UNNAMED_OF_NOBODY;
        }
        if let Some(statements) = &mut core.statements {
            statements.forget_unnamed();
        }
        built(build::query(self.c.own(), REFUSED))?;
        self.exchange.sent_refused_query(error);
        self.stall = true;
        Ok(())
    }

    /// Puts what the router has answered since `BEGIN` in front of all else.
    pub(in super::super) fn open_transaction(&mut self, core: &Core) -> Result<(), End> {
        let Some(roaming) = core.roaming.as_ref().filter(|roaming| !roaming.opening.is_empty()) else {
            return Ok(());
        };
        let Some(server) = &mut self.server else { return Ok(()) };
        server.unnamed_of = crate::server::UNNAMED_OF_NOBODY;
        let begin: &[u8] = b"BEGIN";
        for (at, statement) in roaming.opening.iter().enumerate() {
            let refused = core.seat.context.read_only && read_only::asks_to_write(statement);
            // Without a BEGIN what follows would be run by itself.
            let instead: &[&[u8]] = match (refused, at) {
                (false, _) => &[statement],
                (true, 0) => &[begin, read_only::REFUSAL],
                (true, _) => &[read_only::REFUSAL],
            };
            for sql in instead {
                built(build::query(self.c.own(), sql))?;
                self.exchange.sent_own(Owed::OwnQuery(None));
            }
        }
        Ok(())
    }
}

/// Whether `steps` are for the tenant that the connection serves.
fn check(
    core: &mut Core,
    steps: &[Step],
    said: Option<&crate::roaming::Named>,
    status: u8,
) -> Result<(), ErrorResponse> {
    let Some(roaming) = &mut core.roaming else { return Ok(()) };
    let ends = matches!(
        steps.first(),
        Some(Step::Commit { .. } | Step::Rollback { .. } | Step::RollbackTo(_) | Step::PrepareTransaction)
    );
    if status == b'E' && !ends && !roaming.sent.iter().any(|sent| matches!(sent, Sent::Step(_))) {
        // It is not run, and PostgreSQL says so: the transaction has failed.
        return Ok(());
    }
    let track = roaming.ahead(&core.wishes);
    let commented = core.who.roams.as_ref().is_some_and(|roams| roams.commented);
    let serves = match core.who.tenant.is_nobody() {
        true => Need::Home,
        false => Need::Tenant(core.who.tenant.clone(), commented),
    };
    // A transaction stays with the tenant that a comment in it has named.
    let own = crate::roaming::Named::Tenant(core.who.tenant.clone());
    let said = said.or(if commented && track.block { Some(&own) } else { None });
    let need = roaming.need_where(&track, steps, said, true)?;
    let same = match (&need, &serves) {
        (Need::Nothing | Need::Anywhere, _) => true,
        (Need::Tenant(a, _), Need::Tenant(b, _)) => a == b,
        (need, serves) => need == serves,
    };
    if same {
        Ok(())
    } else if let (Some(pin), false) = (core.pin, track.block) {
        Err(pinned(pin))
    } else {
        Err(changes(&serves, &need))
    }
}

fn pinned(pin: Pin) -> ErrorResponse {
    let text = "cannot change the tenant of a session that keeps its server connection";
    ErrorResponse::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text)
        .detail(format!("What keeps it there is of this kind: {}.", pin.label()))
        .hint("Drop or close that first, or send DISCARD ALL.")
}

impl Core {
    /// A message of the router's own has failed with this error: whether it was a statement that the client has been
    /// told was carried out.
    pub(in super::super) fn put_off_failed(&mut self, error: &[u8]) -> bool {
        let Some(roaming) = self.roaming.as_mut().filter(|roaming| !roaming.opening.is_empty()) else {
            return false;
        };
        let Ok(fields) = message::ErrorFields::parse(error) else { return false };
        let text = |field: Option<&[u8]>| field.map(|text| String::from_utf8_lossy(text).into_owned());
        let code = fields.code().and_then(|code| <[u8; 5]>::try_from(code).ok()).map(SqlState);
        if code == Some(sqlstate::IN_FAILED_SQL_TRANSACTION) {
            // Because of one before.
            return true;
        }
        let mut late = ErrorResponse::error(
            code.unwrap_or(sqlstate::INTERNAL),
            text(fields.message()).unwrap_or_default(),
        );
        late.detail = text(fields.detail());
        late.hint = text(fields.hint());
        roaming.late.get_or_insert(late);
        true
    }

    /// What that failed with, once.
    pub(in super::super) fn put_off_error(&mut self) -> Option<ErrorResponse> {
        self.roaming.as_mut()?.late.take()
    }

    /// A statement of the client's has completed.
    #[inline]
    pub(in super::super) fn statement_completed(&mut self) {
        let Some(roaming) = &mut self.roaming else { return };
        if let Some(Sent::Step(_)) = roaming.sent.front()
            && let Some(Sent::Step(step)) = roaming.sent.pop_front()
            && (!step.is_plain() || roaming.track.is_some())
        {
            let mut track = match roaming.track.take() {
                Some(track) => track,
                None => crate::roaming::track::Track::new(roaming.session(&self.wishes).clone()),
            };
            track.apply(&step);
            roaming.track = Some(track);
        }
    }

    /// The server is ready for the client; `quiet` says that it owes nothing more.
    #[inline]
    pub(in super::super) fn server_ready(&mut self, status: u8, quiet: bool) {
        let Some(roaming) = &mut self.roaming else { return };
        while let Some(sent) = roaming.sent.pop_front() {
            if matches!(sent, Sent::End) {
                break;
            }
        }
        if quiet {
            roaming.sent.clear();
        }
        if status == b'I' {
            roaming.over();
        } else {
            let mut track = match roaming.track.take() {
                Some(track) => track,
                None => crate::roaming::track::Track::new(roaming.session(&self.wishes).clone()),
            };
            track.block = true;
            roaming.track = Some(track);
        }
    }
}
