//! Changes of the source, as statements for the target.
//!
//! Of a table that is there in part, only what the part has is changed: see [`Frontier`].

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

use crate::MoveError;
use crate::inventory::{Inventory, Table};
use crate::pieces::Frontier;
use crate::scope::{Scope, ident, literal};
use crate::stream::{Change, Relation, Row, Value};

/// A value in text form, for a parameter of any type.
#[derive(Debug)]
pub(crate) struct Text(Option<Bytes>);

impl ToSql for Text {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match &self.0 {
            None => Ok(IsNull::Yes),
            Some(text) => {
                out.extend_from_slice(text);
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}

/// One statement to run, and how many rows it must touch, if that is known.
#[derive(Debug)]
pub(crate) struct Deed {
    pub(crate) sql: String,
    pub(crate) params: Vec<Text>,
    pub(crate) rows: Option<u64>,
    pub(crate) what: String,
}

/// Columns of a row, with their values.
type Named = [(String, Value)];

/// Makes statements of changes.
pub(crate) struct Deeds {
    scope: Scope,
    tables: HashMap<(String, String), Table>,
    /// Of tables that may not be there as a whole.
    pub(crate) frontiers: HashMap<(String, String), Frontier>,
}

impl Deeds {
    pub(crate) fn new(scope: &Scope, inventory: &Inventory) -> Self {
        Self {
            scope: scope.clone(),
            tables: inventory.tables.clone().into_iter().collect(),
            frontiers: HashMap::new(),
        }
    }

    /// The statements of a change; none if it is about nothing that is there.
    pub(crate) fn of(&self, relation: &Relation, change: &Change) -> Result<Vec<Deed>, MoveError> {
        let name = (relation.schema.clone(), relation.name.clone());
        let Some(table) = self.tables.get(&name) else { return Ok(Vec::new()) };
        let values = |row: &Row| -> Vec<(String, Value)> {
            relation.columns.iter().map(|(name, _)| name.clone()).zip(row.iter().cloned()).collect()
        };
        match self.frontiers.get(&name).unwrap_or(&Frontier::All) {
            Frontier::Nothing => Ok(Vec::new()),
            Frontier::All => Ok(match change {
                Change::Insert { new } => vec![insert(table, &values(new))],
                Change::Update { old, new } => {
                    let old = old.as_ref().map(values);
                    Vec::from_iter(self.update(table, old.as_deref(), &values(new))?)
                }
                Change::Delete { old } => vec![self.delete(table, &values(old))?],
            }),
            Frontier::UpTo(upto) => {
                let part = Part { table, key: self.range_key(table)?, upto };
                match change {
                    Change::Insert { new } => Ok(vec![part.insert(&values(new), None)?]),
                    Change::Update { old, new } => {
                        let old = old.as_ref().map(values);
                        self.update_part(&part, old.as_deref(), &values(new))
                    }
                    Change::Delete { old } => Ok(vec![part.within(self.delete(table, &values(old))?)]),
                }
            }
        }
    }

    fn range_key(&self, table: &Table) -> Result<Vec<(String, String)>, MoveError> {
        let key = table.range_key(&self.scope);
        let key = key.ok_or_else(|| MoveError::Invalid(format!("{} is there in part", table.plain())))?;
        Ok(key.into_iter().map(|c| (c.name.clone(), c.kind.clone())).collect())
    }

    /// An update of a row that may be here, and may go beyond what is here or come from there.
    fn update_part(&self, part: &Part<'_>, old: Option<&Named>, new: &Named) -> Result<Vec<Deed>, MoveError> {
        let update = self.update(part.table, old, new)?.map(|deed| part.within(deed));
        let Some(old) = old.filter(|old| key_changed(part.table, Some(old), new)) else {
            return Ok(Vec::from_iter(update));
        };
        // The one that comes is not here, so it is made of what the stream tells of it.
        if new.iter().any(|(_, value)| *value == Value::Unchanged) {
            return Err(MoveError::Again(format!("the key of a row of {} was changed", part.table.plain())));
        }
        let mut deeds = Vec::from_iter(update);
        deeds.push(part.beyond(self.delete(part.table, new)?));
        deeds.push(part.insert(new, Some(old))?);
        Ok(deeds)
    }

    fn update(&self, table: &Table, old: Option<&Named>, new: &Named) -> Result<Option<Deed>, MoveError> {
        let mut params = Vec::new();
        let mut sets = Vec::new();
        let key_changed = key_changed(table, old, new);
        for (name, value) in new {
            let column = table.columns.iter().find(|c| c.name == *name);
            // An identity column can only be set anew by a new row.
            let fixed = column.is_some_and(|c| c.identity_always);
            let same_key = table.key.contains(name) && !key_changed;
            if *value == Value::Unchanged || fixed || same_key {
                if fixed && key_changed && table.key.contains(name) {
                    let what = format!("the identity key of a row of {} was changed", table.plain());
                    return Err(MoveError::Drift(what));
                }
                continue;
            }
            params.push(text(value));
            sets.push(format!("{} = ${}", ident(name), params.len()));
        }
        if sets.is_empty() {
            return Ok(None);
        }
        let condition = self.condition(table, old.unwrap_or(new), &mut params)?;
        Ok(Some(Deed {
            sql: format!("UPDATE {} SET {} WHERE {condition}", table.quoted(), sets.join(", ")),
            params,
            rows: Some(1),
            what: format!("an update of {}", table.plain()),
        }))
    }

