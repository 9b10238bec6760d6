//! What is done for a tenant of which one shard of its move does not answer any more: the source of one that has moved,
//! the target of one that has not.

use serde_json::{Value, json};
use switchyard_catalog::signals::{ORDERS, Order};
use switchyard_config::ShardName;

use super::clear::{Arrival, Clearing};
use super::loss::{Loss, held};
use super::{Engine, Place};
use crate::MoveError;
use crate::fence;
use crate::journal::{Job, Journal, Phase, Wish};
use crate::scope::{Model, Scope};

/// What the receipt notes of what a move has left at a shard that it was ended without.
const LEFT_BEHIND: &str = "left_behind";

impl Engine {
    /// Sees to it that a tenant that has arrived is served at the target, and ends the move if the operator wants that
    /// without its source. Whether it has ended.
    pub(super) async fn without_source(&self, journal: &Journal, job: &Job) -> Result<bool, MoveError> {
        if job.kind != "move" || job.phase < Phase::Cutover || job.phase > Phase::RollingBack {
            return Ok(false);
        }
        let (context, _) = journal.tenant(&job.tenant).await?;
        let scope = Scope::of(&job.tenant, &context, &job.options.tenant_column);
        let target = self.place(journal, &job.target, &scope).await?;
        let ending = journal.wish().await?.0 == Wish::CompleteWithoutSource;
        let (id, tenant) = (job.id.to_string(), job.tenant.as_str());
        let arrived = match target.missing {
            true => None,
            false => {
                // From here on no mover of before takes the tenant away from there.
                let at = (&target.at, &target.home);
                fence::take_over(&target.client, at, (&id, "target", job.term), tenant).await?;
                fence::state(&target.client, &target.at, tenant).await?
            }
        };
        let Some((_, epoch)) = arrived.filter(|(state, _)| state == "active") else {
            if ending {
                let what = format!("the tenant is not served on shard {}: the source is needed", job.target);
                journal.unwish(&what).await?;
            }
            return Ok(false);
        };
        journal.place(&job.tenant, &job.target, epoch).await?;
        if job.phase == Phase::Cutover {
            journal.enter(Phase::Moved, "the tenant lives at the target; the source does not answer").await?;
        }
        journal.moved_now().await?;
        self.tell_moved(job, epoch).await?;
        if !ending {
            return Ok(false);
        }
        fence::settle(&target.client, &target.at, &id, tenant, "move_id = NULL").await?;
        fence::forget(&target.client, &target.at, &id).await?;
        let left = format!(
            "shard {} was not asked: {}, if there, and the tenant's row in switchyard.fence stay there; its slot is \
             dropped when it is back",
            job.source,
            whereabouts(&scope)
        );
        note_left(journal, job, "moved", &left).await?;
        self.leave_stream(journal, job, &scope, &target).await?;
        journal.done("completed").await?;
        Ok(true)
    }

    /// Gives a move up without asking its target: the tenant stays at the source, of which nothing is held back any more.
    /// Whether it has ended. Where the tenant may have arrived, not unless the loss of what it has written there is
    /// accepted.
    pub(super) async fn without_target(
        &self,
        journal: &Journal,
        job: &Job,
        loss: Loss,
    ) -> Result<bool, MoveError> {
        if job.kind == "plan" || (job.phase > Phase::Cutover && job.phase != Phase::Aborting) {
            return Ok(false);
        }
        let (context, mut epoch) = journal.tenant(&job.tenant).await?;
        let scope = Scope::of(&job.tenant, &context, &job.options.tenant_column);
        let source = self.place(journal, &job.source, &scope).await?;
        let (id, tenant) = (job.id.to_string(), job.tenant.as_str());
        let begun = !source.missing && crate::preflight::has_fence(&source.client, &source.at).await?;
        if begun {
            // From here on no mover of before freezes the tenant; and nobody arrives whose source is not frozen.
            let at = (&source.at, &source.home);
            fence::take_over(&source.client, at, (&id, "source", job.term), tenant).await?;
            match (held(&source, job).await?, loss) {
                (None, _) => {}
                (Some((state, _)), Loss::Refused) => {
                    let arrived = if state == "moved" { "has arrived" } else { "may have arrived" };
                    let what = format!(
                        "the tenant is {state} on shard {} and {arrived} on shard {}: the target is needed. If it is \
                         lost for good, see to it that it is off; `move abort --without-target --accept-loss` then has the \
                         tenant go on without what it may have written there",
                        job.source, job.target
                    );
                    journal.event("cutover", &what).await?;
                    journal.unwish(&what).await?;
                    return Err(MoveError::InTheWay(what));
                }
                (Some(_), Loss::Accepted) if self.answers(journal, job, &scope).await => {
                    journal.event("cutover", "the target answers: nothing need be lost").await?;
                    return Ok(false);
                }
                (Some((_, fenced)), Loss::Accepted) => {
                    epoch = self.go_on_at_source(journal, job, (&source, &scope), epoch.max(fenced)).await?;
                }
            }
        }
        journal.left_at_target(Some(&scope.model)).await?;
        journal.enter(Phase::Aborting, "without the target").await?;
        // What would apply changes there, and what is read from there.
        drop(self.streams.kept(job.id));
        if begun {
            fence::settle(&source.client, &source.at, &id, tenant, "move_id = NULL").await?;
            fence::forget(&source.client, &source.at, &id).await?;
            self.leave_stream(journal, job, &scope, &source).await?;
        }
        // Routers may hold clients for an attempt that was under way.
        self.tell(job, (&job.source, epoch), loss == Loss::Accepted).await?;
        let unless = match loss {
            Loss::Refused => "",
            Loss::Accepted => ", unless the tenant has arrived there: then it stays for people to look at",
        };
        let left = format!(
            "shard {} was not asked: what the move has brought there, of {}, is cleared when it answers{unless}",
            job.target,
            whereabouts(&scope)
        );
        note_left(journal, job, "aborting", &left).await?;
        journal.done("aborted").await?;
        Ok(true)
    }

