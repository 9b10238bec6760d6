//! Changes of the source, applied to the target exactly once.
//!
//! Every change must find what the source's found: one row to update or delete, none in the way of an
//! insert. How far the target has come is written in the same transaction.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use futures_util::future::{join, join_all, join3};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use crate::MoveError;
use crate::inventory::{Inventory, Table};
use crate::scope::{Scope, ident, literal};
use crate::shard::ShardAccess;
use crate::stream::{Change, Relation, Row, Snapshot, Transaction, Value};

/// Statements in flight at a time.
const PIPELINE: usize = 256;

/// Prepared statements kept.
const STATEMENTS: usize = 500;

/// A value in text form, for a parameter of any type.
#[derive(Debug)]
struct Text(Option<Bytes>);

impl ToSql for Text {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match &self.0 {
            None => Ok(IsNull::Yes),
            Some(text) => {
                out.extend_from_slice(text);
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}

/// Whose move this is, and whose turn.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    /// The move.
    pub(crate) id: String,
    /// The takeover.
    pub(crate) term: i64,
}

/// The writer of one side of a move.
pub(crate) struct Applier {
    client: Client,
    /// Of the process that serves it on the shard.
    pub(crate) pid: i32,
    pub(crate) at: ShardAccess,
    scope: Scope,
    tables: HashMap<(String, String), Table>,
    pub(crate) turn: Turn,
    /// The side of the move that is written: `target`, or `source` when the stream is reversed.
    pub(crate) side: &'static str,
    statements: HashMap<String, Statement>,
    /// What the copy has seen already.
    pub(crate) snapshot: Option<Snapshot>,
    /// End of the last transaction that is applied.
    pub(crate) applied: u64,
}

/// One statement to run, and how many rows it must touch, if that is known.
struct Deed {
    sql: String,
    params: Vec<Text>,
    rows: Option<u64>,
    what: String,
}

impl Applier {
    pub(crate) async fn new(
        at: &ShardAccess,
        scope: &Scope,
        inventory: &Inventory,
        turn: Turn,
        side: &'static str,
    ) -> Result<Self, MoveError> {
        let (client, pid) = writer(at).await?;
        Ok(Self {
            client,
            pid,
            at: at.clone(),
            scope: scope.clone(),
            tables: inventory.tables.clone().into_iter().collect(),
            turn,
            side,
            statements: HashMap::new(),
            snapshot: None,
            applied: 0,
        })
    }

    /// Connects anew after a failure, and reads what was kept of what was written before it.
    pub(crate) async fn reconnect(&mut self) -> Result<(), MoveError> {
        (self.client, self.pid) = writer(&self.at).await?;
        self.statements.clear();
        let sql = "SELECT applied::text FROM switchyard.moves WHERE move_id = $1 AND side = $2 AND term = $3";
        let row = self
            .client
            .query_opt(sql, &[&self.turn.id, &self.side, &self.turn.term])
            .await
            .map_err(self.at.failed())?;
        let applied = row.ok_or(MoveError::Superseded)?;
        self.applied = self.applied.max(parse_lsn(applied.get(0)).unwrap_or(0));
        Ok(())
    }

    /// Whether the transaction is to be applied: neither copied nor applied before.
    pub(crate) fn is_due(&self, transaction: &Transaction) -> bool {
        transaction.end > self.applied && self.snapshot.as_ref().is_none_or(|s| !s.sees(transaction.xid))
    }

    /// Applies transactions in one of the target's. `last` runs in it behind all of them.
    pub(crate) async fn apply(&mut self, batch: &[Transaction], last: &[String]) -> Result<(), MoveError> {
        let mut deeds = Vec::new();
        let mut end = self.applied;
        for transaction in batch {
            if self.is_due(transaction) {
                for (relation, change) in &transaction.changes {
                    deeds.extend(self.deed(relation, change)?);
                }
            }
            end = end.max(transaction.end);
        }
        self.prepare(&deeds).await?;
        match self.write(&deeds, end, last).await {
            Ok(()) => {
                self.client.batch_execute("COMMIT").await.map_err(self.at.failed())?;
                self.applied = end;
                Ok(())
            }
            Err(error) => {
                let _ = self.client.batch_execute("ROLLBACK").await;
                Err(error)
            }
        }
    }

