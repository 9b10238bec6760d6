//! Server connections: lent, queued for, kept, replaced.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use switchyard_tests::cluster::APP;
use switchyard_tests::raw::{messages as m, scram_verifier};
use switchyard_tests::setup::{PASSWORD, user_toml};
use switchyard_tests::{Running, Setup, wait};

const PID: &str = "SELECT pg_backend_pid()";

fn setup() -> Setup {
    Setup::new().shards(1).tenants(["acme", "globex"])
}

/// Ends all server connections and waits until PostgreSQL has forgotten them.
fn kill_servers(s: &Running) {
    let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{APP}'");
    for shard in &s.shards {
        // Again and again, as one may be about to begin.
        wait::until_true("the backends to end", || {
            shard.sql(&sql);
            shard.sessions_of(APP) == 0
        });
    }
}

#[test]
fn a_server_killed_while_idle_costs_nobody_an_error() {
    let s = setup().start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    for n in 0..10 {
        assert_eq!(acme.value("SELECT 1"), "1", "round {n}");
        assert_eq!(globex.value("SELECT 1"), "1", "round {n}");
        acme.round(&m::extended("SELECT 1", &[]));
        kill_servers(&s);
    }
}

#[test]
fn a_restart_of_the_shard_between_transactions_costs_nobody_an_error() {
    let mut s = setup().start();
    let mut acme = s.login("acme");
    acme.round(&[m::parse("p", "SELECT 41 + 1"), m::sync()].concat());
    for _ in 0..3 {
        s.shards[0].restart();
        let rows = acme.round(&[m::bind("", "p", &[]), m::execute("", 0), m::sync()].concat());
        assert!(rows.iter().any(|m| m.tag == b'D'), "{rows:?}");
    }
}

#[test]
fn a_server_killed_in_a_transaction_says_so_and_the_pool_recovers() {
    let s = setup().pool("size = 1").start();
    let mut acme = s.login("acme");
    acme.rows("BEGIN");
    let pid = acme.value(PID);
    acme.send(&m::query("SELECT pg_sleep(60)"));
    let running =
        format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'");
    wait::until_true("the statement to run", || s.shards[0].value(&running) == "1");
    s.shards[0].sql(&format!("SELECT pg_terminate_backend({pid})"));
    let messages = acme.until_ready_or_end();
    assert!(messages.iter().any(|m| m.tag == b'E' && m.sqlstate() == "57P01"), "{messages:?}");
    assert_eq!(s.login("globex").value("SELECT 1"), "1");
}

#[test]
fn waiting_for_a_connection_has_an_end() {
    let s = setup().pool("size = 1\nqueue_timeout = \"300ms\"").start();
    let mut acme = s.login("acme");
    acme.rows("BEGIN");
    for bytes in [m::query("SELECT 1"), m::extended("SELECT 1", &[]), m::query("BEGIN")] {
        let mut globex = s.login("globex");
        globex.send(&bytes);
        let answer = globex.until_ready_or_end();
        let error = answer.iter().find(|m| m.tag == b'E').expect("an error");
        assert!(["53300", "57014"].contains(&error.sqlstate().as_str()), "{error:?}");
        assert!(!error.field(b'H').is_empty(), "no hint: {error:?}");
    }
    acme.rows("COMMIT");
    assert_eq!(s.login("globex").value("SELECT 1"), "1");
}

#[test]
fn who_waits_long_is_told_so_once() {
    let s = setup().pool("size = 1\nqueue_notice = \"200ms\"\nqueue_timeout = \"60s\"").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.rows("BEGIN");
    globex.send(&m::query("SELECT 'served'"));
    let notice = globex.read();
    assert_eq!((notice.tag, notice.sqlstate()), (b'N', "00000".to_owned()), "{notice:?}");
    acme.rows("COMMIT");
    let rest = globex.until_ready_or_end();
    assert!(rest.iter().all(|m| m.tag != b'N'), "{rest:?}");
    assert!(rest.iter().any(|m| m.tag == b'D'), "{rest:?}");
    // None where it is turned off, and the end of the wait comes as ever.
    let s = setup().pool("size = 1\nqueue_notice = \"0s\"\nqueue_timeout = \"300ms\"").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.rows("BEGIN");
    let answer = globex.round(&m::query("SELECT 1"));
    assert!(answer.iter().all(|m| m.tag != b'N') && answer[0].sqlstate() == "53300", "{answer:?}");
}

