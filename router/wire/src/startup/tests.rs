use proptest::prelude::*;

use super::*;
use crate::build;

fn packet(version: u32, body: &[u8]) -> Vec<u8> {
    let mut packet = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
    packet.extend_from_slice(&version.to_be_bytes());
    packet.extend_from_slice(body);
    packet
}

fn started(body: &[u8]) -> Startup {
    match first(&packet(VERSION_3_0, body)) {
        Ok(First::Startup(startup)) => startup,
        other => panic!("{other:?}"),
    }
}

fn refused(body: &[u8]) -> StartupError {
    first(&packet(VERSION_3_0, body)).unwrap_err()
}

#[test]
fn lengths() {
    for bad in [0, 1, 3, 4, 7, 10_005, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        assert_eq!(packet_len(&bad.to_be_bytes(), usize::MAX), Err(StartupError::Length), "{bad}");
    }
    assert_eq!(packet_len(&8u32.to_be_bytes(), MAX_PACKET), Ok(8));
    assert_eq!(packet_len(&10_004u32.to_be_bytes(), MAX_PACKET), Ok(10_004));
    assert_eq!(packet_len(&101u32.to_be_bytes(), 100), Err(StartupError::Length));
    assert!(StartupError::Length.is_silent());
}

#[test]
fn the_length_must_be_the_packet_s() {
    let mut whole = packet(VERSION_3_0, b"user\0u\0\0");
    whole.push(0);
    assert_eq!(first(&whole), Err(StartupError::Length));
    assert_eq!(first(&whole[..whole.len() - 2]), Err(StartupError::Length));
    assert_eq!(first(&[]), Err(StartupError::Length));
}

#[test]
fn requests() {
    let mut buf = Vec::new();
    build::ssl_request(&mut buf);
    assert_eq!(first(&buf), Ok(First::Ssl));
    assert_eq!(first(&packet(GSS_REQUEST, b"")), Ok(First::Gss));
}

#[test]
fn cancel_keys_of_4_to_256_bytes() {
    for len in [4, 32, 256] {
        let mut buf = Vec::new();
        build::cancel_request(&mut buf, 7, &vec![9; len]).unwrap();
        assert_eq!(first(&buf), Ok(First::Cancel { pid: 7, key: vec![9; len] }));
    }
    for len in [0, 3, 257] {
        let body = [&7u32.to_be_bytes()[..], &vec![9; len]].concat();
        let error = first(&packet(CANCEL_REQUEST, &body)).unwrap_err();
        assert_eq!(error, StartupError::CancelLength);
        assert!(error.is_silent());
    }
    assert_eq!(first(&packet(CANCEL_REQUEST, b"abc")), Err(StartupError::CancelLength));
}

/// Answers of PostgreSQL 15 to the same packets.
#[test]
fn versions() {
    let body = b"user\0u\0\0";
    for (major, minor) in [(0u32, 0u32), (1, 0), (2, 0), (4, 0), (1234, 1)] {
        let error = first(&packet(major << 16 | minor, body)).unwrap_err();
        let response = error.response();
        assert_eq!(response.code, sqlstate::FEATURE_NOT_SUPPORTED);
        let text = format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2");
        assert_eq!(response.message, text);
        let mut sent = Vec::new();
        error.encode(&mut sent);
        if matches!(major, 1 | 2) {
            assert_eq!(sent, format!("EFATAL:  {text}\n\0").as_bytes());
        } else {
            assert_eq!(&sent[5..12], b"SFATAL\0");
        }
    }
    for minor in [0, 1, 2, 9999] {
        let Ok(First::Startup(startup)) = first(&packet(VERSION_3_0 | minor, body)) else { panic!() };
        assert_eq!((startup.major, u32::from(startup.minor)), (3, minor));
    }
}

#[test]
fn what_is_granted() {
    for (minor, granted, said) in [(0, 0, false), (1, 0, true), (2, 2, false), (3, 2, true), (9999, 2, true)]
    {
        let Ok(First::Startup(startup)) = first(&packet(VERSION_3_0 | minor, b"user\0u\0\0")) else {
            panic!()
        };
        assert_eq!((startup.granted_minor(), startup.needs_negotiation()), (granted, said), "3.{minor}");
    }
    assert!(started(b"user\0u\0_pq_.x\0\0\0").needs_negotiation());
}

#[test]
fn replication() {
    for (value, asked) in
        [("database", true), ("true", true), ("T", true), ("on", true), ("1", true), ("yes", true)]
            .into_iter()
            .chain([("false", false), ("off", false), ("of", false), ("0", false), ("n", false)])
    {
        let body = format!("user\0u\0replication\0{value}\0\0");
        assert_eq!(started(body.as_bytes()).replication, asked, "{value}");
    }
    for value in ["", "o", "perhaps", "Database", "2"] {
        let body = format!("user\0u\0replication\0{value}\0\0");
        assert_eq!(refused(body.as_bytes()), StartupError::Replication(value.to_owned()));
    }
}

#[test]
fn layout() {
    for body in [&b""[..], b"user\0u\0", b"user\0u", b"user\0u\0\0x", b"user\0u\0abc\0\0", b"user"] {
        assert_eq!(refused(body), StartupError::Layout, "{body:?}");
    }
}

#[test]
fn a_user_is_required() {
    for body in [&b"\0"[..], b"user\0\0\0", b"USER\0u\0\0", b"user\0u\0user\0\0\0"] {
        assert_eq!(refused(body), StartupError::NoUser, "{body:?}");
    }
    assert_eq!(StartupError::NoUser.sqlstate(), sqlstate::INVALID_AUTHORIZATION);
}

