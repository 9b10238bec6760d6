//! A move in the catalog: what is asked for, what is being done, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use switchyard_catalog::docs::TlsDoc;
use switchyard_catalog::{CatalogError, Endpoint};
use switchyard_config::topology::{ContextTemplate, SslMode};
use switchyard_config::{ShardName, TenantId};
use tokio_postgres::{Client, Row};

use crate::MoveError;
use crate::scope::Model;
use crate::secrets::{Kept, Secrets};
use crate::sessions::{Session, Sessions};
use crate::shard::{SESSION, ShardAccess};

/// Where a move stands. Written before what it names is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nobody works on it.
    Queued,
    /// Preflight, fences, publication, slot.
    Preparing,
    /// Rows are copied.
    Copying,
    /// What was written meanwhile is applied.
    CatchingUp,
    /// Source and target are compared.
    Verifying,
    /// Clients are held and let go at the target.
    Cutover,
    /// The tenant lives at the target; the source follows, in case it is to go back.
    Moved,
    /// What was left at the source is deleted.
    Completing,
    /// The tenant goes back.
    RollingBack,
    /// What was brought to the target is deleted.
    Aborting,
    /// Nothing is left to do.
    Done,
}

/// What an operator wants of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Go on.
    Run,
    /// Stand still, before the cutover.
    Pause,
    /// Give it up, before the cutover.
    Abort,
    /// Give it up, and leave the target as it is for now.
    AbortWithoutTarget,
    /// The same, although the tenant may have arrived there: what it has written there is given up with it.
    AbortAcceptingLoss,
    /// Go back, after the cutover.
    Rollback,
    /// Delete what is left at the source.
    Complete,
    /// End it, and leave the source as it is.
    CompleteWithoutSource,
}

/// What is asked for beyond the ordinary.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Longest pause of an attempt, in milliseconds.
    pub pause_budget_ms: u64,
    /// Attempts at the cutover before the move is given up.
    pub attempts: u32,
    /// Ceiling of the copy, in bytes per second; 0 is none.
    pub rate: u64,
    /// Pieces that are copied at a time.
    pub workers: usize,
    /// Bytes of a piece, about: a larger table is copied in ranges of its key.
    pub piece_bytes: u64,
    /// Longest lag of a standby of the target at which the copy goes on, in milliseconds; 0 is any.
    pub max_target_lag_ms: u64,
    /// Most bytes of log that the slot may retain on the source.
    pub wal_budget: u64,
    /// Seconds for which the source follows after the move, before it is completed by itself; 0 is for ever.
    pub retention_s: u64,
    /// The column that tells the tenant, where tables are shared.
    pub tenant_column: String,
    /// Rows deleted at a time when what is left is deleted.
    pub delete_batch: u32,
    /// Whether sessions that keep their server connection between transactions are ended with 57P01 at the cutover.
    /// Else they are in its way.
    pub end_pinned: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pause_budget_ms: 250,
            attempts: 50,
            rate: 0,
            workers: 2,
            piece_bytes: 64 << 20,
            max_target_lag_ms: 10_000,
            wal_budget: 4 << 30,
            retention_s: 24 * 3600,
            tenant_column: "tenant_id".to_owned(),
            delete_batch: 1000,
            end_pinned: false,
        }
    }
}

/// A move as its mover has it.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Its number.
    pub id: i64,
    /// Whose.
    pub tenant: TenantId,
    /// From where.
    pub source: ShardName,
    /// To where.
    pub target: ShardName,
    /// `move`, `rehearse` or `plan`.
    pub kind: String,
    /// Where it stood when it was taken over.
    pub phase: Phase,
    /// Which takeover this is.
    pub term: i64,
    /// What is asked for.
    pub options: Options,
    /// What is known so far of the receipt.
    pub receipt: Option<Value>,
}

/// What a move has left at its target.
pub(crate) struct Left {
    /// Where that is.
    pub model: Model,
    /// Where the tenant lives now.
    pub home: String,
    /// Its epoch there.
    pub epoch: i64,
    /// Whether the tenant has written some of it, so that it is for people to delete.
    pub kept: bool,
}

/// The catalog, as the mover of one job writes it.
pub(crate) struct Journal {
    client: Session,
    sessions: Arc<Sessions>,
    id: i64,
    term: i64,
}

/// What sessions on the catalog are kept by; no shard has a name of no letters.
const CATALOG: &str = "";

fn parse<T: serde::de::DeserializeOwned>(what: &str, value: Value) -> Result<T, MoveError> {
    serde_json::from_value(value).map_err(|_| MoveError::Invalid(format!("`{what}` is not understood")))
}

