//! Prepared statements over connections that change hands, with PostgreSQL's own errors.

use switchyard_tests::raw::differential::{Step, round};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Setup};

fn setup() -> Setup {
    Setup::new().shards(1).tenants(["acme", "globex"])
}

fn run(name: &str) -> Vec<u8> {
    [m::bind("", name, &[]), m::execute("", 0), m::sync()].concat()
}

#[track_caller]
fn values(raw: &mut Raw, bytes: &[u8]) -> Vec<Option<String>> {
    let messages = raw.round(bytes);
    if let Some(error) = messages.iter().find(|m| m.tag == b'E') {
        panic!("{error:?}");
    }
    messages.iter().filter(|m| m.tag == b'D').flat_map(m::Message::values).collect()
}

#[test]
fn a_named_statement_follows_its_session_over_all_servers() {
    let s = setup().pool("size = 3").start();
    let mut acme = s.login("acme");
    acme.round(
        &[
            m::parse("who", "SELECT pg_backend_pid() || ' ' || (SELECT name FROM clients WHERE id = 1)"),
            m::sync(),
        ]
        .concat(),
    );
    let mut holders: Vec<_> = (0..2).map(|_| s.login("globex")).collect();
    let mut pids = std::collections::BTreeSet::new();
    for round in 0..12 {
        // Takes connections away in changing order, so that another is left over each time.
        let holder = &mut holders[round % 2];
        let _ = holder.try_rows(if round % 4 < 2 { "BEGIN" } else { "COMMIT" });
        let answer = values(&mut acme, &run("who"))[0].clone().expect("a value");
        let (pid, name) = answer.split_once(' ').expect("two words");
        assert_eq!(name, "acme client 1");
        pids.insert(pid.to_owned());
    }
    assert!(!pids.is_empty());
}

#[test]
fn the_same_name_means_something_else_to_each_client() {
    let s = setup().pool("size = 1").start();
    let mut sessions: Vec<_> = (0..4).map(|n| s.login(["acme", "globex"][n % 2])).collect();
    for (n, session) in sessions.iter_mut().enumerate() {
        session.round(
            &[m::parse("s", &format!("SELECT {n}, name FROM clients WHERE id = 1")), m::sync()].concat(),
        );
    }
    for _ in 0..5 {
        for (n, session) in sessions.iter_mut().enumerate() {
            let expected = [Some(n.to_string()), Some(format!("{} client 1", ["acme", "globex"][n % 2]))];
            assert_eq!(values(session, &run("s")), expected);
        }
    }
}

/// Prepares on one session after the other, over one server connection, and runs what each has.
#[track_caller]
fn each_reads_it_its_own_way(sql: &str, settings: &[&str]) {
    let s = setup().pool("size = 1").sql("CREATE TABLE scratch.clients (id text)").start();
    let begin = |raw: &mut Raw, set: &str| {
        raw.rows(set);
        raw.round(&[m::parse("s", sql), m::sync()].concat());
    };
    let mut routed: Vec<_> = settings.iter().map(|_| s.login("acme")).collect();
    routed.iter_mut().zip(settings).for_each(|(raw, set)| begin(raw, set));
    for _ in 0..3 {
        for (raw, set) in routed.iter_mut().zip(settings) {
            let mut direct = s.direct("acme");
            begin(&mut direct, set);
            assert_eq!(values(raw, &run("s")), values(&mut direct, &run("s")), "{set}");
        }
    }
}

#[test]
fn a_text_is_another_statement_where_it_is_read_otherwise() {
    let sql = "SELECT extract(month FROM '02/03/2020'::date), extract(epoch FROM '2020-01-02 00:00'::timestamptz), \
        length('é'), length('a\\\\b')";
    let settings = [
        "SELECT 1",
        "SET DateStyle = 'SQL, DMY'",
        "SET TimeZone = 'Asia/Tokyo'",
        "SET client_encoding = 'LATIN1'",
        "SELECT set_config('standard_conforming_strings', 'off', false)",
        "DO $$ BEGIN PERFORM set_config('timezone', 'Asia/Tokyo', false); END $$",
        "SET TIME ZONE 'Asia/Tokyo'; SET DateStyle = 'SQL, DMY'",
    ];
    each_reads_it_its_own_way(sql, &settings);
}

#[test]
fn a_text_finds_what_the_search_path_of_its_session_has() {
    let sql = "SELECT relnamespace FROM pg_class WHERE oid = 'clients'::regclass";
    each_reads_it_its_own_way(
        sql,
        &["SELECT 1", "SET search_path TO scratch, public", "SET SCHEMA 'scratch'"],
    );
}

