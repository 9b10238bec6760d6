//! What a cutover says to the shards, a statement each.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::SimpleQueryMessage;

use super::Cutover;
use crate::MoveError;
use crate::closing::Closing;
use crate::scope::literal;
use crate::sessions::Session;
use crate::shape;
use crate::shard::ShardAccess;

/// How often it is looked for transactions that read what is closed.
const READERS: Duration = Duration::from_millis(1);

/// The id that no tenant has.
const NOBODY: &str = "";

/// How long a shard's answer may take beyond what it was allowed. Without one it is not known what has been done, and the
/// move is taken over anew, in other sessions.
pub(super) const ANSWER: Duration = Duration::from_millis(500);

impl Cutover<'_> {
    /// Does all that a cutover does on either side, for a tenant that there is not: what a session must find out first
    /// about functions and tables, it has found out by then. Nothing of it is kept.
    pub(crate) async fn practise(&self, writer: &Session) -> Result<(), MoveError> {
        let alone = |call: String| {
            format!("DO $$ BEGIN PERFORM {call}; EXCEPTION WHEN SQLSTATE 'TN011' THEN NULL; END $$")
        };
        let (freezing, activation) = (alone(self.freezing(NOBODY)), alone(self.activation(NOBODY)));
        // Of a tenant that there is not, and nothing is its own.
        let closing = match &self.closing {
            Some(Closing::AtOnce(_)) => "; DO $$ BEGIN PERFORM switchyard.close_schemas('', '{}'); END $$",
            _ => "",
        };
        let here = format!("{freezing}{closing}");
        let here = async { self.from.client.batch_execute(&here).await.map_err(self.from.at.failed()) };
        let there = async { writer.batch_execute(&activation).await.map_err(self.to.at.failed()) };
        tokio::try_join!(here, there).map(drop).map_err(turned)
    }

    fn freezing(&self, tenant: &str) -> String {
        format!(
            "switchyard.freeze({}, '{}', {}, {}, {})",
            literal(&self.turn.id),
            self.from.part,
            self.turn.term,
            literal(tenant),
            literal(self.to.at.name.as_str())
        )
    }

    fn activation(&self, tenant: &str) -> String {
        format!(
            "switchyard.activate({}, '{}', {}, {}, {}, {})",
            literal(&self.turn.id),
            self.to.part,
            self.turn.term,
            self.attempt,
            literal(tenant),
            self.epochs.1
        )
    }

    /// What is run behind the last change.
    pub(super) fn last(&self) -> String {
        format!("SELECT {}", self.activation(self.tenant.as_str()))
    }

    /// Waits for the tenant's transactions, and has no other begin. What tells this freezing in the stream.
    pub(super) async fn freeze(&self, left: Duration) -> Result<String, MoveError> {
        let (from, limit) = (self.from.at, left.as_millis());
        // A limit is of a statement by itself: each has what those before it have left.
        let remaining = format!(
            "SELECT set_config('statement_timeout', greatest(1, {} - extract(epoch FROM clock_timestamp()
                 - transaction_timestamp()) * 1000)::int::text, true)",
            limit + 10
        );
        let close = self.closing.as_ref().map(|closing| closing.call(self.tenant.as_str()));
        let close = close.map(|call| format!("; {remaining}; SELECT {call}"));
        // Settings for itself alone; all of it is one transaction, and one way there and back.
        let sql = format!(
            "SET LOCAL lock_timeout = {limit}; SET LOCAL statement_timeout = {};
             SELECT {}::text; {}{}",
            limit + 10,
            self.freezing(self.tenant.as_str()),
            shape::ASK,
            close.as_deref().unwrap_or_default()
        );
        let answer = answered(from, left + ANSWER, self.from.client.simple_query(&sql)).await?;
        let mut values = answer.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let (mark, shape) = (values.next(), values.next());
        let mark = mark.ok_or_else(|| from.silent("the freezing has no answer"))?;
        match shape {
            Some(shape) if shape == self.shape => Ok(mark.to_owned()),
            _ => Err(MoveError::Drift(format!("on shard {}", from.name))),
        }
    }

    /// Who read the tenant's own tables in a transaction that is still open, if it does not end in time. It may not have
    /// noticed that it must not any more; who begins now does.
    pub(super) async fn late_readers(&self, deadline: Instant) -> Result<Option<String>, MoveError> {
        if self.closing.is_none() {
            return Ok(None);
        }
        // Who is not bound by rights is not bound by this either.
        let sql = "SELECT format('pid %s of %s, %s for %s ms', a.pid, a.usename, a.state,
                           round(extract(epoch FROM clock_timestamp() - a.xact_start) * 1000))
             FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_roles r ON r.oid = a.usesysid
             WHERE l.locktype = 'relation' AND l.granted AND NOT r.rolsuper AND NOT r.rolbypassrls
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND (l.relation IN (SELECT relation FROM switchyard.closed WHERE tenant_id = $1)
                    OR EXISTS (SELECT FROM pg_class c JOIN switchyard.closed_schemas s ON s.schema = c.relnamespace
                               WHERE c.oid = l.relation AND s.tenant_id = $1))
             ORDER BY a.xact_start LIMIT 1";
        let tenant = self.tenant.as_str();
        loop {
            let row = answered(self.from.at, ANSWER, self.from.client.query_opt(sql, &[&tenant])).await?;
            let Some(row) = row else { return Ok(None) };
            if Instant::now() >= deadline {
                return Ok(Some(row.get(0)));
            }
            tokio::time::sleep(READERS).await;
        }
    }

    /// The state of the fence at the arriving side, where this attempt cannot succeed any more unless it has.
    pub(super) async fn give_up(&self) -> Result<String, MoveError> {
        let sql = format!(
            "SELECT coalesce(switchyard.give_up({}, '{}', {}, {}), '')",
            literal(&self.turn.id),
            self.to.part,
            self.turn.term,
            literal(self.tenant.as_str())
        );
        let asked = self.to.client.client().query_one(&sql, &[]);
        let row = answered(self.to.at, ANSWER * 2, asked).await.map_err(turned)?;
        Ok(row.get(0))
    }

    /// Has the fence where the tenant was say where it is, for whoever is not told.
    pub(super) async fn point_there(&self) {
        let (id, tenant) = (literal(&self.turn.id), literal(self.tenant.as_str()));
        // The epoch is the one that has ended there.
        let sql = format!(
            "UPDATE switchyard.fence SET state = 'moved', moved_to = {}, epoch = greatest(epoch, {}),
                    changed_at = clock_timestamp()
             WHERE tenant_id = {tenant} AND move_id = {id} AND state = 'frozen' AND EXISTS (
                 SELECT FROM switchyard.moves WHERE move_id = {id} AND side = '{}' AND term = {})",
            literal(self.to.at.name.as_str()),
            self.epochs.1.saturating_sub(1),
            self.from.part,
            self.turn.term
        );
        let done = answered(self.from.at, ANSWER * 2, self.from.client.batch_execute(&sql)).await;
        if let Err(error) = done {
            tracing::warn!(tenant = %self.tenant, %error, "the fence does not say yet where the tenant has gone");
        }
    }

    pub(super) async fn unfreeze(&self) -> Result<(), MoveError> {
        let sql = format!(
            "SELECT switchyard.unfreeze({}, '{}', {}, {})",
            literal(&self.turn.id),
            self.from.part,
            self.turn.term,
            literal(self.tenant.as_str())
        );
        answered(self.from.at, ANSWER * 2, self.from.client.batch_execute(&sql)).await.map_err(turned)
    }

    /// Why the freezing has taken longer than it may, for people, where nobody was in the way.
    pub(super) fn slow_closing(&self, left: Duration) -> String {
        let slow = format!("the freezing took longer than {} ms", left.as_millis());
        match &self.closing {
            Some(Closing::ByRelation(_, why)) => {
                format!("{slow}: each table is closed by itself, since {why}")
            }
            _ => slow,
        }
    }

    /// Who holds the tenant's lock, for people.
    pub(super) async fn blocker(&self) -> String {
        let sql = "SELECT format('pid %s of %s, %s for %s ms', a.pid, a.usename, a.state,
                                 round(extract(epoch FROM clock_timestamp() - a.xact_start) * 1000))
                   FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
                   WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                     AND (l.classid::bigint << 32 | l.objid::bigint) = switchyard.move_key($1)
                   ORDER BY a.xact_start LIMIT 1";
        match self.from.client.query_opt(sql, &[&self.tenant.as_str()]).await {
            Ok(Some(row)) => row.get(0),
            _ => "it has ended by now".to_owned(),
        }
    }
}

/// What a shard answers, if it does in time.
pub(super) async fn answered<T>(
    at: &ShardAccess,
    limit: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, MoveError> {
    let done = tokio::time::timeout(limit, work).await;
    done.map_err(|_| at.silent(&format!("no answer within {} ms", limit.as_millis())))?.map_err(at.failed())
}

/// An error of a shard, as what it means.
pub(crate) fn turned(error: MoveError) -> MoveError {
    if error.code() == Some("TN010") { MoveError::Superseded } else { error }
}
