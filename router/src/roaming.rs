//! What the text of a roaming session's statements says of its tenant.
//!
//! Without IO: [`Rules`] is what names a tenant, [`read`] takes statements apart, [`Track`] follows a setting
//! through a transaction as PostgreSQL does. What is done about it is in `session::roaming`.

pub(crate) mod comment;
mod lexer;
pub(crate) mod read;
pub(crate) mod track;

use switchyard_config::TenantId;
use switchyard_config::settings::RoamingSettings;
use switchyard_config::template::around_tenant;
use switchyard_config::topology::ContextTemplate;

/// What a value of the setting says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    /// This tenant.
    Tenant(TenantId),
    /// None.
    Nobody,
    /// Something that can be no tenant, or cannot be read.
    Unreadable,
}

/// The setting whose value names the tenant.
#[derive(Debug)]
enum Setting {
    /// A variable, and what stands around the tenant in its value.
    Variable { before: String, after: String },
    /// `search_path`, what stands around the tenant in the name of its schema, and the schemas that are of all.
    SearchPath { before: String, after: String, common: Vec<String> },
}

/// What names a tenant in the statements of roaming sessions.
#[derive(Debug)]
pub(crate) struct Rules {
    /// The name of the setting, in lower case.
    pub(crate) name: String,
    setting: Setting,
    /// The key in comments, if they are looked at.
    pub(crate) comment: Option<String>,
    /// Finds what has to do with the setting in a text.
    suspects: aho_corasick::AhoCorasick,
}

impl Rules {
    /// None if neither the settings nor the context say by what a tenant is named.
    pub(crate) fn new(settings: &RoamingSettings, context: &ContextTemplate) -> Option<Self> {
        let invertible = |(_, template): &(&String, &String)| around_tenant(template).is_some();
        let name = match &settings.setting {
            Some(name) => name.clone(),
            None => match context.variables.iter().find(invertible) {
                Some((name, _)) => name.to_ascii_lowercase(),
                None => "search_path".to_owned(),
            },
        };
        let setting = if name == "search_path" {
            let path = context.search_path.as_deref().unwrap_or_default();
            let (before, after) = path.iter().find_map(|schema| around_tenant(schema))?;
            let common = path.iter().filter(|schema| around_tenant(schema).is_none()).cloned();
            Setting::SearchPath { before, after, common: common.chain(["public".to_owned()]).collect() }
        } else {
            let template = context.variables.iter().find(|(own, _)| own.eq_ignore_ascii_case(&name));
            // One that the context does not have is taken for the tenant as it stands.
            let (before, after) = match template {
                Some((_, template)) => around_tenant(template)?,
                None => Default::default(),
            };
            Setting::Variable { before, after }
        };
        let suspects = aho_corasick::AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .build([name.as_str(), "set_config"])
            .ok()?;
        Some(Self { name, setting, comment: settings.comment.clone(), suspects })
    }

    /// What roaming sessions have of the tenant's context, where they set the rest themselves.
    pub(crate) fn without_own(&self, context: &ContextTemplate) -> ContextTemplate {
        let mut context = context.clone();
        context.variables.retain(|name, _| !name.eq_ignore_ascii_case(&self.name));
        if self.is_search_path() {
            context.search_path = None;
        }
        context
    }

    /// Whether the tenants are schemas.
    pub(crate) fn is_search_path(&self) -> bool {
        matches!(self.setting, Setting::SearchPath { .. })
    }

    /// Whether the name of the setting, or of the function that may set it, occurs in `text`.
    #[inline]
    pub(crate) fn occurs_in(&self, text: &[u8]) -> bool {
        self.suspects.is_match(text)
    }

    /// Whom a value of the setting names: a list of schemas for `search_path`, else a value by itself.
    pub(crate) fn whom(&self, values: &[&str]) -> Named {
        let within = |value: &str, before: &str, after: &str| {
            let id = value.strip_prefix(before)?.strip_suffix(after)?;
            TenantId::new(id).ok()
        };
        match &self.setting {
            Setting::Variable { before, after } => match values {
                [] | [""] => Named::Nobody,
                [value] => within(value, before, after).map_or(Named::Unreadable, Named::Tenant),
                _ => Named::Unreadable,
            },
            Setting::SearchPath { before, after, common } => {
                let is_common = |schema: &str| {
                    schema.is_empty()
                        || schema == "$user"
                        || schema.starts_with("pg_")
                        || common.iter().any(|name| name == schema)
                };
                let mut tenants = values.iter().filter(|schema| !is_common(schema));
                let mut named = tenants.by_ref().filter_map(|schema| within(schema, before, after));
                match (named.next(), named.next()) {
                    (Some(tenant), None) => Named::Tenant(tenant),
                    (Some(first), Some(second)) if first == second => Named::Tenant(first),
                    // Two schemas that could be tenants': the first would be written to, the second read.
                    (Some(_), Some(_)) => Named::Unreadable,
                    (None, _) => Named::Nobody,
                }
            }
        }
    }

    /// Whom a value names that is written as `set_config` takes it, and `SHOW` gives it.
    pub(crate) fn whom_by_value(&self, value: &str) -> Named {
        if !self.is_search_path() {
            return self.whom(&[value]);
        }
        match lexer::list(value.as_bytes()) {
            Some(schemas) => self.whom(&schemas.iter().map(String::as_str).collect::<Vec<_>>()),
            None => Named::Unreadable,
        }
    }
}
