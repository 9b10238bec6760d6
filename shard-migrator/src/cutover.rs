//! The cutover: clients are held, the tenant is frozen where it was and active where it arrives.
//!
//! The order of the steps is what makes it safe, and `docs/decisions/` has the model of it: the
//! freezing waits for the tenant's open transactions and is the last thing that the stream has of them;
//! the activation is one row, written together with the last changes; an attempt is given up at the
//! arriving side before the tenant may go on at the other.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use switchyard_catalog::signals::{ORDERS, Order, Reply, Signals};
use switchyard_config::{ShardName, TenantId};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::MoveError;
use crate::apply::Turn;
use crate::fault;
use crate::flow::Flow;
use crate::scope::literal;
use crate::shard::ShardAccess;

/// Longest pause of an attempt, if nothing else is asked for.
pub const BUDGET: Duration = Duration::from_millis(250);

/// Attempts, and time since the first of them, in which a router has not said a word, before the cutover goes on without
/// it: the fence stops it, and its clients get errors. One that is only slow is given that time.
const SILENT_ATTEMPTS: u32 = 5;
const SILENT_FOR: Duration = Duration::from_secs(3);

/// How long a shard's answer may take beyond what it was allowed. Without one it is not known what has been done, and the
/// move is taken over anew, in other sessions.
const ANSWER: Duration = Duration::from_millis(500);

/// How long the changes of an attempt that was given up may take to be applied or refused.
const STUCK: Duration = Duration::from_secs(10);

/// SQLSTATE of a statement that was canceled: `query_canceled`.
const CANCELED: &str = "57014";

/// How long word of a router is waited for before changes are looked for again.
const LISTEN: Duration = Duration::from_millis(1);

/// How long answers are waited for that are only for the record.
const RECORD: Duration = Duration::from_millis(60);

/// Hundredths of the budget by which the routers must have drained, the freezing must be committed, and the activation
/// must have begun. What is left is for giving up and for word to reach the routers.
const DRAINED_BY: u32 = 55;
const FROZEN_BY: u32 = 70;
const ACTIVATED_BY: u32 = 85;

/// Routers that have not answered: since when, and how often they were asked since.
#[derive(Default)]
pub(crate) struct Presence(BTreeMap<i32, (Instant, u32)>);

impl Presence {
    fn heard(&mut self, router: i32) {
        self.0.remove(&router);
    }

    /// Those of `there` that are to answer now; the rest has been silent for too long.
    fn expected(&mut self, there: &[i32]) -> BTreeSet<i32> {
        self.0.retain(|router, _| there.contains(router));
        let mut expected = BTreeSet::new();
        for router in there {
            let (since, asked) = self.0.entry(*router).or_insert((Instant::now(), 0));
            if *asked < SILENT_ATTEMPTS || since.elapsed() < SILENT_FOR {
                expected.insert(*router);
            }
            *asked += 1;
        }
        expected
    }
}

/// How one attempt went.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Pause {
    /// From the order to hold to the order to go on, in microseconds.
    pub total_us: u64,
    /// Until the routers had drained.
    pub drained_us: u64,
    /// Until the freezing was committed.
    pub frozen_us: u64,
    /// Until the activation was committed.
    pub active_us: u64,
    /// Longest wait of a client, as the routers saw it.
    pub clients_us: u64,
    /// Clients that waited.
    pub clients: u32,
    /// Routers that took part.
    pub routers: usize,
    /// Routers that should have, and kept silent.
    pub silent: usize,
}

/// One side of a cutover: the shard, a connection to it, and its part in the move.
pub(crate) struct Side<'a> {
    pub(crate) at: &'a ShardAccess,
    pub(crate) client: &'a Client,
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
    /// What tells the form of the tables, see [`crate::shape`], and what it was when they were compared.
    pub(crate) shape: (&'a str, &'a str),
    /// The schemas that are the tenant's alone, see [`crate::scope::Scope::own_schemas`]: nobody reads them where the
    /// tenant is frozen.
    pub(crate) own_schemas: Option<String>,
}

