//! Moves of tenants, as operators ask for them. The mover does the rest.

use deadpool_postgres::Transaction;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use switchyard_config::topology::TenantState;
use tokio_postgres::Row;
use utoipa::{IntoParams, ToSchema};

use super::audit::{Deed, NONE, record};
use super::passwords::Administrator;
use super::{Caller, Store, StoreError, is_still, lock_version, shards, tenants, timestamp, version};

/// A move.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Move {
    /// Its number.
    pub id: i64,
    /// Whose.
    pub tenant: String,
    /// From where.
    pub source: String,
    /// To where.
    pub target: String,
    /// `move`, `rehearse` or `plan`.
    pub kind: String,
    /// Where it stands: `queued`, `preparing`, `copying`, `catching_up`, `verifying`, `cutover`, `moved`,
    /// `completing`, `rolling_back`, `aborting`, `done`.
    pub phase: String,
    /// What operators want of it: `run`, `pause`, `abort`, `abort_without_target`, `abort_accepting_loss`, `rollback`,
    /// `complete`, `complete_without_source`.
    pub wish: String,
    /// How it ended: `completed`, `rolled_back`, `aborted`, `refused`, `failed`, `planned`, `rehearsed`.
    pub outcome: Option<String>,
    /// What was asked for beyond the ordinary.
    #[schema(value_type = Object)]
    pub options: Value,
    /// How far the copy is.
    #[schema(value_type = Object)]
    pub progress: Value,
    /// Estimates, and what preflight found.
    #[schema(value_type = Option<Object>)]
    pub plan: Option<Value>,
    /// Rows and hashes of every table, epochs, durations, and the pause.
    #[schema(value_type = Option<Object>)]
    pub receipt: Option<Value>,
    /// What went wrong last.
    pub error: Option<String>,
    /// Who asked for it.
    pub created_by: String,
    /// When, in UTC.
    pub created_at: String,
    /// When the tenant went over, in UTC.
    pub moved_at: Option<String>,
    /// When it ended, in UTC.
    pub finished_at: Option<String>,
}

/// A move to be made.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMove {
    /// Whose.
    pub tenant: String,
    /// The shard to go to.
    pub to: String,
    /// `move`; `rehearse` for all but the cutover; `plan` for preflight and estimates only.
    #[serde(default)]
    pub kind: MoveKind,
    /// What differs from the ordinary.
    #[serde(default)]
    pub options: MoveOptions,
    /// Whether an earlier move of the tenant, which can still be rolled back, is completed first. Else it is in the
    /// way of this one.
    #[serde(default)]
    pub complete_previous: bool,
}

/// What kind of move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MoveKind {
    /// All of it.
    #[default]
    Move,
    /// All but the cutover.
    Rehearse,
    /// Preflight and estimates only.
    Plan,
}

/// What differs from the ordinary.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveOptions {
    /// Longest pause of an attempt at the cutover, in milliseconds. Default 250.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_budget_ms: Option<u64>,
    /// Attempts at the cutover before the move is given up. Default 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Ceiling of the whole copy, in bytes per second; 0 is none. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Pieces that are copied at a time, at most 8. Default 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// Bytes of a piece, about: a larger table is copied in ranges of its key, and goes on behind the last of them if
    /// the mover ends. Default 64 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub piece_bytes: Option<u64>,
    /// Longest lag of a standby of the target at which the copy goes on, in milliseconds; 0 is any. Default 10 000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_target_lag_ms: Option<u64>,
    /// Most bytes of log that the source may retain for the move. Default 4 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal_budget: Option<u64>,
    /// Seconds for which the source follows, before the move is completed by itself; 0 is for ever. Default a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_s: Option<u64>,
    /// The column that tells the tenant, where tables are shared. Default `tenant_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_column: Option<String>,
    /// Rows deleted at a time when what is left is deleted. Default 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete_batch: Option<u32>,
    /// Whether sessions that keep their server connection between transactions are ended with 57P01 at the cutover.
    /// Else they are in its way. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_pinned: Option<bool>,
}

/// Which moves to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct MoveFilter {
    /// Those of this tenant.
    pub tenant: Option<String>,
    /// Those that have not ended, or those that have.
    pub open: Option<bool>,
    /// Those before this number.
    pub before: Option<i64>,
    /// At most so many. Default 100, at most 1000.
    pub limit: Option<u16>,
}

