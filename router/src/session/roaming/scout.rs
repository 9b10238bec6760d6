//! What a roaming session's client sends while it has no server connection: where it must go.

use switchyard_wire::error::{ErrorResponse, sqlstate};
use switchyard_wire::frame::{self, frontend};
use switchyard_wire::message;

use super::super::client_half::violation;
use super::super::relay::Relay;
use super::super::{Core, End};
use super::{Need, nobody};
use crate::roaming::Named;
use crate::roaming::comment;
use crate::roaming::read::{self, Parameter, Step};
use switchyard_config::TenantId;

/// What is to be done about a message.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Look {
    /// It goes on as of any session.
    On,
    /// It was dealt with.
    Done,
    /// More of it is needed.
    More,
    /// It must wait for what the server still owes.
    Wait,
    /// It needs a connection, which is borrowed now.
    Borrow,
}

/// What a group of the extended protocol comes to.
enum Group {
    /// So many bytes of it are answered here; then this is refused, if anything.
    Here(usize, Option<Box<ErrorResponse>>),
    /// It needs a shard.
    Needs(Need),
    /// More of it is needed.
    More,
}

impl Relay {
    /// A message that comes while there is no server connection.
    pub(in super::super) fn scout(&mut self, core: &mut Core, header: frame::Header) -> Result<Look, End> {
        match header.tag {
            frontend::QUERY => self.scout_query(core, header.len),
            frontend::PARSE | frontend::BIND | frontend::DESCRIBE | frontend::EXECUTE | frontend::CLOSE => {
                self.scout_group(core)
            }
            frontend::FUNCTION_CALL => {
                let Some(roaming) = &mut core.roaming else { return Ok(Look::On) };
                let track = roaming.ahead(&core.wishes);
                match roaming.need(&track, &[Step::Runs], None) {
                    Ok(need) => self.go(core, need),
                    Err(error) => Ok(self.turn_down(core, &error)),
                }
            }
            _ => Ok(Look::On),
        }
    }

    /// Refuses the message that comes next.
    fn turn_down(&mut self, core: &mut Core, error: &ErrorResponse) -> Look {
        self.refuse(core, error);
        Look::Done
    }

    /// The session becomes whose it must be.
    fn go(&mut self, core: &mut Core, need: Need) -> Result<Look, End> {
        if core.roaming.as_ref().is_some_and(|roaming| roaming.failed) {
            return Ok(self.turn_down(core, &aborted()));
        }
        let home = core.shared.settings().roaming.default_shard.is_some();
        let became = match &need {
            Need::Tenant(tenant, commented) => core.become_of(tenant, *commented),
            Need::Home if !home => {
                let name =
                    core.roaming.as_ref().map(|roaming| roaming.rules.name.clone()).unwrap_or_default();
                Err(nobody(&name))
            }
            Need::Home | Need::Anywhere | Need::Nothing => core.become_of(&TenantId::nobody(), false),
        };
        match became {
            Ok(()) => Ok(Look::Borrow),
            Err(error) => Ok(self.turn_down(core, &error)),
        }
    }

    fn scout_query(&mut self, core: &mut Core, len: usize) -> Result<Look, End> {
        let max = core.shared.settings().limits.statement_bytes;
        if !self.is_whole(len, max)? {
            return Ok(Look::More);
        }
        let Some(roaming) = &mut core.roaming else { return Ok(Look::On) };
        let text = self.query_text(len).to_vec();
        let rules = roaming.rules.clone();
        let statements = read::read(&rules, &text);
        let steps: Vec<Step> = statements.iter().map(|s| s.step.with(&rules, &[])).collect();
        let said = rules.comment.as_deref().and_then(|key| comment::whom(&text, key));
        let track = roaming.ahead(&core.wishes);
        let failed = roaming.failed;
        match roaming.need(&track, &steps, said.as_ref()) {
            Ok(Need::Nothing) => {
                self.c.discard(len);
                self.answer_query(core, &statements, &steps)?;
                Ok(Look::Done)
            }
            Ok(_) | Err(_) if failed => {
                // Whatever follows in the same message is not run either, as a failure ends it.
                let ends = matches!(steps.first(), Some(Step::Commit { .. } | Step::Rollback { .. }));
                let error = if ends { splits() } else { aborted() };
                Ok(self.turn_down(core, &error))
            }
            Ok(need) => self.go(core, need),
            Err(error) => Ok(self.turn_down(core, &error)),
        }
    }

