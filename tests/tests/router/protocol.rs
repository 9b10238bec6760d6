//! The same bytes to PostgreSQL and through the router.

use switchyard_tests::raw::differential::{Step, round};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Running, Setup};

fn start() -> Running {
    Setup::new().shards(1).tenants(["acme", "globex"]).start()
}

fn rounds(parts: &[Vec<u8>]) -> Vec<Step> {
    parts.iter().flat_map(|p| round(p.clone())).collect()
}

#[test]
fn simple_queries() {
    let s = start();
    let mut scripts = Vec::new();
    for sql in [
        "SELECT 1",
        "",
        ";",
        "; ;",
        "SELECT 1; SELECT 2",
        "SELECT 1;; SELECT 2;",
        "SELECT 1/0",
        "SELECT 1; SELECT 1/0; SELECT 3",
        "SELECT name FROM clients ORDER BY id",
        "SELECT NULL, '', 'ü', E'\\\\'",
        "SELEC",
        "SELECT * FROM nowhere",
        "BEGIN; SELECT 1; COMMIT",
        "BEGIN; SELECT 1/0; COMMIT",
        "COMMIT",
        "ROLLBACK",
        "DO $$ BEGIN RAISE NOTICE 'hello'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'ZZ001', HINT = 'why', DETAIL = 'because'; END $$",
        "CREATE TEMP TABLE t (a int); INSERT INTO t VALUES (1), (2); SELECT * FROM t; DROP TABLE t",
        "SELECT generate_series(1, 1000)",
        "EXPLAIN (COSTS OFF) SELECT 1",
        "SHOW server_version",
        "VALUES (1), (2)",
        "SET work_mem = '5MB'; SHOW work_mem",
        "SELECT pg_notify('c', 'p')",
        "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT 1; END",
        "/* tenant='globex' */ SELECT count(*) FROM clients",
        "-- nothing",
    ] {
        scripts.push((sql, rounds(&[m::query(sql), m::query("SELECT 'after'"), m::query("ROLLBACK")])));
    }
    s.same_each("acme", scripts);
}

#[test]
fn transactions_and_their_status() {
    let s = start();
    let q = m::query;
    s.same_each(
        "acme",
        [
            ("a transaction", vec![q("BEGIN"), q("SELECT 1"), q("COMMIT"), q("SELECT 2")]),
            ("a failed one", vec![q("BEGIN"), q("SELECT 1/0"), q("SELECT 1"), q("COMMIT"), q("SELECT 2")]),
            (
                "savepoints",
                vec![
                    q("BEGIN"),
                    q("SAVEPOINT a"),
                    q("SELECT 1/0"),
                    q("ROLLBACK TO a"),
                    q("SELECT 1"),
                    q("COMMIT"),
                ],
            ),
            (
                "chained",
                vec![
                    q("BEGIN"),
                    q("COMMIT AND CHAIN"),
                    q("SELECT 1"),
                    q("ROLLBACK AND CHAIN"),
                    q("ROLLBACK"),
                ],
            ),
            ("BEGIN twice", vec![q("BEGIN"), q("BEGIN"), q("COMMIT")]),
            (
                "BEGIN by the extended protocol",
                vec![m::extended("BEGIN", &[]), m::extended("SELECT 1", &[]), m::extended("COMMIT", &[])],
            ),
            ("BEGIN with a failing rest", vec![q("BEGIN; SELECT 1/0"), q("ROLLBACK")]),
            ("BEGIN and more", vec![q("BEGIN; SELECT 1"), q("SELECT 2; COMMIT; SELECT 3")]),
            ("a two-phase one", vec![q("BEGIN"), q("PREPARE TRANSACTION 'x'"), q("ROLLBACK")]),
        ]
        .map(|(name, parts)| (name, rounds(&parts))),
    );
}

