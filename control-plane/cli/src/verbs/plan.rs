use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::{Session, limits, or_none};
use crate::failure::{Failure, Outcome};
use crate::http::segment;

/// Verbs of plans.
#[derive(Subcommand)]
pub(crate) enum PlanCommand {
    /// List plans.
    List,
    /// Show a plan.
    Show {
        /// Its name.
        name: String,
    },
    /// Make a plan: `switchyard plan create basic connections=20 statement_timeout=30s`.
    Create {
        /// Its name.
        name: String,
        /// The plan whose limits it inherits.
        #[arg(long)]
        extends: Option<String>,
        /// For people.
        #[arg(long)]
        description: Option<String>,
        /// The limits; see `switchyard limit set --help`.
        #[arg(value_name = "NAME=VALUE")]
        limits: Vec<String>,
    },
    /// Change limits of a plan, at once for all its tenants.
    Set {
        /// Its name.
        name: String,
        /// The plan whose limits it inherits; `none` for none.
        #[arg(long)]
        extends: Option<String>,
        /// The limits.
        #[arg(value_name = "NAME=VALUE")]
        limits: Vec<String>,
    },
    /// Make a plan that of all tenants without one.
    Default {
        /// Its name; `none` for none.
        name: String,
    },
    /// Take away a plan that nothing refers to.
    Delete {
        /// Its name.
        name: String,
        /// Without this, nothing is done.
        #[arg(long)]
        yes: bool,
    },
}

const FIELDS: &[(&str, &str)] = &[
    ("name", "name"),
    ("description", "description"),
    ("extends", "extends"),
    ("limits", "limits"),
    ("effective", "effective"),
    ("default", "default"),
    ("tenants", "tenants"),
    ("created", "created_at"),
];

const COLUMNS: &[(&str, &str)] = &[
    ("NAME", "name"),
    ("EXTENDS", "extends"),
    ("DEFAULT", "default"),
    ("TENANTS", "tenants"),
    ("LIMITS", "limits"),
];

impl PlanCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        let api = &session.api;
        match self {
            Self::List => session.show_list(COLUMNS, session.all("/v1/plans").await?),
            Self::Show { name } => session.show(FIELDS, &api.get(&of(&name)).await?),
            Self::Create { name, extends, description, limits } => {
                let mut own = Map::new();
                limits::merge(&mut own, &limits)?;
                let body =
                    json!({ "name": name, "extends": extends, "description": description, "limits": own });
                session.show(FIELDS, &api.post("/v1/plans", body).await?)
            }
            Self::Set { name, extends, limits } => {
                let mut held = api.get(&of(&name)).await?;
                let Value::Object(own) = &mut held["limits"] else {
                    return Err(Failure::Error(anyhow::anyhow!("the control plane tells no limits")));
                };
                limits::merge(own, &limits)?;
                let mut body = json!({ "limits": held["limits"].take() });
                if let Some(extends) = extends {
                    body["extends"] = or_none(extends);
                }
                session.show(FIELDS, &api.patch(&of(&name), body).await?)
            }
            Self::Default { name } => {
                let body = json!({ "default_plan": or_none(name.clone()) });
                api.patch("/v1/settings", body).await?;
                session.done(&format!("tenants without a plan have {name} now"))
            }
            Self::Delete { name, yes } => session.end("plan", &name, "deleted", yes, &of(&name)).await,
        }
    }
}

fn of(name: &str) -> String {
    format!("/v1/plans/{}", segment(name))
}
