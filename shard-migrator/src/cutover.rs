//! The cutover: clients are held, the tenant is frozen where it was and active where it arrives.
//!
//! The order of the steps is what makes it safe, and `docs/decisions/` has the model of it: the
//! freezing waits for the tenant's open transactions and is the last thing that the stream has of them;
//! the activation is one row, written together with the last changes; an attempt is given up at the
//! arriving side before the tenant may go on at the other.

mod following;
mod pause;
mod presence;
mod shards;

use std::collections::BTreeSet;
use std::time::Duration;

use switchyard_catalog::signals::{ORDERS, Order};
use switchyard_config::{ShardName, TenantId};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use self::following::Following;
pub use self::pause::Pause;
use self::pause::micros;
pub(crate) use self::presence::Presence;
pub(crate) use self::shards::turned;
use self::shards::{ANSWER, answered};
use crate::MoveError;
use crate::apply::Turn;
use crate::closing::Closing;
use crate::fault;
use crate::flow::Flow;
use crate::replies::Talk;
use crate::sessions::Session;
use crate::shard::ShardAccess;

/// Longest pause of an attempt, if nothing else is asked for.
pub const BUDGET: Duration = Duration::from_millis(250);

/// How long the changes of an attempt that was given up may take to be applied or refused.
const STUCK: Duration = Duration::from_secs(10);

/// SQLSTATE of a statement that was canceled: `query_canceled`.
const CANCELED: &str = "57014";

/// How long answers are waited for that are only for the record.
const RECORD: Duration = Duration::from_millis(60);

/// Hundredths of the budget by which the routers must have drained, the freezing must be committed, and the activation
/// must have begun. What is left is for giving up and for word to reach the routers.
const DRAINED_BY: u32 = 50;
const FROZEN_BY: u32 = 60;
const ACTIVATED_BY: u32 = 72;

/// One side of a cutover: the shard, a connection to it, and its part in the move.
pub(crate) struct Side<'a> {
    pub(crate) at: &'a ShardAccess,
    pub(crate) client: &'a Session,
    pub(crate) part: &'static str,
}

/// What a cutover is about.
pub(crate) struct Cutover<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) turn: &'a Turn,
    /// Where the tenant is.
    pub(crate) from: Side<'a>,
    /// Where it goes.
    pub(crate) to: Side<'a>,
    /// Its epoch here, and there.
    pub(crate) epochs: (u64, u64),
    pub(crate) budget: Duration,
    /// Which attempt at the cutover, as the arriving side counts.
    pub(crate) attempt: i32,
    /// Whether sessions that keep their server connection are ended rather than in the way.
    pub(crate) end_pinned: bool,
    /// The form of the tables when they were compared, see [`crate::shape`].
    pub(crate) shape: &'a str,
    /// How tables that are the tenant's alone are closed: nobody reads them where the tenant is frozen.
    pub(crate) closing: Option<Closing>,
    /// What the steps that nobody can do without took just before.
    pub(crate) floor: Duration,
}

/// How an attempt ended that did not fail.
pub(crate) enum Attempt {
    /// The tenant has moved.
    Moved(Pause),
    /// It has not, and clients go on where they were. Who was in the way, and how they fared.
    GivenUp(String, Pause),
}

/// What came of holding and freezing the tenant.
enum Froze {
    /// The mark that tells this freezing in the stream.
    At(String),
    /// It was not to be; who was in the way.
    Not(String),
    /// It is frozen, and somebody still reads there.
    Read(String),
    /// Nothing has been frozen.
    Failed(MoveError),
    /// Whether it is frozen is not known.
    Unknown(MoveError),
}

/// Where the tenant may write, as far as an attempt knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    There,
    /// A shard has not answered: here, there, or not at all for now.
    Unknown,
}

