//! From the first look to the cutover.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::{Ended, Place, Work, ready};
use crate::MoveError;
use crate::apply::Applier;
use crate::closing;
use crate::cutover::{Attempt, Cutover, Presence, Side};
use crate::fault;
use crate::fence;
use crate::flow::Flow;
use crate::inventory::Inventory;
use crate::journal::Phase;
use crate::preflight::{self, preflight};
use crate::scope::Model;
use crate::shape;
use crate::shard::ShardAccess;
use crate::stream::Stream;
use crate::structure;
use crate::verify::{Compared, mark, verify};

/// Pauses between attempts at the cutover: it begins at the first and doubles up to the second.
const BETWEEN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Bytes of changes that may wait when clients are held.
const FEW_BYTES: usize = 4 << 10;

/// How often a stream is opened anew for one who subscribes.
const OPENED_ANEW: u32 = 3;

/// Bytes of changes that may wait when the comparison begins.
const SMALL_BACKLOG: usize = 1 << 20;

/// Fails if anything that was found keeps the tenant from being moved.
fn refuse(found: Vec<preflight::Finding>) -> Result<(), MoveError> {
    let found: Vec<_> = found.into_iter().filter(|f| f.refuses).collect();
    if found.is_empty() { Ok(()) } else { Err(MoveError::Refused(found)) }
}

