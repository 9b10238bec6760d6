//! Sessions that only read are served by standbys.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use switchyard_shard_schema::install::{Form, Revokes};
use switchyard_tests::raw::messages as m;
use switchyard_tests::raw::{Raw, Target};
use switchyard_tests::setup::{PASSWORD, user_toml};
use switchyard_tests::{Running, Setup, wait};

/// Where the session's server listens.
const PORT: &str = "SELECT current_setting('port')";
const NAMES: &str = "SELECT name FROM clients ORDER BY id";

fn setup(pool: &str) -> Setup {
    let reader = user_toml("reader", PASSWORD, "tenants = \"*\"\nread_only = true");
    Setup::new()
        .shards(1)
        .tenants(["acme", "globex"])
        .standbys()
        .pool(&format!("size = 4\nconnect_timeout = \"2s\"\n{pool}"))
        .section(&reader)
}

fn usable(s: &Running) -> f64 {
    s.router.metrics().sum("switchyard_standby_usable", &[])
}

fn start(pool: &str) -> Running {
    let s = setup(pool).start();
    wait::until_true("the standby to be known", || usable(&s) == 1.0);
    s
}

fn reader(s: &Running, tenant: &str) -> Target {
    s.plain_target(&format!("reader.{tenant}"), PASSWORD)
}

fn primary(s: &Running) -> String {
    s.shards[0].port().to_string()
}

fn standby(s: &Running) -> String {
    s.standbys[0].port().to_string()
}

/// Waits until the standby serves the session: on a machine that is busy it may pass for gone now and then, and the
/// primary serves in its place.
fn is_on_standby(session: &mut Raw, s: &Running) {
    wait::until_true("the standby to serve", || session.value(PORT) == standby(s));
}

#[test]
fn sealed_contexts_are_read_by_the_primary_which_is_said() {
    let viewer = user_toml("viewer", PASSWORD, "console = \"viewer\"");
    for sealed in [false, true] {
        let setup = setup("").section(&viewer);
        let setup = if sealed { setup.sealed(Form::Parameter, Revokes::default()) } else { setup };
        let s = setup.start();
        wait::until_true("the standby to be known", || usable(&s) == 1.0);
        let mut session = reader(&s, "acme").connect();
        if sealed {
            assert_eq!(session.value(PORT), primary(&s));
        } else {
            is_on_standby(&mut session, &s);
        }
        assert_eq!(session.column(NAMES), s.canaries("acme"));
        drop(reader(&s, "globex").connect());
        let mut console = s.plain_target("viewer", PASSWORD).database("switchyard").connect();
        let from = console.rows("SHOW TENANT acme")[0].last().cloned().flatten();
        let expected = if sealed { "primary, as its context is sealed" } else { "standbys" };
        assert_eq!(from.as_deref(), Some(expected));
        let said = s.router.log().matches("sessions that only read are served by the primary").count();
        assert_eq!(said, usize::from(sealed));
    }
}

#[test]
fn who_says_so_reads_from_a_standby_and_nobody_else() {
    let s = start("");
    let mut writer = s.login("acme");
    assert_eq!(writer.value(PORT), primary(&s));
    for target in [
        reader(&s, "acme"),
        s.target("acme").param("switchyard.read_only", "on"),
        s.target("acme").param("options", "-c switchyard.read_only=true"),
        s.target("acme").param("default_transaction_read_only", "on"),
    ] {
        let mut session = target.connect();
        is_on_standby(&mut session, &s);
        assert_eq!(session.parameter("in_hot_standby"), "on");
        assert_eq!(session.column(NAMES), s.canaries("acme"));
        session.rows("BEGIN; SELECT 1; COMMIT");
        assert_eq!(session.error("INSERT INTO scratch.items VALUES (1, 'x')").sqlstate, "25006");
        session.rows("SET work_mem = '7MB'");
        assert_eq!(session.value("SHOW work_mem"), "7MB");
        let answer = session.round(&m::extended(PORT, &[]));
        assert!(answer.iter().any(|m| m.tag == b'D' && m.values()[0] == Some(standby(&s))), "{answer:?}");
    }
    let mut off = s.target("acme").param("default_transaction_read_only", "off").connect();
    assert_eq!(off.value(PORT), primary(&s));
    // One after the other over the same connections, each its own rows.
    let (mut acme, mut globex) = (reader(&s, "acme").connect(), reader(&s, "globex").connect());
    for _ in 0..5 {
        assert_eq!(acme.column(NAMES), s.canaries("acme"));
        assert_eq!(globex.column(NAMES), s.canaries("globex"));
    }
    assert!(s.router.metrics().sum("switchyard_standby_connections", &[("shard", "s0")]) >= 1.0);
}

