//! LISTEN and NOTIFY over connections that change hands: everybody hears what its own tenant sends, in
//! order and all of it, and nobody hears another tenant.
//!
//! Time decides nothing here: a hub passes notifications on in the order of their commits, so who has
//! heard a last word has heard everything before it.

use switchyard_tests::drivers::{node, python};
use switchyard_tests::raw::Raw;
use switchyard_tests::raw::messages as m;
use switchyard_tests::wait::until_true;
use switchyard_tests::{Dice, Running, Setup};

const TENANTS: [&str; 4] = ["acme", "globex", "initech", "umbrella"];

/// One shard and two server connections for all.
fn setup() -> Setup {
    Setup::new().shards(1).pool("size = 2").tenants(TENANTS)
}

fn payloads(heard: Vec<(String, String)>) -> Vec<String> {
    heard.into_iter().map(|(_, payload)| payload).collect()
}

fn metric(s: &Running, name: &str, labels: &[(&str, &str)]) -> f64 {
    s.router.metrics().sum(&format!("switchyard_notification{name}"), labels)
}

/// No session is pinned.
#[track_caller]
fn nobody_is_pinned(s: &Running) {
    assert_eq!(s.router.metrics().sum("switchyard_pins_total", &[]), 0.0);
}

#[test]
fn a_listener_hears_its_own_tenant_and_nobody_else() {
    let s = setup().start();
    let mut listeners: Vec<_> = TENANTS.iter().map(|tenant| s.login(tenant)).collect();
    for listener in &mut listeners {
        listener.rows("LISTEN news");
    }
    let mut senders: Vec<_> = TENANTS.iter().map(|tenant| s.login(tenant)).collect();
    for n in 0..25 {
        for (tenant, sender) in TENANTS.iter().zip(&mut senders) {
            sender.rows(&format!("NOTIFY news, '{tenant} {n}'"));
        }
    }
    for ((tenant, sender), listener) in TENANTS.iter().zip(&mut senders).zip(&mut listeners) {
        let expected: Vec<_> = (0..25).map(|n| format!("{tenant} {n}")).collect();
        assert_eq!(payloads(listener.heard(sender, "news")), expected, "{tenant}");
    }
    nobody_is_pinned(&s);
    assert_eq!(metric(&s, "_listeners", &[]), 4.0);
    assert_eq!(metric(&s, "_hubs", &[]), 1.0);
    assert_eq!(metric(&s, "s_delivered_total", &[]), 4.0 * 26.0);
    assert_eq!(metric(&s, "s_dropped_total", &[]), 0.0);
    assert_eq!(metric(&s, "_forgeries_total", &[]), 0.0);
}

#[test]
fn who_comes_to_a_busy_connection_is_heard_from_the_start() {
    // The connections have served both before anybody listens, and have announced nothing.
    let s = setup().pool("size = 1").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    for n in 0..6 {
        acme.rows("NOTIFY news, 'early'");
        globex.rows("NOTIFY news, 'early'");
        let mut listener = s.login(if n % 2 == 0 { "acme" } else { "globex" });
        listener.rows("LISTEN news");
        globex.rows("NOTIFY news, 'globex'");
        acme.rows("NOTIFY news, 'acme'");
        let (own, sender) = if n % 2 == 0 { ("acme", &mut acme) } else { ("globex", &mut globex) };
        assert_eq!(payloads(listener.heard(sender, "news")), [own]);
    }
    nobody_is_pinned(&s);
}

#[test]
fn a_transaction_that_was_open_before_is_heard_when_it_commits() {
    let s = setup().start();
    let mut acme = s.login("acme");
    acme.rows("BEGIN; NOTIFY news, 'begun before'");
    let mut listener = s.login("acme");
    listener.rows("LISTEN news");
    acme.rows("COMMIT");
    assert_eq!(payloads(listener.heard(&mut acme, "news")), ["begun before"]);
    assert_eq!(metric(&s, "s_dropped_total", &[]), 0.0);
}

