//! What partitioned tables consist of, and the fences that stand.

use std::collections::{BTreeMap, HashMap};

use super::Table;
use crate::MoveError;
use crate::scope::{Model, Scope, ident, literal};
use crate::sessions::Session;
use crate::shard::ShardAccess;

/// A part of a partitioned table, which SQL can name by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// `r`, or `p` if it has parts itself, or `f`.
    pub(crate) kind: String,
    pub(crate) persistence: String,
    pub(crate) identity: String,
    pub(crate) row_security: bool,
    /// Columns of its replica identity, sorted; empty if it has none that can be used.
    pub(crate) key: Vec<String>,
}

impl Part {
    /// `"schema"."name"`.
    pub(crate) fn quoted(&self) -> String {
        format!("{}.{}", ident(&self.schema), ident(&self.name))
    }

    /// For people.
    pub(crate) fn plain(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

pub(super) async fn read(
    client: &Session,
    at: &ShardAccess,
    tables: &mut BTreeMap<u32, Table>,
) -> Result<(), MoveError> {
    let oids: Vec<u32> = tables.keys().copied().collect();
    let sql = "SELECT r.oid, c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
                      c.relreplident::text, c.relrowsecurity,
                      ARRAY(SELECT a.attname::text FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k(n, o)
                            JOIN pg_attribute a ON a.attnum = k.n
                            WHERE i.indrelid = c.oid AND a.attrelid = c.oid AND k.o <= i.indnkeyatts
                              AND i.indimmediate AND i.indisvalid
                              AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END)
               FROM unnest($1::oid[]) r(oid) CROSS JOIN LATERAL pg_partition_tree(r.oid) t
               JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE t.level > 0 ORDER BY n.nspname, c.relname";
    for row in client.query(sql, &[&oids]).await.map_err(at.failed())? {
        if let Some(table) = tables.get_mut(&row.get::<_, u32>(0)) {
            let mut key: Vec<String> = row.get(8);
            key.sort();
            table.parts.push(Part {
                oid: row.get(1),
                schema: row.get(2),
                name: row.get(3),
                kind: row.get(4),
                persistence: row.get(5),
                identity: row.get(6),
                row_security: row.get(7),
                key,
            });
        }
    }
    Ok(())
}

/// What the fence of each of the tables says, by OID: of a policy the expression, of a trigger the tenant. One that is
/// not in force, or not for everything, says nothing.
pub(crate) async fn read_fences(
    client: &Session,
    at: &ShardAccess,
    scope: &Scope,
    oids: &[u32],
) -> Result<HashMap<u32, String>, MoveError> {
    let statement = match &scope.model {
        Model::Rows { .. } => {
            let sql = "SELECT polrelid, pg_get_expr(polqual, polrelid) FROM pg_policy
                       WHERE polrelid = ANY ($1) AND polname = 'switchyard_fence' AND NOT polpermissive AND polcmd = '*'
                         AND polroles = '{0}'::oid[] AND polwithcheck IS NULL";
            client.statement(sql).await
        }
        // Before, of INSERT, DELETE, UPDATE and TRUNCATE, for each statement. // src/include/catalog/pg_trigger.h
        Model::Schema { .. } | Model::Database { .. } => {
            let sql = format!(
                "SELECT tgrelid, {tenant} FROM pg_trigger
                 WHERE tgrelid = ANY ($1) AND tgname = 'switchyard_fence' AND tgenabled IN ('O', 'A') AND tgtype = 62
                   AND tgqual IS NULL AND tgfoid = to_regproc('switchyard.admit_trigger')
                   AND tgargs = convert_to({tenant}, getdatabaseencoding()) || '\\x00'::bytea",
                tenant = literal(scope.tenant.as_str())
            );
            client.prepare(&sql).await
        }
    };
    let statement = statement.map_err(at.failed())?;
    let rows = client.client().query(&statement, &[&oids]).await.map_err(at.failed())?;
    Ok(rows.iter().map(|r| (r.get(0), r.get(1))).collect())
}
