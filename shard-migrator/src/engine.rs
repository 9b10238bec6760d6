//! One move from beginning to end.

mod after;
mod clear;
mod copying;
mod forward;
mod leave;
mod loss;
mod predict;
mod ready;
mod sequences;
mod without;

use std::collections::HashMap;
use std::sync::Arc;

use secrecy::SecretString;
use serde_json::{Map, Value, json};
use switchyard_catalog::signals::{ORDERS, Order};
use switchyard_config::ShardName;
use tokio::sync::Notify;

use self::loss::Loss;
use crate::MoveError;
use crate::apply::Turn;
use crate::fence;
use crate::flow::Flow;
use crate::inventory::Inventory;
use crate::journal::{Job, Journal, Phase, Wish};
use crate::known::Known;
use crate::preflight::Finding;
use crate::replies::{Replies, Talk};
use crate::rest::Resting;
use crate::scope::{Model, Scope};
use crate::secrets::Secrets;
use crate::sessions::{Session, Sessions};
use crate::shard::ShardAccess;
use crate::stream::Wanted;
use crate::streams::Streams;

/// SQLSTATE of a database that does not exist: `invalid_catalog_name`.
const NO_DATABASE: &str = "3D000";

/// What the receipt notes when the target had nothing of the tenant's schema or database.
const MADE: &str = "structure_made";

/// What it notes when the target's fence said, before the move, that the tenant had lived there.
const LIVED_THERE: &str = "lived_there";

/// What it notes of the tables that were compared, on the way there and on the way back.
const COMPARED: &str = "tables";
const COMPARED_BACK: &str = "tables_back";

/// What it notes when a rehearsal has come to its end.
const REHEARSED: &str = "rehearsed_ms";

/// What all moves of a process share.
pub(crate) struct Engine {
    pub(crate) catalog: SecretString,
    pub(crate) owner: String,
    pub(crate) secrets: Secrets,
    pub(crate) streams: Streams,
    /// Held by each attempt at a cutover: one that was begun is brought to its end, whatever becomes of the catalog.
    pub(crate) attempts: Arc<tokio::sync::RwLock<()>>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) resting: Resting,
    /// Told when a tenant has gone over, whose move weighs next to nothing from then on, and when one cannot rest.
    pub(crate) look: Arc<Notify>,
    pub(crate) replies: Replies,
    pub(crate) known: Known,
}

/// A shard of a move, with a connection to it.
pub(crate) struct Place {
    /// The database that the tenant's rows are in.
    pub(crate) at: ShardAccess,
    /// The shard's own database, if that is another.
    pub(crate) home: ShardAccess,
    pub(crate) client: Session,
    /// There is no database of the tenant's own, and the connection is to the shard's.
    pub(crate) missing: bool,
}

/// How the work on a move has ended for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// There is nothing left to do.
    Done,
    /// The tenant has moved; the source is told what it writes until something else is wanted.
    Rests,
}

/// A move that is being worked on.
pub(crate) struct Work<'e> {
    engine: &'e Engine,
    journal: Journal,
    job: Job,
    /// The move's id as shards have it.
    turn: Turn,
    scope: Scope,
    source: Place,
    target: Place,
    /// The tenant's epoch before the move, by the catalog.
    epoch: i64,
    receipt: Map<String, Value>,
    /// What the source follows by, or is to.
    back: Option<Flow>,
    /// Why the source follows no more, if it has stopped while the move rested.
    fallen: Option<MoveError>,
    /// What the planner of the source takes each table for: rows, and bytes of one.
    estimates: HashMap<String, (u64, u64)>,
}

impl Engine {
    /// Works on a move until it is done, or cannot go on for now.
    pub(crate) async fn run(self: &Arc<Self>, id: i64) -> Result<(), MoveError> {
        let rested = self.resting.end(id).await;
        if let Some(flow) = rested.flow {
            self.streams.keep(id, flow);
        }
        let (journal, job) = Journal::claim(&self.catalog, &self.sessions, id, &self.owner).await?;
        let phase = job.phase;
        let ended = match journal.wish().await?.0 {
            Wish::CompleteWithoutSource => self.without_source(&journal, &job).await?,
            Wish::AbortWithoutTarget => self.without_target(&journal, &job, Loss::Refused).await?,
            Wish::AbortAcceptingLoss => self.without_target(&journal, &job, Loss::Accepted).await?,
            _ => false,
        };
        if ended {
            return Ok(());
        }
        match self.work(journal, job.clone()).await {
            Ok(mut work) => {
                work.fallen = rested.error;
                let gone = work.go().await;
                if gone.is_err()
                    && let Some(flow) = work.back.take()
                {
                    self.streams.keep(id, flow);
                }
                match gone? {
                    // Of two that end together, neither closes what the other may need; the later one does it now.
                    Ended::Done => work.sweep().await,
                    Ended::Rests => {
                        let following = self.sessions.following(work.source.at.name.as_str());
                        self.resting.begin(id, work.back.take(), following, self.look.clone());
                        Ok(())
                    }
                }
            }
            // Before anything was begun.
            Err((journal, error)) if phase == Phase::Queued && !error.is_transient() => {
                let text = error.to_string();
                journal.error(Some(&text)).await?;
                if let MoveError::Refused(found) = &error {
                    journal.plan(&json!({ "findings": found })).await?;
                }
                journal.done("refused").await
            }
            Err((journal, error)) => {
                let hint = hint(&error, &job, journal.wish().await?.0);
                journal.error(Some(&format!("{error}{hint}"))).await?;
                Err(error)
            }
        }
    }