#[test]
fn triggers_and_functions_notify_by_plain_names() {
    let s = setup()
        .sql(
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_notify('leads', NEW.tenant_id || ' ' || NEW.first_name); RETURN NEW; END $$",
        )
        .sql("CREATE TRIGGER tell AFTER INSERT ON leads FOR EACH ROW EXECUTE FUNCTION tell()")
        .start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    let (mut to_acme, mut to_globex) = (s.login("acme"), s.login("globex"));
    to_acme.rows("LISTEN leads");
    to_globex.rows("LISTEN leads");
    for name in ["Ann", "Bob"] {
        for raw in [&mut acme, &mut globex] {
            raw.rows(&format!("INSERT INTO leads (first_name) VALUES ('{name}')"));
        }
    }
    assert_eq!(payloads(to_acme.heard(&mut acme, "leads")), ["acme Ann", "acme Bob"]);
    assert_eq!(payloads(to_globex.heard(&mut globex, "leads")), ["globex Ann", "globex Bob"]);
}

#[test]
fn a_listen_in_a_function_counts_as_well() {
    let s = setup().start();
    let (mut acme, mut other) = (s.login("acme"), s.login("acme"));
    acme.rows("LISTEN known");
    acme.rows("DO $$ BEGIN EXECUTE 'LISTEN hidden'; END $$");
    // The hub listens on it soon after.
    until_true("the hub", || {
        other.rows("NOTIFY hidden, 'x'");
        other.rows("NOTIFY known, 'y'");
        let (channel, _) = acme.until_tag(b'A').last().expect("a message").note();
        channel == "hidden"
    });
    nobody_is_pinned(&s);
    acme.rows("UNLISTEN *");
    assert_eq!(metric(&s, "_listeners", &[]), 0.0);
}

#[test]
fn an_idle_listener_costs_no_server_connection() {
    let s = setup().start();
    let mut listeners: Vec<_> = (0..40)
        .map(|n| {
            let mut listener = s.login(TENANTS[n % 4]);
            listener.rows(&format!("LISTEN news; LISTEN news_{n}"));
            listener
        })
        .collect();
    // Two of the pool, and the hub's.
    until_true("the connections", || s.server_connections() <= 3);
    for (n, listener) in listeners.iter_mut().enumerate() {
        let mut sender = s.login(TENANTS[n % 4]);
        sender.rows(&format!("NOTIFY news_{n}, 'to {n}'"));
        assert_eq!(payloads(listener.heard(&mut sender, &format!("news_{n}"))), [format!("to {n}")]);
    }
    assert_eq!(metric(&s, "_listeners", &[]), 40.0);
    nobody_is_pinned(&s);
    drop(listeners);
    until_true("the end of the listeners", || metric(&s, "_listeners", &[]) == 0.0);
}

#[test]
fn who_notifies_itself_hears_it_before_it_is_ready() {
    let s = setup().start();
    for script in [
        "NOTIFY a, 'x'",
        "SELECT pg_notify('a', 'x')",
        "BEGIN; NOTIFY a, 'x'; COMMIT",
        "LISTEN b; NOTIFY b, 'x'; NOTIFY a, 'y'",
        "BEGIN; LISTEN b; NOTIFY b, 'x'; NOTIFY a, 'y'; COMMIT",
    ] {
        let tags = |raw: &mut Raw| -> Vec<u8> {
            raw.rows("LISTEN a");
            raw.round(&m::query(script)).iter().map(|m| m.tag).collect()
        };
        assert_eq!(tags(&mut s.login("acme")), tags(&mut s.direct("acme")), "{script}");
    }
}

#[test]
fn inside_a_transaction_nothing_is_delivered() {
    let s = setup().start();
    let (mut acme, mut other, mut witness) = (s.login("acme"), s.login("acme"), s.login("acme"));
    acme.rows("LISTEN a");
    witness.rows("LISTEN a");
    acme.rows("BEGIN");
    other.rows("NOTIFY a, 'x'");
    // By now it is in all mailboxes.
    witness.heard(&mut other, "a");
    for _ in 0..3 {
        assert!(acme.round(&m::query("SELECT 1")).iter().all(|m| m.tag != b'A'));
    }
    acme.rows("COMMIT");
    assert_eq!(payloads(acme.heard(&mut other, "a"))[0], "x");
}

