//! What makes the promise of isolation void, or would stand in the way of a move, on the shards as they are.
//!
//! Each finding says what it is about, why it matters, and the SQL that mends it. On a database that is as it
//! should be there are none.

mod functions;
mod keys;
mod policies;
mod roles;
mod seal;
mod skew;

use std::fmt;

use serde::Serialize;
use tokio_postgres::GenericClient;

use crate::SchemaError;
use crate::protect::Mode;
use crate::tables::tenant_tables;

pub use skew::{Facts, compare};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Stands in the way of a move, or costs something.
    Warning,
    /// Isolation does not hold, or nothing works.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The shard's name.
    pub shard: String,
    /// How bad it is.
    pub severity: Severity,
    /// What kind of finding, for programs.
    pub code: &'static str,
    /// What it is about: a role, a table, a view.
    pub object: String,
    /// What is wrong, and what follows from it.
    pub message: String,
    /// What mends it: SQL, or a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// What is expected of the shards.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The tenant column.
    pub column: String,
    /// What policies ask.
    pub mode: Mode,
    /// The roles that routers log in as or switch to.
    pub roles: Vec<String>,
    /// The numbers of the keys that routers may sign with.
    pub kids: Vec<u32>,
    /// How many shards there are: with one, nothing collides.
    pub shards: usize,
}

/// What is gathered while one shard is looked at.
pub(crate) struct Notes<'a> {
    shard: &'a str,
    findings: Vec<Finding>,
}

impl Notes<'_> {
    pub(crate) fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        object: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<Option<String>>,
    ) {
        self.findings.push(Finding {
            shard: self.shard.to_owned(),
            severity,
            code,
            object: object.into(),
            message: message.into(),
            fix: fix.into(),
        });
    }
}

/// Looks at one shard, and changes nothing. Returns the findings, and what [`compare`] needs.
///
/// # Errors
/// If PostgreSQL refuses, or a schema is there that is not ours.
pub async fn examine(
    client: &impl GenericClient,
    shard: &str,
    expected: &Expected,
) -> Result<(Vec<Finding>, Facts), SchemaError> {
    let mut notes = Notes { shard, findings: Vec::new() };
    let tables = tenant_tables(client, &expected.column).await?;
    if tables.is_empty() {
        let text = format!("no table has a column {}", expected.column);
        notes.add(Severity::Warning, "no-tenant-tables", shard, text, None);
    }
    roles::look(client, expected, &mut notes).await?;
    policies::look(client, expected, &tables, &mut notes).await?;
    keys::look(client, expected, &tables, &mut notes).await?;
    functions::look(client, expected, &tables, &mut notes).await?;
    seal::look(client, expected, &mut notes).await?;
    let facts = skew::facts(client, shard, expected).await?;
    notes.findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.object.cmp(&b.object)));
    Ok((notes.findings, facts))
}
