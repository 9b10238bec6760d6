//! The copy, in rounds: each as of a moment of the change stream that the target has been brought to.
//!
//! `docs/decisions/0013-copying-in-pieces.md` says why what is there at any time is right.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::Work;
use crate::MoveError;
use crate::apply::Applier;
use crate::copy::{Passed, Sum, relay};
use crate::fault;
use crate::flow::Flow;
use crate::inventory::{Inventory, Table, have_rows};
use crate::journal::{Phase, Wish};
use crate::pieces::{Copied, Frontier, Piece, Round};
use crate::sessions::Session;
use crate::throttle::Throttle;
use crate::verify::{Compared, bring_to_moment};

/// How long pieces are begun as of one snapshot, which holds vacuum back on the source.
const ROUND: Duration = Duration::from_secs(30);

/// How often what has been done is written to the catalog, and the operator's wishes are asked for.
const REPORT: Duration = Duration::from_millis(500);

/// Whole tables that are committed together, in bytes.
const TOGETHER: u64 = 16 << 20;

/// What is copied by one worker, as more connections would take longer than the rows, in bytes.
const LITTLE: u64 = 8 << 20;

/// Tables whose progress is told one by one.
const TOLD: usize = 50;

/// Pauses before a round is tried again in which a shard failed: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// What the receipt has of the tables since their copy began: their form.
const AS_COPIED: &str = "tables_as_copied";

/// One who copies pieces of a round.
struct Copier<'c> {
    /// Sees the round's snapshot.
    from: &'c Session,
    to: &'c Session,
    round: &'c Round<'c, 'c>,
    throttle: &'c Throttle,
}

fn form(inventory: &Inventory) -> String {
    format!("{:016x}", xxh3_64(inventory.fingerprint().as_bytes()))
}

