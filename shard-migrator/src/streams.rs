//! The streams that are open, shared by all moves.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use switchyard_config::ShardName;
use tokio::sync::Mutex;

use crate::MoveError;
use crate::flow::Flow;
use crate::sessions::Session;
use crate::shard::ShardAccess;
use crate::stream::{self, Stream};

type Database = (ShardName, String);

/// See the module.
#[derive(Default)]
pub(crate) struct Streams {
    open: Mutex<HashMap<Database, Arc<Stream>>>,
    /// Databases whose publication this process has waited for once.
    published: Mutex<HashSet<Database>>,
    /// Of moves that will be taken up again: as long as one is kept, its stream holds back what it has not applied.
    kept: std::sync::Mutex<HashMap<i64, Flow>>,
    /// Slots that no stream reads, with what they retain and most that they may.
    unread: std::sync::Mutex<HashMap<Database, (u64, u64)>>,
}

fn key(at: &ShardAccess) -> Database {
    (at.name.clone(), at.database.clone())
}

impl Streams {
    /// Keeps the flow of a move that could not go on.
    pub(crate) fn keep(&self, id: i64, flow: Flow) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(id, flow);
    }

    /// What was kept of a move.
    pub(crate) fn kept(&self, id: i64) -> Option<Flow> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }

    /// The stream of a database, opened if it is not. `expected` asks which moves have followed it before.
    pub(crate) async fn get(
        &self,
        at: &ShardAccess,
        wal_budget: u64,
        expected: impl Future<Output = Result<Vec<i64>, MoveError>>,
    ) -> Result<Arc<Stream>, MoveError> {
        let mut open = self.open.lock().await;
        if let Some(stream) = open.get(&key(at)).filter(|s| !s.is_over()) {
            return Ok(stream.clone());
        }
        let stream = Arc::new(Stream::open(at, wal_budget, expected.await?).await?);
        open.insert(key(at), stream.clone());
        Ok(stream)
    }

    /// Whether a stream of the database is read.
    pub(crate) async fn is_open(&self, at: &ShardAccess) -> bool {
        self.open.lock().await.get(&key(at)).is_some_and(|stream| !stream.is_over())
    }

    /// These databases of a shard have slots that no stream reads, and no others; bytes retained, and most that may be.
    pub(crate) fn are_unread(&self, shard: &ShardName, slots: Vec<(String, u64, u64)>) {
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        unread.retain(|(of, _), _| of != shard);
        unread.extend(
            slots
                .into_iter()
                .map(|(database, retained, budget)| ((shard.clone(), database), (retained, budget))),
        );
    }

    /// Drops a slot, unless a stream reads it by now. Whether it was dropped.
    pub(crate) async fn drop_unread(&self, at: &ShardAccess, slot: &str) -> Result<bool, MoveError> {
        // Nobody opens it meanwhile.
        let open = self.open.lock().await;
        if open.get(&key(at)).is_some_and(|stream| !stream.is_over()) {
            return Ok(false);
        }
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active";
        let dropped = at.connect().await?.execute(sql, &[&slot]).await.map_err(at.failed())?;
        Ok(dropped > 0)
    }

    /// A move needs nothing of the log of a database any more.
    pub(crate) async fn forget(&self, at: &ShardAccess, id: i64) {
        if let Some(stream) = self.open.lock().await.get(&key(at)) {
            stream.forget(id);
        }
    }

    /// Has the publication hold the tables.
    pub(crate) async fn publish(
        &self,
        client: &Session,
        at: &ShardAccess,
        tables: &[String],
    ) -> Result<(), MoveError> {
        let mut published = self.published.lock().await;
        let first = !published.contains(&key(at));
        stream::publish(client, at, tables, first).await?;
        published.insert(key(at));
        Ok(())
    }

    /// Shard and database of each slot, bytes of log that it retains, and most that it may.
    pub(crate) async fn retained(&self) -> Vec<(ShardName, String, u64, u64)> {
        let open = self.open.lock().await;
        let streams = open.iter().filter(|(_, stream)| !stream.is_over());
        let mut slots = self.unread.lock().unwrap_or_else(PoisonError::into_inner).clone();
        slots.extend(streams.map(|(database, stream)| (database.clone(), stream.retained())));
        slots
            .into_iter()
            .map(|((shard, database), (retained, budget))| (shard, database, retained, budget))
            .collect()
    }

    /// Closes the stream of a database that no move needs, and drops its slot and publication. `needed` asks the
    /// catalog: a move is there before it uses either.
    pub(crate) async fn sweep(
        &self,
        at: &ShardAccess,
        needed: impl Future<Output = Result<bool, MoveError>>,
    ) -> Result<(), MoveError> {
        let mut published = self.published.lock().await;
        let mut open = self.open.lock().await;
        if needed.await? || open.get(&key(at)).is_some_and(|s| Arc::strong_count(s) > 1) {
            return Ok(());
        }
        open.remove(&key(at));
        published.remove(&key(at));
        stream::drop_slot(at).await
    }
}
