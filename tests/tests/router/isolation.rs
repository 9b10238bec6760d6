//! What one tenant leaves, another never sees: with few server connections, so that they do
//! change hands.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Dice, Raw, Running, Setup};

const NAMES: &str = "SELECT name FROM clients ORDER BY id";

fn setup() -> Setup {
    Setup::new().shards(1).pool("size = 1").tenants(["acme", "globex"])
}

/// Everything that a session can see of what others may have left on its connection.
const LEFT: &str = "SELECT current_setting('app.tenant_id') || '|' || coalesce(current_setting('my.note', true), '') \
    || '|' || current_setting('work_mem') || '|' || current_setting('statement_timeout') \
    || '|' || current_setting('search_path') || '|' || current_setting('timezone') \
    || '|' || current_setting('role') || '|' || current_setting('default_transaction_read_only') \
    || '|' || (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()) \
    || '|' || (SELECT count(*) FROM pg_cursors) \
    || '|' || (SELECT count(*) FROM pg_listening_channels()) \
    || '|' || (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) \
    || '|' || (SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%secret%')";

/// What `acme` does to its connection, and how a word of it would betray it.
const LEAVINGS: &[&str] = &[
    "SET my.note = 'secret'",
    "SELECT set_config('my.note', 'secret', false)",
    "DO $$ BEGIN PERFORM set_config('my.note', 'secret', false); END $$",
    "SET work_mem = '7MB'",
    "SET statement_timeout = '77s'",
    "SET search_path TO scratch",
    "SET TIME ZONE 'Asia/Tokyo'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "CREATE TEMP TABLE clients (name text)",
    "CREATE TEMP TABLE t AS SELECT 'secret' AS name",
    "SELECT 'secret' AS name INTO TEMP t",
    "DO $$ BEGIN CREATE TEMP TABLE t (name text); END $$",
    "PREPARE secret AS SELECT 'secret'",
    "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 'secret'; COMMIT",
    "SELECT pg_advisory_lock(7)",
    "LISTEN secrets",
    "DO $$ BEGIN EXECUTE 'LISTEN secrets'; END $$",
    "SELECT nextval('clients_id_seq')",
    "SET app.tenant_id = 'globex'",
    "SELECT set_config('app.tenant_id', 'acme', false)",
    "RESET ALL",
    "DISCARD ALL",
    "SET SESSION AUTHORIZATION DEFAULT",
];

#[test]
fn what_a_session_leaves_is_gone_for_the_next_tenant() {
    let s = setup().start();
    let clean = s.login("globex").value(LEFT);
    assert!(clean.starts_with("globex||"), "{clean}");
    for leaving in LEAVINGS {
        let mut acme = s.login("acme");
        acme.rows(leaving);
        drop(acme);
        let mut globex = s.login("globex");
        assert_eq!(globex.value(LEFT), clean, "after {leaving}");
        assert_eq!(globex.column(NAMES), s.canaries("globex"), "after {leaving}");
        assert!(globex.try_rows("EXECUTE secret").is_err(), "after {leaving}");
        assert!(globex.try_rows("SELECT lastval()").is_err(), "after {leaving}");
        // And the one who left it is still itself.
        assert_eq!(s.login("acme").column(NAMES), s.canaries("acme"), "after {leaving}");
    }
}

#[test]
fn what_a_living_session_holds_is_not_seen_by_others() {
    let s = setup().pool("size = 2\nqueue_timeout = \"20s\"").start();
    let clean = s.login("globex").value(LEFT);
    for leaving in LEAVINGS {
        // Where it is held by keeping the connection, the other one serves.
        let mut acme = s.login("acme");
        acme.rows(leaving);
        let mut globex = s.login("globex");
        for _ in 0..3 {
            let left = globex.value(LEFT);
            assert_eq!(left, clean, "during {leaving}");
            assert_eq!(globex.column(NAMES), s.canaries("globex"), "during {leaving}");
        }
    }
}

#[test]
fn a_session_keeps_what_it_set() {
    let s = setup().pool("size = 2").start();
    let mut acme = s.login("acme");
    acme.rows("SET my.note = 'mine'");
    acme.rows("SET statement_timeout = '77s'");
    acme.rows("SELECT set_config('work_mem', '7MB', false)");
    let mut globex = s.login("globex");
    for _ in 0..5 {
        assert_eq!(globex.value("SELECT coalesce(current_setting('my.note', true), '')"), "");
        assert_eq!(acme.value("SHOW statement_timeout"), "77s");
        assert_eq!(acme.value("SELECT current_setting('my.note')"), "mine");
        assert_eq!(acme.value("SHOW work_mem"), "7MB");
    }
}

