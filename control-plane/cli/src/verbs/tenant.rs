use clap::Subcommand;
use serde_json::json;

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
    },
    /// List tenants.
    List {
        /// Those on this shard.
        #[arg(long)]
        shard: Option<String>,
        /// Those in this state.
        #[arg(long, value_parser = ["active", "suspended"])]
        state: Option<String>,
    },
    /// Show a tenant.
    Show {
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
    /// Take a tenant out of the catalog, with its own users. Its rows on the shard stay.
    Delete {
        /// Its id.
        id: String,
        /// Without this, nothing is done.
        #[arg(long)]
        yes: bool,
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
    ("jwt issuers", "jwt_issuers"),
    ("created", "created_at"),
    ("url", "url"),
];

impl TenantCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        let api = &session.api;
        match self {
            Self::Create { id, name, shard, pool_mode, user, no_user } => {
                let body = json!({
                    "id": id, "name": name, "shard": shard, "pool_mode": pool_mode,
                    "with_user": !no_user, "user": user,
                });
                session.show(FIELDS, &api.post("/v1/tenants", body).await?)
            }
            Self::List { shard, state } => {
                let mut path = "/v1/tenants?limit=1000".to_owned();
                for (key, value) in [("shard", shard), ("state", state)] {
                    if let Some(value) = value {
                        path += &format!("&{key}={}", segment(&value));
                    }
                }
                let columns =
                    [("ID", "id"), ("STATE", "state"), ("SHARD", "shard"), ("PLACED BY", "placed_by")];
                let more = [("EPOCH", "epoch"), ("NAME", "name")];
                session.show_list(&[columns.as_slice(), &more].concat(), session.all(&path).await?)
            }
            Self::Show { id } => session.show(FIELDS, &api.get(&of(&id, "")).await?),
            Self::Suspend { id } => session.show(FIELDS, &api.post(&of(&id, "/suspend"), json!({})).await?),
            Self::Resume { id } => session.show(FIELDS, &api.post(&of(&id, "/resume"), json!({})).await?),
            Self::Place { id, to, force } => {
                let body = json!({ "shard": to, "force": force });
                session.show(FIELDS, &api.put(&of(&id, "/placement"), body).await?)
            }
            Self::Delete { id, yes } => {
                if !yes {
                    return Err(Failure::Usage(format!(
                        "tenant `{id}` would be deleted; say --yes to do it"
                    )));
                }
                api.delete(&of(&id, "")).await?;
                session.done(&format!("tenant {id} deleted"))
            }
        }
    }
}

fn of(id: &str, rest: &str) -> String {
    format!("/v1/tenants/{}{rest}", segment(id))
}
