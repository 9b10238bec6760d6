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
    /// Rows of the tenant are where it has left, and were never moved: nothing there is deleted.
    #[error(
        "shard {shard}: {table} has rows of the tenant that were not moved; save them or delete them first"
    )]
    NotMoved {
        /// Where.
        shard: ShardName,
        /// In which table.
        table: String,
    },
    /// It was to be given up, and the tenant is at the target already.
    #[error("the tenant has moved already")]
    Arrived,
    /// The copy must begin anew: something happened that what is there of it cannot follow.
    #[error("the copy begins anew: {0}")]
    Again(String),
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

/// What tokio-postgres calls an answer that did not come in time; its kind cannot be asked for.
const TIMED_OUT: &str = "timeout waiting for server";

/// Whether an error without a SQLSTATE is of the connection. Others are of what was sent or of how it was understood,
/// and are the same the next time.
fn broke(error: &tokio_postgres::Error) -> bool {
    use std::error::Error;
    use std::io;
    let io = error.source().and_then(|e| e.downcast_ref::<io::Error>());
    // What is malformed, a certificate that is not trusted among it, is told by these kinds.
    let lasting = [io::ErrorKind::InvalidData, io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported];
    match io {
        Some(io) => !lasting.contains(&io.kind()),
        None => error.is_closed() || error.to_string() == TIMED_OUT,
    }
}

impl MoveError {
    /// Whether trying again may help, with nothing changed by an operator.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Shard { error, .. } => match error.code() {
                None => broke(error),
                Some(code) => {
                    let code = code.code();
                    ["08", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class))
                }
            },
            Self::Stream { .. } | Self::Catalog(_) | Self::InTheWay(_) | Self::Again(_) | Self::Arrived => {
                true
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn of_shard(url: &str) -> MoveError {
        let config: tokio_postgres::Config = url.parse().unwrap();
        let error = config.connect(tokio_postgres::NoTls).await.map(drop).unwrap_err();
        MoveError::Shard { shard: ShardName::new("s1").unwrap(), error }
    }

    #[tokio::test]
    async fn what_only_an_operator_can_mend_is_not_tried_again() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = format!("postgres://u@127.0.0.1:{port}/d?sslmode=require");
        let answering = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut socket, b"N").await.unwrap();
            socket
        };
        let (nobody, _socket) = tokio::join!(of_shard(&url), answering);
        assert!(!nobody.is_transient(), "TLS is asked for and cannot be had: {nobody}");
        drop(listener);
        let refused = of_shard(&format!("postgres://u@127.0.0.1:{port}/d")).await;
        assert!(refused.is_transient(), "nobody listens there now: {refused}");
        assert!(!of_shard("postgres://u@127.0.0.1/d?port=1,2,3").await.is_transient());
    }
}
