//! What the router answers itself for a roaming session: the beginning of a transaction, and what takes back or
//! shows what the session has not got.

use switchyard_wire::error::{ErrorResponse, Severity, sqlstate};
use switchyard_wire::frame::{self, frontend};
use switchyard_wire::{build, message};

use super::super::client_half::{built, violation};
use super::super::relay::Relay;
use super::super::{Core, End};
use super::Portal;
use super::scout::{aborted, bound, first, text_of_roaming};
use crate::classify::classify;
use crate::context::Wish;
use crate::roaming::Named;
use crate::roaming::read::{Statement, Step};

/// Statements of a transaction that are kept until it is known whose it is.
const OPENING_MAX: usize = 256;

/// Keeps a statement until then, if there is room.
fn keep(opening: &mut Vec<Box<[u8]>>, text: &[u8]) -> Result<(), ErrorResponse> {
    if opening.len() >= OPENING_MAX {
        let text = format!("more than {OPENING_MAX} statements before the transaction's tenant is known");
        return Err(ErrorResponse::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, text));
    }
    opening.push(text.into());
    Ok(())
}

impl Relay {
    /// Answers a Query that needs no shard.
    pub(super) fn answer_query(
        &mut self,
        core: &mut Core,
        statements: &[Statement<'_>],
        steps: &[Step],
    ) -> Result<(), End> {
        core.account.statements.add(1);
        if steps.is_empty() {
            build::empty_query(self.s.own());
        }
        for (statement, step) in statements.iter().zip(steps) {
            if let Err(error) = self.answer(core, step, statement.text, true)? {
                core.account.errors.add(1);
                error.encode(self.s.own());
                core.note_failure();
                break;
            }
        }
        build::ready_for_query(self.s.own(), core.idle_status());
        if let Some(roaming) = &mut core.roaming {
            roaming.portals.clear();
            if roaming.opening.is_empty() {
                roaming.over();
            }
        }
        if let Some(statements) = &mut core.statements {
            statements.forget_unnamed();
        }
        Ok(())
    }

    /// Carries out one statement here; `describe` says that the client has not been told of its columns.
    fn answer(
        &mut self,
        core: &mut Core,
        step: &Step,
        text: &[u8],
        describe: bool,
    ) -> Result<Result<(), ErrorResponse>, End> {
        let Core { roaming: Some(roaming), wishes, startup_wishes, shared, statements, .. } = core else {
            return Ok(Ok(()));
        };
        let out = self.s.own();
        let ends = matches!(step, Step::Commit { .. } | Step::Rollback { .. } | Step::RollbackTo(_));
        if roaming.failed && !ends {
            return Ok(Err(aborted()));
        }
        let mut track = roaming.ahead(wishes);
        let mut values = wishes.values.clone();
        let name = roaming.rules.name.clone();
        let tag: &str;
        match step {
            Step::Begin(said) => {
                tag = said;
                if track.block {
                    notice(
                        out,
                        sqlstate::ACTIVE_SQL_TRANSACTION,
                        "there is already a transaction in progress",
                    );
                } else {
                    if let Err(error) = keep(&mut roaming.opening, text) {
                        return Ok(Err(error));
                    }
                }
            }
            Step::Commit { chain } | Step::Rollback { chain } => {
                let commit = matches!(step, Step::Commit { .. }) && !roaming.failed;
                tag = if commit { "COMMIT" } else { "ROLLBACK" };
                if !track.block {
                    if *chain {
                        let text = format!("{tag} AND CHAIN can only be used in transaction blocks");
                        return Ok(Err(ErrorResponse::error(sqlstate::NO_ACTIVE_SQL_TRANSACTION, text)));
                    }
                    notice(out, sqlstate::NO_ACTIVE_SQL_TRANSACTION, "there is no transaction in progress");
                } else {
                    let before = roaming.session(wishes).clone();
                    if commit && *track.lasting() != before && *track.lasting() == Named::Nobody {
                        values.insert(name, Wish::Value(String::new()));
                    }
                    roaming.opening.truncate(usize::from(*chain));
                    roaming.failed = false;
                }
            }
            Step::Savepoint(_) | Step::RollbackTo(_) | Step::Release(_) => {
                let (word, done, save) = match step {
                    Step::Savepoint(save) => ("SAVEPOINT", "SAVEPOINT", save),
                    Step::RollbackTo(save) => ("ROLLBACK TO SAVEPOINT", "ROLLBACK", save),
                    Step::Release(save) => ("RELEASE SAVEPOINT", "RELEASE", save),
                    _ => return Ok(Ok(())),
                };
                if !track.block {
                    let text = format!("{word} can only be used in transaction blocks");
                    return Ok(Err(ErrorResponse::error(sqlstate::NO_ACTIVE_SQL_TRANSACTION, text)));
                }
                if word != "SAVEPOINT" && !track.has(save) {
                    let text = format!("savepoint \"{save}\" does not exist");
                    return Ok(Err(ErrorResponse::error(sqlstate::INVALID_SAVEPOINT, text)));
                }
                roaming.failed = false;
                if let Err(error) = keep(&mut roaming.opening, text) {
                    return Ok(Err(error));
                }
                tag = done;
            }
            Step::InBlock => {
                let constraints = memchr::memmem::find(&text.to_ascii_lowercase(), b"constraints").is_some();
                tag = if constraints { "SET CONSTRAINTS" } else { "SET" };
                if let Err(error) = keep(&mut roaming.opening, text) {
                    return Ok(Err(error));
                }
            }
            Step::Set { .. } | Step::ResetAll | Step::DiscardAll if track.block => {
                tag = match step {
                    Step::DiscardAll => {
                        let text = "DISCARD ALL cannot run inside a transaction block";
                        return Ok(Err(ErrorResponse::error(sqlstate::ACTIVE_SQL_TRANSACTION, text)));
                    }
                    Step::ResetAll => "RESET",
                    _ if is_reset(text) => "RESET",
                    _ => "SET",
                };
                if let Err(error) = keep(&mut roaming.opening, text) {
                    return Ok(Err(error));
                }
            }
            Step::Set { local, .. } => {
                tag = if is_reset(text) { "RESET" } else { "SET" };
                if *local {
                    let text = "SET LOCAL can only be used in transaction blocks";
                    notice(out, sqlstate::NO_ACTIVE_SQL_TRANSACTION, text);
                } else if let Some(wish) = startup_wishes.values.get(&name) {
                    values.insert(name, wish.clone());
                } else if values.contains_key(&name) || tag == "SET" {
                    values.insert(name, Wish::Value(String::new()));
                }
            }
            Step::ResetAll => {
                tag = "RESET";
                values.clone_from(&startup_wishes.values);
            }
            Step::DiscardAll => {
                tag = "DISCARD ALL";
                values.clone_from(&startup_wishes.values);
                *statements = None;
            }
            Step::DeallocateAll => {
                tag = "DEALLOCATE ALL";
                *statements = None;
            }
            Step::Show { column, missing_ok } => {
                let known = values.contains_key(&name);
                if !known && !missing_ok {
                    let text = format!("unrecognized configuration parameter \"{name}\"");
                    return Ok(Err(ErrorResponse::error(sqlstate::UNDEFINED_OBJECT, text)));
                }
                let heading = if column.is_empty() { name.as_str() } else { column };
                if describe {
                    built(build::row_description(out, &[(heading, 25, -1)]))?;
                }
                built(build::data_row(out, &[known.then_some(&b""[..])]))?;
                tag = if column.is_empty() { "SHOW" } else { "SELECT 1" };
            }
            Step::UnlockAll => {
                if describe {
                    built(build::row_description(out, &[("pg_advisory_unlock_all", 2278, 4)]))?;
                }
                built(build::data_row(out, &[Some(b"")]))?;
                tag = "SELECT 1";
            }
            Step::Nothing("") => {
                build::empty_query(out);
                return Ok(Ok(()));
            }
            Step::Nothing(said) => tag = said,
            Step::Runs | Step::Settings | Step::Config { .. } | Step::PrepareTransaction | Step::Listen => {
                return Ok(Err(aborted()));
            }
        }
        built(build::command_complete(out, tag))?;
        track.apply(step);
        if values != wishes.values {
            *wishes = shared.contexts.wishes(values);
        }
        roaming.track = (!roaming.opening.is_empty()).then_some(track);
        Ok(Ok(()))
    }

    /// Answers the messages of the extended protocol in the next `bytes`. Whether none of them failed.
    pub(super) fn answer_group(&mut self, core: &mut Core, bytes: usize) -> Result<bool, End> {
        let mut left = bytes;
        while left > 0 {
            let Ok(Some(header)) = frame::header(self.c.buffer.fresh()) else {
                return Err(violation("invalid message length".to_owned()));
            };
            let body = self.c.buffer.fresh()[frame::HEADER..header.len].to_vec();
            left -= header.len;
            if header.tag == frontend::SYNC {
                // As always when there is no server.
                return Ok(true);
            }
            self.c.discard(header.len);
            if let Err(error) = self.answer_message(core, header.tag, &body)? {
                core.account.errors.add(1);
                error.encode(self.s.own());
                core.note_failure();
                self.skip_to_sync = true;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn answer_message(
        &mut self,
        core: &mut Core,
        tag: u8,
        body: &[u8],
    ) -> Result<Result<(), ErrorResponse>, End> {
        let malformed = || violation("invalid message format".to_owned());
        let Some(rules) = core.roaming.as_ref().map(|roaming| roaming.rules.clone()) else {
            return Ok(Ok(()));
        };
        match tag {
            frontend::PARSE => {
                let parse = message::parse(body).map_err(|_| malformed())?;
                if parse.name.is_empty() {
                    core.statements().keep_unnamed(parse.sql, parse.types, classify(parse.sql));
                } else {
                    if core.statements().contains(parse.name) {
                        let name = String::from_utf8_lossy(parse.name);
                        let text = format!("prepared statement \"{name}\" already exists");
                        let code = sqlstate::DUPLICATE_PREPARED_STATEMENT;
                        return Ok(Err(ErrorResponse::error(code, text)));
                    }
                    let limit = core.shared.settings().limits.statements_per_client;
                    if core.statements().len() >= limit {
                        let text = "too many prepared statements";
                        let error = ErrorResponse::fatal(sqlstate::PROGRAM_LIMIT_EXCEEDED, text);
                        return Err(End::Fatal(
                            error.detail(format!("The limit is {limit} for each client.")),
                        ));
                    }
                    let statement =
                        core.shared.statements.get(parse.sql, parse.types, Some(core.wishes.parsed_under()));
                    core.statements().insert(parse.name, statement);
                }
                build::parse_complete(self.s.own());
            }
            frontend::BIND => {
                let names = message::bind_names(body).map_err(|_| malformed())?.ok_or_else(malformed)?;
                let Some(sql) = text_of_roaming(core.statements.as_deref(), &[], names.statement) else {
                    return Ok(Err(no_statement(names.statement)));
                };
                let step = bound(&rules, &sql, body.get(names.rest..));
                if let Some(roaming) = &mut core.roaming {
                    roaming.portals.retain(|portal| *portal.name != *names.portal);
                    roaming.portals.push(Portal { name: names.portal.into(), step, text: sql.into() });
                }
                build::bind_complete(self.s.own());
            }
            frontend::DESCRIBE => {
                let target = message::describe(body).map_err(|_| malformed())?;
                return self.answer_describe(core, target.kind, target.name);
            }
            frontend::EXECUTE => {
                let execute = message::execute(body).map_err(|_| malformed())?;
                let portal = core.roaming.as_ref().and_then(|roaming| roaming.portal(execute.portal));
                let Some((step, text)) = portal else {
                    let name = String::from_utf8_lossy(execute.portal);
                    let text = format!("portal \"{name}\" does not exist");
                    return Ok(Err(ErrorResponse::error(sqlstate::INVALID_CURSOR_NAME, text)));
                };
                core.account.statements.add(1);
                return self.answer(core, &step, &text, false);
            }
            frontend::CLOSE => {
                let target = message::close(body).map_err(|_| malformed())?;
                if target.kind == b'S' {
                    if target.name.is_empty() {
                        core.statements().forget_unnamed();
                    } else {
                        core.statements().remove(target.name);
                    }
                } else if let Some(roaming) = &mut core.roaming {
                    roaming.portals.retain(|portal| *portal.name != *target.name);
                }
                build::close_complete(self.s.own());
            }
            _ => {}
        }
        Ok(Ok(()))
    }

    fn answer_describe(
        &mut self,
        core: &mut Core,
        kind: u8,
        name: &[u8],
    ) -> Result<Result<(), ErrorResponse>, End> {
        let Some(roaming) = &core.roaming else { return Ok(Ok(())) };
        let rules = roaming.rules.clone();
        let step = if kind == b'S' {
            let Some(sql) = text_of_roaming(core.statements.as_deref(), &[], name) else {
                return Ok(Err(no_statement(name)));
            };
            first(&rules, &sql)
        } else {
            let Some((step, _)) = roaming.portal(name) else {
                let text = format!("portal \"{}\" does not exist", String::from_utf8_lossy(name));
                return Ok(Err(ErrorResponse::error(sqlstate::INVALID_CURSOR_NAME, text)));
            };
            step
        };
        let (parameters, columns) = step.shape(&rules).unwrap_or_default();
        let out = self.s.own();
        if kind == b'S' {
            // OIDs of text and bool. // src/include/catalog/pg_type.dat
            let types: Vec<u32> = (1..=parameters).map(|n| if step.is_truth(n) { 16 } else { 25 }).collect();
            built(build::parameter_description(out, &types))?;
        }
        if columns.is_empty() {
            build::no_data(out);
        } else {
            let columns: Vec<_> = columns.iter().map(|(name, oid)| (name.as_str(), *oid, -1)).collect();
            built(build::row_description(out, &columns))?;
        }
        Ok(Ok(()))
    }
}

impl super::Roaming {
    fn portal(&self, name: &[u8]) -> Option<(Step, Box<[u8]>)> {
        let portal = self.portals.iter().find(|portal| *portal.name == *name)?;
        Some((portal.step.clone(), portal.text.clone()))
    }
}

fn is_reset(text: &[u8]) -> bool {
    crate::classify::skip_blank(text).get(..5).is_some_and(|word| word.eq_ignore_ascii_case(b"reset"))
}

fn notice(out: &mut Vec<u8>, code: switchyard_wire::error::SqlState, text: &str) {
    ErrorResponse::new(Severity::Warning, code, text).encode(out);
}

fn no_statement(name: &[u8]) -> ErrorResponse {
    let text = if name.is_empty() {
        "unnamed prepared statement does not exist".to_owned()
    } else {
        format!("prepared statement \"{}\" does not exist", String::from_utf8_lossy(name))
    };
    ErrorResponse::error(sqlstate::INVALID_SQL_STATEMENT_NAME, text)
}
