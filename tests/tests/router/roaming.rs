//! Sessions that act for many tenants: each transaction goes to the shard of the tenant that it names, and is that
//! tenant's alone.

use switchyard_shard_schema::install::{Form, Revokes};
use switchyard_tests::raw::messages::{self as m, Message};
use switchyard_tests::{Dice, Raw, Running, Setup};

mod apps;
mod counted;

const TENANTS: [(&str, usize); 4] = [("acme", 0), ("globex", 1), ("initech", 0), ("umbrella", 1)];
const NAMES: &str = "SELECT name FROM clients ORDER BY id";
const SERVICE: &str = "service";
const SECRET: &str = "service-secret";

fn setup() -> Setup {
    let user = switchyard_tests::setup::user_toml(SERVICE, SECRET, "tenants = \"*\"\nroaming = true");
    let few = "tenants = [\"acme\", \"globex\"]\nroaming = true";
    let few = switchyard_tests::setup::user_toml("few", SECRET, few);
    let mut setup = Setup::new().section(&user).section(&few);
    for (tenant, shard) in TENANTS {
        setup = setup.tenant_on(tenant, shard);
    }
    setup
}

fn with_home() -> Setup {
    setup().section("[roaming]\ndefault_shard = \"s1\"\ncomment = \"tenant\"")
}

fn service(s: &Running) -> Raw {
    s.plain_target(SERVICE, SECRET).connect()
}

#[test]
fn every_way_to_name_a_tenant() {
    let s = setup().start();
    let mut r = service(&s);
    for (tenant, _) in TENANTS {
        let own = s.canaries(tenant);
        for set in [
            format!("SET app.tenant_id = '{tenant}'"),
            format!("set session \"app\".tenant_id to {tenant}"),
            format!("SELECT set_config('app.tenant_id', '{tenant}', false)"),
        ] {
            r.rows(&set);
            assert_eq!(r.column(NAMES), own, "{set}");
            assert_eq!(r.value("SHOW app.tenant_id"), tenant);
            r.rows("BEGIN ISOLATION LEVEL REPEATABLE READ");
            assert_eq!(r.column(NAMES), own, "{set}");
            assert_eq!(r.value("SHOW transaction_isolation"), "repeatable read");
            r.rows("COMMIT");
        }
        r.rows("RESET app.tenant_id");
        assert_eq!(r.error(NAMES).sqlstate, "55000");
        for set in [
            format!("SET LOCAL app.tenant_id = '{tenant}'"),
            format!("SELECT set_config('app.tenant_id', '{tenant}', true)"),
            format!(
                "SELECT set_config('app.user', 'x', true), set_config('app.tenant_id', '{tenant}', true)"
            ),
        ] {
            r.rows("BEGIN");
            r.rows(&set);
            assert_eq!(r.column(NAMES), own, "{set}");
            r.rows("COMMIT");
            assert_eq!(r.error(NAMES).sqlstate, "55000");
            let one = r.column(&format!("{set}; {NAMES}"));
            assert_eq!(one.last(), own.last(), "for the length of a message: {set}");
        }
        for value in [true, false] {
            let sql = format!("SELECT set_config($1, $2, {value})");
            let name: Option<&[u8]> = Some(b"app.tenant_id");
            r.rows("START TRANSACTION");
            let replies = r.round(&m::extended(&sql, &[name, Some(tenant.as_bytes())]));
            assert!(
                replies.iter().any(|m| m.tag == b'D' && m.values()[0].as_deref() == Some(tenant)),
                "{sql}"
            );
            assert_eq!(r.column(NAMES), own, "{sql}");
            r.rows("ROLLBACK");
            assert_eq!(r.error(NAMES).sqlstate, "55000", "a rollback takes it back");
        }
    }
}

