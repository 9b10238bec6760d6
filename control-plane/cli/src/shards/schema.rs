//! `switchyard schema`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use switchyard_shard_schema::adopt::{self, AdoptOptions, Progress};
use switchyard_shard_schema::install::{self, Form, InstallOptions, Revokes};
use switchyard_shard_schema::keys;
use switchyard_shard_schema::protect::{self, Mode, ProtectOptions};

use super::migrate::ApplyArgs;
use super::seal;
use super::targets::{Found, Targets, connect};
use crate::args::OutputFormat;
use crate::failure::{Failure, Outcome};
use crate::output;

/// The schema on the shards, and what fits an existing database to it.
#[derive(Args)]
pub(crate) struct SchemaArgs {
    #[command(flatten)]
    targets: Targets,
    /// Form of the answer.
    #[arg(short, long, global = true, value_enum, default_value_t = OutputFormat::Table)]
    output: OutputFormat,
    #[command(subcommand)]
    command: SchemaCommand,
}

#[derive(Subcommand)]
enum SchemaCommand {
    /// Put the schema `switchyard` on the shards, or bring it up to date.
    Install(InstallArgs),
    /// What is on the shards.
    Status,
    /// Bring it up to date where it is installed.
    Upgrade,
    /// Take it away.
    Remove {
        /// Drop policies and defaults that ask it as well. Tables without a policy then show nothing.
        #[arg(long)]
        force: bool,
        /// Without this, nothing is done.
        #[arg(long)]
        yes: bool,
    },
    /// Make a new key, give it to the shards, and put it first in the file.
    RotateKey {
        /// The file of keys; made with mode 0600 where it is not there.
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
        /// Make no key: leave the file and the shards the first key only. When every router signs with it.
        #[arg(long)]
        retire: bool,
    },
    /// Write the policies of tables that have the tenant column and lack them.
    Protect(ProtectArgs),
    /// Give the tenant column to tables of a database that had one tenant, while it is in use.
    Adopt(AdoptArgs),
    /// Run a file of SQL on every shard: one first, then the others.
    Apply(ApplyArgs),
}

