//! Policies for tables that have none, or others.

use tokio_postgres::{Client, GenericClient};

use crate::tables::{Policy, TenantTable, tenant_tables};
use crate::{SchemaError, quote_literal};

/// The policies' name.
pub const POLICY: &str = "switchyard";

/// What policies ask for the tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// This session variable.
    Plain(String),
    /// `switchyard.tenant_id()`.
    Sealed,
}

/// Which tables, and how.
#[derive(Debug, Clone)]
pub struct ProtectOptions {
    /// The tenant column.
    pub column: String,
    /// What policies ask.
    pub mode: Mode,
    /// Tables by schema and name; all that have the column if empty.
    pub tables: Vec<String>,
    /// Whether other policies of these tables go.
    pub replace: bool,
}

impl Mode {
    /// The condition by which a row is the tenant's.
    pub fn condition(&self, table: &TenantTable) -> String {
        let cast = if table.is_text() { String::new() } else { format!("::{}", table.column_type) };
        let column = &table.column;
        match self {
            Self::Sealed => format!("{column} = (SELECT switchyard.tenant_id()){cast}"),
            // The empty text is what a variable has once it was reset; most types refuse it.
            Self::Plain(variable) if cast.is_empty() => {
                format!("{column} = current_setting({}, true)", quote_literal(variable))
            }
            Self::Plain(variable) => {
                format!("{column} = nullif(current_setting({}, true), ''){cast}", quote_literal(variable))
            }
        }
    }

    /// Whether this expression asks what it should, and nothing else about tenants.
    pub(crate) fn is_asked_by(&self, expression: &str) -> bool {
        match self {
            Self::Sealed => expression.contains("switchyard.tenant_id()"),
            // As pg_get_expr writes it.
            Self::Plain(variable) => {
                expression.contains(&format!("current_setting({}::text", quote_literal(variable)))
            }
        }
    }
}

impl Policy {
    /// Whether it holds rows to the tenant in every way it is for.
    pub(crate) fn holds(&self, mode: &Mode) -> bool {
        let asked = |e: &Option<String>| e.as_deref().is_none_or(|e| mode.is_asked_by(e));
        (self.using.is_some() || self.check.is_some()) && asked(&self.using) && asked(&self.check)
    }

    /// Whether it is for all commands and everybody.
    pub(crate) fn is_general(&self) -> bool {
        self.command == "*" && self.roles == ["public"]
    }
}

/// The SQL that protects one table; nothing where it is protected.
pub fn table_sql(table: &TenantTable, mode: &Mode, replace: bool) -> Vec<String> {
    let name = &table.name;
    let mut sql = Vec::new();
    if !table.secured {
        sql.push(format!("ALTER TABLE {name} ENABLE ROW LEVEL SECURITY"));
    }
    if !table.forced {
        sql.push(format!("ALTER TABLE {name} FORCE ROW LEVEL SECURITY"));
    }
    // What narrows is harmless; of what widens, each must hold rows to the tenant.
    let widening: Vec<&Policy> =
        table.policies.iter().filter(|p| p.name != POLICY && p.permissive && !p.holds(mode)).collect();
    let mut holding = table.policies.iter().filter(|p| p.holds(mode) && p.is_general());
    if holding.clone().any(|p| !p.permissive) || (widening.is_empty() && holding.next().is_some()) {
        return sql;
    }
    if table.policies.iter().any(|p| p.name == POLICY) {
        sql.push(format!("DROP POLICY {POLICY} ON {name}"));
    }
    if replace {
        sql.extend(widening.iter().map(|p| format!("DROP POLICY {} ON {name}", p.name)));
    }
    // Beside policies of the application's own, which say who may see what within a tenant.
    let beside = !replace && !widening.is_empty();
    let kind = if beside { " AS RESTRICTIVE" } else { "" };
    let condition = mode.condition(table);
    sql.push(format!(
        "CREATE POLICY {POLICY} ON {name}{kind}\n    USING ({condition})\n    WITH CHECK ({condition})"
    ));
    sql
}

/// The SQL that protects the tables, in order; empty where all are protected.
///
/// # Errors
/// If a table that was named does not exist or lacks the column, the schema is missing, or PostgreSQL refuses.
pub async fn plan(client: &impl GenericClient, options: &ProtectOptions) -> Result<Vec<String>, SchemaError> {
    if options.mode == Mode::Sealed && crate::install::status(client).await?.is_none() {
        return Err(SchemaError::Missing);
    }
    let tables = tenant_tables(client, &options.column).await?;
    for named in &options.tables {
        if !tables.iter().any(|t| is_named(t, named)) {
            let text = format!("there is no table {named} with a column {}", options.column);
            return Err(SchemaError::Refused(text));
        }
    }
    let chosen = tables
        .iter()
        .filter(|t| options.tables.is_empty() || options.tables.iter().any(|named| is_named(t, named)));
    Ok(chosen.flat_map(|t| table_sql(t, &options.mode, options.replace)).collect())
}

fn is_named(table: &TenantTable, named: &str) -> bool {
    table.name == named || table.name.strip_prefix("public.") == Some(named)
}

/// Runs what [`plan`] says, in one transaction that waits for no lock longer than `lock_timeout_ms`.
///
/// # Errors
/// As [`plan`]; then nothing has changed.
pub async fn apply(
    client: &mut Client,
    options: &ProtectOptions,
    lock_timeout_ms: u64,
) -> Result<Vec<String>, SchemaError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = {lock_timeout_ms}")).await?;
    let sql = plan(&transaction, options).await?;
    for statement in &sql {
        transaction.batch_execute(statement).await?;
    }
    transaction.commit().await?;
    Ok(sql)
}
