//! Mistakes and malice, after login.

use switchyard_tests::raw::messages as m;

use super::{console, setup};

#[test]
fn health_checks_and_drivers_get_what_they_ask_for() {
    let s = setup().start();
    let mut viewer = console(&s, "viewer");
    assert_eq!(viewer.value("SELECT 1"), "1");
    assert_eq!(viewer.value("/* ping */ select 'x' -- y"), "x");
    assert_eq!(viewer.value("SHOW client_encoding"), "UTF8");
    assert_eq!(viewer.value("SHOW TRANSACTION ISOLATION LEVEL"), "read committed");
    assert!(viewer.value("SELECT version()").contains("1.25.2"));
    for sql in [
        "SET DateStyle = 'ISO'",
        "SET extra_float_digits TO 3",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "RESET ALL",
        "DISCARD ALL",
        "",
        ";",
        "BEGIN; SELECT 1; COMMIT",
        "SHOW STATS; SHOW POOLS;",
    ] {
        viewer.rows(sql);
    }
    for (sql, sqlstate) in [
        ("SELECT * FROM pg_class", "0A000"),
        ("DROP TABLE clients", "42601"),
        ("SET max_client_conn = 1", "55P02"),
        ("SHOW FDS", "42601"),
        ("SHOW POOLS $1", "42601"),
        ("SHOW 'x", "42601"),
        ("SUSPEND", "0A000"),
    ] {
        assert_eq!(viewer.error(sql).sqlstate, sqlstate, "{sql}");
    }
    let help = viewer.round(&m::query("SHOW HELP"));
    assert!(help.iter().any(|m| m.tag == b'N' && m.field(b'D').contains("KILL_CLIENT")), "{help:?}");
}

#[test]
fn transactions_look_like_transactions() {
    let s = setup().start();
    let mut viewer = console(&s, "viewer");
    let mut status = |sql: &str| viewer.round(&m::query(sql)).last().map(m::Message::status).unwrap();
    assert_eq!(status("BEGIN"), 'T');
    assert_eq!(status("SHOW STATE"), 'T');
    assert_eq!(status("nonsense"), 'E');
    assert_eq!(status("SHOW STATE"), 'E');
    assert_eq!(status("COMMIT"), 'I');
    assert_eq!(status("START TRANSACTION"), 'T');
    assert_eq!(status("ROLLBACK"), 'I');
    viewer.rows("BEGIN");
    viewer.error("nonsense");
    assert_eq!(viewer.error("SELECT 1").sqlstate, "25P02");
    let answer = viewer.round(&m::query("COMMIT"));
    assert_eq!(answer[0].text(), "ROLLBACK");
}

#[test]
fn the_extended_protocol_as_postgresql_has_it() {
    let s = setup().start();
    let mut viewer = console(&s, "viewer");
    let tags = |messages: &[m::Message]| -> Vec<u8> { messages.iter().map(|m| m.tag).collect() };
    // An error skips to the Sync, and the session goes on.
    let bad = [m::parse("", "nonsense"), m::bind("", "", &[]), m::execute("", 0), m::sync()].concat();
    assert_eq!(tags(&viewer.round(&bad)), b"EZ");
    // Rows in portions.
    viewer.round(&[m::parse("l", "SHOW LISTS"), m::sync()].concat());
    let all = viewer.rows("SHOW LISTS").len();
    viewer.rows("BEGIN");
    let part = viewer.round(&[m::bind("p", "l", &[]), m::execute("p", 5), m::sync()].concat());
    assert_eq!(tags(&part), b"2DDDDDsZ");
    let rest = viewer.round(&[m::execute("p", 0), m::sync()].concat());
    assert_eq!(tags(&rest), [vec![b'D'; all - 5], b"CZ".to_vec()].concat());
    viewer.rows("COMMIT");
    for (script, sqlstate) in [
        ([m::execute("p", 0), m::sync()].concat(), "34000"),
        ([m::bind("", "none", &[]), m::sync()].concat(), "26000"),
        ([m::describe(b'S', "none"), m::sync()].concat(), "26000"),
        ([m::describe(b'P', "none"), m::sync()].concat(), "34000"),
        ([m::parse("l", "SHOW LISTS"), m::sync()].concat(), "42P05"),
        ([m::parse("", "SHOW LISTS; SHOW LISTS"), m::sync()].concat(), "42601"),
        ([m::bind("", "l", &[Some(b"1")]), m::sync()].concat(), "08P01"),
    ] {
        let answer = viewer.round(&script);
        assert_eq!(answer[0].sqlstate(), sqlstate);
    }
    let closed = viewer.round(&[m::close(b'S', "l"), m::close(b'S', "l"), m::flush(), m::sync()].concat());
    assert_eq!(tags(&closed), b"33Z");
    let nothing =
        [m::parse("", ""), m::bind("", "", &[]), m::describe(b'P', ""), m::execute("", 0), m::sync()];
    assert_eq!(tags(&viewer.round(&nothing.concat())), b"12nIZ");
}

#[test]
fn what_a_client_declares_takes_no_memory() {
    let s = setup().start();
    drop(console(&s, "viewer"));
    let before = s.router.resident_bytes();
    for (bytes, sqlstate) in [
        (b"Q\x3f\xff\xff\xff".to_vec(), "08P01"),
        (b"Q\xff\xff\xff\xff".to_vec(), "08P01"),
        (b"Q\0\0\0\0".to_vec(), "08P01"),
        (m::frame(b'Q', b"no end"), "08P01"),
        (m::frame(b'~', b""), "08P01"),
    ] {
        let mut viewer = console(&s, "viewer");
        viewer.send(&bytes);
        let answer = viewer.until_ready_or_end();
        assert!(answer.iter().any(|m| m.tag == b'E' && m.sqlstate() == sqlstate), "{bytes:?}: {answer:?}");
        assert!(viewer.ends());
    }
    // A Bind that promises more than it holds.
    let mut viewer = console(&s, "viewer");
    viewer.round(&[m::parse("s", "SHOW LISTS"), m::sync()].concat());
    let body = [&b"\0s\0\0\0\xff\xff\x7f\xff\xff\xff"[..]].concat();
    let answer = viewer.round(&[m::frame(b'B', &body), m::sync()].concat());
    assert_eq!(answer[0].sqlstate(), "08P01");
    assert_eq!(viewer.value("SELECT 1"), "1");
    for n in 0..200 {
        viewer.send(&m::parse(&format!("s{n}"), "SHOW LISTS"));
    }
    assert!(viewer.round(&m::sync()).iter().any(|m| m.tag == b'E' && m.sqlstate() == "54000"));
    let grown = s.router.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
}

#[test]
fn text_of_strangers_does_not_break_out() {
    let s = setup().start();
    let mut viewer = console(&s, "viewer");
    for text in ["SHOW \"a\u{1b}[31m\"", "PAUSE \"x\ny\"", "\u{1b}[31m", "SHOW TENANT 'a\nb'"] {
        let error = viewer.error(text);
        assert!(!error.message.contains(char::is_control), "{error:?}");
    }
    assert!(!s.router.log().contains('\u{1b}'));
    let odd = s.target("acme").param("application_name", "a\u{1b}[31m\nb").connect();
    let rows = super::named_rows(&mut viewer, "SHOW CLIENTS");
    assert!(rows.iter().any(|row| !row["application_name"].is_empty()));
    drop(odd);
}
