//! The streams that are open, shared by all moves.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use switchyard_config::ShardName;
use tokio::sync::Mutex;
use tokio_postgres::Client;

use crate::MoveError;
use crate::flow::Flow;
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

    /// A move needs nothing of the log of a database any more.
    pub(crate) async fn forget(&self, at: &ShardAccess, id: i64) {
        if let Some(stream) = self.open.lock().await.get(&key(at)) {
            stream.forget(id);
        }
    }

    /// Has the publication hold the tables.
    pub(crate) async fn publish(
        &self,
        client: &Client,
        at: &ShardAccess,
        tables: &[String],
    ) -> Result<(), MoveError> {
        let mut published = self.published.lock().await;
        let first = !published.contains(&key(at));
        stream::publish(client, at, tables, first).await?;
        published.insert(key(at));
        Ok(())
    }

    /// Shard and database of each stream that is open, bytes of log that its slot retains, and most that it may.
    pub(crate) async fn retained(&self) -> Vec<(ShardName, String, u64, u64)> {
        let open = self.open.lock().await;
        let streams = open.iter().filter(|(_, stream)| !stream.is_over());
        streams
            .map(|((shard, database), stream)| {
                let (retained, budget) = stream.retained();
                (shard.clone(), database.clone(), retained, budget)
            })
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
