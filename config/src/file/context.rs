//! `context`, and the `context` of a tenant.

use std::collections::BTreeMap;

use super::reader::{At, Table};
use super::value::Value;
use crate::template::check_context;
use crate::topology::{ContextMode, ContextTemplate};

/// Longest template, in bytes.
const MAX_TEMPLATE_BYTES: usize = 1024;

/// The words of `mode`.
const MODES: [(&str, ContextMode); 2] = [("plain", ContextMode::Plain), ("sealed", ContextMode::Sealed)];

/// The context of tenants that have none of their own.
pub(super) fn read_default(root: &Table<'_>, catalog: bool) -> ContextTemplate {
    // `context = "sealed"` says no more than that.
    let word = root.value("context").filter(|v| v.value.is_str());
    if let Some(mode) = word {
        return ContextTemplate {
            mode: mode.one_of(&MODES).unwrap_or_default(),
            ..ContextTemplate::default()
        };
    }
    match root.table("context") {
        Some(table) => read(table),
        None => {
            if !catalog && !root.has("context") {
                let message =
                    "nothing is set for a tenant, so that row-level security cannot tell them apart";
                root.ctx.warn(&root.at_key("context"), message);
            }
            ContextTemplate::default()
        }
    }
}

pub(super) fn read(t: Table<'_>) -> ContextTemplate {
    let template = |v: &Value<'_>| {
        let text = v.text()?;
        if text.len() > MAX_TEMPLATE_BYTES {
            return v.error(format!("must be at most {MAX_TEMPLATE_BYTES} bytes"));
        }
        Some(text.to_owned())
    };
    let mut lines: BTreeMap<String, At> = BTreeMap::new();
    let mut context = ContextTemplate::default();
    if let Some(variables) = t.table("variables") {
        for (name, value) in variables.entries() {
            if let Some(text) = template(&value) {
                context.variables.insert(name.to_owned(), text);
                lines.insert(name.to_owned(), value.at.clone());
            }
        }
    }
    t.set("mode", &mut context.mode, |v| v.one_of(&MODES));
    context.search_path = t.opt("search_path", |v| v.array(template));
    context.role = t.opt("role", template);
    context.database = t.opt("database", template);
    for problem in check_context(&context) {
        let at = match problem.entry {
            Some(entry) if problem.key == "variables" => lines.get(&entry).cloned(),
            Some(index) => {
                let mut at = t.at_key(problem.key);
                at.key = format!("{}[{index}]", at.key);
                Some(at)
            }
            None => None,
        };
        t.ctx.error(&at.unwrap_or_else(|| t.at_key(problem.key)), problem.message);
    }
    let keys = ["variables", "search_path", "role", "database", "mode"];
    if context == ContextTemplate::default() && keys.iter().all(|k| *k == "variables" || !t.has(k)) {
        let message = "nothing is set for a tenant, so that row-level security cannot tell them apart";
        t.ctx.warn(&t.at, message);
    }
    t.finish();
    context
}
