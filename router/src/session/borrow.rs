//! How a relay comes by a server connection, makes it ready for the session, and gives it back.

use std::future::Future;
use std::pin::Pin as StdPin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use switchyard_wire::build;
use switchyard_wire::error::{ErrorResponse, Severity, sqlstate};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::relay::Relay;
use super::roaming::Place;
use super::sequences::FORGET_SEQUENCES;
use super::server_half::canceled_by_user;
use super::{Core, End, Reads};
use crate::buffer::Buffer;
use crate::context::{self, Handover, HandoverError};
use crate::limits::{Entry, Refused, Turn};
use crate::pool::{Lend, Pool, PoolError, Want};
use crate::seal::{SealError, Sealed};
use crate::server::{SEQUENCES_OF_MANY, Server};

/// Most bytes of a client that are kept to be sent again on another connection.
pub(super) const REPLAY_BYTES: usize = 16 * 1024;

/// Connections that are tried for one statement before it fails.
pub(super) const ATTEMPTS: u8 = 3;

/// A wait for a server connection.
pub(super) struct Wait {
    answer: Answer,
    /// None for a turn, which ends by itself.
    timeout: Option<StdPin<Box<Sleep>>>,
    since: Instant,
    /// When the timeout is to end the wait, where it ends earlier to tell the client of it.
    told_before: Option<Instant>,
}

/// What is waited for.
enum Answer {
    /// The tenant's limits on transactions.
    Turn(StdPin<Box<dyn Future<Output = Result<Turn, Refused>> + Send>>),
    /// The tenant's limit of connections, among which a roaming session comes to count.
    Place(Place),
    /// The pool.
    Server(oneshot::Receiver<Result<Box<Server>, PoolError>>),
}

impl Relay {
    /// Asks for a connection: the tenant's limits first, then the pool. It is attached, or awaited, or
    /// refused to the client, when this returns.
    pub(super) fn borrow_server(&mut self, core: &mut Core) -> Result<(), End> {
        if core.roaming.is_some() {
            if let Err(error) = core.look_again() {
                self.refuse(core, &error);
                return Ok(());
            }
            if let Some(place) = core.count_for_tenant() {
                self.wait_for_limit(core, Answer::Place(place), Instant::now());
                return Ok(());
            }
        } else {
            core.refresh_seat()?;
        }
        if self.turn.is_none()
            && let Some(limited) = &core.seat.limited
        {
            let now = Instant::now();
            match limited.enter(now) {
                Entry::Now(turn) => self.turn = Some(turn),
                Entry::Later(at) => {
                    let turn = Box::pin(limited.clone().wait(at, now));
                    self.wait_for_limit(core, Answer::Turn(turn), now);
                    return Ok(());
                }
                Entry::Refused(refused) => {
                    core.account.limited.add(1);
                    self.over_limit(core, refused);
                    return Ok(());
                }
            }
        }
        self.borrow_from_pool(core)
    }

    fn wait_for_limit(&mut self, core: &Core, answer: Answer, since: Instant) {
        core.account.waits.add(1);
        core.account.limited.add(1);
        self.c.buffer.shrink();
        core.handle.waits();
        self.wait = Some(Box::new(Wait { answer, timeout: None, since, told_before: None }));
    }

    /// The tenant's limits do not allow the transaction.
    fn over_limit(&mut self, core: &mut Core, refused: Refused) {
        core.account.shed.add(1);
        tracing::debug!(session = core.id, tenant = %core.who.tenant, %refused, "over a limit");
        self.refuse(core, &refused.for_client());
    }

    fn borrow_from_pool(&mut self, core: &mut Core) -> Result<(), End> {
        while core.seat.held {
            if let Some(answer) = core.shared.holds.join(&core.who.tenant) {
                self.lender = None;
                self.wait_for(core, answer, crate::holds::LONGEST);
                return Ok(());
            }
            core.refresh_seat()?;
        }
        let now = Instant::now();
        let want = Want {
            route: &core.seat.context.route,
            context: core.seat.context.id,
            share: core.seat.share,
            wishes: core.wishes.id,
            session: core.id,
            worker: core.worker,
            now,
            tenant: Some(&core.who.tenant),
        };
        self.lender = Some(core.seat.pool.clone());
        match core.seat.pool.lend(&want) {
            Lend::Now(server) => self.attach(core, server, now),
            Lend::Later(answer) => {
                core.account.waits.add(1);
                let limit = core.seat.pool.shard.pool.queue_timeout;
                self.wait_for(core, answer, limit);
                Ok(())
            }
            Lend::Never(error) => self.not_lent(core, &error),
        }
    }

