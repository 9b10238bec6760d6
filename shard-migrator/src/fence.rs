//! The fence as the mover sets it up before a move and leaves it after.

use std::collections::HashMap;
use std::time::Duration;

use switchyard_shard_schema::SchemaError;
use switchyard_shard_schema::install::{self, InstallOptions, is_current};
use tokio::time::Instant;

use crate::MoveError;
use crate::cutover::turned;
use crate::inventory::{Inventory, Table, read_fences};
use crate::scope::{Model, Scope, literal};
use crate::sessions::Session;
use crate::shard::{SESSION, ShardAccess};

/// How long neighbours may be held up by the making of a policy, at a time.
const LOCK: Duration = Duration::from_millis(50);

/// How long it is tried.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the sessions of a mover before may take to end.
const SESSIONS_END: Duration = Duration::from_secs(5);

/// The term of who takes a move up that nobody has worked on.
const FIRST_TERM: i64 = 1;

/// How long to wait for snapshots that are older than the fence's row.
const OLD_SNAPSHOTS: Duration = Duration::from_secs(60);

/// Has the schema `switchyard` on the shard.
pub(crate) async fn install(client: &Session, at: &ShardAccess) -> Result<(), MoveError> {
    let failed = |error| match error {
        SchemaError::Postgres(error) => at.failed()(error),
        error => MoveError::Invalid(format!("shard {}: {error}", at.name)),
    };
    // One question where it is as it should be; why it is not, and whether that can be mended, is found out by more.
    if let Ok(Some(row)) = client.query_opt(install::SEEN, &[]).await
        && install::is_seen_current(&row)
    {
        return Ok(());
    }
    // To replace its functions would have every session plan anew what asks them.
    if !is_current(client.client()).await.map_err(failed)? {
        let mut client = at.connect_alone().await?;
        install::install(&mut client, &InstallOptions::default()).await.map_err(failed)?;
    }
    Ok(())
}

/// Has every table of the scope ask the fence, whoever writes to it, and each part of one: SQL may name that by itself.
/// A fence that stands by its name, but asks something else, is replaced.
pub(crate) async fn guard(
    client: &Session,
    at: &ShardAccess,
    inventory: &Inventory,
    scope: &Scope,
) -> Result<(), MoveError> {
    let mut relations = Vec::new();
    for table in inventory.tables.values() {
        relations.push((table.oid, table.quoted(), table));
        relations.extend(table.parts.iter().map(|part| (part.oid, part.quoted(), table)));
    }
    let fence = |quoted: &str, table: &Table| match &scope.model {
        Model::Rows { variable, .. } => policy(quoted, table.sealed, variable.as_deref()),
        Model::Schema { .. } | Model::Database { .. } => {
            let tenant = scope.tenant.as_str();
            (tenant.to_owned(), trigger(quoted, tenant))
        }
    };
    let stands = |standing: &HashMap<u32, String>, (oid, quoted, table): &(u32, String, &Table)| {
        standing.get(oid) == Some(&fence(quoted, table).0)
    };
    if relations.iter().all(|relation| stands(&inventory.shared.fences, relation)) {
        return Ok(());
    }
    // Other moves may have made them since.
    let oids: Vec<u32> = relations.iter().map(|r| r.0).collect();
    let standing = read_fences(client, at, scope, &oids).await?;
    for relation in relations.iter().filter(|relation| !stands(&standing, relation)) {
        let (_, quoted, table) = relation;
        make(client, at, quoted, &fence(quoted, table).1).await?;
    }
    Ok(())
}

