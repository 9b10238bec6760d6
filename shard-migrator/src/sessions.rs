//! Sessions of the mover, which whichever move needs one next uses again, and how many there may be on a shard.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row, Statement};

/// How long a session stays open that nobody uses.
const IDLE: Duration = Duration::from_secs(2);

/// How long one may take to be as it was in the beginning.
const CLEANING: Duration = Duration::from_secs(1);

/// After how long the shard itself closes a session that nobody uses: a process that stands still closes nothing. A session
/// begins with it, and whoever takes one lifts it. Twice [`IDLE`].
pub(crate) const UNUSED: &str = "4s";

/// Has a session be as it was in the beginning, but for statements that are prepared. In a transaction `BEGIN` is a
/// warning, or an error and then [`END`] is needed; `ROLLBACK` alone would be a warning wherever there is none.
const CLEAN: &str = "BEGIN; ROLLBACK; RESET ALL";

/// The same for one that is known to be in a transaction.
const CLEAN_OPEN: &str = "ROLLBACK; RESET ALL";

/// Statements that a session keeps, at most. The mover has fewer.
const STATEMENTS: usize = 200;

/// Ends a transaction that has failed.
const END: &str = "ROLLBACK";

/// Most sessions that a move under way has on a shard, without those that copy beside: one of its own, the writer of
/// changes or the reader of a snapshot, and one of the comparison or the cutover.
pub(crate) const SEAT: usize = 3;

/// Sessions on a shard for what is no move: one that makes or drops a slot, one that watches a slot that is read, and one
/// that watches those that are not.
const SPARE: usize = 3;

/// How the sessions that the mover may have on a shard are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Moves under way at a time.
    pub(crate) moves: usize,
    /// Sessions that copy pieces beside the first of a move.
    pub(crate) beside: usize,
    /// Sessions that apply what tenants write that have moved and may go back.
    pub(crate) following: usize,
}

impl Shares {
    /// Of `most` sessions on a shard. Whatever that is, one move goes on at a time.
    pub(crate) fn of(most: usize) -> Self {
        let following = (most / 8).max(1);
        let left = most.saturating_sub(SPARE + following);
        let moves = (left * 4 / 5 / SEAT).max(1);
        Self { moves, beside: left.saturating_sub(moves * SEAT), following }
    }
}

/// Who a session is of.
pub(crate) type Key = String;

/// A connection, and what its user after this one finds done.
struct Open {
    client: Client,
    /// What was asked before, by its text.
    statements: Mutex<HashMap<String, Statement>>,
    /// What SQL has prepared, by its name: the text; none while that is not known.
    named: Mutex<HashMap<&'static str, Option<String>>>,
    /// Whether its user has begun a transaction by [`Session::begin`] and not ended it.
    begun: AtomicBool,
}

