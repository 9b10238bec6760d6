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

/// Tables that are shown at a time.
const TABLES: usize = 10;

/// Columns of a bar.
const BAR: usize = 24;

pub(super) async fn watch(session: &Session, id: i64) -> Outcome {
    let terminal = std::io::stdout().is_terminal() && !session.is_json();
    let (mut last, mut drawn) = (String::new(), 0);
    loop {
        let found = session.api.get(&format!("/v1/moves/{id}")).await?;
        let line = told(&found);
        if session.is_json() {
            output::line(&found.to_string())?;
        } else if terminal {
            drawn = draw(&line, &tables(&found["progress"]), drawn)?;
        } else if line != last {
            output::line(&line)?;
        }
        last = line;
        let phase = found["phase"].as_str().unwrap_or_default();
        if phase == "done" || phase == "moved" {
            return match found["outcome"].as_str() {
                Some("failed" | "refused" | "aborted") => Err(Failure::Error(anyhow::anyhow!(
                    "{}",
                    found["error"].as_str().unwrap_or("it was given up")
                ))),
                _ => Ok(()),
            };
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => {
                eprintln!("\nmove {id} goes on; look again with `switchyard move watch {id}`");
                return Ok(());
            }
        }
    }
}

/// Draws over what was drawn before, of so many lines. How many there are now.
fn draw(line: &str, tables: &[String], before: usize) -> std::io::Result<usize> {
    let mut out = std::io::stdout();
    if before > 0 {
        write!(out, "\x1b[{before}A")?;
    }
    write!(out, "\r\x1b[J{line}\n")?;
    for table in tables {
        writeln!(out, "{table}")?;
    }
    out.flush()?;
    Ok(1 + tables.len())
}

/// The tables that are being copied, the largest first, each in a line.
fn tables(progress: &Value) -> Vec<String> {
    let each = progress["each"].as_array().map(Vec::as_slice).unwrap_or_default();
    let number = |table: &Value, field: &str| table[field].as_u64().unwrap_or(0);
    let begun = each.iter().filter(|t| number(t, "of_rows") > 0);
    let lines = begun.take(TABLES).map(|table| {
        let (rows, of) = (number(table, "rows"), number(table, "of_rows").max(1));
        let full = usize::try_from(rows * BAR as u64 / of).unwrap_or(BAR).min(BAR);
        format!(
            "  {:<32} [{}{}] {:>3} %  {rows} of about {of} rows, {:.1} MB",
            table["table"].as_str().unwrap_or_default(),
            "#".repeat(full),
            " ".repeat(BAR - full),
            (rows * 100 / of).min(100),
            number(table, "bytes") as f64 / 1e6
        )
    });
    lines.collect()
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
        if let Some(rate) = progress["bytes_per_s"].as_f64().filter(|r| *r > 0.0) {
            line += &format!(" at {:.1} MB/s", rate / 1e6);
        }
        if let Some(left) = progress["eta_s"].as_f64().filter(|s| *s > 0.0) {
            line += &format!(", about {left:.0} s left");
        }
    }
    if progress["held"] == true {
        line += &format!(", waits for standbys that are {} ms behind", progress["lag_ms"]);
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
