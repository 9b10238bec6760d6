//! The tables and sequences of a scope, as a shard has them.

mod parts;
mod shared;

use std::collections::BTreeMap;

use crate::MoveError;
use crate::scope::{Model, Scope, ident};
use crate::sessions::Session;
use crate::shard::ShardAccess;

pub(crate) use parts::{Part, read_fences};
pub(crate) use shared::{Shared, TenantColumn};

/// Schemas that are nobody's data.
pub(crate) const FOREIGN: &str =
    "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'switchyard')";

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// As `format_type` writes it.
    pub(crate) kind: String,
    /// Computed by the shard: neither copied nor applied.
    pub(crate) generated: bool,
    /// `GENERATED ALWAYS AS IDENTITY`.
    pub(crate) identity_always: bool,
    pub(crate) not_null: bool,
    /// Its binary form names types by their OIDs, which differ between databases.
    pub(crate) text_only: bool,
    /// Its values are ordered the same on all shards.
    pub(crate) ordered: bool,
}

/// A unique index, or its constraint.
#[derive(Debug, Clone)]
pub(crate) struct Unique {
    pub(crate) name: String,
    /// None if it is over an expression.
    pub(crate) columns: Option<Vec<String>>,
}

/// A foreign key.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) to: u32,
    pub(crate) to_name: String,
}

/// A table; of a partitioned one, the root.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) persistence: String,
    pub(crate) identity: String,
    pub(crate) row_security: bool,
    pub(crate) inherited: bool,
    pub(crate) columns: Vec<Column>,
    /// Columns that tell a row from all others of the table: of the replica identity's index, or the primary key.
    pub(crate) key: Vec<String>,
    pub(crate) unique: Vec<Unique>,
    pub(crate) references: Vec<Reference>,
    /// Whether policies ask the seal who the tenant is.
    pub(crate) sealed: bool,
    /// Name and columns of an index that should be the key, but is deferrable or not valid: publishing the table would
    /// have UPDATE and DELETE fail for everybody.
    pub(crate) unusable: Option<(String, Vec<String>)>,
    /// What it consists of, if it is partitioned: at any depth, without itself.
    pub(crate) parts: Vec<Part>,
}

impl Table {
    /// `"schema"."name"`.
    pub(crate) fn quoted(&self) -> String {
        format!("{}.{}", ident(&self.schema), ident(&self.name))
    }

    /// For people.
    pub(crate) fn plain(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Whether its key has a column.
    pub(crate) fn has_key(&self, column: &str) -> bool {
        self.key.iter().any(|k| k == column)
    }

    /// Columns that are copied.
    pub(crate) fn copied(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|c| !c.generated)
    }

    /// Their names, quoted, with commas.
    pub(crate) fn column_list(&self) -> String {
        self.copied().map(|c| ident(&c.name)).collect::<Vec<_>>().join(", ")
    }

    /// Columns by whose order the rows of a scope can be copied range by range; none if they cannot.
    pub(crate) fn range_key(&self, scope: &Scope) -> Option<Vec<&Column>> {
        let mut key = self.key.iter();
        if let Some(tenant) = scope.column() {
            // The index finds a range of the tenant's only if the tenant comes first.
            key.next().filter(|first| *first == tenant)?;
        }
        let column = |name: &String| self.columns.iter().find(|c| c.name == *name && c.ordered);
        let columns = key.map(column).collect::<Option<Vec<_>>>()?;
        (!columns.is_empty()).then_some(columns)
    }

    /// Whether rows travel as text.
    pub(crate) fn as_text(&self) -> bool {
        self.copied().any(|c| c.text_only)
    }
}

/// What a shard has of a scope.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inventory {
    /// By schema and name.
    pub(crate) tables: BTreeMap<(String, String), Table>,
    /// Sequences, `schema.name` quoted.
    pub(crate) sequences: Vec<String>,
    /// What tables have beside that tenants share.
    pub(crate) shared: Shared,
}

