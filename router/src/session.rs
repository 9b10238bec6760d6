//! A client's session after login: one task that owns the client's socket and, during a
//! transaction, the server connection it has borrowed.
//!
//! The path of a query: [`Session::poll`] reads from the client, [`relay`] forwards, and when the
//! server has said ReadyForQuery outside a transaction the connection goes back to the pool.
//! An idle session owns no buffer and no server connection, only what is in [`Core`].

mod behind;
mod borrow;
mod by_name;
mod client_half;
mod doubt;
mod effects;
pub(crate) mod expiry;
mod failure;
mod half;
pub(crate) mod handle;
mod handover;
pub(crate) mod listening;
mod pending;
mod prepare;
mod probe;
mod relay;
mod replan;
pub(crate) mod roaming;
mod rows;
mod sequences;
mod server_half;

use std::future::Future;
use std::pin::Pin as StdPin;
use std::sync::Arc;
use std::task::{Context, Poll};

use switchyard_config::TenantId;
use switchyard_config::topology::PoolMode;
use switchyard_wire::error::{ErrorResponse, sqlstate};

use crate::buffer::Buffer;
use crate::classify::Pin;
use crate::context::{TenantContext, Wishes};
use crate::limits::Limited;
use crate::pool::{Pool, Share};
use crate::server::{Server, ServerIdentity, UnnamedOf};
use crate::shared::Shared;
use crate::statements::ClientStatements;
use crate::stats::{ShardAccount, TenantAccount, TimeLimit};
use crate::stream::ClientStream;
use expiry::TimeLimits;
use handle::{Order, SessionHandle};
use relay::Relay;

/// Why a session ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The client said goodbye.
    Terminated,
    /// The client's socket closed or failed.
    ClientGone,
    /// The client is told why.
    Fatal(ErrorResponse),
}

/// Who the session is: what login found out.
#[derive(Debug)]
pub(crate) struct Who {
    /// The user, without any tenant suffix.
    pub(crate) user: String,
    /// The tenant.
    pub(crate) tenant: TenantId,
    /// Whether the session is declared read-only.
    pub(crate) reads: Reads,
    /// The login number of the user's own role on the shards; 0 is the shard's.
    pub(crate) login: u64,
    /// How the tenant was named, in a roaming session.
    pub(crate) roams: Option<roaming::Roams>,
}

/// What a session has been declared to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Anything.
    Anything,
    /// It begins with read-only transactions, by PostgreSQL's own parameter, and may change that where it is on
    /// the primary.
    AtFirst,
    /// It only reads.
    Only,
}

/// Where the tenant lives, as of one topology.
pub(crate) struct Seat {
    /// The generation of the topology that this was read from.
    pub(crate) generation: u64,
    pub(crate) pool: Arc<Pool>,
    pub(crate) context: Arc<TenantContext>,
    /// What its database runs behind the texts of statements.
    pub(crate) hidden: Arc<crate::hidden::Hidden>,
    /// The tenant's share of a full pool.
    pub(crate) share: Share,
    /// What hubs know the tenant by.
    pub(crate) voice: Arc<crate::notifications::voice::Voice>,
    /// The limits on its transactions, if there are any.
    pub(crate) limited: Option<Arc<Limited>>,
    /// How long its statements and transactions may take.
    pub(crate) times: expiry::TimeLimits,
    pub(crate) mode: PoolMode,
    /// The tenant is being moved: no transaction begins.
    pub(crate) held: bool,
    pub(crate) shard_account: Arc<ShardAccount>,
}

impl Seat {
    /// Whether it is on standbys, and the primary serves where there is none.
    pub(crate) fn may_do_without_standbys(&self) -> bool {
        self.pool.is_of_standbys() && self.pool.shard.pool.reads_from_primary
    }
}