impl Work<'_> {
    pub(super) async fn forward(&mut self) -> Result<Ended, MoveError> {
        let began = Instant::now();
        self.back = None;
        // A copy that goes on follows the stream from where it stood, which is not kept for long.
        if !self.has_copied() {
            self.obey().await?;
        }
        self.enter(Phase::Preparing, "preflight").await?;
        self.engine.streams.forget(&self.target.at, self.job.id).await;
        let inventory = self.prepare().await?;
        if self.job.kind == "plan" {
            self.leave_shards().await?;
            self.journal.done("planned").await?;
            return Ok(Ended::Done);
        }
        let prepared_in = began.elapsed();
        let (mut flow, copied) = self.copy(&inventory).await?;
        self.note("copied", &copied);
        let copied_in = began.elapsed();

        self.enter(Phase::CatchingUp, "applying what was written meanwhile").await?;
        // Small enough is what is applied in the time that it takes to look.
        while !flow.catch_up(Duration::from_millis(200)).await? && flow.subscription.backlog() > SMALL_BACKLOG
        {
            self.obey().await?;
        }
        self.enter(Phase::Verifying, "comparing source and target").await?;
        let verified = {
            let source = (&self.source.client, &self.source.at);
            verify(&mut flow, source, &self.target.at, &inventory, &self.scope).await?
        };
        fault::point("verified");
        self.note_tables(&verified);
        // What is deleted later is what it names.
        self.write_receipt().await?;
        let verified_in = began.elapsed();
        let mut durations = json!({
            "prepare": prepared_in.as_millis() as u64,
            "copy": (copied_in - prepared_in).as_millis() as u64,
            "verify": (verified_in - copied_in).as_millis() as u64,
        });
        self.refresh(&mut flow).await?;
        self.check_drift(&inventory).await?;
        if self.job.kind == "rehearse" {
            let predicted = self.predict(&mut flow).await?;
            self.note("predicted_pause_ms", predicted.as_secs_f64() * 1000.0);
            self.note(super::REHEARSED, began.elapsed().as_millis() as u64);
            self.note("durations_ms", durations);
            self.write_receipt().await?;
            drop(flow);
            self.abort("rehearsed").await?;
            return Ok(Ended::Done);
        }
        self.obey().await?;
        self.enter(Phase::Cutover, "preparing the way back").await?;
        self.back = Some(self.reverse_subscription(&inventory, None).await?);
        fault::point("way back prepared");
        let epochs = self.cut_over(&mut flow, &inventory).await?;
        fault::point("moved");
        self.note("epochs", [epochs.0, epochs.1]);
        self.note("changes_applied", flow.changes);
        durations["total"] = json!(began.elapsed().as_millis() as u64);
        self.note("durations_ms", durations);
        self.write_receipt().await?;
        drop(flow);
        // Its log is not held back for a tenant that has gone.
        self.engine.streams.forget(&self.source.at, self.job.id).await;
        self.after_move(false).await
    }

    fn note_tables(&mut self, verified: &[Compared]) {
        let rows: u64 = verified.iter().map(|c| c.sum.rows).sum();
        let bytes: u64 = verified.iter().map(|c| c.sum.bytes).sum();
        self.note(super::COMPARED, verified);
        self.note("rows", rows);
        self.note("bytes", bytes);
        self.note("verified", true);
    }

    async fn prepare(&mut self) -> Result<Arc<Inventory>, MoveError> {
        let inventory = self.inventory(&self.source).await?;
        let there = self.inventory(&self.target).await?;
        let made = self.scope.is_own() && there.tables.is_empty();
        let found = self.look(&inventory, &there, made).await?;
        // Before anything is counted: the tenant's id may be no value of the column's type.
        refuse(found.clone())?;
        let plan = self.estimate(&inventory, &found).await?;
        self.journal.plan(&plan).await?;
        if self.job.kind == "plan" {
            return Ok(inventory);
        }
        if made {
            self.note(super::MADE, true);
            self.write_receipt().await?;
            self.make_database().await?;
        }
        self.take_over().await?;
        fault::point("taken over");
        let there = if made { self.make_structure(&inventory).await? } else { there };
        // An attempt of a mover that has gone may have left the source frozen; nobody arrives any more.
        if self.resolve_attempt().await? {
            return Err(MoveError::Arrived);
        }
        let (id, tenant) = (self.turn.id.clone(), self.job.tenant.clone());
        let before = fence::state(&self.target.client, &self.target.at, tenant.as_str()).await?;
        if before.is_some_and(|(state, _)| state == "moved") {
            self.note(super::LIVED_THERE, true);
            self.write_receipt().await?;
        }
        let (source, target) = (&self.source, &self.target);
        fence::guard(&source.client, &source.at, &inventory, &self.scope).await?;
        fence::guard(&target.client, &target.at, &there, &self.scope).await?;
        fence::begin_target(&target.client, &target.at, &id, tenant.as_str(), self.epoch).await?;
        fault::point("target fenced");
        if !self.can_go_on(&inventory).await? {
            self.begin_anew(&there).await?;
        }
        let (source, target) = (&self.source, &self.target);
        fence::begin_source(&source.client, &source.at, &id, tenant.as_str(), self.epoch).await?;
        fault::point("source fenced");
        self.engine.streams.publish(&source.client, &source.at, &Self::published(&inventory)).await?;
        fault::point("published");
        self.raise_sequences(&inventory, source, target).await?;
        fault::point("prepared");
        Ok(inventory)
    }

    async fn look(
        &self,
        inventory: &Inventory,
        there: &Inventory,
        made: bool,
    ) -> Result<Vec<preflight::Finding>, MoveError> {
        let (source, target) = (&self.source, &self.target);
        let own = self.scope.is_database();
        let slots = (
            self.journal.slots(&source.at.name, own).await?,
            self.journal.slots(&target.at.name, own).await?,
        );
        let source = preflight::Place { at: &source.at, client: &source.client, inventory, slots: slots.0 };
        let target =
            preflight::Place { at: &target.at, client: &target.client, inventory: there, slots: slots.1 };
        preflight(&self.scope, &source, &target, &self.turn.id, made).await
    }

    /// Makes the tenant's database on the target, if it is to have one and there is none.
    async fn make_database(&mut self) -> Result<(), MoveError> {
        let Model::Database { database } = &self.scope.model else { return Ok(()) };
        if self.target.missing {
            let (source, target) = (&self.source, &self.target);
            let from = (&source.client, &source.at);
            structure::make_database(from, (&target.client, &target.home), database).await?;
            self.target = Place::open(self.target.home.clone(), &self.scope).await?;
        }
        fault::point("database made");
        Ok(())
    }

    /// Makes what the source has of the tenant's own on the target, and looks at it once more.
    async fn make_structure(&mut self, inventory: &Inventory) -> Result<Arc<Inventory>, MoveError> {
        let target = (&self.target.client, &self.target.at);
        structure::make(&self.source.at, target, &self.scope.model).await?;
        fault::point("structure made");
        let there = self.inventory(&self.target).await?;
        refuse(self.look(inventory, &there, false).await?)?;
        Ok(there)
    }

    pub(super) async fn stream(&self, at: &ShardAccess) -> Result<Arc<Stream>, MoveError> {
        let followers = async {
            match self.scope.is_database() {
                // One that has followed it before misses nothing; nobody else can have.
                true => Ok(Vec::from_iter(
                    (self.job.phase >= Phase::Moved || self.has_copied()).then_some(self.job.id),
                )),
                false => self.journal.followers(&at.name).await,
            }
        };
        self.engine.streams.get(at, self.job.options.wal_budget, followers).await
    }

    /// Fills what is computed from the tenant's own tables, while changes go on being applied.
    async fn refresh(&self, flow: &mut Flow) -> Result<(), MoveError> {
        if !self.scope.is_own() {
            return Ok(());
        }
        let to = self.target.at.connect().await?;
        let source = (&self.source.client, &self.source.at);
        let refreshing = structure::refresh(source, (&to, &self.target.at), &self.scope.model);
        let mut refreshing = std::pin::pin!(refreshing);
        loop {
            // A step must not be dropped half way, so the two take turns.
            tokio::select! {
                biased;
                done = &mut refreshing => return done,
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            flow.catch_up(Duration::from_millis(50)).await?;
        }
    }

    /// Fails if the tables are not what they were.
    async fn check_drift(&self, inventory: &Inventory) -> Result<(), MoveError> {
        let now = self.inventory(&self.source).await?;
        let there = self.inventory(&self.target).await?;
        if now.fingerprint() != inventory.fingerprint() {
            return Err(MoveError::Drift(format!("on shard {}", self.source.at.name)));
        }
        let missing = inventory.tables.keys().find(|key| !there.tables.contains_key(*key));
        match missing {
            Some((schema, name)) => {
                Err(MoveError::Drift(format!("{schema}.{name} is gone from shard {}", self.target.at.name)))
            }
            None => Ok(()),
        }
    }

    /// How long the pause would be: the way of a change from the source to the target and its commit there.
    async fn predict(&self, flow: &mut Flow) -> Result<Duration, MoveError> {
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let began = Instant::now();
            let end = mark(&self.source.client, &self.source.at).await?;
            let mut position = flow.subscription.position.clone();
            let _ = tokio::time::timeout(Duration::from_secs(5), position.wait_for(|at| *at >= end)).await;
            flow.applier.begin_at(end).await?;
            longest = longest.max(began.elapsed());
        }
        Ok(longest)
    }

    /// Subscribes to the target, so that the source can follow from the very moment of the cutover, or from where it stood.
    pub(super) async fn reverse_subscription(
        &self,
        inventory: &Inventory,
        from: Option<u64>,
    ) -> Result<Flow, MoveError> {
        let target = &self.target;
        self.engine.streams.publish(&target.client, &target.at, &Self::published(inventory)).await?;
        let mut anew = 0;
        let subscription = loop {
            let stream = self.stream(&target.at).await?;
            let subscribed =
                stream.subscribe_from(self.job.id, self.tenant(), self.wanted(inventory), from).await;
            match subscribed {
                Some(subscription) => break subscription.holding(stream),
                // It has ended so that it can be read once more.
                None if anew < OPENED_ANEW => anew += 1,
                None => return Err(target.at.silent("it has ended")),
            }
            stream.ended().await;
        };
        let applier = Applier::resting(&self.source.at, &self.scope, inventory, self.turn.clone(), "source");
        Ok(Flow::new(subscription, applier))
    }

    /// Tries until the tenant has moved. The epochs before and after.
    async fn cut_over(&mut self, flow: &mut Flow, inventory: &Inventory) -> Result<(i64, i64), MoveError> {
        let here = fence::state(&self.source.client, &self.source.at, self.tenant()).await?;
        let there = fence::state(&self.target.client, &self.target.at, self.tenant()).await?;
        let known = [self.epoch, here.map_or(0, |s| s.1), there.map_or(0, |s| s.1)];
        let next = known.into_iter().max().unwrap_or(0) + 1;
        self.journal.epochs(self.epoch, next).await?;
        let epochs = (self.epoch, next);
        let from = ("source", self.source.at.clone());
        let to = ("target", self.target.at.clone());
        self.repeat(flow, inventory, (from, to), epochs).await?;
        Ok(epochs)
    }

    /// Makes attempts from one side to the other, until one succeeds or they are used up.
    pub(super) async fn repeat(
        &mut self,
        flow: &mut Flow,
        inventory: &Inventory,
        (from, to): ((&'static str, ShardAccess), (&'static str, ShardAccess)),
        epochs: (i64, i64),
    ) -> Result<(), MoveError> {
        let (from_client, to_client) = tokio::try_join!(from.1.connect(), to.1.connect())?;
        shape::prepare(&from_client, &from.1, &self.scope).await?;
        let compared = shape::read(&from_client, &from.1).await?;
        let now = self.engine.known.inventory(&from_client, &from.1, &self.scope).await?;
        let drift = || MoveError::Drift(format!("on shard {}", from.1.name));
        if now.fingerprint() != inventory.fingerprint() {
            return Err(drift());
        }
        let mut talk = self.talk().await?;
        let mut between = BETWEEN.0;
        let budget = Duration::from_millis(self.job.options.pause_budget_ms);
        let (mut presence, mut in_vain) = (Presence::default(), 0);
        for tried in 1..=self.job.options.attempts.max(1) {
            flow.catch_up(Duration::from_millis(500)).await?;
            match from.0 {
                "source" => self.raise_sequences(inventory, &self.source, &self.target).await?,
                _ => self.raise_sequences(inventory, &self.target, &self.source).await?,
            }
            ready::arm(self, flow, (&mut talk, &mut presence), &to.1.name).await?;
            let floor = ready::floor(flow, &from_client, &from.1).await?;
            if shape::read(&from_client, &from.1).await? != compared {
                return Err(drift());
            }
            let asked = "SELECT attempt FROM switchyard.moves WHERE move_id = $1 AND side = $2 AND term = $3";
            let row = to_client
                .query_opt(asked, &[&self.turn.id, &to.0, &self.turn.term])
                .await
                .map_err(to.1.failed())?;
            let attempt = row.ok_or(MoveError::Superseded)?.get(0);
            let cutover = Cutover {
                tenant: &self.job.tenant,
                turn: &self.turn,
                from: Side { at: &from.1, client: &from_client, part: from.0 },
                to: Side { at: &to.1, client: &to_client, part: to.0 },
                epochs: (u64::try_from(epochs.0).unwrap_or(0), u64::try_from(epochs.1).unwrap_or(0)),
                budget,
                attempt,
                end_pinned: self.job.options.end_pinned,
                shape: &compared,
                closing: closing::how(&from_client, &from.1, &self.scope).await?,
                floor,
            };
            cutover.practise(flow.applier.client()?).await?;
            // Clients are not to wait for what can be applied before.
            for _ in 0..100 {
                if flow.catch_up(Duration::from_millis(20)).await? || flow.subscription.backlog() < FEW_BYTES
                {
                    break;
                }
            }
            let begun = self.engine.attempts.read().await;
            let attempt = cutover.attempt(flow, &mut talk, &mut presence).await;
            drop(begun);
            match attempt? {
                Attempt::Moved(pause) => {
                    self.note("pause", &pause);
                    self.note("attempts", tried);
                    self.note("longest_given_up_us", in_vain);
                    return Ok(());
                }
                Attempt::GivenUp(who, pause) => {
                    in_vain = in_vain.max(pause.clients_us);
                    let waited = pause.clients_us as f64 / 1000.0;
                    let text = format!(
                        "attempt {tried} was given up after {:.1} ms, in which {} clients waited for up to {waited:.1} ms: {who}",
                        pause.total_us as f64 / 1000.0,
                        pause.clients
                    );
                    self.journal.event("cutover", &text).await?;
                    self.journal.error(Some(&who)).await?;
                }
            }
            let until = Instant::now() + between;
            while Instant::now() < until {
                flow.step(Duration::from_millis(20)).await?;
            }
            between = (between * 2).min(BETWEEN.1);
            if from.0 == "source" {
                self.obey().await?;
            }
        }
        Err(MoveError::Limit(format!(
            "none of {} attempts at the cutover succeeded within {} ms each",
            self.job.options.attempts, self.job.options.pause_budget_ms
        )))
    }
}
