//! Long work: what was asked for, how far it is, and who is at it.
//!
//! An operation is a row. Who leads takes the next one that is due ([`Store::take_operation`]),
//! tells how far it is ([`Store::tell_progress`]) and ends it ([`Store::end_operation`]). Each of
//! these names the leader's term, and one of an earlier term is refused, so that a leader that was
//! replaced without noticing changes nothing any more. An operation that was left half way is
//! taken up by the next leader from its journal.

use deadpool_postgres::Transaction;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::Row;
use utoipa::ToSchema;

use super::audit::{Deed, record_of};
use super::{Caller, Store, StoreError, timestamp};
use crate::credentials::new_id;

/// An operation.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Operation {
    /// `op_` and 26 characters; later ones sort behind.
    pub id: String,
    /// What is done: `tenant.delete`, `move`, ...
    pub kind: String,
    /// To what kind of thing.
    pub target_kind: String,
    /// Its id.
    pub target: String,
    /// The tenant that it concerns.
    pub tenant: Option<String>,
    /// `pending`, `running`, `paused`, `succeeded`, `failed` or `canceled`.
    pub state: String,
    /// What it is at.
    pub phase: Option<String>,
    /// How far it is, where that can be counted.
    pub progress: Option<Progress>,
    /// What was asked for.
    #[schema(value_type = Object)]
    pub input: Value,
    /// What came of it.
    #[schema(value_type = Option<Object>)]
    pub result: Option<Value>,
    /// Why it failed: `code` and `message`.
    #[schema(value_type = Option<Object>)]
    pub error: Option<Value>,
    /// What was done so far: `name`, `state` and `at` of each.
    #[schema(value_type = Vec<Object>)]
    pub steps: Value,
    /// Commands that may come next.
    pub next_steps: Vec<String>,
    /// Whether it can be canceled.
    pub cancelable: bool,
    /// What it is asked to do: `cancel`, `pause` or `resume`.
    pub wish: Option<String>,
    /// Who asked for it.
    pub created_by: String,
    /// When, in UTC.
    pub created_at: String,
    /// When it begins at the earliest, in UTC.
    pub not_before: String,
    /// When it began, in UTC.
    pub started_at: Option<String>,
    /// When it last changed, in UTC.
    pub updated_at: String,
    /// When it ended, in UTC.
    pub finished_at: Option<String>,
    /// Where it is, for who goes on with it.
    #[serde(skip)]
    pub journal: Value,
}

impl Operation {
    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.finished_at.is_some()
    }
}

/// How far an operation is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Progress {
    /// Done so far.
    pub done: i64,
    /// In all, if that is known.
    pub total: Option<i64>,
    /// Of what: `rows`, `bytes`, ...
    pub unit: Option<String>,
}

/// An operation to be begun.
#[derive(Debug, Clone)]
pub struct NewOperation<'a> {
    /// What is to be done.
    pub kind: &'static str,
    /// To what kind of thing.
    pub target_kind: &'static str,
    /// Its id.
    pub target: &'a str,
    /// The tenant that it concerns.
    pub tenant: Option<&'a str>,
    /// What was asked for. Never a secret.
    pub input: Value,
    /// Whether it can be canceled.
    pub cancelable: bool,
    /// Seconds until it may begin.
    pub delay_seconds: f64,
    /// Commands that may come next.
    pub next_steps: Vec<String>,
}

/// What is told of an operation on its way. What is none stays as it is.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What it is at.
    pub phase: Option<&'static str>,
    /// Done so far.
    pub done: Option<i64>,
    /// In all.
    pub total: Option<i64>,
    /// Of what.
    pub unit: Option<&'static str>,
    /// Where it is, as a whole.
    pub journal: Option<Value>,
    /// A step that is done now.
    pub step: Option<&'static str>,
}

/// How an operation ended.
#[derive(Debug, Clone)]
pub enum Ending {
    /// Well, with this to show.
    Succeeded(Value),
    /// Not: a word to decide by, and what happened.
    Failed(&'static str, String),
    /// It was asked to stop.
    Canceled,
}

/// Which operations to list.
#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct OperationFilter {
    /// Where to go on, as a list has answered.
    pub cursor: Option<String>,
    /// Those of this kind.
    pub kind: Option<String>,
    /// Those about this id.
    pub target: Option<String>,
    /// Those that concern this tenant.
    pub tenant: Option<String>,
    /// Those that have not ended.
    pub open: Option<bool>,
    /// At most so many; 100 if not given, 1000 at most.
    pub limit: Option<u16>,
}

