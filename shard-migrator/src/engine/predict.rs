//! What can be told of a move before it is made.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Place, Work};
use crate::MoveError;
use crate::closing::{self, Closing};
use crate::inventory::{Inventory, Table};
use crate::preflight;
use crate::shape;

/// Round trips and commits that are timed; the median counts.
const SAMPLES: usize = 9;

/// Messages by way of the catalog that a pause holds: to hold, that it is done, to go on.
const MESSAGES: u32 = 3;

/// Round trips to the target in the last transaction, beside its commit: the changes, how far they reach, the
/// activation.
const LAST: u32 = 3;

/// Largest table, in bytes and with its partitions, that is counted when only a plan is asked for.
const COUNTED: i64 = 64 << 20;

/// Time of an answer, and of a commit with something in it.
struct Latency {
    round_trip: Duration,
    commit: Duration,
}

async fn median(client: &Client, sql: &str) -> Result<Duration, tokio_postgres::Error> {
    let mut took = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let began = Instant::now();
        client.batch_execute(sql).await?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    Ok(took[SAMPLES / 2])
}

impl Latency {
    async fn of(client: &Client) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            round_trip: median(client, "SELECT 1").await?,
            // A number of a transaction is all that it takes, and leaves no row.
            commit: median(client, "SELECT pg_current_xact_id()").await?,
        })
    }
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

