//! Changes of the source, applied to the target exactly once.
//!
//! Every change must find what the source's found: one row to update or delete, none in the way of an
//! insert. How far the target has come is written in the same transaction.

use std::collections::HashMap;

use futures_util::future::{join, join_all, join3};
use tokio_postgres::types::ToSql;
use tokio_postgres::{SimpleQueryMessage, Statement};

use crate::MoveError;
use crate::deed::{Deed, Deeds};
use crate::inventory::Inventory;
use crate::pieces::Frontier;
use crate::scope::{Scope, literal};
use crate::sessions::Session;
use crate::shard::{SESSION, ShardAccess};
use crate::stream::Transaction;

/// Statements in flight at a time.
const PIPELINE: usize = 256;

/// Prepared statements kept.
const STATEMENTS: usize = 500;

/// Whose move this is, and whose turn.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    /// The move.
    pub(crate) id: String,
    /// The takeover.
    pub(crate) term: i64,
}

/// The writer of one side of a move.
pub(crate) struct Applier {
    /// None while the applier rests.
    session: Option<Session>,
    /// Of the process that serves it on the shard.
    pub(crate) pid: i32,
    pub(crate) at: ShardAccess,
    deeds: Deeds,
    pub(crate) turn: Turn,
    /// The side of the move that is written: `target`, or `source` when the stream is reversed.
    pub(crate) side: &'static str,
    statements: HashMap<String, Statement>,
    /// End of the last transaction that is applied.
    pub(crate) applied: u64,
}

impl Applier {
    pub(crate) async fn new(
        at: &ShardAccess,
        scope: &Scope,
        inventory: &Inventory,
        turn: Turn,
        side: &'static str,
    ) -> Result<Self, MoveError> {
        let mut applier = Self::resting(at, scope, inventory, turn, side);
        applier.wake().await?;
        Ok(applier)
    }

    /// One that has no session yet.
    pub(crate) fn resting(
        at: &ShardAccess,
        scope: &Scope,
        inventory: &Inventory,
        turn: Turn,
        side: &'static str,
    ) -> Self {
        Self {
            session: None,
            pid: 0,
            at: at.clone(),
            deeds: Deeds::new(scope, inventory),
            turn,
            side,
            statements: HashMap::new(),
            applied: 0,
        }
    }

    async fn wake(&mut self) -> Result<(), MoveError> {
        let session = self.at.connect().await?;
        // Neither triggers nor foreign keys fire, and what is committed stays.
        let sql = "SELECT pg_backend_pid(), set_config('session_replication_role', 'replica', false),
                          set_config('synchronous_commit', 'on', false)";
        self.pid = session.query_one(sql, &[]).await.map_err(self.at.failed())?.get(0);
        self.session = Some(session);
        Ok(())
    }

    /// Gives the session back.
    pub(crate) fn rest(&mut self) {
        self.statements.clear();
        self.session = None;
    }

    /// Whether it has no session.
    pub(crate) fn is_resting(&self) -> bool {
        self.session.is_none()
    }

    /// The session that writes.
    pub(crate) fn client(&self) -> Result<&Session, MoveError> {
        match &self.session {
            Some(session) => Ok(session),
            None => Err(self.at.silent("a writer that rests was asked to write")),
        }
    }

    /// Connects anew after a failure, and reads what was kept of what was written before it.
    pub(crate) async fn reconnect(&mut self) -> Result<(), MoveError> {
        // From what is open: a session whose last statement is not answered yet is not clean.
        self.rest();
        // The turn is asked below, and the name may be that of the mover before.
        self.at.session = format!("{SESSION} {}.{}", self.turn.id, self.turn.term);
        self.wake().await?;
        // The connection before may be committing still: it has locked the row, and is waited for.
        let sql = "SELECT applied::text FROM switchyard.moves WHERE move_id = $1 AND side = $2 AND term = $3 FOR UPDATE";
        let row = self
            .client()?
            .query_opt(sql, &[&self.turn.id, &self.side, &self.turn.term])
            .await
            .map_err(self.at.failed())?;
        let applied = row.ok_or(MoveError::Superseded)?;
        self.applied = self.applied.max(parse_lsn(applied.get(0)).unwrap_or(0));
        Ok(())
    }

    /// Whether the transaction is to be applied: what ends before is in what was copied, or was applied.
    pub(crate) fn is_due(&self, transaction: &Transaction) -> bool {
        transaction.end > self.applied
    }

    /// Says how much of a table is here. Without that, it is all.
    pub(crate) fn set_frontier(&mut self, schema: &str, name: &str, frontier: Frontier) {
        self.deeds.frontiers.insert((schema.to_owned(), name.to_owned()), frontier);
    }

