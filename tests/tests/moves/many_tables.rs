//! A schema of a tenant's own with very many tables: its readers are kept out in no more time than with few.

use switchyard_tests::cluster::APP;
use switchyard_tests::wait;

use crate::world::{Model, World};

/// Tables beside those that are written to; `SWITCHYARD_TESTS_TABLES` says otherwise.
const TABLES: u32 = 120;

/// A budget in milliseconds that does not suffice where a right is taken away in no less than [`SLOW`].
const SHORT: &str = "50";

/// However fast the machine, closing the tables by themselves takes longer than the budget.
const SLOW: &str = "
    CREATE FUNCTION public.slow() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_catalog.pg_sleep(0.2); END';
    CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('REVOKE') EXECUTE FUNCTION public.slow()";

#[test]
#[allow(clippy::print_stdout, reason = "what was seen is part of the test's answer")]
fn heavy_a_schema_of_very_many_tables_is_closed_at_once() {
    let mut world = World::start(Model::Schema, false);
    let tables = std::env::var("SWITCHYARD_TESTS_TABLES").ok().and_then(|n| n.parse().ok()).unwrap_or(TABLES);
    // A few at a time: all locks of a transaction are in shared memory.
    for from in (0..tables).step_by(100) {
        let to = (from + 100).min(tables) - 1;
        world.sql(&format!(
            "DO $$ BEGIN FOR n IN {from}..{to} LOOP
                 EXECUTE format('CREATE TABLE t_acme.further_%s (id int PRIMARY KEY)', n);
                 EXECUTE format('GRANT SELECT, INSERT ON t_acme.further_%s TO {APP}', n);
             END LOOP; END $$"
        ));
    }
    let usage = "SELECT has_schema_privilege('app', 't_acme', 'USAGE')::text || has_table_privilege('app', 't_acme.marks', 'SELECT')";
    assert_eq!(world.m.one(0, usage), "truetrue");

    // Who refers to a table otherwise than by its name does not ask for the schema.
    world.m.shards[0].sql("CREATE VIEW peek AS SELECT * FROM t_acme.marks");
    let plan = world.m.cli(&["move", "start", "acme", "--to", "s1", "--dry-run", "--pause-budget", SHORT]);
    let found = plan["plan"]["findings"].to_string();
    assert!(found.contains("closed by itself, since public.peek refers to one of them"), "{found}");
    let predicted = plan["plan"]["predicted_pause_ms"].as_f64().unwrap();
    assert_eq!(found.contains("is above the budget of 50"), predicted > 50.0, "{plan}");
    world.m.shards[0].sql(SLOW);
    let ended = world.m.command(&[
        "move",
        "start",
        "acme",
        "--to",
        "s1",
        "--pause-budget",
        SHORT,
        "--attempts",
        "2",
        "--wait",
        "--timeout",
        "120",
    ]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let id = world.m.cli(&["move", "show", "acme"])["id"].to_string();
    assert_eq!(world.show(&id, "outcome"), "failed");
    let attempts = format!(
        "SELECT string_agg(what, ';') FROM switchyard.move_events WHERE move_id = {id} AND what LIKE '%given up%'"
    );
    println!("given up: {}", world.m.catalog.value(&attempts));
    assert_eq!(world.m.one(0, usage), "truetrue", "nothing has changed");
    world.nothing_left();
    world.m.shards[0].sql("DROP EVENT TRIGGER slow; DROP FUNCTION public.slow(); DROP VIEW peek");

    let moved = world.start_move(&["--pause-budget", "1000"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    let pause = &moved["receipt"]["pause"];
    let freezing = pause["frozen_us"].as_u64().zip(pause["drained_us"].as_u64()).map(|(to, from)| to - from);
    println!(
        "{tables} tables: the freezing took {freezing:?} us, clients waited for {} us",
        pause["clients_us"]
    );
    wait::until_true("each to be closed", || world.m.one(0, usage) == "truefalse");
    assert_eq!(world.m.one(0, "SELECT count(*) FROM switchyard.closed_schemas"), "0");
    let back = world.m.cli(&["move", "rollback", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
    assert_eq!(world.m.one(0, usage), "truetrue");
    assert_eq!(world.check(), [""; 0], "no client is to see an error");
    world.nothing_left();
}

/// A name that is looked for where the schema may not be used must not be found elsewhere.
#[test]
fn names_that_are_there_twice_are_told_of() {
    let world = World::start(Model::Schema, false);
    world.m.context(r#"{"search_path": ["t_{tenant}", "public"]}"#);
    let notes = || {
        let plan = world.m.cli(&["move", "start", "acme", "--to", "s1", "--dry-run"]);
        plan["plan"]["findings"].to_string()
    };
    assert!(!notes().contains("closed by itself"), "{}", notes());
    world.m.shards[0].sql("CREATE TABLE marks (id int PRIMARY KEY)");
    assert!(notes().contains("public.marks, further on in the search path"), "{}", notes());
}
