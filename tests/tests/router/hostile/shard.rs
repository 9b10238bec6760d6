//! A shard that does not keep to the protocol. Nobody but its own client notices, and what it says
//! out of turn reaches no client at all.

use std::io;

use switchyard_tests::fake::{
    FakeShard, Peer, complete, data, done, error, parsed_text, ready, row, welcome,
};
use switchyard_tests::raw::messages::{frame, strings};
use switchyard_tests::setup::{PASSWORD, user_toml};
use switchyard_tests::{Raw, Router, wait};

/// What would betray one tenant's row to another.
const CANARY: &str = "a row of acme";

/// A router in front of `evil`, where acme and globex live, and a shard that keeps to the protocol,
/// where initech does.
struct Stand {
    router: Router,
    evil: FakeShard,
    _good: FakeShard,
}

impl Stand {
    fn start(behave: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::with("sslmode=disable", behave)
    }

    fn with(ssl: &str, behave: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let evil = FakeShard::start(behave);
        let good = FakeShard::start(|peer| {
            peer.let_in()?;
            peer.serve(|_| [row("good"), ready()].concat())
        });
        let shard = |name: &str, fake: &FakeShard, ssl: &str| {
            format!(
                "[[shards]]\nname = \"{name}\"\nurl = \"postgres://app:app-secret@127.0.0.1:{}/crm?{ssl}\"\n",
                fake.address().port()
            )
        };
        let tenant = |id: &str, shard: &str| format!("[[tenants]]\nid = \"{id}\"\nshard = \"{shard}\"\n");
        let toml = [
            "[router]\n[pool]\nsize = 1\nconnect_timeout = \"2s\"\nqueue_timeout = \"4s\"\n".to_owned(),
            "[context.variables]\n\"app.tenant_id\" = \"{tenant}\"\n".to_owned(),
            shard("evil", &evil, ssl),
            shard("good", &good, "sslmode=disable"),
            tenant("acme", "evil"),
            tenant("globex", "evil"),
            tenant("initech", "good"),
            user_toml("app", PASSWORD, "tenants = \"*\""),
        ];
        Self { router: Router::start(&toml.concat()), evil, _good: good }
    }

    fn target(&self, tenant: &str) -> switchyard_tests::Target {
        self.router.target().user(&format!("app.{tenant}")).password(PASSWORD).database("crm")
    }

    /// Whoever is on another shard is served.
    fn others_are_served(&self) {
        assert_eq!(self.target("initech").connect().value("SELECT 1"), "good");
    }
}

/// Refuses whatever `behave` does at login: the client hears of it, within time.
#[track_caller]
fn refused_at_login(what: &str, behave: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static) {
    let s = Stand::start(behave);
    match s.target("acme").try_connect() {
        Err(refused) => assert!(!format!("{refused:?}").contains("app-secret"), "{what}: {refused:?}"),
        Ok(mut session) => {
            let said = session.try_rows("SELECT 1");
            assert!(said.is_err(), "{what}: {said:?}");
        }
    }
    s.others_are_served();
}