/// All that an idle session keeps.
pub(crate) struct Core {
    pub(crate) client: ClientStream,
    pub(crate) shared: Arc<Shared>,
    pub(crate) worker: usize,
    pub(crate) id: u64,
    pub(crate) who: Arc<Who>,
    pub(crate) handle: Arc<SessionHandle>,
    pub(crate) seat: Seat,
    /// What the session asked for at startup.
    pub(crate) startup_wishes: Arc<Wishes>,
    /// What it asks for now.
    pub(crate) wishes: Arc<Wishes>,
    pub(crate) statements: Option<Box<ClientStatements>>,
    /// It keeps its connection, and the settings there that texts are parsed by are not known.
    pub(crate) parses_unknown: bool,
    /// Why the server connection is kept between transactions, if it is.
    pub(crate) pin: Option<Pin>,
    pub(crate) account: Arc<TenantAccount>,
    /// What a roaming session keeps beside.
    pub(crate) roaming: Option<Box<roaming::Roaming>>,
    /// The channels that it listens on, if any.
    pub(crate) listening: Option<Box<listening::Listening>>,
}

impl Core {
    pub(crate) fn statements(&mut self) -> &mut ClientStatements {
        self.statements.get_or_insert_default()
    }

    /// What a server connection that has the session's unnamed statement is known by, also if that is none.
    pub(crate) fn unnamed(&self) -> UnnamedOf {
        let serial = self.statements.as_ref().map_or(0, |statements| statements.unnamed_serial());
        UnnamedOf { session: self.id, serial }
    }

    /// It has waited for a server connection.
    pub(crate) fn note_wait(&self, took: std::time::Duration) {
        let us = took.as_micros() as u64;
        self.account.wait_us.add(us);
        self.seat.shard_account.wait_us.add(us);
    }

    /// Whether the server connection goes back after each transaction.
    pub(crate) fn is_pooled(&self) -> bool {
        self.pin.is_none() && self.seat.mode == PoolMode::Transaction
    }

    /// Whether the client was told at login that this is its server process: then no other can take its
    /// place, nor what the session has left there be had again.
    pub(crate) fn is_bound_to(&self, server: &ServerIdentity) -> bool {
        self.handle.key.pid() == server.pid
    }

    /// Looks where the tenant lives now, if the topology has changed. Costs one comparison if not.
    #[inline]
    pub(crate) fn refresh_seat(&mut self) -> Result<(), End> {
        if self.seat.generation == self.shared.generation() && !self.seat.held {
            return Ok(());
        }
        self.seat = self.shared.seat(&self.who, self.worker).map_err(End::Fatal)?;
        Ok(())
    }
}

/// Said once, as it goes for all sessions of sealed contexts.
static SEALED_READS: std::sync::Once = std::sync::Once::new();

impl Shared {
    /// Where the tenant of `who` lives by the current topology.
    pub(crate) fn seat(&self, who: &Who, worker: usize) -> Result<Seat, ErrorResponse> {
        // The generation first: if the topology changes in between, the seat is only looked up once more.
        let generation = self.generation();
        let topology = self.topology();
        if let Some(roams) = &who.roams
            && who.tenant.is_nobody()
        {
            return self.seat_of_nobody(who, roams, &topology, generation, worker);
        }
        let gone = || {
            ErrorResponse::fatal(
                sqlstate::ADMIN_SHUTDOWN,
                "the tenant of this session is no longer served here",
            )
            .hint("Connect again.")
        };
        let tenant = topology.tenant(&who.tenant).ok_or_else(gone)?;
        if !tenant.is_served() {
            return Err(suspended(&who.tenant));
        }
        let user = topology.users.get(&who.user).filter(|user| user.tenants.allows(&who.tenant));
        let user = user.ok_or_else(gone)?;
        let held = self.holds.is_held(&who.tenant);
        let placed = self.holds.place(&topology, &tenant).ok_or_else(|| {
            ErrorResponse::fatal(sqlstate::SQLCLIENT_UNABLE, "no shard is configured for this tenant")
        })?;
        let shard = &topology.shards[usize::from(placed.shard)];
        let template = tenant.context.as_ref().unwrap_or(&topology.context);
        // To enter a sealed context writes: standbys cannot.
        let reads = who.reads != Reads::Anything;
        let may_be_standby = reads && template.mode.is_plain();
        if reads && !may_be_standby && self.has_standbys(&shard.name) {
            SEALED_READS.call_once(|| {
                tracing::info!(tenant = %who.tenant, shard = %shard.name,
                    "sessions that only read are served by the primary: to enter a sealed context writes");
            });
        }
        let pool = may_be_standby.then(|| self.reading_pool(shard)).flatten();
        let pool = pool.or_else(|| self.pool(&shard.name)).ok_or_else(gone)?;
        let own = who.roams.as_ref().map(|roams| roams.context(template));
        let template = own.as_deref().unwrap_or(template);
        let route = crate::server::Route { database: shard.database.as_str().into(), login: who.login };
        let read_only = tenant.is_read_only() || who.reads == Reads::Only;
        let context = self.contexts.context(template, &who.tenant, &who.user, route, placed.epoch, read_only);
        let hidden = self.hidden(&shard.name, &context);
        let voice = self.voices.get(&who.tenant);
        let settings = self.settings();
        let mode = match &who.roams {
            // It is somebody else's session in the next transaction.
            Some(_) => PoolMode::Transaction,
            None => tenant.pool_mode.or(user.pool_mode).unwrap_or(settings.pool_mode),
        };
        let shard_account = self.stats.shard(&shard.name, worker);
        let stats = self.stats.tenant(&who.tenant);
        let share = Share { tenant: stats.number, weight: tenant.limits.weight };
        let limited = Limited::new(&tenant, stats);
        let times = TimeLimits::new(&tenant.limits, &settings.limits);
        Ok(Seat {
            generation,
            pool,
            context,
            hidden,
            share,
            voice,
            limited,
            times,
            mode,
            held,
            shard_account,
        })
    }
}

