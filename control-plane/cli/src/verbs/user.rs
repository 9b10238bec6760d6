use clap::Subcommand;
use secrecy::ExposeSecret;
use serde_json::{Map, json};

use super::{Session, or_none};
use crate::failure::{Failure, Outcome};
use crate::http::segment;
use crate::local::read_password;

/// Verbs of users.
#[derive(Subcommand)]
pub(crate) enum UserCommand {
    /// Make a user. It gets a password, told once, unless one is given.
    Create {
        /// Its name.
        name: String,
        /// A tenant that it may act for; may be repeated.
        #[arg(long = "tenant", required_unless_present_any = ["any_tenant", "console"], conflicts_with = "any_tenant")]
        tenants: Vec<String>,
        /// It may act for every tenant.
        #[arg(long)]
        any_tenant: bool,
        /// Its own pool mode.
        #[arg(long, value_parser = ["transaction", "session"])]
        pool_mode: Option<String>,
        /// Read its password from the terminal or standard input.
        #[arg(long)]
        password: bool,
        /// It may log in with a JWT.
        #[arg(long)]
        jwt: bool,
        /// It may log in with a client certificate.
        #[arg(long)]
        cert: bool,
        /// Its sessions act for many tenants: each transaction says in SQL for which.
        #[arg(long)]
        roaming: bool,
        /// What it may do in the routers' console; for administrators to say. Such a user needs no tenant.
        #[arg(long, value_parser = ["viewer", "operator", "admin"])]
        console: Option<String>,
    },
    /// Change what is given of a user. Sessions that are open stay as they are, but for those of a tenant that is
    /// taken away from it.
    Set {
        /// Its name.
        name: String,
        /// A tenant that it may act for, in place of all it could until now; may be repeated.
        #[arg(long = "tenant", conflicts_with = "any_tenant")]
        tenants: Vec<String>,
        /// It may act for every tenant.
        #[arg(long)]
        any_tenant: bool,
        /// Its own pool mode; `none` for none.
        #[arg(long, value_parser = ["transaction", "session", "none"])]
        pool_mode: Option<String>,
        /// Whether it may log in with a JWT.
        #[arg(long)]
        jwt: Option<bool>,
        /// Whether it may log in with a client certificate.
        #[arg(long)]
        cert: Option<bool>,
        /// Whether its sessions are read-only, served by standbys where there are any.
        #[arg(long)]
        read_only: Option<bool>,
        /// Whether its sessions act for many tenants: each transaction says in SQL for which.
        #[arg(long)]
        roaming: Option<bool>,
        /// What it may do in the routers' console; for administrators to say.
        #[arg(long, value_parser = ["viewer", "operator", "admin", "none"])]
        console: Option<String>,
    },
    /// List users.
    List {
        /// Those that may act for this tenant by name.
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Show a user.
    Show {
        /// Its name.
        name: String,
    },
    /// Give a user a new password, told once.
    ResetPassword {
        /// Its name.
        name: String,
    },
    /// Take a user away. Its open sessions end.
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
    ("tenants", "tenants"),
    ("any tenant", "any_tenant"),
    ("password", "password"),
    ("methods", "methods"),
    ("pool mode", "pool_mode"),
    ("role on shards", "server_user"),
    ("created", "created_at"),
    ("new password", "new_password"),
    ("url", "url"),
];

const COLUMNS: &[(&str, &str)] = &[
    ("NAME", "name"),
    ("TENANTS", "tenants"),
    ("ANY TENANT", "any_tenant"),
    ("PASSWORD", "password"),
    ("CREATED", "created_at"),
];

impl UserCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        let api = &session.api;
        match self {
            Self::Create { name, tenants, any_tenant, pool_mode, password, jwt, cert, roaming, console } => {
                let password = if password { Some(read_password()?) } else { None };
                let body = json!({
                    "name": name, "tenants": tenants, "any_tenant": any_tenant, "pool_mode": pool_mode,
                    "password": password.as_ref().map(|p| p.expose_secret()),
                    "methods": { "jwt": jwt, "cert": cert, "roaming": roaming, "console": console },
                });
                session.show(FIELDS, &api.post("/v1/users", body).await?)
            }
            Self::Set { name, tenants, any_tenant, pool_mode, jwt, cert, read_only, roaming, console } => {
                let mut methods = Map::new();
                let flags = [("jwt", jwt), ("cert", cert), ("read_only", read_only), ("roaming", roaming)];
                for (method, flag) in flags.into_iter().filter_map(|(m, flag)| Some((m, flag?))) {
                    methods.insert(method.to_owned(), flag.into());
                }
                methods.extend(console.map(|role| ("console".to_owned(), or_none(role))));
                let mut body = Map::new();
                if any_tenant {
                    body.insert("any_tenant".to_owned(), true.into());
                } else if !tenants.is_empty() {
                    body.insert("tenants".to_owned(), tenants.into());
                }
                body.extend(pool_mode.map(|mode| ("pool_mode".to_owned(), or_none(mode))));
                if !methods.is_empty() {
                    body.insert("methods".to_owned(), methods.into());
                }
                if body.is_empty() {
                    return Err(Failure::Usage("say what to change; see --help".to_owned()));
                }
                session.show(FIELDS, &api.patch(&of(&name, ""), body.into()).await?)
            }
            Self::List { tenant } => {
                let filter = tenant.map(|t| format!("&tenant={}", segment(&t))).unwrap_or_default();
                session.show_list(COLUMNS, session.all(&format!("/v1/users?limit=1000{filter}")).await?)
            }
            Self::Show { name } => session.show(FIELDS, &api.get(&of(&name, "")).await?),
            Self::ResetPassword { name } => {
                session.show(FIELDS, &api.post(&of(&name, "/password"), json!({})).await?)
            }
            Self::Delete { name, yes } => session.end("user", &name, "deleted", yes, &of(&name, "")).await,
        }
    }
}

fn of(name: &str, rest: &str) -> String {
    format!("/v1/users/{}{rest}", segment(name))
}
