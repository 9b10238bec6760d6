//! Whether everybody means the same rows by the tenant: SQL, the log, and the policies.

use std::collections::{BTreeMap, HashMap};

use super::{Finding, Place};
use crate::MoveError;
use crate::inventory::Table;
use crate::scope::{Model, Scope, ident, literal};

/// Whether the log tells of rows as SQL does: it shows values, to be compared by their bytes, where SQL compares by
/// the type and the collation.
pub(super) async fn columns(
    scope: &Scope,
    place: &Place<'_>,
    suffix: &str,
    found: &mut Vec<Finding>,
) -> Result<(), MoveError> {
    let Some(column) = scope.column() else { return Ok(()) };
    let (tables, oids) = tables(place);
    // Types whose equal values are the same bytes. A character(n) is padded to n.
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
    let mut written: HashMap<String, Option<String>> = HashMap::new();
    let id = scope.tenant.as_str();
    for row in place.client.query(sql, &[&oids, &column]).await.map_err(place.at.failed())? {
        let Some(table) = tables.get(&row.get::<_, u32>(0)) else { continue };
        let (kind, deterministic, bytewise): (String, bool, bool) = (row.get(1), row.get(2), row.get(3));
        let reason = if !deterministic {
            format!("the collation of {column} takes different ids for equal")
        } else if !bytewise {
            format!("column {column} is of type {kind}, of which equal values may look different")
        } else {
            if !written.contains_key(&kind) {
                // By the type's output function, unlike a cast to text.
                let sql = format!("SELECT pg_catalog.format('%s', {}::{kind})", literal(id));
                let shown = match place.client.query_one(&sql, &[]).await {
                    Ok(row) => Some(row.get(0)),
                    Err(error) if error.as_db_error().is_some() => None,
                    Err(error) => return Err(place.at.failed()(error)),
                };
                written.insert(kind.clone(), shown);
            }
            match written.get(&kind).and_then(Option::as_deref) {
                Some(shown) if shown == id => continue,
                Some(shown) => {
                    format!("the type {kind} of column {column} shows the tenant's id as `{shown}`")
                }
                None => format!("the tenant's id is no value of the type {kind} of column {column}"),
            }
        };
        found.push(Finding::refuses(
            format!("{}{suffix}", table.plain()),
            reason,
            format!(
                "ALTER TABLE {} ALTER COLUMN {} TYPE text COLLATE \"C\", or a tenant whose id is what is shown",
                table.quoted(),
                ident(column)
            ),
        ));
    }
    Ok(())
}

/// Whether the policies ask the variable that the tenant's context sets, which the fence asks too.
pub(super) async fn variables(
    scope: &Scope,
    place: &Place<'_>,
    suffix: &str,
    found: &mut Vec<Finding>,
) -> Result<(), MoveError> {
    let Model::Rows { variable: Some(variable), .. } = &scope.model else { return Ok(()) };
    let (tables, oids) = tables(place);
    // A function of the user's, which is written with its schema, may ask whatever it likes.
    let sql = r#"SELECT e.polrelid, lower(m[1]), bool_or(e.text ~ '[[:alnum:]_"]\.[[:alnum:]_"]+\(')
               FROM (SELECT polrelid, concat(pg_get_expr(polqual, polrelid), ' ', pg_get_expr(polwithcheck, polrelid))
                     FROM pg_policy WHERE polrelid = ANY ($1) AND polname <> 'switchyard_fence') e(polrelid, text),
                    regexp_matches(e.text, 'current_setting\(''([^'']+)''', 'g') m
               GROUP BY 1, 2 ORDER BY 1, 2"#;
    let mut asked: BTreeMap<u32, (Vec<String>, bool)> = BTreeMap::new();
    for row in place.client.query(sql, &[&oids]).await.map_err(place.at.failed())? {
        let of = asked.entry(row.get(0)).or_default();
        of.0.push(row.get(1));
        of.1 |= row.get::<_, bool>(2);
    }
    for (oid, (names, unknown)) in asked {
        let Some(table) = tables.get(&oid) else { continue };
        if table.sealed || unknown || names.contains(&variable.to_ascii_lowercase()) {
            continue;
        }
        let names = names.join(", ");
        found.push(Finding::refuses(
            format!("{}{suffix}", table.plain()),
            format!("its policies ask {names}, and the tenant's context sets {variable}"),
            format!("the same variable in both: set {names} to `{{tenant}}` in the context, or make the policies anew"),
        ));
    }
    Ok(())
}

fn tables<'p>(place: &Place<'p>) -> (HashMap<u32, &'p Table>, Vec<u32>) {
    let tables: HashMap<u32, &Table> = place.inventory.tables.values().map(|t| (t.oid, t)).collect();
    let oids = tables.keys().copied().collect();
    (tables, oids)
}
