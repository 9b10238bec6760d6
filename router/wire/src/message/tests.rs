use proptest::prelude::*;

use super::*;
use crate::build;
use crate::frame::{HEADER, header};

/// Builds one frame, checks its header, and hands over its body.
fn body(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut buf = Vec::new();
    fill(&mut buf);
    assert_eq!(header(&buf).unwrap().unwrap().len, buf.len());
    buf.split_off(HEADER)
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(1u8.., 0..20)
}

#[test]
fn strings_end_once_and_at_the_end() {
    assert_eq!(query(b"select 1\0"), Ok(&b"select 1"[..]));
    assert_eq!(query(b"\0"), Ok(&b""[..]));
    assert_eq!(query(b""), Err(Malformed::String));
    assert_eq!(query(b"select 1"), Err(Malformed::String));
    assert_eq!(query(b"select 1\0x"), Err(Malformed::Trailing));
    assert_eq!(command_tag(b"BEGIN\0"), Ok(&b"BEGIN"[..]));
    assert_eq!(password(b"a\0b\0"), Err(Malformed::Trailing));
}

#[test]
fn transaction_status() {
    for status in *b"ITE" {
        assert_eq!(ready_status(&[status]), Ok(status));
    }
    assert_eq!(ready_status(b"X"), Err(Malformed::Value("transaction status")));
    assert_eq!(ready_status(b""), Err(Malformed::Short));
    assert_eq!(ready_status(b"II"), Err(Malformed::Trailing));
}

#[test]
fn cancel_key_sizes() {
    for (len, good) in [(0, false), (3, false), (4, true), (32, true), (256, true), (257, false)] {
        let message = [&[0, 0, 0, 9][..], &vec![1; len]].concat();
        assert_eq!(backend_key(&message).is_ok(), good, "{len}");
    }
    assert_eq!(backend_key(&[0, 0, 0, 9, 1, 2, 3, 4]), Ok((9, &[1, 2, 3, 4][..])));
}

#[test]
fn notifications() {
    let whole = b"\0\0\x01\x02news\0hello\0";
    let read = Notification { pid: 258, channel: b"news", payload: b"hello" };
    assert_eq!(notification(whole), Ok(read));
    for cut in 0..whole.len() {
        assert!(notification(&whole[..cut]).is_err(), "{cut}");
    }
    assert_eq!(notification(b"\0\0\0\0a\0b\0c"), Err(Malformed::Trailing));
}

#[test]
fn parse_counts_its_types() {
    let whole = b"s\0select $1\0\0\x02\0\0\0\x17\0\0\0\x19";
    let read = parse(whole).unwrap();
    assert_eq!((read.name, read.sql), (&b"s"[..], &b"select $1"[..]));
    assert_eq!(read.types, &whole[12..]);
    for cut in 0..whole.len() {
        assert!(parse(&whole[..cut]).is_err(), "{cut}");
    }
    assert_eq!(parse(b"\0\0\0\0x"), Err(Malformed::Trailing));
    assert_eq!(parse(b"\0\0\xff\xff"), Err(Malformed::Short));
}

#[test]
fn whole_binds() {
    let whole = b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x02ab\xff\xff\xff\xff\0\x02\0\x01\0\0";
    let wanted = Bind {
        portal: b"p",
        statement: b"s",
        formats: vec![1],
        params: vec![Some(&b"ab"[..]), None],
        results: vec![1, 0],
    };
    assert_eq!(bind(whole), Ok(wanted));
    for len in 0..whole.len() {
        assert!(bind(&whole[..len]).is_err(), "{len}");
    }
    let negative = b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0";
    assert_eq!(bind(negative), Err(Malformed::Value("parameter length")));
    let huge = b"\0\0\0\0\xff\xff\x7f\xff\xff\xff";
    assert_eq!(bind(huge), Err(Malformed::Short));
    assert_eq!(bind(&[&whole[..], b"x"].concat()), Err(Malformed::Trailing));
}