#[test]
fn a_constant_that_means_now_is_read_when_its_session_prepares_it() {
    let s = setup().pool("size = 1").start();
    let (mut first, mut second) = (s.login("acme"), s.login("acme"));
    let sql = "SELECT 'now'::timestamptz";
    let moments = [&mut first, &mut second].map(|raw| {
        raw.round(&[m::parse("s", sql), m::sync()].concat());
        values(raw, &run("s"))
    });
    assert_ne!(moments[0], moments[1]);
    assert_eq!(values(&mut first, &run("s")), moments[0]);
}

#[test]
fn a_statement_goes_on_after_its_settings_have_changed() {
    let s = setup().pool("size = 2").start();
    let (mut acme, mut other, mut holder) = (s.login("acme"), s.login("acme"), s.login("acme"));
    let sql = "SELECT extract(epoch FROM '2020-01-02 00:00'::timestamptz)";
    let prepared = |raw: &mut Raw| {
        raw.round(&[m::parse("s", sql), m::sync()].concat());
        let found = values(raw, &run("s"));
        raw.round(&[m::close(b'S', "s"), m::sync()].concat());
        found
    };
    let utc = prepared(&mut other);
    acme.round(&[m::parse("s", sql), m::sync()].concat());
    // On another connection it is prepared anew, under what is set by then; nobody else gets that.
    acme.rows("SET TimeZone = 'Asia/Tokyo'");
    for _ in 0..4 {
        holder.rows("BEGIN");
        values(&mut acme, &run("s"));
        assert_eq!(prepared(&mut other), utc);
        acme.rows("BEGIN");
        holder.rows("COMMIT");
        assert_eq!(prepared(&mut holder), utc);
        assert_eq!(prepared(&mut other), utc);
        acme.rows("COMMIT");
    }
}

#[test]
fn the_unnamed_statement_survives_a_sync() {
    let s = setup().pool("size = 1").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.round(&[m::parse("", "SELECT 'of acme'"), m::describe(b'S', ""), m::sync()].concat());
    globex.round(&m::extended("SELECT 'of globex'", &[]));
    assert_eq!(values(&mut acme, &run("")), [Some("of acme".to_owned())]);
    globex.rows("SELECT 1");
    globex.round(&[m::parse("", "SELECT 'again'"), m::sync()].concat());
    assert_eq!(values(&mut acme, &run("")), [Some("of acme".to_owned())]);
    assert_eq!(values(&mut globex, &run("")), [Some("again".to_owned())]);
}

