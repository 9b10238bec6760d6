//! The operators' verbs, over REST.

mod access;
mod limits;
mod moves;
mod operation;
mod plan;
mod shard;
mod tenant;
mod top;
mod usage;
mod user;
mod value;

use anyhow::Context;
use serde_json::Value;

pub(crate) use access::{AuditCommand, TokenCommand};
pub(crate) use limits::LimitCommand;
pub(crate) use moves::MoveCommand;
pub(crate) use operation::OperationCommand;
pub(crate) use plan::PlanCommand;
pub(crate) use shard::ShardCommand;
pub(crate) use tenant::TenantCommand;
pub(crate) use top::TopArgs;
pub(crate) use usage::{RouterCommand, UsageArgs, WebhookCommand, health};
pub(crate) use user::UserCommand;
pub(crate) use value::ValueCommand;

use crate::args::{OutputFormat, Remote};
use crate::failure::{Failure, Outcome};
use crate::http::Api;
use crate::output;

/// The API, and the form of its answers.
pub(crate) struct Session {
    pub(crate) api: Api,
    output: OutputFormat,
}

/// Runs one verb.
pub(crate) fn run(remote: &Remote, verb: impl AsyncFnOnce(Session) -> Outcome) -> Outcome {
    let session = Session { api: Api::new(&remote.api, &remote.token)?, output: remote.output };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
    runtime.block_on(verb(session))
}

impl Session {
    /// All items of a list, page by page.
    async fn all(&self, path: &str) -> Outcome<Vec<Value>> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let joint = if path.contains('?') { '&' } else { '?' };
            let from = after.as_deref().map(crate::http::segment);
            let page = from.map_or_else(|| path.to_owned(), |a| format!("{path}{joint}cursor={a}"));
            let mut answer = self.api.get(&page).await?;
            if let Value::Array(found) = answer["items"].take() {
                items.extend(found);
            }
            match answer["next"].take() {
                Value::String(next) => after = Some(next),
                _ => return Ok(items),
            }
        }
    }

    fn show_list(&self, columns: &[(&str, &str)], items: Vec<Value>) -> Outcome {
        match self.output {
            OutputFormat::Json => output::json(&Value::Array(items)),
            OutputFormat::Table => output::table(columns, &items),
        }
    }

    fn show(&self, fields: &[(&str, &str)], item: &Value) -> Outcome {
        match self.output {
            OutputFormat::Json => output::json(item),
            OutputFormat::Table => output::object(fields, item),
        }
    }

    fn is_json(&self) -> bool {
        self.output == OutputFormat::Json
    }

    /// Takes away the `kind` called `name` that is at `path`, if `yes` was said.
    async fn end(&self, kind: &str, name: &str, done: &str, yes: bool, path: &str) -> Outcome {
        if !yes {
            return Err(Failure::Usage(format!("{kind} `{name}` would be {done}; say --yes to do it")));
        }
        self.api.delete(path).await?;
        self.done(&format!("{kind} {name} {done}"))
    }

    fn done(&self, text: &str) -> Outcome {
        match self.output {
            OutputFormat::Json => Ok(()),
            OutputFormat::Table => output::line(text),
        }
    }
}

/// What a word on the command line says that takes something away with `none`.
fn or_none(name: String) -> Value {
    if name == "none" { Value::Null } else { name.into() }
}