#[test]
fn a_rollback_does_not_take_the_context_with_it() {
    let s = setup().pool("size = 2").start();
    let mut acme = s.login("acme");
    for script in [
        "BEGIN; SELECT 1; ROLLBACK",
        "BEGIN; SET LOCAL app.tenant_id = 'globex'; COMMIT",
        "BEGIN; SET app.tenant_id = 'globex'; ROLLBACK",
        "BEGIN; SAVEPOINT s; SET app.tenant_id = 'globex'; ROLLBACK TO s; COMMIT",
        "ROLLBACK",
        "COMMIT",
    ] {
        acme.rows(script);
        assert_eq!(acme.column(NAMES), s.canaries("acme"), "after {script}");
        assert_eq!(s.login("globex").column(NAMES), s.canaries("globex"), "after {script}");
    }
    for script in
        ["SELECT 1; SELECT 1/0", "BEGIN; SELECT 1/0", "SELECT nonsense", "BEGIN; SET my.a = 'b'; SELECT 1/0"]
    {
        acme.error(script);
        acme.rows("ROLLBACK");
        assert_eq!(acme.column(NAMES), s.canaries("acme"), "after {script}");
        assert_eq!(s.login("globex").column(NAMES), s.canaries("globex"), "after {script}");
    }
}

#[test]
fn a_session_that_threw_its_context_away_gets_it_back() {
    // Two connections, as who calls set_config keeps one.
    let s = setup().pool("size = 2").start();
    for script in [
        "RESET ALL",
        "DISCARD ALL",
        "RESET app.tenant_id",
        "SET app.tenant_id TO DEFAULT",
        "SET app.tenant_id = ''",
        "SELECT set_config('app.tenant_id', '', false)",
        // What asyncpg says whenever a connection goes back to its pool.
        "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;",
    ] {
        for extended in [false, true] {
            if extended && script.contains(';') {
                continue;
            }
            let mut acme = s.login("acme");
            if extended {
                acme.round(&m::extended(script, &[]));
            } else {
                acme.rows(script);
            }
            assert_eq!(acme.column(NAMES), s.canaries("acme"), "after {script}");
            assert_eq!(s.login("globex").column(NAMES), s.canaries("globex"), "after {script}");
            assert_eq!(s.login("acme").column(NAMES), s.canaries("acme"), "after {script}");
        }
    }
}

#[test]
fn what_a_block_hides_is_gone_for_the_next_session_of_the_same_tenant() {
    let s = setup().start();
    for value in ["", "globex"] {
        let mut first = s.login("acme");
        first.rows(&format!("DO $$ BEGIN PERFORM set_config('app.tenant_id', '{value}', false); END $$"));
        // Whoever runs such SQL is trusted, by the plain promise. Its neighbours need not know.
        let mut second = s.login("acme");
        assert_eq!(second.column(NAMES), s.canaries("acme"), "after '{value}'");
        assert_eq!(s.login("globex").column(NAMES), s.canaries("globex"), "after '{value}'");
    }
}

#[test]
fn the_cleaning_cannot_be_sabotaged() {
    let s = setup().start();
    let clean = s.login("globex").value(LEFT);
    for sabotage in [
        "SET statement_timeout = '1ms'",
        "SET lock_timeout = '1ms'",
        "SET idle_session_timeout = '1ms'",
        "SET default_transaction_read_only = on",
        "SET client_min_messages = 'error'",
        "SET search_path TO pg_temp, scratch",
    ] {
        let mut acme = s.login("acme");
        acme.rows("DO $$ BEGIN FOR n IN 1..400 LOOP EXECUTE format('CREATE TEMP TABLE t%s (a int)', n); END LOOP; END $$");
        // The last that it says, so that it need not outlive its own timeout.
        acme.send(&m::query(sabotage));
        let _ = acme.until_ready_or_end();
        drop(acme);
        let mut globex = s.login("globex");
        assert_eq!(globex.value(LEFT), clean, "after {sabotage}");
        assert_eq!(globex.column(NAMES), s.canaries("globex"), "after {sabotage}");
    }
}

#[test]
fn a_notification_reaches_nobody_else() {
    let s = setup().pool("size = 2").start();
    let mut globex = s.login("globex");
    let mut acme = s.login("acme");
    acme.rows("LISTEN news");
    drop(acme);
    globex.rows("NOTIFY news, 'for acme'");
    for _ in 0..4 {
        let messages = globex.round(&m::query("SELECT 1"));
        assert!(messages.iter().all(|m| m.tag != b'A'), "{messages:?}");
    }
}

