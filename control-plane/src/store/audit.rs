//! Who did what: written in the transaction that did it, never changed.

use deadpool_postgres::Transaction;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{Caller, Store, StoreError, timestamp};

/// What was done to what.
pub(super) struct Deed<'a> {
    pub(super) action: &'static str,
    pub(super) kind: &'static str,
    pub(super) target: &'a str,
}

/// Records a deed. `before` and `after` are what the API shows, so they hold no secrets.
pub(super) async fn record(
    t: &Transaction<'_>,
    caller: &Caller,
    deed: Deed<'_>,
    before: Option<&impl Serialize>,
    after: Option<&impl Serialize>,
) -> Result<(), StoreError> {
    let json =
        |e: serde_json::Error| StoreError::Conflict(format!("the record of it cannot be written: {e}"));
    let before = before.map(serde_json::to_value).transpose().map_err(json)?;
    let after = after.map(serde_json::to_value).transpose().map_err(json)?;
    let sql =
        "INSERT INTO audit (actor, action, kind, target, before, after) VALUES ($1, $2, $3, $4, $5, $6)";
    t.execute(sql, &[&caller.name, &deed.action, &deed.kind, &deed.target, &before, &after]).await?;
    tracing::info!(
        actor = caller.name,
        action = deed.action,
        kind = deed.kind,
        target = deed.target,
        "catalog changed"
    );
    Ok(())
}

/// Nothing, where a deed has no before or no after.
pub(super) const NONE: Option<&()> = None;

/// One deed.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditEvent {
    /// Rises.
    pub id: i64,
    /// When, in UTC.
    pub at: String,
    /// The name of the token it was done with.
    pub actor: String,
    /// What was done: `create`, `update`, `place`, ...
    pub action: String,
    /// To what kind of thing.
    pub kind: String,
    /// Its id.
    pub target: String,
    /// As it was.
    pub before: Option<Value>,
    /// As it was then.
    pub after: Option<Value>,
}

impl Store {
    /// The latest deeds, the last first, from those before id `before`; about one target if given.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn audit(
        &self,
        before: Option<i64>,
        target: Option<&str>,
        limit: i64,
    ) -> Result<Vec<AuditEvent>, StoreError> {
        let sql = format!(
            "SELECT id, {}, actor, action, kind, target, before, after FROM audit
             WHERE id < $1 AND ($2::text IS NULL OR target = $2) ORDER BY id DESC LIMIT $3",
            timestamp("at")
        );
        let rows = self.client().await?.query(&sql, &[&before.unwrap_or(i64::MAX), &target, &limit]).await?;
        let event = |r: &tokio_postgres::Row| AuditEvent {
            id: r.get(0),
            at: r.get(1),
            actor: r.get(2),
            action: r.get(3),
            kind: r.get(4),
            target: r.get(5),
            before: r.get(6),
            after: r.get(7),
        };
        Ok(rows.iter().map(event).collect())
    }
}
