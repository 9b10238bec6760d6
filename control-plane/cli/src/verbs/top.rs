//! `switchyard top`: the busiest tenants, live on a terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::DefaultTerminal;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Row, Table};
use serde_json::Value;

use super::Session;
use crate::failure::Outcome;
use crate::output;

/// What to show, and how often.
#[derive(Args)]
pub(crate) struct TopArgs {
    /// What to sort by.
    #[arg(long, default_value = "transactions", value_parser = ["transactions", "statements", "errors", "limited",
        "bytes_in", "bytes_out", "server_us", "wait_us", "connections"])]
    sort: String,
    /// Tenants to show.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    every: u64,
    /// Print what there is now and end, as is done where there is no terminal.
    #[arg(long)]
    once: bool,
}

/// Key, title, field, and what a number is divided by to be shown per second.
const COLUMNS: &[(char, &str, &str, Form)] = &[
    ('t', "TX/S", "transactions", Form::PerSecond),
    ('s', "STMT/S", "statements", Form::PerSecond),
    ('e', "ERR/S", "errors", Form::PerSecond),
    ('l', "LIMITED/S", "limited", Form::PerSecond),
    ('i', "IN/S", "bytes_in", Form::Bytes),
    ('o', "OUT/S", "bytes_out", Form::Bytes),
    ('d', "SERVER %", "server_us", Form::Share),
    ('w', "WAIT %", "wait_us", Form::Share),
    ('c', "CONN", "connections", Form::Plain),
];

/// How a column is shown.
#[derive(Clone, Copy)]
enum Form {
    PerSecond,
    Bytes,
    /// Of one second's time on one connection.
    Share,
    Plain,
}

fn shown(form: Form, value: f64, seconds: f64) -> String {
    let rate = value / seconds.max(1.0);
    match form {
        Form::Plain => format!("{value:.0}"),
        Form::PerSecond if rate < 10.0 => format!("{rate:.1}"),
        Form::PerSecond => format!("{rate:.0}"),
        Form::Share => format!("{:.1}", rate / 10_000.0),
        Form::Bytes => {
            let units = ["B", "KiB", "MiB", "GiB"];
            let unit = units.iter().enumerate().rfind(|(n, _)| rate >= 1024_f64.powi(*n as i32));
            let (n, unit) = unit.unwrap_or((0, &"B"));
            format!("{:.1} {unit}", rate / 1024_f64.powi(n as i32))
        }
    }
}

/// What was last seen.
struct Seen {
    answer: Value,
    error: Option<String>,
    at: Instant,
}

impl TopArgs {
    pub(crate) async fn run(mut self, session: Session) -> Outcome {
        if self.once || !std::io::stdout().is_terminal() {
            let answer = session.api.get(&self.path()).await?;
            return output::line(&self.text(&answer));
        }
        let mut seen = Seen { answer: session.api.get(&self.path()).await?, error: None, at: Instant::now() };
        // Restores the terminal, even where something panics.
        let mut terminal = ratatui::try_init().context("the terminal")?;
        let ended = self.live(&session, &mut terminal, &mut seen).await;
        ratatui::restore();
        ended
    }

    async fn live(&mut self, session: &Session, terminal: &mut DefaultTerminal, seen: &mut Seen) -> Outcome {
        loop {
            terminal.draw(|frame| self.draw(frame, seen)).context("the terminal")?;
            let next = seen.at + Duration::from_secs(self.every);
            let mut look = Instant::now() >= next;
            let wait = next.saturating_duration_since(Instant::now()).min(Duration::from_millis(250));
            if event::poll(wait).context("the terminal")?
                && let Event::Key(key) = event::read().context("the terminal")?
                && key.kind == KeyEventKind::Press
            {
                match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                    KeyCode::Char(pressed) => {
                        if let Some(column) = COLUMNS.iter().find(|c| c.0 == pressed) {
                            column.2.clone_into(&mut self.sort);
                            look = true;
                        }
                    }
                    _ => {}
                }
            }
            if look {
                match session.api.get(&self.path()).await {
                    Ok(answer) => *seen = Seen { answer, error: None, at: Instant::now() },
                    // What was seen stays, and says how old it is.
                    Err(failure) => {
                        seen.error = Some(failure.text());
                        seen.at = Instant::now();
                    }
                }
            }
        }
    }

    fn draw(&self, frame: &mut ratatui::Frame<'_>, seen: &Seen) {
        let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(frame.area());
        let keys = COLUMNS.iter().map(|c| format!("{} {}", c.0, c.2)).collect::<Vec<_>>().join("  ");
        let title = match &seen.error {
            Some(error) => Line::from(format!("not up to date: {error}")).red(),
            None => Line::from(format!("sorted by {}   q quit  {keys}", self.sort)),
        };
        frame.render_widget(title, head);
        let widths =
            std::iter::once(Constraint::Min(16)).chain(COLUMNS.iter().map(|_| Constraint::Length(11)));
        let titles = std::iter::once("TENANT").chain(COLUMNS.iter().map(|c| c.1));
        let rows = self.rows(&seen.answer).into_iter().map(Row::new);
        let table = Table::new(rows, widths).header(Row::new(titles).style(Style::new().bold()));
        frame.render_widget(table, body);
    }

    fn path(&self) -> String {
        format!("/v1/usage/top?sort={}&limit={}", self.sort, self.limit)
    }

    fn rows(&self, answer: &Value) -> Vec<Vec<String>> {
        let seconds = answer["seconds"].as_f64().unwrap_or(60.0);
        let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let row = |item: &Value| {
            // A terminal takes control characters for commands; no id has any, and none is passed on.
            let name =
                item["tenant"].as_str().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
            let numbers = COLUMNS.iter().map(|c| shown(c.3, item[c.2].as_f64().unwrap_or_default(), seconds));
            std::iter::once(name).chain(numbers).collect()
        };
        items.iter().map(row).collect()
    }

    fn text(&self, answer: &Value) -> String {
        let titles = std::iter::once("TENANT").chain(COLUMNS.iter().map(|c| c.1)).map(str::to_owned);
        let mut lines = vec![titles.collect::<Vec<_>>()];
        lines.extend(self.rows(answer));
        let width = lines.iter().map(|l| l[0].chars().count()).max().unwrap_or(0);
        let line = |cells: &Vec<String>| {
            let rest: String = cells[1..].iter().map(|c| format!("{c:>12}")).collect();
            format!("{:width$}{rest}", cells[0])
        };
        lines.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_shown_per_second() {
        assert_eq!(shown(Form::PerSecond, 600.0, 60.0), "10");
        assert_eq!(shown(Form::PerSecond, 30.0, 60.0), "0.5");
        assert_eq!(shown(Form::Bytes, 60.0 * 1024.0 * 1024.0, 60.0), "1.0 MiB");
        assert_eq!(shown(Form::Share, 30_000_000.0, 60.0), "50.0");
        assert_eq!(shown(Form::Plain, 7.0, 60.0), "7");
    }

    #[test]
    fn ids_command_no_terminal() {
        let top = TopArgs { sort: "transactions".into(), limit: 1, every: 1, once: true };
        let answer = json!({ "seconds": 60, "items": [{ "tenant": "a\u{1b}[2Jb", "transactions": 60 }] });
        let text = top.text(&answer);
        assert!(text.contains("a[2Jb") && text.contains("1.0") && !text.contains('\u{1b}'), "{text}");
    }
}