/// Something that happened in a move.
#[derive(Debug, Serialize, ToSchema)]
pub struct MoveEvent {
    /// When, in UTC.
    pub at: String,
    /// The phase it was in.
    pub phase: String,
    /// What.
    pub what: String,
}

/// A change stream that moves follow.
#[derive(Debug, Clone)]
pub struct MoveStream {
    /// The shard it is read from.
    pub shard: String,
    /// Its database.
    pub database: String,
    /// Bytes of log that the slot retains.
    pub retained: i64,
    /// Most that it may.
    pub budget: i64,
}

/// Whom the mover logs in as on a shard.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShardAdmin {
    /// A role that sees all rows and may replicate.
    pub user: String,
    /// Its password. It is kept in the catalog, sealed, for which the control plane needs its `keys_file`; of the
    /// other two only the name is.
    #[schema(value_type = Option<String>)]
    pub password: Option<SecretString>,
    /// The control plane's environment variable that holds it; its name begins with `SWITCHYARD_SHARD_`.
    pub password_env: Option<String>,
    /// The file that holds it, in the control plane's `secrets_dir`.
    pub password_file: Option<String>,
}

/// What names of variables that hold passwords begin with: others are none of the API's business.
const PASSWORD_ENV: &str = "SWITCHYARD_SHARD_";

impl ShardAdmin {
    fn check(&self) -> Result<(), StoreError> {
        if self.user.is_empty() {
            return Err(StoreError::invalid("user", "must not be empty"));
        }
        let given = [self.password.is_some(), self.password_env.is_some(), self.password_file.is_some()];
        if given.into_iter().filter(|given| *given).count() > 1 {
            let text = "at most one of `password`, `password_env` and `password_file`";
            return Err(StoreError::invalid("password", text));
        }
        if self.password_env.as_deref().is_some_and(|name| !name.starts_with(PASSWORD_ENV)) {
            return Err(StoreError::invalid("password_env", format!("must begin with {PASSWORD_ENV}")));
        }
        let plain = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        if self.password_file.as_deref().is_some_and(|name| !plain(name)) {
            return Err(StoreError::invalid("password_file", "must be a file's name, without a path"));
        }
        Ok(())
    }
}

