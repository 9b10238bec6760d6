//! Answers, on standard output.

use std::io::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

use crate::failure::Outcome;

/// Prints a line. A reader that has gone away, as `head` does, is no error.
pub(crate) fn line(text: &str) -> Outcome {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// Prints what the API answered.
pub(crate) fn json(value: &Value) -> Outcome {
    line(&serde_json::to_string_pretty(value)?)
}

/// Prints a table of objects: a column per `(title, field)`.
pub(crate) fn table(columns: &[(&str, &str)], rows: &[Value]) -> Outcome {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|c| c.0));
    for row in rows {
        table.add_row(columns.iter().map(|c| cell(&row[c.1])));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    line(&table.trim_fmt())
}

/// Prints one object: a line per field, except those that are absent.
pub(crate) fn object(fields: &[(&str, &str)], value: &Value) -> Outcome {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (title, field) in fields.iter().filter(|f| !value[f.1].is_null()) {
        table.add_row([(*title).to_owned(), cell(&value[field])]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    line(&table.trim_fmt())
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
