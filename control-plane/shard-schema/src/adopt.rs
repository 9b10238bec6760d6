//! Giving the tenant column to tables of a database that had one tenant, while it is in use.
//!
//! A column that is new gets its value for all rows at once, without a rewrite. One that is there and has
//! rows without a value is filled in batches, each a transaction of its own: a run that was interrupted goes
//! on where it stopped, as what is filled is not looked for any more.

use std::time::Duration;

use serde::Serialize;
use tokio_postgres::{Client, GenericClient};

use crate::{SchemaError, quote_ident, quote_literal};

/// What is to be done to each table.
#[derive(Debug, Clone)]
pub struct AdoptOptions {
    /// The tenant column.
    pub column: String,
    /// The tenant whose rows they become.
    pub tenant: String,
    /// Pages of a table that one batch looks at. Default 500, which is 4 MB.
    pub batch_pages: u32,
    /// Pause between batches. Default 10 ms.
    pub pause: Duration,
    /// Longest wait for a lock. Default 5 s.
    pub lock_timeout: Duration,
}

impl AdoptOptions {
    /// With the defaults.
    pub fn new(column: &str, tenant: &str) -> Self {
        Self {
            column: column.to_owned(),
            tenant: tenant.to_owned(),
            batch_pages: 500,
            pause: Duration::from_millis(10),
            lock_timeout: Duration::from_secs(5),
        }
    }
}

/// How far a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Pages looked at.
    pub pages: u64,
    /// Pages in all, when it began.
    pub of: u64,
    /// Rows that got a value.
    pub rows: u64,
}

/// What became of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Adopted {
    /// The table.
    pub table: String,
    /// Whether the column was added.
    pub added: bool,
    /// Rows that got a value one by one.
    pub filled: u64,
    /// The unique index on tenant and key that was made, if there is a key and had been none.
    pub index: Option<String>,
}

/// Tables of the application that lack the column, or allow it to be null, by name.
///
/// # Errors
/// If PostgreSQL refuses.
pub async fn candidates(client: &impl GenericClient, column: &str) -> Result<Vec<String>, SchemaError> {
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't' AND {}
            AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = $1
                            AND NOT a.attisdropped AND a.attnotnull)
          ORDER BY 1",
        crate::tables::NOT_OURS
    );
    Ok(client.query(&sql, &[&column]).await?.iter().map(|row| row.get(0)).collect())
}

/// Gives the column to one table, `schema.name` quoted where it must be. `told` hears of each batch.
///
/// # Errors
/// If there is no such table, or PostgreSQL refuses; what was done until then stays, and need not be done again.
pub async fn adopt(
    client: &mut Client,
    table: &str,
    options: &AdoptOptions,
    told: &mut (dyn FnMut(Progress) + Send),
) -> Result<Adopted, SchemaError> {
    let (name, found) = look(client, table, &options.column).await?;
    client
        .batch_execute(&format!(
            "SET lock_timeout = {}; SET statement_timeout = 0",
            options.lock_timeout.as_millis()
        ))
        .await?;
    let column = quote_ident(&options.column);
    let tenant = quote_literal(&options.tenant);
    let mut adopted = Adopted { table: name.clone(), added: false, filled: 0, index: None };
    match found {
        Found::Missing => {
            // A constant default is kept beside the table: no row is touched.
            let sql = format!("ALTER TABLE {name} ADD COLUMN {column} text NOT NULL DEFAULT {tenant}");
            client.batch_execute(&sql).await?;
            adopted.added = true;
        }
        Found::Nullable { partitioned: true } => {
            let text = format!("{name} is partitioned: adopt its partitions one by one, then it");
            if has_null(client, &name, &column).await? {
                return Err(SchemaError::Refused(text));
            }
            client.batch_execute(&format!("ALTER TABLE {name} ALTER COLUMN {column} SET NOT NULL")).await?;
        }
        Found::Nullable { partitioned: false } => {
            // First what is written from now on.
            let sql = format!("ALTER TABLE {name} ALTER COLUMN {column} SET DEFAULT {tenant}");
            client.batch_execute(&sql).await?;
            adopted.filled = fill(client, &name, &column, options, told).await?;
            not_null(client, &name, &column).await?;
        }
        Found::Ready => {}
    }
    adopted.index = index(client, &name, &options.column).await?;
    Ok(adopted)
}

enum Found {
    Missing,
    Nullable { partitioned: bool },
    Ready,
}

async fn look(client: &Client, table: &str, column: &str) -> Result<(String, Found), SchemaError> {
    // With public in the path, as people say names.
    let sql = "SELECT c.oid::regclass::text, format('%I.%I', n.nspname, c.relname), c.relkind = 'p', a.attnotnull
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = $2 AND NOT a.attisdropped
                WHERE c.relkind IN ('r', 'p')
                  AND ($1 = format('%I.%I', n.nspname, c.relname) OR n.nspname = 'public' AND $1 = quote_ident(c.relname))";
    let row = client
        .query_opt(sql, &[&table, &column])
        .await?
        .ok_or_else(|| SchemaError::Refused(format!("there is no table {table}")))?;
    let found = match row.get::<_, Option<bool>>(3) {
        None => Found::Missing,
        Some(false) => Found::Nullable { partitioned: row.get(2) },
        Some(true) => Found::Ready,
    };
    Ok((row.get(1), found))
}

