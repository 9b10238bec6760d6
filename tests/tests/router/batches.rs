//! Batches of the extended protocol that fail in the middle, over connections that change hands: what the server has
//! skipped has not happened, and what it has answered has.

use switchyard_tests::raw::differential::{Step, compare, play};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Running, Setup};

/// What has no name to refer to: an error wherever it stands.
fn bad() -> Vec<u8> {
    m::bind("", "missing", &[])
}

/// Prepares without a name.
fn prepare(sql: &str) -> Vec<u8> {
    m::parse("", sql)
}

/// Binds a statement and runs it.
fn run(name: &str) -> Vec<u8> {
    [m::bind("", name, &[]), m::execute("", 0)].concat()
}

/// Prepares without a name, and runs it.
fn all(sql: &str) -> Vec<u8> {
    [prepare(sql), run("")].concat()
}

fn sync() -> Vec<u8> {
    m::sync()
}

/// The other tenant's sessions: each round they take away the connection that ours had last.
struct Others {
    holders: [Raw; 2],
    holds: usize,
}

impl Others {
    /// For a pool of two.
    fn new(s: &Running) -> Self {
        let mut holders = [s.login("globex"), s.login("globex")];
        holders[0].rows("BEGIN");
        Self { holders, holds: 0 }
    }

    fn swap(&mut self) {
        let other = 1 - self.holds;
        self.holders[other].rows("BEGIN");
        self.holders[self.holds].rows("COMMIT");
        self.holds = other;
    }
}

/// Runs rounds in a session of its own, directly and through the router, on another server connection each time
/// unless a transaction is open. What differs, if anything.
fn difference(s: &Running, others: &mut Others, rounds: &[Vec<Vec<u8>>]) -> Option<String> {
    let (mut direct, mut routed) = (s.direct("acme"), s.login("acme"));
    for (n, round) in rounds.iter().enumerate() {
        let bytes = round.concat();
        // What has a marker behind it is known to have been answered.
        let script =
            [Step::Send([bytes, m::query("SELECT 'marker'")].concat()), Step::Row("marker".to_owned())];
        let (expected, found) = (play(&mut direct, &script), play(&mut routed, &script));
        if let Some(difference) = compare(&expected, &found) {
            return Some(format!("round {n}: {difference}"));
        }
        if expected.last().is_some_and(|ready| ready == "Z I") {
            others.swap();
        }
    }
    None
}

