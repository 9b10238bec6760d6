//! A prepared statement has one name, whether `PREPARE` or a Parse has given it.

use std::sync::atomic::{AtomicBool, Ordering};

use switchyard_tests::raw::differential::{Step, round};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Setup, wait};

fn parse(name: &str, sql: &str) -> Vec<u8> {
    [m::parse(name, sql), m::sync()].concat()
}

fn run(name: &str) -> Vec<u8> {
    [m::bind("", name, &[]), m::execute("", 0), m::sync()].concat()
}

fn close(name: &str) -> Vec<u8> {
    [m::close(b'S', name), m::sync()].concat()
}

fn describe(name: &str) -> Vec<u8> {
    [m::describe(b'S', name), m::sync()].concat()
}

/// Each part, and what is said to it.
fn script(parts: &[&[u8]]) -> Vec<Step> {
    parts.iter().flat_map(|part| round(part.to_vec())).collect()
}

#[test]
fn names_are_the_same_to_sql_and_to_the_protocol() {
    let s = Setup::new().shards(1).pool("size = 1").tenants(["acme", "globex"]).start();
    let q = |sql: &str| m::query(sql);
    let failing = |behind: Vec<u8>| {
        [m::parse("", "SELECT 1/0"), m::bind("", "", &[]), m::execute("", 0), behind].concat()
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = wait::StopAtEnd(&stop);
        // The one connection is another tenant's, and cleaned, between any two transactions.
        scope.spawn(|| {
            let mut globex = s.login("globex");
            while !stop.load(Ordering::Relaxed) {
                globex.rows("SELECT 1");
            }
        });
        s.same_each(
            "acme",
            [
                (
                    "the words in a constant",
                    script(&[
                        &parse("a", "SELECT 1"),
                        &q("PREPARE b AS SELECT 2"),
                        &q("DEALLOCATE b; SELECT 'deallocate a' /* ; deallocate a */"),
                        &q("EXECUTE b"),
                        &m::extended("SELECT 'deallocate a'", &[]),
                        &run("a"),
                        &close("a"),
                    ]),
                ),
                (
                    "EXECUTE of a Parse",
                    script(&[
                        &parse("a", "SELECT $1::int + 1"),
                        &q("EXECUTE a (4)"),
                        &m::extended("EXECUTE a (5)", &[]),
                        &q("BEGIN"),
                        &q("EXECUTE a (6)"),
                        &q("SELECT 1/0"),
                        &q("EXECUTE a (7)"),
                        &q("ROLLBACK"),
                        &q("EXECUTE a (8)"),
                        &q("EXECUTE a"),
                        &q("EXECUTE a (nope)"),
                    ]),
                ),
                (
                    "PREPARE over a Parse, and the other way round",
                    script(&[
                        &parse("a", "SELECT 1"),
                        &q("PREPARE a AS SELECT 2"),
                        &run("a"),
                        &q("DEALLOCATE a"),
                        &run("a"),
                        &q("PREPARE a AS SELECT 2"),
                        &parse("a", "SELECT 3"),
                        &run("a"),
                        &q("EXECUTE a"),
                    ]),
                ),
                (
                    "Describe and Close of a PREPARE",
                    script(&[
                        &q("PREPARE a AS SELECT 2 AS two"),
                        &describe("a"),
                        &failing(close("a")),
                        &q("EXECUTE a"),
                        &close("a"),
                        &describe("a"),
                        &q("EXECUTE a"),
                        &q("PREPARE a AS SELECT 3"),
                        &[m::close(b'S', "a"), m::parse("a", "SELECT 4"), run("a")].concat(),
                        &q("EXECUTE a"),
                    ]),
                ),
                (
                    "Close and DEALLOCATE of a Parse that EXECUTE has run",
                    script(&[
                        &parse("a", "SELECT 1"),
                        &q("EXECUTE a"),
                        &failing(close("a")),
                        &q("EXECUTE a"),
                        &run("a"),
                        &close("a"),
                        &q("EXECUTE a"),
                        &parse("a", "SELECT 2"),
                        &q("BEGIN"),
                        &q("EXECUTE a"),
                        &q("DEALLOCATE a"),
                        &q("EXECUTE a"),
                        &q("ROLLBACK"),
                        &run("a"),
                        &parse("a", "SELECT 3"),
                        &run("a"),
                        &q("DEALLOCATE ALL"),
                        &q("EXECUTE a"),
                    ]),
                ),
                (
                    "among other statements",
                    script(&[
                        &parse("a", "SELECT 1"),
                        &q("PREPARE b AS SELECT 2"),
                        &q("SELECT 0; EXECUTE a; EXECUTE b"),
                        &q("BEGIN; EXECUTE b; COMMIT"),
                        &q("EXPLAIN (COSTS OFF) EXECUTE a"),
                        &q("EXPLAIN (COSTS OFF) EXECUTE b"),
                        &q("SELECT 0; DEALLOCATE a"),
                        &run("a"),
                        &q("SELECT 1/0; DEALLOCATE b"),
                        &q("EXECUTE b"),
                        &q("DEALLOCATE b; SELECT 1/0"),
                        &q("EXECUTE b"),
                    ]),
                ),
            ],
        );
    });
}