#[test]
fn a_tenant_does_not_change_within_a_transaction() {
    let s = with_home().start();
    let mut r = service(&s);
    r.rows("BEGIN");
    r.rows("SET LOCAL app.tenant_id = 'acme'");
    assert_eq!(r.column(NAMES), s.canaries("acme"));
    let error = r.error("SET LOCAL app.tenant_id = 'globex'");
    assert_eq!(error.sqlstate, "25001");
    assert_eq!(r.error(NAMES).sqlstate, "25P02", "the transaction has failed, as PostgreSQL has it");
    r.rows("ROLLBACK");
    // Nor by what a savepoint brings back.
    r.rows("SET app.tenant_id = 'globex'");
    r.rows("BEGIN");
    r.rows("SAVEPOINT one");
    r.rows("SET LOCAL app.tenant_id = 'acme'");
    assert_eq!(r.column(NAMES), s.canaries("acme"));
    r.rows("ROLLBACK TO one");
    assert_eq!(r.value("SHOW app.tenant_id"), "globex");
    assert_eq!(r.error(NAMES).sqlstate, "25001");
    r.rows("ROLLBACK TO one");
    r.rows("SET LOCAL app.tenant_id = 'acme'");
    assert_eq!(r.column(NAMES), s.canaries("acme"));
    r.rows("COMMIT");
    assert_eq!(r.column(NAMES), s.canaries("globex"));
    // Nor within one message.
    let both = format!("SET app.tenant_id = 'acme'; {NAMES}; SET app.tenant_id = 'globex'; {NAMES}");
    assert_eq!(r.error(&both).sqlstate, "25001");
    assert_eq!(r.column(NAMES), s.canaries("globex"), "nothing of it was run");
    let one = format!("SET app.tenant_id = 'acme'; {NAMES}");
    assert_eq!(r.column(&one).len(), 3);
    assert_eq!(r.column(NAMES), s.canaries("acme"));
    // Nor by extended messages, of which the rest is skipped.
    r.rows("BEGIN");
    assert_eq!(r.column(NAMES), s.canaries("acme"));
    let set = "SELECT set_config('app.tenant_id', $1, true)";
    let replies = r.round(&m::extended(set, &[Some(b"globex")]));
    let error = replies.iter().find(|m| m.tag == b'E').expect("an error");
    assert_eq!(error.sqlstate(), "25001");
    assert_eq!(replies.last().expect("ready").status(), 'E');
    r.rows("ROLLBACK");
}

#[test]
fn nobody_in_particular() {
    let s = with_home().start();
    let mut r = service(&s);
    assert_eq!(r.column(NAMES), Vec::<String>::new(), "policies show nothing without a tenant");
    assert_eq!(r.value("SELECT count(*) FROM scratch.items"), "0");
    r.rows("INSERT INTO scratch.items VALUES (1, 'of all')");
    assert_eq!(s.shards[1].value("SELECT count(*) FROM scratch.items"), "1");
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "0");
    r.rows("BEGIN");
    r.rows("SELECT 1");
    assert_eq!(r.error("SET LOCAL app.tenant_id = 'acme'").sqlstate, "25001");
    r.rows("ROLLBACK");
    for (tenant, _) in TENANTS {
        assert_eq!(r.column(&format!("/* tenant='{tenant}' */ {NAMES}")), s.canaries(tenant));
        assert_eq!(r.column(&format!("{NAMES} /*action='x',tenant='{tenant}'*/")), s.canaries(tenant));
        assert_eq!(r.column(NAMES), Vec::<String>::new());
    }
    r.rows("SET app.tenant_id = 'acme'");
    assert_eq!(r.error(&format!("/* tenant='globex' */ {NAMES}")).sqlstate, "22023");
    assert_eq!(r.column(&format!("/* tenant='acme' */ {NAMES}")), s.canaries("acme"));
}