/// What who has proven to be a suspended tenant is told.
pub(crate) fn suspended(tenant: &TenantId) -> ErrorResponse {
    ErrorResponse::fatal(sqlstate::CANNOT_CONNECT_NOW, format!("tenant \"{tenant}\" is suspended"))
        .hint("Ask whoever operates this service to resume it.")
}

/// A session: a future that ends with the connection.
pub(crate) struct Session {
    core: Core,
    relay: Option<Box<Relay>>,
    /// Holds the client's place among the clients, and its row in the registry.
    _seat_taken: crate::shared::ClientPlace,
}

impl Session {
    /// A session that begins idle. `early` is what the client sent behind its login; `server` the
    /// connection that it keeps, where it does.
    pub(crate) fn new(
        core: Core,
        early: &[u8],
        place: crate::shared::ClientPlace,
        server: Option<Box<Server>>,
    ) -> Self {
        let mut relay = (!early.is_empty() || server.is_some()).then(|| Relay::begin(Buffer::holding(early)));
        if let (Some(relay), Some(server)) = (&mut relay, server) {
            relay.keep(&core, server);
        }
        Self { core, relay, _seat_taken: place }
    }

    fn run(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            while let Some(order) = self.core.handle.order() {
                if let Some(end) = self.obey(order) {
                    return Poll::Ready(end);
                }
                if self.core.handle.order() == Some(order) {
                    // It stands until it can.
                    break;
                }
            }
            if let Some(relay) = &mut self.relay {
                match relay.poll(&mut self.core, cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => {
                        if let Some(relay) = self.relay.take() {
                            relay.recycle();
                        }
                        self.core.handle.now_idle();
                        self.core.count_while_named();
                        if let Err(end) = self.core.follow() {
                            return Poll::Ready(end);
                        }
                    }
                    Poll::Ready(Err(end)) => return Poll::Ready(end),
                }
                continue;
            }
            match self.has_mail() {
                Ok(false) => {}
                Ok(true) => {
                    self.relay = Some(Relay::begin(Buffer::default()));
                    continue;
                }
                Err(end) => return Poll::Ready(end),
            }
            let mut buffer = Buffer::default();
            match self.core.client.poll_read(cx, buffer.room()) {
                Poll::Pending => {
                    buffer.rest();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(End::ClientGone),
                Poll::Ready(Ok(n)) => {
                    buffer.filled(n);
                    self.core.account.bytes_in.add(n as u64);
                    self.core.seat.shard_account.bytes_in.add(n as u64);
                    self.relay = Some(Relay::begin(buffer));
                    self.core.handle.now_active();
                }
            }
        }
    }

