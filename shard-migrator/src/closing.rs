//! How readers are kept from a tenant's own tables in the transaction that freezes it.
//!
//! To take the right to use a schema takes the same time whatever is in it. But names are then looked for in the next one of
//! the search path, and who refers to a table by other means than its name does not ask for that right. Where neither can
//! be, the schemas are closed while clients are held, and each table behind that; else each table while clients wait.

use crate::MoveError;
use crate::scope::{Model, Scope, literal};
use crate::sessions::Session;
use crate::shard::ShardAccess;

/// Closing tables one by one takes so many times as long as reading their form. Measured on PostgreSQL 15, with 1000 and
/// 3000 tables that two roles may read: 83 and 87 microseconds each, and 12 and 14.
pub(crate) const BY_RELATION: u32 = 7;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Closing {
    /// By the right to use these schemas: SQL for an array of their names.
    AtOnce(String),
    /// Each table by itself, in these schemas, and why.
    ByRelation(String, String),
}

impl Closing {
    /// The call that closes them, for the transaction that freezes.
    pub(crate) fn call(&self, tenant: &str) -> String {
        let tenant = literal(tenant);
        match self {
            Self::AtOnce(schemas) => format!("switchyard.close_schemas({tenant}, {schemas})"),
            Self::ByRelation(schemas, _) => format!("switchyard.close_relations({tenant}, {schemas})"),
        }
    }
}

/// How a scope's tables can be closed on a shard; not at all where they are shared.
pub(crate) async fn how(
    client: &Session,
    at: &ShardAccess,
    scope: &Scope,
) -> Result<Option<Closing>, MoveError> {
    let Some(schemas) = scope.own_schemas() else { return Ok(None) };
    let sql = format!(
        "WITH own AS (SELECT oid, nspname, nspowner FROM pg_namespace WHERE nspname = ANY ({schemas}::text[])),
              relations AS (SELECT c.oid, c.relname FROM pg_class c JOIN own ON own.oid = c.relnamespace)
         SELECT format('the mover has not the rights of the owner of schema %I', nspname)
           FROM own WHERE NOT pg_has_role(nspowner, 'USAGE')
         UNION ALL
         SELECT format('%I.%I, further on in the search path, has the name of one of them', n.nspname, c.relname)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE n.nspname = ANY ($1) AND c.relname IN (SELECT relname FROM relations)
         UNION ALL
         SELECT format('the function %I.%I, further on in the search path, has the name of one beside them', n.nspname, p.proname)
           FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
          WHERE n.nspname = ANY ($1)
            AND EXISTS (SELECT FROM pg_proc o JOIN own ON own.oid = o.pronamespace WHERE o.proname = p.proname)
         UNION ALL
         SELECT format('%s refers to one of them', c.oid::regclass)
           FROM pg_depend d JOIN relations r ON r.oid = d.refobjid AND d.refclassid = 'pg_class'::regclass
           JOIN pg_rewrite w ON w.oid = d.objid AND d.classid = 'pg_rewrite'::regclass
           JOIN pg_class c ON c.oid = w.ev_class
          WHERE c.relnamespace NOT IN (SELECT oid FROM own)
         UNION ALL
         SELECT format('the function %s refers to one of them', p.oid::regprocedure)
           FROM pg_depend d JOIN relations r ON r.oid = d.refobjid AND d.refclassid = 'pg_class'::regclass
           JOIN pg_proc p ON p.oid = d.objid AND d.classid = 'pg_proc'::regclass
          WHERE p.pronamespace NOT IN (SELECT oid FROM own)
         UNION ALL
         SELECT format('%s holds one of them', i.inhparent::regclass)
           FROM pg_inherits i JOIN relations r ON r.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
          WHERE p.relnamespace NOT IN (SELECT oid FROM own)
         LIMIT 1"
    );
    let why = match &scope.model {
        // Whose schema that is depends on the role.
        Model::Schema { .. } if scope.beside.iter().any(|schema| schema == "$user") => {
            Some("the search path has \"$user\" in it".to_owned())
        }
        _ => client
            .client()
            .query_opt(&sql, &[&scope.beside])
            .await
            .map_err(at.failed())?
            .map(|row| row.get::<_, String>(0)),
    };
    Ok(Some(match why {
        None => Closing::AtOnce(schemas),
        Some(why) => Closing::ByRelation(schemas, why),
    }))
}

/// Closes the tables one by one of which only the schemas were closed, where the tenant does not live any more.
pub(crate) async fn behind(client: &Session, at: &ShardAccess, scope: &Scope) -> Result<(), MoveError> {
    let Some(schemas) = scope.own_schemas() else { return Ok(()) };
    let sql = format!("SELECT switchyard.close_behind({}, {schemas})", literal(scope.tenant.as_str()));
    client.batch_execute(&sql).await.map_err(at.failed())
}