fn catalog(error: tokio_postgres::Error) -> MoveError {
    MoveError::Catalog(CatalogError::Postgres(error))
}

/// Connects to the catalog; the connection ends with the client.
pub(crate) async fn connect(url: &SecretString) -> Result<Client, MoveError> {
    let endpoint = Endpoint::new(url, "switchyard-mover")?;
    let (client, connection) = endpoint.config.connect(endpoint.tls).await.map_err(catalog)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the catalog ended");
        }
    });
    Ok(client)
}

/// A session on the catalog, whose user before has left nothing in it: all that is done by one are single statements.
async fn session(url: &SecretString, sessions: &Arc<Sessions>) -> Result<Session, MoveError> {
    match sessions.take(CATALOG) {
        Some(session) => Ok(session),
        None => Ok(sessions.opened(connect(url).await?, CATALOG.to_owned())),
    }
}

impl Journal {
    /// For who looks at shards and works on no move.
    pub(crate) async fn onlooker(url: &SecretString, sessions: &Arc<Sessions>) -> Result<Self, MoveError> {
        Ok(Self { client: session(url, sessions).await?, sessions: sessions.clone(), id: 0, term: 0 })
    }

    /// Shards that the mover has a login on.
    pub(crate) async fn shards(&self) -> Result<Vec<ShardName>, MoveError> {
        let rows =
            self.client.query("SELECT shard FROM shard_admins ORDER BY 1", &[]).await.map_err(catalog)?;
        Ok(rows.iter().filter_map(|r| ShardName::new(r.get::<_, &str>(0)).ok()).collect())
    }

    /// Most bytes of log that a slot of the shard may retain, if there is a move that may need one.
    pub(crate) async fn wal_budget(&self, shard: &ShardName) -> Result<Option<u64>, MoveError> {
        let sql =
            "SELECT options FROM moves WHERE phase <> 'done' AND kind <> 'plan' AND $1 IN (source, target)";
        let rows = self.client.query(sql, &[&shard.as_str()]).await.map_err(catalog)?;
        let budgets = rows.iter().map(|r| Ok(parse::<Options>("options", r.get(0))?.wal_budget));
        Ok(budgets.collect::<Result<Vec<_>, MoveError>>()?.into_iter().max())
    }

    /// Of these moves, those that have ended and left a shard as it was: number, tenant, where it went, and its epoch.
    pub(crate) async fn ended_without(
        &self,
        source: &ShardName,
        ids: &[String],
    ) -> Result<Vec<(String, String, String, i64)>, MoveError> {
        let sql = "SELECT m.id::text, m.tenant, m.target, coalesce(p.epoch, 0)
                   FROM moves m LEFT JOIN placements p ON p.tenant = m.tenant
                   WHERE m.id::text = ANY ($1) AND m.source = $2 AND m.phase = 'done' AND m.outcome = 'completed'";
        let rows = self.client.query(sql, &[&ids, &source.as_str()]).await.map_err(catalog)?;
        Ok(rows.iter().map(|r| (r.get(0), r.get(1), r.get(2), r.get(3))).collect())
    }

    /// Notes something in all moves that may need what a shard has of them.
    pub(crate) async fn event_of_shard(&self, shard: &ShardName, what: &str) -> Result<(), MoveError> {
        let sql = "INSERT INTO move_events (move_id, phase, what)
                   SELECT id, phase, $2 FROM moves
                   WHERE phase NOT IN ('queued', 'done') AND kind <> 'plan' AND $1 IN (source, target)";
        self.client.execute(sql, &[&shard.as_str(), &what]).await.map(drop).map_err(catalog)
    }

    /// Takes a move over: from here on, who had it before writes nothing.
    pub(crate) async fn claim(
        url: &SecretString,
        sessions: &Arc<Sessions>,
        id: i64,
        owner: &str,
    ) -> Result<(Self, Job), MoveError> {
        let client = session(url, sessions).await?;
        let sql = "UPDATE moves SET owner = $2, term = term + 1, updated_at = now() WHERE id = $1 AND phase <> 'done'
                   RETURNING tenant, source, target, kind, phase, term, options, receipt";
        let row = client.query_opt(sql, &[&id, &owner]).await.map_err(catalog)?;
        let row = row.ok_or(MoveError::Superseded)?;
        let job = job(id, &row)?;
        Ok((Self { client, sessions: sessions.clone(), id, term: job.term }, job))
    }

