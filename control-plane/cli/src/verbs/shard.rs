use std::io::Read;

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};

use super::Session;
use super::moves::DrainArgs;
use crate::failure::Outcome;
use crate::http::segment;

/// Verbs of shards.
#[derive(Subcommand)]
pub(crate) enum ShardCommand {
    /// List shards.
    List,
    /// Show a shard.
    Show {
        /// Its name.
        name: String,
    },
    /// Add a shard. The first gets all buckets, others none.
    Add {
        /// Letters, digits, `_`, `-` and `.`.
        name: String,
        /// `postgres://user:password@host:port/database`, as routers reach it; `-` reads it from
        /// standard input, where `ps` does not show it.
        #[arg(long)]
        url: String,
        /// Most connections of each router to it.
        #[arg(long)]
        pool_size: Option<u32>,
        /// Put no new tenants there.
        #[arg(long)]
        cordoned: bool,
        /// Share of new tenants, relative to other shards.
        #[arg(long, value_parser = clap::value_parser!(i32).range(1..=10_000))]
        weight: Option<i32>,
        /// A role that may make schemas and databases, and measure and delete what tenants hold.
        /// Its password is read from SWITCHYARD_ADMIN_PASSWORD.
        #[arg(long)]
        admin_user: Option<String>,
    },
    /// Put no new tenants there.
    Cordon {
        /// Its name.
        name: String,
    },
    /// Put new tenants there again.
    Uncordon {
        /// Its name.
        name: String,
    },
    /// Put no new tenants there, and move everybody away from it.
    Drain(DrainArgs),
    /// Say whom moves log in as there: a role that sees all rows and may replicate.
    Admin {
        /// Its name.
        name: String,
        /// The role.
        #[arg(long)]
        user: String,
        /// Read its password from standard input.
        #[arg(long)]
        password_stdin: bool,
        /// The control plane's environment variable that holds it; its name begins with SWITCHYARD_SHARD_.
        #[arg(long, value_name = "NAME", conflicts_with = "password_stdin")]
        password_env: Option<String>,
        /// The file that holds it, in the control plane's `secrets_dir`.
        #[arg(long, value_name = "NAME", conflicts_with_all = ["password_stdin", "password_env"])]
        password_file: Option<String>,
    },
    /// Take away a shard that nobody lives on.
    Remove {
        /// Its name.
        name: String,
        /// Without this, nothing is done.
        #[arg(long)]
        yes: bool,
    },
}

const FIELDS: &[(&str, &str)] = &[
    ("name", "name"),
    ("host", "host"),
    ("port", "port"),
    ("database", "database"),
    ("user", "user"),
    ("tls", "tls"),
    ("pool", "pool"),
    ("cordoned", "cordoned"),
    ("weight", "weight"),
    ("administrator", "admin_user"),
    ("buckets", "buckets"),
    ("placements", "placements"),
    ("created", "created_at"),
];

const COLUMNS: &[(&str, &str)] = &[
    ("NAME", "name"),
    ("HOST", "host"),
    ("PORT", "port"),
    ("DATABASE", "database"),
    ("BUCKETS", "buckets"),
    ("PLACEMENTS", "placements"),
    ("CORDONED", "cordoned"),
];

impl ShardCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        let api = &session.api;
        match self {
            Self::List => session.show_list(COLUMNS, session.all("/v1/shards").await?),
            Self::Show { name } => session.show(FIELDS, &api.get(&of(&name)).await?),
            Self::Add { name, url, pool_size, cordoned, weight, admin_user } => {
                let url = if url == "-" { from_stdin()? } else { url };
                let pool = pool_size.map_or(json!({}), |size| json!({ "size": size }));
                let password =
                    admin_user.as_ref().and_then(|_| std::env::var("SWITCHYARD_ADMIN_PASSWORD").ok());
                let body = json!({
                    "name": name, "url": url, "pool": pool, "cordoned": cordoned, "weight": weight,
                    "admin_user": admin_user, "admin_password": password,
                });
                session.show(FIELDS, &api.post("/v1/shards", body).await?)
            }
            Self::Cordon { name } => session.show(FIELDS, &cordon(&session, &name, true).await?),
            Self::Uncordon { name } => session.show(FIELDS, &cordon(&session, &name, false).await?),
            Self::Drain(args) => args.run(&session).await,
            Self::Admin { name, user, password_stdin, password_env, password_file } => {
                let mut body =
                    json!({ "user": user, "password_env": password_env, "password_file": password_file });
                if password_stdin {
                    body["password"] = from_stdin()?.into();
                }
                api.put(&format!("{}/admin", of(&name)), body).await?;
                session.done(&format!("moves log in to {name} as {user}"))
            }
            Self::Remove { name, yes } => session.end("shard", &name, "removed", yes, &of(&name)).await,
        }
    }
}

async fn cordon(session: &Session, name: &str, cordoned: bool) -> Outcome<Value> {
    session.api.patch(&of(name), json!({ "cordoned": cordoned })).await
}

fn from_stdin() -> Outcome<String> {
    let mut text = String::new();
    std::io::stdin().take(65_536).read_to_string(&mut text).context("standard input")?;
    Ok(text.trim().to_owned())
}

fn of(name: &str) -> String {
    format!("/v1/shards/{}", segment(name))
}
