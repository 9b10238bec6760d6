//! The change stream of a source database: one replication slot, however many moves read from it.
//!
//! A task reads the stream, keeps the changes of tenants that somebody subscribes to, and hands
//! them on by transaction, at its commit. Who subscribes sees every transaction that commits after
//! that; which of them the copy has seen already is decided by the snapshot of the copy ([`Snapshot`]).

mod pgoutput;
mod protocol;
mod reader;
mod slot;
mod snapshot;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::MoveError;
use crate::shard::ShardAccess;

pub(crate) use pgoutput::{Change, Relation, Row, Value};
pub(crate) use slot::{PUBLICATION, Patience, drop_slot, publish};
pub(crate) use snapshot::Snapshot;

/// Most bytes of changes that wait to be applied, over all moves of a source. Above it the stream is not read,
/// and the write-ahead log waits on the shard.
const BACKLOG_BYTES: usize = 256 << 20;

/// Transaction ids of the past that are remembered.
const REMEMBERED: usize = 8192;

/// How long a transaction may take that has committed in the log when a stream is opened, until others see it. One that
/// takes longer is missed by a copy that begins then, which the comparison finds.
const COMMITTING: Duration = Duration::from_secs(3);

/// Most bytes of one transaction of a tenant.
const TRANSACTION_BYTES: usize = 256 << 20;

/// Which rows of a table a subscriber wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) schema: String,
    pub(crate) table: String,
    /// The column that holds the tenant; all rows if none.
    pub(crate) column: Option<String>,
}

/// A transaction, with the changes that the subscriber wants.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) xid: u32,
    /// Position of the end of its commit record.
    pub(crate) end: u64,
    pub(crate) changes: Vec<(Arc<Relation>, Change)>,
    bytes: usize,
}

/// What a subscriber hears.
#[derive(Debug)]
pub(crate) enum Event {
    /// A transaction has committed.
    Transaction(Transaction),
    /// Something that a move cannot follow.
    Drift(String),
    /// The stream has ended; nothing more comes.
    Lost(String),
    /// It retained more of the log than it may, and its slot is gone.
    Exceeded(String),
}

/// How far a subscriber has come, shared with the reader.
#[derive(Debug, Default)]
struct Pace {
    /// Events handed over and not settled yet.
    outstanding: AtomicUsize,
    bytes: AtomicUsize,
    /// End of the last transaction that is safe on the other side.
    settled: AtomicU64,
    /// Who follows needs nothing more. Else it comes back, and finds what it has not settled.
    over: AtomicBool,
}

/// A subscription. It ends when it is dropped; what it has not settled is kept until the move subscribes again, or
/// [`Stream::forget`] is told of it.
pub(crate) struct Subscription {
    events: mpsc::UnboundedReceiver<Event>,
    pace: Arc<Pace>,
    /// Transactions that had been handed on before this one began, or were settled since, the latest of them.
    before: VecDeque<u32>,
    /// What had been handed on before the stream was opened has ids below this; and when that was.
    horizon: (u64, Instant),
    /// Where it begins: what ended before is not told.
    pub(crate) from: u64,
    /// How far the stream has been read.
    pub(crate) position: watch::Receiver<u64>,
    /// What keeps the stream open.
    stream: Option<Arc<Stream>>,
}