/// Begins an operation within the transaction that makes it necessary.
///
/// # Errors
/// [`StoreError::Busy`] if one of its kind is under way for the same target; or the catalog fails.
pub(crate) async fn insert_operation(
    t: &Transaction<'_>,
    caller: &Caller,
    new: NewOperation<'_>,
) -> Result<Operation, StoreError> {
    let id = new_id("op_")?;
    let sql = "INSERT INTO operations (id, kind, target_kind, target, tenant, input, cancelable, not_before,
                                       next_steps, created_by)
               VALUES ($1, $2, $3, $4, $5, $6, $7, now() + make_interval(secs => $8), $9, $10)
               ON CONFLICT (kind, target_kind, target) WHERE finished_at IS NULL DO NOTHING";
    let made = t
        .execute(
            sql,
            &[
                &id,
                &new.kind,
                &new.target_kind,
                &new.target,
                &new.tenant,
                &new.input,
                &new.cancelable,
                &new.delay_seconds,
                &new.next_steps,
                &caller.name,
            ],
        )
        .await?;
    if made == 0 {
        let sql = "SELECT id FROM operations
                   WHERE kind = $1 AND target_kind = $2 AND target = $3 AND finished_at IS NULL";
        let row = t.query_opt(sql, &[&new.kind, &new.target_kind, &new.target]).await?;
        let operation = row.map(|r| r.get(0)).unwrap_or_default();
        return Err(StoreError::Busy { operation, target: format!("{} {}", new.target_kind, new.target) });
    }
    let row = t.query_one(&format!("{} WHERE id = $1", select()), &[&id]).await?;
    Ok(operation(&row))
}

/// Ends the open operations of a kind about a target, as canceled.
pub(super) async fn cancel_open(
    t: &Transaction<'_>,
    kind: &str,
    target_kind: &str,
    target: &str,
) -> Result<(), StoreError> {
    let sql = "UPDATE operations SET state = 'canceled', finished_at = now()
               WHERE kind = $1 AND target_kind = $2 AND target = $3 AND finished_at IS NULL";
    t.execute(sql, &[&kind, &target_kind, &target]).await?;
    Ok(())
}

