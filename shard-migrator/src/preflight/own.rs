//! What a schema or a database of a tenant's own may hold beside tables.

use super::{Finding, Place};
use crate::MoveError;
use crate::inventory::FOREIGN;
use crate::scope::{Model, Scope, ident};

/// What would stay behind.
pub(super) async fn beside_tables(
    scope: &Scope,
    source: &Place<'_>,
    found: &mut Vec<Finding>,
) -> Result<(), MoveError> {
    let (condition, value) = match &scope.model {
        Model::Rows { .. } => return Ok(()),
        Model::Schema { schema } => ("n.nspname = $1", schema.as_str()),
        Model::Database { .. } => ("$1::text = $1", ""),
    };
    let failed = source.at.failed();
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'f' AND NOT c.relispartition AND {FOREIGN} AND {condition} ORDER BY 1, 2"
    );
    for row in source.client.client().query(&sql, &[&value]).await.map_err(failed)? {
        let (schema, name): (&str, &str) = (row.get(0), row.get(1));
        found.push(Finding::refuses(
            format!("{schema}.{name}"),
            "it is a foreign table, and its server and logins are not moved",
            format!("DROP FOREIGN TABLE {}.{}, and make it again after the move", ident(schema), ident(name)),
        ));
    }
    // Who may read is taken and given back with the fence.
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'v', 'm') AND {FOREIGN} AND {condition}
           AND NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1, 2"
    );
    for row in source.client.client().query(&sql, &[&value]).await.map_err(failed)? {
        let (schema, name, owner): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        found.push(Finding::refuses(
            format!("{schema}.{name}"),
            "the mover cannot take the right to read it, as it has not the rights of its owner",
            format!("GRANT {} TO {}", ident(owner), ident(&source.at.user)),
        ));
    }
    if scope.is_database() {
        let sql = "SELECT count(*) FROM pg_largeobject_metadata";
        let count: i64 = source.client.query_one(sql, &[]).await.map_err(failed)?.get(0);
        if count > 0 {
            found.push(Finding::refuses(
                &source.at.name,
                format!(
                    "the tenant's database has {count} large objects, whose changes are not in the stream"
                ),
                "columns of type bytea instead, and SELECT lo_unlink(oid) FROM pg_largeobject_metadata",
            ));
        }
    }
    Ok(())
}
