//! Whether everybody means the same rows by the tenant: SQL, the log, and the policies.

use std::collections::{BTreeMap, HashMap};

use super::{Finding, Place};
use crate::MoveError;
use crate::inventory::{Table, TenantColumn};
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
    let tables = tables(place);
    let mut written: HashMap<String, Option<String>> = HashMap::new();
    let id = scope.tenant.as_str();
    for TenantColumn { table, kind, deterministic, bytewise } in &place.inventory.shared.columns {
        let Some(table) = tables.get(table) else { continue };
        let reason = if !deterministic {
            format!("the collation of {column} takes different ids for equal")
        } else if !bytewise {
            format!("column {column} is of type {kind}, of which equal values may look different")
        } else {
            // A text is what it is.
            if kind == "text" {
                continue;
            }
            if !written.contains_key(kind) {
                // By the type's output function, unlike a cast to text.
                let sql = format!("SELECT pg_catalog.format('%s', {}::{kind})", literal(id));
                let shown = match place.client.client().query_one(&sql, &[]).await {
                    Ok(row) => Some(row.get(0)),
                    Err(error) if error.as_db_error().is_some() => None,
                    Err(error) => return Err(place.at.failed()(error)),
                };
                written.insert(kind.clone(), shown);
            }
            match written.get(kind).and_then(Option::as_deref) {
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
pub(super) fn variables(scope: &Scope, place: &Place<'_>, suffix: &str, found: &mut Vec<Finding>) {
    let Model::Rows { variable: Some(variable), .. } = &scope.model else { return };
    let tables = tables(place);
    let mut asked: BTreeMap<u32, (Vec<&str>, bool)> = BTreeMap::new();
    for (table, name, unknown) in &place.inventory.shared.asked {
        let of = asked.entry(*table).or_default();
        of.0.push(name);
        of.1 |= unknown;
    }
    for (oid, (names, unknown)) in asked {
        let Some(table) = tables.get(&oid) else { continue };
        if table.sealed || unknown || names.contains(&variable.to_ascii_lowercase().as_str()) {
            continue;
        }
        let names = names.join(", ");
        found.push(Finding::refuses(
            format!("{}{suffix}", table.plain()),
            format!("its policies ask {names}, and the tenant's context sets {variable}"),
            format!("the same variable in both: set {names} to `{{tenant}}` in the context, or make the policies anew"),
        ));
    }
}

fn tables<'p>(place: &Place<'p>) -> HashMap<u32, &'p Table> {
    place.inventory.tables.values().map(|t| (t.oid, t)).collect()
}
