use deadpool_postgres::PoolError;
use switchyard_catalog::CatalogError;
use tokio_postgres::error::SqlState;

use crate::credentials::NoRandomness;
use crate::migrations::MigrationError;

/// Why an operation on the catalog was not done. Nothing of it was, then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none by that name.
    #[error("there is no {kind} `{name}`")]
    NotFound {
        /// `tenant`, `shard`, ...
        kind: &'static str,
        /// Its id.
        name: String,
    },
    /// It contradicts what is there.
    #[error("{0}")]
    Conflict(String),
    /// It makes no sense.
    #[error("`{field}` {reason}")]
    Invalid {
        /// The field of the request.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller may do such things, but not to this.
    #[error("{what} needs the role {needed}, for all tenants")]
    Forbidden {
        /// What was asked for.
        what: &'static str,
        /// The role that may.
        needed: &'static str,
    },
    /// It was changed since the caller looked.
    #[error("it was changed since you looked; its ETag is {tag} now")]
    Changed {
        /// What it is now.
        tag: String,
    },
    /// An operation that excludes this one is under way.
    #[error("operation `{operation}` is under way for {target}")]
    Busy {
        /// Its id.
        operation: String,
        /// What it is about.
        target: String,
    },
    /// A shard did not do what was asked of it.
    #[error("shard `{shard}`: {reason}")]
    Shard {
        /// Its name.
        shard: String,
        /// What it said.
        reason: String,
    },
    /// A sealed value does not open: its key is missing, or it was changed.
    #[error("`{name}` of tenant `{tenant}` cannot be opened with the keys at hand")]
    Unopened {
        /// The tenant.
        tenant: String,
        /// The value.
        name: String,
    },
    /// The catalog does not answer.
    #[error("the catalog is not available")]
    Unavailable,
    /// The catalog's URL or its settings.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Its schema.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// The system gives no randomness to make a secret of.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// PostgreSQL refused for a reason that we did not foresee.
    #[error("the catalog: {0}")]
    Postgres(tokio_postgres::Error),
}

impl StoreError {
    pub(crate) fn not_found(kind: &'static str, name: &str) -> Self {
        Self::NotFound { kind, name: name.to_owned() }
    }

    pub(crate) fn invalid(field: &'static str, reason: impl ToString) -> Self {
        Self::Invalid { field, reason: reason.to_string() }
    }

    pub(crate) fn exists(kind: &'static str, name: &str) -> Self {
        Self::Conflict(format!("there is a {kind} `{name}` already"))
    }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return if error.is_closed() { Self::Unavailable } else { Self::Postgres(error) };
        };
        match db.code() {
            // What two requests at once can come to, although each looked first.
            &SqlState::UNIQUE_VIOLATION => Self::Conflict("somebody made it at the same time".to_owned()),
            &SqlState::FOREIGN_KEY_VIOLATION => {
                Self::Conflict("something still refers to it, or what it refers to is gone".to_owned())
            }
            &SqlState::LOCK_NOT_AVAILABLE => {
                tracing::warn!("somebody holds a lock in the catalog for long; see pg_stat_activity");
                Self::Unavailable
            }
            &SqlState::ADMIN_SHUTDOWN | &SqlState::CRASH_SHUTDOWN | &SqlState::CANNOT_CONNECT_NOW => {
                Self::Unavailable
            }
            _ => Self::Postgres(error),
        }
    }
}

impl From<PoolError> for StoreError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) if error.as_db_error().is_some() => error.into(),
            error => {
                tracing::warn!(%error, "the catalog is not available");
                Self::Unavailable
            }
        }
    }
}
