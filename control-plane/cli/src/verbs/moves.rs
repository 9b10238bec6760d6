//! Verbs of moves.

mod drain;
mod show;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

pub(crate) use self::drain::DrainArgs;
use self::show::{FIELDS, show};
use super::Session;
use crate::failure::{Failure, Outcome};
use crate::http::segment;
use crate::output;

/// How often a move is looked at while it is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// Verbs of moves.
#[derive(Subcommand)]
pub(crate) enum MoveCommand {
    /// Move a tenant to another shard while its applications keep writing.
    Start(StartArgs),
    /// Do all of a move but the cutover, and predict its pause.
    Rehearse(StartArgs),
    /// List moves, the latest first.
    List {
        /// Those of this tenant.
        #[arg(long)]
        tenant: Option<String>,
        /// Those that have not ended.
        #[arg(long)]
        open: bool,
    },
    /// Show a move: its phase, what happened, and its receipt.
    Show {
        /// Its number, or a tenant, whose latest move it is.
        id: String,
    },
    /// Print the receipt of a move as JSON.
    Receipt {
        /// Its number, or a tenant.
        id: String,
    },
    /// Watch a move until the tenant has gone over. Ctrl-C stops watching, not the move.
    Watch {
        /// Its number, or a tenant.
        id: String,
    },
    /// Have a move stand still before its cutover.
    Pause {
        /// Its number, or a tenant.
        id: String,
    },
    /// Have it go on.
    Resume {
        /// Its number, or a tenant.
        id: String,
    },
    /// Give up a move that has not gone over; the tenant stays where it is.
    Abort {
        #[command(flatten)]
        end: EndArgs,
        /// The target does not answer: give the move up without it. What it has of the tenant is cleared when it does.
        #[arg(long)]
        without_target: bool,
        /// The target is lost for good, and the tenant may have arrived there: have it go on where it was, as it was when
        /// it was frozen. What was acknowledged on the target since is given up. See to it that the target is off: a
        /// router that still reaches it, and hears of nothing, would go on writing there.
        #[arg(long, requires = "without_target")]
        accept_loss: bool,
    },
    /// Have a tenant that has gone over go back.
    Rollback(EndArgs),
    /// Delete what is left where the tenant was. There is no way back after it.
    Complete {
        #[command(flatten)]
        end: EndArgs,
        /// The source does not come back: end the move without it. What it has of the tenant stays there.
        #[arg(long)]
        without_source: bool,
    },
}

/// What is to be moved, and how.
#[derive(Args)]
pub(crate) struct StartArgs {
    /// The tenant.
    #[arg(required_unless_present = "tenants_from")]
    tenant: Option<String>,
    /// A file with a tenant per line, instead of one; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "tenant")]
    tenants_from: Option<PathBuf>,
    /// The shard to go to.
    #[arg(long)]
    to: String,
    /// Look only: what is in the way, how much there is, how long it may take.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    wait: Wait,
}

/// What differs from the ordinary.
#[derive(Args, Default)]
pub(crate) struct How {
    /// Longest pause of an attempt at the cutover, in milliseconds. Default 250.
    #[arg(long, value_name = "MS")]
    pause_budget: Option<u64>,
    /// Attempts at the cutover before the move is given up. Default 50.
    #[arg(long)]
    attempts: Option<u32>,
    /// Ceiling of the copy, in bytes per second.
    #[arg(long, value_name = "BYTES")]
    rate: Option<u64>,
    /// Pieces that are copied at a time. Default 2.
    #[arg(long)]
    workers: Option<u32>,
    /// Bytes of a piece: a larger table is copied in ranges of its key. Default 64 MiB.
    #[arg(long, value_name = "BYTES")]
    piece_bytes: Option<u64>,
    /// Longest lag of a standby of the target at which the copy goes on, in milliseconds; 0 is any. Default 10000.
    #[arg(long, value_name = "MS")]
    max_target_lag: Option<u64>,
    /// Most bytes of log that the source may retain for the move. Default 4 GiB.
    #[arg(long, value_name = "BYTES")]
    wal_budget: Option<u64>,
    /// Seconds for which the source follows after the move, so that it can be rolled back. Default a day.
    #[arg(long, value_name = "SECONDS")]
    retention: Option<u64>,
    /// The column that tells the tenant, where tables are shared. Default `tenant_id`.
    #[arg(long)]
    tenant_column: Option<String>,
    /// Rows deleted at a time when what is left is deleted. Default 1000.
    #[arg(long, value_name = "ROWS")]
    delete_batch: Option<u32>,
    /// End sessions that keep their server connection between transactions and cannot be carried, with 57P01.
    /// Else they keep the tenant from moving for as long as they are there.
    #[arg(long)]
    end_pinned: bool,
    /// Complete an earlier move that can still be rolled back. Else it must be completed first.
    #[arg(long)]
    complete_previous: bool,
}