#[test]
fn copy() {
    let s = start();
    let q = m::query;
    let clean = || q("DELETE FROM scratch.items");
    let copy_in = |sql: &str, rest: Vec<u8>| {
        vec![
            Step::Send(clean()),
            Step::Ready(1),
            Step::Send(q(sql)),
            Step::Tag(b'G'),
            Step::Send(rest),
            Step::Ready(1),
            Step::Send(q("SELECT count(*) FROM scratch.items")),
            Step::Ready(1),
            Step::Send(clean()),
            Step::Ready(1),
        ]
    };
    let sql = "COPY scratch.items FROM STDIN";
    let extended = |rest: Vec<u8>| {
        let open = [m::parse("", sql), m::bind("", "", &[]), m::execute("", 0), m::flush()].concat();
        vec![
            Step::Send(clean()),
            Step::Ready(1),
            Step::Send(open),
            Step::Tag(b'G'),
            Step::Send(rest),
            Step::Ready(1),
            Step::Send(clean()),
            Step::Ready(1),
        ]
    };
    let rows = || m::copy_data(b"1\tone\n2\ttwo\n");
    let large: Vec<u8> = (0..3000)
        .flat_map(|n| m::copy_data(format!("{n}\t{}\n", "x".repeat(500)).as_bytes()))
        .chain(m::copy_done())
        .collect();
    s.same_each(
        "acme",
        [
            ("COPY in", copy_in(sql, [rows(), m::copy_done()].concat())),
            ("COPY in of nothing", copy_in(sql, m::copy_done())),
            ("COPY in, failed by the client", copy_in(sql, [rows(), m::copy_fail("enough")].concat())),
            (
                "COPY in, failed by the server",
                copy_in(sql, [m::copy_data(b"x\ty\n"), m::copy_data(b"1\ty\n"), m::copy_done()].concat()),
            ),
            ("COPY in, large", copy_in(sql, large)),
            (
                "COPY in with Flush and Sync between",
                copy_in(sql, [rows(), m::flush(), m::sync(), m::copy_done()].concat()),
            ),
            ("COPY in, extended", extended([rows(), m::copy_done(), m::sync()].concat())),
            (
                "COPY in, extended, failed by the client",
                extended([rows(), m::copy_fail("enough"), m::sync()].concat()),
            ),
            (
                "COPY in, extended, failed by the server",
                extended([m::copy_data(b"x\n"), m::copy_done(), m::sync()].concat()),
            ),
            (
                "COPY in, extended, Sync in the stream",
                extended([rows(), m::sync(), m::copy_done(), m::sync()].concat()),
            ),
            ("COPY out", rounds(&[q("COPY (SELECT generate_series(1, 100)) TO STDOUT"), q("SELECT 1")])),
            (
                "COPY out, binary",
                rounds(&[q("COPY (SELECT 1, NULL::text, 'x'::text) TO STDOUT (FORMAT binary)")]),
            ),
            ("COPY out, extended", rounds(&[m::extended("COPY (SELECT 1) TO STDOUT", &[]), q("SELECT 1")])),
            (
                "COPY out, failing in the middle",
                rounds(&[
                    q("COPY (SELECT 1/(50 - n) FROM generate_series(1, 100) n) TO STDOUT"),
                    q("SELECT 1"),
                ]),
            ),
            (
                "COPY in a multi-statement query",
                vec![
                    Step::Send(clean()),
                    Step::Ready(1),
                    Step::Send(q(&format!("SELECT 1; {sql}; SELECT 2"))),
                    Step::Tag(b'G'),
                    Step::Send([rows(), m::copy_done()].concat()),
                    Step::Ready(1),
                    Step::Send(clean()),
                    Step::Ready(1),
                ],
            ),
            ("COPY of no table", rounds(&[q("COPY nowhere FROM STDIN"), q("SELECT 1")])),
            ("CopyData without COPY", rounds(&[[rows(), m::copy_done(), m::query("SELECT 1")].concat()])),
        ],
    );
}

