//! Startup packets, the parameters in them, and bytes that are no protocol at all.

use switchyard_tests::raw::differential::{Step, play};
use switchyard_tests::raw::messages as m;
use switchyard_tests::setup::PASSWORD;
use switchyard_tests::{Running, Setup, wait};

fn start() -> Running {
    Setup::new().shards(1).tenants(["acme", "globex"]).start()
}

#[test]
fn bytes_one_at_a_time() {
    let s = start();
    let mut acme = s.target("acme").open().unwrap();
    for byte in s.target("acme").startup() {
        acme.send(&[byte]);
    }
    acme.authenticate("app.acme", Some(switchyard_tests::setup::PASSWORD), false).unwrap();
    for byte in [m::query("SELECT 'slow'"), m::extended("SELECT 'and steady'", &[])].concat() {
        acme.send(&[byte]);
    }
    let seen = play(&mut acme, &[Step::Ready(2)]);
    assert!(
        seen.iter().any(|m| m.contains("slow")) && seen.iter().any(|m| m.contains("and steady")),
        "{seen:?}"
    );
}

#[test]
fn parameters_are_the_shards_own() {
    let s = start();
    let (direct, routed) = (s.direct("acme"), s.login("acme"));
    for name in [
        "server_version",
        "server_encoding",
        "client_encoding",
        "DateStyle",
        "TimeZone",
        "integer_datetimes",
        "standard_conforming_strings",
        "is_superuser",
        "IntervalStyle",
    ] {
        assert_eq!(routed.parameter(name), direct.parameter(name), "{name}");
    }
    assert_eq!(routed.key().len(), 8);
}

#[test]
fn startup_parameters_are_honoured() {
    let s = start();
    let target = || s.target("acme");
    for (name, value, sql, expected) in [
        ("application_name", "my app", "SHOW application_name", "my app"),
        ("extra_float_digits", "3", "SHOW extra_float_digits", "3"),
        ("statement_timeout", "12345", "SHOW statement_timeout", "12345ms"),
        ("DateStyle", "SQL, DMY", "SHOW DateStyle", "SQL, DMY"),
        ("options", "-c work_mem=5MB -c timezone=Asia/Tokyo", "SHOW work_mem", "5MB"),
        ("options", "-c application_name=with\\ space", "SHOW application_name", "with space"),
        ("client_encoding", "LATIN1", "SHOW client_encoding", "LATIN1"),
    ] {
        let mut with = target().param(name, value).connect();
        let mut without = s.login("globex");
        for _ in 0..3 {
            assert_eq!(with.value(sql), expected, "{name}");
            assert_ne!(without.value(sql), expected, "{name}");
        }
    }
    for (name, value, sqlstate) in [("work_mem", "nonsense", "22023"), ("no_such_setting", "1", "42704")] {
        assert_eq!(target().param(name, value).refused().sqlstate(), sqlstate, "{name}");
    }
}

#[test]
fn reported_parameters_follow_the_session() {
    let s = start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.rows("SET TimeZone = 'Asia/Tokyo'");
    assert_eq!(acme.parameter("TimeZone"), "Asia/Tokyo");
    globex.rows("SET application_name = 'globex app'");
    for _ in 0..4 {
        assert_eq!(acme.value("SHOW TimeZone"), "Asia/Tokyo");
        assert_eq!(globex.value("SHOW TimeZone"), "UTC");
        assert_eq!(globex.value("SHOW application_name"), "globex app");
        assert_ne!(acme.value("SHOW application_name"), "globex app");
    }
    acme.rows("BEGIN; SET TimeZone = 'Europe/Paris'; ROLLBACK");
    assert_eq!(acme.value("SHOW TimeZone"), "Asia/Tokyo");
    assert_eq!(acme.parameter("TimeZone"), "Asia/Tokyo");
}

#[test]
fn nonsense_ends_the_session_and_nothing_else() {
    let s = start();
    let mut other = s.login("globex");
    for bytes in [
        m::frame(b'!', b"what"),
        vec![b'Q', 0, 0, 0, 3],
        vec![b'Q', 0xff, 0xff, 0xff, 0xff],
        vec![b'Q', 0x80, 0, 0, 0],
        vec![b'P', 0, 0, 0, 0],
        m::frame(b'B', b"no end"),
        m::frame(b'C', b"x"),
        m::frame(b'D', b""),
        m::frame(b'p', b"a password, late"),
        m::startup(&[("user", "again")]),
    ] {
        let mut raw = s.login("acme");
        raw.send(&bytes);
        raw.half_close();
        while let Ok(message) = raw.try_read() {
            assert!(matches!(message.tag, b'E' | b'Z' | b'N'), "{message:?} after {bytes:?}");
        }
        assert_eq!(other.value("SELECT 1"), "1", "after {bytes:?}");
        assert_eq!(
            s.login("acme").column("SELECT name FROM clients ORDER BY id"),
            s.canaries("acme"),
            "after {bytes:?}"
        );
    }
}