#[test]
fn scripts_behave_as_with_postgresql() {
    let s = setup().start();
    let parse = |name: &str, sql: &str| [m::parse(name, sql), m::sync()].concat();
    let many = |parts: &[Vec<u8>]| parts.iter().flat_map(|p| round(p.clone())).collect::<Vec<Step>>();
    s.same_each(
        "acme",
        [
            ("an unknown statement", many(&[run("nope"), m::query("SELECT 1")])),
            ("Describe of an unknown statement", many(&[[m::describe(b'S', "nope"), m::sync()].concat()])),
            ("a name in use", many(&[parse("a", "SELECT 1"), parse("a", "SELECT 2"), run("a")])),
            (
                "a name in use in one batch",
                many(&[[m::parse("a", "SELECT 1"), m::parse("a", "SELECT 2"), m::sync()].concat(), run("a")]),
            ),
            (
                "Close and Parse in one batch",
                many(&[
                    parse("a", "SELECT 1"),
                    [
                        m::close(b'S', "a"),
                        m::parse("a", "SELECT 2"),
                        m::bind("", "a", &[]),
                        m::execute("", 0),
                        m::sync(),
                    ]
                    .concat(),
                    run("a"),
                ]),
            ),
            (
                "Close, then use",
                many(&[parse("a", "SELECT 1"), [m::close(b'S', "a"), m::sync()].concat(), run("a")]),
            ),
            ("Close of what is not", many(&[[m::close(b'S', "a"), m::close(b'P', "p"), m::sync()].concat()])),
            (
                "a failed Parse leaves no name",
                many(&[parse("a", "SELEC 1"), run("a"), parse("a", "SELECT 1"), run("a")]),
            ),
            ("a failed Parse of no table", many(&[parse("a", "SELECT * FROM nowhere"), run("a")])),
            (
                "a Parse skipped by an earlier error",
                many(&[
                    [
                        m::parse("", "SELECT 1/0"),
                        m::bind("", "", &[]),
                        m::execute("", 0),
                        m::parse("b", "SELECT 2"),
                        m::sync(),
                    ]
                    .concat(),
                    run("b"),
                    parse("b", "SELECT 3"),
                    run("b"),
                ]),
            ),
            (
                "a Close skipped by an earlier error",
                many(&[
                    parse("a", "SELECT 1"),
                    [m::bind("", "nope", &[]), m::close(b'S', "a"), m::sync()].concat(),
                    run("a"),
                ]),
            ),
            (
                "Parse in a transaction that rolls back",
                many(&[m::query("BEGIN"), parse("a", "SELECT 1"), m::query("ROLLBACK"), run("a")]),
            ),
            (
                "Parse in a failed transaction",
                many(&[
                    m::query("BEGIN"),
                    m::query("SELECT 1/0"),
                    parse("a", "SELECT 1"),
                    m::query("ROLLBACK"),
                    run("a"),
                ]),
            ),
            ("the unnamed one is replaced", many(&[parse("", "SELECT 1"), parse("", "SELECT 2"), run("")])),
            (
                "a failed Parse removes the unnamed one",
                many(&[parse("", "SELECT 1"), parse("", "SELEC 2"), run("")]),
            ),
            ("Query removes the unnamed one", many(&[parse("", "SELECT 1"), m::query("SELECT 2"), run("")])),
            (
                "Describe and parameters",
                many(&[
                    [m::parse("a", "SELECT $1::int + 1 AS x, $2::text"), m::describe(b'S', "a"), m::sync()]
                        .concat(),
                    [
                        m::bind("p", "a", &[Some(b"41"), None]),
                        m::describe(b'P', "p"),
                        m::execute("p", 0),
                        m::sync(),
                    ]
                    .concat(),
                ]),
            ),
            (
                "Describe of no rows",
                many(&[
                    [m::parse("a", "SET work_mem = '5MB'"), m::describe(b'S', "a"), m::sync()].concat(),
                    run("a"),
                ]),
            ),
            (
                "the empty statement",
                many(&[parse("a", ""), run("a"), [m::describe(b'S', "a"), m::sync()].concat()]),
            ),
            ("too many parameters", many(&[parse("a", "SELECT $1::int"), run("a")])),
            (
                "a bad parameter",
                many(&[
                    parse("a", "SELECT $1::int"),
                    [m::bind("", "a", &[Some(b"x")]), m::execute("", 0), m::sync()].concat(),
                    run("a"),
                ]),
            ),
            (
                "DISCARD ALL forgets",
                many(&[
                    parse("a", "SELECT 1"),
                    m::query("DISCARD ALL"),
                    run("a"),
                    parse("a", "SELECT 2"),
                    run("a"),
                ]),
            ),
            (
                "DEALLOCATE ALL forgets",
                many(&[
                    parse("a", "SELECT 1"),
                    m::query("DEALLOCATE ALL"),
                    run("a"),
                    parse("a", "SELECT 2"),
                    run("a"),
                ]),
            ),
            (
                "DEALLOCATE ALL by the extended protocol",
                many(&[
                    parse("a", "SELECT 1"),
                    m::query("BEGIN"),
                    m::query("SAVEPOINT s"),
                    m::query("ROLLBACK TO s"),
                    m::extended("DEALLOCATE ALL", &[]),
                    m::query("COMMIT"),
                    run("a"),
                    parse("a", "SELECT 2"),
                    m::extended("DEALLOCATE a", &[]),
                    run("a"),
                ]),
            ),
            (
                "DEALLOCATE ALL in a transaction",
                many(&[
                    m::query("BEGIN"),
                    parse("a", "SELECT 1"),
                    run("a"),
                    m::query("DEALLOCATE ALL"),
                    m::query("COMMIT"),
                    run("a"),
                    parse("a", "SELECT 2"),
                    run("a"),
                ]),
            ),
            (
                "statements in SQL",
                many(&[
                    m::query("PREPARE q AS SELECT 7"),
                    m::query("EXECUTE q"),
                    m::query("DEALLOCATE q"),
                    m::query("EXECUTE q"),
                ]),
            ),
            (
                "a changed table",
                many(&[
                    m::query("DROP TABLE IF EXISTS scratch.changed; CREATE TABLE scratch.changed (a int)"),
                    parse("a", "SELECT * FROM scratch.changed"),
                    run("a"),
                    m::query("ALTER TABLE scratch.changed ADD b int"),
                    [m::close(b'S', "a"), m::parse("a", "SELECT * FROM scratch.changed"), m::sync()].concat(),
                    run("a"),
                    m::query("DROP TABLE scratch.changed"),
                ]),
            ),
        ],
    );
}

