use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::{Value, json};

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::http::segment;

/// Verbs of operations.
#[derive(Subcommand)]
pub(crate) enum OperationCommand {
    /// List operations, the latest first.
    List {
        /// Those that have not ended.
        #[arg(long)]
        open: bool,
        /// Those of this kind.
        #[arg(long)]
        kind: Option<String>,
        /// Those that concern this tenant.
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Show an operation.
    Show {
        /// Its id.
        id: String,
    },
    /// Wait until an operation has ended. Exit code 5 if it goes on after --timeout.
    Wait {
        /// Its id.
        id: String,
        /// Seconds to wait.
        #[arg(long, default_value_t = 600)]
        timeout: u64,
    },
    /// Ask an operation to stop.
    Cancel {
        /// Its id.
        id: String,
    },
    /// Ask an operation to pause.
    Pause {
        /// Its id.
        id: String,
    },
    /// Ask a paused operation to go on.
    Resume {
        /// Its id.
        id: String,
    },
}

const FIELDS: &[(&str, &str)] = &[
    ("id", "id"),
    ("kind", "kind"),
    ("target", "target"),
    ("state", "state"),
    ("phase", "phase"),
    ("progress", "progress"),
    ("asked to", "wish"),
    ("begins at", "not_before"),
    ("started", "started_at"),
    ("finished", "finished_at"),
    ("result", "result"),
    ("error", "error"),
    ("next", "next_steps"),
];

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "id"),
    ("KIND", "kind"),
    ("TARGET", "target"),
    ("STATE", "state"),
    ("PHASE", "phase"),
    ("BY", "created_by"),
    ("CREATED", "created_at"),
];

impl OperationCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        let api = &session.api;
        match self {
            Self::List { open, kind, tenant } => {
                let mut path = "/v1/operations?limit=1000".to_owned();
                for (key, value) in [("kind", kind), ("tenant", tenant)] {
                    if let Some(value) = value {
                        path += &format!("&{key}={}", segment(&value));
                    }
                }
                if open {
                    path += "&open=true";
                }
                session.show_list(COLUMNS, session.all(&path).await?)
            }
            Self::Show { id } => session.show(FIELDS, &api.get(&of(&id, "")).await?),
            Self::Wait { id, timeout } => session.wait_for(&id, Duration::from_secs(timeout)).await,
            Self::Cancel { id } => session.show(FIELDS, &api.post(&of(&id, "/cancel"), json!({})).await?),
            Self::Pause { id } => session.show(FIELDS, &api.post(&of(&id, "/pause"), json!({})).await?),
            Self::Resume { id } => session.show(FIELDS, &api.post(&of(&id, "/resume"), json!({})).await?),
        }
    }
}

impl Session {
    /// Shows an operation that has just begun, or waits for its end.
    pub(super) async fn begun(&self, operation: &Value, wait: Option<Duration>) -> Outcome {
        match (wait, operation["id"].as_str()) {
            (Some(wait), Some(id)) => self.wait_for(id, wait).await,
            _ => self.show(FIELDS, operation),
        }
    }

    /// Waits until an operation has ended, and shows it.
    pub(crate) async fn wait_for(&self, id: &str, at_most: Duration) -> Outcome {
        let deadline = Instant::now() + at_most;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).as_secs().min(30);
            let operation = self.api.get(&format!("{}?wait={left}", of(id, ""))).await?;
            if !operation["finished_at"].is_null() {
                self.show(FIELDS, &operation)?;
                return match operation["state"].as_str() {
                    Some("succeeded") => Ok(()),
                    state => {
                        let why = operation["error"]["message"].as_str().unwrap_or_default();
                        let state = state.unwrap_or("lost");
                        Err(Failure::Error(anyhow::anyhow!("operation {id} has {state} {why}")))
                    }
                };
            }
            if Instant::now() >= deadline {
                return Err(Failure::StillRunning(format!(
                    "operation {id} goes on: switchyard operation wait {id}"
                )));
            }
        }
    }
}

fn of(id: &str, rest: &str) -> String {
    format!("/v1/operations/{}{rest}", segment(id))
}