impl Work<'_> {
    /// Whether a mover has begun to copy.
    pub(super) fn has_copied(&self) -> bool {
        self.receipt.contains_key(AS_COPIED)
    }

    /// Whether what a mover before this one has copied can be gone on with.
    pub(super) async fn can_go_on(&self, inventory: &Inventory) -> Result<bool, MoveError> {
        if self.receipt.get(AS_COPIED).and_then(Value::as_str) != Some(&form(inventory)) {
            return Ok(false);
        }
        let sql = "SELECT EXISTS (SELECT FROM switchyard.copies WHERE move_id = $1)";
        let row = self.target.client.query_one(sql, &[&self.turn.id]).await;
        Ok(row.map_err(self.target.at.failed())?.get(0))
    }

    /// Has nothing of the tenant's be on the target.
    pub(super) async fn begin_anew(&mut self, there: &Inventory) -> Result<(), MoveError> {
        let failed = self.target.at.failed();
        // In this order: rows that are not said to be there do no harm.
        let sql = "WITH forgotten AS (DELETE FROM switchyard.copies WHERE move_id = $1)
                   UPDATE switchyard.moves SET applied = '0/0' WHERE move_id = $1 AND side = 'target' AND term = $2";
        let done = self.target.client.execute(sql, &[&self.turn.id, &self.turn.term]).await;
        if done.map_err(failed)? == 0 {
            return Err(MoveError::Superseded);
        }
        self.delete_arrived(there).await?;
        match self.receipt.remove(AS_COPIED) {
            Some(_) => self.write_receipt().await,
            None => Ok(()),
        }
    }

    /// Copies all rows, and subscribes to what follows.
    pub(super) async fn copy(&mut self, inventory: &Inventory) -> Result<(Flow, Vec<Compared>), MoveError> {
        self.enter(Phase::Copying, "copying rows").await?;
        let mut flow = self.subscribe(inventory).await?;
        if !self.has_copied() {
            self.note(AS_COPIED, form(inventory));
            self.write_receipt().await?;
        }
        fault::point("subscribed");
        let throttle = Throttle::new(self.job.options.rate, self.job.options.max_target_lag_ms);
        let mut tables: Vec<_> = inventory.tables.values().map(|t| self.copied(t)).collect();
        let began = Instant::now();
        let mut pause = RETRY.0;
        loop {
            match self.go_round(&mut flow, &mut tables, &throttle, began).await {
                Ok(true) => break,
                Ok(false) => pause = RETRY.0,
                Err(error @ MoveError::Again(_)) => {
                    let there = self.inventory(&self.target).await?;
                    self.begin_anew(&there).await?;
                    return Err(error);
                }
                // Its stream goes on, so what is there is worth keeping.
                Err(error) if error.is_transient() && !matches!(error, MoveError::Stream { .. }) => {
                    tracing::warn!(id = self.job.id, %error, "the copy could not go on");
                    self.journal.error(Some(&error.to_string())).await?;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                    self.reconnect(&mut flow).await?;
                }
                Err(error) => return Err(error),
            }
        }
        fault::point("copied");
        self.journal.progress(&told(&tables, began, &flow, &throttle)).await?;
        let copied = tables.iter().map(|t| Compared { table: t.table.plain(), sum: *t.sum() }).collect();
        Ok((flow, copied))
    }

    fn copied<'t>(&self, table: &'t Table) -> Copied<'t> {
        let (rows, width) = self.estimates.get(&table.plain()).copied().unwrap_or((0, 0));
        Copied {
            table,
            frontier: Frontier::Nothing,
            sum: std::sync::Mutex::default(),
            passed: Passed::default(),
            rows,
            width: width + 4 * table.columns.len() as u64,
        }
    }

    /// Follows the source from where the target stands, if that can still be, and else from now on.
    async fn subscribe(&mut self, inventory: &Inventory) -> Result<Flow, MoveError> {
        let stream = self.stream(&self.source.at).await?;
        let gone =
            || MoveError::Stream { shard: self.source.at.name.clone(), reason: "it has ended".to_owned() };
        let subscription = stream
            .subscribe(self.job.id, self.tenant(), self.wanted(inventory))
            .await
            .ok_or_else(gone)?
            .holding(stream);
        let mut applier =
            Applier::new(&self.target.at, &self.scope, inventory, self.turn.clone(), "target").await?;
        applier.reconnect().await?;
        if applier.applied > 0 && subscription.from > applier.applied {
            self.journal.event("copying", "the log since the copy began is gone: it begins anew").await?;
            let there = self.inventory(&self.target).await?;
            self.begin_anew(&there).await?;
            applier.applied = 0;
        } else if applier.applied > 0 {
            self.journal.event("copying", "going on with what is there").await?;
        }
        Ok(Flow::new(subscription, applier))
    }

    async fn reconnect(&mut self, flow: &mut Flow) -> Result<(), MoveError> {
        loop {
            let reconnecting = async {
                for place in [&mut self.source, &mut self.target] {
                    if place.client.is_closed() {
                        place.client = place.at.connect().await?;
                    }
                }
                flow.applier.reconnect().await
            };
            match reconnecting.await {
                Err(error) if error.is_transient() => tokio::time::sleep(RETRY.0 * 5).await,
                done => return done,
            }
            if self.journal.wish().await?.0 == Wish::Abort {
                return Err(MoveError::Asked);
            }
        }
    }

    /// Waits while the operator wants that, and applies what is written meanwhile.
    async fn stand_still(&self, flow: &mut Flow) -> Result<(), MoveError> {
        let mut said = false;
        loop {
            match self.journal.wish().await?.0 {
                Wish::Abort | Wish::AbortWithoutTarget | Wish::AbortAcceptingLoss => {
                    return Err(MoveError::Asked);
                }
                Wish::Pause => {
                    if !std::mem::replace(&mut said, true) {
                        self.journal.event("copying", "standing still").await?;
                    }
                    let until = Instant::now() + REPORT;
                    while Instant::now() < until {
                        flow.step(REPORT / 5).await?;
                    }
                }
                Wish::Run => return Ok(()),
                Wish::Rollback | Wish::Complete | Wish::CompleteWithoutSource => {
                    self.journal.unwish("the tenant has not moved yet").await?
                }
            }
        }
    }

    /// One round, and before it a halt if that is wanted. Whether all is copied, and known to be.
    async fn go_round(
        &self,
        flow: &mut Flow,
        tables: &mut [Copied<'_>],
        throttle: &Throttle,
        began: Instant,
    ) -> Result<bool, MoveError> {
        // Nothing is applied before it is known how much is there.
        self.read_frontiers(flow, tables).await?;
        self.stand_still(flow).await?;
        if tables.iter().any(|t| t.frontier != Frontier::All) {
            self.round(flow, tables, throttle, began).await?;
            self.read_frontiers(flow, tables).await?;
        }
        Ok(tables.iter().all(|t| t.frontier == Frontier::All))
    }

    async fn round(
        &self,
        flow: &mut Flow,
        tables: &[Copied<'_>],
        throttle: &Throttle,
        began: Instant,
    ) -> Result<(), MoveError> {
        let (source_name, target_name) = (self.source.at.name.as_str(), self.target.at.name.as_str());
        let reader = self.source.at.connect().await?;
        let exported = self.align(&reader, flow).await?;
        let bytes: u64 = tables.iter().map(|t| t.rows.saturating_mul(t.width)).sum();
        let pieces = bytes / self.job.options.piece_bytes.max(1);
        let most = self.job.options.workers.clamp(1, 8).min(tables.len().max(pieces as usize));
        let extra = if bytes < LITTLE { 0 } else { most.saturating_sub(1) };
        // As many as both shards have sessions left for.
        let sessions = &self.engine.sessions;
        let one_more = |_| Some((sessions.beside(source_name)?, sessions.beside(target_name)?));
        let beside: Vec<_> = (0..extra).map_while(one_more).collect();
        let until = Instant::now() + ROUND;
        let source = (&reader, &self.source.at);
        let empty = self.empty(&reader, tables).await?;
        let round = Round::new(source, &self.scope, (tables, empty), self.job.options.piece_bytes, until);
        let copying = async {
            let to = flow.applier.client()?;
            let first = self.copy_pieces(Copier { from: &reader, to, round: &round, throttle });
            let others = try_join_all(beside.iter().map(|_| self.copy_beside(&exported, &round, throttle)));
            tokio::try_join!(first, others).map(drop)
        };
        let mut copying = Box::pin(copying);
        loop {
            tokio::select! {
                all = &mut copying => return all,
                () = tokio::time::sleep(REPORT) => {
                    // Without it what is copied is of no use.
                    if flow.subscription.is_over() {
                        break;
                    }
                    match self.journal.wish().await?.0 {
                        Wish::Abort => return Err(MoveError::Asked),
                        Wish::Pause => round.over.store(true, Ordering::Relaxed),
                        _ => {}
                    }
                    throttle.look(&self.target.client, &self.target.at).await?;
                    self.journal.progress(&told(tables, began, flow, throttle)).await?;
                }
            }
        }
        drop(copying);
        Err(flow.why_over())
    }

    /// Of which tables nothing is there, nor is to be, by what a reader sees.
    async fn empty(&self, reader: &Session, tables: &[Copied<'_>]) -> Result<Vec<bool>, MoveError> {
        let each = tables.iter().map(|copied| copied.table);
        let has_rows = have_rows((reader, &self.source.at), each, &self.scope).await?;
        let nothing = |copied: &Copied<'_>| copied.frontier == Frontier::Nothing;
        Ok(tables.iter().zip(has_rows).map(|(copied, has_rows)| nothing(copied) && !has_rows).collect())
    }

    /// Reads how much is there.
    async fn read_frontiers(&self, flow: &mut Flow, tables: &mut [Copied<'_>]) -> Result<(), MoveError> {
        let (client, failed) = (flow.applier.client()?, self.target.at.failed());
        // What a lost connection may still be committing has locked this row, and is waited for.
        let sql =
            "SELECT FROM switchyard.moves WHERE move_id = $1 AND side = 'target' AND term = $2 FOR UPDATE";
        let turn = client.query_opt(sql, &[&self.turn.id, &self.turn.term]).await.map_err(failed)?;
        turn.ok_or(MoveError::Superseded)?;
        let sql = "SELECT table_name, upto, rows, bytes, hash FROM switchyard.copies WHERE move_id = $1";
        let rows = client.query(sql, &[&self.turn.id]).await.map_err(failed)?;
        for copied in tables {
            let row = rows.iter().find(|r| r.get::<_, &str>(0) == copied.table.quoted());
            let (frontier, sum) = match row {
                None => (Frontier::Nothing, Sum::default()),
                Some(row) => {
                    let upto = row.get::<_, Option<Vec<String>>>(1);
                    let sum = Sum {
                        rows: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
                        bytes: u64::try_from(row.get::<_, i64>(3)).unwrap_or(0),
                        hash: u128::from_str_radix(row.get(4), 16).unwrap_or(0),
                    };
                    (upto.map_or(Frontier::All, Frontier::UpTo), sum)
                }
            };
            copied.passed.rows.store(sum.rows, Ordering::Relaxed);
            copied.passed.bytes.store(sum.bytes, Ordering::Relaxed);
            *copied.sum() = sum;
            flow.applier.set_frontier(&copied.table.schema, &copied.table.name, frontier.clone());
            copied.frontier = frontier;
        }
        Ok(())
    }

    /// Takes a snapshot, and brings the target to it. The snapshot's name, for others.
    async fn align(&self, reader: &Session, flow: &mut Flow) -> Result<String, MoveError> {
        let source = (&self.source.client, &self.source.at);
        let (exported, upto) = bring_to_moment(flow, reader, source).await?;
        flow.applier.begin_at(upto).await?;
        fault::point("aligned");
        Ok(exported)
    }

    /// Copies pieces over connections of its own.
    async fn copy_beside(
        &self,
        exported: &str,
        round: &Round<'_, '_>,
        throttle: &Throttle,
    ) -> Result<(), MoveError> {
        let (source, target) = (&self.source.at, &self.target.at);
        let (from, to) = tokio::try_join!(source.connect(), target.connect())?;
        let sql = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT '{exported}'"
        );
        from.begin(&sql).await.map_err(source.failed())?;
        to.batch_execute("SET session_replication_role = replica").await.map_err(target.failed())?;
        self.copy_pieces(Copier { from: &from, to: &to, round, throttle }).await
    }

    /// Copies pieces until none is left.
    async fn copy_pieces(&self, copier: Copier<'_>) -> Result<(), MoveError> {
        let copied = self.copy_some(&copier).await;
        if copied.is_err() {
            let _ = copier.to.batch_execute("ROLLBACK").await;
        }
        copied
    }

    async fn copy_some(&self, copier: &Copier<'_>) -> Result<(), MoveError> {
        let Copier { from, to, round, throttle } = *copier;
        let failed = self.target.at.failed();
        let mut open: Vec<(Piece, Sum)> = Vec::new();
        let mut bytes = 0;
        loop {
            let next = round.next().await?;
            // A piece of a table waits for those before it, which must not wait for others meanwhile.
            let alone = next.as_ref().is_none_or(|piece| !piece.is_whole()) || bytes >= TOGETHER;
            if alone && !open.is_empty() {
                self.commit(copier, &mut open).await?;
                bytes = 0;
            }
            let Some(mut piece) = next else { return Ok(()) };
            if open.is_empty() {
                to.batch_execute("BEGIN").await.map_err(failed)?;
            }
            let copied = &round.tables[piece.of];
            let what = (copied.table, piece.filter.as_str());
            let (source, target) = ((from, &self.source.at), (to, &self.target.at));
            let mut sum = match round.is_empty(&piece) {
                true => Sum::default(),
                false => relay(source, target, what, &copied.passed, throttle).await?,
            };
            piece.turn().await?;
            sum.add(&copied.sum());
            bytes += sum.bytes;
            let whole = piece.is_whole();
            open.push((piece, sum));
            if !whole {
                self.commit(copier, &mut open).await?;
                bytes = 0;
                fault::point("piece copied");
            }
        }
    }

    /// Commits pieces, and with them how much of their tables is there.
    async fn commit(&self, copier: &Copier<'_>, open: &mut Vec<(Piece, Sum)>) -> Result<(), MoveError> {
        self.record(copier, open).await?;
        copier.to.batch_execute("COMMIT").await.map_err(self.target.at.failed())?;
        for (mut piece, sum) in open.drain(..) {
            *copier.round.tables[piece.of].sum() = sum;
            piece.committed();
        }
        Ok(())
    }

    /// Says how much of tables is there with what this transaction brings, if it is still our turn: whole tables, or one
    /// up to a key.
    async fn record(&self, copier: &Copier<'_>, open: &[(Piece, Sum)]) -> Result<(), MoveError> {
        let sql = "WITH turn AS (SELECT FROM switchyard.moves WHERE move_id = $1 AND side = 'target' AND term = $2 FOR SHARE)
                   INSERT INTO switchyard.copies (move_id, table_name, upto, rows, bytes, hash)
                   SELECT $1, t.name, $4, t.rows, t.bytes, t.hash
                   FROM turn, unnest($3::text[], $5::int8[], $6::int8[], $7::text[]) t (name, rows, bytes, hash)
                   ON CONFLICT (move_id, table_name) DO UPDATE SET upto = excluded.upto, rows = excluded.rows,
                       bytes = excluded.bytes, hash = excluded.hash";
        let upto = match open.first().map(|(piece, _)| &piece.upto) {
            Some(Frontier::UpTo(values)) => Some(values),
            Some(Frontier::All | Frontier::Nothing) | None => None,
        };
        let (mut names, mut rows, mut bytes, mut hashes) = (vec![], vec![], vec![], vec![]);
        for (piece, sum) in open {
            names.push(copier.round.tables[piece.of].table.quoted());
            rows.push(sum.rows.cast_signed());
            bytes.push(sum.bytes.cast_signed());
            hashes.push(format!("{:032x}", sum.hash));
        }
        let (id, term) = (&self.turn.id, &self.turn.term);
        let done = copier.to.execute(sql, &[id, term, &names, &upto, &rows, &bytes, &hashes]).await;
        match done.map_err(self.target.at.failed())? {
            recorded if recorded == open.len() as u64 => Ok(()),
            _ => Err(MoveError::Superseded),
        }
    }
}

/// How far the copy is, for people.
fn told(tables: &[Copied<'_>], began: Instant, flow: &Flow, throttle: &Throttle) -> Value {
    let passed =
        |t: &Copied<'_>| (t.passed.rows.load(Ordering::Relaxed), t.passed.bytes.load(Ordering::Relaxed));
    let bytes: u64 = tables.iter().map(|t| passed(t).1).sum();
    let rows: u64 = tables.iter().map(|t| passed(t).0).sum();
    let all: u64 = tables.iter().map(|t| (t.rows * t.width).max(passed(t).1)).sum();
    let rate = bytes as f64 / began.elapsed().as_secs_f64().max(0.001);
    let is_done =
        |t: &Copied<'_>| t.frontier == Frontier::All || (t.sum().rows > 0 && t.sum().rows == passed(t).0);
    let mut each: Vec<_> = tables.iter().collect();
    each.sort_by_key(|t| std::cmp::Reverse((t.rows * t.width).max(passed(t).1)));
    let each: Vec<_> = each
        .into_iter()
        .take(TOLD)
        .map(|t| {
            json!({ "table": t.table.plain(), "rows": passed(t).0, "of_rows": t.rows.max(passed(t).0),
                         "bytes": passed(t).1 })
        })
        .collect();
    let done = tables.iter().filter(|t| is_done(t)).count();
    json!({
        "tables": tables.len(), "tables_copied": done, "rows": rows, "bytes": bytes, "bytes_per_s": rate as u64,
        "eta_s": ((all - bytes) as f64 / rate.max(1.0)).ceil(), "backlog_bytes": flow.subscription.backlog(),
        "lag_ms": throttle.lag(), "held": throttle.is_held(), "each": each,
    })
}
