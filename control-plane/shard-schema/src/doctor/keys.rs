//! Keys, references and sequences: what collides, and what a move needs.

use tokio_postgres::GenericClient;

use super::{Expected, Notes, Severity};
use crate::SchemaError;
use crate::tables::{NOT_OURS, TenantTable};

pub(super) async fn look(
    client: &impl GenericClient,
    expected: &Expected,
    tables: &[TenantTable],
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    unique(client, expected, &oids, notes).await?;
    references(client, expected, &oids, notes).await?;
    unscoped(client, expected, &oids, notes).await?;
    identity(client, &oids, notes).await
}

/// Unique constraints without the tenant: ids of two shards collide when tenants meet, and a
/// violation tells that another tenant has the value. Random ids do neither.
async fn unique(
    client: &impl GenericClient,
    expected: &Expected,
    oids: &[u32],
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let sql = "SELECT format('%I.%I', n.nspname, c.relname), format('%I.%I', n.nspname, ic.relname), con.conname::text, con.contype::text,
                      (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.n)
                         FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(att, n)
                         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.att),
                      i.indisreplident
                 FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                 JOIN pg_class ic ON ic.oid = i.indexrelid
                 LEFT JOIN pg_constraint con ON con.conindid = i.indexrelid AND con.contype IN ('p', 'u')
                WHERE i.indrelid = ANY ($1) AND i.indisunique
                  AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = $2
                                  AND a.attnum = ANY (i.indkey::int2[]))
                  AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid
                                  AND a.attnum = ANY (i.indkey::int2[]) AND a.atttypid = 'uuid'::regtype)
                ORDER BY 1, 2";
    for row in client.query(sql, &[&oids, &expected.column]).await? {
        let (table, index): (&str, &str) = (row.get(0), row.get(1));
        let (constraint, kind): (Option<&str>, Option<&str>) = (row.get(2), row.get(3));
        let columns: Option<&str> = row.get(4);
        let columns = columns.unwrap_or("...");
        let column = crate::quote_ident(&expected.column);
        let fix = match (constraint, kind) {
            (Some(name), Some(kind)) => {
                let kind = if kind == "p" { "PRIMARY KEY" } else { "UNIQUE" };
                let name = crate::quote_ident(name);
                format!(
                    "ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} {kind} ({column}, {columns})"
                )
            }
            _ => format!(
                "CREATE UNIQUE INDEX CONCURRENTLY ON {table} ({column}, {columns}); DROP INDEX CONCURRENTLY {index}"
            ),
        };
        let text = format!(
            "the unique key ({columns}) lacks {}: tenants collide in it, and learn of each other by its violations",
            expected.column
        );
        notes.add(Severity::Error, "unique-without-tenant", format!("{index} on {table}"), text, fix);
    }
    Ok(())
}

/// References between tables of tenants that do not carry the tenant along.
async fn references(
    client: &impl GenericClient,
    expected: &Expected,
    oids: &[u32],
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let sql = "SELECT con.conrelid::regclass::text, quote_ident(con.conname), con.confrelid::regclass::text,
                      (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.n) FROM unnest(con.conkey) WITH ORDINALITY k(att, n)
                         JOIN pg_attribute a ON a.attrelid = con.conrelid AND a.attnum = k.att),
                      (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.n) FROM unnest(con.confkey) WITH ORDINALITY k(att, n)
                         JOIN pg_attribute a ON a.attrelid = con.confrelid AND a.attnum = k.att)
                 FROM pg_constraint con
                WHERE con.contype = 'f' AND con.conparentid = 0 AND con.conrelid = ANY ($1) AND con.confrelid = ANY ($1)
                  AND NOT EXISTS (
                      SELECT FROM unnest(con.conkey, con.confkey) k(own, other)
                      JOIN pg_attribute a ON a.attrelid = con.conrelid AND a.attnum = k.own AND a.attname = $2
                      JOIN pg_attribute b ON b.attrelid = con.confrelid AND b.attnum = k.other AND b.attname = $2)
                ORDER BY 1, 2";
    for row in client.query(sql, &[&oids, &expected.column]).await? {
        let [table, name, other, own, foreign]: [&str; 5] =
            [row.get(0), row.get(1), row.get(2), row.get(3), row.get(4)];
        let column = crate::quote_ident(&expected.column);
        let text = format!(
            "the reference to {other} lacks {}: a row of another tenant is accepted",
            expected.column
        );
        let fix = format!(
            "ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} FOREIGN KEY ({column}, {own}) REFERENCES {other} ({column}, {foreign})"
        );
        notes.add(Severity::Error, "reference-without-tenant", format!("{name} on {table}"), text, fix);
    }
    Ok(())
}