async fn has_null(client: &Client, name: &str, column: &str) -> Result<bool, SchemaError> {
    let sql = format!("SELECT EXISTS (SELECT FROM {name} WHERE {column} IS NULL)");
    Ok(client.query_one(&sql, &[]).await?.get(0))
}

/// Page by page, so that no batch looks at what another has done.
async fn fill(
    client: &mut Client,
    name: &str,
    column: &str,
    options: &AdoptOptions,
    told: &mut (dyn FnMut(Progress) + Send),
) -> Result<u64, SchemaError> {
    let sql = format!(
        "SELECT pg_relation_size({}::regclass) / current_setting('block_size')::int8",
        quote_literal(name)
    );
    let pages: i64 = client.query_one(&sql, &[]).await?.get(0);
    let (pages, batch) = (u64::try_from(pages).unwrap_or(0), u64::from(options.batch_pages.max(1)));
    let mut rows = 0;
    let mut at = 0;
    while at < pages {
        let to = at + batch;
        let sql = format!(
            "UPDATE {name} SET {column} = {} WHERE {column} IS NULL AND ctid >= '({at},0)'::tid AND ctid < '({to},0)'::tid",
            quote_literal(&options.tenant)
        );
        rows += client.execute(&sql, &[]).await?;
        at = to;
        told(Progress { pages: at.min(pages), of: pages, rows });
        tokio::time::sleep(options.pause).await;
    }
    // New versions of rows, made by others while we were on our way, may stand behind where we looked.
    let rest =
        format!("UPDATE {name} SET {column} = {} WHERE {column} IS NULL", quote_literal(&options.tenant));
    Ok(rows + client.execute(&rest, &[]).await?)
}

/// NOT NULL without a scan under an exclusive lock: PostgreSQL believes a valid constraint.
async fn not_null(client: &Client, name: &str, column: &str) -> Result<(), SchemaError> {
    let check = quote_ident("switchyard_adopt_not_null");
    let there = "SELECT count(*) FROM pg_constraint WHERE conname = 'switchyard_adopt_not_null' AND conrelid = $1::text::regclass";
    if client.query_one(there, &[&name]).await?.get::<_, i64>(0) == 0 {
        let sql = format!("ALTER TABLE {name} ADD CONSTRAINT {check} CHECK ({column} IS NOT NULL) NOT VALID");
        client.batch_execute(&sql).await?;
    }
    client.batch_execute(&format!("ALTER TABLE {name} VALIDATE CONSTRAINT {check}")).await?;
    client.batch_execute(&format!("ALTER TABLE {name} ALTER COLUMN {column} SET NOT NULL")).await?;
    client.batch_execute(&format!("ALTER TABLE {name} DROP CONSTRAINT {check}")).await?;
    Ok(())
}

/// A unique index on tenant and primary key, where the key lacks the tenant: what policies search
/// by, and what the primary key may be exchanged for.
async fn index(client: &Client, name: &str, column: &str) -> Result<Option<String>, SchemaError> {
    let sql = "SELECT n.nspname::text, c.relname::text, c.relkind = 'p',
                      (SELECT array_agg(quote_ident(a.attname) ORDER BY k.n)
                         FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(att, n)
                         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.att),
                      EXISTS (SELECT FROM pg_index x JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = x.indkey[0]
                               WHERE x.indrelid = c.oid AND a.attname = $2 AND x.indisvalid)
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
                WHERE c.oid = $1::text::regclass";
    let Some(row) = client.query_opt(sql, &[&name, &column]).await? else { return Ok(None) };
    let (schema, table, partitioned): (&str, &str, bool) = (row.get(0), row.get(1), row.get(2));
    let keys: Vec<String> = row.get(3);
    if row.get(4) || partitioned {
        return Ok(None);
    }
    // A name of at most 63 bytes, as longer ones would be cut.
    let mut stem = table.to_owned();
    while stem.len() > 50 {
        stem.pop();
    }
    let index = format!("{stem}_tenant_key");
    // One that a former attempt has left half made is in the way.
    let drop = format!("DROP INDEX CONCURRENTLY IF EXISTS {}.{}", quote_ident(schema), quote_ident(&index));
    client.batch_execute(&drop).await?;
    let sql = format!(
        "CREATE UNIQUE INDEX CONCURRENTLY {} ON {name} ({}, {})",
        quote_ident(&index),
        quote_ident(column),
        keys.join(", ")
    );
    client.batch_execute(&sql).await?;
    Ok(Some(index))
}
