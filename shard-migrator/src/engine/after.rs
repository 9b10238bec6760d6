//! After the cutover: the source follows, until the move is completed or goes back.

use std::time::Duration;

use super::{Ended, Work};
use crate::MoveError;
use crate::apply::parse_lsn;
use crate::closing;
use crate::fault;
use crate::fence;
use crate::flow::Flow;
use crate::journal::{Phase, Wish};
use crate::verify::verify;

/// How long changes are applied before they are compared, if they never stop.
const CAUGHT_UP: Duration = Duration::from_secs(5);

impl Work<'_> {
    /// Keeps the source up to date for as long as it is wanted. `again` if it was not just now that the tenant has moved.
    pub(super) async fn after_move(&mut self, again: bool) -> Result<Ended, MoveError> {
        let mut flow = self.back.take();
        let done = self.stay(again, &mut flow).await;
        // If this is taken up again, it goes on with what has been heard by now.
        self.back = flow;
        done
    }

    async fn stay(&mut self, again: bool, flow: &mut Option<Flow>) -> Result<Ended, MoveError> {
        if again {
            self.take_over().await?;
        }
        // A database of the tenant's own is gone from the target when it has gone back.
        let target = match self.target.missing {
            true => None,
            false => fence::state(&self.target.client, &self.target.at, self.tenant()).await?,
        };
        let source = fence::state(&self.source.client, &self.source.at, self.tenant()).await?;
        if again && self.job.phase == Phase::RollingBack {
            if source.as_ref().is_some_and(|s| s.0 == "active") {
                *flow = None;
                self.rolled_back().await?;
                return Ok(Ended::Done);
            }
            self.thaw_target().await?;
        }
        let epoch = target.map_or(self.epoch + 1, |t| t.1);
        let (id, tenant) = (self.turn.id.clone(), self.job.tenant.clone());
        self.journal.place(&tenant, &self.target.at.name, epoch).await?;
        fence::settle(&self.source.client, &self.source.at, &id, tenant.as_str(), "state = 'moved'").await?;
        closing::behind(&self.source.client, &self.source.at, &self.scope).await?;
        fault::point("placed");
        if again {
            // Clients that a mover before us may have left waiting.
            self.engine.tell_moved(&self.job, epoch).await?;
        }
        if self.job.phase != Phase::RollingBack {
            self.enter(Phase::Moved, "the tenant lives at the target").await?;
            self.engine.look.notify_one();
        }
        self.journal.moved_now().await?;
        let followed = match self.fallen.take() {
            Some(error) if !error.is_transient() && !matches!(error, MoveError::Superseded) => Err(error),
            _ => self.follow(again, flow).await,
        };
        match followed {
            Ok(()) => {}
            Err(error) if error.is_transient() || matches!(error, MoveError::Superseded) => {
                return Err(error);
            }
            Err(error) => {
                *flow = None;
                self.cannot_go_back(&error).await?;
            }
        }
        fault::point("following");
        let told = self.engine.resting.is_told(self.job.id);
        let (wish, moved_for) = self.journal.wish().await?;
        let retention = self.job.options.retention_s;
        let over = retention > 0 && moved_for.is_some_and(|s| s >= retention as f64);
        match wish {
            Wish::Complete | Wish::Run | Wish::Pause if wish == Wish::Complete || (over && !told) => {
                match self.not_moved().await? {
                    None => {
                        self.complete_without(flow).await?;
                        return Ok(Ended::Done);
                    }
                    Some(what) => {
                        self.engine.resting.tell(self.job.id);
                        self.journal.event("moved", &what).await?;
                        self.journal.unwish(&what).await?;
                    }
                }
            }
            Wish::CompleteWithoutSource => {
                *flow = None;
                if self.engine.without_source(&self.journal, &self.job).await? {
                    return Ok(Ended::Done);
                }
            }
            Wish::Rollback if flow.is_some() => {
                self.roll_back(flow).await?;
                return Ok(Ended::Done);
            }
            Wish::Rollback => {
                self.journal.unwish("the source has not followed: the move can only be completed").await?
            }
            Wish::Abort | Wish::AbortWithoutTarget | Wish::AbortAcceptingLoss => {
                self.journal.unwish("the tenant has moved: roll back or complete").await?
            }
            Wish::Run | Wish::Pause | Wish::Complete => {}
        }
        Ok(Ended::Rests)
    }

    async fn cannot_go_back(&mut self, error: &MoveError) -> Result<(), MoveError> {
        // The log is of no use any more.
        self.engine.streams.forget(&self.target.at, self.job.id).await;
        let text = format!("the source does not follow any more, so the move cannot be rolled back: {error}");
        self.enter(Phase::Moved, &text).await?;
        self.journal.error(Some(&text)).await
    }

    async fn complete_without(&mut self, flow: &mut Option<Flow>) -> Result<(), MoveError> {
        *flow = None;
        self.complete().await
    }

    /// Has `kept` be the flow from target to source, from where it stood. One that was kept has missed nothing.
    async fn follow(&mut self, again: bool, kept: &mut Option<Flow>) -> Result<(), MoveError> {
        if kept.as_ref().is_some_and(|flow| flow.torn || flow.subscription.is_over()) {
            *kept = None;
        }
        let (applied, _) = self.positions_of(&self.source, "source").await?;
        let (_, activated) = self.positions_of(&self.target, "target").await?;
        let needed = if applied > 0 { applied } else { activated };
        let anew = kept.is_none();
        if anew {
            let inventory = self.inventory(&self.target).await?;
            *kept = Some(self.reverse_subscription(&inventory, Some(needed)).await?);
        }
        let Some(flow) = kept else { return Ok(()) };
        if again && !anew {
            flow.applier.turn = self.turn.clone();
        }
        if again || flow.applier.is_resting() {
            flow.applier.reconnect().await?;
        }
        if flow.subscription.from > needed {
            let what = "the log since the cutover is not there any more".to_owned();
            return Err(MoveError::Limit(what));
        }
        if applied > 0 {
            flow.applier.applied = flow.applier.applied.max(applied);
        } else {
            flow.skip_to_activation(&self.turn.id).await?;
        }
        Ok(())
    }

    /// Up to where a side has applied changes, and where the tenant was activated there; 0 for neither.
    async fn positions_of(&self, place: &super::Place, side: &str) -> Result<(u64, u64), MoveError> {
        let sql =
            "SELECT applied::text, activated::text FROM switchyard.moves WHERE move_id = $1 AND side = $2";
        let row = place.client.query_opt(sql, &[&self.turn.id, &side]).await.map_err(place.at.failed())?;
        let at = |column| row.as_ref()?.get::<_, Option<&str>>(column).and_then(parse_lsn);
        Ok((at(0).unwrap_or(0), at(1).unwrap_or(0)))
    }

    /// After a mover that ended in the middle of going back.
    async fn thaw_target(&self) -> Result<(), MoveError> {
        let (id, term) = (&self.turn.id, self.turn.term);
        self.source
            .client
            .execute("SELECT switchyard.give_up($1, 'source', $2, $3)", &[id, &term, &self.tenant()])
            .await
            .map_err(self.source.at.failed())?;
        self.target
            .client
            .execute("SELECT switchyard.unfreeze($1, 'target', $2, $3)", &[id, &term, &self.tenant()])
            .await
            .map_err(self.target.at.failed())?;
        Ok(())
    }

    /// The same act in the other direction.
    async fn roll_back(&mut self, following: &mut Option<Flow>) -> Result<(), MoveError> {
        let Some(flow) = following else { return Ok(()) };
        self.enter(Phase::RollingBack, "going back").await?;
        fault::point("going back");
        flow.catch_up(CAUGHT_UP).await?;
        let inventory = self.inventory(&self.target).await?;
        let target = (&self.target.client, &self.target.at);
        let compared = verify(flow, target, &self.source.at, &inventory, &self.scope).await?;
        self.note(super::COMPARED_BACK, compared);
        self.write_receipt().await?;
        let here = fence::state(&self.target.client, &self.target.at, self.tenant()).await?;
        let epoch = here.map_or(self.epoch + 1, |s| s.1);
        let from = ("target", self.target.at.clone());
        let to = ("source", self.source.at.clone());
        let forward = self.receipt.remove("pause");
        self.repeat(flow, &inventory, (from, to), (epoch, epoch + 1)).await?;
        fault::point("gone back");
        let back = self.receipt.remove("pause");
        self.note("pause", forward);
        self.note("rollback_pause", back);
        self.write_receipt().await?;
        *following = None;
        self.rolled_back().await
    }
}
