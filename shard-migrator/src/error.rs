//! What can go wrong with a move, and whose fault it is.

use switchyard_catalog::CatalogError;
use switchyard_config::ShardName;

use crate::preflight::Finding;

/// Why a step of a move failed.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// Preflight found what cannot be moved. Nothing has been touched.
    #[error("preflight: {}", list(.0))]
    Refused(Vec<Finding>),
    /// A shard said no, or could not be reached.
    #[error("shard {shard}: {}", told(.error))]
    Shard {
        /// Which.
        shard: ShardName,
        /// What it said.
        error: tokio_postgres::Error,
    },
    /// The change stream of a shard broke.
    #[error("change stream of shard {shard}: {reason}")]
    Stream {
        /// Which.
        shard: ShardName,
        /// What happened.
        reason: String,
    },
    /// Another mover has taken over; this one must not do anything any more.
    #[error("another mover has taken over")]
    Superseded,
    /// Source and target differ where they must not.
    #[error("source and target differ: {0}")]
    Differ(String),
    /// Something changed that a move cannot follow.
    #[error("the tenant's tables changed during the move: {0}")]
    Drift(String),
    /// A limit was reached.
    #[error("{0}")]
    Limit(String),
    /// The cutover was given up for now: somebody was in the way.
    #[error("{0}")]
    InTheWay(String),
    /// An operator wants something else.
    #[error("stopped on request")]
    Asked,
    /// The catalog.
    #[error("catalog: {0}")]
    Catalog(#[from] CatalogError),
    /// What is in the catalog makes no move.
    #[error("{0}")]
    Invalid(String),
}

fn list(findings: &[Finding]) -> String {
    let texts: Vec<_> = findings.iter().map(|f| f.text()).collect();
    texts.join("; ")
}

/// What PostgreSQL said, without the statement's values.
pub(crate) fn told(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(e) => format!("{} ({})", e.message(), e.code().code()),
        None => error.to_string(),
    }
}

impl MoveError {
    /// Whether trying again may help, with nothing changed by an operator.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Shard { error, .. } => match error.code() {
                None => true,
                Some(code) => {
                    let code = code.code();
                    ["08", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class))
                }
            },
            Self::Stream { .. } | Self::Catalog(_) | Self::InTheWay(_) => true,
            _ => false,
        }
    }

    /// The SQLSTATE, if a shard has said one.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Shard { error, .. } => error.code().map(tokio_postgres::error::SqlState::code),
            _ => None,
        }
    }
}