    fn scout_group(&mut self, core: &mut Core) -> Result<Look, End> {
        match self.read_group(core)? {
            Group::Needs(need) => self.go(core, need),
            Group::More => Ok(Look::More),
            Group::Here(bytes, refused) => {
                let answered = self.answer_group(core, bytes)?;
                if let (true, Some(error)) = (answered, refused) {
                    self.refuse(core, &error);
                }
                Ok(Look::Done)
            }
        }
    }

    /// Looks through the messages up to a Sync or a Flush for where they must go. Nothing is consumed.
    fn read_group(&mut self, core: &mut Core) -> Result<Group, End> {
        let max = core.shared.settings().limits.statement_bytes;
        let mut at = 0;
        let mut parsed: Vec<(Box<[u8]>, Vec<u8>)> = Vec::new();
        let mut portals: Vec<(Box<[u8]>, Step)> = core
            .roaming
            .iter()
            .flat_map(|roaming| {
                roaming.portals.iter().map(|portal| (portal.name.clone(), portal.step.clone()))
            })
            .collect();
        let mut said: Option<Named> = None;
        let Some(roaming) = &mut core.roaming else { return Ok(Group::More) };
        let rules = roaming.rules.clone();
        let mut track = roaming.ahead(&core.wishes);
        let malformed = || violation("invalid message format".to_owned());
        loop {
            let fresh = &self.c.buffer.fresh()[at..];
            let Ok(Some(header)) = frame::header(fresh) else {
                return Ok(self.incomplete(at, frame::HEADER));
            };
            let len = header.len;
            let watched = matches!(
                header.tag,
                frontend::PARSE | frontend::BIND | frontend::DESCRIBE | frontend::EXECUTE | frontend::CLOSE
            );
            if !watched {
                let ends = matches!(header.tag, frontend::SYNC | frontend::FLUSH) && fresh.len() >= len;
                return Ok(Group::Here(if ends { at + len } else { at }, None));
            }
            if fresh.len() < len {
                if header.tag == frontend::BIND
                    && let Ok(Some(names)) = message::bind_names(&fresh[frame::HEADER..])
                    && text_of(core, &parsed, names.statement)
                        .is_some_and(|sql| read::read(&rules, &sql).iter().all(|s| s.step == Step::Runs))
                {
                    // Its parameters, large as they may be, say nothing.
                } else if at == 0 {
                    self.is_whole(len, max)?;
                    return Ok(Group::More);
                } else {
                    return Ok(self.incomplete(at, len));
                }
            }
            let Some(roaming) = &mut core.roaming else { return Ok(Group::More) };
            let fresh = &self.c.buffer.fresh()[at..];
            let body = &fresh[frame::HEADER..len.min(fresh.len())];
            // What runs when this message has been dealt with, and what is only described.
            let (described, done) = match header.tag {
                frontend::PARSE => {
                    let parse = message::parse(body).map_err(|_| malformed())?;
                    parsed.retain(|(name, _)| **name != *parse.name);
                    parsed.push((parse.name.into(), parse.sql.to_vec()));
                    (first(&rules, parse.sql), None)
                }
                frontend::BIND => {
                    let names = message::bind_names(body).map_err(|_| malformed())?.ok_or_else(malformed)?;
                    let sql = text_of_roaming(core.statements.as_deref(), &parsed, names.statement);
                    let Some(sql) = sql else {
                        // There is none, which is for PostgreSQL to say where a shard is known.
                        let need = roaming.need(&track, &[Step::Settings], None);
                        return Ok(match need {
                            Ok(need) => Group::Needs(need),
                            Err(error) => Group::Here(at, Some(Box::new(error))),
                        });
                    };
                    said = rules.comment.as_deref().and_then(|key| comment::whom(&sql, key));
                    let step = bound(&rules, &sql, body.get(names.rest..));
                    portals.retain(|(name, _)| **name != *names.portal);
                    portals.push((names.portal.into(), step.clone()));
                    (step, None)
                }
                frontend::DESCRIBE => {
                    let target = message::describe(body).map_err(|_| malformed())?;
                    let sql = match target.kind {
                        b'S' => text_of_roaming(core.statements.as_deref(), &parsed, target.name),
                        _ => None,
                    };
                    (sql.map_or(Step::Begin(""), |sql| first(&rules, &sql)), None)
                }
                frontend::EXECUTE => {
                    let execute = message::execute(body).map_err(|_| malformed())?;
                    let step = portals.iter().find(|(name, _)| **name == *execute.portal);
                    let step = step.map_or(Step::Begin(""), |(_, step)| step.clone());
                    (step.clone(), (step != Step::Begin("")).then_some(step))
                }
                _ => (Step::Begin(""), None),
            };
            // What a statement that can be described here needs is known when its parameters are.
            let here = header.tag != frontend::BIND && described.shape(&rules).is_some();
            if !here || done.is_some() {
                match roaming.need(&track, std::slice::from_ref(&described), said.as_ref()) {
                    Ok(Need::Nothing) => {}
                    Ok(_) if roaming.failed => return Ok(Group::Here(at, Some(Box::new(aborted())))),
                    Ok(need) => return Ok(Group::Needs(need)),
                    Err(error) => return Ok(Group::Here(at, Some(Box::new(error)))),
                }
            }
            if let Some(step) = done {
                track.apply(&step);
            }
            at += len;
        }
    }