    async fn work(self: &Arc<Self>, journal: Journal, job: Job) -> Result<Work<'_>, (Journal, MoveError)> {
        let places = self.places(&journal, &job).await;
        if places.is_err()
            && let Err(error) = self.without_source(&journal, &job).await
        {
            tracing::debug!(id = job.id, %error, "nothing can be done without the source");
        }
        match places {
            Ok((scope, source, target, epoch)) => {
                let turn = Turn { id: job.id.to_string(), term: job.term };
                let receipt = match &job.receipt {
                    Some(Value::Object(receipt)) => receipt.clone(),
                    _ => Map::new(),
                };
                let back = self.streams.kept(job.id);
                let estimates = HashMap::new();
                Ok(Work {
                    engine: self,
                    journal,
                    job,
                    turn,
                    scope,
                    source,
                    target,
                    epoch,
                    receipt,
                    back,
                    fallen: None,
                    estimates,
                })
            }
            Err(error) => Err((journal, error)),
        }
    }

    async fn places(&self, journal: &Journal, job: &Job) -> Result<(Scope, Place, Place, i64), MoveError> {
        let (context, epoch) = journal.tenant(&job.tenant).await?;
        let scope = Scope::of(&job.tenant, &context, &job.options.tenant_column);
        let source = self.place(journal, &job.source, &scope).await?;
        let target = self.place(journal, &job.target, &scope).await?;
        Ok((scope, source, target, epoch))
    }

    async fn place(&self, journal: &Journal, name: &ShardName, scope: &Scope) -> Result<Place, MoveError> {
        let at = journal.shard(name, &self.secrets).await?.ok_or_else(|| {
            MoveError::Refused(vec![Finding::refuses(
                name,
                "the mover has no login there",
                format!("switchyard shard admin {name} --user postgres"),
            )])
        })?;
        Place::open(at, scope).await
    }
}

/// What an operator may do who waits for a shard that does not answer.
fn hint(error: &MoveError, job: &Job, wish: Wish) -> &'static str {
    let shard = match error {
        MoveError::Shard { shard, .. } | MoveError::Stream { shard, .. } => shard,
        _ => return "",
    };
    match wish {
        Wish::Abort if *shard == job.target => "; `move abort --without-target` does not wait for it",
        Wish::Complete if *shard == job.source => "; `move complete --without-source` does not wait for it",
        _ => "",
    }
}

impl Engine {
    /// What there is of a tenant on a shard.
    async fn inventory(&self, place: &Place, scope: &Scope) -> Result<Arc<Inventory>, MoveError> {
        if place.missing {
            return Ok(Arc::default());
        }
        self.known.inventory(&place.client, &place.at, scope).await
    }
}

impl Place {
    async fn open(home: ShardAccess, scope: &Scope) -> Result<Self, MoveError> {
        let at = match &scope.model {
            Model::Database { database } => home.of_database(database),
            Model::Rows { .. } | Model::Schema { .. } => home.clone(),
        };
        match at.connect().await {
            Ok(client) => Ok(Self { at, home, client, missing: false }),
            Err(error) if scope.is_database() && error.code() == Some(NO_DATABASE) => {
                Ok(Self { client: home.connect().await?, at, home, missing: true })
            }
            Err(error) => Err(error),
        }
    }
}

