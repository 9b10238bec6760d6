//! What becomes of a session when something fails: its statement, its server connection, or itself.

use std::io;

use switchyard_wire::build;
use switchyard_wire::error::{ErrorResponse, Severity, sqlstate};
use switchyard_wire::frame::frontend;

use super::relay::Relay;
use super::server_half::canceled_by_user;
use super::{Core, End};

impl Relay {
    /// Fails what the client has sent and nobody has seen: its first message or, where that is of
    /// the extended protocol, all up to its Sync. The session goes on.
    pub(super) fn refuse(&mut self, core: &mut Core, error: &ErrorResponse) {
        core.handle.waits_no_more();
        core.account.errors.add(1);
        core.note_failure();
        error.encode(self.s.own());
        let header = switchyard_wire::frame::header(self.c.buffer.fresh());
        let simple =
            matches!(header, Ok(Some(h)) if matches!(h.tag, frontend::QUERY | frontend::FUNCTION_CALL));
        if let (true, Ok(Some(header))) = (simple, header) {
            self.c.discard(header.len);
            build::ready_for_query(self.s.own(), core.idle_status());
        } else {
            self.skip_to_sync = true;
        }
    }

    /// The server connection ended or broke. If no transaction was open, the session goes on: each
    /// statement under way fails by itself, as nothing of it was kept.
    pub(super) fn server_lost(&mut self, core: &mut Core, cause: Option<&io::Error>) -> Result<(), End> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        tracing::warn!(session = core.id, tenant = %core.who.tenant, shard = %server.identity.shard.name,
            pid = server.identity.pid, cause = cause.map(tracing::field::display), "lost a server connection");
        server.broken = true;
        core.handle.detached();
        let bound = core.is_bound_to(&server.identity);
        self.return_server(server);
        // The client has its answer, and neither the look was its own nor the question of which nobody knows whether
        // there was anything to ask.
        let only_looked = (self.look.take().is_some()
            || self.probe.take_if(|probe| probe.is_of_unknown()).is_some())
            && self.exchange.owes_only_own()
            && self.touched.is_none();
        if only_looked {
            self.last_words = None;
            self.exchange.reset();
        }
        let said = self.last_words.take().unwrap_or_else(|| {
            ErrorResponse::error(sqlstate::CONNECTION_FAILURE, "the connection to the shard was lost")
                .hint("Whether the statement was carried out is not known.")
        });
        let untold =
            self.reads_again && self.s.pass == 0 && self.s.drop == 0 && self.s.buffer.fresh().is_empty();
        if untold && !only_looked && !bound && core.pin.is_none() && self.exchange.status == b'I' {
            // Of a standby nothing was heard yet: the primary answers as well, until it is known which of them are there.
            if core.seat.pool.shard.pool.reads_from_primary
                && let Some(pool) = self.lender.as_ref().filter(|pool| pool.is_of_standbys())
            {
                pool.distrust_standbys();
                core.shared.raise_generation();
            }
            self.can_replay = true;
            self.exchange.prefix = crate::context::Prefix::default();
            if self.begin_anew(core)? {
                return Ok(());
            }
            self.can_replay = false;
        }
        let can_go_on = self.exchange.status == b'I'
            && !bound
            && core.pin.is_none()
            && self.s.pass == 0
            && self.s.drop == 0
            && self.s.buffer.fresh().is_empty();
        if !can_go_on || (self.exchange.readies_owed() == 0 && !self.exchange.is_open() && !only_looked) {
            return Err(End::Fatal(ErrorResponse { severity: Severity::Fatal, ..said }));
        }
        self.fail_statements(core, &said);
        Ok(())
    }

    /// The server connection is gone, or will not be used: everything that the client has sent and
    /// has no reply yet fails with `error`. The session goes on, as after any error.
    pub(super) fn fail_statements(&mut self, core: &mut Core, error: &ErrorResponse) {
        self.journal.clear();
        self.gate = None;
        self.doubt = None;
        let owed = self.exchange.readies_owed();
        let open = self.exchange.is_open();
        core.account.errors.add(owed as u64 + u64::from(open));
        core.note_failure();
        let status = core.idle_status();
        let out = self.s.own();
        for _ in 0..owed {
            error.encode(out);
            build::ready_for_query(out, status);
        }
        if open {
            error.encode(out);
            self.skip_to_sync = true;
        }
        self.c.drop_output();
        // What was not answered has not happened, as far as the client can know.
        let mut undo = std::mem::take(&mut self.undo);
        self.exchange.undo_all(&mut undo);
        undo.drain(..).rev().for_each(|what| self.undo_one(core, what));
        self.undo = undo;
        self.pending.clear();
        self.began = None;
        self.stall = false;
        self.reached = 0;
        self.disturbance = None;
    }

    /// A cancel request came while the session waited for a server connection: what it would have
    /// run is canceled. Not what it waits for now, if that is something else already.
    pub(super) fn cancel_wait(&mut self, core: &mut Core) {
        if self.wait.is_some() && core.handle.waits_no_more() {
            self.wait = None;
            self.c.buffer.widen();
            self.refuse(core, &canceled_by_user());
        }
    }

    /// The session ends, wherever it is. The server connection goes back if that is safe, after a
    /// rollback if that is needed; else it is closed and what it runs is canceled.
    pub(super) fn abandon(&mut self, core: &mut Core) {
        self.wait = None;
        let Some(mut server) = self.server.take() else { return };
        core.handle.detached();
        if core.pin.is_some()
            || !core.is_pooled()
            || self.touched.is_some()
            || self.probe.is_some()
            || self.look.is_some()
            || core.seat.hidden.is_loud(self.reached)
        {
            server.carried.dirty = true;
        }
        let idle = self.exchange.is_quiet() && !self.c.has_output() && self.s.pass == 0 && self.c.pass == 0;
        let Some(pool) = self.lender.clone() else { return };
        if idle && self.exchange.status == b'I' && self.s.buffer.fresh().is_empty() {
            if server.carried.dirty && tokio::runtime::Handle::try_current().is_ok() {
                // Its locks would keep others waiting for as long as nobody uses the connection.
                tokio::spawn(async move {
                    crate::server::clean(&mut server).await;
                    pool.give_back(server);
                });
            } else {
                pool.give_back(server);
            }
            return;
        }
        if idle && self.s.buffer.fresh().is_empty() && tokio::runtime::Handle::try_current().is_ok() {
            tokio::spawn(async move {
                crate::server::roll_back(&mut server).await;
                crate::server::clean(&mut server).await;
                pool.give_back(server);
            });
            return;
        }
        let only_own = self.exchange.owes_only_own() && self.s.pass == 0 && self.c.pass == 0;
        if only_own && self.s.buffer.fresh().is_empty() && tokio::runtime::Handle::try_current().is_ok() {
            // The router's own questions are under way, which nobody waits for any more.
            let (unsent, readies) = (self.c.take_output(), self.exchange.own_readies_owed());
            server.carried.dirty = true;
            tokio::spawn(async move {
                let _ = crate::server::finish(&mut server, &unsent, readies).await;
                crate::server::clean(&mut server).await;
                pool.give_back(server);
            });
            return;
        }
        // In the middle of something: PostgreSQL would go on with it for nobody.
        if tokio::runtime::Handle::try_current().is_ok() && !self.exchange.is_quiet() {
            server.identity.cancel_begins();
            let identity = server.identity.clone();
            let shared = core.shared.clone();
            tokio::spawn(async move { crate::cancel::send(&shared, &identity).await });
        }
        server.broken = true;
        pool.give_back(server);
    }

    /// Whether the client has got a part of a message of which the rest will not come. Whatever is
    /// said to it then would pass for that rest.
    pub(super) fn is_within_message(&self) -> bool {
        self.s.pass > 0
    }

    /// What was meant for the client and has not been sent; nothing if that ends within a message.
    pub(super) fn unsent_to_client(&mut self) -> Vec<u8> {
        if self.is_within_message() { Vec::new() } else { self.s.take_output() }
    }
}
