//! How a move ends: nothing of it is left, neither on a shard nor in the way of the next.

use std::time::Duration;

use super::{Place, Work};
use crate::MoveError;
use crate::fault;
use crate::fence;
use crate::inventory::{Inventory, Table};
use crate::journal::Phase;
use crate::scope::ident;

/// Between batches of deletion, so that neighbours are not held up.
const BREATH: Duration = Duration::from_millis(2);

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

    fn deletion(&self, table: &Table) -> String {
        let (quoted, filter) = (table.quoted(), self.scope.filter());
        let key = table.key.iter().map(|k| ident(k)).collect::<Vec<_>>().join(", ");
        let joint = if filter.is_empty() { " WHERE" } else { " AND" };
        format!(
            "DELETE FROM {quoted}{filter}{joint} ({key}) IN (SELECT {key} FROM {quoted}{filter} LIMIT {})",
            self.job.options.delete_batch.max(1)
        )
    }

    /// A source that an attempt has left frozen goes on; nobody arrives at the target any more.
    pub(super) async fn resolve_attempt(&self) -> Result<(), MoveError> {
        let (id, term, tenant) = (&self.turn.id, self.turn.term, self.tenant());
        self.target
            .client
            .execute("SELECT switchyard.give_up($1, 'target', $2, $3)", &[id, &term, &tenant])
            .await
            .map_err(self.target.at.failed())?;
        self.source
            .client
            .execute("SELECT switchyard.unfreeze($1, 'source', $2, $3)", &[id, &term, &tenant])
            .await
            .map_err(self.source.at.failed())?;
        Ok(())
    }

    /// Gives the move up. The tenant stays where it was.
    pub(super) async fn abort(&mut self, outcome: &str) -> Result<(), MoveError> {
        self.enter(Phase::Aborting, outcome).await?;
        if self.job.kind != "plan" {
            self.take_over().await?;
            self.resolve_attempt().await?;
            let (id, tenant) = (self.turn.id.clone(), self.job.tenant.clone());
            let (source, target) = (&self.source, &self.target);
            let inventory = Inventory::read(&target.client, &target.at, &self.scope).await?;
            let arriving = fence::state(&target.client, &target.at, tenant.as_str()).await?;
            // Only what this move has brought: before its fence stood there was nothing of it.
            if arriving.is_some_and(|s| s.0 == "importing" || s.0 == "aborted") {
                fence::settle(&target.client, &target.at, &id, tenant.as_str(), "state = 'aborted'").await?;
                self.delete_rows(target, &inventory).await?;
                let sql = "DELETE FROM switchyard.fence WHERE tenant_id = $1 AND move_id = $2 AND state = 'aborted'";
                target.client.execute(sql, &[&tenant.as_str(), &id]).await.map_err(target.at.failed())?;
            }
            fence::settle(&source.client, &source.at, &id, tenant.as_str(), "move_id = NULL").await?;
        }
        self.leave_shards().await?;
        self.journal.done(outcome).await
    }

    /// Deletes what is left at the source, which nobody may read or write any more.
    pub(super) async fn complete(&mut self) -> Result<(), MoveError> {
        self.enter(Phase::Completing, "deleting what is left at the source").await?;
        self.take_over().await?;
        let (id, tenant) = (self.turn.id.clone(), self.job.tenant.clone());
        let (source, target) = (&self.source, &self.target);
        let state = fence::state(&source.client, &source.at, tenant.as_str()).await?;
        // The one thing that must never be wrong here.
        if state.is_none_or(|s| s.0 != "moved") {
            let what =
                format!("the fence on shard {} does not say that the tenant has moved", source.at.name);
            return Err(MoveError::Invalid(what));
        }
        let inventory = Inventory::read(&source.client, &source.at, &self.scope).await?;
        fault::point("completing");
        self.delete_rows(source, &inventory).await?;
        fault::point("deleted");
        // The row stays: it is what tells a router with an old topology where to go.
        fence::settle(&source.client, &source.at, &id, tenant.as_str(), "move_id = NULL").await?;
        fence::settle(&target.client, &target.at, &id, tenant.as_str(), "move_id = NULL").await?;
        self.leave_shards().await?;
        self.journal.done("completed").await
    }

    /// The tenant has gone back: what was at the target is deleted.
    pub(super) async fn rolled_back(&mut self) -> Result<(), MoveError> {
        let (id, tenant) = (self.turn.id.clone(), self.job.tenant.clone());
        let (source, target) = (&self.source, &self.target);
        let epoch = fence::state(&source.client, &source.at, tenant.as_str()).await?.map_or(0, |s| s.1);
        self.journal.place(&tenant, &source.at.name, epoch).await?;
        fence::settle(&target.client, &target.at, &id, tenant.as_str(), "state = 'moved'").await?;
        let inventory = Inventory::read(&target.client, &target.at, &self.scope).await?;
        self.delete_rows(target, &inventory).await?;
        fence::settle(&source.client, &source.at, &id, tenant.as_str(), "move_id = NULL").await?;
        fence::settle(&target.client, &target.at, &id, tenant.as_str(), "move_id = NULL").await?;
        self.leave_shards().await?;
        self.journal.done("rolled_back").await
    }

    /// Closes what no other move needs.
    pub(super) async fn sweep(&self) -> Result<(), MoveError> {
        for place in [&self.source, &self.target] {
            self.engine.streams.sweep(&place.at, self.journal.others(&place.at.name)).await?;
        }
        Ok(())
    }

    /// Forgets the move on the shards, and closes streams that nobody reads.
    pub(super) async fn leave_shards(&self) -> Result<(), MoveError> {
        for place in [&self.source, &self.target] {
            if crate::preflight::has_fence(&place.client, &place.at).await? {
                fence::forget(&place.client, &place.at, &self.turn.id).await?;
            }
        }
        self.sweep().await
    }
}
