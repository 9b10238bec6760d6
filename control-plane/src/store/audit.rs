//! Who did what: written in the transaction that did it, never changed, and chained by hashes.

use deadpool_postgres::Transaction;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{Caller, Role, Store, StoreError, hex};

/// What was done to what.
pub(super) struct Deed<'a> {
    pub(super) action: &'static str,
    pub(super) kind: &'static str,
    pub(super) target: &'a str,
}

impl<'a> Deed<'a> {
    pub(super) fn new(action: &'static str, kind: &'static str, target: &'a str) -> Self {
        Self { action, kind, target }
    }
}

/// Records a deed. `before` and `after` are what the API shows, so they hold no secrets. The
/// last thing that a transaction does: the chain is locked until it commits.
pub(super) async fn record(
    t: &Transaction<'_>,
    caller: &Caller,
    deed: Deed<'_>,
    before: Option<&impl Serialize>,
    after: Option<&impl Serialize>,
) -> Result<(), StoreError> {
    let tenant = (deed.kind == "tenant").then_some(deed.target);
    record_of(t, caller, deed, tenant, before, after).await
}

/// Records a deed that concerns `tenant`, which then sees it in its own audit.
pub(super) async fn record_of(
    t: &Transaction<'_>,
    caller: &Caller,
    deed: Deed<'_>,
    tenant: Option<&str>,
    before: Option<&impl Serialize>,
    after: Option<&impl Serialize>,
) -> Result<(), StoreError> {
    let json =
        |e: serde_json::Error| StoreError::Conflict(format!("the record of it cannot be written: {e}"));
    let before = before.map(serde_json::to_value).transpose().map_err(json)?;
    let after = after.map(serde_json::to_value).transpose().map_err(json)?;
    insert(t, caller, &deed, tenant, "done", before, after).await?;
    tracing::info!(
        actor = caller.name,
        action = deed.action,
        kind = deed.kind,
        target = deed.target,
        "catalog changed"
    );
    Ok(())
}

/// Records that `caller` asked for what it may not do, and says so: nothing else of `t` is kept.
pub(super) async fn refuse(
    t: Transaction<'_>,
    caller: &Caller,
    deed: Deed<'_>,
    tenant: Option<&str>,
    what: &'static str,
) -> StoreError {
    let recorded = insert(&t, caller, &deed, tenant, "refused", None, None).await;
    match recorded {
        Ok(()) => match t.commit().await {
            Ok(()) => StoreError::Forbidden { what, needed: Role::Admin.as_str() },
            Err(error) => error.into(),
        },
        Err(error) => error,
    }
}

async fn insert(
    t: &Transaction<'_>,
    caller: &Caller,
    deed: &Deed<'_>,
    tenant: Option<&str>,
    outcome: &str,
    before: Option<Value>,
    after: Option<Value>,
) -> Result<(), StoreError> {
    // `id`, `at` and the hashes are given by a trigger.
    let sql = "INSERT INTO audit (id, actor, method, source, request_id, action, kind, target, tenant, outcome, before, after)
               VALUES (0, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    t.execute(
        sql,
        &[
            &caller.name,
            &caller.method,
            &caller.source,
            &caller.request_id,
            &deed.action,
            &deed.kind,
            &deed.target,
            &tenant,
            &outcome,
            &before,
            &after,
        ],
    )
    .await?;
    Ok(())
}

/// Nothing, where a deed has no before or no after.
pub(super) const NONE: Option<&()> = None;

/// One deed.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditEvent {
    /// Rises by one from deed to deed.
    pub id: i64,
    /// When, in UTC.
    pub at: String,
    /// The name of the token it was done with, or the subject of an OIDC token.
    pub actor: String,
    /// How the actor proved itself.
    pub method: Option<String>,
    /// The address it was done from.
    pub source: Option<String>,
    /// The request it was done by.
    pub request_id: Option<String>,
    /// What was done: `create`, `update`, `place`, ...
    pub action: String,
    /// To what kind of thing.
    pub kind: String,
    /// Its id.
    pub target: String,
    /// The tenant that it concerns.
    pub tenant: Option<String>,
    /// `done`, or `refused`.
    pub outcome: String,
    /// As it was.
    pub before: Option<Value>,
    /// As it was then.
    pub after: Option<Value>,
    /// What the hash is taken of, behind the hash of the deed before: all of the above.
    pub record: String,
    /// SHA-256 in hexadecimal digits.
    pub hash: String,
}