#[test]
fn replies_are_those_of_postgresql() {
    let s = setup().start();
    let long = "x".repeat(70);
    let scripts = [
        "LISTEN a",
        "LISTEN \"A b\"; UNLISTEN *",
        "LISTEN",
        "LISTEN 1",
        "LISTEN a b",
        "LISTEN select",
        "UNLISTEN a",
        "BEGIN; LISTEN a; ROLLBACK",
        "LISTEN a; SELECT 1/0",
        &format!("LISTEN {long}"),
        "LISTEN U&\"d\\0061t\"",
    ];
    let known = [scripts[10]];
    let simple = scripts.iter().filter(|sql| !known.contains(sql));
    let extended = simple.clone().filter(|sql| !sql.contains(';'));
    s.same_each(
        "acme",
        simple
            .map(|sql| (*sql, switchyard_tests::raw::differential::round(m::query(sql))))
            .chain(extended.clone().map(|sql| {
                (
                    *sql,
                    switchyard_tests::raw::differential::round([m::extended(sql, &[]), m::sync()].concat()),
                )
            }))
            .chain(extended.map(|sql| {
                let named =
                    [m::parse("s", sql), m::describe(b'S', "s"), m::bind("", "s", &[]), m::execute("", 0)];
                (*sql, switchyard_tests::raw::differential::round([named.concat(), m::sync()].concat()))
            })),
    );
    // Said rather than done by halves: the name is not understood.
    assert_eq!(s.login("acme").error(known[0]).sqlstate, "0A000");
}

#[test]
fn what_is_listened_on_is_what_was_committed() {
    let s = setup().pool("size = 2").start();
    let every = ["a", "b", "c", "A b", &"x".repeat(63)].map(str::to_owned);
    let long = format!("LISTEN {}", "x".repeat(70));
    let scripts: [&[&str]; 14] = [
        &["LISTEN a"],
        &["LISTEN a", "UNLISTEN a"],
        &["LISTEN a; LISTEN b", "UNLISTEN *"],
        &["LISTEN a", "LISTEN b", "BEGIN; UNLISTEN a; ROLLBACK"],
        &["BEGIN", "LISTEN a", "COMMIT"],
        &["BEGIN", "LISTEN a", "SAVEPOINT s", "LISTEN b", "ROLLBACK TO s", "LISTEN c", "COMMIT"],
        &["BEGIN", "SAVEPOINT s", "LISTEN b", "ROLLBACK TO s", "LISTEN c", "COMMIT"],
        &["LISTEN a; SELECT 1/0"],
        &["BEGIN; LISTEN a; COMMIT; SELECT 1/0"],
        &["BEGIN", "LISTEN a", "SELECT 1/0", "COMMIT"],
        &["LISTEN a; LISTEN b", "DISCARD ALL"],
        &["LISTEN \"A b\"", "UNLISTEN \"a b\""],
        &["LISTEN A; LISTEN a", &long],
        &[
            "LISTEN a; LISTEN b",
            "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;",
            "LISTEN c",
        ],
    ];
    for script in scripts {
        let listened = |mut listener: Raw, mut sender: Raw| {
            for sql in script {
                let _ = listener.try_rows(sql);
            }
            listener.rows("LISTEN last");
            for name in &every {
                sender.rows(&format!("NOTIFY \"{name}\""));
            }
            listener.heard(&mut sender, "last").into_iter().map(|(channel, _)| channel).collect::<Vec<_>>()
        };
        let expected = listened(s.direct("acme"), s.direct("acme"));
        assert_eq!(listened(s.login("acme"), s.login("acme")), expected, "{script:?}");
    }
    nobody_is_pinned(&s);
}

