//! Inventories that are known already. Of shared tables all tenants have the same, and to read it takes longer than to ask
//! whether anything that it was made of has been written since.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::MoveError;
use crate::inventory::Inventory;
use crate::scope::{Model, Scope, literal};
use crate::sessions::Session;
use crate::shard::ShardAccess;

/// What an inventory of shared tables is made of: the rows of the system's catalogs, and the transactions that have
/// written them. PostgreSQL writes some of them without a trace, for statistics; none that an inventory shows.
///
/// The column stands in it as a text: with a parameter, PostgreSQL would plan it anew, which takes twice as long as to
/// answer it. The tables are an array, so that indexes are used however many others there are.
fn written(column: &str) -> String {
    format!(
        "
WITH own AS (
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'switchyard')
      AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = {}
                  AND a.attnum > 0 AND NOT a.attisdropped)
), of AS MATERIALIZED (
    SELECT ARRAY(SELECT oid FROM own UNION SELECT t.relid FROM own, pg_partition_tree(own.oid) t)::oid[] AS oids
)
SELECT md5(concat_ws(';',
    (SELECT string_agg(concat_ws(' ', c.oid, c.xmin, n.xmin), ',' ORDER BY c.oid)
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ((SELECT oids FROM of)::oid[])),
    (SELECT string_agg(concat_ws(' ', a.attrelid, a.attnum, a.xmin, t.xmin), ',' ORDER BY a.attrelid, a.attnum)
     FROM pg_attribute a LEFT JOIN pg_type t ON t.oid = a.atttypid
     WHERE a.attrelid = ANY ((SELECT oids FROM of)::oid[]) AND a.attnum > 0),
    (SELECT string_agg(concat_ws(' ', i.indexrelid, i.xmin, x.xmin), ',' ORDER BY i.indexrelid)
     FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = ANY ((SELECT oids FROM of)::oid[])),
    (SELECT string_agg(concat_ws(' ', k.oid, k.xmin), ',' ORDER BY k.oid)
     FROM pg_constraint k WHERE k.conrelid = ANY ((SELECT oids FROM of)::oid[])),
    (SELECT string_agg(concat_ws(' ', p.oid, p.xmin), ',' ORDER BY p.oid)
     FROM pg_policy p WHERE p.polrelid = ANY ((SELECT oids FROM of)::oid[])),
    (SELECT string_agg(concat_ws(' ', h.inhrelid, h.inhparent, h.xmin), ',' ORDER BY h.inhrelid, h.inhparent)
     FROM pg_inherits h WHERE ARRAY[h.inhrelid, h.inhparent] && (SELECT oids FROM of)::oid[]),
    (SELECT string_agg(concat_ws(' ', f.oid, f.xmin), ',' ORDER BY f.oid)
     FROM pg_attrdef f WHERE f.adrelid = ANY ((SELECT oids FROM of)::oid[])),
    (SELECT string_agg(concat_ws(' ', s.oid, s.xmin, d.refobjid, d.refobjsubid, d.deptype), ','
                       ORDER BY s.oid, d.refobjid, d.refobjsubid)
     FROM pg_class s JOIN pg_namespace n ON n.oid = s.relnamespace
     LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.refclassid = 'pg_class'::regclass
     WHERE s.relkind = 'S' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'switchyard'))))",
        literal(column)
    )
}

/// Inventories kept. More are read anew.
const KEPT: usize = 64;

/// See the module.
#[derive(Default)]
pub(crate) struct Known(Mutex<HashMap<String, (String, Arc<Inventory>)>>);

impl Known {
    /// What there is of a scope now.
    pub(crate) async fn inventory(
        &self,
        client: &Session,
        at: &ShardAccess,
        scope: &Scope,
    ) -> Result<Arc<Inventory>, MoveError> {
        let Model::Rows { column, .. } = &scope.model else {
            return Ok(Arc::new(Inventory::read(client, at, scope).await?));
        };
        let written = written(column);
        let written = async || -> Result<String, MoveError> {
            let statement = client.statement(&written).await.map_err(at.failed())?;
            Ok(client.client().query_one(&statement, &[]).await.map_err(at.failed())?.get(0))
        };
        let key = format!("{} {} {} {} {column}", at.name, at.host, at.port, at.database);
        let before = written().await?;
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, inventory)) = kept().get(&key)
            && *of == before
        {
            return Ok(inventory.clone());
        }
        let inventory = Arc::new(Inventory::read(client, at, scope).await?);
        // What was written while it was read may be in it or not.
        if written().await? == before {
            let mut kept = kept();
            if kept.len() >= KEPT {
                kept.clear();
            }
            kept.insert(key, (before, inventory.clone()));
        }
        Ok(inventory)
    }
}
