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
fn piece(dice: &mut Dice, manners: Manners) -> (String, Vec<u8>) {
    let (statement, portal, sql) = (*dice.pick(manners.names()), *dice.pick(&NAMES), *dice.pick(&SQL));
    let sql = if manners == Manners::Tidy { sql.trim_start_matches("DEALLOCATE ALL") } else { sql };
    let number = dice.roll(100).to_string();
    let params: Vec<_> = (0..dice.roll(2)).map(|_| Some(number.as_bytes())).collect();
    match dice.roll(16) {
        0..3 => (format!("Query {sql:?}"), m::query(sql)),
        3..6 => {
            let sql = match manners {
                Manners::Tidy => {
                    let prepared = if sql.starts_with("SELEC") { sql } else { "SELECT 2" };
                    format!("{prepared} /* {} */", dice.roll(1_000_000_000))
                }
                Manners::Wild => sql.to_owned(),
            };
            (format!("Parse {statement:?} {sql:?}"), m::parse(statement, &sql))
        }
        6..8 => {
            let word = format!("Bind {portal:?} {statement:?} {}", params.len());
            (word, m::bind(portal, statement, &params))
        }
        8 if manners == Manners::Tidy || statement.is_empty() => {
            (format!("Describe S {statement:?}"), m::describe(b'S', statement))
        }
        8 | 9 => (format!("Describe P {portal:?}"), m::describe(b'P', portal)),
        10..12 => {
            let rows = dice.roll(4) as u32;
            (format!("Execute {portal:?} {rows}"), m::execute(portal, rows))
        }
        12 => {
            let kind = if manners == Manners::Tidy { b'P' } else { *dice.pick(b"SP") };
            (format!("Close {} {portal:?}", kind as char), m::close(kind, portal))
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

/// How scripts are made.
#[derive(Clone, Copy, PartialEq)]
enum Manners {
    /// As drivers have it: a batch is answered before the next is sent, a Sync comes before a
    /// Query, no name is closed and prepared again with the same text, and only queries
    /// are prepared by name (another connection cannot be told of them once a transaction has failed;
    /// PostgreSQL still describes those that return no rows). There is no DEALLOCATE.
    Tidy,
    /// Anything goes, but Describe of a statement within a batch: in a transaction that has failed PostgreSQL still
    /// describes what returns no rows, and another connection cannot be told of it any more.
    Wild,
}

impl Manners {
    /// Names of statements. The one without a name is used where it is made, in one go.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Tidy => &NAMES[1..],
            Self::Wild => &NAMES,
        }
    }
}

/// Whether an Execute of the unnamed portal may end PostgreSQL itself, which is no measure then (see `portals.rs`).
#[derive(Default)]
struct Left {
    /// A Query may have failed in its portal.
    failed: bool,
    /// A Bind has replaced that, or all is skipped.
    bound: bool,
}

impl Left {
    /// The piece, or another one in its place.
    fn spared(&mut self, (word, bytes): (String, Vec<u8>)) -> (String, Vec<u8>) {
        if word.starts_with("Execute \"\"") && self.failed && !self.bound {
            return ("Execute \"b\" 0".to_owned(), m::execute("b", 0));
        }
        let fails = word.starts_with("COPY") || word == "Query \"ROLLBACK TO s\"";
        self.failed |= fails;
        self.bound = word.starts_with("Bind \"\"")
            || self.bound
                && !["Query", "COPY", "all of", "Sync"].iter().any(|begins| word.starts_with(begins));
        (word, bytes)
    }
}

/// Some pieces with Syncs between.
fn pieces(dice: &mut Dice, manners: Manners) -> Pieces {
    let mut pieces = Vec::new();
    let mut left = Left::default();
    for _ in 0..=dice.roll(25) {
        let piece = left.spared(piece(dice, manners));
        if manners == Manners::Tidy && (piece.0.starts_with("Query") || piece.0.starts_with("COPY")) {
            pieces.push(("Sync".to_owned(), m::sync()));
        }
        pieces.push(piece);
        if dice.roll(3) == 0 {
            pieces.push(left.spared(("Sync".to_owned(), m::sync())));
        }
    }
    pieces
}

/// The pieces sent in parts, as `dice` falls or all at once, and what comes back read to its end.
fn steps(pieces: &Pieces, manners: Manners, mut dice: Option<&mut Dice>) -> Vec<Step> {
    let mut end = vec![("Sync".to_owned(), m::sync()), ("Query".to_owned(), m::query("ROLLBACK"))];
    // What each name means by now is part of the answer, so that a script that leaves the two
    // different is found out itself, and not the next one.
    let describe = |name: &&str| ("Sync".to_owned(), [m::describe(b'S', name), m::sync()].concat());
    end.extend(manners.names().iter().map(describe));
    let (mut steps, mut bytes) = (Vec::new(), Vec::new());
    for (word, piece) in pieces.iter().chain(&end) {
        bytes.extend(piece);
        let brings_ready = ["Sync", "Query", "COPY", "all of"].iter().any(|w| word.starts_with(w));
        if manners == Manners::Tidy && brings_ready {
            send(&mut steps, std::mem::take(&mut bytes), dice.as_deref_mut());
            steps.push(Step::Ready(word.split("; ").count()));
        }
    }
    bytes.extend(m::query("SELECT 'the end'"));
    send(&mut steps, bytes, dice);
    steps.push(Step::Row("the end".to_owned()));
    steps
}

/// Sends these bytes, in parts as `dice` falls.
fn send(steps: &mut Vec<Step>, mut bytes: Vec<u8>, mut dice: Option<&mut Dice>) {
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
}

/// The smallest part of a script that still makes a difference, if it does so by itself.
fn shrunk(s: &Running, manners: Manners, mut pieces: Pieces) -> String {
    // All at once and in random parts, as it may depend on that.
    let differs = |pieces: &Pieces| {
        (0..6).find_map(|way| {
            let (mut direct, mut routed) = (s.direct("acme"), s.login("acme"));
            // It has failed already: this only looks for how little is needed.
            routed.patience(Duration::from_secs(2));
            let mut dice = Dice::new(way);
            let parted = steps(pieces, manners, (way > 0).then_some(&mut dice));
            differential::difference(&mut direct, &mut routed, &parted)
        })
    };
    let Some(mut difference) = differs(&pieces) else {
        return "(not by itself)".to_owned();
    };
    let until = std::time::Instant::now() + Duration::from_secs(30);
    for at in (0..pieces.len()).rev().take_while(|_| std::time::Instant::now() < until) {
        let removed = pieces.remove(at);
        match differs(&pieces) {
            Some(still) => difference = still,
            None => pieces.insert(at, removed),
        }
    }
    let words: Vec<_> = pieces.iter().map(|(word, _)| word.as_str()).collect();
    format!("{}\n{difference}", words.join("\n  "))
}

fn run(s: &Running, seed: u64, manners: Manners, scripts: usize) -> Vec<String> {
    let mut dice = Dice::new(seed);
    let mut differences = Vec::new();
    for n in 0..scripts {
        let tenant = *dice.pick(&["acme", "globex"]);
        let (mut direct, mut routed) = (s.direct(tenant), s.login(tenant));
        routed.patience(Duration::from_secs(15));
        // Several in one session, as what one leaves behind is the next one's business.
        let mut before = Pieces::new();
        for _ in 0..=dice.roll(3) {
            let pieces = pieces(&mut dice, manners);
            let steps = steps(&pieces, manners, Some(&mut dice));
            let Some(difference) = differential::difference(&mut direct, &mut routed, &steps) else {
                before.extend(pieces);
                before.push(("Sync; ROLLBACK".to_owned(), [m::sync(), m::query("ROLLBACK")].concat()));
                continue;
            };
            let words: Vec<_> = pieces.iter().map(|(word, _)| word.clone()).collect();
            let earlier: Vec<_> = before.iter().map(|(word, _): &(String, _)| word.clone()).collect();
            let whole = format!(
                "seed {seed} script {n}, after\n  {}\nnow:\n  {}\n{difference}",
                earlier.join("\n  "),
                words.join("\n  ")
            );
            drop((direct, routed));
            differences
                .push(format!("{whole}\n  SHRUNK TO\n  {}", shrunk(s, manners, [before, pieces].concat())));
            break;
        }
        if !differences.is_empty() {
            break;
        }
    }
    differences
}

/// Three that run at a time: others than usual from a number that is given, to look for more.
fn seeds() -> impl Iterator<Item = u64> {
    let first = std::env::var("SWITCHYARD_TESTS_SEED").map_or(1, |text| text.parse().expect("a number"));
    first..first + 3
}

fn scripts(manners: Manners) {
    let setup = Setup::new().shards(1).tenants(["acme", "globex"]);
    let s = setup.pool("size = 3\nqueue_timeout = \"60s\"").start();
    let differences: Vec<_> = std::thread::scope(|scope| {
        let s = &s;
        let running: Vec<_> = seeds().map(|seed| scope.spawn(move || run(s, seed, manners, 150))).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

#[test]
fn heavy_random_scripts_are_answered_as_by_postgresql() {
    scripts(Manners::Tidy);
}

#[test]
fn heavy_wild_scripts_are_answered_as_by_postgresql() {
    scripts(Manners::Wild);
}