/// Which deeds to tell.
#[derive(Debug, Default)]
pub struct AuditQuery<'a> {
    /// Those before this id, the last first.
    pub before: Option<i64>,
    /// Those behind this id, the first first.
    pub after: Option<i64>,
    /// Those done to this id.
    pub target: Option<&'a str>,
    /// Those that concern this tenant.
    pub tenant: Option<&'a str>,
    /// At most so many.
    pub limit: i64,
}

/// What a look at the whole chain has found.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditProof {
    /// Deeds looked at.
    pub deeds: i64,
    /// The hash of the last, in hexadecimal digits. Kept elsewhere, it shows later whether
    /// anything before it was changed.
    pub last_hash: String,
    /// The first deed that is not as it was written, is missing or was put in between.
    pub broken_at: Option<i64>,
}

impl Store {
    /// Deeds in the order that `query` asks for.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn audit(&self, query: AuditQuery<'_>) -> Result<Vec<AuditEvent>, StoreError> {
        let order = if query.after.is_some() { "ASC" } else { "DESC" };
        let sql = format!(
            "SELECT id, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), actor, method, source,
                    request_id, action, kind, target, tenant, outcome, before, after, audit_text(audit), hash
             FROM audit
             WHERE id < $1 AND id > $2 AND ($3::text IS NULL OR target = $3) AND ($4::text IS NULL OR tenant = $4)
             ORDER BY id {order} LIMIT $5"
        );
        let (before, after) = (query.before.unwrap_or(i64::MAX), query.after.unwrap_or(0));
        let client = self.client().await?;
        let rows = client.query(&sql, &[&before, &after, &query.target, &query.tenant, &query.limit]).await?;
        let event = |r: &tokio_postgres::Row| AuditEvent {
            id: r.get(0),
            at: r.get(1),
            actor: r.get(2),
            method: r.get(3),
            source: r.get(4),
            request_id: r.get(5),
            action: r.get(6),
            kind: r.get(7),
            target: r.get(8),
            tenant: r.get(9),
            outcome: r.get(10),
            before: r.get(11),
            after: r.get(12),
            record: r.get(13),
            hash: hex(r.get(14)),
        };
        Ok(rows.iter().map(event).collect())
    }

    /// Goes through the whole chain.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn verify_audit(&self) -> Result<AuditProof, StoreError> {
        let sql = "WITH chain AS (
                       SELECT id, hash, prev, sha256(prev || convert_to(audit_text(audit), 'UTF8')) AS right_hash,
                              lag(hash, 1, sha256('')) OVER (ORDER BY id) AS before,
                              row_number() OVER (ORDER BY id) AS n
                       FROM audit)
                   SELECT (SELECT count(*) FROM chain), h.hash, h.id,
                          (SELECT min(n) FROM chain WHERE id <> n OR hash <> right_hash OR prev <> before),
                          (SELECT hash FROM chain ORDER BY id DESC LIMIT 1)
                   FROM audit_head h";
        let mut client = self.client().await?;
        // Long chains take their time.
        let t = client.transaction().await?;
        t.batch_execute("SET LOCAL statement_timeout = '10min'").await?;
        let row = t.query_one(sql, &[]).await?;
        let (deeds, head, id): (i64, &[u8], i64) = (row.get(0), row.get(1), row.get(2));
        let last: Option<&[u8]> = row.get(4);
        let mut broken_at: Option<i64> = row.get(3);
        if broken_at.is_none() && (deeds != id || last.is_some_and(|hash| hash != head)) {
            broken_at = Some(deeds + 1);
        }
        Ok(AuditProof { deeds, last_hash: hex(head), broken_at })
    }

    /// Records that somebody saw what not everybody may see.
    ///
    /// # Errors
    /// If the catalog fails; then it must not be shown.
    pub async fn record_read(
        &self,
        caller: &Caller,
        kind: &'static str,
        target: &str,
        tenant: Option<&str>,
    ) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        insert(&t, caller, &Deed::new("read", kind, target), tenant, "done", None, None).await?;
        Ok(t.commit().await?)
    }

    /// Records that somebody who is known asked for what it may not.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn record_refusal(&self, caller: &Caller, call: &str) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        let tenant = caller.tenant.as_deref();
        insert(&t, caller, &Deed::new("call", "api", call), tenant, "refused", None, None).await?;
        Ok(t.commit().await?)
    }
}
