//! A new process in place of an old one, while clients come and go.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Router, Running, Setup, Target, metrics, wait};

fn setup() -> Setup {
    Setup::new().shards(1).tenants(["acme", "globex"]).pool("size = 4")
}

/// Clients that come, run a statement and go, until told to stop.
#[derive(Default)]
struct Stream {
    stop: AtomicBool,
    came: AtomicUsize,
}

impl Stream {
    /// Runs `work` while clients come by TCP and by the unix socket. None of them may see an error.
    fn during<T>(s: &Running, work: impl FnOnce(&dyn Fn()) -> T) -> T {
        let targets = [s.target("acme"), s.target("globex"), unix(s)];
        Self::of(&targets, work)
    }

    fn of<T>(targets: &[Target], work: impl FnOnce(&dyn Fn()) -> T) -> T {
        let stream = Self::default();
        std::thread::scope(|scope| {
            let _stop = wait::StopAtEnd(&stream.stop);
            let mut clients: Vec<_> =
                targets.iter().map(|target| scope.spawn(|| stream.come_and_go(target))).collect();
            clients.extend(targets.iter().map(|target| scope.spawn(|| stream.knock(target))));
            // What work waits for: that clients come all the while.
            let flows = || {
                let before = stream.came.load(Ordering::Relaxed);
                wait::until_true("clients to come", || {
                    let gone = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                    gone || stream.came.load(Ordering::Relaxed) > before + 3 * targets.len()
                });
            };
            flows();
            let done = work(&flows);
            flows();
            stream.stop.store(true, Ordering::Relaxed);
            for client in clients {
                client.join().expect("no client has seen an error");
            }
            done
        })
    }

    /// Comes as often as can be, and only asks whether there is TLS.
    fn knock(&self, target: &Target) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut raw = target.open().expect("somebody listens");
            raw.send(&m::ssl_request());
            assert_eq!(raw.byte().expect("an answer"), b'N');
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn come_and_go(&self, target: &Target) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut session = target.connect();
            assert_eq!(session.value("SELECT 1"), "1");
            session.send(b"X\0\0\0\x04");
            self.came.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn unix(s: &Running) -> Target {
    s.router.unix_target().user("app.acme").password(switchyard_tests::setup::PASSWORD).database("crm")
}

#[test]
fn nobody_sees_an_error_while_new_processes_take_over() {
    let mut s = setup().start();
    let (acme, globex, by_socket) = (s.target("acme"), s.target("globex"), unix(&s));
    let mut long = s.login("acme");
    long.rows("BEGIN; INSERT INTO scratch.items VALUES (1, 'kept')");
    let old: Vec<_> = Stream::of(&[acme, globex, by_socket], |flows| {
        (0..3)
            .map(|_| {
                let old = s.router.take_over();
                flows();
                old
            })
            .collect()
    });
    assert_eq!(metrics::get(s.router.http(), "/readyz").unwrap().0, 200);
    // The transaction goes on in the process that it began in, however many have come since.
    long.rows("INSERT INTO scratch.items VALUES (2, 'kept'); COMMIT");
    drop(long);
    for mut old in old {
        assert!(old.wait_exit().success());
    }
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "2");
    assert_eq!(s.login("globex").value("SELECT 1"), "1");
    assert_eq!(unix(&s).connect().value("SELECT 1"), "1");
}

#[test]
fn nobody_sees_an_error_when_one_of_two_on_the_same_port_is_told_to_end() {
    let mut s = setup().start();
    let targets = [s.target("acme"), s.target("globex"), unix(&s)];
    let mut long = s.login("acme");
    long.rows("BEGIN; INSERT INTO scratch.items VALUES (1, 'kept')");
    let mut old = Stream::of(&targets, |flows| {
        let old = s.router.start_beside();
        flows();
        old.signal("TERM");
        flows();
        long.rows("COMMIT");
        old
    });
    assert!(long.ends());
    assert!(old.wait_exit().success());
    assert_eq!(s.shards[0].value("SELECT count(*) FROM scratch.items"), "1");
    assert_eq!(unix(&s).connect().value("SELECT 1"), "1");
}

#[test]
fn idle_sessions_leave_within_the_handover() {
    let mut s = setup().section("[limits]\nhandover_timeout = \"4s\"\ndrain_timeout = \"1s\"").start();
    let mut idle: Vec<_> = (0..6).map(|_| s.login("acme")).collect();
    let mut open = s.login("globex");
    open.rows("BEGIN");
    let mut old = s.router.take_over();
    for session in &mut idle {
        let last = std::iter::from_fn(|| session.try_read().ok()).last();
        assert!(last.is_none_or(|m| m.sqlstate() == "57P01"));
    }
    // Whoever holds a transaction open for longer is ended with it.
    assert!(old.wait_exit().success());
    assert!(open.ends());
}

