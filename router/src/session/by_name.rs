//! Prepared statements under the client's own names, as its SQL uses them: `PREPARE`, `EXECUTE`, `DEALLOCATE`.
//!
//! To PostgreSQL a name is a name, whether `PREPARE` or a Parse has given it. A connection that a statement of SQL runs on
//! gets what the session calls so, by that name, in front of it; what it says of it is then PostgreSQL's own.

use smallvec::SmallVec;
use switchyard_wire::build;

use super::Core;
use super::pending::Pending;
use super::relay::Relay;
use crate::classify::prepared::{Verb, mentioned};
use crate::exchange::Owed;

impl Relay {
    /// Prepares on this connection, by its own name, what the session has prepared elsewhere, or by the protocol.
    pub(super) fn ensure_by_name(&mut self, core: &mut Core, name: &str) {
        let (Some(server), Some(statements)) = (&self.server, core.statements.as_ref()) else { return };
        if server.sql_names.contains(name) {
            return;
        }
        let said = if let Some(sql) = statements.by_sql(name) {
            self.say_ahead(sql.as_bytes(), Some(name))
        } else if let Some(statement) = statements.get(name.as_bytes()) {
            let out = self.c.own();
            let begin = out.len();
            match build::parse(out, name.as_bytes(), statement.sql(), statement.types()) {
                Ok(()) if self.exchange.is_open() => {
                    self.exchange.sent_extended(Owed::InjectByName(name.into()));
                    true
                }
                Ok(()) => {
                    build::sync(out);
                    self.exchange.sent_own(Owed::OwnParse(Some(name.into())));
                    self.exchange.sent_own(Owed::OwnSync);
                    true
                }
                Err(_) => {
                    out.truncate(begin);
                    false
                }
            }
        } else {
            false
        };
        if let Some(server) = self.server.as_mut().filter(|_| said) {
            // It is counted on ahead: what comes behind this group waits until that is known.
            self.stall = true;
            server.sql_names.insert(name.to_owned());
            server.carried.dirty = true;
        }
    }

    /// Has a statement of the router's own run ahead of the client's message, within the client's group if one is open. `prepares` is the
    /// name of what it prepares. Whether it could be said.
    pub(super) fn say_ahead(&mut self, sql: &[u8], prepares: Option<&str>) -> bool {
        let out = self.c.own();
        let begin = out.len();
        let prepares = prepares.map(Into::into);
        let made = if self.exchange.is_open() {
            build::parse(out, b"", sql, &[0, 0])
                .and_then(|()| build::bind_text(out, b"", b"", &[]))
                .and_then(|()| build::execute(out, b"", 0))
                .map(|()| {
                    for owed in [Owed::OwnParse(None), Owed::OwnBind, Owed::OwnExecute(prepares)] {
                        self.exchange.sent_own(owed);
                    }
                })
        } else {
            build::query(out, sql).map(|()| self.exchange.sent_own(Owed::OwnQuery(prepares)))
        };
        if made.is_err() {
            self.c.own().truncate(begin);
        } else if let Some(server) = &mut self.server {
            server.unnamed_of = crate::server::UNNAMED_OF_NOBODY;
        }
        made.is_ok()
    }

    /// Sees to the statements of the session that the text of the client's message of `len` bytes, which begins `after`
    /// its first, uses somewhere within: among other statements, or in an `EXPLAIN`.
    #[inline]
    pub(super) fn ensure_mentioned(&mut self, core: &mut Core, len: usize, after: usize) {
        if core.statements.as_ref().is_some_and(|statements| statements.len() > 0) {
            self.ensure_all_mentioned(core, len, after);
        }
    }

    fn ensure_all_mentioned(&mut self, core: &mut Core, len: usize, after: usize) {
        let all: SmallVec<[_; 4]> = mentioned(&self.c.buffer.fresh()[after..len]).collect();
        for (verb, name) in all {
            let statements = core.statements();
            if statements.by_sql(&name).is_none() && !statements.contains(name.as_bytes()) {
                continue;
            }
            self.ensure_by_name(core, &name);
            if verb == Verb::Deallocate {
                self.expect(Pending::Deallocate(name.into_bytes().into()));
            }
        }
    }
}
