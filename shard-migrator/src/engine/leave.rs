//! How a move ends: nothing of it is left, neither on a shard nor in the way of the next.

use std::collections::HashSet;
use std::time::Duration;

use super::{Place, Work};
use crate::MoveError;
use crate::cutover::turned;
use crate::fault;
use crate::fence;
use crate::inventory::{Inventory, Table};
use crate::journal::Phase;
use crate::structure;

/// Between batches of deletion, so that neighbours are not held up.
const BREATH: Duration = Duration::from_millis(2);

/// One of the shards of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

impl Work<'_> {
    /// Deletes the tenant's rows on a shard where it does not live.
    pub(super) async fn delete_rows(&self, place: &Place, inventory: &Inventory) -> Result<(), MoveError> {
        let failed = place.at.failed();
        let set = |role: &str| format!("SET session_replication_role = {role}");
        // Neither triggers nor cascades: every table is done here.
        place.client.batch_execute(&set("replica")).await.map_err(failed)?;
        for table in inventory.tables.values() {
            let sql = self.deletion(table);
            let statement = place.client.prepare(&sql).await.map_err(failed)?;
            while place.client.execute(&statement, &[]).await.map_err(failed)? > 0 {
                tokio::time::sleep(BREATH).await;
            }
        }
        place.client.batch_execute(&set("origin")).await.map_err(failed)
    }

    /// One batch. By place, as a table need not have a key here; that a place is one of each part of a partitioned table
    /// does not matter, since all of the tenant's rows are to go.
    fn deletion(&self, table: &Table) -> String {
        let (quoted, filter) = (table.quoted(), self.scope.filter());
        let joint = if filter.is_empty() { " WHERE" } else { " AND" };
        format!(
            "DELETE FROM {quoted}{filter}{joint} ctid = ANY (ARRAY(SELECT ctid FROM {quoted}{filter} LIMIT {}))",
            self.job.options.delete_batch.max(1)
        )
    }

    /// Whether this move has made the tenant's schema or database on the target.
    fn has_made(&self) -> bool {
        self.scope.is_own() && self.receipt.get(super::MADE) == Some(&serde_json::Value::Bool(true))
    }

    /// Drops the tenant's schema or database on a shard where it does not live.
    async fn remove_own(&mut self, side: Side) -> Result<(), MoveError> {
        let place = match side {
            Side::Source => &mut self.source,
            Side::Target => &mut self.target,
        };
        if place.missing {
            return Ok(());
        }
        let client = place.home.connect().await?;
        self.journal.is_ours().await?;
        if self.scope.is_database() {
            // A slot would keep it from being dropped.
            self.engine.streams.sweep(&place.at, std::future::ready(Ok(false))).await?;
            place.missing = true;
        }
        structure::remove(&client, &place.home, &self.scope.model).await
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
                self.clear_target(&id, tenant.as_str()).await?;
            }
            let source = &self.source;
            fence::settle(&source.client, &source.at, &id, tenant.as_str(), "move_id = NULL").await?;
        }
        self.leave_shards().await?;
        self.journal.done(outcome).await
    }

    /// Takes away what this move has brought to the target: before its fence stood there was nothing of it.
    async fn clear_target(&mut self, id: &str, tenant: &str) -> Result<(), MoveError> {
        let target = &self.target;
        let arriving = fence::state(&target.client, &target.at, tenant).await?.map(|s| s.0);
        match arriving.as_deref() {
            Some("importing" | "aborted") => {}
            None if self.has_made() => {}
            _ => return Ok(()),
        }
        fence::settle(&target.client, &target.at, id, tenant, "state = 'aborted'").await?;
        fault::point("clearing");
        if self.has_made() {
            self.remove_own(Side::Target).await?;
        } else {
            let inventory = target.inventory(&self.scope).await?;
            self.delete_rows(target, &inventory).await?;
        }
        let target = &self.target;
        if target.missing {
            return Ok(());
        }
        fault::point("cleared");
        if self.receipt.contains_key(super::LIVED_THERE) {
            // Routers that know no better still come here.
            let sql = "UPDATE switchyard.fence SET state = 'moved', moved_to = $3, move_id = NULL,
                              epoch = greatest($4::bigint - 1, 0), changed_at = now()
                       WHERE tenant_id = $1 AND move_id = $2 AND state = 'aborted'";
            let source = self.source.at.name.as_str();
            let set = target.client.execute(sql, &[&tenant, &id, &source, &self.epoch]).await;
            return set.map(drop).map_err(target.at.failed());
        }
        let sql = "DELETE FROM switchyard.fence WHERE tenant_id = $1 AND move_id = $2 AND state = 'aborted'";
        target.client.execute(sql, &[&tenant, &id]).await.map_err(target.at.failed())?;
        Ok(())
    }

    /// The tables of a shard that were compared with those of the other side. Fails if another has rows of the tenant:
    /// these would be there no more.
    async fn only_compared(&self, place: &Place, noted: &str) -> Result<Inventory, MoveError> {
        let names = self.receipt.get(noted).and_then(serde_json::Value::as_array);
        let names: HashSet<_> = names.into_iter().flatten().filter_map(|t| t["table"].as_str()).collect();
        let mut inventory = place.inventory(&self.scope).await?;
        for table in inventory.tables.values().filter(|t| !names.contains(t.plain().as_str())) {
            let sql = format!("SELECT EXISTS (SELECT FROM {}{})", table.quoted(), self.scope.filter());
            if place.client.query_one(&sql, &[]).await.map_err(place.at.failed())?.get(0) {
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
            if self.scope.is_own() {
                self.remove_own(Side::Source).await?;
            } else {
                self.delete_rows(source, &compared).await?;
            }
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
            let compared = self.only_compared(target, super::COMPARED_BACK).await?;
            if self.has_made() {
                self.remove_own(Side::Target).await?;
            } else {
                self.delete_rows(target, &compared).await?;
            }
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
