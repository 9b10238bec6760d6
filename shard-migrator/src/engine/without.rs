//! What is done for a tenant that has moved and whose source does not answer any more.

use secrecy::SecretString;
use serde_json::{Value, json};
use switchyard_catalog::signals::{ORDERS, Order, REPLIES, Signals};

use super::Engine;
use crate::MoveError;
use crate::fence;
use crate::journal::{Job, Journal, Phase, Wish};
use crate::scope::{Model, Scope};

/// What the receipt notes of what a move has left at a source that it was ended without.
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
        tell_moved(&self.catalog, job, epoch).await?;
        if !ending {
            return Ok(false);
        }
        fence::settle(&target.client, &target.at, &id, tenant, "move_id = NULL").await?;
        fence::forget(&target.client, &target.at, &id).await?;
        let left = left_behind(job, &scope);
        let mut receipt = match &job.receipt {
            Some(Value::Object(receipt)) => receipt.clone(),
            _ => serde_json::Map::new(),
        };
        receipt.insert(LEFT_BEHIND.to_owned(), json!(left));
        journal.receipt(&Value::Object(receipt)).await?;
        journal.event("moved", &left).await?;
        self.streams.forget(&target.at, job.id).await;
        let others = async {
            match scope.is_database() {
                true => Ok(false),
                false => journal.others(&job.target).await,
            }
        };
        self.streams.sweep(&target.at, others).await?;
        journal.done("completed").await?;
        Ok(true)
    }
}

/// Lets clients go on at the target that wait, or that go to the source in vain.
pub(super) async fn tell_moved(catalog: &SecretString, job: &Job, epoch: i64) -> Result<(), MoveError> {
    let order = Order::Release {
        tenant: job.tenant.clone(),
        attempt: String::new(),
        shard: job.target.clone(),
        epoch: u64::try_from(epoch).unwrap_or(0),
        moved: true,
    };
    let signals = Signals::connect(catalog, "switchyard-mover-signals", REPLIES).await?;
    Ok(signals.say(ORDERS, &order).await?)
}

fn left_behind(job: &Job, scope: &Scope) -> String {
    let what = match &scope.model {
        Model::Rows { column, .. } => format!("rows whose {column} is {}", job.tenant),
        Model::Schema { schema } => format!("the schema {schema}"),
        Model::Database { database } => format!("the database {database}"),
    };
    format!(
        "shard {} was not asked: {what}, if there, and the tenant's row in switchyard.fence stay there; its slot is \
         dropped when it is back",
        job.source
    )
}
