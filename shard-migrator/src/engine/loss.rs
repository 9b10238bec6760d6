//! A target that is lost for good when the tenant may have arrived there: an operator may give up what was written there.
//!
//! `docs/decisions/0016-accepted-loss.md` has what must hold.

use std::time::Duration;

use super::clear::Clearing;
use super::without::{is_known, note_left, whereabouts};
use super::{Engine, Place};
use crate::MoveError;
use crate::fault;
use crate::inventory::have_rows;
use crate::journal::{Job, Journal, Phase};
use crate::scope::{Scope, literal};

/// How long a target may take to answer that is said to be lost.
const LAST_QUESTION: Duration = Duration::from_secs(2);

/// Whether what a tenant may have written at a target that does not answer is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// Nobody has said so.
    Refused,
    /// An operator has.
    Accepted,
}

/// State and epoch of the source's fence, if this move holds the tenant up there.
pub(super) async fn held(source: &Place, job: &Job) -> Result<Option<(String, i64)>, MoveError> {
    let sql = "SELECT state, epoch FROM switchyard.fence
               WHERE tenant_id = $1 AND move_id = $2 AND state <> 'active'";
    let row = source.client.query_opt(sql, &[&job.tenant.as_str(), &job.id.to_string()]).await;
    Ok(row.map_err(source.at.failed())?.map(|row| (row.get(0), row.get(1))))
}

/// Fails where a tenant that is frozen may have arrived, and the target has forgotten it: what answers there is another
/// server, or one that has lost its disk, and says nothing about the tenant.
pub(super) async fn must_know(source: &Place, target: &Place, job: &Job) -> Result<(), MoveError> {
    if is_known(target, &job.id.to_string()).await? {
        return Ok(());
    }
    match source.missing || !crate::preflight::has_fence(&source.client, &source.at).await? {
        false if held(source, job).await?.is_some() => Err(MoveError::InTheWay(format!(
            "the tenant may have arrived on shard {}, which knows nothing of it: `move abort --without-target \
             --accept-loss` has the tenant go on without what it may have written there",
            job.target
        ))),
        _ => Ok(()),
    }
}

impl Engine {
    /// Whether the target can be asked after all. Not once the loss has been acted upon.
    pub(super) async fn answers(&self, journal: &Journal, job: &Job, scope: &Scope) -> bool {
        let asked = async {
            let target = self.place(journal, &job.target, scope).await?;
            is_known(&target, &job.id.to_string()).await
        };
        job.phase != Phase::Aborting
            && matches!(tokio::time::timeout(LAST_QUESTION, asked).await, Ok(Ok(true)))
    }

    /// Has a tenant go on at the source, as it was when it was frozen there, at an epoch above any that the target may
    /// have been activated with. That epoch; `known` is the highest that the catalog and the source know.
    pub(super) async fn go_on_at_source(
        &self,
        journal: &Journal,
        job: &Job,
        (source, scope): (&Place, &Scope),
        known: i64,
    ) -> Result<i64, MoveError> {
        let epoch = known.max(journal.epoch_after().await?) + 1;
        let what = format!(
            "the loss of what the tenant may have written on shard {} is accepted: it goes on at shard {} as it was when it \
             was frozen, at epoch {epoch}",
            job.target, job.source
        );
        tracing::warn!(id = job.id, tenant = %job.tenant, epoch, "{what}");
        // From here on no move of the tenant to there begins, and there is no way back to asking it.
        journal.left_at_target(Some(&scope.model)).await?;
        journal.enter(Phase::Aborting, &what).await?;
        fault::point("loss accepted");
        // First: routers that hear of it go to the target no more, before the source takes writes.
        journal.place(&job.tenant, &job.source, epoch).await?;
        fault::point("placed at source");
        let (tenant, id) = (literal(job.tenant.as_str()), literal(&job.id.to_string()));
        // One transaction.
        let sql = format!(
            "UPDATE switchyard.fence SET state = 'active', moved_to = NULL, epoch = greatest(epoch, {epoch}),
                    changed_at = clock_timestamp()
             WHERE tenant_id = {tenant} AND move_id = {id} AND state IN ('frozen', 'moved');
             SELECT switchyard.open_relations({tenant})"
        );
        source.client.batch_execute(&sql).await.map_err(source.at.failed())?;
        fault::point("active at source");
        Ok(epoch)
    }

    /// Whether a shard has rows of the tenant.
    pub(super) async fn has_rows(&self, place: &Place, scope: &Scope) -> Result<bool, MoveError> {
        if place.missing {
            return Ok(false);
        }
        let inventory = self.inventory(place, scope).await?;
        let has_rows = have_rows((&place.client, &place.at), inventory.tables.values(), scope).await?;
        Ok(has_rows.into_iter().any(|has| has))
    }
}

impl Clearing<'_> {
    /// Closes the fence of a target where the tenant had arrived, and says what stays there. Whether it had.
    pub(super) async fn close_arrived(
        &self,
        target: &Place,
        job: &Job,
        (home, epoch): (&str, i64),
    ) -> Result<bool, MoveError> {
        let tenant = job.tenant.as_str();
        let sql =
            "SELECT epoch FROM switchyard.fence WHERE tenant_id = $1 AND move_id = $2 AND state = 'active'";
        let arrived = target.client.query_opt(sql, &[&tenant, &job.id.to_string()]).await;
        let Some(arrived) = arrived.map_err(target.at.failed())? else { return Ok(false) };
        // First: whoever goes on after us deletes nothing.
        self.journal.kept_at_target().await?;
        let left = format!(
            "the tenant had arrived on shard {}, at epoch {}: nobody is served there any more, and {} stay as they are until \
             they are deleted there; what they have more than shard {home} was written there",
            job.target,
            arrived.get::<_, i64>(0),
            whereabouts(self.scope)
        );
        tracing::warn!(id = job.id, tenant = %job.tenant, shard = %job.target, "{left}");
        note_left(self.journal, job, "done", &left).await?;
        fault::point("kept");
        let tenant = literal(tenant);
        let close = self.scope.own_schemas();
        let close = close.map(|schemas| format!("; SELECT switchyard.close_relations({tenant}, {schemas})"));
        // One transaction. The epoch is the one that has ended there.
        let sql = format!(
            "UPDATE switchyard.fence SET state = 'moved', moved_to = {}, move_id = NULL,
                    epoch = greatest(epoch, {epoch} - 1), changed_at = clock_timestamp()
             WHERE tenant_id = {tenant} AND move_id = {} AND state = 'active'{}",
            literal(home),
            literal(&job.id.to_string()),
            close.unwrap_or_default()
        );
        target.client.batch_execute(&sql).await.map_err(target.at.failed())?;
        fault::point("closed");
        Ok(true)
    }
}