    /// Whether an order from outside ends the session now; if not, it stands until it can.
    fn obey(&mut self, order: Order) -> Option<End> {
        let between = self.relay.as_ref().is_none_or(|relay| relay.is_between_transactions());
        match order {
            Order::Terminate => Some(End::Fatal(ErrorResponse::fatal(
                sqlstate::ADMIN_SHUTDOWN,
                "terminating connection due to administrator command",
            ))),
            Order::Drain if between => Some(End::Fatal(
                ErrorResponse::fatal(
                    sqlstate::ADMIN_SHUTDOWN,
                    "terminating connection due to administrator command",
                )
                .hint("The router is shutting down; connect again."),
            )),
            Order::Drain => None,
            Order::Moving => {
                self.core.handle.withdraw(Order::Moving);
                between.then(|| {
                    End::Fatal(
                        ErrorResponse::fatal(
                            sqlstate::ADMIN_SHUTDOWN,
                            "the tenant of this session is moving to another shard",
                        )
                        .hint("What the session keeps cannot be carried there. Connect again."),
                    )
                })
            }
            Order::Refresh => {
                self.core.handle.withdraw(Order::Refresh);
                if !between {
                    return None;
                }
                if self.core.roaming.is_some() {
                    return self.core.look_around().err();
                }
                self.core.refresh_seat().and_then(|()| self.core.follow()).err()
            }
            // The mailbox says the same, for as long as there is something in it.
            Order::Mail => {
                self.core.handle.withdraw(Order::Mail);
                self.has_mail().err()
            }
            Order::CancelWait => {
                self.core.handle.withdraw(Order::CancelWait);
                if let Some(relay) = &mut self.relay {
                    relay.cancel_wait(&mut self.core);
                }
                None
            }
            Order::IdleTimeout => {
                self.core.handle.withdraw(Order::IdleTimeout);
                between.then(|| {
                    self.core.shared.stats.time_limits.add(TimeLimit::Idle);
                    End::Fatal(ErrorResponse::fatal(
                        sqlstate::IDLE_SESSION_TIMEOUT,
                        "terminating connection due to idle-session timeout",
                    ))
                })
            }
            Order::IdleInTransactionTimeout => {
                self.core.handle.withdraw(Order::IdleInTransactionTimeout);
                self.relay.as_ref().is_some_and(|relay| relay.is_idle_in_transaction()).then(|| {
                    self.core.shared.stats.time_limits.add(TimeLimit::IdleInTransaction);
                    End::Fatal(ErrorResponse::fatal(
                        sqlstate::IDLE_IN_TRANSACTION,
                        "terminating connection due to idle-in-transaction timeout",
                    ))
                })
            }
        }
    }

    /// Leaves nothing behind: the server connection goes back or is closed, the client is told.
    fn finish(&mut self, end: End, cx: &mut Context<'_>) {
        let mut last_words = Vec::new();
        let mut in_step = true;
        if let Some(mut relay) = self.relay.take() {
            relay.abandon(&mut self.core);
            in_step = !relay.is_within_message();
            last_words = relay.unsent_to_client();
        }
        match &end {
            End::Fatal(error) => {
                tracing::info!(
                    session = self.core.id,
                    tenant = %self.core.who.tenant,
                    user = self.core.who.user,
                    sqlstate = %error.code,
                    error = error.message,
                    "session ended by the router"
                );
                if in_step {
                    error.encode(&mut last_words);
                }
                // One attempt: who does not read cannot hold up the end of the session.
                let mut sent = 0;
                while sent < last_words.len() {
                    match self.core.client.poll_write(cx, &last_words[sent..]) {
                        Poll::Ready(Ok(n)) if n > 0 => sent += n,
                        _ => break,
                    }
                }
                let _ = self.core.client.poll_flush(cx);
            }
            End::Terminated | End::ClientGone => {
                tracing::debug!(session = self.core.id, tenant = %self.core.who.tenant, "session ended");
            }
        }
        // Where nothing more is to be said, closing the socket is all that PostgreSQL does, too.
        if self.core.client.is_tls() || matches!(end, End::Fatal(_)) {
            let _ = self.core.client.poll_shutdown(cx);
        }
    }
}

/// What an idle session takes by itself, in bytes.
pub(crate) const SESSION_BYTES: usize = std::mem::size_of::<Session>();

impl Future for Session {
    type Output = ();

    fn poll(self: StdPin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.core.handle.register(cx.waker());
        match this.run(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(end) => {
                this.finish(end, cx);
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The runtime is shutting down in the middle of it: the connection must not look reusable.
        if let Some(mut relay) = self.relay.take() {
            relay.abandon(&mut self.core);
        }
    }
}