impl Work<'_> {
    async fn go(&mut self) -> Result<Ended, MoveError> {
        let done = match self.job.phase {
            Phase::Cutover => match self.resolve().await {
                Ok(true) => self.after_move(true).await,
                Ok(false) => self.forward().await,
                Err(error) => Err(error),
            },
            Phase::Moved | Phase::RollingBack => self.after_move(true).await,
            Phase::Completing => self.complete().await.map(|()| Ended::Done),
            Phase::Aborting => match self.ending().await {
                Ok(outcome) => self.abort(outcome).await.map(|()| Ended::Done),
                Err(error) => Err(error),
            },
            _ => self.forward().await,
        };
        match done {
            Ok(ended) => Ok(ended),
            Err(error) => self.failed(error).await.map(|()| Ended::Done),
        }
    }

    /// What a move comes to that a mover before us has begun to give up.
    async fn ending(&self) -> Result<&'static str, MoveError> {
        if self.receipt.contains_key(REHEARSED) {
            return Ok("rehearsed");
        }
        Ok(match self.journal.wish().await?.0 {
            Wish::Abort | Wish::AbortWithoutTarget | Wish::AbortAcceptingLoss => "aborted",
            _ => "failed",
        })
    }

    async fn failed(&mut self, error: MoveError) -> Result<(), MoveError> {
        if matches!(error, MoveError::Superseded) {
            return Err(error);
        }
        let text = error.to_string();
        tracing::warn!(id = self.job.id, tenant = %self.job.tenant, error = text, "a move has stopped");
        self.journal.error(Some(&text)).await?;
        match error {
            MoveError::Refused(found) => {
                self.journal.plan(&json!({ "findings": found })).await?;
                // Found late, by a mover that went on with what another had begun, or in what was made.
                if self.is_begun().await? {
                    return self.abort("refused").await;
                }
                self.leave_shards().await?;
                self.journal.done("refused").await
            }
            MoveError::Asked => self.abort("aborted").await,
            error if error.is_transient() => Err(error),
            // Behind the commit of the move there is no way back but by an operator.
            error if self.job.phase >= Phase::Moved => Err(error),
            _ => self.abort("failed").await,
        }
    }

    async fn enter(&mut self, phase: Phase, what: &str) -> Result<(), MoveError> {
        self.journal.enter(phase, what).await?;
        self.job.phase = phase;
        Ok(())
    }

    /// What there is of the tenant on a shard.
    async fn inventory(&self, place: &Place) -> Result<Arc<Inventory>, MoveError> {
        self.engine.inventory(place, &self.scope).await
    }

    fn tenant(&self) -> &str {
        self.job.tenant.as_str()
    }

    async fn talk(&self) -> Result<Talk, MoveError> {
        self.engine.replies.to(&self.turn).await
    }

    /// What the streams of either side are to tell.
    fn wanted(&self, inventory: &Inventory) -> Vec<Wanted> {
        let column = self.scope.column().map(str::to_owned);
        let mut wanted: Vec<_> = inventory
            .tables
            .values()
            .map(|t| Wanted { schema: t.schema.clone(), table: t.name.clone(), column: column.clone() })
            .collect();
        wanted.push(Wanted {
            schema: "switchyard".to_owned(),
            table: "fence".to_owned(),
            column: Some("tenant_id".to_owned()),
        });
        wanted
    }

    fn published(inventory: &Inventory) -> Vec<String> {
        let tables = inventory.tables.values().map(crate::inventory::Table::quoted);
        tables.chain(["\"switchyard\".\"fence\"".to_owned()]).collect()
    }

    /// Takes the move over on both shards.
    async fn take_over(&mut self) -> Result<(), MoveError> {
        let (id, term) = (self.turn.id.clone(), self.turn.term);
        let tenant = self.job.tenant.clone();
        for (place, side) in [(&mut self.source, "source"), (&mut self.target, "target")] {
            if !place.missing {
                fence::install(&place.client, &place.at).await?;
                let at = (&place.at, &place.home);
                fence::take_over(&place.client, at, (&id, side, term), tenant.as_str()).await?;
            }
        }
        Ok(())
    }

    /// After a mover that ended in the middle of a cutover: whether the tenant has arrived. If not, it goes on where
    /// it was.
    async fn resolve(&mut self) -> Result<bool, MoveError> {
        loss::must_know(&self.source, &self.target, &self.job).await?;
        self.take_over().await?;
        let moved = self.resolve_attempt().await?;
        if !moved {
            let tenant = self.job.tenant.clone();
            let order = Order::Release {
                tenant,
                attempt: String::new(),
                shard: self.source.at.name.clone(),
                epoch: u64::try_from(self.epoch).unwrap_or(0),
                moved: false,
            };
            self.talk().await?.say(ORDERS, &order).await?;
        }
        Ok(moved)
    }

    /// Fails if the operator wants the move given up; waits while it is to stand still.
    async fn obey(&self) -> Result<(), MoveError> {
        loop {
            match self.journal.wish().await?.0 {
                Wish::Abort | Wish::AbortWithoutTarget | Wish::AbortAcceptingLoss => {
                    return Err(MoveError::Asked);
                }
                Wish::Pause => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
                Wish::Run => return Ok(()),
                Wish::Rollback | Wish::Complete | Wish::CompleteWithoutSource => {
                    self.journal.unwish("the tenant has not moved yet").await?;
                }
            }
        }
    }

    fn note(&mut self, name: &str, value: impl serde::Serialize) {
        self.receipt.insert(name.to_owned(), json!(value));
    }

    async fn write_receipt(&self) -> Result<(), MoveError> {
        self.journal.receipt(&Value::Object(self.receipt.clone())).await
    }
}
