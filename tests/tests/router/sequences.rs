//! `currval` and `lastval`: a session's own value, or PostgreSQL's error, and nobody else's value.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Running, Setup};

const NEXT: &str = "SELECT nextval('scratch.numbers')";
/// There is no such value in this session.
const NONE: &str = "55000";

fn start() -> Running {
    let sql = "CREATE SEQUENCE scratch.numbers; GRANT ALL ON SEQUENCE scratch.numbers TO app;
        CREATE FUNCTION scratch.newest() RETURNS bigint LANGUAGE sql AS 'SELECT lastval()'";
    Setup::new().shards(1).pool("size = 1").tenants(["acme", "globex"]).sql(sql).start()
}

/// What the last of these messages is answered with: a value, or an SQLSTATE.
fn answer(session: &mut Raw, messages: &[Vec<u8>]) -> String {
    let mut last = String::new();
    for message in messages {
        let answer = session.round(message);
        let told = answer.iter().rev().find_map(|m| match m.tag {
            b'D' => m.values()[0].clone(),
            b'E' => Some(m.sqlstate()),
            _ => None,
        });
        last = told.unwrap_or_default();
    }
    last
}

#[test]
fn nobody_finds_the_last_value_of_another_session() {
    let named = |sql: &str| {
        vec![[m::parse("n", sql), m::sync()].concat(), {
            [m::bind("", "n", &[]), m::execute("", 0), m::sync()].concat()
        }]
    };
    let ways: [(&str, Vec<Vec<u8>>); 8] = [
        ("lastval", vec![m::query("SELECT lastval()")]),
        ("currval", vec![m::query("SELECT currval('scratch.numbers')")]),
        ("the extended protocol", vec![m::extended("SELECT lastval()", &[])]),
        ("a named statement", named("SELECT pg_catalog.lastval()")),
        ("PREPARE", vec![m::query("PREPARE p AS SELECT lastval()"), m::query("EXECUTE p")]),
        ("a transaction", vec![m::query("BEGIN"), m::query("SELECT lastval()")]),
        ("a transaction in one message", vec![m::query("BEGIN; SELECT lastval()")]),
        ("a function", vec![m::query("SELECT scratch.newest()")]),
    ];
    for (way, messages) in ways {
        // Nobody has asked before, and the router does not know that anybody will.
        let s = start();
        for tenant in ["acme", "acme", "globex"] {
            let mut other = s.login("acme");
            other.rows(NEXT);
            assert_eq!(answer(&mut s.login(tenant), &messages), NONE, "{way}, for {tenant}");
            // One that has values of its own, from before the other's.
            let mut session = s.login(tenant);
            let own = session.value(NEXT);
            other.rows(NEXT);
            let found = answer(&mut session, &messages);
            assert!([&own, NONE].contains(&found.as_str()), "{way}, for {tenant}: {found} for {own}");
        }
    }
}

#[test]
fn a_transaction_finds_its_own_last_value() {
    let s = start();
    let (mut one, mut two) = (s.login("acme"), s.login("acme"));
    for round in 0..3 {
        for session in [&mut one, &mut two] {
            session.rows("BEGIN");
            let own = session.value(NEXT);
            assert_eq!(session.value("SELECT lastval()"), own, "{round}");
            assert_eq!(session.value("SELECT currval('scratch.numbers')"), own, "{round}");
            session.rows("COMMIT");
            let both = session.rows(&format!("{NEXT}; SELECT lastval()"));
            assert_eq!(both[0], both[1], "{round}");
            // Sent together, they run one after the other on the same connection.
            session.send(&[m::query(NEXT), m::query("SELECT lastval()")].concat());
            let values: Vec<_> = (0..2).map(|_| session.until_ready()).collect();
            let value = |n: usize| values[n].iter().find(|m| m.tag == b'D').map(m::Message::values);
            assert!(value(0).is_some() && value(0) == value(1), "{round}: {values:?}");
        }
        // Once somebody has asked, nobody finds another's in the middle of a transaction either.
        one.rows("BEGIN; SELECT 1");
        assert_eq!(answer(&mut one, &[m::query("SELECT lastval()")]), NONE);
        one.rows("ROLLBACK");
    }
}
