//! A: proving who one is.

use switchyard_tests::raw::messages as m;

use super::Case;
use super::scram::Exchange;
use super::side::{OTHER_PASSWORD, OTHER_USER, PASSWORD, Side, USER, listen};

fn right() -> Exchange {
    Exchange::right(USER, PASSWORD)
}

fn scram(name: &str, exchange: Exchange) -> Case {
    Case::new("A1", name, move |side| exchange.play(side))
}

/// Bytes that do not come as a password message in time for one.
fn in_place_of_a_password(bytes: Vec<u8>) -> impl Fn(&Side) -> Vec<String> {
    move |side| {
        let mut raw = side.open();
        raw.send(&m::startup(&[("user", USER), ("database", "crm")]));
        raw.read();
        raw.send(&bytes);
        raw.half_close();
        listen(&mut raw)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let wrong_nonce = |last: String| last.replacen("r=", "r=x", 1);
    let short_nonce = |last: String| last.replacen(super::scram::NONCE, "", 1);
    let mut cases = vec![
        scram("the right password", right()),
        scram("a wrong password", Exchange { password: "wrong", ..right() }),
        scram("an empty password", Exchange { password: "", ..right() }),
        scram("another nonce in the answer", Exchange { last: wrong_nonce, ..right() }),
        scram("half a nonce in the answer", Exchange { last: short_nonce, ..right() }),
        scram("another channel binding in the answer", Exchange { binding: "eSws", ..right() }),
        scram("nonsense for channel binding in the answer", Exchange { binding: "????", ..right() }),
        scram(
            "no proof",
            Exchange { last: |l| l.split(",p=").next().unwrap_or_default().to_owned(), ..right() },
        ),
        scram(
            "a short proof",
            Exchange {
                last: |l| l.split(",p=").next().unwrap_or_default().to_owned() + ",p=AAAA",
                ..right()
            },
        ),
        scram(
            "a proof that is not base64",
            Exchange {
                last: |l| l.split(",p=").next().unwrap_or_default().to_owned() + ",p=!!!!",
                ..right()
            },
        ),
        scram("something behind the proof", Exchange { last: |l| l + ",x=y", ..right() }),
        scram(
            "an extension in front of the proof",
            Exchange { last: |l| l.replacen(",p=", ",x=y,p=", 1), ..right() },
        ),
        scram(
            "no channel binding in the answer",
            Exchange { last: |l| l.replacen("c=biws,", "", 1), ..right() },
        ),
        scram("an empty answer", Exchange { last: |_| String::new(), ..right() }),
        scram(
            "another message in place of the answer",
            Exchange { instead: Some(|| m::query("SELECT 1")), ..right() },
        ),
        scram(
            "goodbye in place of the answer",
            Exchange { instead: Some(|| m::frame(b'X', &[])), ..right() },
        ),
        scram(
            "an answer of 2000 bytes",
            Exchange { last: |l| l.replacen(",p=", &format!(",x={},p=", "y".repeat(2000)), 1), ..right() },
        ),
        scram("the first message later", Exchange { first: None, ..right() }),
        scram(
            "`y` where nothing can be bound to",
            Exchange { first: Some("y,,n=,r=rOprNGfwEbeRWgbNEkqO"), binding: "eSws", ..right() },
        ),
        scram(
            "a user name, which does not count",
            Exchange { first: Some("n,,n=bob,r=rOprNGfwEbeRWgbNEkqO"), ..right() },
        ),
        scram(
            "an extension nobody knows",
            Exchange { first: Some("n,,n=,r=rOprNGfwEbeRWgbNEkqO,x=y"), ..right() },
        ),
    ];
    for first in [
        "n,a=bob,n=,r=rOprNGfwEbeRWgbNEkqO",
        "n,x=bob,n=,r=rOprNGfwEbeRWgbNEkqO",
        "n,,m=must,n=,r=rOprNGfwEbeRWgbNEkqO",
        "p=tls-server-end-point,,n=,r=rOprNGfwEbeRWgbNEkqO",
        "p=tls-unique,,n=,r=rOprNGfwEbeRWgbNEkqO",
        "q,,n=,r=rOprNGfwEbeRWgbNEkqO",
        "n;,n=,r=rOprNGfwEbeRWgbNEkqO",
        "n,,r=rOprNGfwEbeRWgbNEkqO",
        "n,,n=",
        "n,,n=,r=",
        "n,,n=,r=nonce\u{7f}",
        "n,,n=,r=with space",
        "n,,n=,x=y",
        "n,,n=,r=rOprNGfwEbeRWgbNEkqO,junk",
        "n,,n",
        "n,,",
        "n,",
        "n",
        "",
        "n,,n=\0,r=rOprNGfwEbeRWgbNEkqO",
    ] {
        cases.push(scram(&format!("a first message {first:?}"), Exchange { first: Some(first), ..right() }));
    }
    for mechanism in ["SCRAM-SHA-1", "SCRAM-SHA-256-PLUS", "PLAIN", "OAUTHBEARER", ""] {
        cases.push(scram(&format!("mechanism {mechanism:?}"), Exchange { mechanism, ..right() }));
    }
    for (name, user, password) in [
        ("a password that SASLprep changes", OTHER_USER, OTHER_PASSWORD),
        ("the same, as SASLprep has it", OTHER_USER, "paß fin é"),
    ] {
        cases.push(Case::new("A1", name, move |side| {
            let refused = side.target().user(user).password(password).try_connect().err();
            vec![refused.map_or("in".to_owned(), |r| r.sqlstate().to_owned())]
        }));
    }
    let bound = Exchange { tls: true, ..right() };
    cases.extend([
        Case::new("A2", "what is offered under TLS, and used without binding", {
            let exchange = bound.clone();
            move |side| exchange.play(side)
        })
        .tls(),
        Case::new("A2", "bound to the certificate", |side: &Side| {
            let mut raw = side.open_tls();
            raw.send(&m::startup(&[("user", USER), ("database", "crm")]));
            vec![format!("{:?}", raw.authenticate(USER, Some(PASSWORD), true))]
        })
        .tls(),
    ]);
    for (name, exchange) in [
        ("a downgrade", Exchange { first: Some("y,,n=,r=rOprNGfwEbeRWgbNEkqO"), ..bound.clone() }),
        ("PLUS without binding", Exchange { mechanism: "SCRAM-SHA-256-PLUS", ..bound.clone() }),
        (
            "binding without PLUS",
            Exchange { first: Some("p=tls-server-end-point,,n=,r=rOprNGfwEbeRWgbNEkqO"), ..bound.clone() },
        ),
        (
            "another kind of binding",
            Exchange {
                mechanism: "SCRAM-SHA-256-PLUS",
                first: Some("p=tls-unique,,n=,r=rOprNGfwEbeRWgbNEkqO"),
                ..bound.clone()
            },
        ),
        (
            "bound to another certificate",
            Exchange {
                mechanism: "SCRAM-SHA-256-PLUS",
                first: Some("p=tls-server-end-point,,n=,r=rOprNGfwEbeRWgbNEkqO"),
                binding: "cD10bHMtc2VydmVyLWVuZC1wb2ludCwsAAAA",
                ..bound
            },
        ),
    ] {
        cases.push(Case::new("A2", name, move |side| exchange.play(side)).tls());
    }
    for (name, bytes) in [
        ("a query in place of a password", m::query("SELECT 1")),
        ("an unknown message in place of a password", m::frame(b'!', b"")),
        ("another startup packet in place of a password", m::startup(&[("user", USER)])),
        ("a cancel request in place of a password", m::cancel_request(&[0; 8])),
        ("goodbye in place of a password", m::frame(b'X', &[])),
        ("nothing in place of a password", Vec::new()),
        ("half a password", m::frame(b'p', b"SCRAM-SHA-256\0")[..9].to_vec()),
        ("an empty password message", m::frame(b'p', b"")),
        ("a plain password where SCRAM is asked", m::frame(b'p', b"wonder-land\0")),
        ("an initial response shorter than it says", m::frame(b'p', b"SCRAM-SHA-256\0\0\0\0\x7fn,,")),
        ("an initial response longer than it says", m::frame(b'p', b"SCRAM-SHA-256\0\0\0\0\x01n,,n=,r=x")),
        ("an initial response of length -2", m::frame(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xfe")),
        ("a password message of a gigabyte", [&b"p"[..], &0x3fff_ffff_u32.to_be_bytes(), b"x"].concat()),
        ("a password message of length 3", vec![b'p', 0, 0, 0, 3]),
        ("a password message of length -1", vec![b'p', 0xff, 0xff, 0xff, 0xff]),
    ] {
        cases.push(Case::new("A8", name, in_place_of_a_password(bytes)));
    }
    for (name, user, password) in
        [("a wrong password", USER, "wrong"), ("a user that there is not", "nobody", "wrong")]
    {
        cases.push(Case::new("A8", name, move |side| Exchange { user, password, ..right() }.play(side)));
    }
    cases
}