#[test]
fn startup_packets_that_are_none() {
    let s = start();
    let length = |n: u32| n.to_be_bytes().to_vec();
    let version = |major: u16, minor: u16| {
        let mut body = [major.to_be_bytes(), minor.to_be_bytes()].concat();
        body.extend(m::strings(&["user", "app.acme", "database", "crm"]));
        body.push(0);
        m::packet(&body)
    };
    let malformed = [&3_u32.to_be_bytes()[..], &[0, 3, 0, 0]].concat();
    for bytes in [
        length(0),
        length(3),
        length(4),
        length(7),
        length(u32::MAX),
        length(1 << 31),
        length(10_001),
        malformed,
        version(2, 0),
        version(4, 0),
        m::packet(&[0, 3, 0, 0, b'u', b's']),
        m::packet(&[&[0, 3, 0, 0][..], &m::strings(&["user"])].concat()),
        m::startup(&[("database", "crm")]),
        m::startup(&[]),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x00\x05hello".to_vec(),
        m::query("SELECT 1"),
    ] {
        let mut raw = s.router.target().open().unwrap();
        raw.send(&bytes);
        raw.half_close();
        let mut answer = Vec::new();
        while let Ok(byte) = raw.byte() {
            answer.push(byte);
        }
        assert!(answer.is_empty() || answer[0] == b'E', "{bytes:?}: {}", answer.escape_ascii());
        assert_eq!(s.login("acme").value("SELECT 1"), "1");
    }
    // A later minor version is negotiated down.
    let mut raw = s.router.target().open().unwrap();
    raw.send(&version(3, 9999));
    assert_eq!(raw.read().tag, b'v');
    raw.authenticate("app.acme", Some(switchyard_tests::setup::PASSWORD), false).unwrap();
    assert_eq!(raw.value("SELECT 1"), "1");
}

#[test]
fn a_client_of_protocol_3_2_gets_a_long_key() {
    let s = start();
    let mut startup = s.target("acme").startup();
    startup[7] = 2;
    let mut acme = s.target("acme").open().unwrap();
    acme.send(&startup);
    acme.authenticate("app.acme", Some(PASSWORD), false).unwrap();
    // It was asked for and is granted: nothing is negotiated.
    assert_eq!(acme.key().len(), 36);
    acme.send(&m::query("SELECT pg_sleep(600)"));
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    wait::until_true("the statement to run", || s.shards[0].value(sleeping) == "1");
    for (key, canceled) in [(&acme.key()[..8], "1"), (acme.key(), "0")] {
        let mut raw = s.router.target().open().unwrap();
        raw.send(&m::cancel_request(key));
        assert!(raw.ends());
        wait::until_true("the cancel request to do its work", || s.shards[0].value(sleeping) == canceled);
    }
    assert!(acme.until_ready().iter().any(|m| m.sqlstate() == "57014"));
}

#[test]
fn what_is_reported_is_of_the_tenants_shard() {
    let s = Setup::new().tenant_on("acme", 0).tenant_on("globex", 1).start();
    s.shards[1].sql("ALTER DATABASE crm SET timezone = 'Asia/Tokyo'");
    assert_eq!(s.login("acme").parameter("TimeZone"), "UTC");
    assert_eq!(s.login("globex").parameter("TimeZone"), "Asia/Tokyo");
}

#[test]
fn parameters_are_known_while_the_shard_is_down() {
    let mut s = start();
    let version = s.login("acme").parameter("server_version");
    s.shards[0].stop();
    let mut acme = s.login("acme");
    assert_eq!(acme.parameter("server_version"), version);
    assert!(!acme.error("SELECT 1").message.is_empty());
    s.shards[0].start_again();
    wait::until_true("the shard to be found again", || acme.try_rows("SELECT 1").is_ok());
}

#[test]
fn a_probe_leaves_no_line_in_the_log() {
    let s = start();
    s.login("acme");
    let before = s.router.log();
    for bytes in [&b""[..], b"\0", b"GET / HTTP/1.0\r\n\r\n"] {
        let mut raw = s.router.target().open().unwrap();
        raw.send(bytes);
        raw.half_close();
        assert!(raw.ends());
    }
    s.login("acme");
    let log = s.router.log();
    let lines: Vec<_> = log[before.len()..].lines().filter(|line| !line.contains("DEBUG")).collect();
    assert!(lines.is_empty(), "{lines:#?}");
}
