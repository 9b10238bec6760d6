//! What tables have that tenants share: their column of the tenant, what their policies ask, and the fences that stand.

use std::collections::HashMap;

use super::{Table, read_fences};
use crate::MoveError;
use crate::scope::{Model, Scope};
use crate::sessions::Session;
use crate::shard::ShardAccess;

/// See the module. All is by the OID of a table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared {
    pub(crate) columns: Vec<TenantColumn>,
    /// A variable that its policies ask, in lower case, and whether they may ask others by functions of the user's.
    pub(crate) asked: Vec<(u32, String, bool)>,
    /// What the fence of each table and part says, where one is in force.
    pub(crate) fences: HashMap<u32, String>,
}

/// The column of a table that tells the tenant.
#[derive(Debug, Clone)]
pub(crate) struct TenantColumn {
    pub(crate) table: u32,
    /// Its type, as `format_type` writes it.
    pub(crate) kind: String,
    /// Whether its collation takes only equal texts for equal.
    pub(crate) deterministic: bool,
    /// Whether it is of a type whose equal values are the same bytes.
    pub(crate) bytewise: bool,
}

pub(super) async fn read<'t>(
    client: &Session,
    at: &ShardAccess,
    scope: &Scope,
    tables: impl Iterator<Item = &'t Table>,
) -> Result<Shared, MoveError> {
    let Model::Rows { column, .. } = &scope.model else { return Ok(Shared::default()) };
    let failed = at.failed();
    let (mut oids, mut with_parts) = (Vec::new(), Vec::new());
    for table in tables {
        oids.push(table.oid);
        with_parts.push(table.oid);
        with_parts.extend(table.parts.iter().map(|part| part.oid));
    }
    // A character(n) is padded to n.
    let sql =
        "SELECT a.attrelid, format_type(a.atttypid, a.atttypmod), coalesce(l.collisdeterministic, true),
                      b.typtype = 'e' OR b.typnamespace = 'pg_catalog'::regnamespace
                      AND (b.typname IN ('text', 'varchar', 'name', 'uuid', 'int2', 'int4', 'int8')
                           OR b.typname = 'bpchar' AND a.atttypmod > 0)
               FROM pg_attribute a LEFT JOIN pg_collation l ON l.oid = a.attcollation
               CROSS JOIN LATERAL (
                   WITH RECURSIVE of(oid, base) AS (
                       SELECT t.oid, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
                       UNION ALL SELECT t.oid, t.typbasetype FROM of JOIN pg_type t ON t.oid = of.base)
                   SELECT of.oid FROM of WHERE of.base = 0) d
               JOIN pg_type b ON b.oid = d.oid
               WHERE a.attrelid = ANY ($1) AND a.attname = $2";
    let rows = client.query(sql, &[&oids, column]).await.map_err(failed)?;
    let one = |r: &tokio_postgres::Row| TenantColumn {
        table: r.get(0),
        kind: r.get(1),
        deterministic: r.get(2),
        bytewise: r.get(3),
    };
    let columns = rows.iter().map(one).collect();
    // A function of the user's, which is written with its schema, may ask whatever it likes.
    let sql = r#"SELECT e.polrelid, lower(m[1]), bool_or(e.text ~ '[[:alnum:]_"]\.[[:alnum:]_"]+\(')
               FROM (SELECT polrelid, concat(pg_get_expr(polqual, polrelid), ' ', pg_get_expr(polwithcheck, polrelid))
                     FROM pg_policy WHERE polrelid = ANY ($1) AND polname <> 'switchyard_fence') e(polrelid, text),
                    regexp_matches(e.text, 'current_setting\(''([^'']+)''', 'g') m
               GROUP BY 1, 2 ORDER BY 1, 2"#;
    let rows = client.query(sql, &[&oids]).await.map_err(failed)?;
    let asked = rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect();
    let fences = read_fences(client, at, scope, &with_parts).await?;
    Ok(Shared { columns, asked, fences })
}