    /// Does everything but commit, and waits for the server as rarely as can be: clients may be waiting.
    async fn write(&self, deeds: &[Deed], end: u64, last: &[String]) -> Result<(), MoveError> {
        let failed = self.at.failed();
        let begin = async || self.client.batch_execute("BEGIN").await.map_err(failed);
        // The last part goes out together with what follows it. Futures are polled, and so sent, in order; all are
        // waited for, as what fails first makes the others fail, and is what counts.
        let mut parts = deeds.chunks(PIPELINE);
        let tail = parts.next_back().unwrap_or_default();
        let close = async || {
            let mut sql = self.noting(end);
            last.iter().for_each(|more| sql = format!("{sql}; {more}"));
            self.client.simple_query(&sql).await.map_err(failed)
        };
        let closed = if parts.len() == 0 {
            let (begun, run, closed) = join3(begin(), self.run(tail), close()).await;
            begun.and(run).and(closed)?
        } else {
            begin().await?;
            for part in parts {
                self.run(part).await?;
            }
            let (run, closed) = join(self.run(tail), close()).await;
            run.and(closed)?
        };
        // The first answer is that of the note.
        match closed
            .iter()
            .find_map(|m| if let SimpleQueryMessage::CommandComplete(n) = m { Some(*n) } else { None })
        {
            Some(1) => Ok(()),
            _ => Err(MoveError::Superseded),
        }
    }

    /// Runs statements, all in one flight.
    async fn run(&self, deeds: &[Deed]) -> Result<(), MoveError> {
        let running = deeds.iter().map(async |deed| {
            let statement = &self.statements[&deed.sql];
            let params = deed.params.iter().map(|p| p as &(dyn ToSql + Sync));
            let touched = self.client.execute_raw(statement, params).await.map_err(self.at.failed())?;
            match deed.rows {
                Some(rows) if rows != touched => {
                    Err(MoveError::Differ(format!("{} touched {touched} rows", deed.what)))
                }
                _ => Ok(()),
            }
        });
        join_all(running).await.into_iter().collect()
    }

    /// Says how far this side has come, which only the mover whose turn it is can.
    fn noting(&self, end: u64) -> String {
        format!(
            "UPDATE switchyard.moves SET applied = {} WHERE move_id = {} AND side = '{}' AND term = {}",
            lsn(end),
            literal(&self.turn.id),
            self.side,
            self.turn.term
        )
    }

    async fn note(&self, end: u64) -> Result<(), MoveError> {
        match self.client.execute(&self.noting(end), &[]).await.map_err(self.at.failed())? {
            1 => Ok(()),
            _ => Err(MoveError::Superseded),
        }
    }

    /// Counts everything up to `end` as applied.
    pub(crate) async fn begin_at(&mut self, end: u64) -> Result<(), MoveError> {
        self.note(end).await?;
        self.applied = end;
        Ok(())
    }

    async fn prepare(&mut self, deeds: &[Deed]) -> Result<(), MoveError> {
        if self.statements.len() > STATEMENTS {
            self.statements.clear();
        }
        for deed in deeds {
            if !self.statements.contains_key(&deed.sql) {
                let statement = self.client.prepare(&deed.sql).await.map_err(self.at.failed())?;
                self.statements.insert(deed.sql.clone(), statement);
            }
        }
        Ok(())
    }

    fn deed(&self, relation: &Relation, change: &Change) -> Result<Option<Deed>, MoveError> {
        let Some(table) = self.tables.get(&(relation.schema.clone(), relation.name.clone())) else {
            return Ok(None);
        };
        let values = |row: &Row| -> Vec<(String, Value)> {
            relation.columns.iter().map(|(name, _)| name.clone()).zip(row.iter().cloned()).collect()
        };
        let deed = match change {
            Change::Insert { new } => Some(self.insert(table, &values(new))),
            Change::Update { old, new } => self.update(table, old.as_ref().map(values), &values(new))?,
            Change::Delete { old } => Some(self.delete(table, &values(old))?),
        };
        Ok(deed)
    }