async fn make(client: &Session, at: &ShardAccess, quoted: &str, sql: &str) -> Result<(), MoveError> {
    let began = Instant::now();
    loop {
        let attempt = format!("BEGIN; SET LOCAL lock_timeout = {}; {sql}; COMMIT", LOCK.as_millis());
        let error = match client.batch_execute(&attempt).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let _ = client.batch_execute("ROLLBACK").await;
        match error.code().map(tokio_postgres::error::SqlState::code) {
            // Another move makes it at the same time.
            Some("42710" | "55P03") if began.elapsed() < PATIENCE => {
                tokio::time::sleep(LOCK * 4).await;
            }
            Some("42710" | "55P03") => {
                return Err(MoveError::InTheWay(format!(
                    "{quoted} on shard {} is in use for longer than {} s by transactions that keep its fence from being made",
                    at.name,
                    PATIENCE.as_secs()
                )));
            }
            _ => return Err(at.failed()(error)),
        }
    }
}

/// What the fence of shared tables says, as the server writes it, and how it is made.
fn policy(quoted: &str, sealed: bool, variable: Option<&str>) -> (String, String) {
    let (says, tenant) = match variable {
        Some(variable) if !sealed => (
            format!("current_setting({}::text, true)", literal(variable)),
            format!("pg_catalog.current_setting({}, true)", literal(variable)),
        ),
        _ => ("switchyard.tenant_id()".to_owned(), "switchyard.tenant_id()".to_owned()),
    };
    (
        format!("( SELECT switchyard.admit({says}) AS admit)"),
        format!(
            "DROP POLICY IF EXISTS switchyard_fence ON {quoted};
             CREATE POLICY switchyard_fence ON {quoted} AS RESTRICTIVE USING ((SELECT switchyard.admit({tenant})))"
        ),
    )
}

fn trigger(quoted: &str, tenant: &str) -> String {
    format!(
        "DROP TRIGGER IF EXISTS switchyard_fence ON {quoted};
         CREATE TRIGGER switchyard_fence BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {quoted}
         FOR EACH STATEMENT EXECUTE FUNCTION switchyard.admit_trigger({})",
        literal(tenant)
    )
}

/// Takes the move over on one of its shards: from here on, whoever had it before changes nothing there. `home` is the
/// shard's own database.
pub(crate) async fn take_over(
    client: &Session,
    (at, home): (&ShardAccess, &ShardAccess),
    (id, side, term): (&str, &str, i64),
    tenant: &str,
) -> Result<(), MoveError> {
    // The first takeover of a move has none before it.
    if term > FIRST_TERM {
        end_sessions_before(client, (at, home), id, term).await?;
    }
    let sql = "SELECT switchyard.take_over($1, $2, $3, $4)";
    client.execute(sql, &[&id, &side, &term, &tenant]).await.map_err(|e| turned(at.failed()(e)))?;
    Ok(())
}

