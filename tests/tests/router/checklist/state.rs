//! P: what a session sets.

use switchyard_tests::raw::differential::{Step, round};
use switchyard_tests::raw::messages as m;

use super::Case;
use super::side::{Side, parameters, queries, session};

const SHOWN: &str = "SELECT current_setting('work_mem'), current_setting('statement_timeout'), \
    current_setting('search_path'), current_setting('timezone'), current_setting('datestyle'), \
    current_setting('role'), current_user, session_user, coalesce(nullif(current_setting('my.own', true), ''), 'null'), \
    current_setting('application_name'), current_setting('transaction_read_only')";

/// Statements, and after each what is set.
fn shown(statements: &[&str]) -> Vec<Step> {
    let mut script = queries(&[SHOWN]);
    for sql in statements {
        script.extend(queries(&[sql, "SAVEPOINT looking", SHOWN]));
    }
    script.extend(queries(&["ROLLBACK", SHOWN]));
    script
}

/// The same on a session that asked for some settings at startup.
fn with_startup(statements: &'static [&'static str]) -> impl Fn(&Side) -> Vec<String> {
    let script = shown(statements);
    move |side| {
        let target = side.target().param("TimeZone", "Asia/Tokyo").param("work_mem", "5MB");
        let target = target.param("options", "-c my.own=startup -c statement_timeout=99s");
        let mut raw = target.connect();
        let mut seen = switchyard_tests::raw::differential::play(&mut raw, &script);
        seen.extend(parameters(&raw));
        seen
    }
}