    fn insert(&self, table: &Table, new: &[(String, Value)]) -> Deed {
        let names: Vec<_> = new.iter().map(|(name, _)| ident(name)).collect();
        let places: Vec<_> = (1..=new.len()).map(|n| format!("${n}")).collect();
        Deed {
            sql: format!(
                "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
                table.quoted(),
                names.join(", "),
                places.join(", ")
            ),
            params: new.iter().map(|(_, value)| text(value)).collect(),
            rows: Some(1),
            what: format!("an insert into {}", table.plain()),
        }
    }

    fn update(
        &self,
        table: &Table,
        old: Option<Vec<(String, Value)>>,
        new: &[(String, Value)],
    ) -> Result<Option<Deed>, MoveError> {
        let mut params = Vec::new();
        let mut sets = Vec::new();
        let key_changed = old.as_ref().is_some_and(|old| {
            table.key.iter().any(|k| value_of(old, k).is_some_and(|v| Some(v) != value_of(new, k)))
        });
        for (name, value) in new {
            let column = table.columns.iter().find(|c| c.name == *name);
            // An identity column can only be set anew by a new row.
            let fixed = column.is_some_and(|c| c.identity_always);
            let same_key = table.key.contains(name) && !key_changed;
            if *value == Value::Unchanged || fixed || same_key {
                if fixed && key_changed && table.key.contains(name) {
                    let what = format!("the identity key of a row of {} was changed", table.plain());
                    return Err(MoveError::Drift(what));
                }
                continue;
            }
            params.push(text(value));
            sets.push(format!("{} = ${}", ident(name), params.len()));
        }
        if sets.is_empty() {
            return Ok(None);
        }
        let condition = self.condition(table, old.as_deref().unwrap_or(new), &mut params)?;
        Ok(Some(Deed {
            sql: format!("UPDATE {} SET {} WHERE {condition}", table.quoted(), sets.join(", ")),
            params,
            rows: Some(1),
            what: format!("an update of {}", table.plain()),
        }))
    }

    fn delete(&self, table: &Table, old: &[(String, Value)]) -> Result<Deed, MoveError> {
        let mut params = Vec::new();
        let condition = self.condition(table, old, &mut params)?;
        // Where the key does not tell the tenant, a neighbour's deletion comes here too, and finds nothing.
        let ours = self.scope.column().is_none_or(|column| table.key.iter().any(|k| k == column));
        Ok(Deed {
            sql: format!("DELETE FROM {} WHERE {condition}", table.quoted()),
            params,
            rows: ours.then_some(1),
            what: format!("a delete from {}", table.plain()),
        })
    }

    /// The row that a key names, and that it is the tenant's.
    fn condition(
        &self,
        table: &Table,
        values: &[(String, Value)],
        params: &mut Vec<Text>,
    ) -> Result<String, MoveError> {
        let mut parts = Vec::new();
        for column in &table.key {
            match value_of(values, column) {
                Some(value @ Value::Text(_)) => {
                    params.push(text(value));
                    parts.push(format!("{} = ${}", ident(column), params.len()));
                }
                _ => {
                    let what = format!("a change of {} came without its key", table.plain());
                    return Err(MoveError::Drift(what));
                }
            }
        }
        if let Some(column) = self.scope.column()
            && !table.key.iter().any(|k| k == column)
        {
            parts.push(format!("{} = {}", ident(column), literal(self.scope.tenant.as_str())));
        }
        Ok(parts.join(" AND "))
    }
}

/// A session that writes, and its process id on the shard.
async fn writer(at: &ShardAccess) -> Result<(Client, i32), MoveError> {
    let client = at.connect().await?;
    // Neither triggers nor foreign keys fire, and what is committed stays.
    client
        .batch_execute("SET session_replication_role = replica; SET synchronous_commit = on")
        .await
        .map_err(at.failed())?;
    let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.map_err(at.failed())?.get(0);
    Ok((client, pid))
}

fn value_of<'v>(values: &'v [(String, Value)], column: &str) -> Option<&'v Value> {
    values.iter().find(|(name, _)| name == column).map(|(_, value)| value)
}

fn text(value: &Value) -> Text {
    match value {
        Value::Text(text) => Text(Some(text.clone())),
        Value::Null | Value::Unchanged => Text(None),
    }
}

/// A position in the log, as a literal.
pub(crate) fn lsn(at: u64) -> String {
    format!("'{:X}/{:X}'::pg_lsn", at >> 32, at & 0xffff_ffff)
}

/// A position in the log, from its text.
pub(crate) fn parse_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}
