//! Metrics in the text format of Prometheus, and plain HTTP to read them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::wait;

/// The answer to a GET: status and body.
///
/// # Errors
/// If nobody answers.
pub fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(wait::DEADLINE))?;
    write!(socket, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Ok((status, body))
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        whole += &rest[..size];
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

/// One sample: labels and value.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// Samples by the name of their series.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// The samples.
    pub samples: BTreeMap<String, Vec<Sample>>,
    /// The type of each family that has one.
    pub types: BTreeMap<String, String>,
}

impl Metrics {
    /// Reads the text format, strictly.
    ///
    /// # Panics
    /// If a line is not as the format has it.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().filter(|l| !l.is_empty()) {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                let (name, kind) = family.split_once(' ').expect("a name and a type");
                let before = metrics.types.insert(name.to_owned(), kind.to_owned());
                assert!(before.is_none(), "two families called {name}");
            } else if !line.starts_with('#') {
                let (name, sample) = sample(line);
                metrics.samples.entry(name).or_default().push(sample);
            }
        }
        metrics
    }

    /// The sum of all samples of `name` that carry these labels. 0 if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |s: &&Sample| labels.iter().all(|(n, v)| s.labels.get(*n).is_some_and(|found| found == v));
        self.samples.get(name).into_iter().flatten().filter(fits).map(|s| s.value).sum()
    }

    /// All values of a label, over all series.
    pub fn values_of(&self, label: &str) -> std::collections::BTreeSet<String> {
        self.samples.values().flatten().filter_map(|s| s.labels.get(label).cloned()).collect()
    }
}

fn sample(line: &str) -> (String, Sample) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no sample: {line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':'), "a name: {line}");
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            let (value, after) = quoted(value);
            assert!(labels.insert(label.to_owned(), value).is_none(), "a label twice: {line}");
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let value = rest.trim().split(' ').next().and_then(|v| v.parse().ok());
    (name.to_owned(), Sample { labels, value: value.unwrap_or_else(|| panic!("no value: {line}")) })
}

fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => value.push('\n'),
                Some(c @ ('"' | '\\')) => value.push(c),
                other => panic!("a bad escape: {other:?}"),
            },
            c => value.push(c),
        }
    }
    panic!("a label without end: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_with_escapes() {
        let m =
            Metrics::parse("# TYPE a counter\na{x=\"q\\\"\\\\\\n},\",y=\"2\"} 3\na{x=\"z\"} 4 123\nb 1e3\n");
        assert_eq!(m.sum("a", &[]), 7.0);
        assert_eq!(m.sum("a", &[("x", "q\"\\\n},"), ("y", "2")]), 3.0);
        assert_eq!(m.sum("b", &[]), 1000.0);
    }

    #[test]
    fn chunks() {
        assert_eq!(unchunk("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), "abcde");
    }
}