impl Inventory {
    pub(crate) async fn read(client: &Session, at: &ShardAccess, scope: &Scope) -> Result<Self, MoveError> {
        let failed = at.failed();
        let (condition, value) = match &scope.model {
            Model::Rows { column, .. } => (
                "EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = $1
                         AND a.attnum > 0 AND NOT a.attisdropped)",
                column.clone(),
            ),
            Model::Schema { schema } => ("n.nspname = $1", schema.clone()),
            Model::Database { .. } => ("$1::text = $1", String::new()),
        };
        let sql = format!(
            "SELECT c.oid, n.nspname::text, c.relname::text, c.relpersistence::text, c.relreplident::text,
                    c.relrowsecurity,
                    c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i
                                                WHERE i.inhparent = c.oid OR i.inhrelid = c.oid),
                    EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname <> 'switchyard_fence'
                            AND pg_get_expr(p.polqual, c.oid) ~ 'switchyard\\.tenant_id')
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND {FOREIGN} AND {condition}"
        );
        let mut tables = BTreeMap::new();
        let statement = client.statement(&sql).await.map_err(failed)?;
        for row in client.client().query(&statement, &[&value]).await.map_err(failed)? {
            let table = Table {
                oid: row.get(0),
                schema: row.get(1),
                name: row.get(2),
                persistence: row.get(3),
                identity: row.get(4),
                row_security: row.get(5),
                inherited: row.get(6),
                sealed: row.get(7),
                unusable: None,
                parts: Vec::new(),
                columns: Vec::new(),
                key: Vec::new(),
                unique: Vec::new(),
                references: Vec::new(),
            };
            tables.insert(table.oid, table);
        }
        read_columns(client, at, &mut tables).await?;
        read_indexes(client, at, &mut tables).await?;
        read_references(client, at, &mut tables).await?;
        parts::read(client, at, &mut tables).await?;
        let oids: Vec<u32> = tables.keys().copied().collect();
        // By ownership or by a default; of own schemas and databases, all.
        let sql = match &scope.model {
            Model::Rows { .. } => {
                "SELECT DISTINCT format('%I.%I', n.nspname, s.relname)
                 FROM pg_class s JOIN pg_namespace n ON n.oid = s.relnamespace
                 WHERE s.relkind = 'S' AND $2::text = $2 AND (
                     EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = s.oid
                             AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY ($1)
                             AND d.deptype IN ('a', 'i'))
                     OR EXISTS (SELECT FROM pg_attrdef f JOIN pg_depend d
                                ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
                                WHERE f.adrelid = ANY ($1) AND d.refobjid = s.oid)) ORDER BY 1"
                    .to_owned()
            }
            Model::Schema { .. } => "SELECT format('%I.%I', n.nspname, s.relname)
                 FROM pg_class s JOIN pg_namespace n ON n.oid = s.relnamespace
                 WHERE s.relkind = 'S' AND n.nspname = $2 AND $1::oid[] = $1 ORDER BY 1"
                .to_owned(),
            Model::Database { .. } => format!(
                "SELECT format('%I.%I', n.nspname, s.relname)
                 FROM pg_class s JOIN pg_namespace n ON n.oid = s.relnamespace
                 WHERE s.relkind = 'S' AND {FOREIGN} AND $1::oid[] = $1 AND $2::text = $2 ORDER BY 1"
            ),
        };
        let statement = client.statement(&sql).await.map_err(failed)?;
        let rows = client.client().query(&statement, &[&oids, &value]).await.map_err(failed)?;
        let sequences = rows.iter().map(|r| r.get(0)).collect();
        let shared = shared::read(client, at, scope, tables.values()).await?;
        let tables = tables.into_values().map(|t| ((t.schema.clone(), t.name.clone()), t)).collect();
        Ok(Self { tables, sequences, shared })
    }

    /// All that a move depends on, to be compared with what it is later.
    pub(crate) fn fingerprint(&self) -> String {
        let mut text = String::new();
        for table in self.tables.values() {
            text += &format!("{} {:?} {:?}\n", table.plain(), table.columns, table.key);
            text += &format!("{} {:?} {:?}\n", table.persistence, table.identity, table.parts);
        }
        text
    }
}

