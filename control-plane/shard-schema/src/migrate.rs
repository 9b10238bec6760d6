//! Migrations of the application, on every shard, and in every schema where schemas are the tenants.
//!
//! A migration is a file of SQL. On each target it runs in one transaction together with the row in
//! `switchyard.migrations` that says so: a run that was interrupted goes on where it stopped.

use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use serde::Serialize;
use tokio_postgres::{Client, GenericClient};

use crate::{SchemaError, quote_ident};

/// A file of SQL.
#[derive(Debug, Clone)]
pub struct Migration {
    /// Its name, by which it is known on the targets: the file's, without its directory.
    pub name: String,
    /// The SQL.
    pub sql: String,
}

/// How long it may take on one target.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For one lock. Default 5 s.
    pub lock_timeout: Duration,
    /// For one statement; 0 is for ever. Default 0.
    pub statement_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { lock_timeout: Duration::from_secs(5), statement_timeout: Duration::ZERO }
    }
}

/// What became of it on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Applied {
    /// It ran.
    Now,
    /// It had run before.
    Before,
}

impl Migration {
    /// What tells that a target has had this very text.
    fn checksum(&self) -> Vec<u8> {
        digest::digest(&digest::SHA256, self.sql.as_bytes()).as_ref().to_owned()
    }
}

/// The schemas whose name matches `pattern`, as LIKE has it, in order.
///
/// # Errors
/// If PostgreSQL refuses.
pub async fn schemas(client: &impl GenericClient, pattern: &str) -> Result<Vec<String>, SchemaError> {
    let sql = "SELECT nspname::text FROM pg_namespace
                WHERE nspname LIKE $1 AND nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'switchyard')
                ORDER BY 1";
    Ok(client.query(sql, &[&pattern]).await?.iter().map(|row| row.get(0)).collect())
}

/// What has run on this shard for this schema (empty for all tenants at once): names, in order.
///
/// # Errors
/// If the schema is not installed, or PostgreSQL refuses.
pub async fn history(client: &impl GenericClient, schema: &str) -> Result<Vec<String>, SchemaError> {
    if crate::install::status(client).await?.is_none() {
        return Err(SchemaError::Missing);
    }
    let sql = "SELECT name FROM switchyard.migrations WHERE target = $1 ORDER BY applied_at, name";
    Ok(client.query(sql, &[&schema]).await?.iter().map(|row| row.get(0)).collect())
}

/// Runs the migration for one schema, or for all tenants at once where `schema` is empty. The
/// search path is that schema and `public`.
///
/// # Errors
/// If another text of the same name has run, the schema is not installed, or PostgreSQL refuses;
/// then nothing has changed.
pub async fn apply(
    client: &mut Client,
    schema: &str,
    migration: &Migration,
    limits: Limits,
) -> Result<Applied, SchemaError> {
    if crate::install::status(client).await?.is_none() {
        return Err(SchemaError::Missing);
    }
    let began = Instant::now();
    let transaction = client.transaction().await?;
    let path = match schema {
        "" => "\"$user\", public".to_owned(),
        schema => format!("{}, public", quote_ident(schema)),
    };
    transaction
        .batch_execute(&format!(
            "SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}; SET LOCAL search_path = {path}",
            limits.lock_timeout.as_millis(),
            limits.statement_timeout.as_millis()
        ))
        .await?;
    // Two who run it at once: the second waits here, and finds it done.
    let claim = "INSERT INTO switchyard.migrations (target, name, checksum, took_ms) VALUES ($1, $2, $3, 0)
                 ON CONFLICT DO NOTHING";
    let checksum = migration.checksum();
    if transaction.execute(claim, &[&schema, &migration.name, &checksum]).await? == 0 {
        let same = "SELECT checksum = $3 FROM switchyard.migrations WHERE target = $1 AND name = $2";
        let same = transaction.query_one(same, &[&schema, &migration.name, &checksum]).await?;
        transaction.rollback().await?;
        return match same.get(0) {
            true => Ok(Applied::Before),
            false => Err(SchemaError::Refused(format!(
                "another text of the name {} has run here; give a new migration a new name",
                migration.name
            ))),
        };
    }
    let xid = "SELECT pg_current_xact_id()::text";
    let before: String = transaction.query_one(xid, &[]).await?.get(0);
    transaction.batch_execute(&migration.sql).await?;
    if transaction.query_one(xid, &[]).await?.get::<_, String>(0) != before {
        let text = "the file ends the transaction that it runs in; what it did stays, and is not on record as a whole";
        return Err(SchemaError::Refused(text.to_owned()));
    }
    let took = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
    // Whatever the file has set.
    transaction.batch_execute("RESET ROLE; SET LOCAL search_path = pg_catalog, pg_temp").await?;
    let note = "UPDATE switchyard.migrations SET took_ms = $3 WHERE target = $1 AND name = $2";
    transaction.execute(note, &[&schema, &migration.name, &took]).await?;
    transaction.commit().await?;
    Ok(Applied::Now)
}
