//! Moves that rest: their tenants have moved and may go back. Nobody works on them; the source goes on being told what is
//! written at the target, over sessions that all of them share.
//!
//! A move that rests has no session on any shard while its tenant writes nothing, and none in the catalog at all.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::MoveError;
use crate::flow::Flow;

/// How often it is written how far a flow has come that has nothing to apply: the log before that can go.
const NOTE: Duration = Duration::from_secs(10);

/// For how long a flow keeps its session without a change.
const LINGER: Duration = Duration::from_millis(50);

/// For how long one keeps it that never ends, as others wait.
const TURN: Duration = Duration::from_millis(250);

/// Pauses before changes are tried again that could not be applied for now: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// What came of a rest.
#[derive(Default)]
pub(crate) struct Rested {
    /// What the source follows by.
    pub(crate) flow: Option<Flow>,
    /// Why it does not follow any more.
    pub(crate) error: Option<MoveError>,
}

struct Rest {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Rested>,
}

impl Rest {
    fn begin(flow: Option<Flow>, sessions: Arc<Semaphore>, ended: Arc<Notify>) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let Some(mut flow) = flow else {
                let _ = stopped.await;
                return Rested::default();
            };
            let done = follow(&mut flow, &sessions, &mut stopped).await;
            flow.applier.rest();
            let error = done.err();
            if error.is_some() {
                ended.notify_one();
            }
            Rested { flow: Some(flow), error }
        });
        Self { stop, task }
    }
}

/// The moves that rest. They end with it.
#[derive(Default)]
pub(crate) struct Resting {
    moves: Mutex<HashMap<i64, Rest>>,
    /// Those that cannot be completed for a reason that their operators have been told of once.
    told: Mutex<HashSet<i64>>,
}

impl Drop for Resting {
    fn drop(&mut self) {
        for rest in self.moves().values() {
            rest.task.abort();
        }
    }
}

impl Resting {
    fn moves(&self) -> MutexGuard<'_, HashMap<i64, Rest>> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a move rest. Its source follows by `flow`, a few at a time as `sessions` has it; `ended` is told when it cannot.
    pub(crate) fn begin(&self, id: i64, flow: Option<Flow>, sessions: Arc<Semaphore>, ended: Arc<Notify>) {
        self.moves().insert(id, Rest::begin(flow, sessions, ended));
    }

    /// Whether a move rests and has no need to be looked at.
    pub(crate) fn is_well(&self, id: i64) -> bool {
        self.moves().get(&id).is_some_and(|rest| !rest.task.is_finished())
    }

    /// Ends the rest of a move, when what is being applied has been.
    pub(crate) async fn end(&self, id: i64) -> Rested {
        let Some(Rest { stop, task }) = self.moves().remove(&id) else { return Rested::default() };
        let _ = stop.send(());
        task.await.unwrap_or_default()
    }

    /// Whether it has been told why a move cannot be completed.
    pub(crate) fn is_told(&self, id: i64) -> bool {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// It has been told.
    pub(crate) fn tell(&self, id: i64) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }
}

/// Applies what comes until told to stop. Nothing is dropped half way.
async fn follow(
    flow: &mut Flow,
    sessions: &Semaphore,
    stop: &mut oneshot::Receiver<()>,
) -> Result<(), MoveError> {
    flow.applier.rest();
    let mut pause = RETRY.0;
    loop {
        let permit = tokio::select! {
            biased;
            _ = &mut *stop => return Ok(()),
            permit = async {
                // What has nothing to say for so long has its place in the log written down.
                while !flow.has_arrived(NOTE).await? && !flow.is_ahead() {}
                sessions.acquire().await.map_err(|_| MoveError::Superseded)
            } => permit?,
        };
        let applied = turn(flow).await;
        flow.applier.rest();
        drop(permit);
        match applied {
            Ok(()) => pause = RETRY.0,
            // The stream itself is gone: it is opened anew for all who follow.
            Err(error @ MoveError::Stream { .. }) => return Err(error),
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "a source cannot follow for now");
                tokio::select! {
                    biased;
                    _ = &mut *stop => return Ok(()),
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(RETRY.1);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Applies what is there, for as long as one may that others wait for.
async fn turn(flow: &mut Flow) -> Result<(), MoveError> {
    let began = Instant::now();
    flow.applier.reconnect().await?;
    flow.note_idle().await?;
    while flow.step(LINGER).await? && began.elapsed() < TURN {}
    Ok(())
}