/// Tables without the tenant that are tied to tables with it.
async fn unscoped(
    client: &impl GenericClient,
    expected: &Expected,
    oids: &[u32],
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let sql = format!(
        "SELECT DISTINCT format('%I.%I', n.nspname, c.relname),
                (SELECT min(con.confrelid::regclass::text) FROM pg_constraint con
                  WHERE con.contype = 'f' AND con.conrelid = c.oid AND con.confrelid = ANY ($1)),
                (SELECT min(con.conrelid::regclass::text) FROM pg_constraint con
                  WHERE con.contype = 'f' AND con.confrelid = c.oid AND con.conrelid = ANY ($1)),
                EXISTS (SELECT FROM pg_roles r WHERE r.rolname = ANY ($2)
                        AND has_table_privilege(r.oid, c.oid, 'INSERT, UPDATE, DELETE'))
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p') AND NOT c.oid = ANY ($1) AND {NOT_OURS} ORDER BY 1"
    );
    for row in client.query(&sql, &[&oids, &expected.roles]).await? {
        let table: &str = row.get(0);
        let (refers, referred, written): (Option<&str>, Option<&str>, bool) =
            (row.get(1), row.get(2), row.get(3));
        let column = crate::quote_ident(&expected.column);
        if let Some(other) = refers {
            let text = format!(
                "refers to {other} and has no {}: its rows are tenants' rows without a policy",
                expected.column
            );
            let fix = format!(
                "ALTER TABLE {table} ADD COLUMN {column} text; -- then fill it from {other}, and: switchyard schema protect"
            );
            notes.add(Severity::Error, "unscoped-child", table, text, fix);
        } else if let Some(other) = referred.filter(|_| written) {
            let text = format!(
                "is referred to by {other}, has no {}, and may be written to: what one tenant writes, all see",
                expected.column
            );
            let fix = roles_list(expected, |roles| {
                format!("REVOKE INSERT, UPDATE, DELETE ON {table} FROM {roles}")
            });
            notes.add(Severity::Warning, "unscoped-parent", table, text, fix);
        }
    }
    Ok(())
}

fn roles_list(expected: &Expected, sql: impl FnOnce(&str) -> String) -> String {
    let roles: Vec<_> = expected.roles.iter().map(|r| crate::quote_ident(r)).collect();
    sql(&roles.join(", "))
}

/// What a move needs of a table: to find the row that changed.
async fn identity(
    client: &impl GenericClient,
    oids: &[u32],
    notes: &mut Notes<'_>,
) -> Result<(), SchemaError> {
    let sql = "SELECT c.oid::regclass::text, c.relpersistence = 'u' FROM pg_class c
                WHERE c.oid = ANY ($1) AND c.relkind = 'r'
                  AND (c.relpersistence = 'u' OR c.relreplident = 'n'
                       OR c.relreplident = 'd' AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
                       OR c.relreplident = 'i' AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident))
                ORDER BY 1";
    for row in client.query(sql, &[&oids]).await? {
        let table: &str = row.get(0);
        if row.get(1) {
            let text = "is unlogged: a move does not see its changes";
            notes.add(Severity::Warning, "unlogged", table, text, format!("ALTER TABLE {table} SET LOGGED"));
        } else {
            let text = "has no replica identity: its tenants cannot be moved while they write";
            let fix = format!(
                "ALTER TABLE {table} ADD PRIMARY KEY (...); -- or: ALTER TABLE {table} REPLICA IDENTITY FULL"
            );
            notes.add(Severity::Warning, "replica-identity", table, text, fix);
        }
    }
    Ok(())
}