impl Cutover<'_> {
    fn name(&self) -> String {
        format!("{}.{}.{}", self.turn.id, self.turn.term, self.attempt)
    }

    /// The moment at which so many hundredths of the budget are spent.
    fn by(&self, began: Instant, hundredths: u32) -> Instant {
        began + self.budget * hundredths / 100
    }

    /// Makes one attempt.
    pub(crate) async fn attempt(
        &self,
        flow: &mut Flow,
        talk: &mut Talk,
        presence: &mut Presence,
    ) -> Result<Attempt, MoveError> {
        // What came too late the last time is a sign of life too.
        while let Some(reply) = talk.next_within(Duration::ZERO).await {
            presence.heard(reply.router);
        }
        let there = talk.routers().await?;
        let routers = presence.expected(&there);
        let mut pause = Pause::begin(there.len(), there.len() - routers.len(), self.floor);
        if pause.silent > 0 {
            tracing::warn!(tenant = %self.tenant, silent = pause.silent, "routers keep silent: the fence is for them");
        }
        let (began, writer) = (Instant::now(), flow.applier.pid);
        let (broken, stop, last) = (Notify::new(), Notify::new(), [self.last()]);
        let (tell, mark) = oneshot::channel();
        let (done, applied) = {
            // What is still being written is better applied while routers drain and the source freezes than behind that.
            let following = std::pin::pin!(async {
                let done = flow.follow_to(mark, &last, &stop).await;
                if done.is_err() {
                    broken.notify_one();
                }
                done
            });
            let mut following = Following::new(following);
            let freezing = self.hold_and_freeze(talk, (&routers, presence), began, (&mut pause, &broken));
            let mut place = Place::Here;
            let done = match following.beside(freezing).await {
                Froze::At(mark) => {
                    let _ = tell.send(mark);
                    self.finish(&mut following, (&stop, writer), talk, (began, &mut place)).await
                }
                Froze::Not(who) => {
                    drop(tell);
                    Ok(Err(who))
                }
                Froze::Read(who) => {
                    drop(tell);
                    let thawed = following.beside(self.thaw(&mut place)).await;
                    thawed.map(|()| Err(format!("a transaction was in the way: {who}")))
                }
                Froze::Failed(error) => {
                    drop(tell);
                    Err(error)
                }
                Froze::Unknown(error) => {
                    drop(tell);
                    following.beside(self.recover(error, &mut place)).await
                }
            };
            if place == Place::There && done.is_ok() {
                pause.active_us = micros(began);
                fault::point("activated");
            }
            let releasing = async {
                match place {
                    Place::Here => self.release(talk, false).await,
                    // Routers that do not hear of it ask the fence.
                    Place::There => {
                        let told = async {
                            let told = self.release(talk, true).await;
                            pause.released_us = micros(began);
                            told
                        };
                        tokio::join!(told, self.point_there()).0
                    }
                    // Whoever goes on now would run into the fence. The takeover that follows finds out.
                    Place::Unknown => Ok(()),
                }
            };
            following.beside(releasing).await?;
            pause.total_us = micros(began);
            let applied = match &done {
                Ok(Err(_)) => following.within(STUCK).await,
                _ => None,
            };
            (done, applied)
        };
        pause.decoded_us = flow.passed.map_or(0, |at| pause::whole(at.saturating_duration_since(began)));
        let done = done?;
        if done.is_err() {
            match applied {
                None => return Err(self.to.at.silent("changes are not applied any more")),
                Some(Ok(_)) => {}
                // Refused, because it was given up, or canceled.
                Some(Err(error)) if error.code().is_some_and(|c| c == "TN010" || c == CANCELED) => {}
                Some(Err(error)) => return Err(error),
            }
        }
        self.gather(talk, presence, &mut pause).await;
        Ok(match done {
            Ok(()) => Attempt::Moved(pause),
            Err(who) => Attempt::GivenUp(who, pause),
        })
    }

    /// Tells the routers where to go on.
    pub(crate) async fn release(&self, talk: &Talk, moved: bool) -> Result<(), MoveError> {
        let (shard, epoch): (&ShardName, u64) = match moved {
            true => (&self.to.at.name, self.epochs.1),
            false => (&self.from.at.name, self.epochs.0),
        };
        let order = Order::Release {
            tenant: self.tenant.clone(),
            attempt: self.name(),
            shard: shard.clone(),
            epoch,
            moved,
        };
        Ok(talk.say(ORDERS, &order).await?)
    }

    /// Has clients wait, and freezes the tenant when none has a transaction.
    async fn hold_and_freeze(
        &self,
        talk: &mut Talk,
        routers: (&BTreeSet<i32>, &mut Presence),
        began: Instant,
        (pause, broken): (&mut Pause, &Notify),
    ) -> Froze {
        match self.held(talk, routers, began, (pause, broken)).await {
            Ok(None) => {}
            Ok(Some(who)) => return Froze::Not(who),
            Err(error) => return Froze::Failed(error),
        }
        let left = self.by(began, FROZEN_BY).saturating_duration_since(Instant::now());
        if left.as_millis() == 0 {
            return Froze::Not("the routers took too long to drain".to_owned());
        }
        match self.freeze(left).await {
            Ok(mark) => {
                pause.frozen_us = micros(began);
                fault::point("frozen");
                match self.late_readers(self.by(began, FROZEN_BY)).await {
                    Ok(None) => Froze::At(mark),
                    Ok(Some(who)) => Froze::Read(who),
                    Err(error) => Froze::Unknown(error),
                }
            }
            // The lock has a limit of its own, which is shorter.
            Err(error) if error.code() == Some(CANCELED) => Froze::Not(self.slow_closing(left)),
            Err(error) if error.code().is_some_and(|c| matches!(c, "55P03" | "40P01" | "XX000")) => {
                Froze::Not(format!("a transaction was in the way: {}", self.blocker().await))
            }
            // Whether it was committed is not known: as if it was.
            Err(error) => Froze::Unknown(error),
        }
    }

    /// Waits until the routers have drained. Who was in the way, if they do not within the budget.
    async fn held(
        &self,
        talk: &mut Talk,
        (routers, presence): (&BTreeSet<i32>, &mut Presence),
        began: Instant,
        (pause, broken): (&mut Pause, &Notify),
    ) -> Result<Option<String>, MoveError> {
        let hold = Order::Hold {
            tenant: self.tenant.clone(),
            attempt: self.name(),
            budget_ms: u64::try_from(self.budget.as_millis()).unwrap_or(u64::MAX),
            end_pinned: self.end_pinned,
        };
        talk.say(ORDERS, &hold).await?;
        pause.ordered_us = micros(began);
        let deadline = self.by(began, DRAINED_BY);
        let name = self.name();
        let (mut heard, mut drained) = (BTreeSet::new(), BTreeSet::new());
        let mut example = String::new();
        while !routers.is_subset(&drained) {
            let left = deadline.saturating_duration_since(Instant::now());
            // First: what is heard too late is of no use.
            if left.is_zero() {
                let silent = routers.difference(&heard).count();
                return Ok(Some(match silent {
                    0 => format!("a client was in the way: {example}"),
                    n => format!("{n} of {} routers have not answered", routers.len()),
                }));
            }
            let reply = tokio::select! {
                reply = talk.next_within(left) => reply,
                () = broken.notified() => return Ok(Some("changes cannot be applied".to_owned())),
            };
            let Some(reply) = reply else { continue };
            presence.heard(reply.router);
            if reply.attempt != name || reply.waited.is_some() {
                continue;
            }
            heard.insert(reply.router);
            if pause.heard_us == 0 && routers.is_subset(&heard) {
                pause.heard_us = micros(began);
            }
            if reply.open == 0 && reply.pinned == 0 {
                drained.insert(reply.router);
                pause.drain_us = pause.drain_us.max(reply.drained_us);
            } else if let Some(who) = reply.example {
                example = who;
            }
        }
        pause.drained_us = micros(began);
        fault::point("held");
        Ok(None)
    }

    /// Waits for the last changes to be applied and the tenant to be activated. Who was in the way, if that took too long
    /// and the tenant goes on here.
    async fn finish(
        &self,
        following: &mut Following<'_, impl Future<Output = Result<bool, MoveError>>>,
        (stop, writer): (&Notify, i32),
        talk: &Talk,
        (began, place): (Instant, &mut Place),
    ) -> Result<Result<(), String>, MoveError> {
        *place = Place::Unknown;
        let left = self.by(began, ACTIVATED_BY).saturating_duration_since(Instant::now());
        match following.within(left).await {
            Some(Ok(true)) => {
                *place = Place::There;
                return Ok(Ok(()));
            }
            // It was told where to end.
            Some(Ok(false)) => return Err(self.to.at.silent("the last changes were left out")),
            Some(Err(error)) => return self.recover(error, place).await,
            None => {}
        }
        // Too late, unless it is being committed at this moment; who is first decides.
        stop.notify_one();
        // One that waits for a lock would keep the attempt from being given up.
        let canceled = async {
            let sql = format!("SELECT pg_cancel_backend({writer})");
            answered(self.to.at, ANSWER, self.to.client.batch_execute(&sql)).await
        };
        // Both in one flight, in this order.
        let (canceled, state) = following.beside(async { tokio::join!(canceled, self.give_up()) }).await;
        canceled?;
        if state? == "active" {
            *place = Place::There;
            return Ok(Ok(()));
        }
        // Whatever is in the way of the changes, clients do not wait for it.
        fault::point("given up");
        following.beside(self.unfreeze()).await?;
        fault::point("unfrozen");
        following.beside(self.release(talk, false)).await?;
        *place = Place::Here;
        Ok(Err(format!("the last changes did not arrive within {} ms", self.budget.as_millis())))
    }

    /// Lets the tenant go on where it was frozen: nobody arrives any more.
    async fn thaw(&self, place: &mut Place) -> Result<(), MoveError> {
        *place = Place::Unknown;
        if self.give_up().await? == "active" {
            return Err(MoveError::Arrived);
        }
        self.unfreeze().await?;
        *place = Place::Here;
        Ok(())
    }

    /// After an error whose outcome is not known: the tenant has arrived after all, or goes on where it was.
    async fn recover(&self, error: MoveError, place: &mut Place) -> Result<Result<(), String>, MoveError> {
        *place = Place::Unknown;
        let error = turned(error);
        if matches!(error, MoveError::Superseded) {
            return Err(error);
        }
        if self.give_up().await? == "active" {
            *place = Place::There;
            return Ok(Ok(()));
        }
        self.unfreeze().await?;
        *place = Place::Here;
        Err(error)
    }

    /// What the routers tell of how long clients waited.
    async fn gather(&self, talk: &mut Talk, presence: &mut Presence, pause: &mut Pause) {
        let name = self.name();
        let deadline = Instant::now() + RECORD;
        let mut heard = 0;
        while heard + pause.silent < pause.routers {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(reply) = talk.next_within(left).await else { break };
            presence.heard(reply.router);
            if let (true, Some(clients)) = (reply.attempt == name, reply.waited) {
                heard += 1;
                pause.clients += clients;
                pause.clients_us = pause.clients_us.max(reply.waited_us);
            }
        }
    }
}
