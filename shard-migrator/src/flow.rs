//! From a subscription to an applier: the changes of one tenant, on their way to the other shard.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::MoveError;
use crate::apply::Applier;
use crate::stream::{Change, Event, Snapshot, Subscription, Transaction, Value};

/// Most transactions of the source that are applied in one of the target's.
const BATCH: usize = 200;

/// Most changes in one.
const BATCH_CHANGES: usize = 5000;

/// The same while clients wait: what takes long would make them wait for longer.
const SMALL_BATCH: usize = 20;
const SMALL_CHANGES: usize = 200;

/// How often it is written how far an idle flow has come.
const IDLE: Duration = Duration::from_secs(3);

/// See the module.
pub(crate) struct Flow {
    pub(crate) subscription: Subscription,
    pub(crate) applier: Applier,
    /// Changes applied.
    pub(crate) changes: u64,
    /// Transactions that have arrived and must wait.
    waiting: Vec<Transaction>,
    /// When it was last written how far it has come although there was nothing to apply.
    idle_noted: Instant,
    /// [`Self::follow_to`] was dropped half way: what it had at hand is lost.
    pub(crate) torn: bool,
    /// When the freezing was met that the last [`Self::follow_to`] ended at.
    pub(crate) passed: Option<Instant>,
}

/// What the fence says of the tenant, as the stream has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marker {
    /// The state that was set.
    pub(crate) state: String,
    /// The move that set it.
    pub(crate) move_id: String,
    /// Where the log stood, which no other change of this fence has.
    pub(crate) mark: String,
}

/// The fence row that a transaction writes, if it does.
pub(crate) fn marker(transaction: &Transaction) -> Option<Marker> {
    transaction.changes.iter().rev().find_map(|(relation, change)| {
        if relation.schema != "switchyard" || relation.name != "fence" {
            return None;
        }
        let (Change::Insert { new } | Change::Update { new, .. }) = change else { return None };
        let value = |column: &str| {
            let at = relation.columns.iter().position(|(name, _)| name == column)?;
            match new.get(at)? {
                Value::Text(text) => String::from_utf8(text.to_vec()).ok(),
                Value::Null | Value::Unchanged => None,
            }
        };
        let mark = value("fence_lsn").unwrap_or_default();
        Some(Marker { state: value("state")?, move_id: value("move_id")?, mark })
    })
}

impl Flow {
    pub(crate) fn new(subscription: Subscription, applier: Applier) -> Self {
        Self {
            subscription,
            applier,
            changes: 0,
            waiting: Vec::new(),
            idle_noted: Instant::now(),
            torn: false,
            passed: None,
        }
    }

    /// Applies what is there, and waits no longer than `patience` if there is nothing. Whether
    /// anything was there.
    pub(crate) async fn step(&mut self, patience: Duration) -> Result<bool, MoveError> {
        let mut batch = std::mem::take(&mut self.waiting);
        if batch.is_empty() {
            let position = *self.subscription.position.borrow();
            let Ok(event) = tokio::time::timeout(patience, self.subscription.next()).await else {
                if self.idle_noted.elapsed() >= IDLE && self.subscription.is_settled() {
                    self.note(position).await?;
                }
                return Ok(false);
            };
            batch.push(self.transaction(event)?);
        }
        self.fill(&mut batch, (BATCH, BATCH_CHANGES))?;
        self.apply(batch, &[]).await?;
        Ok(true)
    }

    /// Neighbours go on writing: the log up to `position` is not needed for this tenant.
    async fn note(&mut self, position: u64) -> Result<(), MoveError> {
        self.idle_noted = Instant::now();
        self.applier.begin_at(position.max(self.applier.applied)).await?;
        self.subscription.settle_to(position);
        Ok(())
    }