    /// Takes away what a move has left at a target that it was given up without, and that answers again. Where the tenant
    /// had arrived, nobody is served there any more, and what is there stays until people delete it.
    ///
    /// No move of the tenant to there begins before this is noted as done. Who takes this over raises the term, and ends
    /// the sessions of before, as with every step of a move.
    pub(crate) async fn clear_left(&self, id: i64) -> Result<(), MoveError> {
        let claimed = Journal::claim_left(&self.catalog, &self.sessions, id, &self.owner).await?;
        let (journal, job, left) = claimed;
        let (home, epoch) = (left.home.as_str(), left.epoch);
        let scope = Scope { tenant: job.tenant.clone(), model: left.model, beside: Vec::new() };
        let mut target = self.place(&journal, &job.target, &scope).await?;
        journal.is_ours().await?;
        let id = job.id.to_string();
        let mut kept = left.kept;
        if is_known(&target, &id).await? {
            let at = (&target.at, &target.home);
            fence::take_over(&target.client, at, (&id, "target", job.term), job.tenant.as_str()).await?;
            let noted = |name: &str| job.receipt.as_ref().and_then(|r| r.get(name)).is_some();
            let lives = noted(super::LIVED_THERE).then_some((home, epoch));
            let made = scope.is_own() && noted(super::MADE);
            let batch = job.options.delete_batch;
            let clearing = Clearing { engine: self, journal: &journal, scope: &scope, batch };
            kept |= clearing.close_arrived(&target, &job, (home, epoch)).await?;
            if !kept {
                clearing.arrival(&mut target, Arrival { id: &id, made, lives }).await?;
            }
            if !target.missing {
                fence::forget(&target.client, &target.at, &id).await?;
            }
        }
        if !target.missing {
            self.leave_stream(&journal, &job, &scope, &target).await?;
        }
        if kept && self.has_rows(&target, &scope).await? {
            return Ok(());
        }
        journal.event("done", &format!("what was left on shard {} is cleared", job.target)).await?;
        journal.left_at_target(None).await
    }

    /// Lets clients go on at the target that wait, or that go to the source in vain.
    pub(super) async fn tell_moved(&self, job: &Job, epoch: i64) -> Result<(), MoveError> {
        self.tell(job, (&job.target, epoch), true).await
    }

    /// Lets clients go on that wait; `moved` if they may have gone elsewhere before.
    async fn tell(&self, job: &Job, (shard, epoch): (&ShardName, i64), moved: bool) -> Result<(), MoveError> {
        let order = Order::Release {
            tenant: job.tenant.clone(),
            attempt: String::new(),
            shard: shard.clone(),
            epoch: u64::try_from(epoch).unwrap_or(0),
            moved,
        };
        self.replies.say(ORDERS, &order).await
    }

    /// Closes the stream of a shard unless another move needs it.
    async fn leave_stream(
        &self,
        journal: &Journal,
        job: &Job,
        scope: &Scope,
        place: &Place,
    ) -> Result<(), MoveError> {
        self.streams.forget(&place.at, job.id).await;
        let others = async {
            match scope.is_database() {
                true => Ok(false),
                false => journal.others(&place.at.name).await,
            }
        };
        self.streams.sweep(&place.at, others).await
    }
}

/// Whether a shard has heard of a move: one that another has taken the place of has not, nor one that lost its disk.
pub(super) async fn is_known(place: &Place, id: &str) -> Result<bool, MoveError> {
    if place.missing || !crate::preflight::has_fence(&place.client, &place.at).await? {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT FROM switchyard.moves WHERE move_id = $1 AND side = 'target')";
    Ok(place.client.query_one(sql, &[&id]).await.map_err(place.at.failed())?.get(0))
}

pub(super) async fn note_left(
    journal: &Journal,
    job: &Job,
    phase: &str,
    left: &str,
) -> Result<(), MoveError> {
    let mut receipt = match &job.receipt {
        Some(Value::Object(receipt)) => receipt.clone(),
        _ => serde_json::Map::new(),
    };
    receipt.insert(LEFT_BEHIND.to_owned(), json!(left));
    journal.receipt(&Value::Object(receipt)).await?;
    journal.event(phase, left).await
}

/// What is the tenant's, wherever that is.
pub(super) fn whereabouts(scope: &Scope) -> String {
    match &scope.model {
        Model::Rows { column, .. } => format!("rows whose {column} is {}", scope.tenant),
        Model::Schema { schema } => format!("the schema {schema}"),
        Model::Database { database } => format!("the database {database}"),
    }
}