#[test]
fn portals() {
    let s = start();
    let series = "SELECT generate_series(1, 10)";
    s.same_each(
        "acme",
        [
            (
                "rows a few at a time",
                rounds(&[[
                    m::parse("", series),
                    m::bind("", "", &[]),
                    m::execute("", 4),
                    m::execute("", 4),
                    m::execute("", 4),
                    m::sync(),
                ]
                .concat()]),
            ),
            (
                "a portal over Syncs in a transaction",
                rounds(&[
                    m::query("BEGIN"),
                    [m::parse("", series), m::bind("p", "", &[]), m::execute("p", 3), m::sync()].concat(),
                    [m::execute("p", 3), m::sync()].concat(),
                    [m::describe(b'P', "p"), m::execute("p", 0), m::sync()].concat(),
                    m::query("COMMIT"),
                    [m::execute("p", 3), m::sync()].concat(),
                ]),
            ),
            (
                "a portal is gone after Sync",
                rounds(&[
                    [m::parse("", series), m::bind("p", "", &[]), m::execute("p", 3), m::sync()].concat(),
                    [m::execute("p", 3), m::sync()].concat(),
                ]),
            ),
            (
                "a portal in use",
                rounds(&[
                    [m::parse("", series), m::bind("p", "", &[]), m::bind("p", "", &[]), m::sync()].concat()
                ]),
            ),
            (
                "an unknown portal",
                rounds(&[
                    [m::execute("nope", 0), m::sync()].concat(),
                    [m::describe(b'P', "nope"), m::sync()].concat(),
                ]),
            ),
            (
                "a closed portal",
                rounds(&[
                    [
                        m::parse("a", series),
                        m::bind("p", "a", &[]),
                        m::close(b'P', "p"),
                        m::execute("p", 0),
                        m::sync(),
                    ]
                    .concat(),
                    [m::bind("", "a", &[]), m::execute("", 1), m::sync()].concat(),
                ]),
            ),
            (
                "a cursor in SQL",
                rounds(&[
                    m::query("BEGIN; DECLARE c CURSOR FOR SELECT generate_series(1, 5)"),
                    m::query("FETCH 2 FROM c"),
                    m::query("FETCH ALL FROM c"),
                    m::query("COMMIT"),
                    m::query("FETCH 1 FROM c"),
                ]),
            ),
        ],
    );
}

#[test]
fn flush_sync_and_the_order_of_errors() {
    let s = start();
    let x = |sql: &str| [m::parse("", sql), m::bind("", "", &[]), m::execute("", 0)].concat();
    s.same_each(
        "acme",
        [
            (
                "Flush without Sync",
                vec![
                    Step::Send([x("SELECT 1"), m::flush()].concat()),
                    Step::Tag(b'C'),
                    Step::Send([x("SELECT 2"), m::flush()].concat()),
                    Step::Tag(b'C'),
                    Step::Send(m::sync()),
                    Step::Ready(1),
                ],
            ),
            ("Sync alone", rounds(&[m::sync(), m::sync()])),
            (
                "many Syncs at once",
                vec![
                    Step::Send([m::sync(), m::sync(), m::extended("SELECT 1", &[]), m::sync()].concat()),
                    Step::Ready(4),
                ],
            ),
            (
                "an error skips to the Sync",
                vec![
                    Step::Send(
                        [
                            x("SELECT 1"),
                            x("SELECT 1/0"),
                            x("SELECT 2"),
                            m::sync(),
                            m::extended("SELECT 3", &[]),
                        ]
                        .concat(),
                    ),
                    Step::Ready(2),
                ],
            ),
            (
                "errors in each of several",
                vec![
                    Step::Send(
                        [
                            m::extended("SELECT 1/0", &[]),
                            m::extended("SELECT 2", &[]),
                            m::extended("SELEC", &[]),
                            m::extended("SELECT 4", &[]),
                        ]
                        .concat(),
                    ),
                    Step::Ready(4),
                ],
            ),
            (
                "queries in a row",
                vec![
                    Step::Send(
                        [
                            m::query("SELECT 1"),
                            m::query("SELECT 1/0"),
                            m::query("BEGIN"),
                            m::query("SELECT 3"),
                            m::query("COMMIT"),
                        ]
                        .concat(),
                    ),
                    Step::Ready(5),
                ],
            ),
            (
                "Query within an extended batch",
                vec![Step::Send([x("SELECT 1"), m::query("SELECT 2"), m::sync()].concat()), Step::Ready(2)],
            ),
            (
                "Query within a failed extended batch",
                vec![Step::Send([x("SELECT 1/0"), m::query("SELECT 2"), m::sync()].concat()), Step::Ready(1)],
            ),
            (
                "Query after a Bind of nothing",
                vec![
                    Step::Send([m::bind("", "nope", &[]), m::query("SELECT 2"), m::sync()].concat()),
                    Step::Ready(1),
                    Step::Send(m::query("SELECT 3")),
                    Step::Ready(1),
                ],
            ),
            (
                "Query after a Parse of a name in use",
                vec![
                    Step::Send([m::parse("a", "SELECT 1"), m::sync()].concat()),
                    Step::Ready(1),
                    Step::Send([m::parse("a", "SELECT 2"), m::query("SELECT 2"), m::sync()].concat()),
                    Step::Ready(1),
                    Step::Send(m::query("SELECT 3")),
                    Step::Ready(1),
                ],
            ),
            (
                "an unnamed Parse that was skipped",
                rounds(&[
                    [m::execute("nope", 0), m::parse("", "SELECT 1"), m::sync()].concat(),
                    [m::bind("", "", &[]), m::execute("", 0), m::sync()].concat(),
                ]),
            ),
            (
                "a transaction over pipelined batches",
                vec![
                    Step::Send(
                        [
                            m::extended("BEGIN", &[]),
                            m::extended("SELECT 1/0", &[]),
                            m::extended("SELECT 1", &[]),
                            m::extended("ROLLBACK", &[]),
                            m::extended("SELECT 2", &[]),
                        ]
                        .concat(),
                    ),
                    Step::Ready(5),
                ],
            ),
            (
                "what cannot run in a transaction",
                rounds(&[
                    m::extended("VACUUM scratch.items", &[]),
                    m::query("VACUUM scratch.items"),
                    [x("SELECT 1"), x("VACUUM scratch.items"), m::sync()].concat(),
                ]),
            ),
        ],
    );
}

