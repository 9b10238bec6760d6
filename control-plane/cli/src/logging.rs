//! The log of a process, on standard error.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::failure::{Failure, Outcome};

/// Form of the log.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Begins to log. The level is that of `SWITCHYARD_LOG` or `RUST_LOG`, else `default`.
pub(crate) fn init(format: Option<LogFormat>, default: &str) -> Outcome {
    let given = std::env::var("SWITCHYARD_LOG").or_else(|_| std::env::var("RUST_LOG"));
    let text = given.as_deref().ok().filter(|t| !t.is_empty()).unwrap_or(default);
    let filter = EnvFilter::try_new(text).map_err(|e| Failure::Usage(format!("SWITCHYARD_LOG: {e}")))?;
    // It logs the parameters of statements, and among these are passwords.
    let quiet = "tokio_postgres=info".parse().map_err(|e| Failure::Usage(format!("SWITCHYARD_LOG: {e}")))?;
    let filter = filter.add_directive(quiet);
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(terminal).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