#[test]
fn one_that_is_too_far_behind_is_not_read_from() {
    let s = start("max_standby_lag = \"1s\"");
    let mut session = reader(&s, "acme").connect();
    is_on_standby(&mut session, &s);
    s.standbys[0].sql("SELECT pg_wal_replay_pause()");
    s.login("acme").rows("INSERT INTO scratch.items VALUES (1, 'new')");
    wait::until_true("the lag to be seen", || usable(&s) == 0.0);
    assert_eq!(session.value(PORT), primary(&s));
    assert_eq!(session.value("SELECT body FROM scratch.items"), "new");
    assert_eq!(session.error("INSERT INTO scratch.items VALUES (2, 'x')").sqlstate, "25006");
    s.standbys[0].sql("SELECT pg_wal_replay_resume()");
    wait::until_true("the standby to be near again", || session.value(PORT) == standby(&s));
}

#[test]
fn a_standby_that_falls_costs_nobody_an_error() {
    let mut s = start("");
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let target = reader(&s, "acme");
    let names = s.canaries("acme");
    let work = || {
        let mut session = target.connect();
        while !stop.load(Ordering::Relaxed) {
            assert_eq!(session.column(NAMES), names);
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let goes_on = |what: &str| {
        let before = done.load(Ordering::Relaxed);
        wait::until_true(what, || done.load(Ordering::Relaxed) > before + 20);
    };
    let mut idle = target.connect();
    is_on_standby(&mut idle, &s);
    std::thread::scope(|scope| {
        let _stop = wait::StopAtEnd(&stop);
        let load: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        goes_on("the load");
        // It ends on the primary alone.
        let slow =
            "SELECT current_setting('port') FROM pg_sleep(CASE WHEN pg_is_in_recovery() THEN 600 ELSE 0 END)";
        let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        let mut running = scope.spawn(|| target.connect().value(slow));
        wait::until_true("the statement to run on the standby", || {
            if running.is_finished() {
                running = scope.spawn(|| target.connect().value(slow));
            }
            s.standbys[0].value(asleep) == "1"
        });
        s.standbys[0].kill9();
        goes_on("the load without a standby");
        assert_eq!(running.join().expect("no error"), primary(&s));
        assert_eq!(idle.value(PORT), primary(&s));
        assert_eq!(target.connect().value(PORT), primary(&s));
        s.standbys[0].start_again();
        wait::until_true("the standby to serve again", || idle.value(PORT) == standby(&s));
        goes_on("the load on the standby");
        stop.store(true, Ordering::Relaxed);
        load.into_iter().for_each(|l| l.join().expect("no error"));
    });
}

#[test]
fn one_that_falls_while_it_is_asked_what_is_not_known_yet_costs_nobody_the_session() {
    let mut s = start("");
    let mut session = reader(&s, "acme").connect();
    is_on_standby(&mut session, &s);
    // While somebody defines a function, nobody knows what statements reach.
    let mut definer = s.login("acme");
    definer.rows("BEGIN; CREATE FUNCTION scratch.f () RETURNS int LANGUAGE sql AS 'SELECT 1'");
    // The question for what is left reads this view, and the look at the database does not.
    let mut locker = s.shards[0].admin();
    locker.rows("BEGIN; LOCK pg_catalog.pg_cursors IN ACCESS EXCLUSIVE MODE");
    let locked = "SELECT count(*) FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock'
        AND relation = 'pg_catalog.pg_cursors'::regclass";
    wait::until_true("the lock to have come to the standby", || s.standbys[0].value(locked) == "1");
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Lock'";
    assert_eq!(session.column(NAMES), s.canaries("acme"));
    // Or the primary, on a machine that is busy.
    wait::until_true("it to be asked", || {
        s.standbys[0].value(asked) == "1" || s.shards[0].value(asked) == "1"
    });
    s.standbys[0].kill9();
    locker.rows("ROLLBACK");
    assert_eq!(session.column(NAMES), s.canaries("acme"));
    assert_eq!(session.value(PORT), primary(&s));
    definer.rows("ROLLBACK");
}

#[test]
fn a_login_that_meets_a_fallen_standby_is_served_by_the_primary() {
    for mode in ["transaction", "session"] {
        let mut s = setup("").router(&format!("pool_mode = \"{mode}\"")).start();
        for memory in ["4MB", "5MB", "6MB"] {
            wait::until_true("the standby to serve", || {
                reader(&s, "acme").param("work_mem", "3MB").connect().value(PORT) == standby(&s)
            });
            s.standbys[0].kill9();
            let mut session = reader(&s, "acme").param("work_mem", memory).connect();
            assert_eq!(session.value("SHOW work_mem"), memory);
            assert_eq!(session.value(PORT), primary(&s));
            s.standbys[0].start_again();
            wait::until_true("the standby to be known", || usable(&s) == 1.0);
        }
        // What is wrong with the login is wrong on the primary as well.
        assert_eq!(reader(&s, "acme").param("work_mem", "much").refused().sqlstate(), "22023");
        assert_eq!(usable(&s), 1.0);
    }
}

#[test]
fn the_primary_may_be_spared() {
    let mut s = start("reads_from_primary = false");
    let mut session = reader(&s, "acme").connect();
    assert_eq!(session.value(PORT), standby(&s));
    s.standbys[0].kill9();
    wait::until_true("an error", || session.try_rows(PORT).is_err());
    let error = session.error(PORT);
    assert!(error.message.contains("is not available"), "{error:?}");
    assert_eq!(s.login("acme").value(PORT), primary(&s));
    s.standbys[0].start_again();
    wait::until_true("the standby", || session.try_rows(PORT).is_ok());
    assert_eq!(session.value(PORT), standby(&s));
}

#[test]
fn a_promoted_standby_is_the_primary_and_read_from_as_such() {
    let mut s = start("");
    let (mut session, mut writer) = (reader(&s, "acme").connect(), s.login("acme"));
    assert_eq!(session.value(PORT), standby(&s));
    s.shards[0].kill9();
    // There is no primary to serve those who write; the standby serves those who read.
    assert_eq!(session.column(NAMES), s.canaries("acme"));
    s.standbys[0].promote();
    writer.rows("INSERT INTO scratch.items VALUES (1, 'x')");
    assert_eq!(session.value(PORT), standby(&s));
    assert_eq!(session.error("INSERT INTO scratch.items VALUES (2, 'x')").sqlstate, "25006");
    assert_eq!(session.value("SELECT count(*) FROM scratch.items"), "1");
}

#[test]
fn without_standbys_it_only_reads_all_the_same() {
    let reader = user_toml("reader", PASSWORD, "tenants = \"*\"\nread_only = true");
    let s = Setup::new().shards(1).tenants(["acme"]).section(&reader).start();
    for target in
        [s.plain_target("reader.acme", PASSWORD), s.target("acme").param("switchyard.read_only", "on")]
    {
        let mut session = target.connect();
        assert_eq!(session.column(NAMES), s.canaries("acme"));
        for write in ["INSERT INTO scratch.items VALUES (1, 'x')", "BEGIN READ WRITE"] {
            assert_eq!(session.error(write).sqlstate, "25006");
        }
    }
    // By PostgreSQL's own parameter it is as in PostgreSQL.
    let mut session = s.target("acme").param("default_transaction_read_only", "on").connect();
    assert_eq!(session.error("INSERT INTO scratch.items VALUES (1, 'x')").sqlstate, "25006");
    session.rows("BEGIN READ WRITE; INSERT INTO scratch.items VALUES (1, 'x'); COMMIT");
}

#[test]
fn the_console_shows_them_apart() {
    let admin = user_toml("admin", PASSWORD, "console = \"admin\"");
    let s = setup("").section(&admin).start();
    wait::until_true("the standby to be known", || usable(&s) == 1.0);
    let mut session = reader(&s, "acme").connect();
    wait::until_true("the standby to serve", || {
        session.rows("BEGIN");
        let serves = session.value(PORT) == standby(&s);
        if !serves {
            session.rows("ROLLBACK");
        }
        serves
    });
    let mut console = s.plain_target("admin", PASSWORD).database("switchyard").connect();
    let pools = console.rows("SHOW POOLS");
    let of = |database: &str| pools.iter().any(|row| row[0].as_deref() == Some(database));
    assert!(of("crm@s0/standby") && of("crm@s0"), "{pools:?}");
    let servers = console.rows("SHOW SERVERS");
    assert!(servers.iter().flatten().flatten().any(|value| *value == standby(&s)), "{servers:?}");
}