#[track_caller]
fn same(scripts: &[(&str, &[Vec<Vec<u8>>])]) {
    let s = Setup::new().shards(1).tenants(["acme", "globex"]).pool("size = 2").start();
    let mut others = Others::new(&s);
    let differences: Vec<_> = scripts
        .iter()
        .filter_map(|(name, rounds)| Some(format!("{name}: {}", difference(&s, &mut others, rounds)?)))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

/// The same without Queries, with which the unnamed statement goes: each round has as many answers as it has Syncs.
#[track_caller]
fn same_unnamed(name: &str, rounds: &[Vec<u8>]) {
    let s = Setup::new().shards(1).tenants(["acme", "globex"]).pool("size = 2").start();
    let mut others = Others::new(&s);
    let (mut direct, mut routed) = (s.direct("acme"), s.login("acme"));
    for (n, bytes) in rounds.iter().enumerate() {
        let syncs = bytes.windows(5).filter(|w| *w == m::sync()).count();
        let script = [Step::Send(bytes.clone()), Step::Ready(syncs)];
        let (expected, found) = (play(&mut direct, &script), play(&mut routed, &script));
        if let Some(difference) = compare(&expected, &found) {
            panic!("{name}: round {n}: {difference}");
        }
        if expected.last().is_some_and(|ready| ready == "Z I") {
            others.swap();
        }
    }
}

/// Runs the unnamed statement on three connections, one after the other.
fn then_unnamed(mut rounds: Vec<Vec<Vec<u8>>>) -> Vec<Vec<u8>> {
    rounds.extend(std::iter::repeat_n(vec![run(""), sync()], 3));
    rounds.into_iter().map(|round| round.concat()).collect()
}

#[test]
fn the_unnamed_statement_is_the_one_that_the_server_has_taken() {
    let old = || vec![prepare("SELECT 'old'"), sync()];
    let scripts: Vec<(&str, Vec<Vec<Vec<u8>>>)> = vec![
        ("a newer one from another connection", vec![old(), vec![prepare("SELECT 'new'"), sync()]]),
        ("skipped after an error in Bind", vec![old(), vec![bad(), all("SELECT 'new'"), sync()]]),
        ("refused", vec![old(), vec![prepare("SELEC"), sync()]]),
        ("refused, and skipped then", vec![old(), vec![prepare("SELEC"), prepare("SELECT 'new'"), sync()]]),
        ("failed in Execute", vec![old(), vec![all("SELECT 1/0"), prepare("SELECT 'new'"), sync()]]),
        (
            "replaced twice before an error",
            vec![old(), vec![all("SELECT 1"), all("SELECT 2"), bad(), all("SELECT 3"), sync()]],
        ),
        ("closed", vec![old(), vec![m::close(b'S', ""), sync()]]),
        ("a Close that is skipped", vec![old(), vec![bad(), m::close(b'S', ""), sync()]]),
        ("a Query that is skipped", vec![old(), vec![bad(), m::query("SELECT 'q'"), sync()]]),
        (
            "closed, and skipped then",
            vec![old(), vec![m::close(b'S', ""), bad(), prepare("SELECT 3"), sync()]],
        ),
        (
            "refused while the next batch is on its way",
            vec![old(), vec![all("SELEC"), sync(), bad(), all("SELECT 1"), sync(), run(""), sync()]],
        ),
        (
            "a use that is skipped",
            vec![
                old(),
                vec![bad(), run(""), sync(), run(""), sync()],
                vec![bad(), m::describe(b'S', ""), sync(), m::describe(b'S', ""), sync()],
                vec![m::close(b'S', ""), sync()],
                vec![bad(), run(""), sync(), run(""), sync()],
            ],
        ),
        (
            "several batches at once",
            vec![
                old(),
                vec![bad(), all("SELECT 'no'"), sync(), run(""), sync(), all("SELECT 'yes'"), sync(), bad()],
                vec![m::close(b'S', ""), all("SELECT 'no'"), sync(), run(""), sync()],
            ],
        ),
        (
            "answered early",
            vec![
                old(),
                vec![all("SELECT 1"), m::flush(), all("SELECT 2"), m::flush(), bad(), m::flush()],
                vec![all("SELECT 3"), m::flush(), sync()],
            ],
        ),
        (
            "in a transaction that has failed",
            vec![
                old(),
                vec![all("BEGIN"), sync(), all("SELECT 1/0"), sync(), prepare("SELECT 'no'"), sync()],
                vec![all("ROLLBACK"), sync(), bad(), prepare("SELECT 'no'"), sync()],
            ],
        ),
        (
            "larger than is kept at once",
            vec![
                old(),
                vec![all(&format!("SELECT '{}'", "x".repeat(900_000))).repeat(5), bad(), prepare(""), sync()],
            ],
        ),
    ];
    for (name, rounds) in scripts {
        // Where a round ends without a Sync, the next one is sent with it.
        let mut whole: Vec<Vec<Vec<u8>>> = Vec::new();
        for round in rounds {
            match whole.last_mut().filter(|last| last.last() != Some(&sync())) {
                Some(last) => last.extend(round),
                None => whole.push(round),
            }
        }
        same_unnamed(name, &then_unnamed(whole));
    }
}

#[test]
fn named_statements_are_those_that_the_server_has_answered_for() {
    let describe = |names: &[&str]| -> Vec<Vec<u8>> {
        names.iter().flat_map(|name| [m::describe(b'S', name), sync(), run(name), sync()]).collect()
    };
    let have = || vec![m::parse("a", "SELECT 'a'"), sync()];
    same(&[
        (
            "a Parse that is skipped",
            &[have(), vec![bad(), m::parse("b", "SELECT 'b'"), sync()], describe(&["a", "b"])],
        ),
        ("a Close that is skipped", &[have(), vec![bad(), m::close(b'S', "a"), sync()], describe(&["a"])]),
        (
            "closed and prepared anew, both skipped",
            &[
                have(),
                vec![bad(), m::close(b'S', "a"), m::parse("a", "SELECT 'other'"), sync()],
                describe(&["a"]),
                describe(&["a"]),
            ],
        ),
        (
            "closed, then a batch that fails",
            &[
                have(),
                vec![m::close(b'S', "a"), bad(), m::parse("a", "SELECT 'other'"), sync()],
                describe(&["a"]),
            ],
        ),
        (
            "prepared, failed in Execute, closed",
            &[
                vec![m::parse("a", "SELECT 1/0"), run("a"), m::close(b'S', "a"), sync()],
                describe(&["a"]),
                vec![m::parse("a", "SELECT 'a'"), sync()],
                describe(&["a"]),
            ],
        ),
        (
            "a use that is skipped where it is not prepared",
            &[
                have(),
                vec![bad(), run("a"), sync(), run("a"), sync()],
                vec![bad(), m::describe(b'S', "a"), sync(), m::describe(b'S', "a"), sync()],
                describe(&["a"]),
            ],
        ),
        (
            "over several batches at once, with the same names",
            &[
                [
                    vec![bad(), m::parse("a", "SELECT 1"), sync(), m::parse("a", "SELECT 2"), sync()],
                    vec![
                        bad(),
                        m::close(b'S', "a"),
                        sync(),
                        m::parse("a", "SELECT 3"),
                        sync(),
                        run("a"),
                        sync(),
                    ],
                ]
                .concat(),
                describe(&["a"]),
            ],
        ),
        (
            "a text that the server has, in a transaction that fails on the way",
            &[
                have(),
                vec![
                    all("BEGIN"),
                    sync(),
                    all("SELECT 1/0"),
                    sync(),
                    m::parse("b", "SELECT 'a'"),
                    sync(),
                    m::query("ROLLBACK"),
                ],
                describe(&["a", "b"]),
            ],
        ),
    ]);
}

#[test]
fn settings_and_statements_of_sql_are_what_was_run() {
    // A name that was set once on a connection is known there, as PostgreSQL forgets none.
    let note = || vec![all("SELECT coalesce(current_setting('my.note', true), '')"), sync()];
    let set = || all("SET my.note = 'set'");
    let q = |sql: &str| vec![m::query(sql)];
    let execute = || [q("EXECUTE p"), q("EXECUTE p")].concat();
    same(&[
        ("a SET that is skipped", &[vec![bad(), set(), sync()], note(), note()]),
        ("a SET that is run", &[vec![set(), sync()], note(), note()]),
        ("a SET that is prepared only", &[vec![prepare("SET my.note = 'set'"), sync()], note(), note()]),
        (
            "a SET that is bound only",
            &[vec![prepare("SET my.note = 'set'"), m::bind("", "", &[]), sync()], note(), note()],
        ),
        ("a SET before an error", &[vec![set(), all("SELECT 1/0"), sync()], note(), note()]),
        (
            "a SET before a skipped one",
            &[vec![set(), bad(), all("SET my.note = 'no'"), sync()], note(), note()],
        ),
        (
            "a SET in a batch behind one that fails",
            &[vec![bad(), all("SET my.note = 'no'"), sync(), set(), sync()], note(), note()],
        ),
        (
            "a RESET that is skipped",
            &[vec![set(), sync()], vec![bad(), all("RESET my.note"), sync()], note(), note()],
        ),
        (
            "RESET ALL that is skipped",
            &[vec![set(), sync()], vec![bad(), all("RESET ALL"), sync()], note(), note()],
        ),
        (
            "DISCARD ALL that is skipped",
            &[
                vec![set(), m::parse("a", "SELECT 'a'"), sync()],
                vec![bad(), all("DISCARD ALL"), sync()],
                note(),
                vec![run("a"), sync()],
            ],
        ),
        (
            "DISCARD ALL that is prepared only",
            &[vec![set(), sync()], vec![prepare("DISCARD ALL"), sync()], note()],
        ),
        (
            "PREPARE that is skipped",
            &[vec![bad(), all("PREPARE p AS SELECT 'p'"), sync()], execute(), execute()],
        ),
        (
            "PREPARE before an error",
            &[vec![all("PREPARE p AS SELECT 'p'"), all("SELECT 1/0"), sync()], execute(), execute()],
        ),
        (
            "PREPARE that is only prepared",
            &[
                vec![prepare("PREPARE p AS SELECT 'p'"), sync()],
                execute(),
                q("PREPARE p AS SELECT 'q'"),
                execute(),
            ],
        ),
        (
            "DEALLOCATE that is skipped",
            &[q("PREPARE p AS SELECT 'p'"), vec![bad(), all("DEALLOCATE p"), sync()], execute(), execute()],
        ),
        (
            "DEALLOCATE before an error",
            &[q("PREPARE p AS SELECT 'p'"), vec![all("DEALLOCATE p"), bad(), sync()], execute(), execute()],
        ),
        (
            "DEALLOCATE ALL that is skipped",
            &[
                vec![m::parse("a", "SELECT 'a'"), sync()],
                vec![bad(), all("DEALLOCATE ALL"), sync()],
                vec![run("a"), sync()],
                vec![run("a"), sync()],
            ],
        ),
        (
            "DEALLOCATE of several, the last skipped",
            &[
                vec![
                    m::parse("a", "SELECT 'a'"),
                    m::parse("b", "SELECT 'b'"),
                    m::parse("c", "SELECT 'c'"),
                    sync(),
                ],
                vec![all("DEALLOCATE a"), all("DEALLOCATE b"), bad(), all("DEALLOCATE c"), sync()],
                vec![run("a"), sync(), run("b"), sync(), run("c"), sync()],
            ],
        ),
        (
            "EXECUTE that is skipped where it is not prepared",
            &[
                q("PREPARE p AS SELECT 'p'"),
                vec![bad(), all("EXECUTE p"), sync(), all("EXECUTE p"), sync()],
                execute(),
                execute(),
            ],
        ),
        (
            "DEALLOCATE ALL between others",
            &[
                vec![m::parse("a", "SELECT 'a'"), sync()],
                vec![m::parse("b", "SELECT 'b'"), all("DEALLOCATE ALL"), m::parse("c", "SELECT 'c'"), sync()],
                vec![run("a"), sync(), run("b"), sync(), run("c"), sync()],
                vec![run("c"), sync(), m::parse("a", "SELECT 'a'"), sync(), run("a"), sync()],
            ],
        ),
    ]);
}

#[test]
fn what_a_lost_connection_has_not_answered_has_not_happened() {
    let s = Setup::new().shards(1).tenants(["acme", "globex"]).pool("size = 1").start();
    let mut acme = s.login("acme");
    acme.round(&[m::parse("kept", "SELECT 'kept'"), sync()].concat());
    let batch = [
        all("SELECT pg_terminate_backend(pg_backend_pid())"),
        m::parse("a", "SELECT 'a'"),
        m::close(b'S', "kept"),
        sync(),
    ];
    let answer = acme.round(&batch.concat());
    assert!(answer.iter().any(|m| m.tag == b'E'), "{answer:?}");
    let again = acme.round(&[m::parse("a", "SELECT 'again'"), run("a"), run("kept"), sync()].concat());
    let values: Vec<_> = again.iter().filter(|m| m.tag == b'D').flat_map(|m| m.values()).collect();
    assert_eq!(values, [Some("again".to_owned()), Some("kept".to_owned())], "{again:?}");
}

#[test]
fn heavy_unnamed_statements_that_are_replaced_unanswered_take_bounded_memory() {
    let s = Setup::new().shards(1).tenants(["acme", "globex"]).pool("size = 1").start();
    let mut acme = s.login("acme");
    let large = prepare(&format!("SELECT '{}'", "x".repeat(1 << 20)));
    acme.round(&[large.clone(), sync()].concat());
    let before = s.router.resident_bytes();
    // No Sync: PostgreSQL keeps what it answers to itself for as long as it fits its buffer.
    let count = 200;
    for _ in 0..count {
        acme.send(&large);
    }
    let grown = s.router.resident_bytes().saturating_sub(before);
    acme.send(&[bad(), sync()].concat());
    let answers = acme.until_ready();
    assert_eq!(answers.iter().filter(|m| m.tag == b'1').count(), count);
    assert!(grown < 50 << 20, "grown by {grown} bytes");
}
