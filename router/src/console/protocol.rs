//! The extended query protocol of the console: statements, portals, parameters.

use std::sync::Arc;

use switchyard_wire::error::{ErrorResponse, sqlstate};
use switchyard_wire::frame::frontend;
use switchyard_wire::{build, message};

use super::Named;
use super::command::{self, Command};
use super::lexer::{self, Token};
use super::session::{Answer, ConsoleSession, Failed, unbuilt, utf8};
use super::table::{self, Formats};

/// Statements, and portals, of one session.
const NAMES: usize = 100;

/// Type oids that parameters may be declared as. // src/include/catalog/pg_type.dat
const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const TEXT: u32 = 25;

/// What a session keeps between its messages.
#[derive(Default)]
pub(super) struct Extended {
    statements: Named<Arc<Prepared>>,
    portals: Named<Portal>,
    /// After an error: everything up to the next Sync is passed over.
    pub(super) skipping: bool,
}

/// A prepared statement.
struct Prepared {
    /// None is the empty statement.
    tokens: Option<Vec<Token>>,
    params: Vec<u32>,
}

/// A portal: what was bound, and what is left of its result.
struct Portal {
    command: Option<Command>,
    formats: Formats,
    answer: Option<Answer>,
    next_row: usize,
}

impl Extended {
    /// Portals live as long as their transaction.
    pub(super) fn end_transaction(&mut self, status: u8) {
        if status == b'I' {
            self.portals.clear();
        }
    }
}

fn unknown(what: &str, name: &[u8], code: switchyard_wire::error::SqlState) -> Failed {
    let name = super::shown(&String::from_utf8_lossy(name));
    ErrorResponse::error(code, format!("{what} \"{name}\" does not exist")).into()
}

fn malformed(error: message::Malformed) -> Failed {
    ErrorResponse::from(error).into()
}

fn too_many() -> Failed {
    let text = format!("too many statements or portals, the limit is {NAMES}");
    ErrorResponse::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, text).into()
}

impl ConsoleSession {
    pub(super) async fn extended_message(&mut self, tag: u8, body: &[u8]) -> Result<(), Failed> {
        match tag {
            frontend::PARSE => self.parse(body),
            frontend::BIND => self.bind(body),
            frontend::DESCRIBE => self.describe(body),
            frontend::EXECUTE => self.execute_portal(body).await,
            _ => self.close(body),
        }
    }

