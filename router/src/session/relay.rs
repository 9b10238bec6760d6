//! Forwarding between a client and the server connection it has borrowed.
//!
//! One poll does, until nothing moves any more: read from the server and write to the client
//! (`server_half`), read from the client and write to the server (`client_half`), borrow a server
//! connection when the client's first message needs one, and give it back as soon as the server
//! has said ReadyForQuery outside a transaction.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin as StdPin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use switchyard_wire::build;
use switchyard_wire::error::{ErrorResponse, Severity, sqlstate};
use switchyard_wire::frame::frontend;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::half::Half;
use super::handle::Activity;
use super::{Core, End};
use crate::buffer::Buffer;
use crate::context::{self, Handover};
use crate::exchange::{Exchange, Undo};
use crate::pool::{Lend, Pool, PoolError, Want};
use crate::server::Server;

/// Relays that a thread keeps for reuse; more are freed.
const STOCK_MAX: usize = 64;

/// Most bytes of a client that are kept to be sent again on another connection.
const REPLAY_BYTES: usize = 16 * 1024;

/// Connections that are tried for one statement before it fails.
const ATTEMPTS: u8 = 3;

thread_local! {
    // Boxed, so that taking one out does not move it.
    #[allow(clippy::vec_box)]
    static STOCK: RefCell<Vec<Box<Relay>>> = const { RefCell::new(Vec::new()) };
}

/// A wait for a server connection.
struct Wait {
    answer: oneshot::Receiver<Result<Box<Server>, PoolError>>,
    timeout: StdPin<Box<Sleep>>,
    since: Instant,
}

/// An effect of a statement that counts once the statement has succeeded.
#[derive(Debug)]
pub(super) enum Pending {
    /// The session now wishes this.
    Wish(String, String),
    /// The session wishes what it wished at startup.
    Unwish(String),
    /// The session wishes nothing but what it wished at startup.
    ResetAll,
    /// Everything of the session is gone.
    DiscardAll,
    /// Its prepared statements are gone.
    DeallocateAll,
    /// Its prepared statement of this name is gone.
    Deallocate(Box<[u8]>),
}

/// See the module.
pub(super) struct Relay {
    /// From the client to the server.
    pub(super) c: Half,
    /// From the server to the client.
    pub(super) s: Half,
    pub(super) server: Option<Box<Server>>,
    /// Where the server connection comes from, or is awaited from. The session's seat may be on
    /// another shard by the time it goes back.
    lender: Option<Arc<Pool>>,
    pub(super) exchange: Exchange,
    wait: Option<Box<Wait>>,
    /// When the current transaction began.
    began: Option<Instant>,
    pub(super) pending: Option<Pending>,
    /// The current transaction has had an error.
    pub(super) failed: bool,
    /// No frame of the client passes until the server owes nothing: the last one may have taken
    /// the context away.
    pub(super) stall: bool,
    /// The last words of a server that ends the connection, to be shown as an error of the
    /// statement if the session can go on.
    pub(super) last_words: Option<ErrorResponse>,
    pub(super) undo: Vec<Undo>,
    /// The session was pinned in this transaction; if it is rolled back, so is the reason.
    pub(super) fresh_pin: bool,
    /// The last statement that completed was a ROLLBACK.
    pub(super) rolled_back: bool,
    /// What the client has sent since the connection was borrowed, while it can be taken back: until
    /// the replies to the router's own messages are in.
    replay: Vec<u8>,
    can_replay: bool,
    /// Connections tried for the current statement.
    attempts: u8,
    /// What the client sends passes for skipped after an error, up to its next Sync.
    pub(super) skip_to_sync: bool,
}

impl Relay {
    /// A relay for a client that has sent `bytes`.
    pub(super) fn begin(bytes: Buffer) -> Box<Self> {
        let mut relay = STOCK.with(|stock| stock.borrow_mut().pop()).unwrap_or_else(|| {
            Box::new(Self {
                c: Half::default(),
                s: Half::default(),
                server: None,
                lender: None,
                exchange: Exchange::new(),
                wait: None,
                began: None,
                pending: None,
                failed: false,
                stall: false,
                last_words: None,
                undo: Vec::new(),
                fresh_pin: false,
                rolled_back: false,
                skip_to_sync: false,
                replay: Vec::new(),
                can_replay: false,
                attempts: 0,
            })
        });
        relay.c.buffer = bytes;
        relay
    }

