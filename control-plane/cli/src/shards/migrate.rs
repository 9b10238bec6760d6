//! `switchyard schema apply`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::{Value, json};
use switchyard_shard_schema::connect::Target;
use switchyard_shard_schema::migrate::{self, Applied, Limits, Migration};
use tokio::task::JoinSet;

use super::schema::bar;
use super::targets::{Found, connect};
use crate::args::OutputFormat;
use crate::failure::{Failure, Outcome};
use crate::output;

#[derive(Args)]
pub(super) struct ApplyArgs {
    /// The file of SQL. It runs in one transaction on each target, so it may not hold what cannot.
    file: PathBuf,
    /// Run it for every schema whose name is LIKE this, with that schema first in the search path: where schemas
    /// are the tenants.
    #[arg(long, value_name = "PATTERN")]
    schemas: Option<String>,
    /// How many targets at once, behind the first.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Longest wait for a lock, in milliseconds.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    lock_timeout_ms: u64,
    /// Longest time of a statement, in milliseconds; 0 is for ever.
    #[arg(long, default_value_t = 0)]
    statement_timeout_ms: u64,
    /// Stop behind the first target, to look at it.
    #[arg(long)]
    canary_only: bool,
}

struct Place {
    shard: Target,
    schema: String,
}

/// Runs it on one target, then on the others; what fails does not hold up the rest, and nothing
/// begins once something has failed.
pub(super) async fn apply(found: &Found, args: &ApplyArgs, form: OutputFormat) -> Outcome {
    let name = args.file.file_name().and_then(|n| n.to_str()).context("the file has no name")?.to_owned();
    let sql = std::fs::read_to_string(&args.file).with_context(|| args.file.display().to_string())?;
    let migration = Arc::new(Migration { name, sql });
    let limits = Limits {
        lock_timeout: Duration::from_millis(args.lock_timeout_ms),
        statement_timeout: Duration::from_millis(args.statement_timeout_ms),
    };
    let mut places = Vec::new();
    for shard in &found.shards {
        let schemas = match &args.schemas {
            None => vec![String::new()],
            Some(pattern) => migrate::schemas(&*connect(shard).await?, pattern).await?,
        };
        places.extend(schemas.into_iter().map(|schema| Place { shard: shard.clone(), schema }));
    }
    let progress = bar(&migration.name);
    progress.set_length(places.len() as u64);
    let mut rows = Vec::new();
    let mut waiting = places.into_iter();
    if let Some(first) = waiting.next() {
        rows.push(one(&first, &migration, limits).await);
        progress.inc(1);
    }
    let mut running = JoinSet::new();
    let mut failed = rows.iter().any(is_failure);
    let mut stopped = 0;
    for place in waiting {
        while running.len() >= usize::from(args.parallel)
            && let Some(done) = running.join_next().await
        {
            let row = done.context("a target's task")?;
            failed |= is_failure(&row);
            rows.push(row);
            progress.inc(1);
        }
        if failed || args.canary_only {
            stopped += 1;
            continue;
        }
        let migration = migration.clone();
        running.spawn(async move { one(&place, &migration, limits).await });
    }
    while let Some(done) = running.join_next().await {
        rows.push(done.context("a target's task")?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    let failures = rows.iter().filter(|row| is_failure(row)).count();
    match form {
        OutputFormat::Json => output::json(&rows.into())?,
        OutputFormat::Table => output::table(
            &[("SHARD", "shard"), ("SCHEMA", "schema"), ("STATE", "state"), ("ERROR", "error")],
            &rows,
        )?,
    }
    if failures > 0 {
        let text =
            format!("{failures} targets failed, {stopped} were not begun; run it again when it is mended");
        return Err(Failure::Error(anyhow!(text)));
    }
    if stopped > 0 {
        output::line(&format!("{stopped} targets were not begun"))?;
    }
    Ok(())
}

fn is_failure(row: &Value) -> bool {
    row["state"] == "failed"
}

async fn one(place: &Place, migration: &Migration, limits: Limits) -> Value {
    let done = async {
        let mut client = connect(&place.shard).await?;
        anyhow::Ok(migrate::apply(&mut client, &place.schema, migration, limits).await?)
    };
    let schema = (!place.schema.is_empty()).then_some(&place.schema);
    match done.await {
        Ok(Applied::Now) => json!({ "shard": place.shard.name, "schema": schema, "state": "applied" }),
        Ok(Applied::Before) => json!({ "shard": place.shard.name, "schema": schema, "state": "was applied" }),
        Err(error) => {
            json!({ "shard": place.shard.name, "schema": schema, "state": "failed", "error": format!("{error:#}") })
        }
    }
}