    /// Moves that were given up without this shard, where what they have brought there is to be cleared. Behind them, by
    /// turns, those where what is there is for people to delete.
    pub(crate) async fn left_at(&self, target: &ShardName) -> Result<Vec<i64>, MoveError> {
        // What lies where the tenant lives by now is not the mover's to delete.
        let sql = "SELECT m.id FROM moves m WHERE m.target = $1 AND m.phase = 'done' AND m.left_at_target IS NOT NULL
                     AND NOT EXISTS (SELECT FROM placements p WHERE p.tenant = m.tenant AND p.shard = m.target)
                   ORDER BY m.kept_at_target, m.updated_at, m.id";
        let rows = self.client.query(sql, &[&target.as_str()]).await.map_err(catalog)?;
        Ok(rows.iter().map(|r| r.get(0)).collect())
    }

    /// Takes over the clearing of what a move has left at its target.
    pub(crate) async fn claim_left(
        url: &SecretString,
        sessions: &Arc<Sessions>,
        id: i64,
        owner: &str,
    ) -> Result<(Self, Job, Left), MoveError> {
        let client = session(url, sessions).await?;
        let sql = "UPDATE moves m SET owner = $2, term = term + 1, updated_at = now()
                   WHERE id = $1 AND phase = 'done' AND left_at_target IS NOT NULL
                   RETURNING tenant, source, target, kind, phase, term, options, receipt, left_at_target,
                       coalesce((SELECT p.shard FROM placements p WHERE p.tenant = m.tenant), source),
                       coalesce((SELECT p.epoch FROM placements p WHERE p.tenant = m.tenant), epoch, 0), kept_at_target";
        let row = client.query_opt(sql, &[&id, &owner]).await.map_err(catalog)?;
        let row = row.ok_or(MoveError::Superseded)?;
        let job = job(id, &row)?;
        let model = parse("left_at_target", row.get(8))?;
        let left = Left { model, home: row.get(9), epoch: row.get(10), kept: row.get(11) };
        let journal = Self { client, sessions: sessions.clone(), id, term: job.term };
        Ok((journal, job, left))
    }

    /// Says that what is left at the target is for people to delete.
    pub(crate) async fn kept_at_target(&self) -> Result<(), MoveError> {
        self.write("kept_at_target = $3", &true).await
    }

    /// Says what is to be cleared at the target when that is back, or that there is nothing any more.
    pub(crate) async fn left_at_target(&self, what: Option<&Model>) -> Result<(), MoveError> {
        self.write("left_at_target = $3", &what.map(|model| json!(model))).await
    }

    async fn write(
        &self,
        set: &str,
        value: &(dyn tokio_postgres::types::ToSql + Sync),
    ) -> Result<(), MoveError> {
        let sql = format!(
            "UPDATE moves SET {set}, updated_at = now()
             WHERE id = $1 AND term = $2 AND (phase <> 'done' OR left_at_target IS NOT NULL)"
        );
        let statement = self.client.statement(&sql).await.map_err(catalog)?;
        let written = self.client.client().execute(&statement, &[&self.id, &self.term, value]).await;
        match written.map_err(catalog)? {
            1 => Ok(()),
            _ => Err(MoveError::Superseded),
        }
    }

    /// Fails if another mover has taken over. A session on a shard that was opened before this was asked is ended by
    /// whoever takes over after it, so what is done in it cannot come too late.
    pub(crate) async fn is_ours(&self) -> Result<(), MoveError> {
        let sql = "SELECT FROM moves WHERE id = $1 AND term = $2
                     AND (phase <> 'done' OR left_at_target IS NOT NULL)";
        match self.client.query_opt(sql, &[&self.id, &self.term]).await.map_err(catalog)? {
            Some(_) => Ok(()),
            None => Err(MoveError::Superseded),
        }
    }