/// One random step of one session; whatever it was, the session must see its own rows only.
fn step(s: &Running, dice: &mut Dice, tenant: &str, session: &mut Option<Raw>) {
    let raw = session.get_or_insert_with(|| s.login(tenant));
    let own = |rows: &[String]| rows.iter().all(|name| name.starts_with(&format!("{tenant} ")));
    match dice.roll(12) {
        0 => drop(session.take()),
        1 => {
            let _ = raw.try_rows("BEGIN");
        }
        2 => {
            let _ = raw.try_rows("COMMIT");
        }
        3 => {
            let _ = raw.try_rows("ROLLBACK");
        }
        4 => {
            let _ = raw.try_rows("SELECT 1/0");
        }
        5 => {
            let insert = format!(
                "INSERT INTO clients (tenant_id, id, name) VALUES ('{tenant}', {}, '{tenant} new') ON CONFLICT DO NOTHING",
                10 + dice.roll(50)
            );
            let _ = raw.try_rows(&insert);
        }
        6 => {
            let leaving = LEAVINGS[dice.roll(LEAVINGS.len())];
            // Not what changes its own identity, nor what others would wait for.
            if !leaving.contains("tenant_id")
                && !leaving.contains("advisory")
                && !leaving.contains("ALL")
                && !leaving.contains("clients")
                && !leaving.contains("search_path")
            {
                let _ = raw.try_rows(leaving);
            }
        }
        7 => {
            let name = format!("s{}", dice.roll(4));
            raw.send(&[m::parse(&name, NAMES), m::sync()].concat());
            let _ = raw.until_ready_or_end();
        }
        8 => {
            let name = format!("s{}", dice.roll(4));
            let rows = raw.round(&[m::bind("", &name, &[]), m::execute("", 0), m::sync()].concat());
            let names: Vec<_> =
                rows.iter().filter(|m| m.tag == b'D').filter_map(|m| m.values()[0].clone()).collect();
            assert!(own(&names), "{tenant} saw {names:?}");
        }
        9 => {
            // Gone in the middle.
            raw.send(&m::query("BEGIN; SELECT name FROM clients"));
            drop(session.take());
        }
        _ => {
            let names = match raw.try_rows(NAMES) {
                Ok(rows) => rows.into_iter().filter_map(|mut r| r.remove(0)).collect::<Vec<_>>(),
                Err(e) => {
                    assert_eq!(e.sqlstate, "25P02", "{e:?}");
                    return;
                }
            };
            assert!(own(&names) && names.len() >= 3, "{tenant} saw {names:?}");
        }
    }
}

#[test]
fn heavy_random_steps_of_many_tenants_over_few_connections() {
    let ids: Vec<String> = (0..6).map(|n| format!("tenant{n}")).collect();
    let s = Setup::new()
        .tenants(ids.iter().map(String::as_str))
        .pool("size = 3\nqueue_timeout = \"60s\"")
        .start();
    std::thread::scope(|scope| {
        for seed in 1..=2_u64 {
            let (s, ids) = (&s, &ids);
            scope.spawn(move || {
                let mut dice = Dice::new(seed);
                for _ in 0..1500 {
                    // One session at a time in each thread can hold a connection, and one may be
                    // pinned, so that nobody waits for what is never given back.
                    let tenant = &ids[dice.roll(ids.len())];
                    let mut session = None;
                    for _ in 0..=dice.roll(6) {
                        step(s, &mut dice, tenant, &mut session);
                    }
                }
            });
        }
    });
}

#[test]
fn a_function_that_sets_the_tenant_is_not_felt_by_the_next_session() {
    let sql = "CREATE FUNCTION scratch.act_as(t text) RETURNS text LANGUAGE plpgsql AS $$ \
               BEGIN PERFORM set_config('app.tenant_id', t, false); \
               PERFORM set_config('work_mem', '77MB', false); RETURN t; END $$; \
               GRANT EXECUTE ON FUNCTION scratch.act_as(text) TO PUBLIC";
    let s = setup().pool("size = 1").sql(sql).start();
    let (mut one, mut two, mut other) = (s.login("acme"), s.login("acme"), s.login("globex"));
    for script in ["SELECT scratch.act_as('globex')", "SELECT 1; SELECT scratch.act_as('globex')"] {
        one.rows(script);
        assert_eq!(two.column(NAMES), s.canaries("acme"), "after {script}");
        one.rows(script);
        assert_ne!(two.value("SHOW work_mem"), "77MB", "after {script}");
        one.rows(script);
        assert_eq!(other.column(NAMES), s.canaries("globex"), "after {script}");
    }
}
