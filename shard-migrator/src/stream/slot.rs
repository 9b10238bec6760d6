//! The slot and the publication that the stream reads from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::MoveError;
use crate::fault;
use crate::sessions::Session;
use crate::shard::ShardAccess;

/// Name of the publication, in every source database.
pub(crate) const PUBLICATION: &str = "switchyard_moves";

/// How long to wait for a transaction that keeps a slot, or a new member of the publication, from being used.
const OLD_TRANSACTIONS: Duration = Duration::from_secs(60);

/// How often it is looked whether they have ended.
const AGAIN: Duration = Duration::from_millis(5);

/// How long the reader before this one may take to end.
const READER_ENDS: Duration = Duration::from_secs(5);

/// How often the log that the slot retains is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Name of the slot in the cluster: slots are the cluster's, so the database's OID is part of it.
pub(crate) async fn slot_name(client: &Session, at: &ShardAccess) -> Result<String, MoveError> {
    let sql = "SELECT 'switchyard_' || oid FROM pg_database WHERE datname = current_database()";
    Ok(client.query_one(sql, &[]).await.map_err(at.failed())?.get(0))
}

/// A slot, and where it stands.
pub(super) struct Slot {
    pub(super) name: String,
    /// What has committed before this in the log is not told.
    pub(super) from: u64,
    /// A transaction of which that is so has an id below this. It may be about to tell others that it has committed:
    /// with a synchronous standby that can take long.
    pub(super) horizon: u64,
}

/// The slot, made if it is not there.
pub(super) async fn ensure(at: &ShardAccess) -> Result<Slot, MoveError> {
    let client = at.connect().await?;
    let name = slot_name(&client, at).await?;
    end_reader(&client, at, &name).await?;
    let sql = "SELECT wal_status = 'lost', confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
    match client.query_opt(sql, &[&name]).await.map_err(at.failed())? {
        Some(row) if row.get::<_, Option<bool>>(0) == Some(true) => {
            // Of no use to anybody: what it should have kept is gone.
            client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await.map_err(at.failed())?;
        }
        Some(row) => {
            let from = row.get::<_, Option<&str>>(1).and_then(crate::apply::parse_lsn).unwrap_or(0);
            return Ok(Slot { name, from, horizon: next_id(&client, at).await? });
        }
        None => {}
    }
    // It waits for every transaction that is writing, in any database of the cluster.
    let limit = OLD_TRANSACTIONS.as_millis();
    client.batch_execute(&format!("SET statement_timeout = {limit}")).await.map_err(at.failed())?;
    let create = "SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput')";
    match client.query_one(create, &[&name]).await {
        Ok(row) => {
            fault::point("slot made");
            let from = crate::apply::parse_lsn(row.get(0)).unwrap_or(0);
            Ok(Slot { name, from, horizon: next_id(&client, at).await? })
        }
        Err(error) if error.code().is_some_and(|c| c.code() == "57014") => Err(MoveError::InTheWay(format!(
            "a transaction on shard {} was open for longer than {} s, and a replication slot must wait for it: {}",
            at.name,
            OLD_TRANSACTIONS.as_secs(),
            oldest(&client, at).await?
        ))),
        Err(error) => Err(at.failed()(error)),
    }
}