#[test]
fn a_request_to_cancel_reaches_the_process_that_was_taken_over_from() {
    let mut s = setup().start();
    let cancel = |s: &Running, key: &[u8]| {
        let mut raw = s.router.target().open().expect("the router listens");
        raw.send(&m::cancel_request(key));
        assert!(raw.ends());
    };
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let mut acme = s.login("acme");
    acme.send(&m::query("SELECT pg_sleep(600)"));
    wait::until_true("the statement to run", || s.shards[0].value(sleeping) == "1");
    let _first = s.router.take_over();
    let _second = s.router.take_over();
    let mut wrong = acme.key().to_vec();
    wrong[6] ^= 1;
    cancel(&s, &wrong);
    assert_eq!(s.shards[0].value(sleeping), "1");
    cancel(&s, acme.key());
    assert!(acme.until_ready().iter().any(|m| m.sqlstate() == "57014"));
    // Its own sessions have keys that differ.
    let mut globex = s.login("globex");
    globex.send(&m::query("SELECT pg_sleep(600)"));
    wait::until_true("the statement to run", || s.shards[0].value(sleeping) == "1");
    cancel(&s, globex.key());
    assert!(globex.until_ready().iter().any(|m| m.sqlstate() == "57014"));
}

#[test]
fn a_router_starts_its_successor_which_a_bad_configuration_does_not_let_start() {
    let s = setup().start();
    let mut router = Router::start_with_successors(&s.toml);
    let target = s.target("acme").at(router.address());
    let old = router.pid();
    Stream::of(std::slice::from_ref(&target), |flows| {
        router.write_config("[router]\nworkers = \"many\"\n");
        router.signal("USR2");
        router.wait_log("was to take over has ended");
        flows();
        router.write_config(&s.toml);
        // However often it is asked meanwhile, one is started.
        for _ in 0..5 {
            router.signal("USR2");
        }
        router.wait_log("handing over");
        flows();
    });
    assert!(router.wait_exit().success());
    assert_eq!(router.log().matches("starting the process that takes over").count(), 2);
    assert_eq!(target.connect().value("SELECT 1"), "1");
    // The successor is found by its command line, which names the old one, and ends as any.
    let of_old = format!("--takeover\0{old}\0");
    let new = std::fs::read_dir("/proc").unwrap().flatten().find(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).ends_with(&of_old))
    });
    let new = new.expect("the successor runs").file_name().into_string().unwrap();
    assert!(std::process::Command::new("kill").arg(&new).status().unwrap().success());
    wait::until_true("the successor to end", || target.try_connect().is_err());
}

#[test]
fn a_second_sigterm_does_not_wait() {
    let mut s = setup().section("[limits]\ndrain_timeout = \"1h\"").start();
    let mut open = s.login("acme");
    open.rows("BEGIN");
    s.router.signal("TERM");
    s.router.wait_log("draining");
    s.router.signal("TERM");
    assert!(s.router.wait_exit().success());
    assert!(open.ends());
}

#[test]
fn readiness_goes_before_clients_are_turned_away() {
    let mut s = setup().section("[limits]\ndrain_delay = \"1500ms\"").start();
    s.router.signal("TERM");
    wait::until_true("not to be ready", || {
        !metrics::get(s.router.http(), "/readyz").is_ok_and(|a| a.0 == 200)
    });
    assert_eq!(s.login("acme").value("SELECT 1"), "1");
    assert!(s.router.wait_exit().success());
}

#[test]
fn an_address_that_is_taken_is_an_error_without_reuse_port() {
    let s = setup().router("reuse_port = false").start();
    let taken = s.router.address();
    let toml = s.toml.replacen("[router]\n", &format!("[router]\nlisten = [\"{taken}\"]\n"), 1);
    let path = std::env::temp_dir().join(format!("switchyard-taken-{}.toml", std::process::id()));
    std::fs::write(&path, toml).unwrap();
    let output = std::process::Command::new(switchyard_tests::router::binary())
        .args(["router", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    let _ = std::fs::remove_file(path);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot listen"), "{output:?}");
}

#[test]
fn clients_come_and_go_without_any_of_this() {
    let s = setup().start();
    Stream::during(&s, |_| std::thread::sleep(Duration::from_millis(100)));
}