    /// The group goes on in what is still to come: that is waited for, if there is room.
    fn incomplete(&mut self, at: usize, len: usize) -> Group {
        let room = !self.c.buffer.room().is_empty() && self.c.buffer.could_hold(at + len);
        if room || at == 0 { Group::More } else { Group::Here(at, None) }
    }
}

/// The text of the statement of this name, if the client has one.
fn text_of(core: &Core, parsed: &[(Box<[u8]>, Vec<u8>)], name: &[u8]) -> Option<Vec<u8>> {
    text_of_roaming(core.statements.as_deref(), parsed, name)
}

pub(super) fn text_of_roaming(
    statements: Option<&crate::statements::ClientStatements>,
    parsed: &[(Box<[u8]>, Vec<u8>)],
    name: &[u8],
) -> Option<Vec<u8>> {
    if let Some((_, sql)) = parsed.iter().find(|(own, _)| **own == *name) {
        return Some(sql.clone());
    }
    let statements = statements?;
    if name.is_empty() {
        return statements.unnamed().map(|(sql, _)| sql.to_vec());
    }
    statements.get(name).map(|statement| statement.sql().to_vec())
}

/// What the one statement does that `sql` may have in the extended protocol.
pub(super) fn first(rules: &crate::roaming::Rules, sql: &[u8]) -> Step {
    let mut statements = read::read(rules, sql);
    match statements.len() {
        // EmptyQueryResponse.
        0 => Step::Nothing(""),
        1 => statements.remove(0).step,
        _ => Step::Runs,
    }
}

/// The same, with the parameters in what follows the names in a Bind.
pub(super) fn bound(rules: &crate::roaming::Rules, sql: &[u8], after: Option<&[u8]>) -> Step {
    let step = first(rules, sql);
    if !matches!(step, Step::Config { .. }) {
        return step;
    }
    let Some(Ok(parameters)) = after.map(message::bind_parameters) else { return step.with(rules, &[]) };
    let formats = parameters.clone();
    let values: Vec<Parameter<'_>> = parameters
        .values
        .enumerate()
        .map(|(at, value)| Parameter { value: value.ok().flatten(), binary: formats.is_binary(at) })
        .collect();
    step.with(rules, &values)
}

/// // src/backend/tcop/postgres.c exec_simple_query
pub(super) fn aborted() -> ErrorResponse {
    ErrorResponse::error(
        sqlstate::IN_FAILED_SQL_TRANSACTION,
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

fn splits() -> ErrorResponse {
    let text = "a message that ends a failed transaction must end with it";
    ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
        .hint("Send what follows in a message of its own.")
}