    /// Says what will be done next.
    pub(crate) async fn enter(&self, phase: Phase, what: &str) -> Result<(), MoveError> {
        let name = json!(phase);
        let name = name.as_str().unwrap_or_default();
        tracing::info!(id = self.id, phase = name, what, "move");
        let sql = "WITH entered AS (UPDATE moves SET phase = $3, updated_at = now()
                                    WHERE id = $1 AND term = $2 AND phase <> 'done' RETURNING id)
                   INSERT INTO move_events (move_id, phase, what) SELECT id, $3, $4 FROM entered";
        match self.client.execute(sql, &[&self.id, &self.term, &name, &what]).await.map_err(catalog)? {
            1 => Ok(()),
            _ => Err(MoveError::Superseded),
        }
    }

    /// Notes something that people may want to know.
    pub(crate) async fn event(&self, phase: &str, what: &str) -> Result<(), MoveError> {
        tracing::info!(id = self.id, phase, what, "move");
        let sql = "INSERT INTO move_events (move_id, phase, what) VALUES ($1, $2, $3)";
        self.client.execute(sql, &[&self.id, &phase, &what]).await.map_err(catalog)?;
        Ok(())
    }

    pub(crate) async fn progress(&self, progress: &Value) -> Result<(), MoveError> {
        self.write("progress = $3", progress).await
    }

    pub(crate) async fn plan(&self, plan: &Value) -> Result<(), MoveError> {
        self.write("plan = $3", plan).await
    }

    /// Writes down the tenant's epoch, and that it may arrive with the other.
    pub(crate) async fn epochs(&self, before: i64, after: i64) -> Result<(), MoveError> {
        let set = "epoch = ($3::bigint[])[1], epoch_after = greatest(epoch_after, ($3::bigint[])[2])";
        self.write(set, &[before, after].as_slice()).await
    }

    /// The highest epoch that the tenant may have arrived with; 0 if none was written down.
    pub(crate) async fn epoch_after(&self) -> Result<i64, MoveError> {
        let sql = "SELECT coalesce(epoch_after, 0) FROM moves WHERE id = $1 AND term = $2";
        let row = self.client.query_opt(sql, &[&self.id, &self.term]).await.map_err(catalog)?;
        Ok(row.ok_or(MoveError::Superseded)?.get(0))
    }

    pub(crate) async fn receipt(&self, receipt: &Value) -> Result<(), MoveError> {
        self.write("receipt = $3", receipt).await
    }

    pub(crate) async fn error(&self, error: Option<&str>) -> Result<(), MoveError> {
        self.write("error = $3", &error).await
    }

    pub(crate) async fn moved_now(&self) -> Result<(), MoveError> {
        self.write("moved_at = coalesce(moved_at, now()), error = $3", &None::<String>).await
    }

    /// Ends it.
    pub(crate) async fn done(&self, outcome: &str) -> Result<(), MoveError> {
        self.event("done", outcome).await?;
        self.write("phase = 'done', finished_at = now(), outcome = $3", &outcome).await
    }

    /// How long a commit in the catalog takes, as `time` measures it.
    pub(crate) async fn commit_latency(
        &self,
        time: impl AsyncFnOnce(&Client) -> Result<Duration, tokio_postgres::Error>,
    ) -> Result<Duration, MoveError> {
        time(&self.client).await.map_err(catalog)
    }

    /// What the operator wants now, and for how many seconds the tenant has been moved.
    pub(crate) async fn wish(&self) -> Result<(Wish, Option<f64>), MoveError> {
        let sql = "SELECT wish, extract(epoch FROM now() - moved_at)::float8 FROM moves WHERE id = $1 AND term = $2";
        let row = self.client.query_opt(sql, &[&self.id, &self.term]).await.map_err(catalog)?;
        let row = row.ok_or(MoveError::Superseded)?;
        Ok((parse("wish", Value::String(row.get(0)))?, row.get(1)))
    }

    /// Takes a wish back that cannot be followed.
    pub(crate) async fn unwish(&self, why: &str) -> Result<(), MoveError> {
        self.write("wish = 'run', error = $3", &Some(why)).await
    }

    /// Slots that moves which are not done need on a shard, this one among them: one for the shard's own database, and one
    /// for each database of a tenant's own, on either side. `own` says that the tenant of this one has such a database.
    pub(crate) async fn slots(&self, shard: &ShardName, own: bool) -> Result<i64, MoveError> {
        // Of one that has just begun it is not known yet; most tenants of a place are of one kind.
        let sql = "SELECT count(*) FILTER (WHERE databases), coalesce(bool_or(NOT databases), false)
                   FROM (SELECT coalesce(plan->'model'->>'model' = 'database', $3) AS databases FROM moves
                         WHERE phase NOT IN ('queued', 'done') AND kind <> 'plan' AND id <> $1
                           AND $2 IN (source, target)) m";
        let row = self.client.query_one(sql, &[&self.id, &shard.as_str(), &own]).await.map_err(catalog)?;
        let (databases, shared): (i64, bool) = (row.get(0), row.get(1));
        Ok(databases + i64::from(own) + i64::from(shared || !own))
    }

    /// Whether another move works on a shard's own database, or follows it.
    pub(crate) async fn others(&self, shard: &ShardName) -> Result<bool, MoveError> {
        let sql = "SELECT EXISTS (SELECT FROM moves WHERE phase NOT IN ('queued', 'done') AND kind <> 'plan'
                                  AND id <> $1 AND $2 IN (source, target) AND plan->'model'->>'model'
                                      IS DISTINCT FROM 'database')";
        Ok(self.client.query_one(sql, &[&self.id, &shard.as_str()]).await.map_err(catalog)?.get(0))
    }

    /// Moves that follow this shard's own database.
    pub(crate) async fn followers(&self, shard: &ShardName) -> Result<Vec<i64>, MoveError> {
        // One in the cutover may have gone over; those that copy can go on from where they stood.
        let sql = "SELECT id FROM moves WHERE plan->'model'->>'model' IS DISTINCT FROM 'database'
                     AND (phase IN ('cutover', 'moved', 'rolling_back') AND target = $1
                          OR phase IN ('preparing', 'copying', 'catching_up', 'verifying', 'cutover')
                             AND source = $1 AND receipt ? 'tables_as_copied')";
        let rows = self.client.query(sql, &[&shard.as_str()]).await.map_err(catalog)?;
        Ok(rows.iter().map(|r| r.get(0)).collect())
    }

    /// Where the mover reaches a shard. Without a login of its own there, none.
    pub(crate) async fn shard(
        &self,
        name: &ShardName,
        secrets: &Secrets,
    ) -> Result<Option<ShardAccess>, MoveError> {
        let sql = "SELECT s.host, s.port, s.database, s.tls, a.login_user, a.login_password, a.password_env,
                          a.password_file, a.kid, a.sealed
                   FROM shards s LEFT JOIN shard_admins a ON a.shard = s.name WHERE s.name = $1";
        let row = self.client.query_opt(sql, &[&name.as_str()]).await.map_err(catalog)?;
        let row = row.ok_or_else(|| MoveError::Invalid(format!("there is no shard `{name}`")))?;
        let Some(user) = row.get::<_, Option<String>>(4) else { return Ok(None) };
        let mut tls: switchyard_config::topology::ServerTls = parse::<TlsDoc>("tls", row.get(3))?.into();
        let (key, sealed): (Option<&str>, Option<&[u8]>) = (row.get(8), row.get(9));
        let kept = Kept { clear: row.get(5), env: row.get(6), file: row.get(7), sealed: key.zip(sealed) };
        let host: String = row.get(0);
        if host.starts_with('/') {
            tls.mode = SslMode::Disable;
        }
        Ok(Some(ShardAccess {
            name: name.clone(),
            host,
            port: u16::try_from(row.get::<_, i32>(1)).unwrap_or(5432),
            database: row.get(2),
            home: row.get(2),
            user,
            password: secrets.password(name, &kept)?,
            tls,
            session: format!("{SESSION} {}.{}", self.id, self.term),
            sessions: self.sessions.clone(),
        }))
    }

    /// The context of the tenant, and its epoch.
    pub(crate) async fn tenant(&self, tenant: &TenantId) -> Result<(ContextTemplate, i64), MoveError> {
        let sql = "SELECT coalesce(t.context, s.context), coalesce(p.epoch, d.epoch, 0)
                   FROM settings s, tenants t LEFT JOIN placements p ON p.tenant = t.id
                   LEFT JOIN deleted d ON d.kind = 'placement' AND d.id = t.id WHERE t.id = $1";
        let row = self.client.query_opt(sql, &[&tenant.as_str()]).await.map_err(catalog)?;
        let row = row.ok_or_else(|| MoveError::Invalid(format!("there is no tenant `{tenant}`")))?;
        Ok((parse("context", row.get(0))?, row.get(1)))
    }

    /// Writes where the tenant lives now.
    pub(crate) async fn place(
        &self,
        tenant: &TenantId,
        shard: &ShardName,
        epoch: i64,
    ) -> Result<(), MoveError> {
        let sql = "INSERT INTO placements (tenant, shard, epoch) VALUES ($1, $2, $3)
                   ON CONFLICT (tenant) DO UPDATE SET shard = excluded.shard, epoch = excluded.epoch, changed_at = now()
                   WHERE placements.epoch < excluded.epoch";
        self.client.execute(sql, &[&tenant.as_str(), &shard.as_str(), &epoch]).await.map_err(catalog)?;
        Ok(())
    }
}

fn job(id: i64, row: &Row) -> Result<Job, MoveError> {
    let invalid = |e: switchyard_config::ids::InvalidId| MoveError::Invalid(e.to_string());
    Ok(Job {
        id,
        tenant: TenantId::new(row.get::<_, &str>(0)).map_err(invalid)?,
        source: ShardName::new(row.get::<_, &str>(1)).map_err(invalid)?,
        target: ShardName::new(row.get::<_, &str>(2)).map_err(invalid)?,
        kind: row.get(3),
        phase: parse("phase", Value::String(row.get(4)))?,
        term: row.get(5),
        options: parse("options", row.get(6))?,
        receipt: row.get(7),
    })
}