/// Ends who reads the slot: a process leads, and has one reader, so this one is of a process that does not lead any
/// more, or of a connection that has broken.
async fn end_reader(client: &Session, at: &ShardAccess, name: &str) -> Result<(), MoveError> {
    let sql = "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots
               WHERE slot_name = $1 AND active_pid IS NOT NULL";
    let deadline = tokio::time::Instant::now() + READER_ENDS;
    while client.query_one(sql, &[&name]).await.map_err(at.failed())?.get::<_, i64>(0) > 0 {
        if tokio::time::Instant::now() > deadline {
            return Err(MoveError::Stream {
                shard: at.name.clone(),
                reason: format!("the reader of slot {name} before this one does not end"),
            });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// A transaction id that is newer than all that have been given out. The end of a snapshot is none: it is newer than all
/// that have ended, and there may be others that are newer and write.
async fn next_id(client: &Session, at: &ShardAccess) -> Result<u64, MoveError> {
    let sql = "SELECT pg_current_xact_id()::text";
    let id: String = client.query_one(sql, &[]).await.map_err(at.failed())?.get(0);
    id.parse().map_err(|_| at.silent("a transaction id is malformed"))
}

/// For how long transactions that are open are waited for, from now on.
pub(crate) struct Patience(tokio::time::Instant);

impl Patience {
    pub(crate) fn new() -> Self {
        Self(tokio::time::Instant::now() + OLD_TRANSACTIONS)
    }

    /// Waits a little, or says which is open if that was long enough.
    pub(crate) async fn wait(&self, client: &Session, at: &ShardAccess) -> Result<(), MoveError> {
        if tokio::time::Instant::now() > self.0 {
            return Err(MoveError::InTheWay(format!(
                "a transaction on shard {} was open for longer than {} s: {}",
                at.name,
                OLD_TRANSACTIONS.as_secs(),
                oldest(client, at).await?
            )));
        }
        tokio::time::sleep(AGAIN).await;
        Ok(())
    }
}

async fn oldest(client: &Session, at: &ShardAccess) -> Result<String, MoveError> {
    client.batch_execute("RESET statement_timeout").await.map_err(at.failed())?;
    let sql = "SELECT format('pid %s of %s in database %s, since %s', pid, usename, datname, xact_start)
               FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start LIMIT 1";
    let row = client.query_opt(sql, &[]).await.map_err(at.failed())?;
    Ok(row.map_or_else(|| "it has ended by now".to_owned(), |r| r.get(0)))
}

/// Drops the slot and the publication of a database that nobody reads from.
pub(crate) async fn drop_slot(at: &ShardAccess) -> Result<(), MoveError> {
    let client = at.connect().await?;
    let name = slot_name(&client, at).await?;
    drop_named(&client, at, &name).await?;
    fault::point("slot dropped");
    client.batch_execute(&format!("DROP PUBLICATION IF EXISTS {PUBLICATION}")).await.map_err(at.failed())
}

/// Drops a slot, and ends whoever reads it.
async fn drop_named(client: &Session, at: &ShardAccess, name: &str) -> Result<(), MoveError> {
    end_reader(client, at, name).await?;
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
    client.execute(sql, &[&name]).await.map_err(at.failed())?;
    Ok(())
}

/// Sees to it that the publication has the tables, and that every transaction that could have written to
/// one of them unseen has ended. Names are `schema.table`, quoted. `wait` asks for that even if nothing was
/// added: whoever added it may have died before it had waited. One call at a time for a database.
pub(crate) async fn publish(
    client: &Session,
    at: &ShardAccess,
    tables: &[String],
    wait: bool,
) -> Result<(), MoveError> {
    let failed = at.failed();
    let published = "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1), ARRAY(
                         SELECT format('%s.%s', '\"' || replace(n.nspname, '\"', '\"\"') || '\"',
                                       '\"' || replace(c.relname, '\"', '\"\"') || '\"')
                         FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                         JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                         WHERE p.pubname = $1)";
    let row = client.query_one(published, &[&PUBLICATION]).await.map_err(failed)?;
    let (there, published): (bool, Vec<String>) = (row.get(0), row.get(1));
    let missing: Vec<_> = tables.iter().filter(|t| !published.contains(t)).collect();
    if there && missing.is_empty() && !wait {
        return Ok(());
    }
    if !there {
        let sql = format!("CREATE PUBLICATION {PUBLICATION} WITH (publish_via_partition_root = true)");
        match client.batch_execute(&sql).await {
            // Another move was faster.
            Err(error) if error.code().is_some_and(|c| c.code() == "42710" || c.code() == "23505") => {}
            done => done.map_err(failed)?,
        }
    }
    for table in &missing {
        let sql = format!("ALTER PUBLICATION {PUBLICATION} ADD TABLE {table}");
        match client.batch_execute(&sql).await {
            Err(error) if error.code().is_some_and(|c| c.code() == "42710") => {}
            done => done.map_err(failed)?,
        }
    }
    // What a transaction wrote before its table was a member is not in the stream.
    let (horizon, patience) = (next_id(client, at).await?.to_string(), Patience::new());
    loop {
        let sql = "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8";
        if client.query_one(sql, &[&horizon]).await.map_err(failed)?.get(0) {
            return Ok(());
        }
        patience.wait(client, at).await?;
    }
}

/// Looks at how much log the slot retains.
pub(super) struct Watch {
    at: ShardAccess,
    slot: String,
    budget: u64,
    /// For others to see.
    retained: Arc<AtomicU64>,
}

impl Watch {
    pub(super) fn new(at: &ShardAccess, slot: String, budget: u64, retained: Arc<AtomicU64>) -> Self {
        // Slots are the cluster's: by way of the shard's own database, one session does for all that are looked at.
        Self { at: at.of_database(&at.home), slot, budget, retained }
    }

    /// Returns when the slot retains more than the budget, or is lost, with the reason.
    pub(super) async fn exceeded(&self) -> String {
        let mut warned = false;
        loop {
            tokio::time::sleep(LOOK).await;
            let Ok(client) = self.at.connect().await else { continue };
            let sql = "SELECT coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint,
                              coalesce(wal_status, 'lost')
                       FROM pg_replication_slots WHERE slot_name = $1";
            let Ok(Some(row)) = client.query_opt(sql, &[&self.slot]).await else { continue };
            let (retained, status) = (row.get::<_, i64>(0), row.get::<_, &str>(1));
            let retained = u64::try_from(retained).unwrap_or(0);
            self.retained.store(retained, Ordering::Relaxed);
            if status == "lost" || status == "unreserved" {
                return format!("the slot of shard {} has lost its log ({status})", self.at.name);
            }
            if retained > self.budget {
                return format!(
                    "the slot of shard {} retains {retained} bytes of log, above the budget of {}",
                    self.at.name, self.budget
                );
            }
            let near = retained > self.budget / 2;
            if near && !warned {
                tracing::warn!(
                    shard = %self.at.name, retained, budget = self.budget,
                    "the slot retains more than half of the log that it may; beyond that, its moves end"
                );
            }
            warned = near;
        }
    }

    /// Drops the slot, whose reader has gone.
    pub(super) async fn drop_slot(&self) -> Result<(), MoveError> {
        let client = self.at.connect().await?;
        drop_named(&client, &self.at, &self.slot).await
    }
}
