//! What one tenant leaves behind, and what all tenants share.

use switchyard_shard_schema::install::{Form, Revokes};
use switchyard_tests::Setup;
use switchyard_tests::raw::messages as m;

use super::Plain::{self, LetsThrough, Stops};
use super::{plain, run, sealed};

/// Leftovers: isolation.md A2. What `acme` does, and what `globex` asks on the same connection.
const LEFTOVERS: &[(&str, &[&str], &str)] = &[
    ("a setting as a slot", &["SET my.slot = 'acme was here'"], "SELECT current_setting('my.slot', true)"),
    (
        "a setting made in a block",
        &["DO $$ BEGIN PERFORM set_config('my.slot', 'acme was here', false); END $$"],
        "SELECT current_setting('my.slot', true)",
    ),
    (
        "a temporary table",
        &["CREATE TEMP TABLE left_over AS SELECT name FROM clients"],
        "SELECT name FROM left_over",
    ),
    (
        "a temporary table that stands in",
        &["CREATE TEMP TABLE leads AS SELECT 'acme trap'::text AS name"],
        "SELECT row_to_json(l)::text FROM leads l",
    ),
    (
        "a trigger on a table that stands in",
        &[
            "CREATE TEMP TABLE clients (LIKE public.clients); CREATE FUNCTION pg_temp.t() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'acme'; END $$; \
           CREATE TRIGGER t BEFORE INSERT ON clients FOR EACH ROW EXECUTE FUNCTION pg_temp.t()",
        ],
        "WITH x AS (INSERT INTO clients VALUES ('globex', 500, 'globex own') RETURNING name), y AS (SELECT 1) SELECT CASE WHEN name = 'globex own' THEN '' ELSE 'acme' END FROM x",
    ),
    (
        "a function in pg_temp",
        &["CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql AS $$ SELECT 'acme' $$"],
        "SELECT pg_temp.f()",
    ),
    (
        "a prepared statement",
        &["PREPARE left_over AS SELECT name FROM clients"],
        "SELECT string_agg(statement, '') FROM pg_prepared_statements",
    ),
    (
        "a cursor WITH HOLD",
        &["BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT name FROM clients; COMMIT"],
        "FETCH ALL FROM c",
    ),
    (
        "an advisory lock",
        &["SELECT pg_advisory_lock(4711)"],
        "SELECT 'acme' FROM pg_locks WHERE locktype = 'advisory'",
    ),
    ("a channel listened to", &["LISTEN left_over"], "SELECT 'acme ' || x FROM pg_listening_channels() x"),
    (
        "currval",
        &["INSERT INTO clients (tenant_id, name) VALUES ('acme', 'acme new')"],
        "SELECT 'acme ' || currval('clients_id_seq')",
    ),
    (
        "lastval",
        &["INSERT INTO clients (tenant_id, name) VALUES ('acme', 'acme new')"],
        "SELECT 'acme ' || lastval()",
    ),
    ("an aborted transaction", &["BEGIN; SELECT 1/0"], "SELECT 'fine'"),
    (
        "800 temporary tables and a short timeout",
        &[
            "DO $$ BEGIN FOR n IN 1..800 LOOP EXECUTE format('CREATE TEMP TABLE t%s (a int)', n); END LOOP; END $$; SET my.slot = 'acme'; SET statement_timeout = '2ms'",
        ],
        "SELECT current_setting('my.slot', true)",
    ),
];

#[test]
fn nothing_is_left_for_the_next_tenant_in_either_mode() {
    let mut table = Vec::new();
    for (mode, s) in [("plain", plain()), ("sealed", sealed(Form::Parameter))] {
        for (name, leave, ask) in LEFTOVERS {
            // One connection: the second gets what the first has left as soon as it has gone.
            let mut acme = s.login("acme");
            run(&mut acme, leave);
            drop(acme);
            let seen = run(&mut s.login("globex"), &[ask]);
            table.push((*name, mode, seen.contains("acme")));
            s.shards[0].sql("DELETE FROM clients WHERE id >= 500 OR name LIKE '% new'");
        }
    }
    for (name, mode, seen) in &table {
        println!("{name:44} {mode:8} {}", if *seen { "SEEN" } else { "clean" });
    }
    assert!(table.iter().all(|(_, _, seen)| !seen));
}