impl Work<'_> {
    /// Rows and bytes of the tenant in each table, and whether they were counted. Who only asks gets a table that is small
    /// counted; all others are what the planner thinks, as counting would be felt by the neighbours.
    async fn sizes(&self, inventory: &Inventory) -> Result<Vec<(f64, f64, bool)>, MoveError> {
        let (source, filter) = (&self.source, self.scope.filter());
        let explain = |t: &Table| format!("EXPLAIN (FORMAT JSON) SELECT * FROM {}{filter}", t.quoted());
        let asked = inventory.tables.values().map(explain).collect::<Vec<_>>().join(";");
        let told = source.client.simple_query(&asked).await.map_err(source.at.failed())?;
        let told = told.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default()),
            _ => None,
        });
        let mut sizes = Vec::new();
        for (table, plan) in inventory.tables.values().zip(told) {
            let plan: Value = serde_json::from_str(plan).unwrap_or_default();
            let number = |field: &str| plan[0]["Plan"][field].as_f64().unwrap_or(0.0);
            let thought = (number("Plan Rows"), number("Plan Rows") * number("Plan Width"), false);
            sizes.push(match self.job.kind.as_str() {
                "plan" => self.count(table).await?.unwrap_or(thought),
                _ => thought,
            });
        }
        Ok(sizes)
    }

    /// The same of a table that is small enough to be counted.
    async fn count(&self, table: &Table) -> Result<Option<(f64, f64, bool)>, MoveError> {
        let (source, name, filter) = (&self.source, table.quoted(), self.scope.filter());
        let failed = source.at.failed();
        // Of a table without partitions, the tree is empty.
        let sql = "SELECT greatest(pg_table_size($1::text::regclass),
                                   (SELECT sum(pg_table_size(relid)) FROM pg_partition_tree($1::text::regclass)))::int8";
        let size: i64 = source.client.query_one(sql, &[&name]).await.map_err(failed)?.get(0);
        if size > COUNTED {
            return Ok(None);
        }
        let sql =
            format!("SELECT count(*), coalesce(sum(pg_column_size(t.*)), 0)::int8 FROM {name} t{filter}");
        let row = source.client.client().query_one(&sql, &[]).await.map_err(failed)?;
        Ok(Some((row.get::<_, i64>(0) as f64, row.get::<_, i64>(1) as f64, true)))
    }

    /// How much there is, how long it may take, and the pause.
    pub(super) async fn estimate(
        &mut self,
        inventory: &Inventory,
        found: &[preflight::Finding],
    ) -> Result<Value, MoveError> {
        let (mut estimates, mut found) = (std::collections::HashMap::new(), found.to_vec());
        let mut tables = Vec::new();
        let (mut all_rows, mut all_bytes) = (0.0, 0.0);
        let sizes = self.sizes(inventory).await?;
        for (table, (rows, bytes, counted)) in inventory.tables.values().zip(sizes) {
            estimates.insert(table.plain(), (rows as u64, (bytes / rows.max(1.0)) as u64));
            all_rows += rows;
            all_bytes += bytes;
            tables.push(json!({
                "table": table.plain(), "rows": rows as u64, "bytes": bytes as u64, "counted": counted,
            }));
        }
        let pause = match self.job.kind.as_str() {
            // Nobody waits for an answer, and many may be under way.
            "move" => Value::Null,
            _ => self.predicted_pause(&mut found).await?,
        };
        self.estimates = estimates;
        // Of what copies with an index or two have been seen to reach on small machines.
        let seconds = all_bytes / 20e6 + 0.03 * tables.len() as f64 + 0.3;
        let mut plan = json!({
            "model": self.scope.model,
            "tables": tables,
            "rows": all_rows as u64,
            "bytes": all_bytes as u64,
            "estimated_s": (seconds * 10.0).round() / 10.0,
            "findings": found,
        });
        if let (Value::Object(plan), Value::Object(pause)) = (&mut plan, pause) {
            plan.extend(pause);
        }
        Ok(plan)
    }

    /// How long clients may have to wait, from what round trips and commits take now.
    async fn predicted_pause(&self, found: &mut Vec<preflight::Finding>) -> Result<Value, MoveError> {
        let (source, target) = (&self.source, &self.target);
        let (oldest, usual) = transactions(source).await?;
        let catalog = self.journal.commit_latency(async |c| median(c, "SELECT pg_current_xact_id()").await);
        let catalog = catalog.await?;
        let here = Latency::of(&source.client).await.map_err(source.at.failed())?;
        let there = Latency::of(&target.client).await.map_err(target.at.failed())?;
        shape::prepare(&source.client, &source.at, &self.scope).await?;
        let form = median(&source.client, shape::ASK).await.map_err(source.at.failed())?;
        let closing = match closing::how(&source.client, &source.at, &self.scope).await? {
            None => Duration::ZERO,
            Some(Closing::AtOnce(_)) => here.round_trip,
            Some(Closing::ByRelation(_, why)) => {
                let text = format!("clients wait until each of its tables is closed by itself, since {why}");
                found.push(preflight::Finding::note(&source.at.name, text));
                form * closing::BY_RELATION
            }
        };
        let (orders, freeze) = (catalog * MESSAGES, here.round_trip + here.commit + form);
        let apply = here.round_trip + there.round_trip * LAST + there.commit;
        let all = orders + freeze + closing + apply + usual;
        let budget = Duration::from_millis(self.job.options.pause_budget_ms);
        if all > budget {
            let text = format!(
                "the predicted pause of {} ms is above the budget of {}: attempts at the cutover will be given up",
                ms(all),
                budget.as_millis()
            );
            found.push(preflight::Finding::note(&source.at.name, text));
        }
        Ok(json!({
            "predicted_pause_ms": ms(all),
            "pause_parts_ms": {
                "orders": ms(orders), "freeze": ms(freeze), "closing": ms(closing), "apply": ms(apply), "open_transactions": ms(usual),
            },
            "oldest_transaction_s": oldest,
        }))
    }
}

/// Seconds of the oldest transaction on the shard's database, and how long those that are open have been, usually: for
/// so long clients would have to be waited for.
async fn transactions(place: &Place) -> Result<(f64, Duration), MoveError> {
    let sql = "SELECT coalesce(max(age), 0)::float8, coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY age), 0)::float8
               FROM (SELECT extract(epoch FROM clock_timestamp() - xact_start) AS age
                     FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                       AND backend_type = 'client backend' AND state <> 'idle' AND xact_start IS NOT NULL) open";
    let row = place.client.query_one(sql, &[]).await.map_err(place.at.failed())?;
    Ok((row.get(0), Duration::from_secs_f64(row.get::<_, f64>(1).max(0.0))))
}
