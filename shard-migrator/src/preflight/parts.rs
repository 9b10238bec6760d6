//! Parts of partitioned tables: SQL may name them by themselves, and it is them that the log tells of.

use super::Finding;
use crate::inventory::Table;
use crate::scope::{Model, Scope};

/// What keeps the parts of a table from being moved. `place` says where they are, if that is not the source.
pub(super) fn parts(scope: &Scope, table: &Table, place: &str, found: &mut Vec<Finding>) {
    let mut key = table.key.clone();
    key.sort();
    let names_tenant = scope.column().is_none_or(|column| key.iter().any(|k| k == column));
    for part in &table.parts {
        let (about, quoted) = (format!("{}{place}", part.plain()), part.quoted());
        if part.kind == "f" {
            let mend = format!("ALTER TABLE {} DETACH PARTITION {quoted}", table.quoted());
            found.push(Finding::refuses(
                &about,
                "it is a foreign table, so its changes cannot be followed",
                mend,
            ));
            continue;
        }
        if part.kind == "r" && part.persistence != "p" {
            let mend = format!("ALTER TABLE {quoted} SET LOGGED");
            found.push(Finding::refuses(&about, "it is not logged, so its changes cannot be followed", mend));
        }
        if part.kind == "r" && part.identity == "n" {
            let mend = format!("ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT");
            found.push(Finding::refuses(&about, "it has no replica identity", mend));
        } else if part.kind == "r" && part.identity != "f" && (part.key != key || !names_tenant) {
            found.push(Finding::refuses(
                &about,
                format!(
                    "its replica identity does not tell the key of {} and the tenant of a row",
                    table.plain()
                ),
                format!("ALTER TABLE {quoted} REPLICA IDENTITY FULL"),
            ));
        }
        if matches!(scope.model, Model::Rows { .. }) && !part.row_security {
            found.push(Finding::refuses(
                &about,
                "it has no row-level security, so whoever names it meets neither its table's policies nor the fence",
                format!("ALTER TABLE {quoted} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"),
            ));
        }
    }
}