    fn parse(&mut self, body: &[u8]) -> Result<(), Failed> {
        let parse = message::parse(body).map_err(malformed)?;
        let mut statements = lexer::statements(utf8(parse.sql)?)?;
        if statements.len() > 1 {
            let text = "cannot insert multiple commands into a prepared statement";
            return Err(ErrorResponse::error(sqlstate::SYNTAX_ERROR, text).into());
        }
        let tokens = statements.pop();
        if let Some(tokens) = &tokens {
            // Mistakes are told now, as PostgreSQL does.
            command::parse(tokens)?;
        }
        let used =
            tokens.iter().flatten().map(|t| if let Token::Param(n) = t { *n } else { 0 }).max().unwrap_or(0);
        if usize::from(used) > NAMES {
            return Err(lexer::syntax(&format!("there is no parameter ${used}")).into());
        }
        let mut params: Vec<u32> = parse.types[2..]
            .chunks_exact(4)
            .map(|oid| u32::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]))
            .map(|oid| if oid == 0 { TEXT } else { oid })
            .collect();
        params.resize(params.len().max(usize::from(used)), TEXT);
        let statements = &mut self.extended.statements;
        if !parse.name.is_empty() && statements.contains_key(parse.name) {
            let name = super::shown(&String::from_utf8_lossy(parse.name));
            let text = format!("prepared statement \"{name}\" already exists");
            return Err(ErrorResponse::error(sqlstate::DUPLICATE_PREPARED_STATEMENT, text).into());
        }
        if statements.len() >= NAMES && !statements.contains_key(parse.name) {
            return Err(too_many());
        }
        statements.insert(parse.name.to_vec(), Arc::new(Prepared { tokens, params }));
        build::parse_complete(&mut self.out);
        Ok(())
    }

    fn bind(&mut self, body: &[u8]) -> Result<(), Failed> {
        let bind = message::bind(body).map_err(malformed)?;
        let Some(prepared) = self.extended.statements.get(bind.statement).cloned() else {
            return Err(unknown("prepared statement", bind.statement, sqlstate::INVALID_SQL_STATEMENT_NAME));
        };
        if bind.params.len() != prepared.params.len() {
            let text = format!(
                "bind message supplies {} parameters, but prepared statement \"{}\" requires {}",
                bind.params.len(),
                super::shown(&String::from_utf8_lossy(bind.statement)),
                prepared.params.len()
            );
            return Err(ErrorResponse::error(sqlstate::PROTOCOL_VIOLATION, text).into());
        }
        let formats = Formats(bind.formats.clone());
        if !formats.fit(bind.params.len()) {
            let text = "bind message has another number of parameter formats than of parameters";
            return Err(ErrorResponse::error(sqlstate::PROTOCOL_VIOLATION, text).into());
        }
        let mut values = Vec::with_capacity(bind.params.len());
        for (at, (value, oid)) in bind.params.iter().zip(&prepared.params).enumerate() {
            values.push(parameter(*value, *oid, formats.is_binary(at))?);
        }
        let command = match &prepared.tokens {
            None => None,
            Some(tokens) => Some(command::parse(&filled_in(tokens, &values))?),
        };
        let columns = command.as_ref().and_then(Command::columns).map_or(0, |columns| columns.len());
        let formats = Formats(bind.results);
        if !formats.fit(columns) {
            let text = format!(
                "bind message has {} result formats but query has {columns} columns",
                formats.0.len()
            );
            return Err(ErrorResponse::error(sqlstate::PROTOCOL_VIOLATION, text).into());
        }
        let portals = &mut self.extended.portals;
        if !bind.portal.is_empty() && portals.contains_key(bind.portal) {
            let name = super::shown(&String::from_utf8_lossy(bind.portal));
            let text = format!("cursor \"{name}\" already exists");
            return Err(ErrorResponse::error(sqlstate::DUPLICATE_CURSOR, text).into());
        }
        if portals.len() >= NAMES && !portals.contains_key(bind.portal) {
            return Err(too_many());
        }
        portals.insert(bind.portal.to_vec(), Portal { command, formats, answer: None, next_row: 0 });
        build::bind_complete(&mut self.out);
        Ok(())
    }

    fn describe(&mut self, body: &[u8]) -> Result<(), Failed> {
        let target = message::describe(body).map_err(malformed)?;
        let (columns, formats) = if target.kind == b'S' {
            let Some(prepared) = self.extended.statements.get(target.name) else {
                return Err(unknown("prepared statement", target.name, sqlstate::INVALID_SQL_STATEMENT_NAME));
            };
            build::parameter_description(&mut self.out, &prepared.params).map_err(unbuilt)?;
            let command = prepared.tokens.as_deref().map(command::parse).transpose()?;
            (command.and_then(|command| command.columns()), Formats::default())
        } else {
            let Some(portal) = self.extended.portals.get(target.name) else {
                return Err(unknown("portal", target.name, sqlstate::INVALID_CURSOR_NAME));
            };
            (portal.command.as_ref().and_then(Command::columns), portal.formats.clone())
        };
        match columns {
            Some(columns) => table::describe(&mut self.out, &columns, &formats).map_err(unbuilt)?,
            None => build::no_data(&mut self.out),
        }
        Ok(())
    }

    async fn execute_portal(&mut self, body: &[u8]) -> Result<(), Failed> {
        let execute = message::execute(body).map_err(malformed)?;
        let Some(mut portal) = self.extended.portals.remove(execute.portal) else {
            return Err(unknown("portal", execute.portal, sqlstate::INVALID_CURSOR_NAME));
        };
        let Some(command) = &portal.command else {
            build::empty_query(&mut self.out);
            self.extended.portals.insert(execute.portal.to_vec(), portal);
            return Ok(());
        };
        let answer = match portal.answer.take() {
            Some(answer) => answer,
            None => {
                let answer = self.execute(command).await?;
                answer.notices.iter().for_each(|notice| notice.encode(&mut self.out));
                answer
            }
        };
        let rows = answer.table.as_ref().map_or(0, |table| table.rows.len());
        let left = rows - portal.next_row;
        let wanted = if execute.max_rows == 0 { left } else { left.min(execute.max_rows as usize) };
        if let Some(table) = &answer.table {
            for at in portal.next_row..portal.next_row + wanted {
                table.encode_row(&mut self.out, at, &portal.formats).map_err(unbuilt)?;
            }
        }
        portal.next_row += wanted;
        // As PostgreSQL: who gets as many rows as it asked for is not told yet whether these were all.
        if execute.max_rows != 0 && wanted == execute.max_rows as usize {
            build::portal_suspended(&mut self.out);
        } else {
            build::command_complete(&mut self.out, answer.tag.as_bytes()).map_err(unbuilt)?;
        }
        portal.answer = Some(answer);
        self.extended.portals.insert(execute.portal.to_vec(), portal);
        Ok(())
    }

    fn close(&mut self, body: &[u8]) -> Result<(), Failed> {
        let target = message::close(body).map_err(malformed)?;
        if target.kind == b'S' {
            self.extended.statements.remove(target.name);
        } else {
            self.extended.portals.remove(target.name);
        }
        build::close_complete(&mut self.out);
        Ok(())
    }
}

/// The text of a parameter.
fn parameter(value: Option<&[u8]>, oid: u32, binary: bool) -> Result<String, ErrorResponse> {
    let Some(value) = value else {
        return Err(ErrorResponse::error(
            sqlstate::INVALID_PARAMETER_VALUE,
            "a parameter must not be NULL here",
        ));
    };
    let wrong =
        || ErrorResponse::error(sqlstate::INVALID_PARAMETER_VALUE, "a parameter is not what its type says");
    match (oid, binary) {
        (INT8, true) => Ok(i64::from_be_bytes(value.try_into().map_err(|_| wrong())?).to_string()),
        (INT4, true) => Ok(i32::from_be_bytes(value.try_into().map_err(|_| wrong())?).to_string()),
        (INT2, true) => Ok(i16::from_be_bytes(value.try_into().map_err(|_| wrong())?).to_string()),
        _ => utf8(value).map(str::to_owned),
    }
}

/// The statement with its parameters in their places.
fn filled_in(tokens: &[Token], values: &[String]) -> Vec<Token> {
    let one = |token: &Token| match token {
        Token::Param(number) => {
            let value = usize::from(*number).checked_sub(1).and_then(|at| values.get(at));
            value.map_or_else(|| token.clone(), |value| Token::Text(value.clone()))
        }
        token => token.clone(),
    };
    tokens.iter().map(one).collect()
}