#[test]
fn nonsense_at_login() {
    let after_startup = |bytes: Vec<u8>| {
        move |peer: &mut Peer| {
            peer.packet()?;
            peer.send(&bytes)?;
            peer.until_gone();
            Ok(())
        }
    };
    let declared = |tag: u8, len: u32| [&[tag][..], &len.to_be_bytes(), b"xxxx"].concat();
    for (what, bytes) in [
        ("noise", (0..2000_u32).map(|n| ((n * 7919) >> 3) as u8).collect()),
        ("a request for a method nobody has", frame(b'R', &[0, 0, 0, 99])),
        ("a short request", frame(b'R', &[0, 0])),
        ("an empty request", frame(b'R', &[])),
        ("an error without fields", frame(b'E', &[0])),
        ("an error that does not end", frame(b'E', b"SFATAL")),
        ("an empty error", frame(b'E', &[])),
        ("ReadyForQuery before all", ready()),
        ("a row before all", data(CANARY)),
        ("a length of 3", declared(b'R', 3)),
        ("a length of 0", declared(b'R', 0)),
        ("a length of a gigabyte", declared(b'R', 1 << 30)),
        ("a length of -1", declared(b'S', u32::MAX)),
        ("an open transaction", [frame(b'R', &[0; 4]), frame(b'Z', b"T")].concat()),
        ("a parameter of a megabyte", {
            [frame(b'R', &[0; 4]), frame(b'S', &strings(&["x", &"y".repeat(1 << 20)])), ready()].concat()
        }),
        ("a parameter without a value", [frame(b'R', &[0; 4]), frame(b'S', b"x"), ready()].concat()),
        ("a row behind ReadyForQuery", [welcome(), data(CANARY)].concat()),
        ("two ReadyForQuery", [welcome(), ready()].concat()),
    ] {
        refused_at_login(what, after_startup(bytes));
    }
    refused_at_login("nothing", |peer| {
        peer.packet()?;
        peer.until_gone();
        Ok(())
    });
    refused_at_login("notices without end", |peer| {
        peer.packet()?;
        let notice = frame(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0");
        loop {
            peer.send(&notice)?;
        }
    });
}

#[test]
fn backend_keys_of_every_size() {
    for (size, good) in
        [(0, false), (3, false), (4, true), (32, true), (256, true), (257, false), (300, false)]
    {
        let s = Stand::start(move |peer| {
            peer.packet()?;
            let key = frame(b'K', &[&[0, 0, 0, 7][..], &vec![1; size]].concat());
            peer.send(&[frame(b'R', &[0; 4]), key, ready()].concat())?;
            peer.serve(|_| [row("here"), ready()].concat())
        });
        let served = s.target("acme").try_connect().is_ok_and(|mut c| c.try_rows("SELECT 1").is_ok());
        assert_eq!(served, good, "{size} bytes");
        s.others_are_served();
    }
}

/// Asks for SCRAM, and answers the client's first message.
fn scram(challenge: impl Fn(&str) -> String + Send + Sync + 'static) -> impl Fn(&mut Peer) -> io::Result<()> {
    move |peer| {
        peer.packet()?;
        peer.send(&frame(b'R', &[&[0, 0, 0, 10][..], b"SCRAM-SHA-256\0\0"].concat()))?;
        let (_, body) = peer.message()?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let nonce = text.rsplit("r=").next().unwrap_or_default().to_owned();
        peer.send(&frame(b'R', &[&[0, 0, 0, 11][..], challenge(&nonce).as_bytes()].concat()))?;
        let _ = peer.message()?;
        // Whatever it was: "you are in", without having shown to know the password.
        peer.send(&frame(
            b'R',
            &[&[0, 0, 0, 12][..], b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="].concat(),
        ))?;
        peer.send(&welcome())?;
        peer.serve(|_| [row("in"), ready()].concat())
    }
}

#[test]
fn iterations_without_end() {
    let begin = std::time::Instant::now();
    for count in ["2147483647", "4294967296", "100001", "0", "-1", "many"] {
        refused_at_login(count, scram(move |nonce| format!("r={nonce}server,s=c2FsdHNhbHQ=,i={count}")));
    }
    // Nobody has computed two thousand million hashes.
    assert!(begin.elapsed() < wait::DEADLINE);
}

#[test]
fn a_server_that_does_not_know_the_password() {
    refused_at_login("an impostor", scram(|nonce| format!("r={nonce}server,s=c2FsdHNhbHQ=,i=4096")));
    refused_at_login("another nonce", scram(|_| "r=another,s=c2FsdHNhbHQ=,i=4096".to_owned()));
    refused_at_login("no more nonce", scram(|nonce| format!("r={nonce},s=c2FsdHNhbHQ=,i=4096")));
    refused_at_login("a long nonce", scram(|nonce| format!("r={nonce}{},s=c2Fs,i=4096", "n".repeat(60_000))));
    refused_at_login("no salt", scram(|nonce| format!("r={nonce}server,s=,i=4096")));
    refused_at_login("nothing", scram(|_| String::new()));
}

#[test]
fn mechanisms_that_nobody_has() {
    for mechanisms in
        [&b"SCRAM-SHA-1\0PLAIN\0\0"[..], b"\0", b"SCRAM-SHA-256-PLUS\0\0", b"SCRAM-SHA-256", b""]
    {
        refused_at_login(&mechanisms.escape_ascii().to_string(), move |peer| {
            peer.packet()?;
            peer.send(&frame(b'R', &[&[0, 0, 0, 10][..], mechanisms].concat()))?;
            // A router that chose one of these would send its password's proof now.
            if peer.message().is_ok() {
                peer.send(&welcome())?;
                peer.serve(|_| [row("in"), ready()].concat())?;
            }
            Ok(())
        });
    }
    // Nor does it give its password away where anybody could read it.
    refused_at_login("a plain password without tls", |peer| {
        peer.packet()?;
        peer.send(&frame(b'R', &[0, 0, 0, 3]))?;
        if peer.message().is_ok() {
            peer.send(&welcome())?;
            peer.serve(|_| [row("in"), ready()].concat())?;
        }
        Ok(())
    });
}

#[test]
fn bytes_behind_the_answer_to_ssl_request() {
    for stuffing in [welcome(), frame(b'R', &[0; 4]), b"x".to_vec()] {
        for mode in ["require", "prefer"] {
            let stuffing = stuffing.clone();
            let s = Stand::with(&format!("sslmode={mode}"), move |peer| {
                peer.packet()?;
                peer.send(&[&b"S"[..], &stuffing].concat())?;
                peer.until_gone();
                Ok(())
            });
            // With `prefer` it may come back in plain text, and gets `S` for an answer to its startup packet.
            assert!(s.target("acme").try_connect().is_err(), "{mode}");
            s.others_are_served();
        }
    }
}

/// What acme's query is answered with; then globex comes, over the same pool of one.
#[track_caller]
fn then_another(what: &str, answer: &[u8], look: impl Fn(&str, &mut Raw)) {
    let bytes = answer.to_vec();
    let s = Stand::start(move |peer| {
        peer.let_in()?;
        let bytes = bytes.clone();
        peer.serve(move |sql| match sql {
            "SELECT 'bad'" => bytes.clone(),
            _ => [row("honest"), ready()].concat(),
        })
    });
    let mut acme = s.target("acme").connect();
    assert_eq!(acme.value("SELECT 1"), "honest");
    acme.send(&switchyard_tests::raw::messages::query("SELECT 'bad'"));
    look(what, &mut acme);
    let mut globex = s.target("globex").connect();
    for _ in 0..3 {
        globex.send(&switchyard_tests::raw::messages::query("SELECT 2"));
        let messages = globex.until_ready();
        let seen: Vec<_> = messages.iter().filter(|m| m.tag == b'D').map(|m| m.values()).collect();
        assert_eq!(seen, [[Some("honest".to_owned())]], "{what}");
        assert_eq!(messages.len(), 4, "{what}: {messages:?}");
    }
    s.others_are_served();
}

/// It hears of it by an error, or by the end.
fn fails(what: &str, acme: &mut Raw) {
    let messages = acme.until_ready_or_end();
    let ended = messages.last().is_none_or(|m| m.tag != b'Z');
    assert!(ended || messages.iter().any(|m| m.tag == b'E'), "{what}: {messages:?}");
}

#[test]
fn nonsense_in_place_of_an_answer() {
    let declared = |tag: u8, len: u32| [&[tag][..], &len.to_be_bytes(), b"xxxx"].concat();
    let fine = || [row("fine"), ready()].concat();
    for (what, answer) in [
        ("an unknown type", [frame(b'!', b"what"), fine()].concat()),
        ("a request for a password", [frame(b'R', &[0, 0, 0, 3]), fine()].concat()),
        ("another key", [frame(b'K', &[0; 8]), fine()].concat()),
        ("a length of 3", declared(b'D', 3)),
        ("a length of 0", declared(b'D', 0)),
        ("a length of 2 GiB", declared(b'D', 1 << 31)),
        ("a status that is none", [row("x"), frame(b'Z', b"?")].concat()),
        ("a status that is empty", [row("x"), frame(b'Z', &[])].concat()),
        ("a status that is long", [row("x"), frame(b'Z', b"II")].concat()),
        ("BindComplete for a Query", [frame(b'2', &[]), fine()].concat()),
        ("ParseComplete for a Query", [frame(b'1', &[]), fine()].concat()),
        ("CloseComplete for a Query", [frame(b'3', &[]), fine()].concat()),
    ] {
        then_another(what, &answer, fails);
    }
}

#[test]
fn more_than_was_asked_for() {
    let answer = |rest: Vec<u8>| [row("fine"), ready(), rest].concat();
    for (what, rest) in [
        ("a row", data(CANARY)),
        ("a whole answer", [row(CANARY), ready()].concat()),
        ("ReadyForQuery", ready()),
        ("half a row", data(CANARY)[..9].to_vec()),
        ("a description", row(CANARY)),
        ("an error", error("ERROR", "XX000", CANARY)),
        ("the end", error("FATAL", "57P01", "terminating connection due to administrator command")),
        ("a notification", frame(b'A', &[&[0, 0, 0, 1][..], &strings(&["channel", CANARY])].concat())),
    ] {
        then_another(what, &answer(rest), |what, acme| {
            let messages = acme.until_ready_or_end();
            // Its own answer may have come through before the rest did.
            assert!(messages.iter().all(|m| m.tag != b'A'), "{what}: {messages:?}");
        });
    }
}

#[test]
fn errors_of_every_shape() {
    for (what, answer) in [
        ("without fields", [frame(b'E', &[0]), ready()].concat()),
        ("without a terminator", [frame(b'E', b"SERROR\0CXX000\0Mx"), ready()].concat()),
        ("empty", [frame(b'E', &[]), ready()].concat()),
        ("without a code", [frame(b'E', b"SERROR\0VERROR\0Mx\0\0"), ready()].concat()),
        ("of a megabyte", [error("ERROR", "XX000", &"x".repeat(1 << 20)), ready()].concat()),
        ("with a short code", [error("ERROR", "X", "x"), ready()].concat()),
        ("twice", [error("ERROR", "XX000", "x"), error("ERROR", "XX000", "x"), ready()].concat()),
        ("of the greatest severity", [error("PANIC", "XX000", "x"), ready()].concat()),
    ] {
        then_another(what, &answer, fails);
    }
}

#[test]
fn odd_things_that_a_client_may_be_told() {
    let column = |n: u8| frame(b'T', &[&[0, n][..], &strings(&["a"]), &[0; 18]].concat());
    for (what, answer) in [
        ("a parameter of a megabyte", {
            [frame(b'S', &strings(&["x", &"y".repeat(1 << 20)])), row("x"), ready()].concat()
        }),
        ("a parameter without a value", [frame(b'S', b"x"), row("x"), ready()].concat()),
        ("a description of other columns", [column(9), data("x"), complete("SELECT 1"), ready()].concat()),
        ("a row that is none", [frame(b'D', b"\xff\xff"), complete("SELECT 1"), ready()].concat()),
        ("a completion without end", [frame(b'C', b"SELECT 1"), ready()].concat()),
        ("a notice without fields", [frame(b'N', &[0]), row("x"), ready()].concat()),
        ("ten thousand notices", [frame(b'N', b"SNOTICE\0\0").repeat(10_000), row("x"), ready()].concat()),
    ] {
        // It is the client's own shard that says so: what counts is that nobody else is told.
        then_another(what, &answer, |_, acme| {
            acme.until_ready_or_end();
        });
    }
}

/// A shard that has not committed the tenant's context has not set it: nobody is shown what it answers then.
#[test]
fn a_context_that_is_not_committed() {
    for (what, instead) in [
        ("rolled back", complete("ROLLBACK")),
        ("nothing of the kind", complete("SELECT 1")),
        ("without an end", frame(b'C', b"COMMIT")),
        ("an empty query", frame(b'I', &[])),
        ("one that goes on", frame(b's', &[])),
    ] {
        let s = Stand::start(move |peer| {
            peer.let_in()?;
            let committed = |sql: &str| if sql == "COMMIT" { instead.clone() } else { done(sql) };
            peer.serve_by(|_| [row(CANARY), ready()].concat(), committed)
        });
        let mut acme = s.target("acme").connect();
        acme.send(&switchyard_tests::raw::messages::query("SELECT 1"));
        let messages = acme.until_ready_or_end();
        assert!(messages.iter().all(|m| m.tag != b'D'), "{what}: {messages:?}");
        assert!(messages.iter().any(|m| m.tag == b'E'), "{what}: {messages:?}");
        s.others_are_served();
    }
}

#[test]
fn notices_without_end() {
    let s = Stand::start(|peer| {
        peer.let_in()?;
        let mut parsed = String::new();
        loop {
            let (tag, body) = peer.message()?;
            if tag == b'P' {
                parsed = parsed_text(&body);
            }
            match tag {
                b'Q' if body.starts_with(b"SELECT 'bad'") => loop {
                    peer.send(&frame(b'N', &[&b"SNOTICE\0VNOTICE\0M"[..], &[b'x'; 5000], b"\0\0"].concat()))?;
                },
                b'Q' => peer.send(&[row("honest"), ready()].concat())?,
                b'P' => peer.send(&frame(b'1', &[]))?,
                b'B' => peer.send(&frame(b'2', &[]))?,
                b'E' => peer.send(&done(&parsed))?,
                b'C' => peer.send(&frame(b'3', &[]))?,
                b'F' => peer.send(&[frame(b'V', &[0xff; 4]), ready()].concat())?,
                b'S' => peer.send(&ready())?,
                _ => {}
            }
        }
    });
    let before = s.router.resident_bytes();
    let mut acme = s.target("acme").connect();
    acme.send(&switchyard_tests::raw::messages::query("SELECT 'bad'"));
    // Some are read, then none: the router does not hold what the client does not take.
    for _ in 0..500 {
        acme.read();
    }
    for _ in 0..20 {
        s.others_are_served();
    }
    let grown = s.router.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
    drop(acme);
    let served = || s.target("globex").try_connect().is_ok_and(|mut c| c.try_rows("SELECT 1").is_ok());
    wait::until_true("the next to be served", served);
    assert!(s.evil.accepted() > 1);
}
