//! The same bytes to PostgreSQL and through the router: what comes back must be the same.

use super::Raw;
use super::deviations::is_known;
use super::messages::Message;

/// What a script does next.
#[derive(Clone)]
pub enum Step {
    /// Sends bytes and reads nothing.
    Send(Vec<u8>),
    /// Reads up to and with this many ReadyForQuery (or the end of the connection).
    Ready(usize),
    /// Reads up to and with a message of this type.
    Tag(u8),
    /// Reads up to the ReadyForQuery after a row whose first value is this text.
    Row(String),
}

/// Sends bytes, then reads up to one ReadyForQuery.
pub fn round(bytes: impl Into<Vec<u8>>) -> Vec<Step> {
    vec![Step::Send(bytes.into()), Step::Ready(1)]
}

/// Runs a script on one connection: what came, with what may differ taken out.
///
/// # Panics
/// If a message that the script waits for does not come.
#[track_caller]
pub fn play(raw: &mut Raw, script: &[Step]) -> Vec<String> {
    let mut seen = Vec::new();
    for step in script {
        let mut keep = |messages: Vec<Message>| seen.extend(messages.iter().filter_map(normal));
        match step {
            // Aside, as whoever answers early must not wait for us to read.
            Step::Send(bytes) if bytes.len() > 100_000 => raw.send_aside(bytes.clone()),
            Step::Send(bytes) => raw.send(bytes),
            Step::Ready(n) => (0..*n).for_each(|_| keep(raw.until_ready_or_end())),
            Step::Tag(tag) => keep(raw.until_tag(*tag)),
            Step::Row(text) => loop {
                let messages = raw.until_ready_or_end();
                let value = |m: &Message| m.tag == b'D' && m.values().first() == Some(&Some(text.clone()));
                let last = messages.iter().any(value) || messages.last().is_none_or(|m| m.tag != b'Z');
                keep(messages);
                if last {
                    break;
                }
            },
        }
    }
    seen
}

/// A message as it is compared: all of it, except what a server chooses for itself. Positions in
/// source files, process ids and session parameters are none of a client's business.
pub fn normal(message: &Message) -> Option<String> {
    let tag = message.tag as char;
    match message.tag {
        b'S' | b'K' => None,
        b'E' | b'N' => Some(format!(
            "{tag} {} {} {} pos={}",
            message.field(b'V'),
            message.sqlstate(),
            without_name(&message.field(b'M')),
            message.field(b'P')
        )),
        b'T' => Some(format!("{tag} {:x?}", columns(&message.body).unwrap_or_default())),
        _ if message.body.len() > 256 => {
            Some(format!("{tag} {} bytes #{:x}", message.body.len(), hash(&message.body)))
        }
        _ => Some(format!("{tag} {}", message.body.escape_ascii())),
    }
}

/// A text without the name of a prepared statement: the router has its own, and the errors of
/// PostgreSQL that name one are passed on as they are.
fn without_name(text: &str) -> String {
    const BEFORE: &str = "prepared statement \"";
    match text.split_once(BEFORE).and_then(|(a, rest)| Some((a, rest.split_once('"')?.1))) {
        Some((before, after)) => format!("{before}{BEFORE}...\"{after}"),
        None => text.to_owned(),
    }
}

/// The columns of a RowDescription: each name, and all numbers after it but that of the table,
/// which is another for every table that is made.
fn columns(body: &[u8]) -> Option<Vec<(String, &[u8])>> {
    let mut rest = body.get(2..)?;
    let mut columns = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == 0)?;
        let numbers = rest.get(end + 1..end + 19)?;
        columns.push((String::from_utf8_lossy(&rest[..end]).into_owned(), &numbers[4..]));
        rest = &rest[end + 19..];
    }
    Some(columns)
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Runs a script on both connections: what differs, if anything.
///
/// # Panics
/// If a message that the script waits for does not come.
#[track_caller]
pub fn difference(direct: &mut Raw, routed: &mut Raw, script: &[Step]) -> Option<String> {
    compare(&play(direct, script), &play(routed, script))
}

/// What differs between what PostgreSQL said and what the router said, if anything.
pub fn compare(expected: &[String], found: &[String]) -> Option<String> {
    if expected == found {
        return None;
    }
    let at = expected.iter().zip(found).take_while(|(a, b)| a == b || is_known(a, b)).count();
    if at == expected.len() && at == found.len() {
        return None;
    }
    let from = at.saturating_sub(3);
    let show = |seen: &[String]| {
        seen.iter().skip(from).take(8).map(|line| shortened(line)).collect::<Vec<_>>().join("\n    ")
    };
    Some(format!(
        "differs at message {at} (of {} and {})\n  PostgreSQL:\n    {}\n  router:\n    {}",
        expected.len(),
        found.len(),
        show(expected),
        show(found)
    ))
}

/// As much of a line as a reader wants to see.
fn shortened(line: &str) -> String {
    match line.char_indices().nth(240) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line.to_owned(),
    }
}

/// Runs a script on both connections and compares.
///
/// # Panics
/// If anything differs.
#[track_caller]
pub fn same(name: &str, direct: &mut Raw, routed: &mut Raw, script: &[Step]) {
    if let Some(difference) = difference(direct, routed, script) {
        panic!("{name}: {difference}");
    }
}
