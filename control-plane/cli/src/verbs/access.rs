//! Verbs of tokens and of the audit.

use std::io::Write;

use aws_lc_rs::digest;
use clap::Subcommand;
use serde_json::{Value, json};

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::http::segment;

/// Verbs of tokens.
#[derive(Subcommand)]
pub(crate) enum TokenCommand {
    /// List tokens.
    List,
    /// Make a token; what proves it is told once.
    Create {
        /// Its name.
        name: String,
        /// What it allows.
        #[arg(long, value_parser = ["viewer", "operator", "admin", "metrics", "application"])]
        role: String,
        /// The one tenant that it is good for.
        #[arg(long, required_if_eq("role", "application"))]
        tenant: Option<String>,
        /// Days that it lives; for ever if not given.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: Option<u32>,
    },
    /// End a token.
    Delete {
        /// Its name.
        name: String,
        /// Without this, nothing is done.
        #[arg(long)]
        yes: bool,
    },
}

/// Verbs of the audit.
#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// Who did what, the last first.
    List {
        /// Those done to this id.
        #[arg(long)]
        target: Option<String>,
        /// Those that concern this tenant.
        #[arg(long)]
        tenant: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Read the whole chain, check it here, and compare it with what the catalog says.
    Verify {
        /// Its last hash as it was noted earlier: the chain must still hold it.
        #[arg(long)]
        expect: Option<String>,
    },
    /// Write the whole chain to standard output, a line of JSON for each deed, the first first.
    Export,
}

const TOKENS: &[(&str, &str)] = &[
    ("NAME", "name"),
    ("ROLE", "role"),
    ("TENANT", "tenant"),
    ("CREATED", "created_at"),
    ("EXPIRES", "expires_at"),
    ("LAST USED", "last_used"),
];

const TOKEN: &[(&str, &str)] = &[
    ("name", "name"),
    ("role", "role"),
    ("tenant", "tenant"),
    ("expires", "expires_at"),
    ("secret", "secret"),
];

const DEEDS: &[(&str, &str)] = &[
    ("ID", "id"),
    ("AT", "at"),
    ("ACTOR", "actor"),
    ("FROM", "source"),
    ("ACTION", "action"),
    ("KIND", "kind"),
    ("TARGET", "target"),
    ("OUTCOME", "outcome"),
];

impl TokenCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        let api = &session.api;
        match self {
            Self::List => session.show_list(TOKENS, session.all("/v1/tokens?limit=1000").await?),
            Self::Create { name, role, tenant, days } => {
                let seconds = days.map(|d| u64::from(d) * 86_400);
                let body =
                    json!({ "name": name, "role": role, "tenant": tenant, "lifetime_seconds": seconds });
                session.show(TOKEN, &api.post("/v1/tokens", body).await?)
            }
            Self::Delete { name, yes } => {
                let path = format!("/v1/tokens/{}", segment(&name));
                session.end("token", &name, "ended", yes, &path).await
            }
        }
    }
}

impl AuditCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        match self {
            Self::List { target, tenant, limit } => {
                let mut path = format!("/v1/audit?limit={limit}");
                for (key, value) in [("target", target), ("tenant", tenant)] {
                    if let Some(value) = value {
                        path += &format!("&{key}={}", segment(&value));
                    }
                }
                let mut answer = session.api.get(&path).await?;
                let items = answer["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
                session.show_list(DEEDS, items)
            }
            Self::Verify { expect } => verify(&session, expect.as_deref()).await,
            Self::Export => {
                let mut out = std::io::stdout().lock();
                each(&session, |deed| Ok(writeln!(out, "{deed}")?)).await
            }
        }
    }
}

/// Goes over all deeds, the first first.
async fn each(session: &Session, mut see: impl FnMut(&Value) -> Outcome) -> Outcome {
    let mut after = 0;
    loop {
        let answer = session.api.get(&format!("/v1/audit?after={after}&limit=1000")).await?;
        let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        for deed in items {
            see(deed)?;
            after = deed["id"].as_i64().unwrap_or(i64::MAX);
        }
        if items.is_empty() {
            return Ok(());
        }
    }
}

async fn verify(session: &Session, expect: Option<&str>) -> Outcome {
    // What the catalog says first: deeds that come while we read are behind it.
    let proof = session.api.get("/v1/audit/proof").await?;
    let mut chain = Chain::default();
    let mut expected = expect.is_none();
    let mut at_proof = None;
    each(session, |deed| {
        chain.check(deed)?;
        expected |= expect == Some(&hex(&chain.last));
        if Some(chain.length) == proof["deeds"].as_i64() {
            at_proof = Some(hex(&chain.last));
        }
        Ok(())
    })
    .await?;
    let broken =
        |why: String| Err(Failure::Error(anyhow::anyhow!("the audit is not as it was written: {why}")));
    if let Some(at) = proof["broken_at"].as_i64() {
        return broken(format!("the catalog finds it broken at deed {at}"));
    }
    if proof["deeds"] != 0 && at_proof.as_deref() != proof["last_hash"].as_str() {
        return broken("its last hash is another than the catalog's".to_owned());
    }
    if !expected {
        return broken("it does not hold the hash that was expected".to_owned());
    }
    let told = json!({ "deeds": chain.length, "last_hash": hex(&chain.last) });
    session.show(&[("deeds", "deeds"), ("last hash", "last_hash")], &told)
}

/// The chain as far as it was read.
struct Chain {
    length: i64,
    last: Vec<u8>,
}

impl Default for Chain {
    fn default() -> Self {
        Self { length: 0, last: digest::digest(&digest::SHA256, b"").as_ref().to_vec() }
    }
}

impl Chain {
    fn check(&mut self, deed: &Value) -> Outcome {
        let broken = |what: &str| {
            let id = &deed["id"];
            Failure::Error(anyhow::anyhow!("the audit is not as it was written: deed {id} {what}"))
        };
        if deed["id"].as_i64() != Some(self.length + 1) {
            return Err(broken("does not follow the one before"));
        }
        let record = deed["record"].as_str().unwrap_or_default();
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&self.last);
        context.update(record.as_bytes());
        let hash = context.finish();
        if deed["hash"].as_str() != Some(hex(hash.as_ref()).as_str()) {
            return Err(broken("has another hash than it should"));
        }
        // What is shown must be what the hash is taken of.
        let fields = [
            "id",
            "at",
            "actor",
            "method",
            "source",
            "request_id",
            "action",
            "kind",
            "target",
            "tenant",
            "outcome",
            "before",
            "after",
        ];
        let shown = Value::Array(fields.iter().map(|f| deed[f].clone()).collect());
        if serde_json::from_str::<Value>(record).ok().as_ref() != Some(&shown) {
            return Err(broken("shows something else than its record"));
        }
        self.length += 1;
        self.last = hash.as_ref().to_vec();
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