#[test]
fn the_hubs_connection_may_die() {
    let s = setup().start();
    let (mut acme, mut listener) = (s.login("acme"), s.login("acme"));
    listener.rows("LISTEN news");
    for n in 0..3 {
        let hub = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%switchyard_%' AND query LIKE '%pg_notify(''switchyard%' AND pid <> pg_backend_pid()";
        let pid = s.shards[0].value(hub);
        s.shards[0].sql(&format!("SELECT pg_terminate_backend({pid})"));
        // The client is told that it may have missed something.
        let told = listener.until_tag(b'N').pop().expect("a message");
        assert_eq!(told.sqlstate(), "01000");
        let before = metric(&s, "s_delivered_total", &[]);
        until_true("another hub", || {
            acme.rows(&format!("NOTIFY news, 'try {n}'"));
            metric(&s, "s_delivered_total", &[]) > before
        });
        let all = payloads(listener.heard(&mut acme, "news"));
        assert!(all.last().is_some_and(|last| *last == format!("try {n}")), "{all:?}");
    }
    assert_eq!(metric(&s, "_gaps_total", &[]), 3.0);
    assert_eq!(listener.column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
}

#[test]
fn a_hub_that_cannot_connect_is_an_error_of_listen() {
    let s = setup().pool("size = 1").start();
    let mut acme = s.login("acme");
    acme.rows("SELECT 1");
    s.shards[0].sql("ALTER ROLE app CONNECTION LIMIT 1");
    assert_eq!(acme.error("LISTEN news").sqlstate, "08006");
    assert_eq!(metric(&s, "_listeners", &[]), 0.0);
    s.shards[0].sql("ALTER ROLE app CONNECTION LIMIT -1");
    until_true("the shard", || acme.try_rows("LISTEN news").is_ok());
    let mut other = s.login("acme");
    other.rows("NOTIFY news, 'x'");
    assert_eq!(payloads(acme.heard(&mut other, "news")), ["x"]);
}

#[test]
fn the_sessions_of_a_tenant_listen_on_so_many_channels_together() {
    let s = setup().section("[limits]\nchannels_per_tenant = 3").start();
    let (mut one, mut two) = (s.login("acme"), s.login("acme"));
    one.rows("LISTEN a; LISTEN b");
    // One that is listened on already counts once.
    two.rows("LISTEN a; LISTEN c");
    let error = two.error("LISTEN d");
    assert_eq!(error.sqlstate, "53400", "{error:?}");
    assert_eq!(one.error("LISTEN d; LISTEN e").sqlstate, "53400");
    // Others are not concerned, and there is room again when one is left.
    s.login("globex").rows("LISTEN d; LISTEN e; LISTEN f");
    one.rows("UNLISTEN b");
    two.rows("LISTEN d");
    assert_eq!(one.error("LISTEN e").sqlstate, "53400");
    two.rows("NOTIFY d, 'mine'; NOTIFY e, 'of nobody'; NOTIFY a, 'last'");
    assert_eq!(payloads(one.heard(&mut s.login("acme"), "a")), ["last"]);
}

#[test]
fn a_mailbox_that_is_full_ends_the_session() {
    let s = setup().section("[limits]\nmailbox_bytes = \"16KiB\"").start();
    let (mut acme, mut other) = (s.login("acme"), s.login("acme"));
    acme.rows("LISTEN news");
    acme.rows("BEGIN");
    let word = "x".repeat(7000);
    for n in 0..3 {
        other.rows(&format!("NOTIFY news, '{n}{word}'"));
    }
    let end = acme.until_tag(b'E').pop().expect("a message");
    assert_eq!(end.sqlstate(), "53400");
    assert!(acme.ends());
    assert_eq!(metric(&s, "s_dropped_total", &[("reason", "overflow")]), 1.0);
}

#[test]
fn tags_cannot_be_used_by_tenants() {
    let s = setup().pool("size = 1").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.rows("LISTEN news");
    globex.rows("LISTEN news");
    // Globex, which shares the process with acme, knows the channel, hears all tags and says them again.
    let mut spy = s.direct("globex");
    let query = s.shards[0].value("SELECT query FROM pg_stat_activity WHERE query LIKE '%pg_notify(''switchyard%' AND pid <> pg_backend_pid()");
    let channel = query.split('\'').nth(1).expect("the channel").to_owned();
    spy.rows(&format!("LISTEN {channel}"));
    for _ in 0..3 {
        acme.rows("SELECT 1");
        globex.rows("SELECT 1");
    }
    let mut tags = Vec::new();
    spy.send(&m::query("SELECT 1"));
    for message in spy.until_ready() {
        if message.tag == b'A' {
            tags.push(message.note().1);
        }
    }
    assert!(tags.iter().filter(|tag| tag.starts_with('t')).count() >= 4, "{tags:?}");
    for tag in &tags {
        globex.rows(&format!("NOTIFY {channel}, '{tag}'; NOTIFY news, 'from globex'"));
        globex.rows("NOTIFY news, 'from globex again'");
    }
    // Nobody can listen on that channel through the router.
    globex.rows(&format!("LISTEN {channel}"));
    let mut sender = s.login("acme");
    assert_eq!(payloads(acme.heard(&mut sender, "news")), [""; 0]);
    let mut sender = s.login("globex");
    for (on, _) in globex.heard(&mut sender, "news") {
        assert_eq!(on, "news");
    }
    assert!(metric(&s, "_forgeries_total", &[]) >= 4.0);
}

#[test]
fn by_session_as_well_nobody_hears_another_tenant() {
    let s = setup().pool("size = 10").router("pool_mode = \"session\"").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    let (mut to_acme, mut to_globex) = (s.login("acme"), s.login("globex"));
    to_acme.rows("LISTEN news");
    to_globex.rows("LISTEN news");
    for n in 0..3 {
        acme.rows(&format!("NOTIFY news, 'acme {n}'"));
        globex.rows(&format!("NOTIFY news, 'globex {n}'"));
    }
    assert_eq!(payloads(to_acme.heard(&mut acme, "news")), ["acme 0", "acme 1", "acme 2"]);
    assert_eq!(payloads(to_globex.heard(&mut globex, "news")), ["globex 0", "globex 1", "globex 2"]);
}

/// Applications with a listener for each tenant, while two clients of every tenant notify.
fn drivers(app: impl Fn(&serde_json::Value) -> serde_json::Value) {
    let s = setup().start();
    let urls: serde_json::Map<_, _> =
        TENANTS.iter().map(|tenant| ((*tenant).to_owned(), s.url(tenant).into())).collect();
    let said = app(&serde_json::json!({"urls": urls, "clients": 2, "rounds": 10, "driver": ""}));
    assert!(said["rows"].as_u64().is_some_and(|rows| rows >= 80), "{said}");
    nobody_is_pinned(&s);
    until_true("the end of the listeners", || metric(&s, "_listeners", &[]) == 0.0);
    assert_eq!(metric(&s, "s_dropped_total", &[]), 0.0);
}

#[test]
fn listeners_by_psycopg() {
    drivers(|input| {
        let mut input = input.clone();
        input["driver"] = "psycopg".into();
        python("listen_app.py", &input)
    });
}

#[test]
fn listeners_by_asyncpg() {
    drivers(|input| python("listen_app.py", input));
}

#[test]
fn listeners_by_node_postgres() {
    drivers(|input| node("listen_app.mjs", input));
}

#[test]
fn a_listener_follows_its_tenant_to_another_shard() {
    let mut s = Setup::new().pool("size = 2").tenant_on("acme", 0).tenant_on("globex", 1).start();
    let (mut acme, mut other, mut globex) = (s.login("acme"), s.login("acme"), s.login("globex"));
    acme.rows("LISTEN news");
    globex.rows("LISTEN news");
    other.rows("NOTIFY news, 'before'");
    assert_eq!(payloads(acme.heard(&mut other, "news")), ["before"]);
    let moved = |toml: &str| toml.replace("id = \"acme\"\nshard = \"s0\"", "id = \"acme\"\nshard = \"s1\"");
    assert!(s.reload(moved));
    // Its hub is another one from soon after.
    let before = metric(&s, "s_delivered_total", &[]);
    until_true("the other hub", || {
        other.rows("NOTIFY news, 'after'");
        metric(&s, "s_delivered_total", &[]) > before
    });
    let all = payloads(acme.heard(&mut other, "news"));
    assert!(!all.is_empty() && all.iter().all(|payload| payload == "after"), "{all:?}");
    let mut sender = s.login("globex");
    assert_eq!(payloads(globex.heard(&mut sender, "news")), [""; 0]);
}

/// One step of a random program: whose session, and what it says.
type Step = (usize, String);

const SESSIONS: usize = 6;

/// Sessions 0 and 1 are of the first tenant, 2 and 3 of the second, and so on.
fn tenant_of(session: usize) -> usize {
    session / 2
}

fn program(dice: &mut Dice, steps: usize) -> Vec<Step> {
    (0..steps)
        .map(|n| {
            let (a, b) = (*dice.pick(&["red", "blue"]), *dice.pick(&["red", "blue"]));
            let sql = match dice.roll(20) {
                14..18 => format!("LISTEN {a}"),
                0 | 1 => format!("NOTIFY {a}, '{n}'; NOTIFY {b}, '{n} too'"),
                2 | 3 => format!("UNLISTEN {a}"),
                4 => format!("LISTEN {a}; UNLISTEN {b}"),
                5 => "UNLISTEN *".to_owned(),
                6 => format!("BEGIN; LISTEN {a}; NOTIFY {a}, '{n}'; ROLLBACK"),
                7 => format!(
                    "BEGIN; LISTEN {a}; SAVEPOINT s; LISTEN {b}; ROLLBACK TO s; NOTIFY {b}, '{n}'; COMMIT"
                ),
                8 => format!("BEGIN; NOTIFY {a}, '{n} a'; NOTIFY {b}, '{n} b'; COMMIT"),
                9 => "DISCARD ALL".to_owned(),
                10 => format!("SELECT pg_notify('{a}', '{n}')"),
                _ => format!("NOTIFY {a}, '{n}'"),
            };
            (dice.roll(SESSIONS), sql)
        })
        .collect()
}

/// Plays those steps that `plays` picks, one after the other: what each session hears, in order.
fn heard_by_all(
    program: &[Step],
    sessions: &mut [Option<Raw>],
    plays: impl Fn(usize) -> bool,
) -> Vec<Vec<(String, String)>> {
    let mut heard = vec![Vec::new(); SESSIONS];
    let mut say = |session: usize, raw: &mut Raw, sql: &str| {
        let notes = raw.round(&m::query(sql)).into_iter().filter(|m| m.tag == b'A').map(|m| m.note());
        heard[session].extend(notes.filter(|(channel, _)| !channel.starts_with("flush")));
    };
    let last = (0..SESSIONS).map(|session| (session, String::new()));
    let steps = (0..SESSIONS).map(|n| (n, String::new())).chain(program.iter().cloned()).chain(last);
    for (session, sql) in steps.filter(|(session, _)| plays(*session)) {
        let raw = sessions[session].as_mut().expect("a session");
        // What was sent before is heard before its own notification, which is there when it is ready.
        say(session, raw, &format!("LISTEN flush_{session}"));
        say(session, raw, &format!("NOTIFY flush_{session}"));
        if !sql.is_empty() {
            say(session, raw, &sql);
        }
    }
    heard
}

#[test]
fn random_programs_of_several_tenants_hear_what_each_tenant_hears_alone() {
    let s = setup().start();
    let mut dice = Dice::new(20_261_121);
    for round in 0..4 {
        let program = program(&mut dice, 120);
        let mut routed: Vec<_> = (0..SESSIONS).map(|n| Some(s.login(TENANTS[tenant_of(n)]))).collect();
        let found = heard_by_all(&program, &mut routed, |_| true);
        drop(routed);
        assert!(found.iter().flatten().count() > 10, "the program is worth something");
        for (tenant, name) in TENANTS.iter().enumerate().take(SESSIONS / 2) {
            let own = |session: usize| tenant_of(session) == tenant;
            let mut direct: Vec<_> = (0..SESSIONS).map(|n| own(n).then(|| s.direct(name))).collect();
            let expected = heard_by_all(&program, &mut direct, own);
            for session in (0..SESSIONS).filter(|n| own(*n)) {
                assert_eq!(
                    found[session], expected[session],
                    "round {round}, session {session}: {program:#?}"
                );
            }
        }
    }
    nobody_is_pinned(&s);
}
