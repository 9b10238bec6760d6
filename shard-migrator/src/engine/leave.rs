//! How a move ends: nothing of it is left, neither on a shard nor in the way of the next.

use std::collections::HashSet;

use super::clear::{Arrival, Clearing};
use super::{Place, Work};
use crate::MoveError;
use crate::closing;
use crate::cutover::turned;
use crate::fault;
use crate::fence;
use crate::inventory::Inventory;
use crate::journal::Phase;

/// One of the shards of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

impl Work<'_> {
    /// Whether this move has made the tenant's schema or database on the target.
    fn has_made(&self) -> bool {
        self.scope.is_own() && self.receipt.get(super::MADE) == Some(&serde_json::Value::Bool(true))
    }

    /// Who takes away what is on one of the shards, and that shard.
    fn clearing(&mut self, side: Side) -> (Clearing<'_>, &mut Place) {
        let Self { engine, journal, scope, job, source, target, .. } = self;
        let place = match side {
            Side::Source => source,
            Side::Target => target,
        };
        (Clearing { engine, journal, scope, batch: job.options.delete_batch }, place)
    }

    /// Deletes the tenant's rows at the target, where it does not live yet.
    pub(super) async fn delete_arrived(&mut self, there: &Inventory) -> Result<(), MoveError> {
        self.clear(Side::Target, false, there).await
    }

    /// Drops the tenant's schema or database on a shard where it does not live, or deletes the rows of these tables.
    async fn clear(&mut self, side: Side, own: bool, compared: &Inventory) -> Result<(), MoveError> {
        let (clearing, place) = self.clearing(side);
        match own {
            true => clearing.remove_own(place).await,
            false => clearing.delete_rows(place, compared).await,
        }
    }

    /// Whether the tenant has arrived at the target. If not, nobody arrives there any more, and a source that an attempt
    /// has left frozen goes on.
    pub(super) async fn resolve_attempt(&self) -> Result<bool, MoveError> {
        let (id, term, tenant) = (&self.turn.id, self.turn.term, self.tenant());
        let give_up = "SELECT coalesce(switchyard.give_up($1, 'target', $2, $3), '')";
        let row = self.target.client.query_one(give_up, &[id, &term, &tenant]).await;
        let state = row.map_err(|e| turned(self.target.at.failed()(e)))?;
        if state.get::<_, &str>(0) == "active" {
            return Ok(true);
        }
        let unfreeze = "SELECT switchyard.unfreeze($1, 'source', $2, $3)";
        let done = self.source.client.execute(unfreeze, &[id, &term, &tenant]).await;
        done.map_err(|e| turned(self.source.at.failed()(e)))?;
        Ok(false)
    }

    /// Whether anything of the move is on a shard.
    pub(super) async fn is_begun(&self) -> Result<bool, MoveError> {
        for place in [&self.source, &self.target] {
            if !place.missing && crate::preflight::has_fence(&place.client, &place.at).await? {
                let sql = "SELECT EXISTS (SELECT FROM switchyard.moves WHERE move_id = $1)";
                let row = place.client.query_one(sql, &[&self.turn.id]).await.map_err(place.at.failed())?;
                if row.get(0) {
                    return Ok(true);
                }
            }
        }
        Ok(self.has_made())
    }

    /// Gives the move up. The tenant stays where it was.
    pub(super) async fn abort(&mut self, outcome: &str) -> Result<(), MoveError> {
        self.back = None;
        if self.job.kind != "plan" {
            self.take_over().await?;
            let (id, tenant) = (self.turn.id.clone(), self.job.tenant.clone());
            // Before this is written down: behind the activation there is nothing to be given up.
            if !self.target.missing && self.resolve_attempt().await? {
                return Err(MoveError::Arrived);
            }
            self.enter(Phase::Aborting, outcome).await?;
            if !self.target.missing {
                self.clear_target().await?;
            }
            let source = &self.source;
            fence::settle(&source.client, &source.at, &id, tenant.as_str(), "move_id = NULL").await?;
        }
        self.leave_shards().await?;
        self.journal.done(outcome).await
    }

    /// Takes away what this move has brought to the target.
    async fn clear_target(&mut self) -> Result<(), MoveError> {
        let (id, made) = (self.turn.id.clone(), self.has_made());
        let (home, epoch) = (self.source.at.name.clone(), self.epoch);
        let lives = self.receipt.contains_key(super::LIVED_THERE).then_some((home.as_str(), epoch));
        let (clearing, target) = self.clearing(Side::Target);
        clearing.arrival(target, Arrival { id: &id, made, lives }).await
    }

    /// The tables of a shard that were compared with those of the other side. Fails if another has rows of the tenant:
    /// these would be there no more.
    async fn only_compared(&self, place: &Place, noted: &str) -> Result<Inventory, MoveError> {
        let names = self.receipt.get(noted).and_then(serde_json::Value::as_array);
        let names: HashSet<_> = names.into_iter().flatten().filter_map(|t| t["table"].as_str()).collect();
        let mut inventory = Inventory::clone(&*self.inventory(place).await?);
        for table in inventory.tables.values().filter(|t| !names.contains(t.plain().as_str())) {
            let sql = format!("SELECT EXISTS (SELECT FROM {}{})", table.quoted(), self.scope.filter());
            if place.client.client().query_one(&sql, &[]).await.map_err(place.at.failed())?.get(0) {
                return Err(MoveError::NotMoved { shard: place.at.name.clone(), table: table.plain() });
            }
        }
        inventory.tables.retain(|_, table| names.contains(table.plain().as_str()));
        Ok(inventory)
    }

    /// What keeps the source from being cleared, if anything does.
    pub(super) async fn not_moved(&self) -> Result<Option<String>, MoveError> {
        if self.source.missing {
            return Ok(None);
        }
        match self.only_compared(&self.source, super::COMPARED).await {
            Ok(_) => Ok(None),
            Err(error @ MoveError::NotMoved { .. }) => Ok(Some(error.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Deletes what is left at the source, which nobody may read or write any more.
    pub(super) async fn complete(&mut self) -> Result<(), MoveError> {
        self.back = None;
        self.enter(Phase::Completing, "deleting what is left at the source").await?;
        self.take_over().await?;
        let (id, tenant) = (self.turn.id.clone(), self.job.tenant.clone());
        let source = &self.source;
        if !source.missing {
            let state = fence::state(&source.client, &source.at, tenant.as_str()).await?;
            // The one thing that must never be wrong here.
            if state.is_none_or(|s| s.0 != "moved") {
                let what =
                    format!("the fence on shard {} does not say that the tenant has moved", source.at.name);
                return Err(MoveError::Invalid(what));
            }
            fault::point("completing");
            let compared = self.only_compared(source, super::COMPARED).await?;
            self.clear(Side::Source, self.scope.is_own(), &compared).await?;
        }
        fault::point("deleted");
        self.settle_both(&id, tenant.as_str()).await?;
        self.leave_shards().await?;
        self.journal.done("completed").await
    }

    /// The rows of the fences stay: they are what tells a router with an old topology where to go. A database that is
    /// gone has none.
    async fn settle_both(&self, id: &str, tenant: &str) -> Result<(), MoveError> {
        for place in [&self.source, &self.target] {
            if !place.missing {
                fence::settle(&place.client, &place.at, id, tenant, "move_id = NULL").await?;
            }
        }
        Ok(())
    }

    /// The tenant has gone back: what was at the target is deleted.
    pub(super) async fn rolled_back(&mut self) -> Result<(), MoveError> {
        self.back = None;
        let (id, tenant) = (self.turn.id.clone(), self.job.tenant.clone());
        let (source, target) = (&self.source, &self.target);
        let epoch = fence::state(&source.client, &source.at, tenant.as_str()).await?.map_or(0, |s| s.1);
        self.journal.place(&tenant, &source.at.name, epoch).await?;
        if !target.missing {
            fence::settle(&target.client, &target.at, &id, tenant.as_str(), "state = 'moved'").await?;
            if !self.has_made() {
                closing::behind(&target.client, &target.at, &self.scope).await?;
            }
            let compared = self.only_compared(target, super::COMPARED_BACK).await?;
            self.clear(Side::Target, self.has_made(), &compared).await?;
        }
        self.settle_both(&id, tenant.as_str()).await?;
        fault::point("settled");
        self.leave_shards().await?;
        self.journal.done("rolled_back").await
    }

    /// Closes what no other move needs.
    pub(super) async fn sweep(&self) -> Result<(), MoveError> {
        for place in [&self.source, &self.target] {
            if place.missing {
                continue;
            }
            self.engine.streams.forget(&place.at, self.job.id).await;
            if self.scope.is_database() {
                // Nobody else's.
                self.engine.streams.sweep(&place.at, std::future::ready(Ok(false))).await?;
            } else {
                self.engine.streams.sweep(&place.at, self.journal.others(&place.at.name)).await?;
            }
        }
        Ok(())
    }

    /// Forgets the move on the shards, and closes streams that nobody reads.
    pub(super) async fn leave_shards(&self) -> Result<(), MoveError> {
        for place in [&self.source, &self.target] {
            if !place.missing && crate::preflight::has_fence(&place.client, &place.at).await? {
                fence::forget(&place.client, &place.at, &self.turn.id).await?;
            }
        }
        self.sweep().await
    }
}
