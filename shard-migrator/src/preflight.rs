//! What keeps a tenant from being moved, found before anything is touched.

mod own;
mod parts;
mod tenant;

use std::pin::pin;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};

use crate::MoveError;
use crate::inventory::{Inventory, Table, have_rows};
use crate::scope::{Model, Scope, ident, literal};
use crate::sessions::Session;
use crate::shard::ShardAccess;
use crate::structure;

/// Oldest PostgreSQL that is moved from or to: `server_version_num`.
const OLDEST: i32 = 150_000;

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whether it keeps the tenant from being moved; else it is for people to know.
    pub refuses: bool,
    /// The shard, and the table if it is about one.
    pub about: String,
    /// What is wrong.
    pub reason: String,
    /// What would mend it: SQL, or words where SQL cannot.
    pub mend: String,
}

impl Finding {
    pub(crate) fn refuses(about: impl ToString, reason: impl ToString, mend: impl ToString) -> Self {
        Self { refuses: true, about: about.to_string(), reason: reason.to_string(), mend: mend.to_string() }
    }

    pub(crate) fn note(about: impl ToString, reason: impl ToString) -> Self {
        Self { refuses: false, ..Self::refuses(about, reason, "") }
    }

    /// As one sentence.
    pub fn text(&self) -> String {
        let mend = if self.mend.is_empty() { String::new() } else { format!(" ({})", self.mend) };
        format!("{}: {}{mend}", self.about, self.reason)
    }
}

/// A side of a move, as preflight sees it.
pub(crate) struct Place<'a> {
    pub(crate) at: &'a ShardAccess,
    pub(crate) client: &'a Session,
    pub(crate) inventory: &'a Inventory,
    /// Slots that moves under way need here, this one among them. Each is read by a stream.
    pub(crate) slots: i64,
}

/// Finds what is in the way. `ours` is the move's id, whose own traces are none; `made` says that what the target
/// lacks is made there.
pub(crate) async fn preflight(
    scope: &Scope,
    source: &Place<'_>,
    target: &Place<'_>,
    ours: &str,
    made: bool,
) -> Result<Vec<Finding>, MoveError> {
    let mut found = Vec::new();
    server(source, &mut found).await?;
    server(target, &mut found).await?;
    if source.inventory.tables.is_empty() {
        let reason = match scope.column() {
            Some(column) => format!("no table has a column `{column}`"),
            None => "there is no table".to_owned(),
        };
        found.push(Finding::refuses(
            &source.at.name,
            reason,
            "say where the tenant's data is: --tenant-column",
        ));
    }
    let there = format!(" on shard {}", target.at.name);
    for table in source.inventory.tables.values() {
        by_itself(scope, table, "", &mut found);
        let key = (table.schema.clone(), table.name.clone());
        match target.inventory.tables.get(&key) {
            None if made => {}
            None => found.push(Finding::refuses(
                table.plain(),
                format!("shard {} has no such table", target.at.name),
                "apply the schema of the source there first",
            )),
            Some(other) => {
                alike(table, other, target.at, &mut found);
                // It is published too, for the way back.
                by_itself(scope, other, &there, &mut found);
            }
        }
    }
    for (place, suffix) in [(source, ""), (target, there.as_str())] {
        tenant::columns(scope, place, suffix, &mut found).await?;
        tenant::variables(scope, place, suffix, &mut found);
    }
    own::beside_tables(scope, source, &mut found).await?;
    if made && structure::can_dump().await {
        let text = "the tenant's tables are made there as they are on the source";
        found.push(Finding::note(&target.at.name, text));
    } else if made {
        found.push(Finding::refuses(
            &target.at.name,
            "it has nothing of the tenant, and without pg_dump that cannot be made as it is on the source",
            "install PostgreSQL's client programs where the control plane runs, or make it there",
        ));
    }
    references(scope, source, &mut found);
    if !found.iter().any(|f| f.refuses) {
        arrivals(scope, target, ours, &mut found).await?;
    }
    if !found.iter().any(|f| f.refuses) {
        for table in source.inventory.tables.values() {
            global_keys(scope, table, source, target, &mut found).await?;
        }
    }
    Ok(found)
}

