//! The form of a scope's tables in one value that is cheap to ask for while clients wait.

use crate::MoveError;
use crate::inventory::FOREIGN;
use crate::scope::{Model, Scope, literal};
use crate::sessions::Session;
use crate::shard::ShardAccess;

/// Asks for it, in a session in which [`prepare`] was called.
pub(crate) const ASK: &str = "EXECUTE switchyard_shape";

/// The query for it, of one row with one text. Two answers of one database differ if a table has come or gone, or has
/// other columns or another key.
fn query(scope: &Scope) -> String {
    let condition = match &scope.model {
        Model::Rows { column, .. } => format!(
            "EXISTS (SELECT FROM pg_attribute x WHERE x.attrelid = c.oid AND x.attname = {}
                     AND x.attnum > 0 AND NOT x.attisdropped)",
            literal(column)
        ),
        Model::Schema { schema } => format!("n.nspname = {}", literal(schema)),
        Model::Database { .. } => "true".to_owned(),
    };
    format!(
        "SELECT coalesce(md5(string_agg(concat_ws(' ', c.oid, n.nspname, c.relname, c.relkind, c.relreplident,
                (SELECT string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull,
                                             a.attgenerated, a.attidentity), ',' ORDER BY a.attnum)
                 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
                (SELECT string_agg(i.indkey::text, ',' ORDER BY i.indkey::text)
                 FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident))),
                ';' ORDER BY c.oid)), '')
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND {FOREIGN} AND {condition}"
    )
}

/// Has a session know the question: to plan it takes longer than to answer it.
pub(crate) async fn prepare(client: &Session, at: &ShardAccess, scope: &Scope) -> Result<(), MoveError> {
    client.name("switchyard_shape", &query(scope)).await.map_err(at.failed())
}

/// Asks for it.
pub(crate) async fn read(client: &Session, at: &ShardAccess) -> Result<String, MoveError> {
    Ok(client.query_one(ASK, &[]).await.map_err(at.failed())?.get(0))
}