impl Open {
    fn named(&self) -> MutexGuard<'_, HashMap<&'static str, Option<String>>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Idle {
    open: Arc<Open>,
    /// Tells it from others.
    number: u64,
}

/// The limits of a shard.
struct OfShard {
    beside: Arc<Semaphore>,
    following: Arc<Semaphore>,
}

/// See the module.
pub(crate) struct Sessions {
    shares: Shares,
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
    shards: Mutex<HashMap<String, OfShard>>,
    numbers: AtomicU64,
}

impl Sessions {
    pub(crate) fn new(shares: Shares) -> Self {
        Self { shares, idle: Mutex::default(), shards: Mutex::default(), numbers: AtomicU64::new(0) }
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<Key, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_shard(&self, shard: &str, which: impl FnOnce(&OfShard) -> Arc<Semaphore>) -> Arc<Semaphore> {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        which(shards.entry(shard.to_owned()).or_insert_with(|| OfShard {
            beside: Arc::new(Semaphore::new(self.shares.beside)),
            following: Arc::new(Semaphore::new(self.shares.following)),
        }))
    }

    /// The right to have one more session on a shard to copy by, if there is one left.
    pub(crate) fn beside(&self, shard: &str) -> Option<OwnedSemaphorePermit> {
        self.of_shard(shard, |s| s.beside.clone()).try_acquire_owned().ok()
    }

    /// Who may apply changes on a shard that tenants write which have moved.
    pub(crate) fn following(&self, shard: &str) -> Arc<Semaphore> {
        self.of_shard(shard, |s| s.following.clone())
    }

    /// A session that nobody uses, which may have ended by now.
    pub(crate) fn take(self: &Arc<Self>, key: &str) -> Option<Session> {
        loop {
            let open = self.idle().get_mut(key)?.pop()?.open;
            if !open.client.is_closed() {
                return Some(self.session(open, key.to_owned()));
            }
        }
    }

    /// One that was just opened.
    pub(crate) fn opened(self: &Arc<Self>, client: Client, key: Key) -> Session {
        let (statements, named, begun) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        self.session(Arc::new(Open { client, statements, named, begun }), key)
    }

    fn session(self: &Arc<Self>, open: Arc<Open>, key: Key) -> Session {
        Session { open, key, home: self.clone() }
    }

    /// Has it be used again, or end if nobody does.
    async fn keep(self: Arc<Self>, open: Arc<Open>, key: Key) {
        let cleaned = tokio::time::timeout(CLEANING, async {
            let clean = if open.begun.swap(false, Ordering::Relaxed) { CLEAN_OPEN } else { CLEAN };
            match open.client.batch_execute(clean).await {
                Err(e) if e.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => {
                    open.client.batch_execute(END).await?;
                    open.client.batch_execute(CLEAN).await
                }
                cleaned => cleaned,
            }
        });
        let cleaned = cleaned.await;
        if !matches!(cleaned, Ok(Ok(()))) || open.named().values().any(Option::is_none) {
            return;
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.idle().entry(key.clone()).or_default().push(Idle { open, number });
        tokio::time::sleep(IDLE).await;
        let mut idle = self.idle();
        if let Some(of_key) = idle.get_mut(&key) {
            of_key.retain(|i| i.number != number);
            if of_key.is_empty() {
                idle.remove(&key);
            }
        }
    }
}

/// A session that one user has at a time. It goes back when it is dropped.
///
/// To have PostgreSQL read a statement, plan it, and tell of what it is made takes longer than most answers of the mover's
/// do. So what is asked again and again, with a text that never changes, is prepared once for as long as the session
/// lasts, whoever uses it.
pub(crate) struct Session {
    open: Arc<Open>,
    key: Key,
    home: Arc<Sessions>,
}

type Values<'v> = &'v [&'v (dyn ToSql + Sync)];

impl Session {
    /// For statements whose texts are made up: these are prepared each time.
    pub(crate) fn client(&self) -> &Client {
        &self.open.client
    }

    /// Begins a transaction by this SQL, which whoever has the session may leave open: nobody waits for its end then.
    pub(crate) async fn begin(&self, sql: &str) -> Result<(), Error> {
        self.client().batch_execute(sql).await?;
        self.open.begun.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends what [`Self::begin`] has begun, and does nothing of it.
    pub(crate) async fn give_up(&self) -> Result<(), Error> {
        self.client().batch_execute(END).await?;
        self.open.begun.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// A statement that is kept. Its text must be one of a few.
    pub(crate) async fn statement(&self, sql: &str) -> Result<Statement, Error> {
        let kept = || self.open.statements.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(statement) = kept().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client().prepare(sql).await?;
        let mut kept = kept();
        if kept.len() >= STATEMENTS {
            kept.clear();
        }
        kept.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// As [`Client::query`].
    pub(crate) async fn query(&self, sql: &'static str, values: Values<'_>) -> Result<Vec<Row>, Error> {
        self.client().query(&self.statement(sql).await?, values).await
    }

    /// As [`Client::query_one`].
    pub(crate) async fn query_one(&self, sql: &'static str, values: Values<'_>) -> Result<Row, Error> {
        self.client().query_one(&self.statement(sql).await?, values).await
    }

    /// As [`Client::query_opt`].
    pub(crate) async fn query_opt(
        &self,
        sql: &'static str,
        values: Values<'_>,
    ) -> Result<Option<Row>, Error> {
        self.client().query_opt(&self.statement(sql).await?, values).await
    }

    /// As [`Client::execute`].
    pub(crate) async fn execute(&self, sql: &'static str, values: Values<'_>) -> Result<u64, Error> {
        self.client().execute(&self.statement(sql).await?, values).await
    }

    /// Has SQL know a statement by `name`, for where others stand beside it.
    pub(crate) async fn name(&self, name: &'static str, sql: &str) -> Result<(), Error> {
        let before = self.open.named().get(name).cloned();
        if before.as_ref().is_some_and(|before| before.as_deref() == Some(sql)) {
            return Ok(());
        }
        let again = if before.is_some() { format!("DEALLOCATE {name}; ") } else { String::new() };
        self.open.named().insert(name, None);
        self.client().batch_execute(&format!("{again}PREPARE {name} AS {sql}")).await?;
        self.open.named().insert(name, Some(sql.to_owned()));
        Ok(())
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.client()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_closed() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.home.clone().keep(self.open.clone(), self.key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_out_is_no_more_than_there_is() {
        for most in 7..200 {
            let s = Shares::of(most);
            assert!(s.moves * SEAT + s.beside + s.following + SPARE <= most, "{most}: {s:?}");
            assert!(s.moves > 0 && s.following > 0);
        }
        assert!(
            Shares::of(48).moves >= 8,
            "what is usual lets as many go on as is usual: {:?}",
            Shares::of(48)
        );
        assert_eq!(Shares::of(0).moves, 1);
    }
}
