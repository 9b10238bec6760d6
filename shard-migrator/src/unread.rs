//! Slots that no stream reads: of moves that cannot go on for now, and of shards that a move was ended without. What they
//! retain is bounded all the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use switchyard_config::ShardName;
use tokio::task::{AbortHandle, JoinSet};

use crate::MoveError;
use crate::engine::Engine;
use crate::journal::Journal;
use crate::sessions::Session;
use crate::shard::ShardAccess;

/// How often they are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// `application_name` of its sessions.
const SESSION: &str = "switchyard-slots";

/// How long a shard may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Looks at them for as long as the catalog answers.
pub(crate) async fn watch(engine: Arc<Engine>) -> Result<(), MoveError> {
    let journal = Arc::new(Journal::onlooker(&engine.catalog, &engine.sessions).await?);
    let mut clients: HashMap<ShardName, Session> = HashMap::new();
    // One at a time on a shard: it has sessions beside those of moves.
    let (mut tasks, mut clearing) = (JoinSet::new(), HashMap::<ShardName, AbortHandle>::new());
    loop {
        tokio::time::sleep(LOOK).await;
        let mut looking = JoinSet::new();
        for name in journal.shards().await? {
            let client = clients.remove(&name).filter(|c| !c.is_closed());
            let (engine, journal) = (engine.clone(), journal.clone());
            looking.spawn(async move {
                let looked = look(&engine, &journal, &name, client);
                let looked = tokio::time::timeout(ANSWER, looked).await;
                match looked {
                    Ok(Ok(client)) => return client.map(|client| (name, client)),
                    Ok(Err(error)) => tracing::debug!(shard = %name, %error, "its slots cannot be looked at"),
                    Err(_) => tracing::debug!(shard = %name, "its slots cannot be looked at in time"),
                }
                None
            });
        }
        while let Some(looked) = looking.join_next().await {
            clients.extend(looked.ok().flatten());
        }
        while tasks.try_join_next().is_some() {}
        clearing.retain(|_, task| !task.is_finished());
        // Those that answer.
        for name in clients.keys().filter(|name| !clearing.contains_key(*name)).cloned().collect::<Vec<_>>() {
            let Some(id) = journal.left_at(&name).await?.first().copied() else { continue };
            let (engine, shard) = (engine.clone(), name.clone());
            let clear = async move {
                if let Err(error) = engine.clear_left(id).await {
                    tracing::warn!(id, %shard, %error, "what a move has left is not cleared; it is tried again");
                }
            };
            clearing.insert(name, tasks.spawn(clear));
        }
    }
}

async fn look(
    engine: &Engine,
    journal: &Journal,
    name: &ShardName,
    client: Option<Session>,
) -> Result<Option<Session>, MoveError> {
    let Some(home) = journal.shard(name, &engine.secrets).await? else { return Ok(None) };
    // Of no move, so no mover ends it.
    let home = ShardAccess { session: SESSION.to_owned(), ..home };
    let client = match client {
        Some(client) => client,
        None => home.connect().await?,
    };
    settle_ended(journal, &home, &client).await?;
    let sql = "SELECT database::text, slot_name::text, coalesce(wal_status, 'lost'),
                      coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
               FROM pg_replication_slots WHERE slot_name ~ '^switchyard_[0-9]+$' AND NOT active AND slot_type = 'logical'";
    let mut unread = Vec::new();
    for row in client.query(sql, &[]).await.map_err(home.failed())? {
        let at = home.of_database(row.get(0));
        if engine.streams.is_open(&at).await {
            continue;
        }
        let Some(budget) = journal.wal_budget(name).await? else {
            forsaken(engine, journal, &at).await?;
            continue;
        };
        let retained = u64::try_from(row.get::<_, i64>(3)).unwrap_or(0);
        let lost = matches!(row.get::<_, &str>(2), "lost" | "unreserved");
        if retained <= budget && !lost {
            unread.push((at.database, retained, budget));
            continue;
        }
        if engine.streams.drop_unread(&at, row.get(1)).await? {
            let what = format!(
                "the slot of shard {name} was dropped: nobody reads it, and it retained {retained} bytes of log, above \
                 the budget of {budget}"
            );
            tracing::warn!(shard = %name, retained, budget, "a slot that nobody reads was dropped");
            journal.event_of_shard(name, &what).await?;
        }
    }
    engine.streams.are_unread(name, unread);
    Ok(Some(client))
}

/// Has a source that a move was ended without say where the tenant has gone, and forgets the move there.
async fn settle_ended(journal: &Journal, home: &ShardAccess, client: &Session) -> Result<(), MoveError> {
    let failed = home.failed();
    if !crate::preflight::has_fence(client, home).await? {
        return Ok(());
    }
    let sql = "SELECT move_id FROM switchyard.moves WHERE side = 'source' AND move_id ~ '^[0-9]{1,18}$'";
    let ids: Vec<String> = client.query(sql, &[]).await.map_err(failed)?.iter().map(|r| r.get(0)).collect();
    if ids.is_empty() {
        return Ok(());
    }
    for (id, tenant, target, epoch) in journal.ended_without(&home.name, &ids).await? {
        let set = "UPDATE switchyard.fence SET state = 'moved', moved_to = $3, epoch = greatest(epoch, $4::bigint - 1),
                          move_id = NULL, changed_at = now()
                   WHERE tenant_id = $1 AND move_id = $2 AND state IN ('frozen', 'moved')";
        client.execute(set, &[&tenant, &id, &target, &epoch]).await.map_err(failed)?;
        crate::fence::forget(client, home, &id).await?;
        tracing::info!(shard = %home.name, id, tenant, "a source is back that a move was ended without");
    }
    Ok(())
}

/// A slot and a publication that no move needs.
async fn forsaken(engine: &Engine, journal: &Journal, at: &ShardAccess) -> Result<(), MoveError> {
    let needed = async { Ok(journal.wal_budget(&at.name).await?.is_some()) };
    engine.streams.sweep(at, needed).await?;
    tracing::info!(shard = %at.name, database = at.database, "a slot that no move needs was dropped");
    Ok(())
}