/// How an attempt ended that did not fail.
pub(crate) enum Attempt {
    /// The tenant has moved.
    Moved(Pause),
    /// It has not, and clients go on where they were. Who was in the way, and how they fared.
    GivenUp(String, Pause),
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
        signals: &mut Signals,
        presence: &mut Presence,
    ) -> Result<Attempt, MoveError> {
        // What came too late the last time is a sign of life too.
        while let Some(reply) = signals.next_within::<Reply>(Duration::ZERO).await {
            presence.heard(reply.router);
        }
        let there = signals.routers().await?;
        let routers = presence.expected(&there);
        let mut pause =
            Pause { routers: there.len(), silent: there.len() - routers.len(), ..Pause::default() };
        if pause.silent > 0 {
            tracing::warn!(tenant = %self.tenant, silent = pause.silent, "routers keep silent: the fence is for them");
        }
        let began = Instant::now();
        let hold = Order::Hold {
            tenant: self.tenant.clone(),
            attempt: self.name(),
            budget_ms: u64::try_from(self.budget.as_millis()).unwrap_or(u64::MAX),
            end_pinned: self.end_pinned,
        };
        signals.say(ORDERS, &hold).await?;
        let held = self.held(flow, signals, (&routers, presence), began, &mut pause).await;
        let mut place = Place::Here;
        let done = match held {
            Ok(None) => self.freeze_and_finish(flow, signals, began, (&mut pause, &mut place)).await,
            Ok(Some(who)) => Ok(Err(who)),
            Err(error) => Err(error),
        };
        match place {
            Place::Here => self.release(signals, false).await?,
            // Routers that do not hear of it ask the fence.
            Place::There => tokio::join!(self.release(signals, true), self.point_there()).0?,
            // Whoever goes on now would run into the fence. The takeover that follows finds out.
            Place::Unknown => {}
        }
        pause.total_us = micros(began);
        let done = done?;
        self.gather(signals, presence, &mut pause).await;
        Ok(match done {
            Ok(()) => Attempt::Moved(pause),
            Err(who) => Attempt::GivenUp(who, pause),
        })
    }

    /// Tells the routers where to go on.
    pub(crate) async fn release(&self, signals: &Signals, moved: bool) -> Result<(), MoveError> {
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
        Ok(signals.say(ORDERS, &order).await?)
    }

    /// Waits until the routers have drained. Who was in the way, if they do not within the budget.
    async fn held(
        &self,
        flow: &mut Flow,
        signals: &mut Signals,
        (routers, presence): (&BTreeSet<i32>, &mut Presence),
        began: Instant,
        pause: &mut Pause,
    ) -> Result<Option<String>, MoveError> {
        let deadline = self.by(began, DRAINED_BY);
        let name = self.name();
        let (mut heard, mut drained) = (BTreeSet::new(), BTreeSet::new());
        let mut example = String::new();
        loop {
            // First: what is heard too late is of no use.
            if Instant::now() >= deadline {
                let silent = routers.difference(&heard).count();
                return Ok(Some(match silent {
                    0 if example.is_empty() => "the changes of the tenant took too long to apply".to_owned(),
                    0 => format!("a client was in the way: {example}"),
                    n => format!("{n} of {} routers have not answered", routers.len()),
                }));
            }
            if routers.is_subset(&drained) {
                break;
            }
            // What has been written meanwhile is better applied now than in the pause that follows.
            let idle = !flow.step(Duration::ZERO).await?;
            let patience = if idle { LISTEN } else { Duration::ZERO };
            let Some(reply) = signals.next_within::<Reply>(patience).await else { continue };
            presence.heard(reply.router);
            if reply.attempt != name || reply.waited.is_some() {
                continue;
            }
            heard.insert(reply.router);
            if reply.open == 0 && reply.pinned == 0 {
                drained.insert(reply.router);
            } else if let Some(who) = reply.example {
                example = who;
            }
        }
        pause.drained_us = micros(began);
        fault::point("held");
        Ok(None)
    }

    /// Freezes the tenant here, and activates it there behind its last change. Who was in the way, if that was not to be.
    async fn freeze_and_finish(
        &self,
        flow: &mut Flow,
        signals: &Signals,
        began: Instant,
        (pause, place): (&mut Pause, &mut Place),
    ) -> Result<Result<(), String>, MoveError> {
        let left = self.by(began, FROZEN_BY).saturating_duration_since(Instant::now());
        if left.as_millis() == 0 {
            return Ok(Err("the routers took too long to drain".to_owned()));
        }
        *place = Place::Unknown;
        // What is there already is applied meanwhile.
        let (frozen, caught_up) = tokio::join!(self.freeze(left), flow.catch_up(left));
        let mark = match frozen {
            Ok(mark) => mark,
            Err(error)
                if error.code().is_some_and(|c| matches!(c, "55P03" | "57014" | "40P01" | "XX000")) =>
            {
                *place = Place::Here;
                return Ok(Err(format!("a transaction was in the way: {}", self.blocker().await)));
            }
            // Whether it was committed is not known: as if it was.
            Err(error) => return self.recover(error, pause, began, place).await,
        };
        pause.frozen_us = micros(began);
        fault::point("frozen");
        if let Err(error) = caught_up {
            return self.recover(error, pause, began, place).await;
        }
        match self.late_readers(began).await {
            Ok(None) => {}
            Ok(Some(who)) => {
                if self.give_up().await? == "active" {
                    return Err(MoveError::Arrived);
                }
                self.unfreeze().await?;
                *place = Place::Here;
                return Ok(Err(format!("a transaction was in the way: {who}")));
            }
            Err(error) => return self.recover(error, pause, began, place).await,
        }
        match self.finish(flow, signals, &mark, began).await {
            Ok(true) => {
                *place = Place::There;
                pause.active_us = micros(began);
                fault::point("activated");
                Ok(Ok(()))
            }
            Ok(false) => {
                *place = Place::Here;
                Ok(Err(format!("the last changes did not arrive within {} ms", self.budget.as_millis())))
            }
            Err(error) => self.recover(error, pause, began, place).await,
        }
    }

    /// Waits for the tenant's transactions, and has no other begin. What tells this freezing in the stream.
    async fn freeze(&self, left: Duration) -> Result<String, MoveError> {
        let (from, limit) = (self.from.at, left.as_millis());
        let tenant = literal(self.tenant.as_str());
        let close = self.own_schemas.as_ref();
        let close = close.map(|s| format!("; SELECT switchyard.close_relations({tenant}, {s})"));
        // Settings for itself alone; all of it is one transaction, and one way there and back.
        let sql = format!(
            "SET LOCAL lock_timeout = {limit}; SET LOCAL statement_timeout = {};
             SELECT switchyard.freeze({}, '{}', {}, {tenant}, {})::text; {}{}",
            limit + 10,
            literal(&self.turn.id),
            self.from.part,
            self.turn.term,
            literal(self.to.at.name.as_str()),
            self.shape.0,
            close.as_deref().unwrap_or_default()
        );
        let answer = answered(from, left + ANSWER, self.from.client.simple_query(&sql)).await?;
        let mut values = answer.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let (mark, shape) = (values.next(), values.next());
        let mark = mark.ok_or_else(|| from.silent("the freezing has no answer"))?;
        match shape {
            Some(shape) if shape == self.shape.1 => Ok(mark.to_owned()),
            _ => Err(MoveError::Drift(format!("on shard {}", from.name))),
        }
    }

    /// Who read the tenant's own tables in a transaction that is still open, if it does not end in time. It may not have
    /// noticed that it must not any more; who begins now does.
    async fn late_readers(&self, began: Instant) -> Result<Option<String>, MoveError> {
        if self.own_schemas.is_none() {
            return Ok(None);
        }
        // Who is not bound by rights is not bound by this either.
        let sql = format!(
            "SELECT format('pid %s of %s, %s for %s ms', a.pid, a.usename, a.state,
                           round(extract(epoch FROM clock_timestamp() - a.xact_start) * 1000))
             FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_roles r ON r.oid = a.usesysid
             WHERE l.locktype = 'relation' AND l.granted AND NOT r.rolsuper AND NOT r.rolbypassrls
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND l.relation IN (SELECT relation FROM switchyard.closed WHERE tenant_id = {})
             ORDER BY a.xact_start LIMIT 1",
            literal(self.tenant.as_str())
        );
        loop {
            let row = answered(self.from.at, ANSWER, self.from.client.query_opt(&sql, &[])).await?;
            let Some(row) = row else { return Ok(None) };
            if Instant::now() >= self.by(began, FROZEN_BY) {
                return Ok(Some(row.get(0)));
            }
            tokio::time::sleep(LISTEN).await;
        }
    }

    /// Has the last changes applied and the tenant activated. False if that took too long, and the tenant goes on here.
    async fn finish(
        &self,
        flow: &mut Flow,
        signals: &Signals,
        mark: &str,
        began: Instant,
    ) -> Result<bool, MoveError> {
        let activate = format!(
            "SELECT switchyard.activate({}, '{}', {}, {}, {}, {})",
            literal(&self.turn.id),
            self.to.part,
            self.turn.term,
            self.attempt,
            literal(self.tenant.as_str()),
            self.epochs.1
        );
        let (last, stop) = ([activate], Notify::new());
        let writer = flow.applier.pid;
        let mut finishing = std::pin::pin!(flow.finish(mark, &last, &stop));
        tokio::select! {
            biased;
            done = &mut finishing => return done,
            () = tokio::time::sleep_until(self.by(began, ACTIVATED_BY)) => {}
        }
        // Too late, unless it is being committed at this moment; who is first decides.
        stop.notify_one();
        let mut done = None;
        // One that waits for a lock would keep the attempt from being given up.
        let canceled = async {
            let sql = format!("SELECT pg_cancel_backend({writer})");
            answered(self.to.at, ANSWER, self.to.client.batch_execute(&sql)).await
        };
        beside(canceled, &mut finishing, &mut done).await?;
        if beside(self.give_up(), &mut finishing, &mut done).await? == "active" {
            return Ok(true);
        }
        // Whatever is in the way of the changes, clients do not wait for it.
        fault::point("given up");
        beside(self.unfreeze(), &mut finishing, &mut done).await?;
        fault::point("unfrozen");
        beside(self.release(signals, false), &mut finishing, &mut done).await?;
        let done = match done {
            Some(done) => done,
            None => tokio::time::timeout(STUCK, finishing)
                .await
                .map_err(|_| self.to.at.silent("changes are not applied any more"))?,
        };
        match done {
            Ok(_) => Ok(false),
            // Refused, because it was given up, or canceled.
            Err(error) if error.code().is_some_and(|c| c == "TN010" || c == CANCELED) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// After an error whose outcome is not known: the tenant has arrived after all, or goes on where it was.
    async fn recover(
        &self,
        error: MoveError,
        pause: &mut Pause,
        began: Instant,
        place: &mut Place,
    ) -> Result<Result<(), String>, MoveError> {
        let error = turned(error);
        if matches!(error, MoveError::Superseded) {
            return Err(error);
        }
        if self.give_up().await? == "active" {
            *place = Place::There;
            pause.active_us = micros(began);
            return Ok(Ok(()));
        }
        self.unfreeze().await?;
        *place = Place::Here;
        Err(error)
    }

    /// The state of the fence at the arriving side, where this attempt cannot succeed any more unless it has.
    async fn give_up(&self) -> Result<String, MoveError> {
        let sql = format!(
            "SELECT coalesce(switchyard.give_up({}, '{}', {}, {}), '')",
            literal(&self.turn.id),
            self.to.part,
            self.turn.term,
            literal(self.tenant.as_str())
        );
        let row =
            answered(self.to.at, ANSWER * 2, self.to.client.query_one(&sql, &[])).await.map_err(turned)?;
        Ok(row.get(0))
    }

    /// Has the fence where the tenant was say where it is, for whoever is not told.
    async fn point_there(&self) {
        let (id, tenant) = (literal(&self.turn.id), literal(self.tenant.as_str()));
        // The epoch is the one that has ended there.
        let sql = format!(
            "UPDATE switchyard.fence SET state = 'moved', moved_to = {}, epoch = greatest(epoch, {}),
                    changed_at = clock_timestamp()
             WHERE tenant_id = {tenant} AND move_id = {id} AND state = 'frozen' AND EXISTS (
                 SELECT FROM switchyard.moves WHERE move_id = {id} AND side = '{}' AND term = {})",
            literal(self.to.at.name.as_str()),
            self.epochs.1.saturating_sub(1),
            self.from.part,
            self.turn.term
        );
        let done = answered(self.from.at, ANSWER * 2, self.from.client.batch_execute(&sql)).await;
        if let Err(error) = done {
            tracing::warn!(tenant = %self.tenant, %error, "the fence does not say yet where the tenant has gone");
        }
    }

    async fn unfreeze(&self) -> Result<(), MoveError> {
        let sql = format!(
            "SELECT switchyard.unfreeze({}, '{}', {}, {})",
            literal(&self.turn.id),
            self.from.part,
            self.turn.term,
            literal(self.tenant.as_str())
        );
        answered(self.from.at, ANSWER * 2, self.from.client.batch_execute(&sql)).await.map_err(turned)
    }

    /// Who holds the tenant's lock, for people.
    async fn blocker(&self) -> String {
        let sql = "SELECT format('pid %s of %s, %s for %s ms', a.pid, a.usename, a.state,
                                 round(extract(epoch FROM clock_timestamp() - a.xact_start) * 1000))
                   FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
                   WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                     AND (l.classid::bigint << 32 | l.objid::bigint) = switchyard.move_key($1)
                   ORDER BY a.xact_start LIMIT 1";
        match self.from.client.query_opt(sql, &[&self.tenant.as_str()]).await {
            Ok(Some(row)) => row.get(0),
            _ => "it has ended by now".to_owned(),
        }
    }

    /// What the routers tell of how long clients waited.
    async fn gather(&self, signals: &mut Signals, presence: &mut Presence, pause: &mut Pause) {
        let name = self.name();
        let deadline = Instant::now() + RECORD;
        let mut heard = 0;
        while heard + pause.silent < pause.routers {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(reply) = signals.next_within::<Reply>(left).await else { break };
            presence.heard(reply.router);
            if let (true, Some(clients)) = (reply.attempt == name, reply.waited) {
                heard += 1;
                pause.clients += clients;
                pause.clients_us = pause.clients_us.max(reply.waited_us);
            }
        }
    }
}

/// What a shard answers, if it does in time.
async fn answered<T>(
    at: &ShardAccess,
    limit: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, MoveError> {
    let done = tokio::time::timeout(limit, work).await;
    done.map_err(|_| at.silent(&format!("no answer within {} ms", limit.as_millis())))?.map_err(at.failed())
}

/// Drives `other` along until `work` is done. What `other` came to, if it did, is kept.
async fn beside<A, B>(
    work: impl Future<Output = A>,
    other: &mut Pin<&mut impl Future<Output = B>>,
    came_to: &mut Option<B>,
) -> A {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            answer = &mut work => return answer,
            done = other.as_mut(), if came_to.is_none() => *came_to = Some(done),
        }
    }
}

/// An error of a shard, as what it means.
pub(crate) fn turned(error: MoveError) -> MoveError {
    if error.code() == Some("TN010") { MoveError::Superseded } else { error }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