/// Whether to wait.
#[derive(Args)]
pub(crate) struct Wait {
    /// Return when it is done; exit code 5 if it is still running after `--timeout`.
    #[arg(long)]
    wait: bool,
    /// Seconds to wait.
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    timeout: u64,
}

impl Wait {
    /// Until when.
    fn until(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.timeout)
    }
}

/// A move that is to end.
#[derive(Args)]
pub(crate) struct EndArgs {
    /// Its number, or a tenant.
    id: String,
    #[command(flatten)]
    wait: Wait,
}

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "id"),
    ("TENANT", "tenant"),
    ("FROM", "source"),
    ("TO", "target"),
    ("KIND", "kind"),
    ("PHASE", "phase"),
    ("OUTCOME", "outcome"),
    ("CREATED", "created_at"),
];

impl MoveCommand {
    pub(crate) async fn run(self, session: Session) -> Outcome {
        match self {
            Self::Start(args) => {
                let kind = if args.dry_run { "plan" } else { "move" };
                start(&session, args, kind).await
            }
            Self::Rehearse(args) => start(&session, args, "rehearse").await,
            Self::List { tenant, open } => {
                let mut path = "/v1/moves?limit=1000".to_owned();
                if let Some(tenant) = tenant {
                    path += &format!("&tenant={}", segment(&tenant));
                }
                if open {
                    path += "&open=true";
                }
                let mut answer = session.api.get(&path).await?;
                let items = answer["items"].take();
                session.show_list(COLUMNS, items.as_array().cloned().unwrap_or_default())
            }
            Self::Show { id } => show(&session, &find(&session, &id).await?).await,
            Self::Receipt { id } => output::json(&find(&session, &id).await?["receipt"]),
            Self::Watch { id } => {
                let id = number(&find(&session, &id).await?);
                watch::watch(&session, id).await
            }
            Self::Pause { id } => {
                let made = wish(&session, &id, "pause").await?;
                session.show(FIELDS, &made)
            }
            Self::Resume { id } => {
                let made = wish(&session, &id, "resume").await?;
                session.show(FIELDS, &made)
            }
            Self::Abort { end: args, without_target, accept_loss } => {
                let verb = match (without_target, accept_loss) {
                    (true, true) => "abort?without_target=true&accept_loss=true",
                    (true, false) => "abort?without_target=true",
                    (false, _) => "abort",
                };
                end(&session, args, verb, "aborted").await
            }
            Self::Rollback(args) => end(&session, args, "rollback", "rolled_back").await,
            Self::Complete { end: args, without_source } => {
                let verb = if without_source { "complete?without_source=true" } else { "complete" };
                end(&session, args, verb, "completed").await
            }
        }
    }
}

/// The number of a move that the API has told.
fn number(found: &Value) -> i64 {
    found["id"].as_i64().unwrap_or_default()
}

/// The move of that number, or the latest of that tenant.
async fn find(session: &Session, id: &str) -> Outcome<Value> {
    if id.parse::<i64>().is_ok() {
        match session.api.get(&format!("/v1/moves/{id}")).await {
            Err(Failure::NotFound(_)) => {}
            found => return found,
        }
    }
    let mut answer = session.api.get(&format!("/v1/moves?limit=1&tenant={}", segment(id))).await?;
    match answer["items"][0].take() {
        Value::Null => {
            Err(Failure::NotFound(format!("there is no move `{id}`, nor one of a tenant by that name")))
        }
        found => Ok(found),
    }
}

async fn wish(session: &Session, id: &str, verb: &str) -> Outcome<Value> {
    let found = find(session, id).await?;
    session.api.post(&format!("/v1/moves/{}/{verb}", number(&found)), json!({})).await
}