#[test]
fn function_calls() {
    let s = start();
    // abs(int4) is 1397 in every version; text format.
    let call = |oid: u32, argument: &[u8]| {
        let mut body = oid.to_be_bytes().to_vec();
        body.extend([0, 0, 0, 1]);
        body.extend((argument.len() as u32).to_be_bytes());
        body.extend(argument);
        body.extend([0, 0]);
        m::frame(b'F', &body)
    };
    let script = rounds(&[
        call(1397, b"-42"),
        call(1397, b"x"),
        call(1, b"1"),
        m::query("BEGIN"),
        call(1397, b"-1"),
        m::query("COMMIT"),
        m::query("SELECT 1"),
    ]);
    s.same("FunctionCall", "acme", &script);
}

#[test]
fn heavy_pipelines_of_any_depth() {
    let s = start();
    for (name, one) in
        [("extended", m::extended("SELECT $1::int", &[Some(b"7")])), ("simple", m::query("SELECT 7"))]
    {
        let many = one.repeat(10_000);
        s.same(name, "acme", &[Step::Send(many), Step::Ready(10_000)]);
    }
    // In one batch, with answers longer than any buffer on the way.
    let one = [m::bind("", "a", &[]), m::execute("", 0)].concat();
    let batch = [m::parse("a", "SELECT repeat('x', 2000)"), one.repeat(10_000), m::sync()].concat();
    s.same("one batch", "acme", &[Step::Send(batch), Step::Ready(1)]);
    let parses: Vec<u8> = (0..2000)
        .flat_map(|n| [m::parse(&format!("n{n}"), "SELECT 1"), m::close(b'S', &format!("n{n}"))].concat())
        .chain(m::sync())
        .collect();
    s.same("Parse and Close", "acme", &[Step::Send(parses), Step::Ready(1)]);
}

#[test]
fn heavy_large_values() {
    let s = start();
    let value = "v".repeat(16 << 20);
    s.same("a large row", "acme", &round(m::query(&format!("SELECT repeat('v', {})", 16 << 20))));
    s.same(
        "a large parameter",
        "acme",
        &round(m::extended("SELECT length($1::text), md5($1::text)", &[Some(value.as_bytes())])),
    );
    s.same("a large query", "acme", &round(m::query(&format!("SELECT length('{value}')"))));
    let columns: Vec<_> = (0..1600).map(|n| format!("{n} AS c{n}")).collect();
    let wide = format!("SELECT {}", columns.join(", "));
    s.same("1600 columns", "acme", &rounds(&[m::query(&wide), m::extended(&wide, &[])]));
    let params: Vec<_> = (1..=65_535).map(|n| format!("${n}::int")).collect();
    let sql = format!("SELECT cardinality(ARRAY[{}])", params.join(","));
    let values = vec![Some(&b"1"[..]); 65_535];
    s.same("65535 parameters", "acme", &round(m::extended(&sql, &values)));
    let large = m::parse("big", &format!("SELECT length('{}')", "v".repeat(1 << 20)));
    s.same(
        "a large named statement",
        "acme",
        &rounds(&[
            [large, m::sync()].concat(),
            [m::bind("", "big", &[]), m::execute("", 0), m::sync()].concat(),
        ]),
    );
}