#[derive(Args)]
struct InstallArgs {
    /// Where a session's tenant is kept; the best that can be had if not given.
    #[arg(long, value_enum)]
    form: Option<FormArg>,
    /// A file of keys for the shards to take; made with one key, mode 0600, where it is not there.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Take functions from PUBLIC: they show or harm sessions of the same role, which all tenants share.
    #[arg(long, value_enum, value_delimiter = ',')]
    revoke: Vec<RevokeArg>,
    /// Print the SQL of a first installation and do nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum FormArg {
    /// In a parameter that only the schema's owner may set; a superuser must grant that.
    Parameter,
    /// As a session's own value of a sequence; for where there is no superuser.
    Sequence,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RevokeArg {
    /// What others run: pg_stat_activity shows nothing to the application. pg_monitor keeps it.
    Activity,
    /// pg_cancel_backend and pg_terminate_backend. Cancel requests of drivers are not concerned.
    Signals,
    /// Large objects, which have no tenant.
    LargeObjects,
    /// Advisory locks, by which tenants can wait for each other.
    AdvisoryLocks,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ModeArg {
    /// Policies ask a session variable.
    Plain,
    /// Policies ask switchyard.tenant_id().
    Sealed,
}

#[derive(Args)]
struct ProtectArgs {
    /// What policies ask; that of --config, else plain.
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// The variable of the plain mode.
    #[arg(long, default_value = "app.tenant_id")]
    variable: String,
    /// The tenant column.
    #[arg(long, default_value = "tenant_id")]
    column: String,
    /// This table alone; may be repeated. All that have the column if not given.
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// Drop policies that let more be seen. Without it they stay, and a restrictive one is put beside them.
    #[arg(long)]
    replace: bool,
    /// Do it. Without this the SQL is printed and nothing is done.
    #[arg(long)]
    apply: bool,
    /// Longest wait for a lock, in milliseconds.
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    lock_timeout_ms: u64,
}

#[derive(Args)]
struct AdoptArgs {
    /// The tenant whose rows they become.
    #[arg(long, value_name = "ID")]
    tenant: String,
    /// The tenant column.
    #[arg(long, default_value = "tenant_id")]
    column: String,
    /// This table; may be repeated. Without it, tables that lack the column are listed and nothing is done.
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// Pages (of 8 kB) of one batch.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch_pages: u32,
    /// Pause between batches, in milliseconds.
    #[arg(long, default_value_t = 10)]
    pause_ms: u64,
}

impl SchemaArgs {
    pub(crate) fn run(self) -> Outcome {
        if let SchemaCommand::Install(args) = &self.command
            && args.dry_run
        {
            let form = args.form.map_or(Form::Parameter, FormArg::form);
            return output::line(install::script(form, revokes(&args.revoke)).trim_end());
        }
        super::run(async move {
            let found = self.targets.find()?;
            match self.command {
                SchemaCommand::Install(args) => put(&found, &args, self.output).await,
                SchemaCommand::Status => status(&found, self.output).await,
                SchemaCommand::Upgrade => upgrade(&found).await,
                SchemaCommand::Remove { force, yes } => remove(&found, force, yes).await,
                SchemaCommand::RotateKey { key_file, retire: false } => seal::rotate(&found, &key_file).await,
                SchemaCommand::RotateKey { key_file, retire: true } => seal::retire(&found, &key_file).await,
                SchemaCommand::Protect(args) => guard(&found, &args).await,
                SchemaCommand::Adopt(args) => take_in(&found, &args, self.output).await,
                SchemaCommand::Apply(args) => super::migrate::apply(&found, &args, self.output).await,
            }
        })
    }
}

impl FormArg {
    fn form(self) -> Form {
        match self {
            Self::Parameter => Form::Parameter,
            Self::Sequence => Form::Sequence,
        }
    }
}

fn revokes(asked: &[RevokeArg]) -> Revokes {
    Revokes {
        activity: asked.contains(&RevokeArg::Activity),
        signals: asked.contains(&RevokeArg::Signals),
        large_objects: asked.contains(&RevokeArg::LargeObjects),
        advisory_locks: asked.contains(&RevokeArg::AdvisoryLocks),
    }
}

async fn put(found: &Found, args: &InstallArgs, form: OutputFormat) -> Outcome {
    let keys = args.key_file.as_deref().map(seal::read_or_make).transpose()?;
    let options = InstallOptions { form: args.form.map(FormArg::form), revokes: revokes(&args.revoke) };
    for shard in &found.shards {
        let at = || format!("shard {}", shard.name);
        let mut client = connect(shard).await?;
        install::install(&mut client, &options).await.with_context(at)?;
        if let Some(keys) = &keys {
            keys::add(&mut client, keys).await.with_context(at)?;
        }
    }
    status(found, form).await
}

async fn status(found: &Found, form: OutputFormat) -> Outcome {
    let mut rows = Vec::new();
    for shard in &found.shards {
        let client = connect(shard).await?;
        let status = install::status(&*client).await.with_context(|| format!("shard {}", shard.name))?;
        rows.push(match status {
            Some(status) => {
                let mut row = serde_json::to_value(&status)?;
                row["shard"] = json!(shard.name);
                row["installed"] = json!(true);
                row
            }
            None => json!({ "shard": shard.name, "installed": false }),
        });
    }
    match form {
        OutputFormat::Json => output::json(&rows.into()),
        OutputFormat::Table => output::table(
            &[
                ("SHARD", "shard"),
                ("INSTALLED", "installed"),
                ("VERSION", "version"),
                ("CURRENT", "current"),
                ("FORM", "form"),
                ("KEYS", "keys"),
                ("POLICIES", "policies"),
                ("FENCED", "fenced"),
            ],
            &rows,
        ),
    }
}

async fn upgrade(found: &Found) -> Outcome {
    for shard in &found.shards {
        let at = || format!("shard {}", shard.name);
        let mut client = connect(shard).await?;
        let text = match install::status(&*client).await.with_context(at)? {
            None => "not installed".to_owned(),
            Some(status) if status.current => "current".to_owned(),
            Some(_) => {
                let done =
                    install::install(&mut client, &InstallOptions::default()).await.with_context(at)?;
                format!("upgraded, {} steps", done.steps)
            }
        };
        output::line(&format!("{}: {text}", shard.name))?;
    }
    Ok(())
}

async fn remove(found: &Found, force: bool, yes: bool) -> Outcome {
    if !yes {
        let names: Vec<_> = found.shards.iter().map(|s| s.name.as_str()).collect();
        let text = format!("this takes the schema from {}; add --yes", names.join(", "));
        return Err(Failure::Usage(text));
    }
    for shard in &found.shards {
        let mut client = connect(shard).await?;
        install::remove(&mut client, force).await.with_context(|| format!("shard {}", shard.name))?;
        output::line(&format!("{}: removed", shard.name))?;
    }
    Ok(())
}

/// The mode that was asked for, else that of the router's file.
pub(super) fn mode_of(found: &Found, mode: Option<ModeArg>, variable: &str) -> Mode {
    let of_file = found.file.as_ref().is_some_and(|f| !f.topology.context.mode.is_plain());
    match mode {
        Some(ModeArg::Sealed) => Mode::Sealed,
        None if of_file => Mode::Sealed,
        _ => Mode::Plain(variable.to_owned()),
    }
}

async fn guard(found: &Found, args: &ProtectArgs) -> Outcome {
    let options = ProtectOptions {
        column: args.column.clone(),
        mode: mode_of(found, args.mode, &args.variable),
        tables: args.tables.clone(),
        replace: args.replace,
    };
    for shard in &found.shards {
        let at = || format!("shard {}", shard.name);
        let mut client = connect(shard).await?;
        if args.apply {
            let done = protect::apply(&mut client, &options, args.lock_timeout_ms).await.with_context(at)?;
            output::line(&format!("{}: {} statements", shard.name, done.len()))?;
        } else {
            let sql = protect::plan(&*client, &options).await.with_context(at)?;
            output::line(&format!("-- {}: {} statements", shard.name, sql.len()))?;
            for statement in sql {
                output::line(&format!("{statement};"))?;
            }
        }
    }
    Ok(())
}

async fn take_in(found: &Found, args: &AdoptArgs, form: OutputFormat) -> Outcome {
    switchyard_config::TenantId::new(&args.tenant)
        .map_err(|e| Failure::Usage(format!("the tenant id {e}")))?;
    let mut options = AdoptOptions::new(&args.column, &args.tenant);
    options.batch_pages = args.batch_pages;
    options.pause = Duration::from_millis(args.pause_ms);
    let mut rows = Vec::new();
    for shard in &found.shards {
        let at = || format!("shard {}", shard.name);
        let mut client = connect(shard).await?;
        if args.tables.is_empty() {
            for table in adopt::candidates(&*client, &args.column).await.with_context(at)? {
                rows.push(json!({ "shard": shard.name, "table": table }));
            }
        }
        for table in &args.tables {
            let bar = bar(table);
            let mut told = |p: Progress| {
                bar.set_length(p.of);
                bar.set_position(p.pages);
            };
            let done = adopt::adopt(&mut client, table, &options, &mut told).await.with_context(at)?;
            bar.finish_and_clear();
            let mut row = serde_json::to_value(&done)?;
            row["shard"] = json!(shard.name);
            rows.push(row);
        }
    }
    match form {
        OutputFormat::Json => output::json(&rows.into()),
        OutputFormat::Table => output::table(
            &[
                ("SHARD", "shard"),
                ("TABLE", "table"),
                ("ADDED", "added"),
                ("FILLED", "filled"),
                ("INDEX", "index"),
            ],
            &rows,
        ),
    }
}

/// A bar on standard error, where that is a terminal.
pub(super) fn bar(title: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
    let bar = ProgressBar::new(0).with_message(title.to_owned());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
