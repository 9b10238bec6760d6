//! The roles that routers log in as.

use tokio_postgres::GenericClient;

use super::{Expected, Notes, Severity};
use crate::protect::Mode;
use crate::{OWNER, SchemaError, quote_ident};

pub(super) async fn look(
    client: &impl GenericClient,
    expected: &Expected,
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let sql =
        "SELECT rolname::text, rolsuper, rolbypassrls, rolcreaterole FROM pg_roles WHERE rolname = ANY ($1)";
    let found = client.query(sql, &[&expected.roles]).await?;
    for role in &expected.roles {
        let Some(row) = found.iter().find(|row| row.get::<_, &str>(0) == role) else {
            notes.add(
                Severity::Error,
                "role-missing",
                role,
                "routers log in as a role that is not there",
                None,
            );
            continue;
        };
        let quoted = quote_ident(role);
        if row.get(1) {
            let text = "routers log in as a superuser, for whom there are no policies";
            let fix = format!("ALTER ROLE {quoted} NOSUPERUSER");
            notes.add(Severity::Error, "role-superuser", role, text, fix);
        }
        if row.get(2) {
            let text = "routers log in as a role with BYPASSRLS, for which there are no policies";
            notes.add(
                Severity::Error,
                "role-bypassrls",
                role,
                text,
                format!("ALTER ROLE {quoted} NOBYPASSRLS"),
            );
        }
        if row.get(3) {
            let text = "routers log in as a role that may make roles, and grant itself theirs";
            notes.add(
                Severity::Error,
                "role-createrole",
                role,
                text,
                format!("ALTER ROLE {quoted} NOCREATEROLE"),
            );
        }
    }
    members(client, expected, notes).await?;
    settings(client, expected, notes).await
}

/// Roles that ours may switch to.
async fn members(
    client: &impl GenericClient,
    expected: &Expected,
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let sql = "SELECT m.rolname::text, r.rolname::text FROM pg_roles m, pg_roles r
                WHERE m.rolname = ANY ($1) AND NOT m.rolsuper AND m.oid <> r.oid AND pg_has_role(m.oid, r.oid, 'MEMBER')
                  AND (r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolname = $2
                       OR r.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'))
                ORDER BY 1, 2";
    for row in client.query(sql, &[&expected.roles, &OWNER]).await? {
        let (member, of): (&str, &str) = (row.get(0), row.get(1));
        let text = format!("is a member of {of}, and by that beyond every policy");
        let fix = format!("REVOKE {} FROM {}", quote_ident(of), quote_ident(member));
        notes.add(Severity::Error, "role-member", member, text, fix);
    }
    if expected.mode == Mode::Sealed {
        let sql = "SELECT m.rolname::text FROM pg_roles m
                    WHERE m.rolname = ANY ($1) AND NOT m.rolsuper AND has_parameter_privilege(m.oid, $2, 'SET')
                      AND NOT pg_has_role(m.oid, coalesce(to_regrole($3)::oid, 0), 'MEMBER')";
        let parameter = crate::install::PARAMETER;
        for row in client.query(sql, &[&expected.roles, &parameter, &OWNER]).await? {
            let text = format!("may set {parameter}, in which the seal keeps the tenant");
            let fix = format!("REVOKE SET ON PARAMETER {parameter} FROM {}, PUBLIC", quote_ident(row.get(0)));
            notes.add(Severity::Error, "role-parameter", row.get::<_, &str>(0), text, fix);
        }
    }
    Ok(())
}

/// What a role has made the default for all who log in as it, tenants' SQL included.
async fn settings(
    client: &impl GenericClient,
    expected: &Expected,
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let sql = "SELECT r.rolname::text, split_part(x, '=', 1) FROM pg_db_role_setting s
                 JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) x
                WHERE r.rolname = ANY ($1)
                  AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
                  AND split_part(x, '=', 1) IN ('search_path', 'role', 'row_security', 'statement_timeout',
                      'default_transaction_read_only', 'session_replication_role', 'lock_timeout')
                ORDER BY 1, 2";
    for row in client.query(sql, &[&expected.roles]).await? {
        let (role, name): (&str, &str) = (row.get(0), row.get(1));
        let text = format!(
            "has a default of its own for {name}, which the role itself can set and every session begins with"
        );
        let fix = format!("ALTER ROLE {} RESET {name}", quote_ident(role));
        notes.add(Severity::Warning, "role-setting", role, text, fix);
    }
    Ok(())
}
