//! Views and functions that see through policies.

use tokio_postgres::GenericClient;

use super::{Expected, Notes, Severity};
use crate::tables::{NOT_OURS, TenantTable};
use crate::{SchemaError, quote_ident};

pub(super) async fn look(
    client: &impl GenericClient,
    expected: &Expected,
    tables: &[TenantTable],
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    views(client, expected, &oids, notes).await?;
    definers(client, expected, &oids, notes).await
}

/// A view is bound by the policies for its owner. Materialized ones are bound by none.
async fn views(
    client: &impl GenericClient,
    expected: &Expected,
    oids: &[u32],
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    // Views over views too.
    let sql = format!(
        "WITH RECURSIVE uses(view, used) AS (
             SELECT r.ev_class, d.refobjid FROM pg_rewrite r
               JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class
         ), reach(view, used) AS (
             SELECT view, used FROM uses WHERE used = ANY ($1)
             UNION SELECT u.view, r.used FROM reach r JOIN uses u ON u.used = r.view
         )
         SELECT DISTINCT format('%I.%I', n.nspname, c.relname), c.relkind = 'm', o.rolname::text
           FROM reach x JOIN pg_class c ON c.oid = x.view JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_roles o ON o.oid = c.relowner JOIN pg_class t ON t.oid = x.used
          WHERE {NOT_OURS}
            AND EXISTS (SELECT FROM pg_roles r WHERE r.rolname = ANY ($2) AND has_table_privilege(r.oid, c.oid, 'SELECT'))
            AND (c.relkind = 'm'
                 OR c.relkind = 'v'
                    AND NOT coalesce(c.reloptions && ARRAY['security_invoker=true', 'security_invoker=on',
                                                           'security_invoker=1', 'security_invoker=yes'], false)
                    AND (o.rolsuper OR o.rolbypassrls OR t.relowner = c.relowner AND NOT t.relforcerowsecurity))
          ORDER BY 1"
    );
    for row in client.query(&sql, &[&oids, &expected.roles]).await? {
        let (view, materialized, owner): (&str, bool, &str) = (row.get(0), row.get(1), row.get(2));
        if materialized {
            let text = "is a materialized view over tables of tenants: no policy binds it, and our roles may read it";
            let roles: Vec<_> = expected.roles.iter().map(|r| quote_ident(r)).collect();
            let fix = format!("REVOKE SELECT ON {view} FROM {}, PUBLIC", roles.join(", "));
            notes.add(Severity::Error, "materialized-view", view, text, fix);
        } else {
            let text = format!("shows rows as {owner}, whom no policy binds: every tenant sees every row");
            let fix = format!("ALTER VIEW {view} SET (security_invoker = true)");
            notes.add(Severity::Error, "view-not-invoker", view, text, fix);
        }
    }
    Ok(())
}

async fn definers(
    client: &impl GenericClient,
    expected: &Expected,
    oids: &[u32],
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let sql = format!(
        "SELECT p.oid::regprocedure::text, o.rolname::text, p.prokind = 'p',
                o.rolsuper OR o.rolbypassrls
                OR EXISTS (SELECT FROM pg_class t WHERE t.oid = ANY ($1) AND t.relowner = o.oid AND NOT t.relforcerowsecurity),
                NOT EXISTS (SELECT FROM unnest(p.proconfig) x WHERE x LIKE 'search_path=%')
           FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_roles o ON o.oid = p.proowner
          WHERE p.prosecdef AND {NOT_OURS} AND NOT o.rolname = ANY ($2)
            AND EXISTS (SELECT FROM pg_roles r WHERE r.rolname = ANY ($2) AND has_function_privilege(r.oid, p.oid, 'EXECUTE'))
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
          ORDER BY 1"
    );
    for row in client.query(&sql, &[&oids, &expected.roles]).await? {
        let (function, owner, procedure, through, unpinned): (&str, &str, bool, bool, bool) =
            (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
        let kind = if procedure { "PROCEDURE" } else { "FUNCTION" };
        if through {
            let text = format!("is SECURITY DEFINER and runs as {owner}, whom no policy binds");
            let fix = format!("ALTER {kind} {function} SECURITY INVOKER");
            notes.add(Severity::Error, "definer-function", function, text, fix);
        }
        if unpinned {
            let text = format!(
                "is SECURITY DEFINER without a search_path of its own: a caller's objects can stand in for those of {owner}"
            );
            let fix = format!("ALTER {kind} {function} SET search_path = pg_catalog, public, pg_temp");
            notes.add(Severity::Warning, "definer-search-path", function, text, fix);
        }
    }
    Ok(())
}