    fn wait_for(
        &mut self,
        core: &Core,
        answer: oneshot::Receiver<Result<Box<Server>, PoolError>>,
        limit: Duration,
    ) {
        core.handle.waits();
        // Many may wait for long: hold what has arrived in no more memory than it needs.
        self.c.buffer.shrink();
        let notice = core.seat.pool.shard.pool.queue_notice;
        let tells = !notice.is_zero() && notice < limit;
        let since = Instant::now();
        let timeout = Box::pin(tokio::time::sleep(if tells { notice } else { limit }));
        self.wait = Some(Box::new(Wait {
            answer: Answer::Server(answer),
            timeout: Some(timeout),
            since,
            told_before: tells.then(|| since + limit),
        }));
    }

    /// Whether the wait has ended: with a connection, or with an error told to the client.
    pub(super) fn poll_wait(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let Some(wait) = &mut self.wait else { return Poll::Ready(Ok(())) };
        let server = match &mut wait.answer {
            Answer::Server(answer) => StdPin::new(answer).poll(cx),
            Answer::Place(place) => {
                let Poll::Ready(place) = place.as_mut().poll(cx) else { return Poll::Pending };
                core.note_wait(wait.since.elapsed());
                self.wait = None;
                self.c.buffer.widen();
                return Poll::Ready(match place {
                    Ok(presence) => {
                        core.is_counted(presence);
                        self.borrow_server(core)
                    }
                    Err(error) => {
                        core.account.shed.add(1);
                        tracing::debug!(session = core.id, tenant = %core.who.tenant, error = error.message, "over a limit");
                        self.refuse(core, &error);
                        Ok(())
                    }
                });
            }
            Answer::Turn(turn) => {
                let Poll::Ready(turn) = turn.as_mut().poll(cx) else { return Poll::Pending };
                core.note_wait(wait.since.elapsed());
                self.wait = None;
                self.c.buffer.widen();
                return Poll::Ready(match turn {
                    Ok(turn) => {
                        self.turn = Some(turn);
                        self.borrow_server(core)
                    }
                    Err(refused) => {
                        self.over_limit(core, refused);
                        Ok(())
                    }
                });
            }
        };
        if let Poll::Ready(answer) = server {
            core.note_wait(wait.since.elapsed());
            self.wait = None;
            self.c.buffer.widen();
            return Poll::Ready(match answer {
                Ok(Ok(server)) => {
                    let asked = self.lender.clone();
                    core.refresh_seat()?;
                    let same = asked.as_ref().is_some_and(|pool| Arc::ptr_eq(pool, &core.seat.pool));
                    if same && !core.seat.held {
                        self.attach(core, server, Instant::now())
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
                Ok(Err(error)) => self.not_lent(core, &error),
                Err(_) => self.unavailable(core, &PoolError::Closed),
            });
        }
        while let Some(timeout) = &mut wait.timeout {
            if timeout.as_mut().poll(cx).is_pending() {
                break;
            }
            if let Some(until) = wait.told_before.take() {
                timeout.as_mut().reset(until.into());
                if self.s.pass == 0 {
                    let text = "no server connection is free yet, the statement waits for one";
                    ErrorResponse::notice(sqlstate::SUCCESSFUL_COMPLETION, text).encode(self.s.own());
                    // It is written when this is polled again.
                    cx.waker().wake_by_ref();
                }
                continue;
            }
            let longest = core.shared.settings().console.hold_timeout;
            if let Some(until) = core.seat.pool.may_wait_until(wait.since, &core.who.tenant, longest) {
                timeout.as_mut().reset(until.into());
                continue;
            }
            let waited = wait.since.elapsed();
            self.wait = None;
            self.c.buffer.widen();
            core.note_wait(waited);
            core.account.shed.add(1);
            core.seat.pool.counters.queue_timeouts.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(session = core.id, tenant = %core.who.tenant, shard = %core.seat.pool.shard.name,
                waited_ms = waited.as_millis() as u64, "no server connection became free in time");
            let text = "no server connection became free in time";
            let hint = match core.seat.pool.is_holding(&core.who.tenant) {
                true => "The operators of this service have paused the tenant or its shard; try again later.",
                false => {
                    "All connections of the tenant's shard are busy; try again, or make its pool larger."
                }
            };
            let error = ErrorResponse::error(sqlstate::TOO_MANY_CONNECTIONS, text).hint(hint);
            self.refuse(core, &error);
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Where a standby was asked for, the primary serves as well, if it may.
    fn not_lent(&mut self, core: &mut Core, error: &PoolError) -> Result<(), End> {
        let pool = &core.seat.pool;
        if core.seat.may_do_without_standbys() && matches!(error, PoolError::Connect(_)) {
            tracing::info!(session = core.id, shard = %pool.shard.name, %error, "no standby; the primary serves");
            pool.distrust_standbys();
            core.shared.raise_generation();
            return self.borrow_server(core);
        }
        self.unavailable(core, error)
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

    /// The session begins with this connection, and keeps it.
    pub(super) fn keep(&mut self, core: &Core, server: Box<Server>) {
        self.lender = Some(core.seat.pool.clone());
        // It has not waited for it as a session.
        let _ = core.handle.attached(&server.identity);
        core.seat.shard_account.assignments.add(1);
        self.server = Some(server);
    }

    /// Puts what makes the connection ready in front of the client's bytes. `now` is when it was lent.
    fn attach(&mut self, core: &mut Core, mut server: Box<Server>, now: Instant) -> Result<(), End> {
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
        if core.seat.context.sealed.is_some() && server.seal.is_none() {
            return self.attach_sealed(core, server);
        }
        if !core.handle.attached(&server.identity) {
            self.return_server(server);
            self.refuse(core, &canceled_by_user());
            return Ok(());
        }
        if core.seat.generation != core.shared.generation() {
            // Who holds the tenant looks at what is attached after it has raised the generation: either
            // it has seen this connection, or the session sees the hold here.
            core.refresh_seat()?;
            let same = self.lender.as_ref().is_some_and(|pool| Arc::ptr_eq(pool, &core.seat.pool));
            if core.seat.held || !same {
                core.handle.detached();
                self.return_server(server);
                return self.borrow_server(core);
            }
        }
        core.seat.shard_account.assignments.add(1);
        self.server = Some(server);
        self.began = Some(now);
        self.make_ready(core)?;
        self.open_transaction(core)?;
        self.can_replay = self.exchange.prefix.is_pending() && self.exchange.prefix.readies == 0;
        self.reads_again = self.lender.as_ref().is_some_and(|pool| pool.is_of_standbys());
        if self.can_replay || self.reads_again {
            self.replay.clear();
            let fresh = self.c.buffer.fresh();
            if fresh.len() <= REPLAY_BYTES {
                self.replay.extend_from_slice(fresh);
            } else {
                (self.can_replay, self.reads_again) = (false, false);
            }
        }
        Ok(())
    }

    /// A connection on which no token can be used was made before there were keys or a schema, or
    /// the shard still lacks them. Another is tried, which is made anew.
    fn attach_sealed(&mut self, core: &mut Core, mut server: Box<Server>) -> Result<(), End> {
        let asked = server.asked_for_seal;
        server.broken = true;
        self.return_server(server);
        if !asked || self.attempts < ATTEMPTS {
            self.attempts += u8::from(asked);
            return self.borrow_server(core);
        }
        self.attempts = 0;
        let error = SealError::NoPlace;
        tracing::warn!(session = core.id, tenant = %core.who.tenant, shard = %core.seat.pool.shard.name,
            %error, "cannot seal the tenant's context");
        self.refuse(core, &ErrorResponse { severity: Severity::Error, ..error.for_client() });
        Ok(())
    }

    /// The client has sent `bytes` more.
    #[inline]
    pub(super) fn note_for_replay(&mut self, len: usize) {
        if !self.can_replay && !self.reads_again && self.replan.is_none() {
            return;
        }
        let fresh = self.c.buffer.fresh();
        if self.replay.len() + len > REPLAY_BYTES {
            self.can_replay = false;
            self.reads_again = false;
            self.replan = None;
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
        for what in undo.drain(..).rev() {
            self.undo_one(core, what);
        }
        self.undo = undo;
        self.journal.clear();
        self.c.clear();
        self.c.buffer = Buffer::holding(&self.replay);
        self.pending.clear();
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
        // A standby has nothing to say that anybody would hear, and cannot.
        let on_standby = self.lender.as_ref().is_some_and(|pool| pool.is_of_standbys());
        let announcement = match on_standby {
            false => core.shared.voices.announcement(server, &core.seat.voice),
            true => None,
        };
        let announce = announcement.as_deref().map(|tag| (core.shared.voices.key.channel(), tag));
        // What `currval` and `lastval` say here may be another session's.
        let of_others = server.sequences_of != 0 && server.sequences_of != core.id;
        let forgets = of_others && core.seat.hidden.uses_last_values();
        // A seal may be such a value.
        server.carried.lost |= forgets && core.seat.context.sealed.is_some();
        let own = self.c.own();
        let forgotten = if forgets { build::query(own, FORGET_SEQUENCES) } else { Ok(()) };
        let seal = &mut server.seal;
        let mut mint = |sealed: &Sealed| core.seat.pool.sealer.mint(seal.as_mut(), sealed);
        let (context, wishes) = (&core.seat.context, &core.wishes);
        let made = forgotten.map_err(HandoverError::Build).and_then(|()| {
            context::handover(own, &server.carried, core.id, context, wishes, &mut mint, announce)
        });
        let (kind, mut prefix) = made.map_err(|error| {
            tracing::error!(session = core.id, tenant = %core.who.tenant, %error, "cannot say the tenant's context");
            server.broken = true;
            End::Fatal(match error {
                HandoverError::Seal(error) => error.for_client(),
                HandoverError::Build(_) => {
                    ErrorResponse::fatal(sqlstate::INTERNAL, "the context of this tenant cannot be set")
                }
            })
        })?;
        match kind {
            Handover::Nothing => {}
            // A wish may be a Query, with which the unnamed statement goes.
            Handover::Wishes => server.unnamed_of = crate::server::UNNAMED_OF_NOBODY,
            Handover::Context => {
                server.unnamed_of = crate::server::UNNAMED_OF_NOBODY;
                core.seat.pool.counters.contexts.fetch_add(1, Ordering::Relaxed);
            }
            Handover::Clean => {
                core.seat.pool.counters.cleanings.fetch_add(1, Ordering::Relaxed);
                server.was_cleaned();
            }
        }
        if forgets {
            prefix.commands += 1;
            prefix.readies += 1;
            server.unnamed_of = crate::server::UNNAMED_OF_NOBODY;
        }
        let is_own = forgets || !of_others || kind == Handover::Clean;
        server.sequences_of = if is_own { core.id } else { SEQUENCES_OF_MANY };
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
        self.parses_otherwise = false;
        self.turn = None;
        let now = Instant::now();
        if let Some(began) = self.began.take() {
            let took = now.saturating_duration_since(began);
            core.account.transaction(took);
            core.seat.shard_account.transactions.record(took);
            if self.fresh_pin {
                self.fresh_pin = false;
                if self.rolled_back {
                    tracing::debug!(session = core.id, tenant = %core.who.tenant, "rolled back what pinned the session");
                    core.pin = None;
                }
            }
            self.rolled_back = false;
        }
        if self.looks_behind(core, now) {
            return;
        }
        if self.touched.is_some() && self.ask(core) {
            return;
        }
        if core.is_pooled() {
            self.release(core, now);
            core.count_while_named();
        }
    }

    /// A transaction begins on a connection that is kept. False if it must wait: the tenant is held,
    /// and the session is woken when that is over.
    pub(super) fn begin_again(&mut self, core: &mut Core) -> Result<bool, End> {
        if self.began.is_some() {
            return Ok(true);
        }
        core.refresh_seat()?;
        if core.seat.held {
            return Ok(false);
        }
        // Who reads from a standby stays there, also when others are sent to the primary by now, and the other way round.
        let stays = |pool: &Arc<Pool>| {
            Arc::ptr_eq(pool, &core.seat.pool)
                || (Arc::ptr_eq(&pool.shard, &core.seat.pool.shard) && core.who.reads != Reads::Anything)
        };
        if !self.lender.as_ref().is_some_and(stays) {
            // What the session keeps the connection for cannot be carried to another shard.
            return Err(End::Fatal(
                ErrorResponse::fatal(
                    sqlstate::ADMIN_SHUTDOWN,
                    "the tenant of this session has moved to another shard",
                )
                .hint("Connect again."),
            ));
        }
        if self.server.as_ref().is_some_and(|server| server.carried.context != core.seat.context.id) {
            // To clean the connection would take away what the session keeps it for.
            return Err(End::Fatal(
                ErrorResponse::fatal(
                    sqlstate::ADMIN_SHUTDOWN,
                    "the context of this session's tenant has changed",
                )
                .hint("Connect again."),
            ));
        }
        let now = Instant::now();
        if let Some(limited) = &core.seat.limited {
            limited.count(now);
        }
        self.began = Some(now);
        self.attempts = 0;
        self.make_ready(core)?;
        Ok(true)
    }

    /// Gives a server connection back to where it came from.
    pub(super) fn return_server(&self, server: Box<Server>) {
        if let Some(pool) = &self.lender {
            pool.give_back(server);
        }
    }

    fn release(&mut self, core: &mut Core, now: Instant) {
        if let Some(mut server) = self.server.take() {
            core.handle.detached();
            core.handle.note_statements(core.statements.as_ref().map_or(0, |statements| statements.len()));
            if !self.s.buffer.fresh().is_empty() {
                // It said something that belongs to no statement.
                server.broken = true;
                let unread = self.s.buffer.fresh().len();
                self.s.buffer.swallow(unread);
            }
            if let Some(pool) = &self.lender {
                pool.give_back_at(server, now);
            }
        }
    }
}
