//! Q: queries, prepared statements, pipelines.

use switchyard_tests::raw::differential::{Step, round};
use switchyard_tests::raw::messages as m;

use super::Case;
use super::side::{queries, session};

fn rounds(parts: &[Vec<u8>]) -> Vec<Step> {
    parts.iter().flat_map(|p| round(p.clone())).collect()
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    [m::parse(name, sql), m::sync()].concat()
}

fn run(name: &str) -> Vec<u8> {
    [m::bind("", name, &[]), m::execute("", 0), m::sync()].concat()
}

fn describe(kind: u8, name: &str) -> Vec<u8> {
    [m::describe(kind, name), m::sync()].concat()
}

/// `FunctionCall` with text arguments, asking for text.
fn call(oid: u32, arguments: &[&[u8]]) -> Vec<u8> {
    let mut body = oid.to_be_bytes().to_vec();
    body.extend([0, 0]);
    body.extend((arguments.len() as u16).to_be_bytes());
    for argument in arguments {
        body.extend((argument.len() as u32).to_be_bytes());
        body.extend(*argument);
    }
    body.extend([0, 0]);
    m::frame(b'F', &body)
}

/// `Parse` with the types of the parameters.
fn typed(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let mut body = m::strings(&[name, sql]);
    body.extend((types.len() as u16).to_be_bytes());
    types.iter().for_each(|t| body.extend(t.to_be_bytes()));
    m::frame(b'P', &body)
}

/// `Bind` with format codes, of parameters and of results.
fn formats(statement: &str, of_params: &[u16], params: &[&[u8]], of_results: &[u16]) -> Vec<u8> {
    let mut body = m::strings(&["", statement]);
    body.extend((of_params.len() as u16).to_be_bytes());
    of_params.iter().for_each(|f| body.extend(f.to_be_bytes()));
    body.extend((params.len() as u16).to_be_bytes());
    for param in params {
        body.extend((param.len() as u32).to_be_bytes());
        body.extend(*param);
    }
    body.extend((of_results.len() as u16).to_be_bytes());
    of_results.iter().for_each(|f| body.extend(f.to_be_bytes()));
    m::frame(b'B', &body)
}