/// Through shared places: isolation.md A3, security.md T16. What `acme` asks while `globex` works
/// on a connection of its own, with something to find.
const CHANNELS: &[(&str, Plain, &str)] = &[
    (
        "others' statements in pg_stat_activity",
        LetsThrough,
        "SELECT string_agg(query, ' ') FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
    ),
    (
        "the same by pg_stat_get_backend_activity",
        LetsThrough,
        "SELECT string_agg(pg_stat_get_backend_activity(n), ' ') FROM generate_series(1, 60) n WHERE pg_stat_get_backend_pid(n) <> pg_backend_pid()",
    ),
    (
        "ending others' connections",
        LetsThrough,
        "SELECT 'ended: hidden' FROM (SELECT pid FROM pg_locks WHERE pid <> pg_backend_pid() AND locktype = 'advisory' LIMIT 1) x WHERE pg_terminate_backend(pid)",
    ),
    ("large objects", LetsThrough, "SELECT convert_from(lo_get(424242), 'UTF8')"),
    ("others' prepared statements", Stops, "SELECT string_agg(statement, ' ') FROM pg_prepared_statements"),
    (
        "others' temporary tables",
        Stops,
        "SELECT query_to_xml('SELECT * FROM ' || oid::regclass, true, true, '')::text FROM pg_class WHERE relname = 'hideout'",
    ),
    (
        "statistics of columns",
        Stops,
        "SELECT string_agg(most_common_vals::text, ' ') FROM pg_stats WHERE tablename = 'clients'",
    ),
    (
        "the router's own words for itself",
        Stops,
        "SELECT string_agg(application_name, ' ') FROM pg_stat_activity",
    ),
];

#[test]
fn shared_places_show_no_rows_of_others_where_the_functions_are_revoked() {
    let mut table = Vec::new();
    for (mode, setup) in [("plain", None), ("sealed", Some(Form::Parameter))] {
        let base = Setup::new().shards(1).tenant_on("acme", 0).tenant_on("globex", 0).pool("size = 4");
        let all = Revokes { activity: true, signals: true, large_objects: true, advisory_locks: false };
        let s = match setup {
            None => base.start(),
            Some(form) => base.sealed(form, all).start(),
        };
        s.shards[0].sql("ANALYZE clients");
        for (name, plain, ask) in CHANNELS {
            let mut globex = s.login("globex");
            // Where they are revoked, it cannot make large objects either.
            let _ = globex.try_rows("SELECT lo_from_bytea(424242, 'hidden thing')");
            let _ = globex.try_rows("PREPARE hidden AS SELECT 'hidden thing'");
            globex.rows(
                "CREATE TEMP TABLE hideout AS SELECT 'hidden thing' AS what; SELECT pg_advisory_lock(hashtext(clock_timestamp()::text))",
            );
            globex.send(&m::query("SELECT pg_sleep(0.3), 'hidden thing'"));
            let mut acme = s.login("acme");
            let seen = run(&mut acme, &[ask]);
            let own = seen.replace("acme", "");
            let found = own.contains("hidden") || own.contains("globex");
            table.push((*name, mode, *plain, found));
            let _ = globex.until_ready_or_end();
            drop((acme, globex));
            s.shards[0].sql("SELECT lo_unlink(oid) FROM pg_largeobject_metadata");
        }
    }
    for (name, mode, _, found) in &table {
        println!("{name:44} {mode:8} {}", if *found { "SEEN" } else { "hidden" });
    }
    for (name, mode, plain, found) in &table {
        let expected = *mode == "plain" && *plain == LetsThrough;
        assert_eq!(*found, expected, "{name} in {mode} mode");
    }
}

/// Tells that others exist, or how much they have. Neither mode hides these; docs/sealing.md says so.
#[test]
fn what_neither_mode_hides_is_known() {
    let s = sealed(Form::Parameter);
    s.shards[0].sql("INSERT INTO clients SELECT 'globex', 100 + n, 'globex more' FROM generate_series(1, 5000) n; ANALYZE clients");
    let mut acme = s.login("acme");
    let estimate = acme.column("EXPLAIN SELECT * FROM clients WHERE tenant_id = 'globex'").join("\n");
    println!("row estimate of another tenant:\n{estimate}");
    for (what, sql) in [
        ("reltuples", "SELECT reltuples::text FROM pg_class WHERE relname = 'clients'"),
        ("size of a table", "SELECT pg_relation_size('clients')::text"),
        ("rows inserted", "SELECT n_tup_ins::text FROM pg_stat_all_tables WHERE relname = 'clients'"),
    ] {
        println!("{what:44} {}", acme.value(sql));
    }
    let names = acme.column("SELECT name FROM clients ORDER BY id");
    assert_eq!(names, s.canaries("acme"), "rows are hidden all the same");
}