async fn end(session: &Session, args: EndArgs, verb: &str, outcome: &str) -> Outcome {
    let made = wish(session, &args.id, verb).await?;
    let made =
        if args.wait.wait { wait(session, number(&made), args.wait.until(), false).await? } else { made };
    session.show(FIELDS, &made)?;
    match made["outcome"].as_str() {
        Some(ended) if ended != outcome => Err(ended_otherwise(&made)),
        _ => Ok(()),
    }
}

fn ended_otherwise(found: &Value) -> Failure {
    let text = |field: &str| found[field].as_str().unwrap_or("-").to_owned();
    Failure::Error(anyhow::anyhow!("move {} was {}: {}", number(found), text("outcome"), text("error")))
}

async fn start(session: &Session, args: StartArgs, kind: &str) -> Outcome {
    let tenants = match (&args.tenant, &args.tenants_from) {
        (Some(tenant), _) => vec![tenant.clone()],
        (None, Some(file)) => listed(file)?,
        (None, None) => return Err(Failure::Usage("say which tenant".to_owned())),
    };
    let mut started = Vec::new();
    for tenant in &tenants {
        started.push(begin(session, tenant, &args.to, kind, &args.how).await?);
    }
    finish(session, started, kind, &args.wait).await
}

/// Asks for a move.
async fn begin(session: &Session, tenant: &str, to: &str, kind: &str, how: &How) -> Outcome<Value> {
    let body = json!({
        "tenant": tenant, "to": to, "kind": kind, "options": how.options(),
        "complete_previous": how.complete_previous,
    });
    session.api.post("/v1/moves", body).await
}

/// Waits for what was begun, if asked to, and shows it.
async fn finish(session: &Session, mut started: Vec<Value>, kind: &str, how: &Wait) -> Outcome {
    if how.wait || kind == "plan" {
        let until = how.until();
        for one in &mut started {
            *one = wait(session, number(one), until, true).await?;
        }
    }
    match started.as_slice() {
        [one] => show(session, one).await?,
        all => session.show_list(COLUMNS, all.to_vec())?,
    }
    match started
        .iter()
        .find(|one| matches!(one["outcome"].as_str(), Some("refused" | "failed" | "aborted" | "rolled_back")))
    {
        Some(one) if one["outcome"] == "refused" => {
            Err(Failure::Conflict(one["error"].as_str().unwrap_or("preflight refused it").to_owned()))
        }
        Some(one) => Err(ended_otherwise(one)),
        None => Ok(()),
    }
}

fn listed(file: &Path) -> Outcome<Vec<String>> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("standard input")?
    } else {
        std::fs::read_to_string(file).with_context(|| file.display().to_string())?
    };
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(str::to_owned)
        .collect())
}

impl How {
    fn options(&self) -> Value {
        let mut options = Map::new();
        let mut give = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                options.insert(name.to_owned(), value);
            }
        };
        give("pause_budget_ms", self.pause_budget.map(Value::from));
        give("attempts", self.attempts.map(Value::from));
        give("rate", self.rate.map(Value::from));
        give("workers", self.workers.map(Value::from));
        give("piece_bytes", self.piece_bytes.map(Value::from));
        give("max_target_lag_ms", self.max_target_lag.map(Value::from));
        give("wal_budget", self.wal_budget.map(Value::from));
        give("retention_s", self.retention.map(Value::from));
        give("delete_batch", self.delete_batch.map(Value::from));
        give("tenant_column", self.tenant_column.clone().map(Value::from));
        give("end_pinned", self.end_pinned.then_some(Value::from(true)));
        Value::Object(options)
    }
}

/// Waits until a move has ended, or the tenant has gone over where that will do.
async fn wait(session: &Session, id: i64, until: Instant, gone_over: bool) -> Outcome<Value> {
    loop {
        let found = session.api.get(&format!("/v1/moves/{id}")).await?;
        let phase = found["phase"].as_str().unwrap_or_default();
        if phase == "done" || (gone_over && phase == "moved") {
            return Ok(found);
        }
        if Instant::now() >= until {
            return Err(Failure::StillRunning(format!("move {id} is {phase}")));
        }
        sleep(LOOK).await;
    }
}
