//! Messages that are a byte too short or too long, of a type that there is not, or out of place. The
//! router answers as PostgreSQL does, or ends the session with 08P01; and the server connection
//! serves nobody else in a state that nobody knows.

use switchyard_tests::raw::differential::{compare, normal};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Running, Setup};

fn start() -> Running {
    Setup::new().shards(1).pool("size = 1").tenants(["acme", "globex"]).start()
}

/// All that comes until the connection ends.
fn to_the_end(raw: &mut Raw) -> Vec<String> {
    std::iter::from_fn(|| raw.try_read().ok()).filter_map(|message| normal(&message)).collect()
}

/// Sends bytes, a Sync, a Query and goodbye; compares with PostgreSQL.
fn difference(s: &Running, bytes: &[u8]) -> Option<String> {
    let bytes = [bytes, &m::sync(), &m::query("SELECT 'after'"), &m::frame(b'X', &[])].concat();
    let said = [s.direct("acme"), s.login("acme")].map(|mut raw| {
        raw.send(&bytes);
        to_the_end(&mut raw)
    });
    let [expected, found] = said;
    let difference = compare(&expected, &found)?;
    // The deviation "malformed messages".
    let violation = found.iter().any(|line| line.starts_with("E FATAL 08P01"));
    if violation { None } else { Some(difference) }
}

#[track_caller]
fn check(s: &Running, cases: Vec<(String, Vec<u8>)>) {
    let mut differences = Vec::new();
    for (what, bytes) in cases {
        if let Some(difference) = difference(s, &bytes) {
            differences.push(format!("{what}: {difference}"));
        }
        // Whoever comes next has a connection that is in step.
        let mut globex = s.login("globex");
        assert_eq!(
            globex.column("SELECT name FROM clients ORDER BY id"),
            s.canaries("globex"),
            "after {what}"
        );
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}

/// One good message of each type.
fn good() -> Vec<(&'static str, Vec<u8>)> {
    let call = [&1397_u32.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 1, b'1', 0, 0]].concat();
    vec![
        ("Query", m::query("SELECT 1")),
        ("Parse", m::parse("", "SELECT 1")),
        ("Parse with a name", m::parse("a", "SELECT 1")),
        ("Bind", m::bind("", "", &[])),
        ("Bind with a value", [m::parse("", "SELECT $1"), m::bind("", "", &[Some(b"v")])].concat()),
        ("Describe", [m::parse("", "SELECT 1"), m::describe(b'S', "")].concat()),
        ("Describe with a name", [m::parse("a", "SELECT 1"), m::describe(b'S', "a")].concat()),
        ("Execute", [m::parse("", "SELECT 1"), m::bind("", "", &[]), m::execute("", 0)].concat()),
        ("Close", m::close(b'S', "")),
        ("Close with a name", m::close(b'S', "a")),
        ("Flush", m::flush()),
        ("Sync", m::sync()),
        ("FunctionCall", m::frame(b'F', &call)),
        ("CopyData", m::copy_data(b"x")),
        ("CopyDone", m::copy_done()),
        ("CopyFail", m::copy_fail("x")),
    ]
}

/// Where the last message in `bytes` begins.
fn last(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let length = u32::from_be_bytes([bytes[at + 1], bytes[at + 2], bytes[at + 3], bytes[at + 4]]);
        let next = at + 1 + length as usize;
        if next >= bytes.len() {
            return at;
        }
        at = next;
    }
}

/// The same with another length declared.
fn declaring(mut bytes: Vec<u8>, more: i32) -> Vec<u8> {
    let at = last(&bytes) + 1;
    let length = i32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) + more;
    bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
    bytes
}

#[test]
fn heavy_a_byte_less_or_more() {
    let s = start();
    let mut cases = Vec::new();
    for (name, bytes) in good() {
        let whole = last(&bytes) + 5 == bytes.len();
        if !whole {
            let shorter = declaring(bytes[..bytes.len() - 1].to_vec(), 0);
            cases.push((format!("{name}, a byte less than it says"), shorter.clone()));
            cases.push((format!("{name}, a byte shorter"), declaring(shorter, -1)));
        }
        cases.push((format!("{name}, saying a byte less"), declaring(bytes.clone(), -1)));
        cases.push((format!("{name}, saying a byte more"), declaring(bytes.clone(), 1)));
        cases.push((format!("{name}, a byte longer"), [declaring(bytes, 1), vec![0]].concat()));
    }
    check(&s, cases);
}

#[test]
fn heavy_types_that_there_are_not() {
    let s = start();
    let known = b"QPBDCESHFXdcfp";
    let tags = (0..=255_u8).filter(|tag| !known.contains(tag)).step_by(7);
    check(&s, tags.map(|tag| (format!("type {tag}"), m::frame(tag, b"what"))).collect());
}

#[test]
fn messages_out_of_place() {
    let s = start();
    let begin = m::query("BEGIN");
    let cases = [
        ("a password", m::frame(b'p', b"late\0")),
        ("a startup packet", m::startup(&[("user", "again")])),
        ("a cancel request", m::cancel_request(&[0; 8])),
        ("SSLRequest", m::ssl_request()),
        ("CopyDone", m::copy_done()),
        ("Execute of nothing", m::execute("nothing", 0)),
        ("a password in a transaction", [begin.clone(), m::frame(b'p', b"late\0")].concat()),
        ("an unknown type in a transaction", [begin, m::frame(b'!', b"")].concat()),
        ("an unknown type within a group", [m::parse("", "SELECT 1"), m::frame(b'!', b"")].concat()),
    ];
    check(&s, cases.map(|(what, bytes)| (what.to_owned(), bytes)).to_vec());
}

#[test]
fn out_of_step_within_copy() {
    let s = start();
    for rest in [
        m::frame(b'!', b"what"),
        m::query("SELECT 1"),
        m::frame(b'p', b"late\0"),
        declaring(m::copy_data(b"1\tx\n"), 1),
        declaring(m::copy_data(b"1\tx\n"), -1),
    ] {
        let bytes = [rest, m::copy_done(), m::query("SELECT 1")].concat();
        // All of them end the connection.
        let said = [s.direct("acme"), s.login("acme")].map(|mut raw| {
            raw.send(&m::query("COPY scratch.items FROM STDIN"));
            raw.until_tag(b'G');
            raw.send(&bytes);
            to_the_end(&mut raw)
        });
        let violation = said[1].iter().any(|line| line.starts_with("E FATAL 08P01"));
        assert!(violation || compare(&said[0], &said[1]).is_none(), "{said:#?}");
        let mut globex = s.login("globex");
        assert_eq!(globex.column("SELECT name FROM clients ORDER BY id"), s.canaries("globex"));
        assert_eq!(globex.value("SELECT count(*) FROM scratch.items"), "0");
    }
}