    /// Writes how far an idle flow has come.
    pub(crate) async fn note_idle(&mut self) -> Result<(), MoveError> {
        // In this order: what ends before the position has been handed over.
        let position = *self.subscription.position.borrow();
        match self.is_idle() {
            true => self.note(position).await,
            false => Ok(()),
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.subscription.is_settled()
    }

    /// Whether an idle flow has come further than is written.
    pub(crate) fn is_ahead(&self) -> bool {
        *self.subscription.position.borrow() > self.applier.applied
    }

    /// Waits until there is something to apply, but no longer than `patience`. Whether there is.
    pub(crate) async fn has_arrived(&mut self, patience: Duration) -> Result<bool, MoveError> {
        if !self.waiting.is_empty() {
            return Ok(true);
        }
        let Ok(event) = tokio::time::timeout(patience, self.subscription.next()).await else {
            return Ok(false);
        };
        let transaction = self.transaction(event)?;
        self.waiting.push(transaction);
        Ok(true)
    }

    /// Applies what is there, for no longer than `limit`: under a tenant that never stops there is always more.
    /// Whether nothing was left.
    pub(crate) async fn catch_up(&mut self, limit: Duration) -> Result<bool, MoveError> {
        let began = Instant::now();
        while self.step(Duration::ZERO).await? {
            if began.elapsed() >= limit {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn fill(
        &mut self,
        batch: &mut Vec<Transaction>,
        (most, most_changes): (usize, usize),
    ) -> Result<(), MoveError> {
        let mut changes: usize = batch.iter().map(|t| t.changes.len()).sum();
        while batch.len() < most && changes < most_changes {
            let Some(event) = self.subscription.ready() else { break };
            let transaction = self.transaction(event)?;
            changes += transaction.changes.len();
            batch.push(transaction);
        }
        Ok(())
    }

    fn transaction(&self, event: Event) -> Result<Transaction, MoveError> {
        match event {
            Event::Transaction(transaction) => Ok(transaction),
            Event::Drift(what) => Err(MoveError::Drift(what)),
            Event::Exceeded(reason) => Err(MoveError::Limit(reason)),
            Event::Lost(reason) => Err(MoveError::Stream { shard: self.applier.at.name.clone(), reason }),
        }
    }

    async fn apply(&mut self, batch: Vec<Transaction>, last: &[String]) -> Result<(), MoveError> {
        if let Err(error) = self.applier.apply(&batch, last).await {
            // Nothing of it was kept, and it may be wanted again.
            self.waiting.splice(0..0, batch);
            return Err(error);
        }
        for transaction in &batch {
            self.subscription.settle(transaction);
            self.changes += transaction.changes.len() as u64;
        }
        Ok(())
    }

    /// Why the stream has ended.
    pub(crate) fn why_over(&mut self) -> MoveError {
        while let Some(event) = self.subscription.ready() {
            if let Err(error) = self.transaction(event) {
                return error;
            }
        }
        MoveError::Stream { shard: self.applier.at.name.clone(), reason: "it has ended".to_owned() }
    }

    /// Applies what comes until it is said which freezing of the tenant is the end, everything up to there, and `last` in
    /// the transaction that ends there. False if nothing is said any more, or if told to stop before that.
    pub(crate) async fn follow_to(
        &mut self,
        mark: oneshot::Receiver<String>,
        last: &[String],
        stop: &Notify,
    ) -> Result<bool, MoveError> {
        (self.torn, self.passed) = (true, None);
        let done = self.follow(mark, last, stop).await;
        self.torn = false;
        done
    }

    async fn follow(
        &mut self,
        mut mark: oneshot::Receiver<String>,
        last: &[String],
        stop: &Notify,
    ) -> Result<bool, MoveError> {
        let told = loop {
            let mut batch = std::mem::take(&mut self.waiting);
            if batch.is_empty() {
                let event = tokio::select! {
                    biased;
                    told = &mut mark => break told,
                    event = self.subscription.next() => event,
                };
                batch.push(self.transaction(event)?);
            }
            self.fill(&mut batch, (SMALL_BATCH, SMALL_CHANGES))?;
            if batch.iter().any(|t| marker(t).is_some_and(|m| m.state == "frozen")) {
                // It comes as soon as the answer to who has frozen it: what is left is for one transaction.
                self.passed = Some(Instant::now());
                self.waiting = batch;
                break mark.await;
            }
            self.apply(batch, &[]).await?;
        };
        match told {
            Ok(mark) => self.finish(&mark, last, stop).await,
            Err(_) => Ok(false),
        }
    }

    async fn finish(&mut self, mark: &str, last: &[String], stop: &Notify) -> Result<bool, MoveError> {
        loop {
            let mut batch = std::mem::take(&mut self.waiting);
            if batch.is_empty() {
                let event = tokio::select! {
                    event = self.subscription.next() => event,
                    () = stop.notified() => return Ok(false),
                };
                batch.push(self.transaction(event)?);
            }
            self.fill(&mut batch, (BATCH, BATCH_CHANGES))?;
            // Attempts that were given up have left marks too, with writes of the tenant behind them.
            match batch.iter().position(|t| marker(t).is_some_and(|m| m.state == "frozen" && m.mark == mark))
            {
                Some(at) => {
                    self.passed.get_or_insert_with(Instant::now);
                    let behind = batch.split_off(at + 1);
                    self.apply(batch, last).await?;
                    self.waiting = behind;
                    return Ok(true);
                }
                None => self.apply(batch, &[]).await?,
            }
        }
    }

    /// Lets everything pass unapplied up to the activation of the tenant by `move_id`, which is where a reversed
    /// stream begins.
    pub(crate) async fn skip_to_activation(&mut self, move_id: &str) -> Result<(), MoveError> {
        loop {
            let transaction = match self.waiting.is_empty() {
                true => {
                    let event = self.subscription.next().await;
                    self.transaction(event)?
                }
                false => self.waiting.remove(0),
            };
            let found = marker(&transaction).is_some_and(|m| m.state == "active" && m.move_id == move_id);
            if found && let Err(error) = self.applier.begin_at(transaction.end).await {
                // It is looked for once more.
                self.waiting.insert(0, transaction);
                return Err(error);
            }
            self.subscription.settle(&transaction);
            if found {
                return Ok(());
            }
        }
    }

    /// Brings the target to exactly what `snapshot` sees, given that all of that ends before `end` in the log, and tells
    /// up to where in the log that is. None if it cannot be, because the snapshot is no prefix of the log; then another
    /// must be taken.
    pub(crate) async fn advance_to(
        &mut self,
        snapshot: &Snapshot,
        end: u64,
    ) -> Result<Option<u64>, MoveError> {
        let mut queue = VecDeque::from(std::mem::take(&mut self.waiting));
        let mut held = Vec::new();
        let done = self.advance(&mut queue, &mut held, snapshot, end).await;
        // What could not be applied stands before what is not seen yet, and that before what has not been looked at.
        self.waiting.append(&mut held);
        self.waiting.extend(queue);
        let first_held = match done? {
            true => self.waiting.first().map(|t| t.end),
            false => return Ok(None),
        };
        Ok(Some(self.applier.applied.max(first_held.map_or(end, |held| held - 1))))
    }

    async fn advance(
        &mut self,
        queue: &mut VecDeque<Transaction>,
        held: &mut Vec<Transaction>,
        snapshot: &Snapshot,
        end: u64,
    ) -> Result<bool, MoveError> {
        let mut position = self.subscription.position.clone();
        loop {
            // In this order: what is before the position has been handed over by the time it is seen.
            let reached = *position.borrow_and_update() >= end;
            let mut batch = Vec::new();
            loop {
                let transaction = match queue.pop_front() {
                    Some(transaction) => transaction,
                    None => match self.subscription.ready() {
                        Some(event) => self.transaction(event)?,
                        None => break,
                    },
                };
                if !self.applier.is_due(&transaction) {
                    self.subscription.settle(&transaction);
                } else if !snapshot.sees(transaction.xid) {
                    held.push(transaction);
                } else if held.is_empty() {
                    batch.push(transaction);
                } else {
                    queue.push_front(transaction);
                    self.apply(batch, &[]).await?;
                    return Ok(false);
                }
                if batch.len() >= BATCH {
                    self.apply(std::mem::take(&mut batch), &[]).await?;
                }
            }
            if !batch.is_empty() {
                self.apply(batch, &[]).await?;
            }
            if reached {
                return Ok(true);
            }
            if tokio::time::timeout(Duration::from_secs(30), position.changed()).await.is_err() {
                return Err(MoveError::InTheWay("the change stream stood still for 30 s".to_owned()));
            }
        }
    }
}