    /// Applies transactions in one of the target's. `last` runs in it behind all of them.
    pub(crate) async fn apply(&mut self, batch: &[Transaction], last: &[String]) -> Result<(), MoveError> {
        let mut deeds = Vec::new();
        let mut end = self.applied;
        for transaction in batch {
            if self.is_due(transaction) {
                for (relation, change) in &transaction.changes {
                    deeds.extend(self.deeds.of(relation, change)?);
                }
            }
            end = end.max(transaction.end);
        }
        if deeds.is_empty() && !last.is_empty() {
            return self.close_at_once(end, last).await;
        }
        self.prepare(&deeds).await?;
        match self.write(&deeds, end, last).await {
            Ok(()) => {
                self.client()?.batch_execute("COMMIT").await.map_err(self.at.failed())?;
                self.applied = end;
                Ok(())
            }
            Err(error) => {
                let _ = self.client()?.batch_execute("ROLLBACK").await;
                Err(error)
            }
        }
    }

    /// Without changes there is nothing to be counted before the commit: one way there and back. That it is still this
    /// mover's turn `last` asks for itself.
    async fn close_at_once(&mut self, end: u64, last: &[String]) -> Result<(), MoveError> {
        let sql = format!("{}; {}", self.noting(end), last.join("; "));
        self.client()?.batch_execute(&sql).await.map_err(self.at.failed())?;
        self.applied = end;
        Ok(())
    }

    /// Does everything but commit, and waits for the server as rarely as can be: clients may be waiting.
    async fn write(&self, deeds: &[Deed], end: u64, last: &[String]) -> Result<(), MoveError> {
        let failed = self.at.failed();
        let begin = async || self.client()?.batch_execute("BEGIN").await.map_err(failed);
        // The last part goes out together with what follows it. Futures are polled, and so sent, in order; all are
        // waited for, as what fails first makes the others fail, and is what counts.
        let mut parts = deeds.chunks(PIPELINE);
        let tail = parts.next_back().unwrap_or_default();
        let close = async || {
            let mut sql = self.noting(end);
            last.iter().for_each(|more| sql = format!("{sql}; {more}"));
            self.client()?.simple_query(&sql).await.map_err(failed)
        };
        let closed = if parts.len() == 0 {
            let (begun, run, closed) = join3(begin(), self.run(tail), close()).await;
            begun.and(run).and(closed)?
        } else {
            begin().await?;
            for part in parts {
                self.run(part).await?;
            }
            let (run, closed) = join(self.run(tail), close()).await;
            run.and(closed)?
        };
        // The first answer is that of the note.
        match closed
            .iter()
            .find_map(|m| if let SimpleQueryMessage::CommandComplete(n) = m { Some(*n) } else { None })
        {
            Some(1) => Ok(()),
            _ => Err(MoveError::Superseded),
        }
    }

    /// Runs statements, all in one flight.
    async fn run(&self, deeds: &[Deed]) -> Result<(), MoveError> {
        let running = deeds.iter().map(async |deed| {
            let statement = &self.statements[&deed.sql];
            let params = deed.params.iter().map(|p| p as &(dyn ToSql + Sync));
            let touched = self.client()?.execute_raw(statement, params).await.map_err(self.at.failed())?;
            match deed.rows {
                Some(rows) if rows != touched => {
                    Err(MoveError::Differ(format!("{} touched {touched} rows", deed.what)))
                }
                _ => Ok(()),
            }
        });
        join_all(running).await.into_iter().collect()
    }

    /// Says how far this side has come, which only the mover whose turn it is can.
    fn noting(&self, end: u64) -> String {
        format!(
            "UPDATE switchyard.moves SET applied = {} WHERE move_id = {} AND side = '{}' AND term = {}",
            lsn(end),
            literal(&self.turn.id),
            self.side,
            self.turn.term
        )
    }

    async fn note(&self, end: u64) -> Result<(), MoveError> {
        let sql = "UPDATE switchyard.moves SET applied = $1::text::pg_lsn
                   WHERE move_id = $2 AND side = $3 AND term = $4";
        let (end, turn) = (lsn_text(end), &self.turn);
        let noted = self.client()?.execute(sql, &[&end, &turn.id, &self.side, &turn.term]).await;
        match noted.map_err(self.at.failed())? {
            1 => Ok(()),
            _ => Err(MoveError::Superseded),
        }
    }

    /// Counts everything up to `end` as applied.
    pub(crate) async fn begin_at(&mut self, end: u64) -> Result<(), MoveError> {
        self.note(end).await?;
        self.applied = end;
        Ok(())
    }

    /// A commit that changes nothing, by the way of any other.
    pub(crate) async fn touch(&self) -> Result<(), MoveError> {
        self.note(self.applied).await
    }

    async fn prepare(&mut self, deeds: &[Deed]) -> Result<(), MoveError> {
        if self.statements.len() > STATEMENTS {
            self.statements.clear();
        }
        for deed in deeds {
            if !self.statements.contains_key(&deed.sql) {
                let statement = self.client()?.prepare(&deed.sql).await.map_err(self.at.failed())?;
                self.statements.insert(deed.sql.clone(), statement);
            }
        }
        Ok(())
    }
}

/// A position in the log, as a literal.
pub(crate) fn lsn(at: u64) -> String {
    format!("'{}'::pg_lsn", lsn_text(at))
}

/// A position in the log, as text.
fn lsn_text(at: u64) -> String {
    format!("{:X}/{:X}", at >> 32, at & 0xffff_ffff)
}

/// A position in the log, from its text.
pub(crate) fn parse_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}
