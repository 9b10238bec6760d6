use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::http::segment;

/// Verbs of tenants.
#[derive(Subcommand)]
pub(crate) enum TenantCommand {
    /// Make a tenant, with a user of its own; the answer has a URL that works.
    Create {
        /// 1 to 128 bytes, kept exactly.
        id: String,
        /// For people.
        #[arg(long)]
        name: Option<String>,
        /// A shard, if not its bucket's.
        #[arg(long)]
        shard: Option<String>,
        /// Its own pool mode.
        #[arg(long, value_parser = ["transaction", "session"])]
        pool_mode: Option<String>,
        /// Name of its user; the id if not given.
        #[arg(long)]
        user: Option<String>,
        /// Make no user.
        #[arg(long, conflicts_with = "user")]
        no_user: bool,
        /// Its plan; the default one if not given.
        #[arg(long)]
        plan: Option<String>,
        /// A limit of its own; may be repeated. See `switchyard limit set --help`.
        #[arg(long = "limit", value_name = "NAME=VALUE")]
        limits: Vec<String>,
        /// Make nothing for it on its shard.
        #[arg(long)]
        no_provision: bool,
    },
    /// List tenants.
    List {
        /// Those on this shard.
        #[arg(long)]
        shard: Option<String>,
        /// Those in this state.
        #[arg(long, value_parser = ["active", "read-only", "suspended", "deleting"])]
        state: Option<String>,
        /// Those of this plan.
        #[arg(long)]
        plan: Option<String>,
        /// Those whose id or name holds this.
        #[arg(long)]
        search: Option<String>,
    },
    /// Show a tenant.
    Show {
        /// Its id.
        id: String,
    },
    /// Change a tenant.
    Update {
        /// Its id.
        id: String,
        /// Its plan; `none` for the default one.
        #[arg(long)]
        plan: Option<String>,
        /// For people; an empty one takes it away.
        #[arg(long)]
        name: Option<String>,
        /// Its own pool mode; `none` takes it away.
        #[arg(long, value_parser = ["transaction", "session", "none"])]
        pool_mode: Option<String>,
    },
    /// Let a tenant read and not write.
    ReadOnly {
        /// Its id.
        id: String,
    },
    /// Serve a tenant again that is being deleted.
    Undelete {
        /// Its id.
        id: String,
    },
    /// Serve a tenant no more: its logins get a clear error.
    Suspend {
        /// Its id.
        id: String,
    },
    /// Serve a tenant again.
    Resume {
        /// Its id.
        id: String,
    },
    /// Set where a tenant lives. Moves no rows: for a tenant that has none, or whose rows are there.
    Place {
        /// Its id.
        id: String,
        /// The shard.
        #[arg(long)]
        to: String,
        /// Even if the shard is cordoned.
        #[arg(long)]
        force: bool,
    },
    /// Serve a tenant no more, and delete it for good after a time of grace: its rows, its users, and
    /// itself. Until then it can be undeleted.
    Delete {
        /// Its id.
        id: String,
        /// Without this, nothing is done.
        #[arg(long)]
        yes: bool,
        /// Seconds of grace; 7 days unless the control plane is configured otherwise.
        #[arg(long, value_name = "SECONDS")]
        grace: Option<u32>,
        /// Leave its rows on the shard.
        #[arg(long)]
        keep_data: bool,
        /// Wait until it is gone.
        #[arg(long)]
        wait: bool,
        /// Seconds to wait.
        #[arg(long, default_value_t = 600, requires = "wait")]
        timeout: u64,
    },
}

const FIELDS: &[(&str, &str)] = &[
    ("id", "id"),
    ("name", "name"),
    ("state", "state"),
    ("shard", "shard"),
    ("placed by", "placed_by"),
    ("epoch", "epoch"),
    ("bucket", "bucket"),
    ("pool mode", "pool_mode"),
    ("context", "context"),
    ("plan", "plan"),
    ("deleted after", "delete_after"),
    ("jwt issuers", "jwt_issuers"),
    ("created", "created_at"),
    ("url", "url"),
];

impl TenantCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        let api = &session.api;
        match self {
            Self::Create { id, name, shard, pool_mode, user, no_user, plan, limits, no_provision } => {
                let mut own = serde_json::Map::new();
                super::limits::merge(&mut own, &limits)?;
                let body = json!({
                    "id": id, "name": name, "shard": shard, "pool_mode": pool_mode,
                    "with_user": !no_user, "user": user, "plan": plan, "limits": own,
                    "provision": !no_provision,
                });
                session.show(FIELDS, &api.post("/v1/tenants", body).await?)
            }
            Self::List { shard, state, plan, search } => {
                let mut path = "/v1/tenants?limit=1000".to_owned();
                for (key, value) in [("shard", shard), ("state", state), ("plan", plan), ("search", search)] {
                    if let Some(value) = value {
                        path += &format!("&{key}={}", segment(&value));
                    }
                }
                let columns =
                    [("ID", "id"), ("STATE", "state"), ("SHARD", "shard"), ("PLACED BY", "placed_by")];
                let more = [("EPOCH", "epoch"), ("PLAN", "plan"), ("NAME", "name")];
                session.show_list(&[columns.as_slice(), &more].concat(), session.all(&path).await?)
            }
            Self::Show { id } => session.show(FIELDS, &api.get(&of(&id, "")).await?),
            Self::Update { id, plan, name, pool_mode } => {
                let mut body = json!({});
                for (key, value, nothing) in
                    [("plan", plan, "none"), ("name", name, ""), ("pool_mode", pool_mode, "none")]
                {
                    if let Some(value) = value {
                        body[key] = if value == nothing { Value::Null } else { value.into() };
                    }
                }
                session.show(FIELDS, &api.patch(&of(&id, ""), body).await?)
            }
            Self::ReadOnly { id } => {
                session.show(FIELDS, &api.post(&of(&id, "/read-only"), json!({})).await?)
            }
            Self::Undelete { id } => session.show(FIELDS, &api.post(&of(&id, "/undelete"), json!({})).await?),
            Self::Suspend { id } => session.show(FIELDS, &api.post(&of(&id, "/suspend"), json!({})).await?),
            Self::Resume { id } => session.show(FIELDS, &api.post(&of(&id, "/resume"), json!({})).await?),
            Self::Place { id, to, force } => {
                let body = json!({ "shard": to, "force": force });
                session.show(FIELDS, &api.put(&of(&id, "/placement"), body).await?)
            }
            Self::Delete { id, yes, grace, keep_data, wait, timeout } => {
                if !yes {
                    return Err(Failure::Usage(format!(
                        "tenant `{id}` would be deleted; say --yes to do it"
                    )));
                }
                let grace = grace.map(|s| format!("&grace_seconds={s}")).unwrap_or_default();
                let operation = api.delete(&of(&id, &format!("?keep_data={keep_data}{grace}"))).await?;
                session.begun(&operation, wait.then(|| Duration::from_secs(timeout))).await
            }
        }
    }
}

fn of(id: &str, rest: &str) -> String {
    format!("/v1/tenants/{}{rest}", segment(id))
}
