//! K: COPY.

use switchyard_tests::raw::differential::{Step, round};
use switchyard_tests::raw::messages as m;

use super::Case;
use super::side::{queries, session};

/// `COPY ... FROM STDIN`, what follows CopyInResponse, and whether the session is good after it.
fn copy_in(rest: Vec<u8>) -> Vec<Step> {
    let mut script = queries(&["DELETE FROM scratch.items"]);
    script.extend([
        Step::Send(m::query("COPY scratch.items FROM STDIN")),
        Step::Tag(b'G'),
        Step::Send(rest),
        Step::Ready(1),
    ]);
    script.extend(queries(&["SELECT count(*) FROM scratch.items", "DELETE FROM scratch.items"]));
    script
}

pub(super) fn cases() -> Vec<Case> {
    let rows = || m::copy_data(b"1\tone\n2\ttwo\n");
    let late = [m::copy_data(b"x\ty\n"), m::copy_data(b"1\ty\n").repeat(500), m::copy_done()].concat();
    let open = |sql: &str| [m::parse("", sql), m::bind("", "", &[]), m::execute("", 0)].concat();
    let from = "COPY scratch.items FROM STDIN";
    vec![
        Case::new("K1", "to the end", session(copy_in([rows(), m::copy_done()].concat()))),
        Case::new("K1", "CopyFail", session(copy_in([rows(), m::copy_fail("enough")].concat()))),
        Case::new("K1", "an error, and all that comes late", session(copy_in(late))),
        Case::new(
            "K1",
            "a row that ends in the next message",
            session(copy_in([m::copy_data(b"1\to"), m::copy_data(b"ne\n"), m::copy_done()].concat())),
        ),
        Case::new("K1", "a query in the middle", session(copy_in([rows(), m::query("SELECT 1")].concat()))),
        Case::new(
            "K1",
            "the old mark of the end",
            session(copy_in([m::copy_data(b"1\tx\n\\.\n"), m::copy_done()].concat())),
        ),
        Case::new(
            "K1",
            "CopyDone twice",
            session(copy_in([rows(), m::copy_done(), m::copy_done()].concat())),
        ),
        Case::new("K1", "messages of COPY without COPY", {
            session(round([rows(), m::copy_done(), m::copy_fail("x"), m::query("SELECT 1")].concat()))
        }),
        Case::new(
            "K2",
            "rows",
            session(queries(&["COPY (SELECT generate_series(1, 2000)) TO STDOUT", "SELECT 1"])),
        ),
        Case::new("K2", "as CSV and binary", {
            session(queries(&[
                "COPY (SELECT 1, 'a,b', NULL) TO STDOUT (FORMAT csv, HEADER)",
                "COPY (SELECT 1, NULL::int) TO STDOUT (FORMAT binary)",
            ]))
        }),
        Case::new("K2", "an error in the middle", {
            session(queries(&["COPY (SELECT 1/(5 - n) FROM generate_series(1, 9) n) TO STDOUT", "SELECT 1"]))
        }),
        Case::new("K4", "extended", {
            session(vec![
                Step::Send([open(from), m::flush()].concat()),
                Step::Tag(b'G'),
                Step::Send([m::copy_fail("no"), m::sync()].concat()),
                Step::Ready(1),
            ])
        }),
        Case::new("K4", "extended, with Sync behind Execute", {
            session(vec![
                Step::Send([open(from), m::sync()].concat()),
                Step::Tag(b'G'),
                Step::Send([rows(), m::copy_done(), m::sync()].concat()),
                Step::Ready(1),
                Step::Send(m::query("DELETE FROM scratch.items")),
                Step::Ready(1),
            ])
        }),
        Case::new("K4", "in a transaction, rolled back", {
            session(
                [
                    queries(&["BEGIN"]),
                    vec![
                        Step::Send(m::query(from)),
                        Step::Tag(b'G'),
                        Step::Send([rows(), m::copy_done()].concat()),
                        Step::Ready(1),
                    ],
                    queries(&[
                        "SELECT count(*) FROM scratch.items",
                        "ROLLBACK",
                        "SELECT count(*) FROM scratch.items",
                    ]),
                ]
                .concat(),
            )
        }),
        Case::new("K4", "in a query of several statements", {
            session(vec![
                Step::Send(m::query(&format!(
                    "SELECT 1; {from}; SELECT 2; COPY (SELECT 3) TO STDOUT; DELETE FROM scratch.items"
                ))),
                Step::Tag(b'G'),
                Step::Send([rows(), m::copy_done()].concat()),
                Step::Ready(1),
            ])
        }),
    ]
}