#[test]
fn many_statements_of_one_client() {
    let s = setup().pool("size = 2\nstatements = 50").start();
    let mut acme = s.login("acme");
    for n in 0..700 {
        acme.round(&[m::parse(&format!("s{n}"), &format!("SELECT {n} + 0")), m::sync()].concat());
    }
    for n in (0..700).rev().step_by(3) {
        assert_eq!(values(&mut acme, &run(&format!("s{n}"))), [Some(n.to_string())]);
    }
    // Most of them within one batch, more than a server may keep.
    let batch: Vec<u8> = (0..200)
        .flat_map(|n| [m::bind("", &format!("s{n}"), &[]), m::execute("", 0)].concat())
        .chain(m::sync())
        .collect();
    let expected: Vec<_> = (0..200).map(|n| Some(n.to_string())).collect();
    assert_eq!(values(&mut acme, &batch), expected);
    let kept = s.router.metrics();
    drop(kept);
    let mut globex = s.login("globex");
    assert_eq!(globex.value("SELECT count(*) < 60 FROM pg_prepared_statements"), "t");
}

#[test]
fn statements_of_two_clients_on_one_server_never_mix() {
    let s = setup().pool("size = 1").start();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let s = &s;
            scope.spawn(move || {
                let tenant = ["acme", "globex"][n % 2];
                let mut session = s.login(tenant);
                session.round(
                    &[m::parse("s", &format!("SELECT name || ' {n}' FROM clients WHERE id = 2")), m::sync()]
                        .concat(),
                );
                for round in 0..50 {
                    assert_eq!(values(&mut session, &run("s")), [Some(format!("{tenant} client 2 {n}"))]);
                    let sql = format!("SELECT {}", n * 1000 + round);
                    assert_eq!(
                        values(&mut session, &m::extended(&sql, &[])),
                        [Some((n * 1000 + round).to_string())]
                    );
                }
            });
        }
    });
}

#[test]
fn a_table_that_changes_under_a_statement_is_not_noticed() {
    let s = setup()
        .pool("size = 2")
        .sql("CREATE TABLE scratch.wide (a int); GRANT ALL ON scratch.wide TO app")
        .start();
    let (mut one, mut two) = (s.login("acme"), s.login("acme"));
    let admin = |sql: &str| drop(s.shard_of("acme").sql(sql));
    admin("INSERT INTO scratch.wide VALUES (7)");
    for client in [&mut one, &mut two] {
        client.round(&[m::parse("w", "SELECT * FROM scratch.wide"), m::sync()].concat());
    }
    let run: Vec<u8> = [m::bind("", "w", &[]), m::describe(b'P', ""), m::execute("", 0), m::sync()].concat();
    let rows = |answer: &[m::Message]| -> Vec<_> {
        assert!(answer.iter().all(|m| m.tag != b'E'), "{answer:?}");
        answer.iter().filter(|m| m.tag == b'D').map(m::Message::values).collect()
    };
    assert_eq!(rows(&one.round(&run)), [vec![Some("7".to_owned())]]);
    for column in ["b", "c"] {
        admin(&format!("ALTER TABLE scratch.wide ADD COLUMN {column} int"));
        // On whichever connection, in one piece or in two.
        for client in [&mut one, &mut two] {
            let wide = rows(&client.round(&run));
            assert_eq!(wide[0].len(), if column == "b" { 2 } else { 3 });
            let (head, tail) = run.split_at(9);
            client.send(head);
            client.send(tail);
            assert_eq!(rows(&client.until_ready()), wide);
        }
    }
    // Described as a statement; in a transaction it is PostgreSQL's error, as nothing can be done.
    admin("ALTER TABLE scratch.wide DROP COLUMN b");
    let described = one.round(&[m::describe(b'S', "w"), m::sync()].concat());
    assert!(described.iter().any(|m| m.tag == b'T'), "{described:?}");
    // Prepared by a session of its own, where the connection has the old one.
    admin("ALTER TABLE scratch.wide ADD COLUMN d int");
    let prepare = [m::parse("x", "SELECT * FROM scratch.wide"), m::describe(b'S', "x"), m::sync()].concat();
    for _ in 0..2 {
        let tags: Vec<u8> = s.login("acme").round(&prepare).iter().map(|m| m.tag).collect();
        assert_eq!(tags, b"1tTZ");
    }
    admin("ALTER TABLE scratch.wide ADD COLUMN e int");
    two.rows("BEGIN");
    assert!(two.round(&run).iter().any(|m| m.sqlstate() == "0A000"));
    two.rows("ROLLBACK");
    assert_eq!(rows(&two.round(&run))[0].len(), 4);
}
