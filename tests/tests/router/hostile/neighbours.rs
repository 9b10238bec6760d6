//! What one session leaves on a connection, by ways that are easy to overlook: the next session of its tenant must
//! find nothing of it, and the session itself all.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Running, Setup, wait};

fn setup(pool: &str) -> Running {
    let sql = "CREATE FUNCTION setu(v text) RETURNS text LANGUAGE sql AS
                   $$ SELECT set_config('app.user', v, false) $$;
               GRANT EXECUTE ON FUNCTION setu TO PUBLIC";
    Setup::new().shards(1).pool(pool).tenants(["acme", "globex"]).sql(sql).start()
}

/// A call of a function by its message, with arguments as text.
fn call(oid: u32, args: &[&str]) -> Vec<u8> {
    let mut body = oid.to_be_bytes().to_vec();
    body.extend([0, 0]);
    body.extend((args.len() as u16).to_be_bytes());
    for arg in args {
        body.extend((arg.len() as u32).to_be_bytes());
        body.extend(arg.as_bytes());
    }
    body.extend([0, 0]);
    m::frame(b'F', &body)
}

fn user(session: &mut Raw) -> String {
    session.value("SELECT coalesce(current_setting('app.user', true), '')")
}

#[test]
fn settings_of_one_are_not_another_s() {
    // src/include/catalog/pg_proc.dat: set_config
    let by_call = call(2078, &["app.user", "alice", "f"]);
    // Whether it is kept for its own session: a setting that no text names, and that is not PostgreSQL's, is not found.
    for (what, sent, kept) in [
        ("a function's message", by_call, true),
        ("a comment with an apostrophe", m::query("SELECT -- the user's context\n setu('alice')"), false),
        ("a name with an apostrophe", m::query("SELECT 1 \"it's\", setu('alice')"), false),
        ("a comment behind the name", m::query("SELECT setu /* lower */ ('alice')"), false),
        ("spaces around the dot", m::query("SET app . \"user\" = 'alice'"), true),
    ] {
        let s = setup("size = 1");
        let (mut one, mut other) = (s.login("acme"), s.login("acme"));
        other.rows("SELECT 1");
        let told = one.round(&sent);
        assert!(told.iter().all(|r| r.tag != b'E'), "{what}: {told:?}");
        let pinned = s.router.metrics().sum("switchyard_pins_total", &[]) > 0.0;
        for _ in 0..3 {
            if kept {
                assert_eq!(user(&mut one), "alice", "{what}");
            }
            if !pinned {
                assert_eq!(user(&mut other), "", "{what}");
            }
        }
        drop(one);
        assert_eq!(user(&mut other), "", "{what}");
    }
}

/// What a statement that is not understood is asked about afterwards are other things than settings which cannot be
/// carried: nothing found does not mean that the session may leave its connection.
#[test]
fn a_setting_that_cannot_be_carried_outlives_what_is_asked_about() {
    let s = setup("size = 2");
    let (mut one, mut second, mut third) = (s.login("acme"), s.login("acme"), s.login("acme"));
    one.rows("SET app . \"user\" = 'alice'");
    one.rows("DO 'BEGIN PERFORM 1; END'");
    second.rows("BEGIN");
    // Waits as long as the first has a connection of its own, and takes it if it has not.
    third.send(&m::query("BEGIN"));
    assert_eq!(user(&mut one), "alice");
    second.rows("COMMIT");
    third.until_ready();
    third.rows("COMMIT");
    assert_eq!(user(&mut one), "alice");
}

