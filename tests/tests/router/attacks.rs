//! Every way that is known for tenant SQL to reach another tenant's rows, tried in both modes.
//!
//! The plain mode promises to stop accidents: what its table says is stopped is stopped, and the rest is why
//! there is a seal. In the sealed mode no attack may succeed; what only tells that others exist, and how much they have, is listed apart.

mod left;
mod steps;
mod tokens;

use switchyard_shard_schema::install::{Form, Revokes};
use switchyard_tests::Setup;
use switchyard_tests::raw::{Raw, messages as m};
use switchyard_tests::setup::Running;

/// What the plain mode does about it. The sealed mode must stop all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Plain {
    Stops,
    LetsThrough,
}

use Plain::{LetsThrough, Stops};

/// A name, what the plain mode does, and statements whose rows must not hold another tenant's.
type Attack = (&'static str, Plain, &'static [&'static str]);

/// Forging: isolation.md A1. Rows of `globex` and rows called `misplaced` are what is hunted for.
const FORGING: &[Attack] = &[
    ("SET", LetsThrough, &["SET app.tenant_id = 'globex'; SELECT name FROM clients"]),
    (
        "SET, quoted by code points",
        LetsThrough,
        &["SET \"app\".U&\"\\0074enant_id\" = 'globex'; SELECT name FROM clients"],
    ),
    (
        "SET, with a comment in it",
        LetsThrough,
        &["SET/**/app.tenant_id/**/TO/**/globex; SELECT name FROM clients"],
    ),
    (
        "SET LOCAL",
        LetsThrough,
        &["BEGIN; SET LOCAL app.tenant_id = 'globex'", "SELECT name FROM clients", "COMMIT"],
    ),
    (
        "set_config",
        LetsThrough,
        &["SELECT set_config('app.tenant_id', 'globex', false); SELECT name FROM clients"],
    ),
    (
        "one SELECT that walks all tenants",
        LetsThrough,
        &[
            "SELECT x.name FROM unnest(ARRAY['acme', 'globex', 'c0']) t, LATERAL (SELECT set_config('app.tenant_id', t, false)) s(v), \
           LATERAL (SELECT string_agg(name, ',') AS name FROM clients WHERE s.v IS NOT NULL) x",
        ],
    ),
    (
        "set_config in a CTE",
        LetsThrough,
        &[
            "BEGIN; WITH s AS MATERIALIZED (SELECT set_config('app.tenant_id', 'globex', false)) SELECT * FROM s",
            "SELECT name FROM clients",
            "COMMIT",
        ],
    ),
    (
        "DO",
        LetsThrough,
        &[
            "BEGIN; DO $$ BEGIN EXECUTE 'SET app.tenant_id = ''globex'''; END $$",
            "SELECT name FROM clients",
            "COMMIT",
        ],
    ),
    (
        "a function in pg_temp",
        LetsThrough,
        &[
            "BEGIN; CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant_id', 'globex', false) $$",
            "SELECT pg_temp.f()",
            "SELECT name FROM clients",
            "ROLLBACK",
        ],
    ),
    (
        "query_to_xml",
        LetsThrough,
        &[
            "BEGIN",
            "SELECT query_to_xml('select set'||'_config(''app.tenant_id'',''globex'',false)', true, true, '')",
            "SELECT name FROM clients",
            "ROLLBACK",
        ],
    ),
    (
        "ts_stat",
        LetsThrough,
        &[
            "BEGIN",
            "SELECT * FROM ts_stat('select to_tsvector(set'||'_config(''app.tenant_id'',''globex'',false))')",
            "SELECT name FROM clients",
            "ROLLBACK",
        ],
    ),
    (
        "UPDATE pg_settings",
        Stops,
        &["UPDATE pg_settings SET setting = 'globex' WHERE name = 'app.tenant_id'; SELECT name FROM clients"],
    ),
    ("RESET", Stops, &["RESET app.tenant_id; SELECT name FROM clients"]),
    ("RESET ALL", Stops, &["RESET ALL; SELECT name FROM clients"]),
    ("DISCARD ALL, then SELECT", Stops, &["DISCARD ALL", "SELECT name FROM clients"]),
    ("SET TO DEFAULT", Stops, &["SET app.tenant_id TO DEFAULT; SELECT name FROM clients"]),
    ("row_security off", Stops, &["SET row_security = off; SELECT name FROM clients"]),
    ("SET ROLE", Stops, &["SET ROLE crm_owner; SELECT name FROM clients"]),
    ("SET SESSION AUTHORIZATION", Stops, &["SET SESSION AUTHORIZATION super; SELECT name FROM clients"]),
    (
        "a default of the role",
        Stops,
        &["ALTER ROLE app SET app.tenant_id = 'globex'", "SELECT name FROM clients"],
    ),
    (
        "a default of the database",
        Stops,
        &["ALTER DATABASE crm SET app.tenant_id = 'globex'", "SELECT name FROM clients"],
    ),
    (
        "a function with SET",
        Stops,
        &[
            "CREATE FUNCTION scratch.g() RETURNS text LANGUAGE sql SET app.tenant_id = 'globex' AS $$ SELECT string_agg(name, ',') FROM public.clients $$; SELECT scratch.g()",
        ],
    ),
    (
        "a leaky function in WHERE",
        Stops,
        &[
            "CREATE FUNCTION pg_temp.leak(t text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE EXCEPTION 'saw %', t; END $$; \
         SELECT name FROM public.clients WHERE name NOT LIKE 'acme%' AND pg_temp.leak(name)",
        ],
    ),
    (
        "division by zero in WHERE",
        Stops,
        &["SELECT name FROM clients WHERE tenant_id = 'globex' AND 1 / (length(name) - length(name)) = 1"],
    ),
    (
        "ROLLBACK of what the router has set",
        Stops,
        &["BEGIN; SELECT 1; ROLLBACK", "SELECT name FROM clients"],
    ),
    (
        "a write in another's name",
        Stops,
        &["INSERT INTO clients VALUES ('globex', 9001, 'globex forged') RETURNING name"],
    ),
    (
        "an update into another's name",
        Stops,
        &["UPDATE clients SET tenant_id = 'globex', name = 'globex forged' RETURNING name"],
    ),
    // What the seal brings with it.
    (
        "the seal's parameter",
        Stops,
        &["SELECT set_config('backtrace_functions', 'sc_9_globex', false); SELECT name FROM clients"],
    ),
    (
        "the seal's parameter, SET LOCAL",
        Stops,
        &["BEGIN; SET LOCAL backtrace_functions = 'sc_9_globex'", "SELECT name FROM clients", "ROLLBACK"],
    ),
    (
        "the seal's parameter, by the role",
        Stops,
        &["ALTER ROLE app SET backtrace_functions = 'sc_9_globex'", "SELECT name FROM clients"],
    ),
    (
        "the seal's parameter, by pg_settings",
        Stops,
        &[
            "UPDATE pg_settings SET setting = 'sc_9_globex' WHERE name = 'backtrace_functions'; SELECT name FROM clients",
        ],
    ),
    (
        "the seal's sequence",
        Stops,
        &["SELECT setval('switchyard.session_tenant', 1); SELECT name FROM clients"],
    ),
    ("the seal's keys", Stops, &["SELECT encode(k_in, 'hex') || ' globex client' FROM switchyard.seal_key"]),
    ("the seal's own functions", Stops, &["SELECT switchyard.spend('x') || 'globex client'"]),
    (
        "a token of one's own",
        Stops,
        &[
            "SELECT switchyard.enter(repeat('0', 64) || '.1.1.1.1.1.1.9999999999.676c6f626578'); SELECT name FROM clients",
        ],
    ),
    (
        "names that stand in for the seal's",
        Stops,
        &[
            "BEGIN; CREATE TEMP TABLE fence (tenant_id text, epoch bigint, state text); CREATE TEMP TABLE seal_key AS SELECT 1 AS kid, ''::bytea AS k_in, ''::bytea AS k_out",
            "CREATE FUNCTION pg_temp.current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT 'sc_9_globex' $$; SET search_path = pg_temp, pg_catalog, public",
            "SELECT name FROM public.clients",
            "ROLLBACK",
        ],
    ),
    (
        "operators that stand in for the seal's",
        Stops,
        &[
            "CREATE FUNCTION scratch.yes(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'; \
         CREATE OPERATOR scratch.= (LEFTARG = text, RIGHTARG = text, FUNCTION = scratch.yes); SET search_path = scratch, pg_catalog, public",
            "SELECT name FROM public.clients",
            "RESET search_path; DROP OPERATOR scratch.= (text, text); DROP FUNCTION scratch.yes(text, text)",
        ],
    ),
];

/// What an attack brought in: everything that the server said in rows and errors.
fn run(session: &mut Raw, statements: &[&str]) -> String {
    let mut seen = String::new();
    for statement in statements {
        session.send(&m::query(statement));
        for message in session.until_ready_or_end() {
            match message.tag {
                b'D' => seen.extend(message.values().into_iter().flatten().map(|v| v + "\n")),
                // What a leaking function says; not the text of its own statement.
                b'E' => {
                    let text = String::from_utf8_lossy(&message.body).into_owned();
                    seen.extend(
                        text.split('\0').filter(|f| f.starts_with("Msaw")).map(|f| f.to_owned() + "\n"),
                    );
                }
                _ => {}
            }
        }
    }
    seen
}

/// Whether rows of somebody else were in it. What the attack has written itself says so at its end.
fn leaked(seen: &str) -> bool {
    ["globex client", "misplaced", "globex forged"].iter().any(|row| seen.contains(row))
}

/// Rows of the other tenant as they should be, and none that `acme` has put there.
fn untouched(s: &Running) -> bool {
    let sql = "SELECT count(*) FROM clients WHERE name LIKE '%forged%' AND tenant_id = 'globex'";
    s.shards[0].value(sql) == "0"
}

fn plain() -> Running {
    Setup::new().shards(1).tenant_on("acme", 0).tenant_on("globex", 0).pool("size = 1").start()
}

fn sealed(form: Form) -> Running {
    let revokes = Revokes { activity: true, signals: true, large_objects: true, advisory_locks: false };
    Setup::new()
        .shards(1)
        .tenant_on("acme", 0)
        .tenant_on("globex", 0)
        .pool("size = 1")
        .sealed(form, revokes)
        .start()
}

/// What succeeded, of all that is tried on one setup.
fn forgeries(s: &Running) -> Vec<&'static str> {
    let mut succeeded = Vec::new();
    for (name, _, statements) in FORGING {
        // The router may end a session that goes too far: each attack has its own.
        let seen = run(&mut s.login("acme"), statements);
        if leaked(&seen) || !untouched(s) {
            succeeded.push(*name);
            s.shards[0].sql("DELETE FROM clients WHERE name LIKE '%forged%'");
        }
        // Whatever it was, the neighbours are well.
        let names = "SELECT name FROM public.clients ORDER BY id";
        assert_eq!(s.login("globex").column(names), s.canaries("globex"), "after {name}");
        assert_eq!(s.login("acme").column(names), s.canaries("acme"), "after {name}");
    }
    succeeded
}

#[test]
fn forging_is_stopped_by_the_seal_and_the_plain_mode_says_what_it_does_not_stop() {
    let (in_plain, in_sealed, in_sequence) = std::thread::scope(|scope| {
        let sealed_form = |form| move || forgeries(&sealed(form));
        let one = scope.spawn(|| forgeries(&plain()));
        let two = scope.spawn(sealed_form(Form::Parameter));
        let three = scope.spawn(sealed_form(Form::Sequence));
        let join = |t: std::thread::ScopedJoinHandle<'_, Vec<&'static str>>| t.join().expect("it was tried");
        (join(one), join(two), join(three))
    });
    let word = |list: &[&str], name: &str| if list.contains(&name) { "SUCCEEDS" } else { "stopped" };
    println!("{:44} {:10} {:10} {:10}", "attack", "plain", "sealed", "sequence");
    for (name, _, _) in FORGING {
        println!(
            "{name:44} {:10} {:10} {:10}",
            word(&in_plain, name),
            word(&in_sealed, name),
            word(&in_sequence, name)
        );
    }
    assert_eq!((in_sealed, in_sequence), (vec![], vec![]), "the seal was broken");
    let expected: Vec<_> = FORGING.iter().filter(|a| a.1 == LetsThrough).map(|a| a.0).collect();
    assert_eq!(in_plain, expected, "what the plain mode lets through");
}
