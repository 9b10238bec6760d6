//! Random scripts, in random pieces, on connections that change hands: what comes back is what
//! PostgreSQL itself says to the same script.

use std::time::Duration;

use switchyard_tests::raw::differential::{self, Step};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Dice, Running, Setup};

const NAMES: [&str; 4] = ["", "a", "b", "c"];

/// Nothing that another run could see, as the same script runs twice.
const SQL: [&str; 22] = [
    "SELECT 1",
    "SELECT 1",
    "SELECT $1::int",
    "SELECT name FROM clients ORDER BY id",
    "SELECT name FROM clients WHERE id = 2",
    "SELECT generate_series(1, 7)",
    "SELEC",
    "SELECT 1/0",
    "",
    "BEGIN",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "SET my.note = 'one'",
    "SET LOCAL my.note = 'two'",
    "RESET my.note",
    "SELECT coalesce(current_setting('my.note', true), '')",
    "COPY (SELECT generate_series(1, 3)) TO STDOUT",
    "SELECT repeat('x', 70000)",
    "DEALLOCATE ALL",
];

/// One message, or a few that belong together.
fn piece(dice: &mut Dice) -> (String, Vec<u8>) {
    let (name, other, sql) = (*dice.pick(&NAMES), *dice.pick(&NAMES), *dice.pick(&SQL));
    let number = dice.roll(100).to_string();
    let params: Vec<_> = (0..dice.roll(2)).map(|_| Some(number.as_bytes())).collect();
    match dice.roll(16) {
        0..3 => (format!("Query {sql:?}"), m::query(sql)),
        3..6 => (format!("Parse {name:?} {sql:?}"), m::parse(name, sql)),
        6..8 => (format!("Bind {other:?} {name:?} {}", params.len()), m::bind(other, name, &params)),
        8 => (format!("Describe S {name:?}"), m::describe(b'S', name)),
        9 => (format!("Describe P {name:?}"), m::describe(b'P', name)),
        10..12 => {
            let rows = dice.roll(4) as u32;
            (format!("Execute {name:?} {rows}"), m::execute(name, rows))
        }
        12 => {
            let kind = *dice.pick(b"SP");
            (format!("Close {} {name:?}", kind as char), m::close(kind, name))
        }
        13 => ("Flush".to_owned(), m::flush()),
        14 => {
            let whole =
                [m::parse("", sql), m::bind("", "", &params), m::describe(b'P', ""), m::execute("", 0)];
            (format!("all of {sql:?} {}", params.len()), [whole.concat(), m::sync()].concat())
        }
        _ => {
            let copy =
                [m::query("COPY scratch.items FROM STDIN"), m::copy_data(b"1\tx\n"), m::copy_fail("no")];
            ("COPY in that fails".to_owned(), copy.concat())
        }
    }
}

/// What a script is made of: what each part is, for people, and its bytes.
type Pieces = Vec<(String, Vec<u8>)>;

/// Some pieces with Syncs between.
fn pieces(dice: &mut Dice) -> Pieces {
    let mut pieces = Vec::new();
    for _ in 0..=dice.roll(25) {
        pieces.push(piece(dice));
        if dice.roll(3) == 0 {
            pieces.push(("Sync".to_owned(), m::sync()));
        }
    }
    pieces
}

/// The pieces sent in parts, as `dice` falls or all at once, and what comes back read to its end.
fn steps(pieces: &Pieces, mut dice: Option<&mut Dice>) -> Vec<Step> {
    let mut bytes: Vec<u8> = pieces.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    bytes.extend([m::sync(), m::query("ROLLBACK"), m::query("SELECT 'the end'")].concat());
    let mut steps = Vec::new();
    while !bytes.is_empty() {
        let mut cut = bytes.len();
        if let Some(dice) = &mut dice
            && dice.roll(3) > 0
        {
            cut = dice.roll(bytes.len() + 1);
        }
        let rest = bytes.split_off(cut);
        steps.push(Step::Send(std::mem::replace(&mut bytes, rest)));
    }
    steps.push(Step::Row("the end".to_owned()));
    steps
}

/// The smallest part of a script that still makes a difference, if it does so by itself.
fn shrunk(s: &Running, mut pieces: Pieces) -> String {
    let differs = |pieces: &Pieces| {
        let (mut direct, mut routed) = (s.direct("acme"), s.login("acme"));
        // It has failed already: this only looks for how little is needed.
        routed.patience(Duration::from_secs(2));
        differential::difference(&mut direct, &mut routed, &steps(pieces, None))
    };
    let Some(mut difference) = differs(&pieces) else {
        return "(not by itself)".to_owned();
    };
    for at in (0..pieces.len()).rev() {
        let removed = pieces.remove(at);
        match differs(&pieces) {
            Some(still) => difference = still,
            None => pieces.insert(at, removed),
        }
    }
    let words: Vec<_> = pieces.iter().map(|(word, _)| word.as_str()).collect();
    format!("{}\n{difference}", words.join("\n  "))
}

fn run(s: &Running, seed: u64, scripts: usize) -> Vec<String> {
    let mut dice = Dice::new(seed);
    let mut differences = Vec::new();
    for n in 0..scripts {
        let tenant = *dice.pick(&["acme", "globex"]);
        let (mut direct, mut routed) = (s.direct(tenant), s.login(tenant));
        routed.patience(Duration::from_secs(15));
        // Several in one session, as what one leaves behind is the next one's business.
        for _ in 0..=dice.roll(3) {
            let pieces = pieces(&mut dice);
            let steps = steps(&pieces, Some(&mut dice));
            let Some(difference) = differential::difference(&mut direct, &mut routed, &steps) else {
                continue;
            };
            let words: Vec<_> = pieces.iter().map(|(word, _)| word.clone()).collect();
            let whole = format!("seed {seed} script {n}:\n  {}\n{difference}", words.join("\n  "));
            drop((direct, routed));
            differences.push(format!("{whole}\n  SHRUNK TO\n  {}", shrunk(s, pieces)));
            break;
        }
        if !differences.is_empty() {
            break;
        }
    }
    differences
}

#[test]
fn heavy_random_scripts_are_answered_as_by_postgresql() {
    let s =
        Setup::new().shards(1).tenants(["acme", "globex"]).pool("size = 2\nqueue_timeout = \"60s\"").start();
    let seeds = [1, 2, 3];
    let differences: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = seeds
            .map(|seed| {
                scope.spawn({
                    let s = &s;
                    move || run(s, seed, 150)
                })
            })
            .into_iter()
            .collect();
        running.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}