    /// Keeps the relay for the next transaction of any session on this thread.
    pub(super) fn recycle(mut self: Box<Self>) {
        debug_assert!(self.server.is_none() && self.wait.is_none());
        self.lender = None;
        self.c.clear();
        self.s.clear();
        self.exchange.reset();
        self.began = None;
        self.pending = None;
        self.failed = false;
        self.stall = false;
        self.last_words = None;
        self.undo.clear();
        self.fresh_pin = false;
        self.rolled_back = false;
        self.skip_to_sync = false;
        self.can_replay = false;
        self.attempts = 0;
        let _ = STOCK.try_with(|stock| {
            let mut stock = stock.borrow_mut();
            if stock.len() < STOCK_MAX {
                stock.push(self);
            }
        });
    }

    /// Forwards until nothing moves. `Ready(Ok)` when the session is idle again.
    pub(super) fn poll(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            let mut moved = self.poll_server_half(core, cx)?;
            let said = self.s.has_output();
            moved |= self.poll_client_half(core, cx)?;
            // What the router answers itself counts as well.
            moved |= !said && self.s.has_output();
            if self.server.is_none() && self.wait.is_none() && self.c.is_done() && !self.s.has_output() {
                return Poll::Ready(Ok(()));
            }
            if !moved {
                self.note_activity(core);
                return Poll::Pending;
            }
        }
    }

    fn note_activity(&mut self, core: &Core) {
        if self.exchange.is_quiet() && self.wait.is_none() {
            let activity = if self.exchange.in_transaction() {
                Activity::IdleInTransaction
            } else if self.server.is_some() {
                Activity::Idle
            } else {
                Activity::Active
            };
            core.handle.set_activity(activity);
            // It may stay like this for hours: no memory for that.
            self.c.buffer.rest();
            self.s.buffer.rest();
        } else {
            core.handle.set_activity(Activity::Active);
        }
    }

    /// Whether no transaction is open or half sent.
    pub(super) fn is_between_transactions(&self) -> bool {
        self.exchange.is_over() && self.wait.is_none() && self.c.buffer.is_empty() && !self.s.has_output()
    }

    /// Whether a transaction is open and it is the client's turn.
    pub(super) fn is_idle_in_transaction(&self) -> bool {
        self.exchange.is_quiet() && self.exchange.in_transaction()
    }

    // --- borrowing ---

    /// Asks the pool for a connection. It is attached, or awaited, when this returns.
    pub(super) fn borrow_server(&mut self, core: &mut Core) -> Result<(), End> {
        core.refresh_seat()?;
        let want = Want {
            route: &core.seat.context.route,
            context: core.seat.context.id,
            wishes: core.wishes.id,
            session: core.id,
            worker: core.worker,
        };
        self.lender = Some(core.seat.pool.clone());
        match core.seat.pool.lend(&want) {
            Lend::Now(server) => self.attach(core, server),
            Lend::Later(answer) => {
                // Many may wait for long: hold what has arrived in no more memory than it needs.
                self.c.buffer.shrink();
                self.wait = Some(Box::new(Wait {
                    answer,
                    timeout: Box::pin(tokio::time::sleep(core.seat.pool.shard.pool.queue_timeout)),
                    since: Instant::now(),
                }));
                Ok(())
            }
            Lend::Never(error) => self.unavailable(core, &error),
        }
    }

    /// Whether the wait has ended: with a connection, or with an error told to the client.
    pub(super) fn poll_wait(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let Some(wait) = &mut self.wait else { return Poll::Ready(Ok(())) };
        if let Poll::Ready(answer) = StdPin::new(&mut wait.answer).poll(cx) {
            core.account.wait_us.add(wait.since.elapsed().as_micros() as u64);
            self.wait = None;
            self.c.buffer.widen();
            return Poll::Ready(match answer {
                Ok(Ok(server)) => {
                    let asked = self.lender.clone();
                    core.refresh_seat()?;
                    if asked.as_ref().is_some_and(|pool| Arc::ptr_eq(pool, &core.seat.pool)) {
                        self.attach(core, server)
                    } else {
                        // The tenant has moved while the session waited.
                        self.return_server(server);
                        self.borrow_server(core)
                    }
                }
                Ok(Err(PoolError::Closed)) => {
                    // The topology has changed under it: look again.
                    self.borrow_server(core)
                }
                Ok(Err(error)) => self.unavailable(core, &error),
                Err(_) => self.unavailable(core, &PoolError::Closed),
            });
        }
        if wait.timeout.as_mut().poll(cx).is_ready() {
            let waited = wait.since.elapsed();
            self.wait = None;
            self.c.buffer.widen();
            core.account.wait_us.add(waited.as_micros() as u64);
            core.seat.pool.counters.queue_timeouts.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(session = core.id, tenant = %core.who.tenant, shard = %core.seat.pool.shard.name,
                waited_ms = waited.as_millis() as u64, "no server connection became free in time");
            let text = "no server connection became free in time";
            let error = ErrorResponse::error(sqlstate::TOO_MANY_CONNECTIONS, text)
                .hint("All connections of the tenant's shard are busy; try again, or make its pool larger.");
            self.refuse(core, &error);
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    fn unavailable(&mut self, core: &mut Core, error: &PoolError) -> Result<(), End> {
        tracing::warn!(session = core.id, tenant = %core.who.tenant, shard = %core.seat.pool.shard.name,
            error = %error, "no server connection");
        let error = match error {
            PoolError::Connect(error) => error.for_client(core.seat.pool.shard.name.as_str()),
            PoolError::Closed => {
                return Err(End::Fatal(
                    ErrorResponse::fatal(
                        sqlstate::ADMIN_SHUTDOWN,
                        "the pool of this tenant's shard was closed",
                    )
                    .hint("Connect again."),
                ));
            }
        };
        self.refuse(core, &ErrorResponse { severity: Severity::Error, ..error });
        Ok(())
    }

    /// Puts what makes the connection ready in front of the client's bytes.
    fn attach(&mut self, core: &mut Core, mut server: Box<Server>) -> Result<(), End> {
        if server.home != core.worker {
            match server.stream.adopt() {
                Ok(stream) => {
                    server.stream = stream;
                    server.home = core.worker;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot move a server connection between threads");
                    return Err(End::Fatal(ErrorResponse::fatal(sqlstate::INTERNAL, "internal error")));
                }
            }
        }
        core.handle.attached(&server.identity);
        self.server = Some(server);
        self.began = Some(Instant::now());
        self.make_ready(core)?;
        self.can_replay = self.exchange.prefix.is_pending() && self.exchange.prefix.readies == 0;
        if self.can_replay {
            self.replay.clear();
            let fresh = self.c.buffer.fresh();
            self.can_replay = fresh.len() <= REPLAY_BYTES;
            if self.can_replay {
                self.replay.extend_from_slice(fresh);
            }
        }
        Ok(())
    }

    /// The client has sent `bytes` more.
    #[inline]
    pub(super) fn note_for_replay(&mut self, len: usize) {
        if !self.can_replay {
            return;
        }
        let fresh = self.c.buffer.fresh();
        if self.replay.len() + len > REPLAY_BYTES {
            self.can_replay = false;
        } else {
            self.replay.extend_from_slice(&fresh[fresh.len() - len..]);
        }
    }

    /// The connection has become the tenant's: from here on nothing is taken back.
    pub(super) fn is_settled(&mut self) {
        self.can_replay = false;
        self.attempts = 0;
    }

    /// Begins again with what the client has sent, on another connection. False if that cannot be.
    /// Only for a connection on which none of it has run.
    pub(super) fn begin_anew(&mut self, core: &mut Core) -> Result<bool, End> {
        if !self.can_replay || self.attempts >= ATTEMPTS {
            return Ok(false);
        }
        self.attempts += 1;
        self.can_replay = false;
        let mut undo = std::mem::take(&mut self.undo);
        self.exchange.undo_all(&mut undo);
        for what in undo.drain(..) {
            // The unnamed statement is as it was, or is prepared once more.
            if !matches!(what, Undo::Unnamed) {
                self.undo_one(core, what);
            }
        }
        self.undo = undo;
        self.c.clear();
        self.c.buffer = Buffer::holding(&self.replay);
        self.pending = None;
        self.stall = false;
        self.began = None;
        if std::mem::take(&mut self.fresh_pin) {
            core.pin = None;
        }
        self.borrow_server(core)?;
        Ok(true)
    }

    /// Sees to it that the server connection carries the session's context and wishes before its
    /// next statement. Called when a connection was borrowed, and for a connection that is kept,
    /// at the beginning of each transaction.
    pub(super) fn make_ready(&mut self, core: &Core) -> Result<(), End> {
        let Some(server) = &mut self.server else { return Ok(()) };
        let own = self.c.own();
        let made = context::handover(own, &server.carried, core.id, &core.seat.context, &core.wishes);
        let (kind, prefix) = made.map_err(|error| {
            tracing::error!(session = core.id, tenant = %core.who.tenant, %error, "cannot say the tenant's context");
            server.broken = true;
            End::Fatal(ErrorResponse::fatal(sqlstate::INTERNAL, "the context of this tenant cannot be set"))
        })?;
        match kind {
            Handover::Nothing | Handover::Wishes => {}
            Handover::Context => {
                server.unnamed_of = crate::server::UNNAMED_OF_NOBODY;
                core.seat.pool.counters.contexts.fetch_add(1, Ordering::Relaxed);
            }
            Handover::Clean => {
                core.seat.pool.counters.cleanings.fetch_add(1, Ordering::Relaxed);
                server.was_cleaned();
            }
        }
        let carried = &mut server.carried;
        carried.context = core.seat.context.id;
        carried.lost = false;
        carried.session = core.id;
        if carried.wishes.id != core.wishes.id {
            carried.wishes = core.wishes.clone();
        }
        self.exchange.begin(prefix);
        self.failed = false;
        Ok(())
    }

    /// Fails what the client has sent and nobody has seen: its first message or, where that is of
    /// the extended protocol, all up to its Sync. The session goes on.
    fn refuse(&mut self, core: &Core, error: &ErrorResponse) {
        core.account.errors.add(1);
        error.encode(self.s.own());
        let header = switchyard_wire::frame::header(self.c.buffer.fresh());
        let simple =
            matches!(header, Ok(Some(h)) if matches!(h.tag, frontend::QUERY | frontend::FUNCTION_CALL));
        if let (true, Ok(Some(header))) = (simple, header) {
            self.c.discard(header.len);
            build::ready_for_query(self.s.own(), b'I');
        } else {
            self.skip_to_sync = true;
        }
    }

    // --- giving back ---

    /// Gives the server connection back if the transaction is over. Nothing of the session may
    /// still be on its way to it.
    #[inline]
    pub(super) fn give_back_if_over(&mut self, core: &mut Core) {
        if self.server.is_none()
            || !self.exchange.is_over()
            || self.c.has_output()
            || self.c.pass > 0
            || self.s.pass > 0
        {
            return;
        }
        self.stall = false;
        if let Some(began) = self.began.take() {
            let took = began.elapsed();
            core.account.transaction(took);
            core.seat.shard_account.transactions.record(took);
            if self.fresh_pin {
                self.fresh_pin = false;
                if self.rolled_back {
                    core.pin = None;
                }
            }
            self.rolled_back = false;
        }
        if core.is_pooled() {
            self.release(core);
        }
    }

    /// A transaction begins on a connection that is kept.
    pub(super) fn begin_again(&mut self, core: &mut Core) -> Result<(), End> {
        if self.began.is_some() {
            return Ok(());
        }
        core.refresh_seat()?;
        if !self.lender.as_ref().is_some_and(|pool| Arc::ptr_eq(pool, &core.seat.pool)) {
            // What the session keeps the connection for cannot be carried to another shard.
            return Err(End::Fatal(
                ErrorResponse::fatal(
                    sqlstate::ADMIN_SHUTDOWN,
                    "the tenant of this session has moved to another shard",
                )
                .hint("Connect again."),
            ));
        }
        self.began = Some(Instant::now());
        self.make_ready(core)
    }

    /// Gives a server connection back to where it came from.
    pub(super) fn return_server(&self, server: Box<Server>) {
        if let Some(pool) = &self.lender {
            pool.give_back(server);
        }
    }

    fn release(&mut self, core: &mut Core) {
        if let Some(mut server) = self.server.take() {
            core.handle.detached();
            if !self.s.buffer.fresh().is_empty() {
                // It said something that belongs to no statement.
                server.broken = true;
                let unread = self.s.buffer.fresh().len();
                self.s.buffer.swallow(unread);
            }
            self.return_server(server);
        }
    }

    /// What the statements of the group that has ended have changed for good.
    pub(super) fn settle(&mut self, core: &mut Core) {
        let Some(pending) = self.pending.take() else { return };
        if self.failed {
            return;
        }
        let mut values = core.wishes.values.clone();
        match pending {
            Pending::Wish(name, sql) => {
                values.insert(name, crate::context::Wish::Statement(sql));
                core.wishes = core.shared.contexts.wishes(values);
                self.carry_wishes(core);
            }
            Pending::Unwish(name) => {
                values.remove(&name);
                let without = core.shared.contexts.wishes(values.clone());
                if let Some(server) = &mut self.server {
                    server.carried.wishes = without;
                }
                if let Some(wish) = core.startup_wishes.values.get(&name) {
                    values.insert(name, wish.clone());
                }
                core.wishes = core.shared.contexts.wishes(values);
            }
            Pending::ResetAll => {
                core.wishes = core.startup_wishes.clone();
                if let Some(server) = &mut self.server {
                    server.carried.wishes = Arc::default();
                }
            }
            Pending::DiscardAll => {
                core.wishes = core.startup_wishes.clone();
                core.pin = None;
                core.statements().clear_named();
                core.statements().forget_unnamed();
                if let Some(server) = &mut self.server {
                    server.was_cleaned();
                    server.carried.wishes = Arc::default();
                }
            }
            Pending::Deallocate(name) => {
                if let Some(statement) = core.statements().remove(&name)
                    && let Some(server) = &mut self.server
                {
                    server.statements.remove(statement.id);
                }
            }
            Pending::DeallocateAll => {
                core.statements().clear_named();
                if let Some(server) = &mut self.server {
                    server.statements.clear();
                }
            }
        }
    }

    fn carry_wishes(&mut self, core: &Core) {
        if let Some(server) = &mut self.server {
            server.carried.wishes = core.wishes.clone();
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
        self.return_server(server);
        let said = self.last_words.take().unwrap_or_else(|| {
            ErrorResponse::error(sqlstate::CONNECTION_FAILURE, "the connection to the shard was lost")
                .hint("Whether the statement was carried out is not known.")
        });
        let can_go_on = self.exchange.status == b'I'
            && core.pin.is_none()
            && self.s.pass == 0
            && self.s.drop == 0
            && self.s.buffer.fresh().is_empty();
        if !can_go_on || (self.exchange.readies_owed() == 0 && !self.exchange.is_open()) {
            return Err(End::Fatal(ErrorResponse { severity: Severity::Fatal, ..said }));
        }
        self.fail_statements(core, &said);
        Ok(())
    }

    /// The server connection is gone, or will not be used: everything that the client has sent and
    /// has no reply yet fails with `error`. The session goes on, as after any error.
    pub(super) fn fail_statements(&mut self, core: &mut Core, error: &ErrorResponse) {
        let owed = self.exchange.readies_owed();
        let open = self.exchange.is_open();
        core.account.errors.add(owed as u64 + u64::from(open));
        let out = self.s.own();
        for _ in 0..owed {
            error.encode(out);
            build::ready_for_query(out, b'I');
        }
        if open {
            error.encode(out);
            self.skip_to_sync = true;
        }
        self.c.drop_output();
        self.exchange.reset();
        self.pending = None;
        self.began = None;
        self.stall = false;
    }

    /// A cancel request came while the session waited for a server connection: what it would have
    /// run is canceled. // src/backend/tcop/postgres.c ProcessInterrupts
    pub(super) fn cancel_wait(&mut self, core: &mut Core) {
        if self.wait.take().is_some() {
            self.c.buffer.widen();
            let text = "canceling statement due to user request";
            self.refuse(core, &ErrorResponse::error(sqlstate::QUERY_CANCELED, text));
        }
    }

    /// The session ends, wherever it is. The server connection goes back if that is safe, after a
    /// rollback if that is needed; else it is closed and what it runs is canceled.
    pub(super) fn abandon(&mut self, core: &mut Core) {
        self.wait = None;
        let Some(mut server) = self.server.take() else { return };
        core.handle.detached();
        if core.pin.is_some() || !core.is_pooled() {
            server.carried.dirty = true;
        }
        let idle = self.exchange.is_quiet() && !self.c.has_output() && self.s.pass == 0 && self.c.pass == 0;
        if idle && self.exchange.status == b'I' && self.s.buffer.fresh().is_empty() {
            self.return_server(server);
            return;
        }
        let Some(pool) = self.lender.clone() else { return };
        if idle && self.s.buffer.fresh().is_empty() && tokio::runtime::Handle::try_current().is_ok() {
            tokio::spawn(async move {
                crate::server::roll_back(&mut server).await;
                pool.give_back(server);
            });
            return;
        }
        // In the middle of something: PostgreSQL would go on with it for nobody.
        if tokio::runtime::Handle::try_current().is_ok() && !self.exchange.is_quiet() {
            server.identity.cancel_begins();
            let identity = server.identity.clone();
            let shared = core.shared.clone();
            let tls = pool.tls().clone();
            tokio::spawn(async move { crate::cancel::send(&shared, &identity, &tls).await });
        }
        server.broken = true;
        pool.give_back(server);
    }

    /// What was meant for the client and has not been sent; nothing if that ends within a message.
    pub(super) fn unsent_to_client(&mut self) -> Vec<u8> {
        if self.s.pass > 0 { Vec::new() } else { self.s.take_output() }
    }
}
