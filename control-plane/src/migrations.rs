//! The catalog's schema, step by step.

use aws_lc_rs::digest;
use switchyard_catalog::SCHEMA;
use tokio_postgres::Client;
use tracing::info;

/// The steps, in order. What is released is never edited: its checksum is in every catalog.
const STEPS: &[(&str, &str)] = &[
    ("catalog", include_str!("../migrations/0001_catalog.sql")),
    ("limits", include_str!("../migrations/0002_limits.sql")),
    ("operations", include_str!("../migrations/0003_operations.sql")),
    ("access", include_str!("../migrations/0004_access.sql")),
    ("service", include_str!("../migrations/0005_service.sql")),
    ("shard hosts", include_str!("../migrations/0006_shard_hosts.sql")),
    ("moves", include_str!("../migrations/0010_moves.sql")),
    ("leases", include_str!("../migrations/0012_leases.sql")),
    ("moves, further", include_str!("../migrations/0013_moves.sql")),
    ("sealed passwords", include_str!("../migrations/0020_sealed_passwords.sql")),
    ("notification key", include_str!("../migrations/0021_notification_key.sql")),
    ("move streams", include_str!("../migrations/0022_move_streams.sql")),
    ("moves without their source", include_str!("../migrations/0023_without_source.sql")),
    ("users of the console alone", include_str!("../migrations/0025_console_users.sql")),
    ("moves without their target", include_str!("../migrations/0026_without_target.sql")),
    ("moves whose loss is accepted", include_str!("../migrations/0027_accepted_loss.sql")),
];

/// How many steps there are.
pub const MIGRATIONS: usize = STEPS.len();

/// Key of the advisory lock under which one control plane at a time migrates: `swyd-mig` in ASCII.
const LOCK: i64 = 0x7377_7964_2d6d_6967;

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// PostgreSQL refused a step or could not be reached.
    #[error("migration of the catalog: {0}")]
    Postgres(#[from] tokio_postgres::Error),
    /// A step was applied in another form than the one we have.
    #[error("migration {number} of the catalog was applied in another form than this version has")]
    Checksum {
        /// Its number, from 1.
        number: i32,
    },
    /// The catalog knows more steps than we do.
    #[error("the catalog was made by a newer version: it has {found} migrations, this version {known}")]
    Newer {
        /// Steps applied.
        found: usize,
        /// Steps we have.
        known: usize,
    },
    /// Text would be kept in an encoding that cannot hold every tenant id.
    #[error("the catalog's database must have encoding UTF8, not {0}")]
    Encoding(String),
}

/// Applies the steps that are missing, all in one transaction. `client` has the catalog's schema
/// as its search path. Returns how many there were.
pub(crate) async fn migrate(client: &mut Client) -> Result<usize, MigrationError> {
    let transaction = client.transaction().await?;
    // Another control plane may be at it, and steps may take their time.
    transaction.batch_execute("SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = 0").await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    let encoding: String = transaction.query_one("SHOW server_encoding", &[]).await?.get(0);
    if encoding != "UTF8" {
        return Err(MigrationError::Encoding(encoding));
    }
    // Both may exist already, which PostgreSQL would tell us each time.
    transaction
        .batch_execute(&format!(
            "SET LOCAL client_min_messages = warning;
             CREATE SCHEMA IF NOT EXISTS {SCHEMA};
             CREATE TABLE IF NOT EXISTS migrations (
                 number     integer PRIMARY KEY,
                 name       text NOT NULL,
                 checksum   bytea NOT NULL,
                 applied_at timestamptz NOT NULL DEFAULT now()
             )"
        ))
        .await?;
    let applied = transaction.query("SELECT checksum FROM migrations ORDER BY number", &[]).await?;
    if applied.len() > STEPS.len() {
        return Err(MigrationError::Newer { found: applied.len(), known: STEPS.len() });
    }
    for (i, (name, sql)) in STEPS.iter().enumerate() {
        let number = i as i32 + 1;
        let checksum = digest::digest(&digest::SHA256, sql.as_bytes());
        match applied.get(i) {
            Some(row) if row.get::<_, &[u8]>(0) == checksum.as_ref() => {}
            Some(_) => return Err(MigrationError::Checksum { number }),
            None => {
                transaction.batch_execute(sql).await?;
                let record = "INSERT INTO migrations (number, name, checksum) VALUES ($1, $2, $3)";
                transaction.execute(record, &[&number, name, &checksum.as_ref()]).await?;
                info!(number, name, "migrated the catalog");
            }
        }
    }
    transaction.commit().await?;
    Ok(STEPS.len() - applied.len())
}