impl Store {
    /// Moves, the latest first.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn moves(&self, filter: &MoveFilter) -> Result<Vec<Move>, StoreError> {
        let sql = format!(
            "{} WHERE ($1::text IS NULL OR tenant = $1) AND ($2::bool IS NULL OR (phase <> 'done') = $2)
               AND ($3::bigint IS NULL OR id < $3) ORDER BY id DESC LIMIT $4",
            select()
        );
        let limit = i64::from(filter.limit.unwrap_or(100).clamp(1, 1000));
        let rows =
            self.client().await?.query(&sql, &[&filter.tenant, &filter.open, &filter.before, &limit]).await?;
        Ok(rows.iter().map(one).collect())
    }

    /// One move.
    ///
    /// # Errors
    /// If there is none, or the catalog fails.
    pub async fn one_move(&self, id: i64) -> Result<Move, StoreError> {
        let row = self.client().await?.query_opt(&format!("{} WHERE id = $1", select()), &[&id]).await?;
        row.as_ref().map(one).ok_or_else(|| StoreError::not_found("move", &id.to_string()))
    }

    /// What happened in a move, in order.
    ///
    /// # Errors
    /// If there is none, or the catalog fails.
    pub async fn move_events(&self, id: i64) -> Result<Vec<MoveEvent>, StoreError> {
        self.one_move(id).await?;
        let sql =
            format!("SELECT {}, phase, what FROM move_events WHERE move_id = $1 ORDER BY id", precise("at"));
        let rows = self.client().await?.query(&sql, &[&id]).await?;
        Ok(rows.iter().map(|r| MoveEvent { at: r.get(0), phase: r.get(1), what: r.get(2) }).collect())
    }

    /// Asks for a move. One of the same tenant that can still be rolled back must have been completed, or is, if
    /// that is asked for.
    ///
    /// # Errors
    /// If there is no such tenant or shard, the tenant is there or on its way, or the catalog fails.
    pub async fn start_move(&self, caller: &Caller, new: NewMove) -> Result<Move, StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        let seen = version(&t).await?;
        let source = place_to_leave(&t, &new).await?;
        if source == new.to {
            return Err(StoreError::Conflict(format!("tenant `{}` lives on `{}`", new.tenant, new.to)));
        }
        if new.options.pause_budget_ms.is_some_and(|ms| !(50..=10_000).contains(&ms)) {
            return Err(StoreError::invalid("pause_budget_ms", "must be from 50 to 10000"));
        }
        let kind = match new.kind {
            MoveKind::Move => "move",
            MoveKind::Rehearse => "rehearse",
            MoveKind::Plan => "plan",
        };
        if new.kind != MoveKind::Plan {
            none_left(&t, &new.tenant, &new.to).await?;
            let sql = "SELECT id FROM moves WHERE tenant = $1 AND phase = 'moved' AND wish NOT LIKE 'complete%' FOR UPDATE";
            for row in t.query(sql, &[&new.tenant]).await? {
                let earlier: i64 = row.get(0);
                if !new.complete_previous {
                    return Err(StoreError::Conflict(format!(
                        "move {earlier} of tenant `{}` can still be rolled back; complete it first, or ask for \
                         that with `complete_previous`",
                        new.tenant
                    )));
                }
                t.execute("UPDATE moves SET wish = 'complete' WHERE id = $1", &[&earlier]).await?;
            }
        }
        let options = serde_json::to_value(&new.options).unwrap_or_default();
        let sql = "INSERT INTO moves (tenant, source, target, kind, options, created_by)
                   VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING RETURNING id";
        let row = t.query_opt(sql, &[&new.tenant, &source, &new.to, &kind, &options, &caller.name]).await?;
        let Some(row) = row else {
            return Err(StoreError::Conflict(format!("tenant `{}` is being moved already", new.tenant)));
        };
        let id: i64 = row.get(0);
        let row = t.query_one(&format!("{} WHERE id = $1", select()), &[&id]).await?;
        let made = one(&row);
        // Who places or deletes a tenant has this row from the beginning, and looks for moves behind that. Of many who ask for
        // moves, none is to keep them from it for longer than needed: so it is taken last, and looked once more.
        if !is_still(&t, seen).await? && place_to_leave(&t, &new).await? != source {
            let text = format!("tenant `{}` was placed elsewhere at this moment; ask again", new.tenant);
            return Err(StoreError::Conflict(text));
        }
        record(&t, caller, deed("start", &id.to_string()), NONE, Some(&made)).await?;
        t.commit().await?;
        Ok(made)
    }

    /// Says what is wanted of a move.
    ///
    /// # Errors
    /// If there is none, it is too early or too late for that, or the catalog fails.
    pub async fn wish_of_move(
        &self,
        caller: &Caller,
        id: i64,
        wish: &'static str,
    ) -> Result<Move, StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        let by_id = format!("{} WHERE id = $1", select());
        let row = t.query_opt(&format!("{by_id} FOR UPDATE"), &[&id]).await?;
        let before = row.as_ref().map(one).ok_or_else(|| StoreError::not_found("move", &id.to_string()))?;
        let phase = before.phase.as_str();
        let gone_over = matches!(phase, "moved" | "completing" | "rolling_back");
        let fits = match wish {
            "rollback" | "complete" | "complete_without_source" => gone_over,
            _ => phase != "done" && !gone_over,
        };
        if !fits {
            let verb = wish.split('_').next().unwrap_or(wish);
            let text = format!("move {id} is {phase}: it is too early or too late to {verb} it");
            return Err(StoreError::Conflict(text));
        }
        // Begun, it is brought to its end: the tenant may be served where it goes on by now.
        if phase == "aborting" && before.wish == ACCEPTING_LOSS && wish != ACCEPTING_LOSS {
            let text =
                format!("move {id} is given up already, and what its target may have is accepted as lost");
            return Err(StoreError::Conflict(text));
        }
        t.execute("UPDATE moves SET wish = $2, updated_at = now() WHERE id = $1", &[&id, &wish]).await?;
        if wish == ACCEPTING_LOSS {
            let sql = "INSERT INTO move_events (move_id, phase, what) VALUES ($1, $2, $3)";
            let what = format!("{} accepts the loss of what shard {} may have", caller.name, before.target);
            t.execute(sql, &[&id, &before.phase, &what]).await?;
        }
        let after = one(&t.query_one(&by_id, &[&id]).await?);
        record(&t, caller, deed(wish, &id.to_string()), Some(&before), Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }

    /// Says whom the mover logs in as on a shard.
    ///
    /// # Errors
    /// If there is no such shard, or the catalog fails.
    pub async fn set_shard_admin(
        &self,
        caller: &Caller,
        shard: &str,
        admin: ShardAdmin,
    ) -> Result<(), StoreError> {
        admin.check()?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        caller.expects(&shards::read(&t, shard).await?)?;
        let sql = "INSERT INTO shard_admins (shard, login_user, kid, sealed, password_env, password_file)
                   VALUES ($1, $2, $3, $4, $5, $6)
                   ON CONFLICT (shard) DO UPDATE SET login_user = excluded.login_user,
                       login_password = NULL, kid = excluded.kid, sealed = excluded.sealed,
                       password_env = excluded.password_env, password_file = excluded.password_file";
        let (kid, sealed) = match &admin.password {
            Some(password) => {
                let (kid, sealed) = Administrator::Moves.seal(self.keys()?, shard, password)?;
                (Some(kid), Some(sealed))
            }
            None => (None, None),
        };
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
            [&shard, &admin.user, &kid, &sealed, &admin.password_env, &admin.password_file];
        t.execute(sql, &values).await?;
        record(&t, caller, Deed { action: "set admin", kind: "shard", target: shard }, NONE, NONE).await?;
        Ok(t.commit().await?)
    }

    /// Whether the last move that was completed between this shard and another took the tenant away from here.
    pub(crate) async fn has_moved_from(&self, tenant: &str, shard: &str) -> Result<bool, StoreError> {
        let sql = "SELECT source = $2 FROM moves WHERE tenant = $1 AND (source = $2 OR target = $2)
                     AND outcome = 'completed' ORDER BY id DESC LIMIT 1";
        let row = self.client().await?.query_opt(sql, &[&tenant, &shard]).await?;
        Ok(row.is_some_and(|row| row.get(0)))
    }

    /// The change streams that the mover has open.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn move_streams(&self) -> Result<Vec<MoveStream>, StoreError> {
        let sql = "SELECT shard, database, retained, budget FROM move_streams ORDER BY 1, 2";
        let rows = self.client().await?.query(sql, &[]).await?;
        let one = |r: &Row| MoveStream {
            shard: r.get(0),
            database: r.get(1),
            retained: r.get(2),
            budget: r.get(3),
        };
        Ok(rows.iter().map(one).collect())
    }

    /// How many moves stand where, and how long their pauses were: for metrics.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn move_counts(&self) -> Result<MoveCounts, StoreError> {
        let client = self.client().await?;
        let sql = "SELECT CASE phase WHEN 'done' THEN outcome ELSE phase END, count(*) FROM moves
                   WHERE kind <> 'plan' GROUP BY 1";
        let by_state = client.query(sql, &[]).await?.iter().map(|r| (r.get(0), r.get(1))).collect();
        let sql = "SELECT p, (SELECT count(*) FROM pauses WHERE ms <= p) FROM unnest($1::float8[]) p";
        let pauses =
            "WITH pauses AS (SELECT (receipt->'pause'->>'clients_us')::float8 / 1000 AS ms FROM moves
                                      WHERE receipt->'pause'->>'clients_us' IS NOT NULL)";
        let rows = client.query(&format!("{pauses} {sql}"), &[&PAUSES_MS.as_slice()]).await?;
        let within_ms = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
        let sql = "SELECT count(*), coalesce(sum((receipt->>'bytes')::float8), 0),
                          coalesce(sum((receipt->>'rows')::float8), 0) FROM moves WHERE moved_at IS NOT NULL";
        let row = client.query_one(sql, &[]).await?;
        let (moved, bytes, rows) = (row.get(0), row.get(1), row.get(2));
        drop(client);
        let streams = self.move_streams().await?;
        Ok(MoveCounts { by_state, within_ms, moved, bytes, rows, streams })
    }
}