async fn server(place: &Place<'_>, found: &mut Vec<Finding>) -> Result<(), MoveError> {
    let sql = "SELECT current_setting('server_version_num')::int, current_setting('wal_level'),
                      r.rolsuper OR (r.rolbypassrls AND r.rolreplication),
                      has_parameter_privilege('session_replication_role', 'SET'),
                      (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()),
                      pg_is_in_recovery(), current_setting('max_slot_wal_keep_size'),
                      (SELECT count(*) FROM pg_replication_slots WHERE slot_name !~ '^switchyard_[0-9]+$'),
                      current_setting('max_replication_slots')::int8,
                      (SELECT count(*) FROM pg_stat_activity
                       WHERE backend_type = 'walsender' AND application_name <> 'switchyard-mover'),
                      current_setting('max_wal_senders')::int8
               FROM pg_roles r WHERE r.rolname = current_user";
    let name = &place.at.name;
    let row = match place.client.query_one(sql, &[]).await {
        Ok(row) => row,
        // Before version 15 there is no has_parameter_privilege.
        Err(error) if error.code().is_some_and(|c| c.code() == "42883") => {
            found.push(Finding::refuses(name, "PostgreSQL is older than version 15", "upgrade it"));
            return Ok(());
        }
        Err(error) => return Err(place.at.failed()(error)),
    };
    let role = ident(&place.at.user);
    if row.get::<_, i32>(0) < OLDEST {
        found.push(Finding::refuses(name, "PostgreSQL is older than version 15", "upgrade it"));
    }
    if row.get::<_, &str>(1) != "logical" {
        let mend = "ALTER SYSTEM SET wal_level = logical, and a restart";
        found.push(Finding::refuses(name, "its write-ahead log cannot be decoded", mend));
    }
    if !row.get::<_, bool>(2) {
        let mend = format!("ALTER ROLE {role} BYPASSRLS REPLICATION");
        found.push(Finding::refuses(
            name,
            "the mover's role is bound by policies or may not replicate",
            mend,
        ));
    }
    if !row.get::<_, bool>(3) {
        let mend = format!("GRANT SET ON PARAMETER session_replication_role TO {role}");
        found.push(Finding::refuses(name, "the mover may not keep triggers from firing", mend));
    }
    for (setting, others, most) in [
        ("max_replication_slots", row.get::<_, i64>(7), row.get::<_, i64>(8)),
        ("max_wal_senders", row.get(9), row.get(10)),
    ] {
        let needed = others + place.slots;
        if needed > most {
            let reason = format!(
                "{setting} is {most}: {others} are taken by others, and moves that are not done need {} with this one",
                place.slots
            );
            let mend = format!(
                "ALTER SYSTEM SET {setting} = {needed} or more, and a restart; or complete moves that can still be rolled back"
            );
            found.push(Finding::refuses(name, reason, mend));
        }
    }
    if row.get::<_, i64>(4) > 0 {
        let mend = "COMMIT PREPARED or ROLLBACK PREPARED what pg_prepared_xacts shows";
        found.push(Finding::refuses(name, "transactions are prepared and not ended", mend));
    }
    if row.get::<_, bool>(5) {
        found.push(Finding::refuses(name, "it is a standby", "give the primary's address"));
    }
    if row.get::<_, &str>(6) == "-1" {
        found.push(Finding::note(
            name,
            "max_slot_wal_keep_size is not set: only the mover's own budget bounds the log that is retained",
        ));
    }
    Ok(())
}