#[test]
fn who_may_not() {
    let s = setup().start();
    let mut r = s.plain_target("few", SECRET).connect();
    for tenant in ["umbrella", "nobody-knows", "it''s", "x y"] {
        let error = r.error(&format!("SET app.tenant_id = '{tenant}'"));
        assert_eq!(error.sqlstate, "42501", "{tenant}");
        r.rows("BEGIN");
        assert_eq!(r.error(&format!("SET LOCAL app.tenant_id = '{tenant}'")).sqlstate, "42501");
        assert_eq!(r.error("SELECT 1").sqlstate, "25P02");
        r.rows("ROLLBACK");
    }
    assert_eq!(r.error("LISTEN news").sqlstate, "0A000");
    assert_eq!(r.error("SET app.tenant_id = E'a\\\\b'").sqlstate, "0A000");
    // What sets and shows nothing of anybody's needs no tenant.
    r.rows("SET work_mem = '7MB'");
    assert_eq!(r.value("SHOW work_mem"), "7MB");
    for sql in
        ["SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL", "DISCARD ALL", "COMMIT", ""]
    {
        r.rows(sql);
    }
    r.rows("SET app.tenant_id = 'acme'");
    assert_eq!(r.column(NAMES), s.canaries("acme"));
    r.rows("CREATE TEMP TABLE kept (a int)");
    assert_eq!(r.error("SET app.tenant_id = 'globex'").sqlstate, "55000");
    assert_eq!(r.column(NAMES), s.canaries("acme"));
    r.rows("DISCARD ALL");
    r.rows("SET app.tenant_id = 'globex'");
    assert_eq!(r.column(NAMES), s.canaries("globex"));
}

#[test]
fn prepared_statements_go_along() {
    let s = setup().start();
    let mut r = service(&s);
    r.rows("SET app.tenant_id = 'acme'");
    r.round(&[m::parse("names", NAMES), m::sync()].concat());
    r.round(
        &[
            m::parse("set", "SELECT set_config('app.tenant_id', $1, true)"),
            m::describe(b'S', "set"),
            m::sync(),
        ]
        .concat(),
    );
    for (tenant, _) in TENANTS.iter().cycle().take(12) {
        let run = [
            m::parse("", "BEGIN"),
            m::bind("", "", &[]),
            m::execute("", 0),
            m::bind("", "set", &[Some(tenant.as_bytes())]),
            m::execute("", 0),
            m::bind("", "names", &[]),
            m::execute("", 0),
            m::parse("", "COMMIT"),
            m::bind("", "", &[]),
            m::execute("", 0),
            m::sync(),
        ];
        let names = |replies: Vec<Message>| -> Vec<String> {
            let rows = replies.iter().filter(|m| m.tag == b'D').map(|m| m.values()[0].clone());
            rows.flatten().skip(1).collect()
        };
        assert_eq!(names(r.round(&run.concat())), s.canaries(tenant), "in one group");
        // The same with a Sync behind each, in one segment.
        let mut apart = Vec::new();
        for three in [&run[0..3], &run[3..5], &run[5..7], &run[7..10]] {
            apart.extend(three.concat());
            apart.extend(m::sync());
        }
        r.send(&apart);
        let replies: Vec<_> = (0..4).flat_map(|_| r.until_ready()).collect();
        assert_eq!(names(replies), s.canaries(tenant), "in groups");
    }
    // Transactions of several tenants in one segment.
    let mut all = Vec::new();
    for (tenant, _) in TENANTS {
        all.extend(m::query(&format!("SET app.tenant_id = '{tenant}'")));
        all.extend(m::extended(NAMES, &[]));
    }
    r.send(&all);
    for (tenant, _) in TENANTS {
        r.until_ready();
        let rows = r.until_ready();
        let names: Vec<_> =
            rows.iter().filter(|m| m.tag == b'D').filter_map(|m| m.values()[0].clone()).collect();
        assert_eq!(names, s.canaries(tenant));
    }
}

#[test]
fn what_a_function_sets_is_known_afterwards() {
    let s = setup().start();
    let mut r = service(&s);
    r.rows("SET app.tenant_id = 'acme'");
    for _ in 0..5 {
        r.rows("DO $$ BEGIN PERFORM set_config('app.tenant_id', 'globex', false); END $$");
        assert_eq!(r.value("SELECT current_setting('app.tenant_id')"), "globex");
        assert_eq!(r.column(NAMES), s.canaries("globex"));
        r.rows("SELECT set_config(n, 'acme', false) FROM (SELECT 'app.tenant_id') x(n)");
        assert_eq!(r.column(NAMES), s.canaries("acme"));
    }
}