#[test]
fn database_defaults_to_user() {
    assert_eq!(started(b"user\0u\0\0").database(), "u");
    assert_eq!(started(b"user\0u\0database\0\0\0").database(), "u");
    assert_eq!(started(b"user\0u\0database\0d\0\0").database(), "d");
}

#[test]
fn of_duplicates_the_last_wins() {
    let startup = started(b"user\0a\0work_mem\x001MB\0user\0b\0WORK_MEM\x002MB\0User\0x\0\0");
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(startup.params, [pair("user", "b"), pair("work_mem", "2MB"), pair("User", "x")]);
    assert_eq!(startup.get("Work_Mem"), Some("2MB"));
    assert_eq!(startup.user(), "b");
    assert_eq!(startup.get("USER"), Some("x"));
}

#[test]
fn protocol_options_are_apart() {
    let startup = started(b"_pq_.a\x001\0user\0u\0_pq_.b\0\0\0");
    assert_eq!(startup.protocol_options, ["_pq_.a", "_pq_.b"]);
    assert_eq!(startup.params.len(), 1);
}

#[test]
fn only_utf8_but_for_the_application_name() {
    let startup = started(b"user\0u\0application_name\0caf\xe9\x01\0\0");
    assert_eq!(startup.get("application_name"), Some("caf??"));
    for body in [&b"user\0\xe9\0\0"[..], b"user\0u\0database\0\xff\0\0", b"user\0u\0\xff\0x\0\0"] {
        assert_eq!(refused(body), StartupError::Encoding);
    }
}

#[test]
fn thousands_of_parameters() {
    let mut body = b"user\0u\0".to_vec();
    while body.len() < 9980 {
        body.extend_from_slice(format!("{}\0\0", body.len()).as_bytes());
    }
    body.push(0);
    assert!(started(&body).params.len() > 1600);
}

fn set(text: &str) -> Vec<(String, String)> {
    options(text).unwrap()
}

fn one(name: &str, value: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), value.to_owned())]
}

/// Compared with PostgreSQL 15, which takes each of these.
#[test]
fn options_that_set() {
    for text in
        ["-c work_mem=1MB", "-cwork_mem=1MB", "--work-mem=1MB", "-c work-mem=1MB", " \t-c\n work_mem=1MB\r"]
    {
        assert_eq!(set(text), one("work_mem", "1MB"), "{text:?}");
    }
    assert_eq!(set(r"-c application_name=a\ b\\c"), one("application_name", r"a b\c"));
    assert_eq!(set("-c a.b=c=d"), one("a.b", "c=d"));
    assert_eq!(set("-c search_path=a,-c"), one("search_path", "a,-c"));
    assert_eq!(set(r"-c work_mem=1MB\"), one("work_mem", "1MB"));
    assert_eq!(set("-c a="), one("a", ""));
    assert_eq!(set("-S 100"), one("work_mem", "100"));
    assert_eq!(set("-fh"), one("enable_hashjoin", "false"));
    assert_eq!(set("-tpa"), one("log_parser_stats", "true"));
    assert_eq!(set("-ec a=b"), [one("datestyle", "euro"), one("a", "b")].concat());
    assert_eq!(set("-c a=1 -c a=2"), [one("a", "1"), one("a", "2")].concat());
    assert_eq!(set("-T -n -v 3 -C x -r x --"), []);
    assert_eq!(set("  "), []);
}

/// The texts are PostgreSQL 15's.
#[test]
fn options_that_are_refused() {
    let argument = |text: &str| format!("invalid command-line argument for server process: {text}");
    for (text, message) in [
        ("-c", argument("-c")),
        ("-c foo", "-c foo requires a value".to_owned()),
        ("--foo", "--foo requires a value".to_owned()),
        ("-c -c", "-c -c requires a value".to_owned()),
        ("-- x", argument("x")),
        ("-", argument("-")),
        ("x", argument("x")),
        ("-Z", argument("-Z")),
        ("-x foo", argument("-x")),
        ("-fz", argument("-fz")),
        ("-tx", argument("-tx")),
        ("\u{e9}", argument("\u{e9}")),
    ] {
        let response = options(text).unwrap_err().response();
        assert_eq!(response.message, message);
        assert_eq!(response.code, sqlstate::SYNTAX_ERROR);
    }
}

proptest! {
    #[test]
    fn any_packet(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = first(&bytes);
    }

    #[test]
    fn any_startup_body(body in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..64)) {
        if let Ok(First::Startup(startup)) = first(&packet(VERSION_3_0, &body)) {
            prop_assert!(!startup.user().is_empty());
            prop_assert!(!startup.database().is_empty());
        }
    }

    #[test]
    fn what_is_built_is_read(
        names in prop::collection::btree_set("[a-z][a-z_.]{0,10}", 0..8),
        value in "[^\\x00]{0,20}",
        user in "[^\\x00]{1,20}",
    ) {
        let mut params: Vec<(&str, &str)> = vec![("user", &user)];
        params.extend(
            names.iter().map(String::as_str).filter(|n| !matches!(*n, "user" | "application_name")).map(|n| (n, value.as_str())),
        );
        let mut buf = Vec::new();
        build::startup(&mut buf, VERSION_3_0, &params).unwrap();
        let Ok(First::Startup(startup)) = first(&buf) else { panic!() };
        let read: Vec<_> = startup.params.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        prop_assert_eq!(read, params);
    }

    #[test]
    fn any_options(text in ".{0,40}") {
        let _ = options(&text);
    }

    #[test]
    fn escaped_values_survive(value in ".{0,30}") {
        let mut text = String::from("-c a=");
        for c in value.chars() {
            text.extend(['\\', c]);
        }
        prop_assert_eq!(set(&text), one("a", &value));
    }
}