impl Store {
    /// Begins an operation.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if one of its kind is under way for the same target; or the catalog fails.
    pub async fn begin_operation(
        &self,
        caller: &Caller,
        new: NewOperation<'_>,
    ) -> Result<Operation, StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        let operation = insert_operation(&t, caller, new).await?;
        let deed = Deed::new("begin", "operation", &operation.id);
        record_of(&t, caller, deed, operation.tenant.as_deref(), None::<&()>, Some(&operation)).await?;
        t.commit().await?;
        Ok(operation)
    }

    /// Operations, the latest first, behind the id `behind` (all if empty); at most `limit`.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn operations(
        &self,
        filter: &OperationFilter,
        tenant: Option<&str>,
        behind: &str,
        limit: i64,
    ) -> Result<Vec<Operation>, StoreError> {
        let sql = format!(
            "{} WHERE ($1 = '' OR id < $1) AND ($2::text IS NULL OR kind = $2) AND ($3::text IS NULL OR target = $3)
               AND ($4::text IS NULL OR tenant = $4) AND ($5 IS NOT TRUE OR finished_at IS NULL)
             ORDER BY id DESC LIMIT $6",
            select()
        );
        let client = self.client().await?;
        let rows = client
            .query(&sql, &[&behind, &filter.kind, &filter.target, &tenant, &filter.open, &limit])
            .await?;
        Ok(rows.iter().map(operation).collect())
    }

    /// One operation.
    ///
    /// # Errors
    /// If there is none, or the catalog fails.
    pub async fn operation(&self, id: &str) -> Result<Operation, StoreError> {
        let row = self.client().await?.query_opt(&format!("{} WHERE id = $1", select()), &[&id]).await?;
        row.as_ref().map(operation).ok_or_else(|| StoreError::not_found("operation", id))
    }

    /// Asks an operation to `cancel`, `pause` or `resume`; whoever runs it does so when it can.
    /// One that nobody has begun is canceled at once.
    ///
    /// # Errors
    /// If there is none, it has ended or cannot be canceled, or the catalog fails.
    pub async fn wish(&self, caller: &Caller, id: &str, wish: &'static str) -> Result<Operation, StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        let row = t.query_opt(&format!("{} WHERE id = $1 FOR UPDATE", select()), &[&id]).await?;
        let before = row.as_ref().map(operation).ok_or_else(|| StoreError::not_found("operation", id))?;
        if before.is_over() {
            return Err(StoreError::Conflict(format!("operation `{id}` has ended: it has {}", before.state)));
        }
        if wish == "cancel" && !before.cancelable {
            return Err(StoreError::Conflict(format!("operation `{id}` cannot be canceled any more")));
        }
        let sql = if wish == "cancel" && before.state == "pending" && before.kind != "tenant.delete" {
            "UPDATE operations SET state = 'canceled', finished_at = now(), wish = $2 WHERE id = $1"
        } else {
            "UPDATE operations SET wish = $2 WHERE id = $1"
        };
        t.execute(sql, &[&id, &wish]).await?;
        let after = operation(&t.query_one(&format!("{} WHERE id = $1", select()), &[&id]).await?);
        let deed = Deed::new(wish, "operation", id);
        record_of(&t, caller, deed, after.tenant.as_deref(), Some(&before), Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }

    /// Takes the next operation of these kinds that is due and that nobody of this term is at.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn take_operation(&self, term: i64, kinds: &[&str]) -> Result<Option<Operation>, StoreError> {
        let sql = format!(
            "WITH due AS (
                 SELECT id FROM operations
                 WHERE finished_at IS NULL AND not_before <= now() AND owner_term < $1 AND kind = ANY ($2)
                   AND state <> 'paused' AND $1 = (SELECT term FROM leader)
                 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED),
             taken AS (
                 UPDATE operations o SET state = 'running', owner_term = $1, started_at = COALESCE(started_at, now())
                 FROM due WHERE o.id = due.id RETURNING o.*)
             {} ",
            select().replace("FROM operations", "FROM taken")
        );
        Ok(self.client().await?.query_opt(&sql, &[&term, &kinds]).await?.as_ref().map(operation))
    }

    /// Tells how far an operation is. What it is asked to do, if anything.
    ///
    /// # Errors
    /// If somebody else runs it by now, or the catalog fails.
    pub async fn tell_progress(
        &self,
        id: &str,
        term: i64,
        report: Report,
    ) -> Result<Option<String>, StoreError> {
        let step = report.step.map(|name| json!([{ "name": name, "state": "done", "at": now() }]));
        let sql = "UPDATE operations SET phase = COALESCE($3, phase), done = COALESCE($4, done),
                          total = COALESCE($5, total), unit = COALESCE($6, unit),
                          journal = COALESCE($7, journal), steps = steps || COALESCE($8, '[]'::jsonb)
                   WHERE id = $1 AND owner_term = $2 AND finished_at IS NULL RETURNING wish";
        let client = self.client().await?;
        let row = client
            .query_opt(
                sql,
                &[
                    &id,
                    &term,
                    &report.phase,
                    &report.done,
                    &report.total,
                    &report.unit,
                    &report.journal,
                    &step,
                ],
            )
            .await?;
        Ok(row.ok_or_else(|| taken_over(id))?.get(0))
    }

    /// Lets an operation begin again later, by whoever leads then.
    ///
    /// # Errors
    /// If somebody else runs it by now, or the catalog fails.
    pub async fn put_off_operation(&self, id: &str, term: i64, seconds: f64) -> Result<(), StoreError> {
        let sql = "UPDATE operations SET state = 'pending', owner_term = 0, not_before = now() + make_interval(secs => $3)
                   WHERE id = $1 AND owner_term = $2 AND finished_at IS NULL";
        match self.client().await?.execute(sql, &[&id, &term, &seconds]).await? {
            0 => Err(taken_over(id)),
            _ => Ok(()),
        }
    }

    /// Ends an operation.
    ///
    /// # Errors
    /// If somebody else runs it by now, or the catalog fails.
    pub async fn end_operation(&self, id: &str, term: i64, ending: Ending) -> Result<(), StoreError> {
        let (state, result, error) = match ending {
            Ending::Succeeded(result) => ("succeeded", Some(result), None),
            Ending::Failed(code, message) => {
                ("failed", None, Some(json!({ "code": code, "message": message })))
            }
            Ending::Canceled => ("canceled", None, None),
        };
        let sql = "UPDATE operations SET state = $3, result = $4, error = $5, finished_at = now(), cancelable = false
                   WHERE id = $1 AND owner_term = $2 AND finished_at IS NULL";
        match self.client().await?.execute(sql, &[&id, &term, &state, &result, &error]).await? {
            0 => Err(taken_over(id)),
            _ => Ok(()),
        }
    }
}

fn taken_over(id: &str) -> StoreError {
    StoreError::Conflict(format!("operation `{id}` has ended, or another control plane has taken it over"))
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

fn select() -> String {
    let [created, before, started, updated, finished] =
        ["created_at", "not_before", "started_at", "updated_at", "finished_at"].map(timestamp);
    format!(
        "SELECT id, kind, target_kind, target, tenant, state, phase, done, total, unit, input, result, error, steps,
                next_steps, cancelable, wish, created_by, journal, {created} AS created, {before} AS before,
                {started} AS started, {updated} AS updated, {finished} AS finished FROM operations"
    )
}

fn operation(row: &Row) -> Operation {
    let progress = row.get::<_, Option<i64>>("done").map(|done| Progress {
        done,
        total: row.get("total"),
        unit: row.get("unit"),
    });
    Operation {
        id: row.get("id"),
        kind: row.get("kind"),
        target_kind: row.get("target_kind"),
        target: row.get("target"),
        tenant: row.get("tenant"),
        state: row.get("state"),
        phase: row.get("phase"),
        progress,
        input: row.get("input"),
        result: row.get("result"),
        error: row.get("error"),
        steps: row.get("steps"),
        next_steps: row.get("next_steps"),
        cancelable: row.get("cancelable"),
        wish: row.get("wish"),
        created_by: row.get("created_by"),
        created_at: row.get("created"),
        not_before: row.get("before"),
        started_at: row.get("started"),
        updated_at: row.get("updated"),
        finished_at: row.get("finished"),
        journal: row.get("journal"),
    }
}