/// Random programs: what comes back is what one database says that has all tenants.
#[test]
fn random_programs() {
    let s = with_home().pool("size = 4").start();
    let whole = Setup::new().shards(1).tenants(TENANTS.map(|(tenant, _)| tenant)).start();
    let mut dice = Dice::new(7);
    let mut sessions: Vec<_> =
        (0..4).map(|_| (service(&s), whole.shards[0].app().connect(), Vec::<String>::new())).collect();
    let (mut compared, mut refused) = (0, 0);
    for _ in 0..1500 {
        let index = dice.roll(sessions.len());
        let (routed, direct, done) = &mut sessions[index];
        let tenant = TENANTS[dice.roll(4)].0;
        let sql = match dice.roll(16) {
            0 => format!("SET app.tenant_id = '{tenant}'"),
            1 => format!("SELECT set_config('app.tenant_id', '{tenant}', false)"),
            2 | 3 => format!("BEGIN; SET LOCAL app.tenant_id = '{tenant}'"),
            4 => format!("SELECT set_config('app.tenant_id', '{tenant}', true)"),
            5 => format!("SET LOCAL app.tenant_id TO {tenant}"),
            6 | 7 => "BEGIN".to_owned(),
            8 => "COMMIT".to_owned(),
            9 => "ROLLBACK".to_owned(),
            10 => "SAVEPOINT a".to_owned(),
            11 => "ROLLBACK TO a".to_owned(),
            12 => "SELECT 1/0".to_owned(),
            13 => "RESET app.tenant_id".to_owned(),
            _ => NAMES.to_owned(),
        };
        done.push(sql.clone());
        let (found, expected) = (routed.try_rows(&sql), direct.try_rows(&sql));
        match (&found, &expected) {
            (Ok(found), Ok(expected)) => {
                assert_eq!(found, expected, "{sql} after {:#?}", done);
                compared += 1;
            }
            (Err(found), Err(expected)) => assert_eq!(found.sqlstate, expected.sqlstate, "{done:#?}"),
            (Err(found), Ok(_)) => {
                // What the router refuses, PostgreSQL would have done: both begin again.
                assert!(matches!(found.sqlstate.as_str(), "25001"), "{found:?} after {done:#?}");
                refused += 1;
                for raw in [&mut *routed, &mut *direct] {
                    raw.rows("ROLLBACK");
                }
                done.push("ROLLBACK".to_owned());
            }
            (Ok(_), Err(expected)) => {
                // A setting that was never set is unknown on a connection of one's own.
                assert!(sql.starts_with("RESET") && expected.sqlstate == "42704", "{sql}: {expected:?}");
                let _ = direct.try_rows("ROLLBACK");
                let _ = routed.try_rows("ROLLBACK");
            }
        }
        let (a, b) = (
            routed.try_rows("SELECT coalesce(current_setting('app.tenant_id', true), '')"),
            direct.try_rows("SELECT coalesce(current_setting('app.tenant_id', true), '')"),
        );
        if let (Ok(a), Ok(b)) = (&a, &b) {
            assert_eq!(a, b, "after {done:#?}");
        } else if a.is_err() && b.is_ok() {
            for raw in [&mut *routed, &mut *direct] {
                raw.rows("ROLLBACK");
            }
            done.push("ROLLBACK".to_owned());
        }
    }
    assert!(compared > 300 && refused > 10, "{compared} compared, {refused} refused");
}

#[test]
fn under_seal_too() {
    let s = with_home().sealed(Form::Parameter, Revokes::default()).start();
    let mut r = service(&s);
    for (tenant, _) in TENANTS.iter().cycle().take(8) {
        r.rows("BEGIN");
        r.rows(&format!("SET LOCAL app.tenant_id = '{tenant}'"));
        assert_eq!(r.column(NAMES), s.canaries(tenant));
        assert_eq!(r.error("SET LOCAL app.tenant_id = 'nobody-else'").sqlstate, "25001");
        r.rows("ROLLBACK");
        // On the default shard nothing is entered.
        assert_eq!(r.error(NAMES).sqlstate, "TN001", "no rows without a token");
    }
}
