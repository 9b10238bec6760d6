use std::io::Read;

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::http::segment;

/// Verbs of values that applications read.
#[derive(Subcommand)]
pub(crate) enum ValueCommand {
    /// List a tenant's values, without those that are secret.
    List {
        /// The tenant's id.
        tenant: String,
    },
    /// Show a value, opened if it is secret.
    Get {
        /// The tenant's id.
        tenant: String,
        /// The value's name.
        name: String,
    },
    /// Set a value: JSON, or text that is taken for itself.
    Set {
        /// The tenant's id.
        tenant: String,
        /// The value's name.
        name: String,
        /// What it is; `-` reads it from standard input, where `ps` does not show it.
        value: String,
        /// Seal it.
        #[arg(long)]
        secret: bool,
    },
    /// Take a value away.
    Delete {
        /// The tenant's id.
        tenant: String,
        /// The value's name.
        name: String,
    },
    /// Seal everything anew with the first key of the control plane's file.
    RotateKeys,
}

const COLUMNS: &[(&str, &str)] = &[
    ("NAME", "name"),
    ("SECRET", "secret"),
    ("VALUE", "value"),
    ("VERSION", "version"),
    ("CHANGED", "changed_at"),
    ("BY", "changed_by"),
];

const FIELDS: &[(&str, &str)] =
    &[("name", "name"), ("secret", "secret"), ("value", "value"), ("version", "version")];

impl ValueCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        let api = &session.api;
        match self {
            Self::List { tenant } => session.show_list(COLUMNS, session.all(&of(&tenant, None)).await?),
            Self::Get { tenant, name } => session.show(FIELDS, &api.get(&of(&tenant, Some(&name))).await?),
            Self::Set { tenant, name, value, secret } => {
                let text = if value == "-" { from_stdin()? } else { value };
                let value: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
                let body = json!({ "value": value, "secret": secret });
                session.show(FIELDS, &api.put(&of(&tenant, Some(&name)), body).await?)
            }
            Self::Delete { tenant, name } => {
                api.delete(&of(&tenant, Some(&name))).await?;
                session.done(&format!("value {name} deleted"))
            }
            Self::RotateKeys => {
                session.show(&[("sealed anew", "sealed")], &api.post("/v1/keys/rotate", json!({})).await?)
            }
        }
    }
}

fn from_stdin() -> Outcome<String> {
    let mut text = String::new();
    std::io::stdin().take(65_537).read_to_string(&mut text).context("standard input")?;
    if text.len() > 65_536 {
        return Err(Failure::Usage("a value is at most 65536 bytes".to_owned()));
    }
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn of(tenant: &str, name: Option<&str>) -> String {
    let name = name.map(|n| format!("/{}", segment(n))).unwrap_or_default();
    format!("/v1/tenants/{}/values{name}", segment(tenant))
}