/// Pauses that are told apart, in milliseconds.
const PAUSES_MS: [f64; 9] = [5.0, 10.0, 20.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 10_000.0];

/// What there is to count of moves.
#[derive(Debug, Clone, Default)]
pub struct MoveCounts {
    /// By phase, or by outcome for those that are done.
    pub by_state: Vec<(String, i64)>,
    /// Those in which no client waited for longer, by milliseconds.
    pub within_ms: Vec<(f64, i64)>,
    /// Those in which the tenant has gone over.
    pub moved: i64,
    /// Bytes of the rows that these have moved.
    pub bytes: f64,
    /// These rows.
    pub rows: f64,
    /// The change streams that are open.
    pub streams: Vec<MoveStream>,
}

/// The wish of who gives up what a tenant may have written on a shard that is lost.
const ACCEPTING_LOSS: &str = "abort_accepting_loss";

/// Where the tenant of a move lives, if it can leave that for where it is to go.
async fn place_to_leave(t: &Transaction<'_>, new: &NewMove) -> Result<String, StoreError> {
    let tenant = tenants::read(t, &new.tenant).await?;
    if tenant.state == TenantState::Deleting {
        return Err(StoreError::Conflict(format!("tenant `{}` is being deleted", new.tenant)));
    }
    let source = tenant.shard.ok_or_else(|| StoreError::Conflict("the tenant lives nowhere".to_owned()))?;
    if t.query_opt("SELECT 1 FROM shards WHERE name = $1", &[&new.to]).await?.is_none() {
        return Err(StoreError::not_found("shard", &new.to));
    }
    Ok(source)
}