#[test]
fn those_who_wait_are_served_when_a_connection_comes_back() {
    let s = setup().pool("size = 1").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.rows("BEGIN");
    globex.send(&m::query("SELECT 'served'"));
    wait::until_true("the client to wait", || {
        s.router.metrics().sum("switchyard_client_connections", &[("state", "waiting")]) >= 1.0
    });
    acme.rows("COMMIT");
    let rows = globex.until_ready();
    assert!(rows.iter().any(|m| m.tag == b'D'), "{rows:?}");
}

#[test]
fn the_size_is_never_exceeded() {
    let s = setup().pool("size = 3").start();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12)
            .map(|n| {
                let tenant = ["acme", "globex"][n % 2];
                let s = &s;
                scope.spawn(move || {
                    for round in 0..20 {
                        let mut session = s.login(tenant);
                        assert_eq!(session.value("SELECT count(*) FROM clients"), "3");
                        session.rows("BEGIN; SELECT pg_sleep(0.002); COMMIT");
                        if round % 5 == 0 {
                            session.rows("SET my.note = 'x'");
                        }
                    }
                })
            })
            .collect();
        let watcher = scope.spawn(|| {
            let mut admin = s.shards[0].admin();
            let mut most = 0;
            while !done.load(Ordering::SeqCst) {
                let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{APP}'");
                most = most.max(admin.value(&sql).parse::<usize>().expect("a count"));
            }
            most
        });
        for client in clients {
            client.join().expect("the clients are served");
        }
        done.store(true, Ordering::SeqCst);
        let most = watcher.join().expect("the watcher watches");
        assert!((1..=3).contains(&most), "{most} server connections");
    });
}

#[test]
fn many_clients_share_few_connections() {
    let s = setup().pool("size = 2").start();
    let mut sessions: Vec<_> = (0..30).map(|n| s.login(["acme", "globex"][n % 2])).collect();
    for session in &mut sessions {
        session.value(PID);
    }
    assert!(s.server_connections() <= 2);
    let mut pids: Vec<_> = sessions.iter_mut().map(|session| session.value(PID)).collect();
    pids.sort();
    pids.dedup();
    assert!(pids.len() <= 2, "{pids:?}");
}

#[test]
fn session_mode_keeps_the_connection() {
    let s = setup().router("pool_mode = \"session\"").pool("size = 2").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    let (first, second) = (acme.value(PID), globex.value(PID));
    assert_ne!(first, second);
    acme.rows("CREATE TEMP TABLE t AS SELECT 'mine'::text AS x");
    acme.rows("SET my.note = 'kept'");
    for _ in 0..3 {
        assert_eq!(globex.value(PID), second);
        assert_eq!(acme.value(PID), first);
        assert_eq!(acme.value("SELECT x FROM t"), "mine");
        assert_eq!(acme.value("SELECT current_setting('my.note')"), "kept");
    }
    drop(acme);
    let mut next = s.login("globex");
    assert_eq!(next.column("SELECT name FROM clients ORDER BY id"), s.canaries("globex"));
    assert!(next.try_rows("SELECT x FROM t").is_err());
}

#[test]
fn the_mode_may_be_a_users_or_a_tenants() {
    let user = switchyard_tests::setup::user_toml("keeper", "pw", "tenants = \"*\"\npool_mode = \"session\"");
    let tenant = "[[tenants]]\nid = \"initech\"\npool_mode = \"session\"";
    let s = setup().pool("size = 4").section(&user).section(tenant).start();
    for target in [s.plain_target("keeper.acme", "pw"), s.target("initech")] {
        let mut session = target.connect();
        session.rows("CREATE TEMP TABLE t (x int)");
        for _ in 0..3 {
            s.login("globex").value(PID);
            session.rows("SELECT * FROM t");
        }
    }
}