#[test]
fn bind_names_wait_for_both_terminators() {
    let whole = b"portal\0statement\0\0\0\0\0\0\0";
    let expected = BindNames { portal: b"portal", statement: b"statement", rest: 17 };
    for len in 0..=whole.len() {
        let wanted = (len >= 17).then_some(expected);
        assert_eq!(bind_names(&whole[..len]), Ok(wanted), "{len}");
    }
}

#[test]
fn targets() {
    assert_eq!(describe(b"Sx\0"), Ok(Target { kind: b'S', name: b"x" }));
    assert_eq!(close(b"P\0"), Ok(Target { kind: b'P', name: b"" }));
    assert_eq!(describe(b"X\0").unwrap_err().to_string(), "invalid DESCRIBE subtype in message");
    assert_eq!(close(b"S"), Err(Malformed::String));
    assert_eq!(close(b""), Err(Malformed::Short));
    assert_eq!(close(b"Sx\0y"), Err(Malformed::Trailing));
}

#[test]
fn negative_row_limits_are_none() {
    assert_eq!(execute(b"p\0\xff\xff\xff\xff"), Ok(Execute { portal: b"p", max_rows: 0 }));
    assert_eq!(execute(b"p\0\0\0\0\x05"), Ok(Execute { portal: b"p", max_rows: 5 }));
    assert_eq!(execute(b"p\0\0\0\0"), Err(Malformed::Short));
}

