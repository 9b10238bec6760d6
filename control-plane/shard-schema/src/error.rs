//! What can go wrong on a shard.

/// Why something could not be done on a shard.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// PostgreSQL refused it, or could not be reached.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// The URL of a shard, or a file that it names.
    #[error("{0}")]
    Address(String),
    /// Nobody answered in time.
    #[error("no answer in time")]
    Timeout,
    /// The database holds a catalog, whose schema has the same name.
    #[error("this database holds a catalog: a shard's schema of the same name cannot go beside it")]
    Catalog,
    /// A schema of that name is there that is not ours.
    #[error("there is a schema `switchyard` that was not made by this program")]
    Foreign,
    /// It was installed by a newer version.
    #[error("the schema was installed by a newer version: it has {found} steps, this version {known}")]
    Newer {
        /// Steps applied.
        found: usize,
        /// Steps we have.
        known: usize,
    },
    /// A step was applied in another form than the one we have.
    #[error("step {number} was applied in another form than this version has")]
    Checksum {
        /// Its number, from 1.
        number: i32,
    },
    /// The form of the seal that was asked for cannot be had, or is not the one installed.
    #[error("{0}")]
    Form(String),
    /// There is no schema.
    #[error("the schema is not installed; run `switchyard schema install`")]
    Missing,
    /// Something depends on it.
    #[error("in use by {0}; give --force to drop that as well")]
    InUse(String),
    /// The encoding cannot hold every tenant id.
    #[error("the database must have encoding UTF8, not {0}")]
    Encoding(String),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// What was asked for makes no sense here.
    #[error("{0}")]
    Refused(String),
}

/// PostgreSQL's own words where it has any; the library's wrap them in too many.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let mut text = format!("{} ({})", db.message(), db.code().code());
            if let Some(detail) = db.detail() {
                text = format!("{text}: {detail}");
            }
            text
        }
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}