async fn read_columns(
    client: &Session,
    at: &ShardAccess,
    tables: &mut BTreeMap<u32, Table>,
) -> Result<(), MoveError> {
    let oids: Vec<u32> = tables.keys().copied().collect();
    // The binary form of an array or a composite holds the OIDs of what it is made of, that of a regclass or its
    // like is one.
    let sql =
        "SELECT a.attrelid, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attgenerated <> '',
                      a.attidentity = 'a', a.attnotnull,
                      b.typtype IN ('c', 'r', 'm') OR (b.typcategory = 'A' AND b.typelem >= 16384)
                      OR ARRAY[b.oid, b.typelem] && ARRAY['regproc', 'regprocedure', 'regoper', 'regoperator', 'regclass',
                          'regcollation', 'regtype', 'regrole', 'regnamespace', 'regconfig', 'regdictionary']::regtype[]::oid[],
                      b.oid < 16384 AND b.typtype = 'b' AND b.typcategory <> 'A' AND a.attcollation IN (
                          SELECT 0 UNION ALL SELECT l.oid FROM pg_collation l, pg_database d
                          WHERE d.datname = current_database()
                            AND CASE WHEN l.collprovider = 'd' THEN d.datlocprovider = 'c' AND d.datcollate IN ('C', 'POSIX')
                                ELSE l.collprovider = 'c' AND l.collcollate IN ('C', 'POSIX') END)
               FROM pg_attribute a CROSS JOIN LATERAL (
                   WITH RECURSIVE of(oid, base) AS (
                       SELECT t.oid, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
                       UNION ALL SELECT t.oid, t.typbasetype FROM of JOIN pg_type t ON t.oid = of.base)
                   SELECT of.oid FROM of WHERE of.base = 0) d
               JOIN pg_type b ON b.oid = d.oid
               WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
               ORDER BY a.attrelid, a.attnum";
    for row in client.query(sql, &[&oids]).await.map_err(at.failed())? {
        if let Some(table) = tables.get_mut(&row.get::<_, u32>(0)) {
            table.columns.push(Column {
                name: row.get(1),
                kind: row.get(2),
                generated: row.get(3),
                identity_always: row.get(4),
                not_null: row.get(5),
                text_only: row.get(6),
                ordered: row.get(7),
            });
        }
    }
    Ok(())
}

async fn read_indexes(
    client: &Session,
    at: &ShardAccess,
    tables: &mut BTreeMap<u32, Table>,
) -> Result<(), MoveError> {
    let oids: Vec<u32> = tables.keys().copied().collect();
    let sql = "SELECT i.indrelid, x.relname::text, i.indisprimary, i.indisreplident, i.indexprs IS NULL,
                      ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(n, o)
                            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.n
                            WHERE k.o <= i.indnkeyatts ORDER BY k.o),
                      i.indimmediate AND i.indisvalid
               FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
               WHERE i.indrelid = ANY ($1) AND i.indisunique ORDER BY i.indisprimary DESC, x.relname";
    for row in client.query(sql, &[&oids]).await.map_err(at.failed())? {
        let Some(table) = tables.get_mut(&row.get::<_, u32>(0)) else { continue };
        let (primary, replica): (bool, bool) = (row.get(2), row.get(3));
        let columns: Vec<String> = row.get(5);
        if (primary && table.identity != "i") || (replica && table.identity == "i") {
            if row.get(6) {
                table.key.clone_from(&columns);
            } else {
                table.unusable = Some((row.get(1), columns.clone()));
            }
        }
        table.unique.push(Unique { name: row.get(1), columns: row.get::<_, bool>(4).then_some(columns) });
    }
    Ok(())
}

async fn read_references(
    client: &Session,
    at: &ShardAccess,
    tables: &mut BTreeMap<u32, Table>,
) -> Result<(), MoveError> {
    let oids: Vec<u32> = tables.keys().copied().collect();
    let sql = "SELECT conrelid, conname::text, confrelid, confrelid::regclass::text FROM pg_constraint
               WHERE contype = 'f' AND conparentid = 0 AND conrelid = ANY ($1)";
    for row in client.query(sql, &[&oids]).await.map_err(at.failed())? {
        if let Some(table) = tables.get_mut(&row.get::<_, u32>(0)) {
            table.references.push(Reference { name: row.get(1), to: row.get(2), to_name: row.get(3) });
        }
    }
    Ok(())
}

/// Which of the tables have rows of the scope, in their order.
pub(crate) async fn have_rows(
    (client, at): (&Session, &ShardAccess),
    tables: impl Iterator<Item = &Table>,
    scope: &Scope,
) -> Result<Vec<bool>, MoveError> {
    let filter = scope.filter();
    let each = tables.map(|t| format!("EXISTS (SELECT FROM {}{filter})", t.quoted()));
    let sql = format!("SELECT ARRAY[{}]::bool[]", each.collect::<Vec<_>>().join(", "));
    Ok(client.client().query_one(&sql, &[]).await.map_err(at.failed())?.get(0))
}
