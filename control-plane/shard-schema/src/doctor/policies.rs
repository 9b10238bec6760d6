//! Row-level security of the tables that have the tenant column, and rights that it does not bind.

use tokio_postgres::GenericClient;

use super::{Expected, Notes, Severity};
use crate::protect::{Mode, table_sql};
use crate::tables::{Policy, TenantTable};
use crate::{SchemaError, quote_ident};

pub(super) async fn look(
    client: &impl GenericClient,
    expected: &Expected,
    tables: &[TenantTable],
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let reached = reached(client, expected, tables).await?;
    for table in tables {
        // A partition that nobody reaches but by its parent is bound by the parent's policies.
        if table.partition && !reached.contains(&table.oid) {
            continue;
        }
        one(table, expected, notes);
    }
    immutable(client, tables, notes).await?;
    truncate(client, expected, tables, notes).await
}

/// Tables on which our roles have any right.
async fn reached(
    client: &impl GenericClient,
    expected: &Expected,
    tables: &[TenantTable],
) -> Result<Vec<u32>, SchemaError> {
    let sql = "SELECT t FROM unnest($2::oid[]) t
                WHERE EXISTS (SELECT FROM pg_roles r WHERE r.rolname = ANY ($1)
                              AND has_table_privilege(r.oid, t, 'SELECT, INSERT, UPDATE, DELETE'))";
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    Ok(client.query(sql, &[&expected.roles, &oids]).await?.iter().map(|row| row.get(0)).collect())
}

fn one(table: &TenantTable, expected: &Expected, notes: &mut Notes<'_>) {
    let name = table.name.as_str();
    let fix = table_sql(table, &expected.mode, true);
    let fix = (!fix.is_empty()).then(|| fix.join(";\n"));
    if table.policies.is_empty() {
        let (code, text) = match table.secured {
            true => ("no-policy", "row-level security is on and there is no policy: nobody sees a row"),
            false => ("unprotected", "has the tenant column and no policy: every tenant sees every row"),
        };
        return notes.add(Severity::Error, code, name, text, fix);
    }
    if !table.secured {
        let text = "has policies, but row-level security is off: every tenant sees every row";
        let fix = format!("ALTER TABLE {name} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY");
        notes.add(Severity::Error, "rls-off", name, text, fix);
    } else if !table.forced {
        let ours = expected.roles.contains(&table.owner);
        let severity = if ours { Severity::Error } else { Severity::Warning };
        let text = format!(
            "does not bind its owner, {}: neither its sessions, nor its views and functions",
            table.owner
        );
        let fix = format!("ALTER TABLE {name} FORCE ROW LEVEL SECURITY");
        notes.add(severity, "owner-not-forced", name, text, fix);
    }
    let restricted =
        table.policies.iter().any(|p| !p.permissive && p.is_general() && p.holds(&expected.mode));
    for policy in table.policies.iter().filter(|p| p.permissive && !restricted && !p.holds(&expected.mode)) {
        let asked = match &expected.mode {
            Mode::Sealed => "switchyard.tenant_id()".to_owned(),
            Mode::Plain(variable) => format!("current_setting('{variable}')"),
        };
        let object = format!("{} on {name}", policy.name);
        let text =
            format!("the policy does not ask {asked}, and widens what a tenant sees: {}", shown(policy));
        notes.add(Severity::Error, "policy-other", object, text, fix.clone());
    }
    for policy in table.policies.iter().filter(|p| asks_per_row(p)) {
        let object = format!("{} on {name}", policy.name);
        let text = "asks switchyard.tenant_id() for each row: write it as (SELECT switchyard.tenant_id())";
        let condition = expected.mode.condition(table);
        let fix =
            format!("ALTER POLICY {} ON {name} USING ({condition}) WITH CHECK ({condition})", policy.name);
        notes.add(Severity::Warning, "policy-per-row", object, text, fix);
    }
}

fn shown(policy: &Policy) -> String {
    policy.using.as_deref().or(policy.check.as_deref()).unwrap_or("true").to_owned()
}

fn asks_per_row(policy: &Policy) -> bool {
    [&policy.using, &policy.check]
        .into_iter()
        .flatten()
        .any(|e| e.contains("switchyard.tenant_id()") && !e.contains("SELECT switchyard.tenant_id()"))
}

/// A plan keeps what an immutable function has answered, for whoever runs it next.
async fn immutable(
    client: &impl GenericClient,
    tables: &[TenantTable],
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let sql =
        "SELECT DISTINCT p.oid::regprocedure::text, format('%I on %s', pol.polname, pol.polrelid::regclass)
                 FROM pg_policy pol
                 JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = pol.oid
                      AND d.refclassid = 'pg_proc'::regclass
                 JOIN pg_proc p ON p.oid = d.refobjid
                WHERE pol.polrelid = ANY ($1) AND p.provolatile = 'i' AND p.prolang <> 12 AND p.oid >= 16384
                ORDER BY 1";
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    for row in client.query(sql, &[&oids]).await? {
        let function: &str = row.get(0);
        let text = format!(
            "is IMMUTABLE and used by the policy {}: a plan prepared for one tenant shows its rows to the next",
            row.get::<_, &str>(1)
        );
        notes.add(
            Severity::Error,
            "policy-immutable",
            function,
            text,
            format!("ALTER FUNCTION {function} STABLE"),
        );
    }
    Ok(())
}

async fn truncate(
    client: &impl GenericClient,
    expected: &Expected,
    tables: &[TenantTable],
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let sql = "SELECT t, r.rolname::text FROM unnest($2::oid[]) t, pg_roles r
                WHERE r.rolname = ANY ($1) AND NOT r.rolsuper AND has_table_privilege(r.oid, t, 'TRUNCATE') ORDER BY 1, 2";
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    for row in client.query(sql, &[&expected.roles, &oids]).await? {
        let (oid, role): (u32, &str) = (row.get(0), row.get(1));
        let Some(table) = tables.iter().find(|t| t.oid == oid && t.owner != role) else { continue };
        let text = format!("{role} may TRUNCATE it, which no policy binds");
        let fix = format!("REVOKE TRUNCATE ON {} FROM {}", table.name, quote_ident(role));
        notes.add(Severity::Error, "truncate", table.name.as_str(), text, fix);
    }
    Ok(())
}