/// Scripts of statements, each a session of its own.
const SCRIPTS: &[(&str, &str, &[&str])] = &[
    (
        "P1",
        "SET of what is reported",
        &["SET TimeZone = 'Europe/Paris'", "SET DateStyle = 'SQL, DMY'", "SET application_name = 'x'"],
    ),
    (
        "P1",
        "RESET of what is reported",
        &["SET TimeZone = 'Europe/Paris'", "RESET TimeZone", "SET DateStyle = German", "RESET ALL"],
    ),
    ("P1", "rolled back", &["BEGIN", "SET TimeZone = 'Europe/Paris'", "ROLLBACK"]),
    ("P1", "DISCARD ALL", &["SET TimeZone = 'Europe/Paris'", "DISCARD ALL"]),
    (
        "P1",
        "the same value again",
        &["SET DateStyle = 'ISO'", "SET DateStyle = 'ISO, MDY'", "SET TIME ZONE 'UTC'"],
    ),
    (
        "P1",
        "SET TIME ZONE in its forms",
        &[
            "SET TIME ZONE 'Asia/Tokyo'",
            "SET TIME ZONE LOCAL",
            "SET TIME ZONE -7",
            "SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE",
            "SET TIME ZONE DEFAULT",
        ],
    ),
    ("P1", "SET NAMES", &["SET NAMES 'LATIN1'", "SET NAMES DEFAULT"]),
    (
        "P2",
        "what is not reported",
        &[
            "SET work_mem = '7MB'",
            "SET statement_timeout = 7777",
            "SET search_path TO scratch, public",
            "SET my.own = 'mine'",
        ],
    ),
    (
        "P2",
        "set_config",
        &[
            "SELECT set_config('work_mem', '7MB', false)",
            "SELECT set_config('my.own', 'a', false), set_config('statement_timeout', '5s', false)",
        ],
    ),
    (
        "P2",
        "set_config for the transaction",
        &[
            "SELECT set_config('work_mem', '7MB', true)",
            "BEGIN",
            "SELECT set_config('work_mem', '7MB', true)",
            "COMMIT",
        ],
    ),
    ("P2", "SET ROLE", &["SET ROLE app", "RESET ROLE", "SET ROLE 'app'", "SET ROLE NONE"]),
    (
        "P2",
        "SET SESSION AUTHORIZATION",
        &[
            "SET SESSION AUTHORIZATION alice",
            "RESET SESSION AUTHORIZATION",
            "SET SESSION AUTHORIZATION super",
        ],
    ),
    (
        "P2",
        "a function that sets",
        &["DO $$ BEGIN PERFORM set_config('my.own', 'hidden', false); END $$", "SET work_mem = '7MB'"],
    ),
    (
        "P2",
        "values that need quotes",
        &[
            "SET my.own = 'it''s \\ \"odd\"'",
            "SET my.own TO plain",
            "SET my.own TO 1.5",
            "SET my.own = E'a\\nb'",
        ],
    ),
    ("P2", "names in any case", &["SET Work_Mem = '7MB'", "SET MY.OWN = 'a'", "SET \"work_mem\" = '8MB'"]),
    (
        "P2",
        "SET of a list",
        &[
            "SET search_path = public, scratch, \"Odd Name\"",
            "SET search_path = ''",
            "SET search_path TO DEFAULT",
        ],
    ),
    (
        "P2",
        "errors",
        &["SET work_mem = 'nonsense'", "SET nothing_known = 1", "SET work_mem = '7MB'; SELECT 1/0"],
    ),
    (
        "P2",
        "session characteristics",
        &["SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET default_transaction_read_only = off"],
    ),
    ("P3", "a temporary table", &["CREATE TEMP TABLE t AS SELECT 1 AS a", "SELECT * FROM t", "DROP TABLE t"]),
    (
        "P3",
        "a cursor WITH HOLD",
        &[
            "BEGIN",
            "DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 4)",
            "COMMIT",
            "FETCH 2 FROM c",
            "FETCH 2 FROM c",
            "CLOSE c",
        ],
    ),
    (
        "P3",
        "advisory locks",
        &[
            "SELECT pg_advisory_lock(11)",
            "SELECT pg_try_advisory_lock(11)",
            "SELECT pg_advisory_unlock(11), pg_advisory_unlock(11), pg_advisory_unlock(11)",
        ],
    ),
    (
        "P3",
        "sequences",
        &["CREATE TEMP SEQUENCE q", "SELECT nextval('q'), currval('q'), lastval()", "SELECT currval('q')"],
    ),
    ("P4", "role and authorization after RESET ALL", &["SET ROLE app", "RESET ALL", "RESET ROLE"]),
    (
        "P4",
        "DISCARD in its forms",
        &["SET my.own = 'a'", "DISCARD PLANS", "DISCARD SEQUENCES", "DISCARD TEMP", "DISCARD ALL"],
    ),
    (
        "P5",
        "VACUUM, and CREATE INDEX CONCURRENTLY",
        &[
            "VACUUM scratch.items",
            "CREATE INDEX CONCURRENTLY i ON scratch.items (body)",
            "DROP INDEX scratch.i",
        ],
    ),
    ("P6", "SET LOCAL", &["SET LOCAL work_mem = '7MB'", "BEGIN", "SET LOCAL work_mem = '7MB'", "COMMIT"]),
    (
        "P6",
        "SET LOCAL over SET",
        &["BEGIN", "SET my.own = 'session'", "SET LOCAL my.own = 'local'", "COMMIT"],
    ),
    (
        "P6",
        "SET over SET LOCAL",
        &["BEGIN", "SET LOCAL my.own = 'local'", "SET my.own = 'session'", "COMMIT"],
    ),
    (
        "P6",
        "savepoints",
        &[
            "SET my.own = 'a'",
            "BEGIN",
            "SAVEPOINT s",
            "SET my.own = 'b'",
            "ROLLBACK TO s",
            "SET my.own = 'c'",
            "RELEASE s",
            "COMMIT",
        ],
    ),
    (
        "P6",
        "a failed transaction",
        &["SET my.own = 'a'", "BEGIN", "SET my.own = 'b'", "SELECT 1/0", "COMMIT"],
    ),
    (
        "P6",
        "COMMIT AND CHAIN",
        &[
            "BEGIN",
            "SET my.own = 'a'",
            "COMMIT AND CHAIN",
            "SET my.own = 'b'",
            "ROLLBACK AND CHAIN",
            "COMMIT",
        ],
    ),
    (
        "P6",
        "in one message",
        &[
            "BEGIN; SET my.own = 'a'; COMMIT",
            "BEGIN; SET my.own = 'b'; ROLLBACK",
            "SET my.own = 'c'; SET work_mem = '7MB'",
        ],
    ),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for &(line, name, statements) in SCRIPTS {
        cases.push(Case::new(line, name, session(shown(statements))));
        let over = Case::new(line, format!("{name}, over settings of startup"), with_startup(statements));
        cases.push(over);
    }
    let extended: Vec<Step> =
        ["SET work_mem = '7MB'", "SELECT set_config('my.own', 'x', false)", "RESET work_mem", SHOWN]
            .iter()
            .flat_map(|sql| round(m::extended(sql, &[])))
            .collect();
    cases.push(Case::new("P2", "by the extended protocol", session(extended)));
    let bound = [m::parse("s", "SELECT set_config('my.own', $1, false)"), m::sync()].concat();
    let run = |value: &[u8]| [m::bind("", "s", &[Some(value)]), m::execute("", 0), m::sync()].concat();
    let script = [bound, run(b"one"), m::query(SHOWN), run(b"it's \\ two"), m::query(SHOWN)];
    let script = script.into_iter().flat_map(round).collect();
    cases.push(Case::new("P2", "set_config with a parameter", session(script)));
    cases
}