fn deed<'a>(action: &'static str, target: &'a str) -> Deed<'a> {
    Deed { action, kind: "move", target }
}

/// Refuses where a move that was given up has left something of the tenant on the shard.
async fn none_left(t: &Transaction<'_>, tenant: &str, shard: &str) -> Result<(), StoreError> {
    let sql = "SELECT id, kept_at_target FROM moves WHERE tenant = $1 AND target = $2 AND left_at_target IS NOT NULL
               ORDER BY kept_at_target DESC, id LIMIT 1";
    let Some(row) = t.query_opt(sql, &[&tenant, &shard]).await? else { return Ok(()) };
    let id: i64 = row.get(0);
    let why = match row.get(1) {
        true => format!(
            "shard `{shard}` has rows that tenant `{tenant}` wrote there when its loss was accepted in move {id}; save what is \
             needed of them, and delete them"
        ),
        false => format!(
            "what move {id} has left on shard `{shard}` is not cleared yet; that is done when the shard answers"
        ),
    };
    Err(StoreError::Conflict(why))
}

/// Refuses where a move of the tenant has not ended: one that has gone over keeps the source up to date.
pub(super) async fn none_of_tenant(t: &Transaction<'_>, tenant: &str) -> Result<(), StoreError> {
    none(t, "tenant = $1", tenant, "tenant").await
}

/// Refuses where a move from or to the shard has not ended.
pub(super) async fn none_of_shard(t: &Transaction<'_>, shard: &str) -> Result<(), StoreError> {
    none(t, "(source = $1 OR target = $1)", shard, "shard").await
}

async fn none(t: &Transaction<'_>, which: &str, name: &str, kind: &str) -> Result<(), StoreError> {
    let sql = format!(
        "SELECT id, phase FROM moves WHERE {which} AND phase <> 'done' AND kind <> 'plan' ORDER BY id LIMIT 1"
    );
    let Some(row) = t.query_opt(&sql, &[&name]).await? else { return Ok(()) };
    let (id, phase): (i64, String) = (row.get(0), row.get(1));
    let how = match phase.as_str() {
        "moved" | "completing" | "rolling_back" => "complete it or roll it back first",
        _ => "wait for its end or abort it first",
    };
    Err(StoreError::Conflict(format!("move {id} of {kind} `{name}` is {phase}: {how}")))
}

fn select() -> String {
    format!(
        "SELECT id, tenant, source, target, kind, phase, wish, outcome, options, progress, plan, receipt, error,
                created_by, {} AS created, {} AS moved, {} AS finished FROM moves",
        precise("created_at"),
        precise("moved_at"),
        timestamp("finished_at")
    )
}

/// UTC in RFC 3339, to the millisecond, as a column of SQL.
fn precise(column: &str) -> String {
    format!("to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')")
}

fn one(row: &Row) -> Move {
    Move {
        id: row.get("id"),
        tenant: row.get("tenant"),
        source: row.get("source"),
        target: row.get("target"),
        kind: row.get("kind"),
        phase: row.get("phase"),
        wish: row.get("wish"),
        outcome: row.get("outcome"),
        options: row.get("options"),
        progress: row.get("progress"),
        plan: row.get("plan"),
        receipt: row.get("receipt"),
        error: row.get("error"),
        created_by: row.get("created_by"),
        created_at: row.get("created"),
        moved_at: row.get("moved"),
        finished_at: row.get("finished"),
    }
}
