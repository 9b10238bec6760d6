use switchyard_config::ids::InvalidId;
use switchyard_config::url::UrlError;

/// Why the catalog could not be read. Holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The URL of the catalog cannot be understood.
    #[error("the catalog's URL {0}")]
    Url(UrlError),
    /// Its TLS settings cannot be used.
    #[error("TLS toward the catalog: {0}")]
    Tls(String),
    /// PostgreSQL or the way to it failed.
    #[error("the catalog: {}", described(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// No answer within the deadline.
    #[error("the catalog does not answer")]
    Timeout,
    /// The connection ended.
    #[error("the catalog closed the connection")]
    Closed,
    /// The tables hold something that cannot be a topology.
    #[error("the catalog holds {kind} `{name}` that cannot be used: {reason}")]
    Invalid {
        /// Kind of the row: `shard`, `bucket`, ...
        kind: &'static str,
        /// Its key.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file of the last topology cannot be used.
    #[error("the last topology on disk: {0}")]
    Disk(String),
}

impl CatalogError {
    pub(crate) fn invalid(kind: &'static str, name: &str, reason: impl ToString) -> Self {
        Self::Invalid { kind, name: name.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn id(kind: &'static str, name: &str) -> impl FnOnce(InvalidId) -> Self {
        move |e| Self::invalid(kind, name, e)
    }
}

/// `tokio_postgres` shows `db error` alone; what the server said is underneath.
fn described(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(db), _) => format!("{} ({})", db.message(), db.code().code()),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}