#[test]
fn the_tenant_is_not_changed_by_a_function_s_message() {
    let s = setup("size = 1");
    let (mut one, mut other) = (s.login("acme"), s.login("acme"));
    one.round(&call(2078, &["app.tenant_id", "globex", "f"]));
    for session in [&mut one, &mut other] {
        assert_eq!(session.column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
    }
}

#[test]
fn a_lock_taken_by_a_function_s_message_goes_with_its_session() {
    let s = setup("size = 2");
    let (mut one, mut other) = (s.login("acme"), s.login("acme"));
    // pg_advisory_lock(bigint)
    one.round(&call(2880, &["77"]));
    assert_eq!(other.value("SELECT pg_try_advisory_xact_lock(77)"), "f");
    drop(one);
    wait::until_true("the lock to be free", || other.value("SELECT pg_try_advisory_xact_lock(77)") == "t");
}

#[test]
fn discard_all_that_has_not_run_takes_nothing_away_and_one_that_has_does() {
    let s = setup("size = 2");
    let (mut one, mut other) = (s.login("acme"), s.login("acme"));
    one.rows("CREATE TEMPORARY TABLE mine AS SELECT 1 AS x");
    one.send(&[m::query("BEGIN"), m::query("DISCARD ALL")].concat());
    one.until_ready();
    let told = one.until_ready();
    assert!(told.iter().any(|r| r.sqlstate() == "25001"), "{told:?}");
    one.rows("ROLLBACK");
    for _ in 0..3 {
        assert_eq!(one.value("SELECT x FROM mine"), "1");
        assert_eq!(other.value("SELECT to_regclass('pg_temp.mine') IS NULL"), "t");
    }
    drop(one);

    let prepared = |session: &mut Raw| {
        let group = [m::parse("p", "SELECT 'prepared'"), m::bind("", "p", &[]), m::execute("", 0), m::sync()];
        let told = session.round(&group.concat());
        assert!(told.iter().all(|r| r.tag != b'E'), "{told:?}");
        session.round(&[m::close(b'S', "p"), m::sync()].concat());
    };
    let mut one = s.login("acme");
    for _ in 0..3 {
        prepared(&mut one);
        prepared(&mut other);
        one.send(&[m::query("SELECT 1/0"), m::query("DISCARD ALL")].concat());
        one.until_ready();
        one.until_ready();
    }
}

#[test]
fn statements_of_others_are_not_deallocated_by_their_names() {
    let s = setup("size = 1");
    let (mut one, mut other) = (s.login("acme"), s.login("acme"));
    other.round(&[m::parse("p", "SELECT 'prepared'"), m::sync()].concat());
    for n in 0..20 {
        one.round(&m::query(&format!("DEALLOCATE _switchyard_{n}")));
        let told = other.round(&[m::bind("", "p", &[]), m::execute("", 0), m::sync()].concat());
        assert!(told.iter().all(|r| r.tag != b'E'), "{n}: {told:?}");
    }
}

#[test]
fn a_table_selected_into_the_temporary_schema_is_its_session_s() {
    for into in ["pg_temp.x", "LOCAL TEMP x", "TEMPORARY x"] {
        let s = setup("size = 2");
        let (mut one, mut other) = (s.login("acme"), s.login("acme"));
        one.rows(&format!("SELECT * INTO {into} FROM clients"));
        for _ in 0..3 {
            assert_eq!(other.value("SELECT to_regclass('pg_temp.x') IS NULL"), "t", "{into}");
            assert_eq!(one.value("SELECT to_regclass('pg_temp.x') IS NULL"), "f", "{into}");
        }
    }
}

#[test]
fn settings_beyond_what_is_carried_pin_their_session() {
    let s = setup("size = 2");
    let mut one = s.login("acme");
    for n in 0..200 {
        one.rows(&format!("SET my.x{n} = '{}'", "x".repeat(1000)));
    }
    assert_eq!(one.value("SELECT length(current_setting('my.x199'))"), "1000");
    assert_eq!(one.value("SELECT length(current_setting('my.x0'))"), "1000");
    assert!(s.router.metrics().sum("switchyard_pins_total", &[]) > 0.0);
}

#[test]
fn a_copy_that_fails_gives_its_connection_back_while_its_client_is_silent() {
    let s = setup("size = 1");
    let mut one = s.login("acme");
    for _ in 0..3 {
        one.send(&m::query("COPY scratch.items FROM STDIN"));
        one.until_tag(b'G');
        let rest = m::copy_data(&b"x\ty\n".repeat(1000)).repeat(500);
        one.send(&[m::copy_data(b"bad\tx\n"), rest, m::copy_done()].concat());
        assert!(one.until_ready().iter().any(|r| r.tag == b'E'));
        let mut globex = s.login("globex");
        assert_eq!(globex.column("SELECT name FROM clients ORDER BY id"), s.canaries("globex"));
    }
}

#[test]
fn a_session_listens_on_so_many_channels_and_no_more() {
    let s = setup("size = 2");
    let mut one = s.login("acme");
    let listen = |from: usize, to: usize| (from..to).map(|n| format!("LISTEN c{n};")).collect::<String>();
    one.rows(&listen(0, 1000));
    assert_eq!(one.error("LISTEN one_more").sqlstate, "53400");
    one.rows("UNLISTEN c7");
    one.rows("LISTEN one_more");
    let mut other = s.login("acme");
    other.rows("NOTIFY one_more");
    wait::until_true("the notification", || one.round(&m::query("SELECT 1")).iter().any(|r| r.tag == b'A'));
}

/// A function that has left nothing many times may leave something the next time.
#[test]
fn what_a_function_sets_now_and_then_is_kept() {
    let sql = "CREATE FUNCTION setu(v text) RETURNS void LANGUAGE plpgsql AS
                   $$ BEGIN IF v <> '' THEN PERFORM set_config('app.user', v, false); END IF; END $$;
               GRANT EXECUTE ON FUNCTION setu TO PUBLIC";
    let s = Setup::new().shards(1).pool("size = 1").tenants(["acme", "globex"]).sql(sql).start();
    let (mut one, mut other) = (s.login("acme"), s.login("acme"));
    for (given, expected) in [[("", ""); 8], [("alice", "alice"); 8]].concat() {
        one.round(&m::extended("SELECT setu($1)", &[Some(given.as_bytes())]));
        other.rows("SELECT 1");
        assert_eq!(user(&mut one), expected);
        other.rows("SELECT 1");
    }
}
