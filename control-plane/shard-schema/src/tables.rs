//! The tables of the application, as far as tenants are concerned.

use tokio_postgres::GenericClient;

use crate::SchemaError;

/// Schemas that are not the application's.
pub(crate) const NOT_OURS: &str =
    "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'switchyard')";

/// A table that has the tenant column.
#[derive(Debug, Clone)]
pub struct TenantTable {
    /// Its oid.
    pub oid: u32,
    /// Schema and name, quoted where they must be.
    pub name: String,
    /// The tenant column, quoted where it must be.
    pub column: String,
    /// Its type, as SQL has it.
    pub column_type: String,
    /// Whether row-level security is on.
    pub secured: bool,
    /// Whether it binds the owner too.
    pub forced: bool,
    /// Whether it is a partition of another table.
    pub partition: bool,
    /// The owner's name.
    pub owner: String,
    /// Its policies.
    pub policies: Vec<Policy>,
}

/// A policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Its name, quoted where it must be.
    pub name: String,
    /// Whether it widens what is seen rather than narrowing it.
    pub permissive: bool,
    /// `*` for all commands; else `r`, `a`, `w` or `d`.
    pub command: String,
    /// Who is bound: names of roles, or `public`.
    pub roles: Vec<String>,
    /// The expressions of USING and WITH CHECK.
    pub using: Option<String>,
    /// That of WITH CHECK.
    pub check: Option<String>,
}

/// Every table that has `column`, by name.
///
/// # Errors
/// If PostgreSQL refuses.
pub async fn tenant_tables(
    client: &impl GenericClient,
    column: &str,
) -> Result<Vec<TenantTable>, SchemaError> {
    let sql = format!(
        "SELECT c.oid, format('%I.%I', n.nspname, c.relname), quote_ident(a.attname),
                format_type(a.atttypid, a.atttypmod), c.relrowsecurity, c.relforcerowsecurity, c.relispartition,
                pg_get_userbyid(c.relowner)::text
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = $1 AND NOT a.attisdropped AND a.attnum > 0
          WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {NOT_OURS}
          ORDER BY 2"
    );
    let mut tables: Vec<TenantTable> = Vec::new();
    for row in client.query(&sql, &[&column]).await? {
        tables.push(TenantTable {
            oid: row.get(0),
            name: row.get(1),
            column: row.get(2),
            column_type: row.get(3),
            secured: row.get(4),
            forced: row.get(5),
            partition: row.get(6),
            owner: row.get(7),
            policies: Vec::new(),
        });
    }
    let sql = "SELECT p.polrelid, quote_ident(p.polname), p.polpermissive, p.polcmd::text,
                      CASE WHEN 0 = ANY (p.polroles) THEN ARRAY['public']
                           ELSE ARRAY(SELECT rolname::text FROM pg_roles r WHERE r.oid = ANY (p.polroles) ORDER BY 1) END,
                      pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)
                 FROM pg_policy p WHERE p.polrelid = ANY ($1) ORDER BY p.polname";
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    for row in client.query(sql, &[&oids]).await? {
        let of: u32 = row.get(0);
        if let Some(table) = tables.iter_mut().find(|t| t.oid == of) {
            table.policies.push(Policy {
                name: row.get(1),
                permissive: row.get(2),
                command: row.get(3),
                roles: row.get(4),
                using: row.get(5),
                check: row.get(6),
            });
        }
    }
    Ok(tables)
}

impl TenantTable {
    /// Whether the column's type is text, so that the tenant needs no cast.
    pub(crate) fn is_text(&self) -> bool {
        ["text", "character varying", "\"char\"", "character"].iter().any(|t| self.column_type.starts_with(t))
    }
}