/// Ends the sessions of earlier movers of this move: one that stands still, or that nobody can reach, may hold locks, and
/// would go on where it stopped.
async fn end_sessions_before(
    client: &Session,
    (at, home): (&ShardAccess, &ShardAccess),
    id: &str,
    term: i64,
) -> Result<(), MoveError> {
    let sql = "SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a
               WHERE a.usename = current_user AND a.datname = ANY($1)
                 AND substring(a.application_name FROM $2)::bigint < $3";
    let databases = [at.database.as_str(), &home.database];
    let pattern = format!("^{SESSION} {id}\\.([0-9]{{1,18}})$");
    let deadline = Instant::now() + SESSIONS_END;
    loop {
        let row = client.query_one(sql, &[&&databases[..], &pattern, &term]).await.map_err(at.failed())?;
        let left: i64 = row.get(0);
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(MoveError::InTheWay(format!(
                "{left} sessions of a mover before this one do not end on shard {}",
                at.name
            )));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The row of the source: active, and known to be part of a move.
pub(crate) async fn begin_source(
    client: &Session,
    at: &ShardAccess,
    id: &str,
    tenant: &str,
    epoch: i64,
) -> Result<(), MoveError> {
    let sql =
        "INSERT INTO switchyard.fence AS f (tenant_id, epoch, state, move_id) VALUES ($1, $2, 'active', $3)
               ON CONFLICT (tenant_id) DO UPDATE SET move_id = $3, changed_at = now()
               WHERE f.state = 'active' AND (f.move_id IS NULL OR f.move_id = $3)";
    if client.execute(sql, &[&tenant, &epoch, &id]).await.map_err(at.failed())? == 0 {
        let what = format!("the fence on shard {} does not let the tenant begin to move", at.name);
        return Err(MoveError::Invalid(what));
    }
    // A transaction whose snapshot is older does not see the row, and could not lock it. Who is not
    // bound by policies is not bound by this either.
    let sql = "SELECT count(*) FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
               WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND NOT r.rolsuper
                 AND NOT r.rolbypassrls AND a.xact_start < $1::text::timestamptz AND a.backend_xmin IS NOT NULL";
    let now: String =
        client.query_one("SELECT clock_timestamp()::text", &[]).await.map_err(at.failed())?.get(0);
    let deadline = Instant::now() + OLD_SNAPSHOTS;
    loop {
        let older: i64 = client.query_one(sql, &[&now]).await.map_err(at.failed())?.get(0);
        if older == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(MoveError::InTheWay(format!(
                "{older} transactions on shard {} are older than {} s",
                at.name,
                OLD_SNAPSHOTS.as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The row of the target: the tenant arrives, and nobody may write.
pub(crate) async fn begin_target(
    client: &Session,
    at: &ShardAccess,
    id: &str,
    tenant: &str,
    epoch: i64,
) -> Result<(), MoveError> {
    let sql = "INSERT INTO switchyard.fence AS f (tenant_id, epoch, state, move_id) VALUES ($1, $2, 'importing', $3)
               ON CONFLICT (tenant_id) DO UPDATE
               SET state = 'importing', epoch = greatest(f.epoch, $2), move_id = $3, moved_to = NULL, changed_at = now()
               WHERE f.state IN ('moved', 'aborted', 'importing') AND (f.move_id IS NULL OR f.move_id = $3)
                  OR f.state = 'active' AND f.move_id IS NULL";
    if client.execute(sql, &[&tenant, &epoch, &id]).await.map_err(at.failed())? == 0 {
        let what = format!("the fence on shard {} does not let the tenant arrive", at.name);
        return Err(MoveError::Invalid(what));
    }
    Ok(())
}

/// State and epoch of the tenant's row.
pub(crate) async fn state(
    client: &Session,
    at: &ShardAccess,
    tenant: &str,
) -> Result<Option<(String, i64)>, MoveError> {
    let sql = "SELECT state, epoch FROM switchyard.fence WHERE tenant_id = $1";
    let row = client.query_opt(sql, &[&tenant]).await.map_err(at.failed())?;
    Ok(row.map(|r| (r.get(0), r.get(1))))
}

/// Sets the row of a move to what it stays at.
pub(crate) async fn settle(
    client: &Session,
    at: &ShardAccess,
    id: &str,
    tenant: &str,
    set: &str,
) -> Result<(), MoveError> {
    let sql = format!(
        "UPDATE switchyard.fence SET {set}, changed_at = now() WHERE tenant_id = $1 AND move_id = $2"
    );
    let statement = client.statement(&sql).await.map_err(at.failed())?;
    client.client().execute(&statement, &[&tenant, &id]).await.map_err(at.failed())?;
    Ok(())
}

/// Forgets a move on a shard.
pub(crate) async fn forget(client: &Session, at: &ShardAccess, id: &str) -> Result<(), MoveError> {
    for sql in [
        "DELETE FROM switchyard.copies WHERE move_id = $1",
        "DELETE FROM switchyard.moves WHERE move_id = $1",
    ] {
        client.execute(sql, &[&id]).await.map_err(at.failed())?;
    }
    let gone = "WITH schemas AS (DELETE FROM switchyard.closed_schemas c
                                  WHERE NOT EXISTS (SELECT FROM pg_namespace n WHERE n.oid = c.schema))
                DELETE FROM switchyard.closed c WHERE NOT EXISTS (SELECT FROM pg_class r WHERE r.oid = c.relation)";
    client.execute(gone, &[]).await.map(drop).map_err(at.failed())
}
