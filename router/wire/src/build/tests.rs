use proptest::prelude::*;

use super::*;
use crate::frame::{HEADER, header};

fn built(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut buf = b"before".to_vec();
    fill(&mut buf);
    assert!(buf.starts_with(b"before"));
    let frame = buf.split_off(6);
    assert_eq!(header(&frame).unwrap().unwrap().len, frame.len());
    frame
}

#[test]
fn fixed_messages() {
    assert_eq!(built(sync), b"S\0\0\0\x04");
    assert_eq!(built(flush), b"H\0\0\0\x04");
    assert_eq!(built(terminate), b"X\0\0\0\x04");
    assert_eq!(built(parse_complete), b"1\0\0\0\x04");
    assert_eq!(built(bind_complete), b"2\0\0\0\x04");
    assert_eq!(built(close_complete), b"3\0\0\0\x04");
    assert_eq!(built(no_data), b"n\0\0\0\x04");
    assert_eq!(built(empty_query), b"I\0\0\0\x04");
    assert_eq!(built(|b| ready_for_query(b, b'T')), b"Z\0\0\0\x05T");
    assert_eq!(built(|b| auth_md5(b, *b"abcd")), b"R\0\0\0\x0c\0\0\0\x05abcd");
    assert_eq!(built(|b| copy_fail(b, b"no").unwrap()), b"f\0\0\0\x07no\0");
}

/// As PostgreSQL 15 sends it for protocol 3.1 with an option it does not know.
#[test]
fn negotiation() {
    let frame = built(|b| negotiate_version(b, 3 << 16, &[b"_pq_.x"]).unwrap());
    assert_eq!(frame, b"v\0\0\0\x13\0\x03\0\0\0\0\0\x01_pq_.x\0");
}

#[test]
fn rows() {
    let frame = built(|b| row_description(b, &[("n", 23, 4), ("t", 25, -1)]).unwrap());
    let expected = b"T\0\0\0\x2e\0\x02\
        n\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0\
        t\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
    assert_eq!(frame, expected);
    let frame = built(|b| data_row(b, &[Some(b"x"), None, Some(b"")]).unwrap());
    assert_eq!(frame, b"D\0\0\0\x13\0\x03\0\0\0\x01x\xff\xff\xff\xff\0\0\0\0");
}

#[test]
fn function_call() {
    let frame = built(|b| function_call_text(b, 1, &[b"a"]).unwrap());
    assert_eq!(frame, b"F\0\0\0\x13\0\0\0\x01\0\0\0\x01\0\0\0\x01a\0\0");
}

/// Each of these, let through, would end a string early and make what follows a message of its own.
#[test]
fn a_nul_is_refused_and_leaves_no_trace() {
    type Attempt<'a> = &'a dyn Fn(&mut Vec<u8>) -> Result<(), BuildError>;
    let attempts: &[Attempt<'_>] = &[
        &|b| query(b, b"a\0b"),
        &|b| parse(b, b"a\0b", b"", b""),
        &|b| parse(b, b"", b"a\0b", b""),
        &|b| bind_text(b, b"a\0b", b"", &[]),
        &|b| bind_text(b, b"", b"a\0b", &[]),
        &|b| describe(b, b'S', b"a\0b"),
        &|b| close(b, b'S', b"a\0b"),
        &|b| execute(b, b"a\0b", 0),
        &|b| password(b, b"a\0b"),
        &|b| copy_fail(b, b"a\0b"),
        &|b| startup(b, 3 << 16, &[("user", "u"), ("a\0b", "")]),
        &|b| startup(b, 3 << 16, &[("user", "u\0b")]),
        &|b| sasl_initial(b, "a\0b", b""),
        &|b| auth_sasl(b, &["a\0b"]),
        &|b| parameter_status(b, "a", "b\0c"),
        &|b| negotiate_version(b, 3 << 16, &[b"a\0b"]),
        &|b| command_complete(b, "a\0b"),
        &|b| row_description(b, &[("a\0b", 25, -1)]),
    ];
    for (number, attempt) in attempts.iter().enumerate() {
        let mut buf = b"before".to_vec();
        assert_eq!(attempt(&mut buf), Err(BuildError::Nul), "{number}");
        assert_eq!(buf, b"before", "{number}");
    }
}

#[test]
fn fixed_fields_are_checked() {
    let mut buf = Vec::new();
    assert!(describe(&mut buf, b'X', b"").is_err());
    assert!(execute(&mut buf, b"", 1 << 31).is_err());
    assert!(parse(&mut buf, b"", b"", &[0]).is_err());
    assert!(parse(&mut buf, b"", b"", &[0, 1, 0, 0]).is_err());
    assert!(startup(&mut buf, 3 << 16, &[("", "x")]).is_err());
    assert!(auth_sasl(&mut buf, &[""]).is_err());
    for len in [0, 3, 257] {
        assert!(backend_key_data(&mut buf, 1, &vec![0; len]).is_err());
        assert!(cancel_request(&mut buf, 1, &vec![0; len]).is_err());
    }
    assert!(buf.is_empty());
}

#[test]
fn counts_and_sizes_do_not_wrap() {
    let mut buf = Vec::new();
    let values = vec![&b""[..]; 65_535];
    bind_text(&mut buf, b"", b"", &values).unwrap();
    assert_eq!(&buf[HEADER + 4..HEADER + 6], [0xff, 0xff]);
    buf.clear();
    let values = vec![&b""[..]; 65_536];
    assert_eq!(bind_text(&mut buf, b"", b"", &values), Err(BuildError::TooLong));
    assert_eq!(function_call_text(&mut buf, 1, &values), Err(BuildError::TooLong));
    assert_eq!(data_row(&mut buf, &vec![None; 65_536]), Err(BuildError::TooLong));
    // Zeroed and never touched: refused by its length before anything is copied.
    let value = vec![0; MAX_DECLARED - 3];
    assert_eq!(sasl_response(&mut buf, &value), Err(BuildError::TooLong));
    assert_eq!(data_row(&mut buf, &[Some(&value)]), Err(BuildError::TooLong));
    assert!(buf.is_empty());
}

proptest! {
    #[test]
    fn every_frame_has_its_length(name in prop::collection::vec(1u8.., 0..30), value in prop::collection::vec(any::<u8>(), 0..30)) {
        let text = String::from_utf8_lossy(&name).into_owned();
        built(|b| function_call_text(b, 9, &[&value, &name]).unwrap());
        built(|b| data_row(b, &[Some(&value), None]).unwrap());
        built(|b| row_description(b, &[(&text, 25, -1)]).unwrap());
        built(|b| sasl_response(b, &value).unwrap());
        built(|b| copy_fail(b, &name).unwrap());
    }
}