/// Numbers, so that how they are shown is no part of it.
const CONSTANTS: &str = "SELECT extract(month FROM '02/03/2020'::date), \
    extract(epoch FROM '2020-01-02 00:00'::timestamptz), length('a\\\\b')";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new(
            "Q1",
            "types of parameters belong to a statement",
            session(rounds(&[
                [typed("a", "SELECT $1", &[25]), m::describe(b'S', "a"), m::sync()].concat(),
                [typed("b", "SELECT $1", &[23]), m::describe(b'S', "b"), m::sync()].concat(),
                [m::parse("c", "SELECT $1"), m::describe(b'S', "c"), m::sync()].concat(),
            ])),
        ),
        Case::new(
            "Q1",
            "the same text under another search_path",
            session(rounds(&[
                m::query("CREATE TABLE scratch.here (a int); CREATE TEMP TABLE here (b text)"),
                parse("a", "SELECT * FROM here"),
                describe(b'S', "a"),
                m::query("SET search_path TO scratch, pg_temp"),
                parse("b", "SELECT * FROM here"),
                describe(b'S', "b"),
                m::query("DROP TABLE scratch.here"),
            ])),
        ),
        Case::new(
            "Q1",
            "types that are found by search_path",
            session(rounds(&[
                m::query("CREATE TABLE scratch.typed (a int); CREATE TEMP TABLE typed (a text)"),
                parse("a", "SELECT * FROM typed WHERE a = $1"),
                describe(b'S', "a"),
                m::query("SET search_path TO scratch, pg_temp"),
                parse("b", "SELECT * FROM typed WHERE a = $1"),
                describe(b'S', "b"),
                m::query("DROP TABLE scratch.typed"),
            ])),
        ),
        Case::new(
            "Q1",
            "constants that are read by settings",
            session(rounds(&[
                parse("a", CONSTANTS),
                run("a"),
                m::query("SET DateStyle = 'SQL, DMY'"),
                parse("b", CONSTANTS),
                run("b"),
                m::query("SET TimeZone = 'Asia/Tokyo'"),
                parse("c", CONSTANTS),
                run("c"),
                m::query("SET standard_conforming_strings = off"),
                parse("d", CONSTANTS),
                run("d"),
                m::query("RESET ALL"),
                parse("e", CONSTANTS),
                run("a"),
                run("b"),
                run("c"),
                run("d"),
                run("e"),
            ])),
        ),
        Case::new(
            "Q1",
            "constants that are read by settings of a transaction",
            session(rounds(&[
                parse("a", CONSTANTS),
                m::query("BEGIN"),
                m::query("SET LOCAL DateStyle = 'SQL, DMY'"),
                parse("b", CONSTANTS),
                run("b"),
                m::query("COMMIT"),
                run("b"),
                m::query("BEGIN; SELECT set_config('timezone', 'Asia/Tokyo', true)"),
                parse("c", CONSTANTS),
                m::query("SAVEPOINT s; SET DateStyle = 'SQL, DMY'"),
                parse("d", CONSTANTS),
                run("d"),
                m::query("ROLLBACK TO s"),
                parse("e", CONSTANTS),
                run("e"),
                m::query("COMMIT"),
                run("c"),
                parse("f", CONSTANTS),
                run("f"),
            ])),
        ),
        Case::new(
            "Q1",
            "a name of 5000 bytes",
            session(rounds(&[parse(&"n".repeat(5000), "SELECT 1"), run(&"n".repeat(5000))])),
        ),
        Case::new(
            "Q1",
            "names that differ after 63 bytes",
            session(rounds(&[parse(&"n".repeat(70), "SELECT 1"), run(&"n".repeat(69))])),
        )
        .deviates("names of statements", &["26000"]),
        Case::new(
            "Q1",
            "names that are not UTF-8 or ASCII",
            session(rounds(&[
                parse("é", "SELECT 1"),
                run("é"),
                [
                    m::frame(b'P', b"\xff\xfe\0SELECT 2\0\0\0"),
                    m::frame(b'B', b"\0\xff\xfe\0\0\0\0\0\0\0"),
                    m::sync(),
                ]
                .concat(),
            ])),
        )
        .deviates("names of statements", &["D \\x00\\x01\\x00\\x00\\x00\\x011", "1 ", "2 "]),
        Case::new(
            "Q1",
            "an unknown statement, then the session goes on",
            session(rounds(&[
                run("nope"),
                describe(b'S', "nope"),
                describe(b'P', "nope"),
                m::query("SELECT 1"),
            ])),
        ),
        Case::new(
            "Q1",
            "several names for one text",
            session(rounds(&[
                parse("a", "SELECT 1"),
                parse("b", "SELECT 1"),
                [m::close(b'S', "a"), m::sync()].concat(),
                run("b"),
                run("a"),
            ])),
        ),
        Case::new(
            "Q2",
            "PREPARE, EXECUTE, DEALLOCATE",
            session(queries(&[
                "PREPARE q (int) AS SELECT $1 + 1",
                "EXECUTE q (1)",
                "PREPARE q AS SELECT 2",
                "EXECUTE q (2); EXECUTE q (3)",
                "EXPLAIN (COSTS OFF) EXECUTE q (4)",
                "DEALLOCATE PREPARE q",
                "EXECUTE q (1)",
                "DEALLOCATE q",
                "DEALLOCATE ALL",
            ])),
        ),
        Case::new(
            "Q2",
            "a statement of the protocol in SQL, and the other way",
            session(rounds(&[
                parse("p", "SELECT 1"),
                m::query("DEALLOCATE p"),
                run("p"),
                m::query("PREPARE s AS SELECT 5"),
                run("s"),
                describe(b'S', "s"),
                [m::close(b'S', "s"), m::sync()].concat(),
                m::query("EXECUTE s"),
            ])),
        ),
        Case::new(
            "Q2",
            "DISCARD ALL and DEALLOCATE ALL",
            session(rounds(&[
                parse("p", "SELECT 1"),
                m::query("PREPARE s AS SELECT 5"),
                m::query("DEALLOCATE ALL"),
                run("p"),
                m::query("EXECUTE s"),
                parse("p", "SELECT 2"),
                m::query("DISCARD ALL"),
                run("p"),
                m::extended("DISCARD ALL", &[]),
            ])),
        ),
        Case::new(
            "Q3",
            "a table changes under a statement, which is closed and prepared again",
            session(rounds(&[
                m::query("CREATE TABLE scratch.changing (a int)"),
                parse("a", "SELECT * FROM scratch.changing"),
                run("a"),
                m::query("ALTER TABLE scratch.changing ADD b int"),
                [m::close(b'S', "a"), m::parse("a", "SELECT * FROM scratch.changing"), m::sync()].concat(),
                run("a"),
                describe(b'S', "a"),
                m::query("DROP TABLE scratch.changing"),
            ])),
        ),
        Case::new(
            "Q4",
            "Parse in one group, Bind in the next",
            session(rounds(&[
                parse("", "SELECT $1::int"),
                describe(b'S', ""),
                [m::bind("", "", &[Some(b"7")]), m::describe(b'P', ""), m::execute("", 0), m::sync()]
                    .concat(),
                [m::bind("", "", &[Some(b"8")]), m::execute("", 0), m::sync()].concat(),
                m::query("SELECT 'in between'"),
                [m::bind("", "", &[Some(b"9")]), m::execute("", 0), m::sync()].concat(),
            ])),
        ),
        Case::new(
            "Q4",
            "Describe of all kinds of statements",
            session(rounds(&[
                [m::parse("", "SELECT 1 AS a, 'x'::text AS b"), m::describe(b'S', ""), m::sync()].concat(),
                [m::parse("", "SET work_mem = '4MB'"), m::describe(b'S', ""), m::sync()].concat(),
                [m::parse("", ""), m::describe(b'S', ""), m::sync()].concat(),
                [
                    m::parse("", "INSERT INTO scratch.items VALUES ($1, $2) RETURNING *"),
                    m::describe(b'S', ""),
                    m::sync(),
                ]
                .concat(),
                [m::parse("", "UPDATE scratch.items SET body = $1"), m::describe(b'S', ""), m::sync()]
                    .concat(),
                [m::parse("", "COPY scratch.items TO STDOUT"), m::describe(b'S', ""), m::sync()].concat(),
            ])),
        ),
        Case::new(
            "Q4",
            "several statements in one Parse",
            session(rounds(&[parse("", "SELECT 1; SELECT 2"), m::query("SELECT 3")])),
        ),
        Case::new(
            "Q5",
            "portals of a transaction",
            session(rounds(&[
                m::query("BEGIN"),
                [
                    m::parse("s", "SELECT generate_series(1, 9)"),
                    m::bind("p", "s", &[]),
                    m::bind("q", "s", &[]),
                    m::sync(),
                ]
                .concat(),
                [m::execute("p", 2), m::execute("q", 3), m::execute("p", 2), m::sync()].concat(),
                [m::close(b'P', "p"), m::execute("q", 0), m::sync()].concat(),
                run("s"),
                m::query("COMMIT"),
                run("s"),
            ])),
        ),
        Case::new(
            "Q5",
            "a portal by SQL and a cursor by the protocol",
            session(rounds(&[
                m::query("BEGIN; DECLARE c CURSOR FOR SELECT generate_series(1, 5)"),
                [m::describe(b'P', "c"), m::execute("c", 2), m::sync()].concat(),
                m::query("FETCH 1 FROM c"),
                m::query("COMMIT"),
            ])),
        ),
        Case::new(
            "Q6",
            "Flush brings out what there is",
            session(vec![
                Step::Send([m::parse("", "SELECT 1"), m::flush()].concat()),
                Step::Tag(b'1'),
                Step::Send([m::describe(b'S', ""), m::flush()].concat()),
                Step::Tag(b'T'),
                Step::Send([m::bind("", "", &[]), m::flush()].concat()),
                Step::Tag(b'2'),
                Step::Send([m::execute("", 0), m::flush()].concat()),
                Step::Tag(b'C'),
                Step::Send(m::sync()),
                Step::Ready(1),
            ]),
        ),
        Case::new(
            "Q6",
            "an error brought out by Flush",
            session(vec![
                Step::Send([m::parse("", "SELEC"), m::flush()].concat()),
                Step::Tag(b'E'),
                Step::Send([m::parse("", "SELECT 1"), m::flush(), m::query("SELECT 2"), m::sync()].concat()),
                Step::Ready(1),
            ]),
        ),
        Case::new(
            "Q7",
            "an implicit transaction spans to Sync",
            session(rounds(&[
                [
                    m::parse("", "INSERT INTO scratch.items VALUES (901, 'x')"),
                    m::bind("", "", &[]),
                    m::execute("", 0),
                    m::parse("", "SELECT 1/0"),
                    m::bind("", "", &[]),
                    m::execute("", 0),
                    m::sync(),
                ]
                .concat(),
                m::query("SELECT count(*) FROM scratch.items WHERE id = 901"),
            ])),
        ),
        Case::new(
            "Q7",
            "COMMIT and ROLLBACK in a group",
            session(rounds(&[
                [m::extended("BEGIN", &[]), m::extended("SELECT 1", &[])].concat(),
                m::sync(),
                [
                    m::parse("", "COMMIT"),
                    m::bind("", "", &[]),
                    m::execute("", 0),
                    m::parse("", "SELECT 2"),
                    m::bind("", "", &[]),
                    m::execute("", 0),
                    m::sync(),
                ]
                .concat(),
            ])),
        ),
        Case::new(
            "Q8",
            "odd simple queries",
            session(queries(&[
                "",
                ";",
                ";;",
                " ",
                "--",
                "/* */",
                "SELECT 1;",
                ";SELECT 1",
                "SELECT",
                "SELECT 1 SELECT 2",
                "'",
                "$$",
                "/*",
                "\u{feff}SELECT 1",
                "BEGIN; SELECT 1",
                "SELECT 1/0; SELECT 2",
                "COMMIT; SELECT 3",
                "BEGIN; BEGIN; COMMIT; COMMIT",
            ])),
        ),
        Case::new(
            "Q9",
            "FunctionCall",
            session(rounds(&[
                call(1397, &[b"-42"]),
                call(1397, &[b"x"]),
                call(1397, &[]),
                call(1397, &[b"1", b"2"]),
                call(0, &[]),
                call(1258, &[b"a", b"b"]),
                m::query("BEGIN"),
                call(1397, &[b"x"]),
                call(1397, &[b"1"]),
                m::query("ROLLBACK"),
                [call(1397, &[b"-1"]), call(1397, &[b"-2"]), m::query("SELECT 1")].concat(),
            ])),
        ),
        Case::new(
            "Q11",
            "notices and notifications",
            session(queries(&[
                "DO $$ BEGIN RAISE NOTICE 'a'; RAISE WARNING 'b'; RAISE INFO 'c'; RAISE LOG 'd'; END $$",
                "SET client_min_messages = error",
                "DO $$ BEGIN RAISE WARNING 'b'; END $$",
                "NOTIFY nobody, 'listens'",
                "UNLISTEN *",
                "UNLISTEN nobody",
            ])),
        ),
        Case::new(
            "Q12",
            "formats of parameters and results",
            session(rounds(&[
                [m::parse("s", "SELECT $1::int, $2::text"), m::sync()].concat(),
                [formats("s", &[1, 0], &[&[0, 0, 0, 7], b"x"], &[1]), m::execute("", 0), m::sync()].concat(),
                [formats("s", &[1], &[&[0, 0, 0, 7], b"x"], &[0, 1]), m::execute("", 0), m::sync()].concat(),
                [formats("s", &[1, 0, 0], &[&[0, 0, 0, 7], b"x"], &[]), m::execute("", 0), m::sync()]
                    .concat(),
                [formats("s", &[2], &[b"7", b"x"], &[]), m::execute("", 0), m::sync()].concat(),
                [formats("s", &[1], &[&[0, 7], b"x"], &[]), m::execute("", 0), m::sync()].concat(),
                [formats("s", &[0], &[b"7", b"x"], &[0, 0, 0]), m::execute("", 0), m::sync()].concat(),
            ])),
        ),
    ];
    cases.push(Case::new(
        "Q7",
        "10 000 groups at once",
        session(vec![Step::Send(m::extended("SELECT 7", &[]).repeat(10_000)), Step::Ready(10_000)]),
    ));
    cases
}