/// What is wrong with a table by itself. `place` says where it is, if that is not the source.
fn by_itself(scope: &Scope, table: &Table, place: &str, found: &mut Vec<Finding>) {
    let (about, quoted) = (format!("{}{place}", table.plain()), table.quoted());
    if table.persistence != "p" {
        let mend = format!("ALTER TABLE {quoted} SET LOGGED");
        found.push(Finding::refuses(&about, "it is not logged, so its changes cannot be followed", mend));
    }
    if table.inherited {
        found.push(Finding::refuses(&about, "it takes part in inheritance", "use declarative partitioning"));
    }
    let columns = scope.column().map_or_else(|| "id".to_owned(), |c| format!("{}, id", ident(c)));
    match table.identity.as_str() {
        "n" => {
            let mend = format!("ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT");
            found.push(Finding::refuses(&about, "it has no replica identity", mend));
        }
        _ if let Some((index, columns)) = &table.unusable => {
            let list = columns.iter().map(|c| ident(c)).collect::<Vec<_>>().join(", ");
            found.push(Finding::refuses(
                &about,
                format!("its key {index} is deferrable or not valid: no row could be updated or deleted while it is followed"),
                format!("ALTER TABLE {quoted} DROP CONSTRAINT {}, ADD PRIMARY KEY ({list})", ident(index)),
            ));
        }
        _ if table.key.is_empty() => {
            let mend = format!("ALTER TABLE {quoted} ADD PRIMARY KEY ({columns})");
            found.push(Finding::refuses(&about, "it has no primary key", mend));
        }
        // Who has had a row that changes its tenant would not be told, and keep it.
        identity
            if identity != "f"
                && table.parts.is_empty()
                && !scope.column().is_none_or(|c| table.has_key(c)) =>
        {
            let reason = "its replica identity does not tell the tenant of a row";
            found.push(Finding::refuses(
                &about,
                reason,
                format!("ALTER TABLE {quoted} REPLICA IDENTITY FULL"),
            ));
        }
        _ => {}
    }
    parts::parts(scope, table, place, found);
    if let Model::Rows { variable, .. } = &scope.model {
        if !table.row_security {
            found.push(Finding::refuses(
                &about,
                "it has no row-level security, so nothing on the shard can stop a router with an old topology",
                format!("ALTER TABLE {quoted} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; and a policy"),
            ));
        } else if variable.is_none() && !table.sealed {
            found.push(Finding::refuses(
                &about,
                "no variable of the context holds the tenant's id as it is",
                "set `\"app.tenant_id\" = \"{tenant}\"` in the context",
            ));
        }
    }
    for column in table.copied().filter(|c| c.identity_always && !table.key.contains(&c.name)) {
        found.push(Finding::note(
            &about,
            format!("updates of the identity column {} are not followed", column.name),
        ));
    }
}

/// Whether the table is on the target as it is on the source.
fn alike(table: &Table, other: &Table, target: &ShardAccess, found: &mut Vec<Finding>) {
    let about = format!("{} on shard {}", table.plain(), target.name);
    let quoted = table.quoted();
    for column in &table.columns {
        match other.columns.iter().find(|c| c.name == column.name) {
            None => found.push(Finding::refuses(
                &about,
                format!("column {} is missing", column.name),
                format!("ALTER TABLE {quoted} ADD COLUMN {} {}", ident(&column.name), column.kind),
            )),
            Some(there) if there.kind != column.kind || there.generated != column.generated => {
                let mend =
                    format!("ALTER TABLE {quoted} ALTER COLUMN {} TYPE {}", ident(&column.name), column.kind);
                let reason = format!("column {} is of another type: {}", column.name, there.kind);
                found.push(Finding::refuses(&about, reason, mend));
            }
            Some(_) => {}
        }
    }
    for column in other.columns.iter().filter(|c| c.not_null && !c.generated) {
        if !table.columns.iter().any(|c| c.name == column.name) {
            let mend = format!("ALTER TABLE {quoted} ALTER COLUMN {} DROP NOT NULL", ident(&column.name));
            let reason = format!("column {} is not on the source and may not be null", column.name);
            found.push(Finding::refuses(&about, reason, mend));
        }
    }
    if table.key != other.key {
        let mend = format!("the same primary key: ({})", table.key.join(", "));
        found.push(Finding::refuses(&about, "its key is another", mend));
    }
}

/// Foreign keys that leave the scope.
fn references(scope: &Scope, source: &Place<'_>, found: &mut Vec<Finding>) {
    let ours = |oid: u32| source.inventory.tables.values().any(|t| t.oid == oid);
    for table in source.inventory.tables.values() {
        for reference in table.references.iter().filter(|r| !ours(r.to)) {
            let text = format!(
                "foreign key {} refers to {}, which does not move: its rows must be on the target",
                reference.name, reference.to_name
            );
            found.push(match scope.model {
                Model::Rows { .. } => Finding::note(table.plain(), text),
                Model::Schema { .. } | Model::Database { .. } => Finding::note(table.plain(), text),
            });
        }
    }
}