#[test]
fn error_fields_may_all_be_missing() {
    let fields = ErrorFields::parse(b"\0").unwrap();
    assert_eq!((fields.severity(), fields.code(), fields.message()), (None, None, None));
    let fields = ErrorFields::parse(b"SFEHLER\0Mm\0Mn\0\0").unwrap();
    assert_eq!(fields.severity(), Some(&b"FEHLER"[..]));
    assert_eq!(fields.message(), Some(&b"m"[..]));
    assert_eq!((fields.code(), fields.detail(), fields.hint()), (None, None, None));
    for bad in [&b""[..], b"S", b"Sx", b"Sx\0", b"Sx\0\0y"] {
        assert!(ErrorFields::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn only_minus_one_stands_for_no_sasl_data() {
    assert_eq!(sasl_initial(b"M\0\xff\xff\xff\xff").unwrap().data, None);
    assert_eq!(sasl_initial(b"M\0\0\0\0\0").unwrap().data, Some(&b""[..]));
    assert_eq!(sasl_initial(b"M\0\xff\xff\xff\xfe"), Err(Malformed::Short));
    assert_eq!(sasl_initial(b"M\0\0\0\0\x02a"), Err(Malformed::Short));
    assert_eq!(sasl_initial(b"M\0\0\0\0\x01ab"), Err(Malformed::Trailing));
    assert_eq!(sasl_initial(b"M\0\xff\xff\xff\xffx"), Err(Malformed::Trailing));
}

#[test]
fn authentication_requests() {
    assert_eq!(auth(&body(build::auth_ok)), Ok(Auth::Ok));
    assert_eq!(auth(&body(build::auth_cleartext)), Ok(Auth::Cleartext));
    assert_eq!(auth(&body(|b| build::auth_md5(b, [1, 2, 3, 4]))), Ok(Auth::Md5([1, 2, 3, 4])));
    assert_eq!(auth(&body(|b| build::auth_sasl_continue(b, b"x").unwrap())), Ok(Auth::SaslContinue(b"x")));
    assert_eq!(auth(&body(|b| build::auth_sasl_final(b, b"y").unwrap())), Ok(Auth::SaslFinal(b"y")));
    let sasl = body(|b| build::auth_sasl(b, &["A", "BC"]).unwrap());
    let Ok(Auth::Sasl(mechanisms)) = auth(&sasl) else { panic!() };
    assert_eq!(mechanisms.collect::<Vec<_>>(), [&b"A"[..], b"BC"]);
    assert_eq!(auth(&[0, 0, 0, 7]), Ok(Auth::Other(7)));
    for bad in [&[][..], &[0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0, 0, 5, 1], &[0, 0, 0, 10], b"\0\0\0\x0aA\0"] {
        assert!(auth(bad).is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn any_body(bytes in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..64)) {
        let _ = (query(&bytes), command_tag(&bytes), parameter_status(&bytes));
        let _ = (ready_status(&bytes), notification(&bytes));
        let _ = (parse(&bytes), describe(&bytes), close(&bytes), execute(&bytes));
        let _ = (backend_key(&bytes), sasl_initial(&bytes), password(&bytes), negotiate_version(&bytes));
        if let Ok(Some(names)) = bind_names(&bytes) {
            prop_assert_eq!(names.rest, names.portal.len() + names.statement.len() + 2);
            prop_assert!(names.rest <= bytes.len());
        }
        if let Ok(Auth::Sasl(mechanisms)) = auth(&bytes) {
            prop_assert!(mechanisms.count() < bytes.len());
        }
        if let Ok(fields) = ErrorFields::parse(&bytes) {
            let _ = (fields.severity(), fields.code(), fields.message(), fields.detail(), fields.hint());
        }
    }

    #[test]
    fn extended_messages_are_read_as_built(
        portal in name(),
        statement in name(),
        oids in prop::collection::vec(any::<[u8; 4]>(), 0..9),
        kind in prop::sample::select(vec![b'S', b'P']),
        rows in 0..=i32::MAX.cast_unsigned(),
    ) {
        let types = [&u16::try_from(oids.len()).unwrap().to_be_bytes()[..], &oids.concat()].concat();
        let built = body(|b| build::parse(b, &statement, &portal, &types).unwrap());
        prop_assert_eq!(parse(&built), Ok(Parse { name: &statement, sql: &portal, types: &types }));

        let built = body(|b| build::bind_text(b, &portal, &statement, &[b"1", b""]).unwrap());
        let names = bind_names(&built).unwrap().unwrap();
        prop_assert_eq!((names.portal, names.statement), (&portal[..], &statement[..]));
        prop_assert_eq!(&built[names.rest..], &b"\0\0\0\x02\0\0\0\x011\0\0\0\0\0\0"[..]);

        let built = body(|b| build::describe(b, kind, &portal).unwrap());
        prop_assert_eq!(describe(&built), Ok(Target { kind, name: &portal }));
        let built = body(|b| build::close(b, kind, &portal).unwrap());
        prop_assert_eq!(close(&built), Ok(Target { kind, name: &portal }));
        let built = body(|b| build::execute(b, &portal, rows).unwrap());
        prop_assert_eq!(execute(&built), Ok(Execute { portal: &portal, max_rows: rows }));
    }

    #[test]
    fn other_messages_are_read_as_built(one in name(), two in name(), key in prop::collection::vec(any::<u8>(), 4..=256)) {
        let built = body(|b| build::query(b, &one).unwrap());
        prop_assert_eq!(query(&built), Ok(&one[..]));
        let built = body(|b| build::password(b, &one).unwrap());
        prop_assert_eq!(password(&built), Ok(&one[..]));
        let built = body(|b| build::command_complete(b, &one).unwrap());
        prop_assert_eq!(command_tag(&built), Ok(&one[..]));
        let built = body(|b| build::parameter_status(b, &one, &two).unwrap());
        prop_assert_eq!(parameter_status(&built), Ok((&one[..], &two[..])));
        let built = body(|b| build::backend_key_data(b, 5, &key).unwrap());
        prop_assert_eq!(backend_key(&built), Ok((5, &key[..])));
        let built = body(|b| build::sasl_initial(b, "SCRAM-SHA-256", &key).unwrap());
        prop_assert_eq!(sasl_initial(&built), Ok(SaslInitial { mechanism: b"SCRAM-SHA-256", data: Some(&key) }));
        let built = body(|b| build::negotiate_version(b, 3 << 16, &[&one, &two]).unwrap());
        prop_assert_eq!(negotiate_version(&built), Ok((3 << 16, 2)));
    }
}
