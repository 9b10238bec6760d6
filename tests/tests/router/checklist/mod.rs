//! The checklist of the wire protocol: every line of it as cases that are played to PostgreSQL and
//! to the router, or as tests where PostgreSQL cannot be the measure. `make checklist` prints it.
//!
//! On both sides `alice` has the same password, database and rights, so that the same bytes mean the same.

mod authentication;
mod cancel;
mod copy;
mod lifecycle;
mod lines;
mod queries;
mod scram;
mod side;
mod startup;
mod state;

use std::collections::BTreeMap;

use lines::{Evidence, LINES};
use side::{Side, Stand};
use switchyard_tests::raw::deviations::{self, Deviation};
use switchyard_tests::raw::differential::compare;

/// Does something on one side; what came back, as text.
type Play = Box<dyn Fn(&Side) -> Vec<String>>;

/// One thing that is done on both sides.
struct Case {
    line: &'static str,
    name: String,
    /// On servers with TLS?
    tls: bool,
    play: Play,
    /// What the router says instead, if it may: parts of what it says, in this order.
    instead: Option<(&'static Deviation, Vec<&'static str>)>,
}

impl Case {
    fn new(
        line: &'static str,
        name: impl Into<String>,
        play: impl Fn(&Side) -> Vec<String> + 'static,
    ) -> Self {
        Self { line, name: name.into(), tls: false, play: Box::new(play), instead: None }
    }

    /// On servers with TLS.
    fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// The router differs by this deviation, and says these things in this order.
    fn deviates(mut self, id: &str, says: &[&'static str]) -> Self {
        self.instead = Some((deviations::named(id), says.to_vec()));
        self
    }

    fn outcome(&self, stand: &Stand) -> Outcome {
        let pair = stand.pair(self.tls);
        let (expected, found) = ((self.play)(&pair.direct), (self.play)(&pair.routed));
        match (&self.instead, compare(&expected, &found)) {
            (None, None) => Outcome::Same,
            (None, Some(difference)) => Outcome::Differs(difference),
            (Some((deviation, _)), None) => {
                Outcome::Differs(format!("deviates no longer by {:?}: {found:#?}", deviation.id))
            }
            (Some((deviation, says)), Some(difference)) => {
                let mut rest = found.iter();
                match says.iter().find(|part| !rest.any(|line| line.contains(**part))) {
                    None => Outcome::Deviates(deviation),
                    Some(part) => Outcome::Differs(format!("does not say {part:?}: {difference}")),
                }
            }
        }
    }
}

enum Outcome {
    Same,
    Deviates(&'static Deviation),
    Differs(String),
}

#[expect(clippy::print_stdout, reason = "the table is for whoever runs the tests")]
fn row(line: &str, what: &str, outcome: &str) {
    println!("{line:<4} {what:<60} {outcome}");
}

/// Plays the cases of one section and prints its table.
fn section(letter: char, cases: Vec<Case>) {
    let stand = Stand::start();
    let mut by_line: BTreeMap<&str, Vec<Case>> = BTreeMap::new();
    for case in cases {
        by_line.entry(case.line).or_default().push(case);
    }
    let mut differences = Vec::new();
    for line in LINES.iter().filter(|l| l.id.starts_with(letter)) {
        row(line.id, line.what, "");
        for case in by_line.remove(line.id).unwrap_or_default() {
            let said = match case.outcome(&stand) {
                Outcome::Same => "same".to_owned(),
                Outcome::Deviates(deviation) => format!("deviation: {}, as {}", deviation.id, deviation.why),
                Outcome::Differs(difference) => {
                    differences.push(format!("{} {}: {difference}", case.line, case.name));
                    "DIFFERS".to_owned()
                }
            };
            row("", &format!("- {}", case.name), &said);
        }
        for evidence in line.evidence {
            match evidence {
                Evidence::Test(name) => row("", &format!("- {name}"), "tested"),
                Evidence::Not(what, why) => row("", &format!("- {what}"), &format!("not applicable: {why}")),
            }
        }
    }
    assert!(by_line.is_empty(), "cases of no line: {:?}", by_line.keys());
    assert!(differences.is_empty(), "{} cases differ:\n{}", differences.len(), differences.join("\n\n"));
    stand.still_good();
}

#[test]
fn s_startup() {
    section('S', startup::cases());
}

#[test]
fn a_authentication() {
    section('A', authentication::cases());
}

#[test]
fn p_session_state() {
    section('P', state::cases());
}

#[test]
fn q_queries_and_pipelines() {
    section('Q', queries::cases());
}

#[test]
fn k_copy() {
    section('K', copy::cases());
}

#[test]
fn x_cancel() {
    section('X', cancel::cases());
}

#[test]
fn l_lifecycle() {
    section('L', lifecycle::cases());
}

/// The lines of the checklist, by letter and number.
const NUMBERS: &[(char, u32)] = &[('S', 13), ('A', 9), ('P', 6), ('Q', 12), ('K', 7), ('X', 10), ('L', 10)];

#[test]
fn every_line_has_a_case_or_a_test_or_a_reason() {
    let all = [startup::cases, authentication::cases, state::cases, queries::cases];
    let more = [copy::cases, cancel::cases, lifecycle::cases];
    let cases: Vec<_> = all.into_iter().chain(more).flat_map(|cases| cases()).map(|c| c.line).collect();
    let wanted = NUMBERS.iter().flat_map(|(letter, last)| (1..=*last).map(move |n| format!("{letter}{n}")));
    let known: Vec<_> = LINES.iter().map(|l| l.id.to_owned()).collect();
    assert_eq!(known, wanted.collect::<Vec<_>>());
    for line in LINES {
        assert!(cases.contains(&line.id) || !line.evidence.is_empty(), "nothing shows {}", line.id);
        for evidence in line.evidence {
            if let Evidence::Test(name) = evidence {
                assert!(lines::exists(name), "{}: there is no test {name}", line.id);
            }
        }
    }
}

/// The document between its marks, which hold the list of deviations.
#[test]
fn the_document_has_the_deviations() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    let text = std::fs::read_to_string(&path).expect("docs/protocol.md is there");
    let (begin, end) = ("<!-- deviations -->\n", "<!-- end of deviations -->");
    let (head, rest) = text.split_once(begin).expect("the mark");
    let (table, tail) = rest.split_once(end).expect("the mark of the end");
    if std::env::var_os("SWITCHYARD_TESTS_BLESS").is_some() {
        std::fs::write(path, [head, begin, &deviations::table(), end, tail].concat()).expect("it is ours");
        return;
    }
    assert_eq!(table, deviations::table(), "SWITCHYARD_TESTS_BLESS=1 writes it anew");
}
