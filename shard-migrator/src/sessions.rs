//! Sessions of the mover, which whichever move needs one next uses again, and how many there may be on a shard.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// How long a session stays open that nobody uses.
const IDLE: Duration = Duration::from_secs(2);

/// How long one may take to be as it was in the beginning.
const CLEANING: Duration = Duration::from_secs(1);

/// After how long the shard itself closes a session that nobody uses: a process that stands still closes nothing. A session
/// begins with it, and whoever takes one lifts it. Twice [`IDLE`].
pub(crate) const UNUSED: &str = "4s";

/// Has a session be as it was in the beginning. Statements that the driver has prepared end with who holds them. In a
/// transaction `BEGIN` is a warning, or an error and then [`END`] is needed; `ROLLBACK` alone would be a warning wherever
/// there is none, which is nearly always.
const CLEAN: &str = "BEGIN; ROLLBACK; RESET ALL;
    DO $$ DECLARE s text; BEGIN
        FOR s IN SELECT name FROM pg_prepared_statements WHERE from_sql LOOP EXECUTE format('DEALLOCATE %I', s); END LOOP;
    END $$";

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

struct Idle {
    client: Arc<Client>,
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
            let client = self.idle().get_mut(key)?.pop()?.client;
            if !client.is_closed() {
                return Some(self.session(client, key.to_owned()));
            }
        }
    }

    /// One that was just opened.
    pub(crate) fn opened(self: &Arc<Self>, client: Client, key: Key) -> Session {
        self.session(Arc::new(client), key)
    }

    fn session(self: &Arc<Self>, client: Arc<Client>, key: Key) -> Session {
        Session { client, key, home: self.clone() }
    }

    /// Has it be used again, or end if nobody does.
    async fn keep(self: Arc<Self>, client: Arc<Client>, key: Key) {
        let cleaned = tokio::time::timeout(CLEANING, async {
            match client.batch_execute(CLEAN).await {
                Err(e) if e.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => {
                    client.batch_execute(END).await?;
                    client.batch_execute(CLEAN).await
                }
                cleaned => cleaned,
            }
        });
        let cleaned = cleaned.await;
        if !matches!(cleaned, Ok(Ok(()))) {
            return;
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.idle().entry(key.clone()).or_default().push(Idle { client, number });
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
pub(crate) struct Session {
    client: Arc<Client>,
    key: Key,
    home: Arc<Sessions>,
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.client.is_closed() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.home.clone().keep(self.client.clone(), self.key.clone()));
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
