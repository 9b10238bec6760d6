//! Taking away what a shard has of a tenant that does not live there.

use std::time::Duration;

use super::{Engine, Place};
use crate::MoveError;
use crate::fault;
use crate::fence;
use crate::inventory::{Inventory, Table, have_rows};
use crate::journal::Journal;
use crate::scope::Scope;
use crate::structure;

/// Between batches of deletion, so that neighbours are not held up.
const BREATH: Duration = Duration::from_millis(2);

/// Who takes something away, and of whom.
pub(super) struct Clearing<'a> {
    pub(super) engine: &'a Engine,
    pub(super) journal: &'a Journal,
    pub(super) scope: &'a Scope,
    /// Rows deleted at a time.
    pub(super) batch: u32,
}

/// What a move has brought to a shard.
pub(super) struct Arrival<'a> {
    /// The move's id as shards have it.
    pub(super) id: &'a str,
    /// Whether it has made the tenant's schema or database there.
    pub(super) made: bool,
    /// Where the tenant lives, and its epoch there, if it had lived here before the move.
    pub(super) lives: Option<(&'a str, i64)>,
}

impl Clearing<'_> {
    /// Deletes the tenant's rows.
    pub(super) async fn delete_rows(&self, place: &Place, inventory: &Inventory) -> Result<(), MoveError> {
        let failed = place.at.failed();
        let has_rows = have_rows((&place.client, &place.at), inventory.tables.values(), self.scope).await?;
        let tables = inventory.tables.values().zip(has_rows).filter(|(_, has_rows)| *has_rows);
        let tables: Vec<_> = tables.map(|(table, _)| table).collect();
        if tables.is_empty() {
            return Ok(());
        }
        let set = |role: &str| format!("SET session_replication_role = {role}");
        // Neither triggers nor cascades: every table is done here.
        place.client.batch_execute(&set("replica")).await.map_err(failed)?;
        for table in tables {
            let sql = self.deletion(table);
            let statement = place.client.prepare(&sql).await.map_err(failed)?;
            while place.client.client().execute(&statement, &[]).await.map_err(failed)? > 0 {
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
            self.batch.max(1)
        )
    }

    /// Drops the tenant's schema or database.
    pub(super) async fn remove_own(&self, place: &mut Place) -> Result<(), MoveError> {
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

    /// Takes away what a move has brought: before its fence stood there was nothing of it.
    pub(super) async fn arrival(&self, place: &mut Place, of: Arrival<'_>) -> Result<(), MoveError> {
        let tenant = self.scope.tenant.as_str();
        let arriving = fence::state(&place.client, &place.at, tenant).await?.map(|s| s.0);
        match arriving.as_deref() {
            Some("importing" | "aborted") => {}
            None if of.made => {}
            _ => return Ok(()),
        }
        fence::settle(&place.client, &place.at, of.id, tenant, "state = 'aborted'").await?;
        fault::point("clearing");
        if of.made {
            self.remove_own(place).await?;
        } else {
            let inventory = self.engine.inventory(place, self.scope).await?;
            self.delete_rows(place, &inventory).await?;
        }
        if place.missing {
            return Ok(());
        }
        fault::point("cleared");
        let Some((home, epoch)) = of.lives else {
            let sql =
                "DELETE FROM switchyard.fence WHERE tenant_id = $1 AND move_id = $2 AND state = 'aborted'";
            let gone = place.client.execute(sql, &[&tenant, &of.id]).await;
            return gone.map(drop).map_err(place.at.failed());
        };
        // Routers that know no better still come here.
        let sql = "UPDATE switchyard.fence SET state = 'moved', moved_to = $3, move_id = NULL,
                          epoch = greatest($4::bigint - 1, 0), changed_at = now()
                   WHERE tenant_id = $1 AND move_id = $2 AND state = 'aborted'";
        let set = place.client.execute(sql, &[&tenant, &of.id, &home, &epoch]).await;
        set.map(drop).map_err(place.at.failed())
    }
}
