//! `move watch`: a line that changes on a terminal, lines otherwise, JSON on request.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::output;

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(250);

pub(super) async fn watch(session: &Session, id: i64) -> Outcome {
    let terminal = std::io::stdout().is_terminal();
    let mut last = String::new();
    loop {
        let found = session.api.get(&format!("/v1/moves/{id}")).await?;
        let line = told(&found);
        if session.is_json() {
            output::line(&found.to_string())?;
        } else if terminal {
            let mut out = std::io::stdout();
            write!(out, "\r\x1b[2K{line}")?;
            out.flush()?;
        } else if line != last {
            output::line(&line)?;
        }
        last = line;
        let phase = found["phase"].as_str().unwrap_or_default();
        if phase == "done" || phase == "moved" {
            if terminal && !session.is_json() {
                output::line("")?;
            }
            return match found["outcome"].as_str() {
                Some("failed" | "refused" | "aborted") => Err(Failure::Error(anyhow::anyhow!(
                    "{}",
                    found["error"].as_str().unwrap_or("it was given up")
                ))),
                _ => Ok(()),
            };
        }
        sleep(LOOK).await;
    }
}

/// A move in a line.
fn told(found: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let progress = &found["progress"];
    let mut line = format!("move {} of {}: {}", found["id"], text(&found["tenant"]), text(&found["phase"]));
    if let (Some(done), Some(all)) = (progress["tables_copied"].as_u64(), progress["tables"].as_u64()) {
        line += &format!(", {done} of {all} tables");
    }
    if let Some(bytes) = progress["bytes"].as_u64() {
        line += &format!(", {:.1} MB", bytes as f64 / 1e6);
        let (rate, all) = (progress["bytes_per_s"].as_f64(), found["plan"]["bytes"].as_f64());
        if let Some(rate) = rate.filter(|r| *r > 0.0) {
            line += &format!(" at {:.1} MB/s", rate / 1e6);
            if let Some(left) = all.map(|a| a - bytes as f64).filter(|l| *l > 0.0) {
                line += &format!(", about {:.0} s left", left / rate);
            }
        }
    }
    if let Some(backlog) = progress["backlog_bytes"].as_u64().filter(|b| *b > 0) {
        line += &format!(", {:.1} MB of changes wait", backlog as f64 / 1e6);
    }
    if let Some(pause) = found["receipt"]["pause"]["total_us"].as_u64() {
        line += &format!(", pause {:.1} ms", pause as f64 / 1e3);
    }
    match found["outcome"].as_str() {
        Some(outcome) => format!("{line}, {outcome}"),
        None => line,
    }
}