#[test]
fn connections_do_not_grow_old() {
    let s = setup().pool("size = 1\nlifetime = \"1s\"").start();
    let mut acme = s.login("acme");
    let first = acme.value(PID);
    wait::until_true("another connection", || acme.value(PID) != first);
    // One in use is not taken away.
    acme.rows("BEGIN");
    let pid = acme.value(PID);
    let age = format!("SELECT now() - backend_start > '2s' FROM pg_stat_activity WHERE pid = {pid}");
    wait::until_true("the connection to be overdue", || s.shards[0].value(&age) == "t");
    assert_eq!(acme.value(PID), pid);
    acme.rows("COMMIT");
}

#[test]
fn idle_connections_end_down_to_the_minimum() {
    let s = setup().pool("size = 4\nmin = 1\nidle_timeout = \"1s\"").start();
    let mut sessions: Vec<_> = (0..4).map(|_| s.login("acme")).collect();
    for session in &mut sessions {
        session.rows("BEGIN");
    }
    assert_eq!(s.server_connections(), 4);
    for session in &mut sessions {
        session.rows("COMMIT");
    }
    wait::until_true("one connection to be left", || s.server_connections() == 1);
    assert_eq!(sessions[0].value("SELECT 1"), "1");
}

#[test]
fn a_shard_that_is_down_stops_nobody_else() {
    let mut s = Setup::new()
        .tenant_on("left", 0)
        .tenant_on("right", 1)
        .pool("size = 2\nqueue_timeout = \"1s\"\nconnect_timeout = \"1s\"")
        .start();
    let (mut left, mut right) = (s.login("left"), s.login("right"));
    assert_eq!(left.value("SELECT 1"), "1");
    s.shards[0].stop();
    let error = left.error("SELECT 1");
    assert!(["08", "53", "57"].contains(&&error.sqlstate[..2]), "{error:?}");
    assert_eq!(right.value("SELECT 1"), "1");
    assert_eq!(s.login("right").value("SELECT 1"), "1");
    s.shards[0].start_again();
    wait::until_true("the shard to be used again", || {
        s.target("left").try_connect().is_ok_and(|mut session| session.try_rows("SELECT 1").is_ok())
    });
}

#[test]
fn a_shard_that_refuses_the_router_is_an_error_and_not_a_hang() {
    let mut s = setup().pool("size = 1\nqueue_timeout = \"3s\"").start();
    assert!(s.reload(|toml| toml.replace("app:app-secret@", "app:wrong-secret@")));
    let sqlstate = match s.target("acme").try_connect() {
        Ok(mut session) => session.error("SELECT 1").sqlstate,
        Err(refused) => refused.sqlstate().to_owned(),
    };
    // Not 28P01: the client's password was right.
    assert!(["08", "53", "57"].contains(&&sqlstate[..2]), "{sqlstate}");
    assert!(s.reload(|toml| toml.replace("app:wrong-secret@", "app:app-secret@")));
    wait::until_true("the right password to work", || {
        s.target("acme").try_connect().is_ok_and(|mut session| session.try_rows("SELECT 1").is_ok())
    });
}

