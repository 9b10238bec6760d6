//! The unnamed portal that a Query has left which failed. PostgreSQL 15.20 may end with a segmentation fault where that
//! is run, and every session of the shard with it: it is not to come to that, however the messages are put. All else
//! that is said of the unnamed portal is what PostgreSQL says.

use switchyard_tests::raw::differential::{Step, same};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Setup};

fn sync() -> Vec<u8> {
    m::sync()
}

/// Runs the unnamed portal, whatever it is.
fn run() -> Vec<u8> {
    [m::execute("", 3), sync()].concat()
}

/// Fails in its portal.
fn copy() -> Vec<u8> {
    [m::query("COPY scratch.items FROM STDIN"), m::copy_data(b"1\tx\n"), m::copy_fail("no")].concat()
}

/// What is said to all that was sent, and up to `SELECT 'the end'`.
fn said(session: &mut Raw) -> Vec<m::Message> {
    session.send(&[m::query("ROLLBACK"), m::query("SELECT 'the end'")].concat());
    let mut all = Vec::new();
    loop {
        let group = session.until_ready();
        let last = group.iter().any(|m| m.tag == b'D' && m.values() == [Some("the end".to_owned())]);
        all.extend(group);
        if last {
            return all;
        }
    }
}

/// How often the server is ready for these messages.
fn readies(mut bytes: &[u8]) -> usize {
    let mut readies = 0;
    while let [tag, a, b, c, d, ..] = *bytes {
        readies += usize::from(matches!(tag, b'Q' | b'S'));
        bytes = &bytes[1 + u32::from_be_bytes([a, b, c, d]) as usize..];
    }
    readies
}

#[test]
fn the_portal_of_a_query_that_failed_is_not_run() {
    let s = Setup::new().shards(1).pool("size = 1").tenants(["acme", "globex"]).start();
    let begun = [m::query("BEGIN"), copy()].concat();
    // Takes the place in memory of what the portal refers to.
    let parse = [m::parse("a", "SELECT name FROM clients ORDER BY id"), sync()].concat();
    let refused = [m::parse("b", "SELECT 1"), m::bind("", "b", &[]), sync()].concat();
    let named = [m::close(b'S', "zzz"), run()].concat();
    let returns = [m::query("BEGIN; SAVEPOINT s"), copy(), m::query("ROLLBACK TO nowhere")].concat();
    // All sessions of a shard that ends with a signal end with it.
    let mut witness = s.direct("acme");
    for (what, batches) in [
        ("one after the other", vec![begun.clone(), parse.clone(), run()]),
        ("all at once", vec![[begun.clone(), parse.clone(), run()].concat()]),
        ("behind a Bind that failed", vec![[begun.clone(), refused, parse.clone(), run()].concat()]),
        ("behind a Close", vec![begun.clone(), [parse.clone(), named].concat()]),
        (
            "behind a Query that was refused",
            vec![[begun, m::query("SELECT 1"), parse.clone(), run()].concat()],
        ),
        ("in a subtransaction", vec![[returns, parse, run()].concat()]),
    ] {
        let mut session = s.login("acme");
        for batch in &batches {
            session.send(batch);
        }
        let said = said(&mut session);
        assert_eq!(said.last().map(m::Message::status), Some('I'), "{what}");
        let errors: Vec<_> = said.iter().filter(|m| m.tag == b'E').map(m::Message::sqlstate).collect();
        assert_eq!(errors.last().map(String::as_str), Some("25P02"), "{what}: {errors:?}");
    }
    assert_eq!(witness.value("SELECT 1"), "1");
}

#[test]
fn what_is_said_of_the_unnamed_portal_is_what_postgresql_says() {
    let s = Setup::new().shards(1).pool("size = 1").tenants(["acme", "globex"]).start();
    let begin = || m::query("BEGIN");
    let bound = |sql: &str| [m::parse("", sql), m::bind("", "", &[]), sync()].concat();
    let bind = |name: &str| [m::bind("", name, &[]), sync()].concat();
    let unplanned = || m::query("SELECT 1/0");
    let unread = || m::query("SELEC");
    let rollback = [m::parse("r", "ROLLBACK"), m::parse("t", "ROLLBACK TO s"), sync()].concat();
    let to = [m::bind("p", "t", &[]), m::execute("p", 0)].concat();
    let scripts: [(&str, Vec<Vec<u8>>); 13] = [
        ("no portal", vec![begin(), unplanned(), run()]),
        ("no portal, no plan", vec![begin(), unread(), run()]),
        ("one that has run", vec![begin(), bound("SELECT 1"), run(), unplanned(), run()]),
        ("one that has not run", vec![begin(), bound("SELECT generate_series(1, 9)"), unplanned(), run()]),
        ("one of no rows", vec![begin(), bound("SET LOCAL my.note = 'x'"), unread(), run()]),
        ("closed", vec![begin(), copy(), [m::close(b'P', ""), sync()].concat(), run()]),
        ("closed in the group", vec![begin(), copy(), [m::close(b'P', ""), run()].concat()]),
        ("a ROLLBACK", vec![rollback.clone(), begin(), copy(), bind("r"), run(), run()]),
        (
            "a ROLLBACK, then refused",
            vec![rollback.clone(), begin(), copy(), bind("r"), unplanned(), unread(), run()],
        ),
        (
            "rolled back to",
            vec![rollback.clone(), begin(), m::query("SAVEPOINT s"), copy(), [to, run()].concat(), run()],
        ),
        (
            "rolled back in the group",
            vec![rollback, begin(), copy(), [m::bind("p", "r", &[]), m::execute("p", 0), run()].concat()],
        ),
        ("of a Query that succeeded", vec![begin(), m::query("SELECT 1"), run(), m::query("COMMIT"), run()]),
        ("without a transaction", vec![copy(), run(), m::query("SELECT 1/0; SELECT 1"), run()]),
    ];
    for (name, parts) in scripts {
        for at_once in [false, true] {
            let end = m::query("SELECT 'the end'");
            let parts: Vec<_> = parts.iter().cloned().chain([m::query("ROLLBACK")]).collect();
            let mut script = Vec::new();
            for part in parts {
                let readies = if at_once { 0 } else { readies(&part) };
                script.extend([Step::Send(part), Step::Ready(readies)]);
            }
            script.push(Step::Send(end));
            script.push(Step::Row("the end".to_owned()));
            same(name, &mut s.direct("acme"), &mut s.login("acme"), &script);
        }
    }
}