impl Subscription {
    /// Keeps the stream open for as long as the subscription lasts.
    pub(crate) fn holding(mut self, stream: Arc<Stream>) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Whether its stream has broken.
    pub(crate) fn is_over(&self) -> bool {
        self.stream.as_ref().is_none_or(|stream| stream.is_over())
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Event {
        let lost = || Event::Lost("the reader of the stream has ended".to_owned());
        self.events.recv().await.unwrap_or_else(lost)
    }

    /// The next event, if it is there already.
    pub(crate) fn ready(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// Whether a snapshot sees all that is on the other side, or was handed on before this began. A transaction that the
    /// stream tells of has committed in the log, but not yet for others: with a synchronous standby that can take long.
    pub(crate) fn is_seen_by(&self, snapshot: &Snapshot) -> bool {
        // Who writes for longer than that has not committed.
        let (horizon, opened) = self.horizon;
        (snapshot.is_beyond(horizon) || opened.elapsed() > COMMITTING)
            && self.before.iter().all(|xid| snapshot.sees(*xid))
    }

    /// A transaction is safe on the other side, or needs not be.
    pub(crate) fn settle(&mut self, transaction: &Transaction) {
        remember(&mut self.before, transaction.xid);
        self.pace.bytes.fetch_sub(transaction.bytes, Ordering::Relaxed);
        self.pace.settled.fetch_max(transaction.end, Ordering::Relaxed);
        self.pace.outstanding.fetch_sub(1, Ordering::Release);
    }

    /// Everything before `position` is safe on the other side, as nothing is outstanding.
    pub(crate) fn settle_to(&self, position: u64) {
        self.pace.settled.fetch_max(position, Ordering::Relaxed);
    }

    /// Whether everything that was handed over has been settled.
    pub(crate) fn is_settled(&self) -> bool {
        self.pace.outstanding.load(Ordering::Acquire) == 0
    }

    /// Bytes that wait to be applied.
    pub(crate) fn backlog(&self) -> usize {
        self.pace.bytes.load(Ordering::Relaxed)
    }
}

struct Subscribe {
    id: i64,
    tenant: String,
    wanted: Vec<Wanted>,
    /// Where it is to begin, if not here.
    from: Option<u64>,
    done: oneshot::Sender<Subscription>,
}

enum Request {
    Subscribe(Subscribe),
    /// A move needs nothing of the log any more.
    Forget(i64),
}

/// Adds a transaction to the latest.
fn remember(latest: &mut VecDeque<u32>, xid: u32) {
    latest.push_back(xid);
    if latest.len() > REMEMBERED {
        latest.pop_front();
    }
}

/// The stream of one database.
pub(crate) struct Stream {
    requests: mpsc::UnboundedSender<Request>,
    reader: JoinHandle<()>,
    retained: Arc<AtomicU64>,
    budget: u64,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Stream {
    /// Opens the stream of `at`, and its slot if there is none. Moves that are expected have followed it before:
    /// nothing is read until they are there again, or for so long, and what they have not settled is kept for them.
    pub(crate) async fn open(
        at: &ShardAccess,
        wal_budget: u64,
        expected: Vec<i64>,
    ) -> Result<Self, MoveError> {
        let slot = slot::ensure(at).await?;
        let connection = protocol::Connection::start(at, &slot.name, PUBLICATION, 0).await?;
        let (tell, requests) = mpsc::unbounded_channel();
        let reader = reader::Reader::new(connection, requests, (slot.from, slot.horizon), expected);
        let retained = Arc::new(AtomicU64::new(0));
        let watched = slot::Watch::new(at, slot.name, wal_budget, retained.clone());
        let reader = tokio::spawn(reader.run(watched));
        Ok(Self { requests: tell, reader, retained, budget: wal_budget })
    }

    /// Waits until the stream has broken.
    pub(crate) async fn ended(&self) {
        self.requests.closed().await;
        while !self.is_over() {
            tokio::task::yield_now().await;
        }
    }

    /// Bytes of log that its slot retained when it was last looked at, and most that it may.
    pub(crate) fn retained(&self) -> (u64, u64) {
        (self.retained.load(Ordering::Relaxed), self.budget)
    }

    /// Whether the stream has broken.
    pub(crate) fn is_over(&self) -> bool {
        self.reader.is_finished()
    }

    /// Hears of the changes of a tenant from now on, for the move `id`.
    pub(crate) async fn subscribe(&self, id: i64, tenant: &str, wanted: Vec<Wanted>) -> Option<Subscription> {
        self.subscribe_from(id, tenant, wanted, None).await
    }

    /// The same from a position on. If the stream has been read beyond that and the shard has the log still, the stream
    /// ends, to be opened anew from there for all who follow it.
    pub(crate) async fn subscribe_from(
        &self,
        id: i64,
        tenant: &str,
        wanted: Vec<Wanted>,
        from: Option<u64>,
    ) -> Option<Subscription> {
        let (done, subscription) = oneshot::channel();
        let request = Subscribe { id, tenant: tenant.to_owned(), wanted, from, done };
        self.requests.send(Request::Subscribe(request)).ok()?;
        subscription.await.ok()
    }

    /// A move needs nothing of the log any more.
    pub(crate) fn forget(&self, id: i64) {
        let _ = self.requests.send(Request::Forget(id));
    }
}
