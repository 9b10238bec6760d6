//! Forwarding between a client and the server connection it has borrowed.
//!
//! One poll does, until nothing moves any more: read from the server and write to the client
//! (`server_half`), read from the client and write to the server (`client_half`, and `prepare` for
//! prepared statements), borrow a server connection when the client's first message needs one, and
//! give it back as soon as the server has said ReadyForQuery outside a transaction (`borrow`). What
//! statements leave behind in the session is in `effects`, what happens when something fails in
//! `failure`.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use switchyard_wire::error::ErrorResponse;

use super::borrow::Wait;
use super::effects::Touched;
use super::half::Half;
use super::handle::Activity;
use super::pending::PendingEffects;
use super::probe::Probe;
use super::replan::Replan;
use super::{Core, End};
use crate::buffer::Buffer;
use crate::exchange::{Exchange, Undo};
use crate::limits::Turn;
use crate::pool::Pool;
use crate::server::Server;

/// Relays that a thread keeps for reuse; more are freed.
const STOCK_MAX: usize = 64;

thread_local! {
    // Boxed, so that taking one out does not move it.
    #[allow(clippy::vec_box)]
    static STOCK: RefCell<Vec<Box<Relay>>> = const { RefCell::new(Vec::new()) };
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
    pub(super) lender: Option<Arc<Pool>>,
    /// The place of the transaction within its tenant's limits.
    pub(super) turn: Option<Turn>,
    pub(super) exchange: Exchange,
    pub(super) wait: Option<Box<Wait>>,
    /// When the current transaction began.
    pub(super) began: Option<Instant>,
    pub(super) pending: PendingEffects,
    /// What is to be asked when the transaction is over.
    pub(super) touched: Option<Box<Touched>>,
    pub(super) probe: Option<Box<Probe>>,
    /// What the statements of the transaction may have reached that they do not name.
    pub(super) reached: u8,
    pub(super) look: Option<Box<super::behind::Look>>,
    /// The transaction changes what its database runs behind statements.
    pub(super) disturbance: Option<crate::hidden::Disturbance>,
    /// The unnamed statement was prepared in the group that is not ended: what it does is noted.
    pub(super) parsed_unnamed: bool,
    /// Room for the message that is being looked at.
    pub(super) parsing: Vec<u8>,
    /// Texts are parsed under settings of the transaction's own from here on, which are not followed.
    pub(super) parses_otherwise: bool,
    /// Settings to be set again behind the client's statement.
    pub(super) after_sync: Vec<(String, String)>,
    /// That is under way.
    pub(super) sets_back: bool,
    /// The server is ready, and the client is to be told when the settings are set again.
    pub(super) ready_later: bool,
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
    /// Rows that the server has sent for the current statement.
    pub(super) rows: u64,
    /// The last statement that completed was a ROLLBACK.
    pub(super) rolled_back: bool,
    /// What the client has sent since the connection was borrowed, while it can be taken back: until
    /// the replies to the router's own messages are in.
    pub(super) replay: Vec<u8>,
    pub(super) can_replay: bool,
    /// The same, on a standby: until the client has been told something of what was read.
    pub(super) reads_again: bool,
    pub(super) replan: Option<Replan>,
    /// Connections tried for the current statement.
    pub(super) attempts: u8,
    /// What the client sends passes for skipped after an error, up to its next Sync.
    pub(super) skip_to_sync: bool,
    /// What becomes of the channels that the session listens on.
    pub(super) journal: crate::notifications::journal::Journal,
    /// The session listens, and has said something that notifies.
    pub(super) notifies: bool,
    pub(super) gate: Option<super::listening::Gate>,
    /// What is to be known of an error that has come before the client sees it.
    pub(super) doubt: Option<super::doubt::Doubt>,
    /// What is timed, where there are limits.
    pub(super) expiry: Option<Box<super::expiry::Expiry>>,
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
                turn: None,
                exchange: Exchange::new(),
                wait: None,
                began: None,
                pending: PendingEffects::default(),
                touched: None,
                probe: None,
                reached: 0,
                look: None,
                disturbance: None,
                parsed_unnamed: false,
                parsing: Vec::new(),
                parses_otherwise: false,
                after_sync: Vec::new(),
                sets_back: false,
                ready_later: false,
                failed: false,
                stall: false,
                last_words: None,
                undo: Vec::new(),
                fresh_pin: false,
                rows: 0,
                rolled_back: false,
                skip_to_sync: false,
                journal: Default::default(),
                notifies: false,
                gate: None,
                doubt: None,
                expiry: None,
                replay: Vec::new(),
                can_replay: false,
                reads_again: false,
                replan: None,
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
        self.turn = None;
        self.c.clear();
        self.s.clear();
        self.exchange.reset();
        self.began = None;
        self.pending.clear();
        self.touched = None;
        self.probe = None;
        self.reached = 0;
        self.look = None;
        self.disturbance = None;
        self.parsed_unnamed = false;
        self.parses_otherwise = false;
        self.after_sync.clear();
        self.sets_back = false;
        self.ready_later = false;
        self.failed = false;
        self.stall = false;
        self.last_words = None;
        self.undo.clear();
        self.fresh_pin = false;
        self.rows = 0;
        self.rolled_back = false;
        self.skip_to_sync = false;
        self.journal.clear();
        self.notifies = false;
        self.gate = None;
        self.doubt = None;
        self.expiry = None;
        self.can_replay = false;
        self.reads_again = false;
        self.replan = None;
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
            self.deliver(core)?;
            let mut moved = self.poll_server_half(core, cx)?;
            let said = self.s.has_output();
            moved |= self.poll_client_half(core, cx)?;
            // What the router answers itself counts as well.
            moved |= !said && self.s.has_output();
            if self.server.is_none() && self.wait.is_none() && self.c.is_done() && !self.s.has_output() {
                return Poll::Ready(Ok(()));
            }
            if !moved && !self.poll_expiry(core, cx)? {
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
}
