//! Source and target compared, exactly and online, as of one moment of the source.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join3;
use serde::{Deserialize, Serialize};

use crate::MoveError;
use crate::apply::parse_lsn;
use crate::copy::{Sum, add_up};
use crate::flow::Flow;
use crate::inventory::{Inventory, Table, have_rows};
use crate::scope::{Scope, ident};
use crate::sessions::Session;
use crate::shard::ShardAccess;
use crate::stream::{Patience, Snapshot};

/// Snapshots that are tried: one is of no use if a transaction that it does not see yet stands before one that
/// it does, in the log.
const ATTEMPTS: u32 = 100;

/// The pause after the first of them; each is longer by as much than the one before.
const PAUSE: Duration = Duration::from_millis(1);

/// Rows that differ and are named, per table.
const NAMED: usize = 5;

/// What a comparison found of one table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Compared {
    /// The table.
    pub table: String,
    /// What both sides had.
    #[serde(flatten)]
    pub sum: Sum,
}

/// Opens a transaction that sees one moment, and tells which.
async fn begin_snapshot(client: &Session, at: &ShardAccess) -> Result<(Snapshot, String), MoveError> {
    client.begin("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await.map_err(at.failed())?;
    let sql = "SELECT pg_current_snapshot()::text, pg_export_snapshot()";
    let row = client.query_one(sql, &[]).await.map_err(at.failed())?;
    Ok((row.get::<_, &str>(0).parse()?, row.get(1)))
}

/// The same, as of a moment at which all could be seen that the target has by now, or that was handed on before the flow
/// began. Nothing may be applied meanwhile.
async fn snapshot_behind(
    flow: &Flow,
    client: &Session,
    at: &ShardAccess,
) -> Result<(Snapshot, String), MoveError> {
    let patience = Patience::new();
    loop {
        let (snapshot, exported) = begin_snapshot(client, at).await?;
        if flow.subscription.is_seen_by(&snapshot) {
            return Ok((snapshot, exported));
        }
        client.give_up().await.map_err(at.failed())?;
        patience.wait(client, at).await?;
    }
}

/// A position that the stream of `client`'s database will reach at once, and that is behind all that has committed.
pub(crate) async fn mark(client: &Session, at: &ShardAccess) -> Result<u64, MoveError> {
    // A transaction of its own, which the stream tells of although it changes nothing.
    let emit = "SELECT pg_logical_emit_message(true, 'switchyard', '')";
    let emit = client.statement(emit).await.map_err(at.failed())?;
    let position = "SELECT pg_current_wal_insert_lsn()::text";
    let position = client.statement(position).await.map_err(at.failed())?;
    // In one flight, in this order. The next record may stand behind a page's header; what was emitted ends before that.
    let client = client.client();
    let (first, row, last) =
        join3(client.execute(&emit, &[]), client.query_one(&position, &[]), client.execute(&emit, &[])).await;
    first.and(last).map_err(at.failed())?;
    let row = row.map_err(at.failed())?;
    parse_lsn(row.get(0)).ok_or_else(|| MoveError::Invalid("a position in the log is malformed".to_owned()))
}

/// Brings the target to a moment of the source that `reader` sees from then on. The snapshot's name, for others, and up to where in
/// the log that is. `control` is a session on the source that nobody else uses meanwhile.
pub(crate) async fn bring_to_moment(
    flow: &mut Flow,
    reader: &Session,
    (control, at): (&Session, &ShardAccess),
) -> Result<(String, u64), MoveError> {
    for attempt in 1..=ATTEMPTS {
        let (snapshot, exported) = snapshot_behind(flow, reader, at).await?;
        let end = mark(control, at).await?;
        if let Some(upto) = flow.advance_to(&snapshot, end).await? {
            return Ok((exported, upto));
        }
        reader.give_up().await.map_err(at.failed())?;
        tokio::time::sleep(PAUSE * attempt).await;
    }
    Err(MoveError::InTheWay(format!(
        "no moment of shard {} could be found at which to copy or compare",
        at.name
    )))
}

/// Compares all tables while the flow goes on. `control` is a session on the source that nobody else uses meanwhile.
pub(crate) async fn verify(
    flow: &mut Flow,
    (control, source): (&Session, &ShardAccess),
    target: &ShardAccess,
    inventory: &Inventory,
    scope: &Scope,
) -> Result<Vec<Compared>, MoveError> {
    let (from, to) = tokio::try_join!(source.connect(), target.connect())?;
    bring_to_moment(flow, &from, (control, source)).await?;
    begin_snapshot(&to, target).await?;
    let comparing = async {
        let mut compared = Vec::new();
        // Of both sides, so that nobody has to read what nobody has.
        let (here, there) = tokio::try_join!(
            have_rows((&from, source), inventory.tables.values(), scope),
            have_rows((&to, target), inventory.tables.values(), scope)
        )?;
        for (table, has_rows) in inventory.tables.values().zip(here.into_iter().zip(there)) {
            let (here, there) = match has_rows {
                (false, false) => Default::default(),
                _ => {
                    tokio::try_join!(add_up(&from, source, table, scope), add_up(&to, target, table, scope))?
                }
            };
            if here != there {
                let rows = differing(&from, source, &to, target, table, scope).await?;
                return Err(MoveError::Differ(format!(
                    "{} has {} rows on {} and {} on {}; {rows}",
                    table.plain(),
                    here.rows,
                    source.name,
                    there.rows,
                    target.name
                )));
            }
            compared.push(Compared { table: table.plain(), sum: here });
        }
        Ok(compared)
    };
    let mut comparing = std::pin::pin!(comparing);
    loop {
        // A step must not be dropped half way, so the two take turns.
        tokio::select! {
            biased;
            compared = &mut comparing => return compared,
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
        flow.catch_up(Duration::from_millis(50)).await?;
    }
}

/// Names the rows that differ.
async fn differing(
    from: &Session,
    source: &ShardAccess,
    to: &Session,
    target: &ShardAccess,
    table: &Table,
    scope: &Scope,
) -> Result<String, MoveError> {
    let key: Vec<_> = table.key.iter().map(|k| ident(k)).collect();
    let sql = format!(
        "SELECT row({})::text, md5(row({})::text) FROM {}{}",
        key.join(", "),
        table.column_list(),
        table.quoted(),
        scope.filter()
    );
    let read = async |client: &Session, at: &ShardAccess| -> Result<BTreeMap<String, String>, MoveError> {
        let rows = client.client().query(&sql, &[]).await.map_err(at.failed())?;
        Ok(rows.iter().map(|r| (r.get(0), r.get(1))).collect())
    };
    let (here, there) = (read(from, source).await?, read(to, target).await?);
    let mut named = Vec::new();
    for (key, hash) in &here {
        match there.get(key) {
            None => named.push(format!("{key} is missing on {}", target.name)),
            Some(other) if other != hash => named.push(format!("{key} differs")),
            Some(_) => {}
        }
    }
    named.extend(
        there.keys().filter(|k| !here.contains_key(*k)).map(|k| format!("{k} is missing on {}", source.name)),
    );
    let more = named.len().saturating_sub(NAMED);
    named.truncate(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Ok(format!("rows: {}{more}", named.join(", ")))
}