    fn delete(&self, table: &Table, old: &Named) -> Result<Deed, MoveError> {
        let mut params = Vec::new();
        let condition = self.condition(table, old, &mut params)?;
        // Where the key does not tell the tenant, a neighbour's deletion comes here too, and finds nothing.
        let ours = self.scope.column().is_none_or(|column| table.key.iter().any(|k| k == column));
        Ok(Deed {
            sql: format!("DELETE FROM {} WHERE {condition}", table.quoted()),
            params,
            rows: ours.then_some(1),
            what: format!("a delete from {}", table.plain()),
        })
    }

    /// The row that a key names, and that it is the tenant's.
    fn condition(&self, table: &Table, values: &Named, params: &mut Vec<Text>) -> Result<String, MoveError> {
        let mut parts = Vec::new();
        for column in &table.key {
            params.push(text(key_value(table, values, column)?));
            parts.push(format!("{} = ${}", ident(column), params.len()));
        }
        if let Some(column) = self.scope.column()
            && !table.key.iter().any(|k| k == column)
        {
            parts.push(format!("{} = {}", ident(column), literal(self.scope.tenant.as_str())));
        }
        Ok(parts.join(" AND "))
    }
}

/// A table that is here up to a key. Statements about it touch a row or none, which the comparison checks.
struct Part<'a> {
    table: &'a Table,
    /// Columns of the key by whose order it is cut, with their types.
    key: Vec<(String, String)>,
    upto: &'a [String],
}

impl Part<'_> {
    fn names(&self) -> String {
        self.key.iter().map(|(name, _)| ident(name)).collect::<Vec<_>>().join(", ")
    }

    /// The frontier, as further parameters.
    fn frontier(&self, params: &mut Vec<Text>) -> String {
        self.typed(self.upto.iter().map(|v| Text(Some(Bytes::copy_from_slice(v.as_bytes())))), params)
    }

    fn typed(&self, values: impl Iterator<Item = Text>, params: &mut Vec<Text>) -> String {
        let mut places = Vec::new();
        for ((_, kind), value) in self.key.iter().zip(values) {
            params.push(value);
            places.push(format!("${}::{kind}", params.len()));
        }
        places.join(", ")
    }

    /// The same, if the row is in the part.
    fn within(&self, deed: Deed) -> Deed {
        self.limited(deed, "<=")
    }

    /// The same, if it is not.
    fn beyond(&self, deed: Deed) -> Deed {
        self.limited(deed, ">")
    }

    fn limited(&self, mut deed: Deed, than: &str) -> Deed {
        let frontier = self.frontier(&mut deed.params);
        deed.sql += &format!(" AND ({}) {than} ({frontier})", self.names());
        deed.rows = None;
        deed
    }

    /// A row, if its key is in the part; of one that had another key, if that was not.
    fn insert(&self, new: &Named, old: Option<&Named>) -> Result<Deed, MoveError> {
        let mut params = Vec::new();
        let (mut names, mut places) = (Vec::new(), Vec::new());
        for (name, value) in new {
            let column = self.table.columns.iter().find(|c| c.name == *name);
            let kind = column.map_or("text", |c| c.kind.as_str());
            params.push(text(value));
            names.push(ident(name));
            places.push(format!("${}::{kind}", params.len()));
        }
        let key = |values: &Named| -> Result<Vec<Text>, MoveError> {
            self.key.iter().map(|(name, _)| Ok(text(key_value(self.table, values, name)?))).collect()
        };
        let new_key = self.typed(key(new)?.into_iter(), &mut params);
        let mut condition = format!("({new_key}) <= ({})", self.frontier(&mut params));
        if let Some(old) = old {
            let old_key = self.typed(key(old)?.into_iter(), &mut params);
            condition += &format!(" AND ({old_key}) > ({})", self.frontier(&mut params));
        }
        Ok(Deed {
            sql: format!(
                "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} WHERE {condition}",
                self.table.quoted(),
                names.join(", "),
                places.join(", ")
            ),
            params,
            rows: None,
            what: format!("an insert into {}", self.table.plain()),
        })
    }
}

fn insert(table: &Table, new: &Named) -> Deed {
    let names: Vec<_> = new.iter().map(|(name, _)| ident(name)).collect();
    let places: Vec<_> = (1..=new.len()).map(|n| format!("${n}")).collect();
    Deed {
        sql: format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
            table.quoted(),
            names.join(", "),
            places.join(", ")
        ),
        params: new.iter().map(|(_, value)| text(value)).collect(),
        rows: Some(1),
        what: format!("an insert into {}", table.plain()),
    }
}

fn key_changed(table: &Table, old: Option<&Named>, new: &Named) -> bool {
    old.is_some_and(|old| {
        table.key.iter().any(|k| value_of(old, k).is_some_and(|v| Some(v) != value_of(new, k)))
    })
}

/// A value of the key, which every change must have.
fn key_value<'v>(table: &Table, values: &'v Named, column: &str) -> Result<&'v Value, MoveError> {
    match value_of(values, column) {
        Some(value @ Value::Text(_)) => Ok(value),
        _ => Err(MoveError::Drift(format!("a change of {} came without its key", table.plain()))),
    }
}

fn value_of<'v>(values: &'v Named, column: &str) -> Option<&'v Value> {
    values.iter().find(|(name, _)| name == column).map(|(_, value)| value)
}

fn text(value: &Value) -> Text {
    match value {
        Value::Text(text) => Text(Some(text.clone())),
        Value::Null | Value::Unchanged => Text(None),
    }
}