#[test]
fn a_slow_path_to_the_shard_and_a_cut_one() {
    let s = setup().proxied().pool("size = 1").start();
    let mut acme = s.login("acme");
    s.proxies[0].delay(std::time::Duration::from_millis(3));
    assert_eq!(acme.column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
    s.proxies[0].delay(std::time::Duration::ZERO);
    acme.rows("BEGIN; INSERT INTO scratch.items VALUES (1, 'lost')");
    s.proxies[0].cut();
    assert!(acme.try_rows("COMMIT").is_err());
    let mut next = s.login("globex");
    assert_eq!(next.value("SELECT count(*) FROM scratch.items"), "0");
    // Half of it closed while idle: noticed before it is lent.
    s.proxies[0].half_close();
    assert_eq!(next.value("SELECT 1"), "1");
}

#[test]
fn a_client_that_vanishes_as_its_turn_comes_takes_no_place_with_it() {
    let s = setup().pool("size = 1\nqueue_timeout = \"5s\"").start();
    let mut holder = s.login("acme");
    for _ in 0..150 {
        holder.rows("BEGIN");
        let mut waiter = s.login("globex");
        waiter.send(&m::query("SELECT 1"));
        // Both at once: now and then the connection is handed to who has just gone.
        holder.send(&m::query("COMMIT"));
        drop(waiter);
        holder.until_ready();
    }
    assert_eq!(s.login("globex").value("SELECT 1"), "1");
}

#[test]
fn a_session_outlives_a_full_pool() {
    let s = setup().pool("size = 1\nqueue_timeout = \"1s\"").start();
    let (mut holder, mut waiter) = (s.login("acme"), s.login("globex"));
    holder.rows("BEGIN");
    for bytes in [m::query("SELECT 1"), m::extended("SELECT 1", &[])] {
        waiter.send(&bytes);
        let answer = waiter.until_ready();
        assert!(answer.iter().any(|m| m.tag == b'E' && m.sqlstate() == "53300"), "{answer:?}");
    }
    holder.rows("COMMIT");
    assert_eq!(waiter.value("SELECT 1"), "1");
}

#[test]
fn who_needs_another_login_gets_the_place_of_a_connection_that_comes_back() {
    let secret = "another-secret";
    let role = format!("CREATE ROLE another LOGIN PASSWORD '{}' IN ROLE app", scram_verifier(secret));
    let extra = format!("tenants = \"*\"\nserver_user = \"another\"\nserver_password = \"{secret}\"");
    let other = user_toml("other", PASSWORD, &extra);
    let s = setup().sql(&role).section(&other).pool("size = 1\nqueue_timeout = \"60s\"").start();
    let mut others: Vec<_> = ["acme", "globex"]
        .map(|tenant| s.plain_target(&format!("other.{tenant}"), PASSWORD).connect())
        .into();
    let (mut holder, mut same) = (s.login("acme"), s.login("globex"));
    let who = "SELECT session_user";
    let waiting = || s.router.metrics().sum("switchyard_client_connections", &[("state", "waiting")]);
    for _ in 0..5 {
        holder.rows("BEGIN; SELECT 1");
        for (n, session) in others.iter_mut().chain([&mut same]).enumerate() {
            session.send(&m::query(who));
            wait::until_true("it to wait", || waiting() == (n + 1) as f64);
        }
        assert_eq!(s.server_connections(), 1);
        holder.rows("COMMIT");
        for (session, user) in others.iter_mut().chain([&mut same]).zip(["another", "another", APP]) {
            let answer = session.until_ready();
            assert!(
                answer.iter().any(|m| m.tag == b'D' && m.values() == [Some(user.to_owned())]),
                "{user}: {answer:?}"
            );
        }
        assert!(s.server_connections() <= 1, "one makes room for the other");
    }
}

/// By turns, sixty clients would get thirty times as many transactions as two.
#[test]
fn heavy_a_crowd_of_one_tenant_does_not_take_the_share_of_another() {
    let s = setup().pool("size = 1\nqueue_timeout = \"60s\"").start();
    let (done, turns) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..60 {
            scope.spawn(|| {
                let mut session = s.login("acme");
                while !done.load(Ordering::SeqCst) {
                    assert_eq!(session.column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
                    turns.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        wait::until_true("the crowd to be there", || {
            s.router.metrics().sum("switchyard_client_connections", &[("state", "waiting")]) >= 50.0
        });
        let before = turns.load(Ordering::SeqCst);
        let few: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut session = s.login("globex");
                    for _ in 0..50 {
                        assert_eq!(
                            session.column("SELECT name FROM clients ORDER BY id"),
                            s.canaries("globex")
                        );
                    }
                })
            })
            .collect();
        let served: Vec<_> = few.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        let turns = turns.load(Ordering::SeqCst) - before;
        done.store(true, Ordering::SeqCst);
        assert!(served.iter().all(Result::is_ok));
        assert!(turns < 100 * 10, "{turns} of the crowd beside 100");
        let metrics = s.router.metrics();
        assert!(metrics.sum("switchyard_tenant_waits_total", &[("tenant", "acme")]) > 0.0);
        assert_eq!(metrics.sum("switchyard_tenant_shed_total", &[("tenant", "acme")]), 0.0);
    });
}
