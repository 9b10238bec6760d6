//! What of a tenant's tables is copied next: a whole table, or of a large one a range of its key.
//!
//! `docs/decisions/0013-copying-in-pieces.md` has what makes it right.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, oneshot};
use tokio::time::Instant;

use crate::MoveError;
use crate::copy::{Passed, Sum};
use crate::inventory::{Column, Table};
use crate::scope::{Scope, ident, literal};
use crate::sessions::Session;
use crate::shard::ShardAccess;

/// How much of a table is on the target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Frontier {
    /// Nothing.
    Nothing,
    /// Rows whose key is not beyond these values, as text, of [`Table::range_key`].
    UpTo(Vec<String>),
    /// Everything.
    #[default]
    All,
}

/// A table that is being copied.
#[derive(Debug)]
pub(crate) struct Copied<'t> {
    pub(crate) table: &'t Table,
    /// What is committed on the target.
    pub(crate) frontier: Frontier,
    /// The sum of it.
    pub(crate) sum: std::sync::Mutex<Sum>,
    /// What has been on its way, committed or not.
    pub(crate) passed: Passed,
    /// What the planner of the source takes it for: rows, and bytes of one.
    pub(crate) rows: u64,
    pub(crate) width: u64,
}

impl Copied<'_> {
    pub(crate) fn sum(&self) -> std::sync::MutexGuard<'_, Sum> {
        self.sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Something to copy in one go.
pub(crate) struct Piece {
    /// Which of the tables.
    pub(crate) of: usize,
    /// ` WHERE ...`, or nothing.
    pub(crate) filter: String,
    /// How much of the table is there with it.
    pub(crate) upto: Frontier,
    /// Told when the piece before it is committed.
    before: Option<oneshot::Receiver<()>>,
    /// Tells the piece behind it.
    after: Option<oneshot::Sender<()>>,
}

impl Piece {
    /// Whether it is a table from beginning to end.
    pub(crate) fn is_whole(&self) -> bool {
        self.before.is_none() && self.upto == Frontier::All
    }

    /// Waits until the pieces before it are committed. Fails if they will not be.
    pub(crate) async fn turn(&mut self) -> Result<(), MoveError> {
        match self.before.take() {
            Some(before) => {
                before.await.map_err(|_| MoveError::InTheWay("an earlier piece failed".to_owned()))
            }
            None => Ok(()),
        }
    }

    /// It is committed.
    pub(crate) fn committed(&mut self) {
        if let Some(after) = self.after.take() {
            // Nobody may have been behind it.
            let _ = after.send(());
        }
    }
}

/// The pieces of one round: of what one snapshot sees.
pub(crate) struct Round<'r, 't> {
    /// Sees the snapshot.
    reader: &'r Session,
    at: &'r ShardAccess,
    scope: &'r Scope,
    pub(crate) tables: &'r [Copied<'t>],
    /// Of which of them nothing is there, nor is to be.
    empty: Vec<bool>,
    /// Bytes of a piece, about.
    bytes: u64,
    until: Instant,
    /// Whether no further piece is to be begun.
    pub(crate) over: AtomicBool,
    queues: Mutex<Vec<Queue>>,
}

/// How far the pieces of a table have been given out.
struct Queue {
    frontier: Frontier,
    last: Option<oneshot::Receiver<()>>,
}

impl<'r, 't> Round<'r, 't> {
    pub(crate) fn new(
        (reader, at): (&'r Session, &'r ShardAccess),
        scope: &'r Scope,
        (tables, empty): (&'r [Copied<'t>], Vec<bool>),
        bytes: u64,
        until: Instant,
    ) -> Self {
        let queues = tables.iter().map(|t| Queue { frontier: t.frontier.clone(), last: None }).collect();
        Self {
            reader,
            at,
            scope,
            tables,
            empty,
            bytes: bytes.max(1),
            until,
            over: AtomicBool::new(false),
            queues: Mutex::new(queues),
        }
    }

    /// Whether there is nothing to copy of a piece.
    pub(crate) fn is_empty(&self, piece: &Piece) -> bool {
        self.empty[piece.of]
    }

    /// The next piece; none if there is none left, or the round is over.
    pub(crate) async fn next(&self) -> Result<Option<Piece>, MoveError> {
        if self.over.load(Ordering::Relaxed) || Instant::now() >= self.until {
            return Ok(None);
        }
        let mut queues = self.queues.lock().await;
        let Some(of) = queues.iter().position(|q| q.frontier != Frontier::All) else { return Ok(None) };
        let (queue, copied) = (&mut queues[of], &self.tables[of]);
        let key = copied.table.range_key(self.scope);
        let large = copied.rows.saturating_mul(copied.width) > self.bytes;
        let upto = match &key {
            Some(key) if large || queue.frontier != Frontier::Nothing => {
                self.bound(copied, key, &queue.frontier).await?
            }
            _ => Frontier::All,
        };
        let mut filter = self.scope.filter();
        if let Some(key) = &key {
            filter += &range(&filter, key, &queue.frontier, ">");
            filter += &range(&filter, key, &upto, "<=");
        }
        let (after, behind) = oneshot::channel();
        queue.frontier = upto.clone();
        let before = queue.last.replace(behind);
        Ok(Some(Piece { of, filter, upto, before, after: Some(after) }))
    }

    /// How far the piece behind `from` reaches.
    async fn bound(
        &self,
        copied: &Copied<'_>,
        key: &[&Column],
        from: &Frontier,
    ) -> Result<Frontier, MoveError> {
        let names: Vec<_> = key.iter().map(|c| ident(&c.name)).collect();
        let texts: Vec<_> = names.iter().map(|n| format!("{n}::text")).collect();
        let rows = (self.bytes / copied.width.max(1)).max(1);
        let mut filter = self.scope.filter();
        filter += &range(&filter, key, from, ">");
        let sql = format!(
            "SELECT {} FROM {}{filter} ORDER BY {} OFFSET {} LIMIT 1",
            texts.join(", "),
            copied.table.quoted(),
            names.join(", "),
            rows - 1
        );
        let row = self.reader.client().query_opt(&sql, &[]).await.map_err(self.at.failed())?;
        Ok(match row {
            Some(row) => Frontier::UpTo((0..key.len()).map(|i| row.get(i)).collect()),
            None => Frontier::All,
        })
    }
}

/// The condition that a row's key is beyond, or not beyond, a frontier, to be put behind `filter`.
fn range(filter: &str, key: &[&Column], frontier: &Frontier, than: &str) -> String {
    let Frontier::UpTo(values) = frontier else { return String::new() };
    let names: Vec<_> = key.iter().map(|c| ident(&c.name)).collect();
    let values: Vec<_> = key.iter().zip(values).map(|(c, v)| format!("{}::{}", literal(v), c.kind)).collect();
    let joint = if filter.is_empty() { " WHERE" } else { " AND" };
    format!("{joint} ({}) {than} ({})", names.join(", "), values.join(", "))
}