/// Rows of the tenant that are on the target already, unless a move left them there.
async fn arrivals(
    scope: &Scope,
    target: &Place<'_>,
    ours: &str,
    found: &mut Vec<Finding>,
) -> Result<(), MoveError> {
    let fence = if has_fence(target.client, target.at).await? {
        let sql = "SELECT state, move_id FROM switchyard.fence WHERE tenant_id = $1";
        let row =
            target.client.query_opt(sql, &[&scope.tenant.as_str()]).await.map_err(target.at.failed())?;
        row.map(|r| (r.get::<_, String>(0), r.get::<_, Option<String>>(1)))
    } else {
        None
    };
    match fence {
        Some((state, _)) if state == "moved" || state == "aborted" => return Ok(()),
        Some((state, id)) if state == "importing" && id.as_deref() == Some(ours) => return Ok(()),
        Some((state, id)) if state == "importing" || state == "frozen" || id.is_some() => {
            let id = id.unwrap_or_default();
            found.push(Finding::refuses(
                &target.at.name,
                format!("the tenant is {state} there by move {id}"),
                format!("switchyard move show {id}"),
            ));
        }
        _ => {}
    }
    let has_rows = have_rows((target.client, target.at), target.inventory.tables.values(), scope).await?;
    for (table, has_rows) in target.inventory.tables.values().zip(has_rows) {
        if has_rows {
            found.push(Finding::refuses(
                format!("{} on shard {}", table.plain(), target.at.name),
                "it has rows of the tenant already",
                format!("DELETE FROM {}{}", table.quoted(), scope.filter()),
            ));
        }
    }
    Ok(())
}

/// Whether the shard has the fence.
pub(crate) async fn has_fence(client: &Session, at: &ShardAccess) -> Result<bool, MoveError> {
    let sql = "SELECT to_regclass('switchyard.fence') IS NOT NULL";
    Ok(client.query_one(sql, &[]).await.map_err(at.failed())?.get(0))
}

/// Unique keys that do not hold the tenant: no other tenant of the target may have one of ours.
async fn global_keys(
    scope: &Scope,
    table: &Table,
    source: &Place<'_>,
    target: &Place<'_>,
    found: &mut Vec<Finding>,
) -> Result<(), MoveError> {
    let Some(tenant_column) = scope.column() else { return Ok(()) };
    for unique in &table.unique {
        let Some(columns) = &unique.columns else {
            found.push(Finding::note(
                table.plain(),
                format!(
                    "index {} is over an expression: whether its values are free is seen only as they arrive",
                    unique.name
                ),
            ));
            continue;
        };
        if columns.iter().any(|c| c == tenant_column) {
            continue;
        }
        let list = columns.iter().map(|c| ident(c)).collect::<Vec<_>>().join(", ");
        let kinds = columns.iter().map(|name| {
            let column = table.columns.iter().find(|c| c.name == *name);
            format!("{} {}", ident(name), column.map_or("text", |c| c.kind.as_str()))
        });
        let to = target.client;
        let failed = target.at.failed();
        to.batch_execute(&format!(
            "BEGIN; CREATE TEMPORARY TABLE switchyard_keys ({}) ON COMMIT DROP",
            kinds.collect::<Vec<_>>().join(", ")
        ))
        .await
        .map_err(failed)?;
        let out = format!("COPY (SELECT {list} FROM {}{}) TO STDOUT", table.quoted(), scope.filter());
        let mut keys = pin!(source.client.copy_out(&out).await.map_err(source.at.failed())?);
        let mut sink =
            pin!(to.copy_in::<_, Bytes>("COPY pg_temp.switchyard_keys FROM STDIN").await.map_err(failed)?);
        while let Some(key) = keys.next().await {
            sink.feed(key.map_err(source.at.failed())?).await.map_err(failed)?;
        }
        sink.finish().await.map_err(failed)?;
        let sql = format!(
            "SELECT count(*) FROM {} t JOIN pg_temp.switchyard_keys k USING ({list}) WHERE t.{} <> {}",
            table.quoted(),
            ident(tenant_column),
            literal(scope.tenant.as_str())
        );
        let taken: i64 = to.client().query_one(&sql, &[]).await.map_err(failed)?.get(0);
        to.batch_execute("ROLLBACK").await.map_err(failed)?;
        if taken > 0 {
            found.push(Finding::refuses(
                format!("{} on shard {}", table.plain(), target.at.name),
                format!("{taken} values of {} ({list}) belong to other tenants there", unique.name),
                format!("a key with {tenant_column} in it, or values that are unique over all shards"),
            ));
        }
    }
    Ok(())
}
