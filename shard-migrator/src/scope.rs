//! What is moved: the tenant, and how its data lies on a shard.

use serde::{Deserialize, Serialize};
use switchyard_config::TenantId;
use switchyard_config::template::render;
use switchyard_config::topology::ContextTemplate;

use crate::inventory::FOREIGN;

/// How the data of a tenant is told from that of others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "model")]
pub(crate) enum Model {
    /// Rows of shared tables that have a column with the tenant, under row-level security.
    Rows {
        /// The column.
        column: String,
        /// The variable that routers set to the tenant's id.
        variable: Option<String>,
    },
    /// A schema of its own.
    Schema {
        /// Its name.
        schema: String,
    },
    /// A database of its own.
    Database {
        /// Its name.
        database: String,
    },
}

/// What is moved.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// Whose.
    pub tenant: TenantId,
    /// Where it lies.
    pub model: Model,
    /// The other schemas of the search path, if one is the tenant's own.
    pub beside: Vec<String>,
}

impl Scope {
    /// The scope that a context tells of: a database or the first schema of the search path, where their
    /// templates name the tenant; else rows.
    pub(crate) fn of(tenant: &TenantId, context: &ContextTemplate, column: &str) -> Self {
        let names_tenant = |template: &str| template.contains("{tenant}");
        let rendered = |template: &str| render(template, tenant.as_str(), "");
        let model = if let Some(database) = context.database.as_deref().filter(|d| names_tenant(d)) {
            Model::Database { database: rendered(database) }
        } else if let Some(schema) = context.search_path.iter().flatten().find(|s| names_tenant(s)) {
            Model::Schema { schema: rendered(schema) }
        } else {
            let variable = context.variables.iter().find(|(_, value)| *value == "{tenant}");
            Model::Rows { column: column.to_owned(), variable: variable.map(|(name, _)| name.clone()) }
        };
        let mut beside: Vec<_> =
            context.search_path.iter().flatten().map(|schema| rendered(schema)).collect();
        match &model {
            Model::Schema { schema } => beside.retain(|other| other != schema),
            Model::Rows { .. } | Model::Database { .. } => beside.clear(),
        }
        Self { tenant: tenant.clone(), model, beside }
    }

    /// The column that tells the tenant, where tables are shared.
    pub(crate) fn column(&self) -> Option<&str> {
        match &self.model {
            Model::Rows { column, .. } => Some(column),
            Model::Schema { .. } | Model::Database { .. } => None,
        }
    }

    /// Whether its tables are nobody else's.
    pub(crate) fn is_own(&self) -> bool {
        !matches!(self.model, Model::Rows { .. })
    }

    /// Whether it is a database.
    pub(crate) fn is_database(&self) -> bool {
        matches!(self.model, Model::Database { .. })
    }

    /// The schemas that are the tenant's alone, as SQL for an array of names; none where tables are shared.
    pub(crate) fn own_schemas(&self) -> Option<String> {
        match &self.model {
            Model::Rows { .. } => None,
            Model::Schema { schema } => Some(format!("ARRAY[{}]", literal(schema))),
            Model::Database { .. } => {
                Some(format!("(SELECT array_agg(n.nspname::text) FROM pg_namespace n WHERE {FOREIGN})"))
            }
        }
    }

    /// ` WHERE tenant_id = '...'`, or nothing where tables are the tenant's own.
    pub(crate) fn filter(&self) -> String {
        match self.column() {
            Some(column) => format!(" WHERE {} = {}", ident(column), literal(self.tenant.as_str())),
            None => String::new(),
        }
    }
}

/// A quoted identifier.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A quoted literal, whatever `standard_conforming_strings` says.
pub(crate) fn literal(text: &str) -> String {
    if text.contains('\\') {
        return format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"));
    }
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_tells_the_model() {
        let acme = TenantId::new("acme").unwrap();
        let mut context = ContextTemplate::default();
        context.variables.insert("app.tenant_id".into(), "{tenant}".into());
        let rows = Model::Rows { column: "tenant_id".into(), variable: Some("app.tenant_id".into()) };
        assert_eq!(Scope::of(&acme, &context, "tenant_id").model, rows);
        context.search_path = Some(vec!["t_{tenant}".into(), "public".into()]);
        let own = Scope::of(&acme, &context, "x");
        assert_eq!(
            (own.model, own.beside),
            (Model::Schema { schema: "t_acme".into() }, vec!["public".into()])
        );
        context.database = Some("crm_{tenant}".into());
        assert_eq!(Scope::of(&acme, &context, "x").model, Model::Database { database: "crm_acme".into() });
    }

    #[test]
    fn quotes() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("o'x"), "'o''x'");
        assert_eq!(literal("a\\'"), "E'a\\\\'''");
    }
}
