//! Ceilings and deadlines that strangers run into.

use std::time::Instant;

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Router, Setup, wait};

fn setup() -> Setup {
    Setup::new().shards(1).tenants(["acme", "globex"])
}

#[test]
fn sockets_that_say_nothing_do_not_keep_others_out() {
    let s = setup().section("[limits]\nunauthenticated = 50\nlogin_timeout = \"2s\"").start();
    let mut silent: Vec<_> = (0..200).filter_map(|_| s.router.target().open().ok()).collect();
    for (n, socket) in silent.iter_mut().enumerate() {
        match n % 4 {
            0 => {}
            1 => socket.send(&[0]),
            2 => socket.send(&s.target("acme").startup()),
            _ => socket.send(&m::ssl_request()),
        }
    }
    // In the end the silent ones are gone, and until then or from then on others are served.
    wait::until_true("a login among them", || s.target("acme").try_connect().is_ok());
    for socket in &mut silent {
        assert!(socket.ends());
    }
    assert_eq!(s.login("globex").value("SELECT 1"), "1");
}

#[test]
fn those_who_are_in_are_not_counted_among_strangers() {
    let s = setup().section("[limits]\nunauthenticated = 5").start();
    let mut inside: Vec<_> = (0..40).map(|_| s.login("acme")).collect();
    for session in &mut inside {
        assert_eq!(session.value("SELECT 1"), "1");
    }
}

#[test]
fn a_login_has_a_deadline_in_every_phase() {
    let s = setup().tls("allow").section("[limits]\nlogin_timeout = \"500ms\"").start();
    let plain = s.router.target().user("app.acme").database("crm");
    for phase in 0..4 {
        let mut raw = plain.open().unwrap();
        match phase {
            0 => {}
            1 => raw.send(&[0, 0]),
            2 => raw.send(&plain.startup()),
            _ => {
                raw.send(&m::ssl_request());
                raw.byte().unwrap();
                raw.send(&[0x16, 3, 1]);
            }
        }
        let begin = Instant::now();
        while raw.byte().is_ok() {}
        assert!(begin.elapsed() < wait::DEADLINE / 2, "phase {phase}");
    }
    // It ends with the login.
    let mut session = s.login("acme");
    session.value("SELECT pg_sleep(1)");
    assert_eq!(session.value("SELECT 1"), "1");
}

#[test]
fn more_clients_than_allowed_are_told_so() {
    let s = setup().section("[limits]\nclients = 3").start();
    let mut inside: Vec<_> = (0..3).map(|_| s.login("acme")).collect();
    let refused = s.refused("acme");
    assert_eq!(refused.sqlstate(), "53300", "{refused:?}");
    assert_eq!(inside[0].value("SELECT 1"), "1");
    drop(inside.pop());
    wait::until_true("room for one", || s.target("acme").try_connect().is_ok());
}

#[test]
fn a_declared_length_allocates_nothing() {
    let s = setup().start();
    s.login("acme").value("SELECT 1");
    let before = s.router.resident_bytes();
    let mut sessions: Vec<_> = (0..20).map(|_| s.login("acme")).collect();
    for session in &mut sessions {
        session.send(&[&b"Q"[..], &0x3fff_ffff_u32.to_be_bytes(), b"SELECT"].concat());
    }
    let mut strangers: Vec<_> = (0..20).filter_map(|_| s.router.target().open().ok()).collect();
    for stranger in &mut strangers {
        stranger.send(&9999_u32.to_be_bytes());
    }
    s.login("globex").value("SELECT 1");
    let grown = s.router.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
}

#[test]
fn a_client_that_reads_no_answers_is_not_listened_to() {
    // Syncs of an idle session are answered by the router itself.
    let s = setup().start();
    let mut acme = s.login("acme");
    let before = s.router.resident_bytes();
    let syncs = 64 * 1024 * 1024 / m::sync().len();
    acme.send_aside(m::sync().repeat(syncs));
    // It takes what fits into the buffers between, and then no more.
    let taken =
        || s.router.metrics().sum("switchyard_bytes_total", &[("direction", "in"), ("side", "client")]);
    let mut last = -1.0;
    wait::until_true("the router to stop reading", || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = taken();
        let still = now == last;
        last = now;
        still
    });
    let grown = s.router.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
    assert!((last as usize) < syncs * m::sync().len(), "all was taken");
    assert_eq!(s.login("globex").value("SELECT 1"), "1");
}

#[test]
fn a_startup_packet_may_be_as_large_as_configured() {
    let s = setup().start();
    s.target("acme").param("application_name", &"a".repeat(9000)).connect();
    let mut raw = s.router.target().open().unwrap();
    raw.send(&s.target("acme").param("application_name", &"a".repeat(11_000)).startup());
    while let Ok(byte) = raw.byte() {
        assert_ne!(byte, b'R');
    }
}

#[test]
fn running_out_of_files_is_survived() {
    let s = setup().start();
    // Of a router of its own, with few files.
    let router = Router::start_with_files(&s.toml, 64);
    let target =
        || router.target().user("app.acme").password(switchyard_tests::setup::PASSWORD).database("crm");
    assert_eq!(target().connect().value("SELECT 1"), "1");
    let sockets: Vec<_> = (0..200).filter_map(|_| target().open().ok()).collect();
    wait::until_true("the files to be used up", || router.open_files() >= 60);
    drop(sockets);
    wait::until_true("a login afterwards", || {
        target().try_connect().is_ok_and(|mut c| c.try_rows("SELECT 1").is_ok())
    });
}

#[test]
fn idle_clients_end_where_they_are_told_to() {
    let s = setup()
        .section("[limits]\nclient_idle_timeout = \"500ms\"\nidle_in_transaction_timeout = \"500ms\"")
        .start();
    let mut idle = s.login("acme");
    assert_eq!(idle.value("SELECT 1"), "1");
    let last = std::iter::from_fn(|| idle.try_read().ok()).last();
    assert!(last.is_none_or(|m| m.sqlstate() == "57P05"));
    let mut open = s.login("acme");
    open.rows("BEGIN; INSERT INTO scratch.items VALUES (1, 'x')");
    let last = std::iter::from_fn(|| open.try_read().ok()).last();
    assert!(last.is_none_or(|m| m.sqlstate() == "25P03"));
    assert_eq!(s.login("globex").value("SELECT count(*) FROM scratch.items"), "0");
    // One that is busy for longer is not idle.
    let mut busy = s.login("acme");
    assert_eq!(busy.value("SELECT 'done' FROM pg_sleep(1.2)"), "done");
}

fn with_limits(limits: &str) -> switchyard_tests::Running {
    let acme = format!("[[tenants]]\nid = \"limited\"\nlimits = {{ {limits} }}");
    setup().pool("size = 4").section(&acme).start()
}

#[test]
fn a_tenant_has_no_more_clients_than_its_limit() {
    let s = with_limits("connections = 2");
    let kept = [s.login("limited"), s.login("limited")];
    let error = s.target("limited").try_connect().err().expect("one too many");
    assert_eq!(error.sqlstate(), "53300");
    s.login("acme");
    drop(kept);
    wait::until_true("a place", || s.target("limited").try_connect().is_ok());
}

#[test]
fn a_tenants_addresses_are_checked_after_its_proof() {
    let s = with_limits("allow = [\"10.0.0.0/8\"]");
    assert_eq!(s.target("limited").try_connect().err().expect("another address").sqlstate(), "28000");
    assert_eq!(s.login("acme").value("SELECT 1"), "1");
}

#[test]
fn over_its_rate_a_tenant_is_refused_with_when_to_try_again() {
    let s = with_limits("transactions_per_second = 1, transaction_burst = 5, wait_budget = \"0s\"");
    let mut session = s.login("limited");
    let mut refused = None;
    for _ in 0..1000 {
        match session.try_rows("SELECT 1") {
            Ok(_) => {}
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let error = refused.expect("a limit");
    assert_eq!(error.sqlstate, "53400", "{error:?}");
    assert_eq!(s.login("acme").value("SELECT 1"), "1");
    assert!(s.router.metrics().sum("switchyard_tenant_shed_total", &[("tenant", "limited")]) >= 1.0);
    assert!(s.router.metrics().sum("switchyard_tenant_limited_total", &[("tenant", "limited")]) >= 1.0);
    // The session goes on.
    wait::until_true("another second", || session.try_rows("SELECT 1").is_ok());
}

#[test]
fn who_is_over_the_rate_waits_within_its_budget() {
    let s = with_limits("transactions_per_second = 50, transaction_burst = 1, wait_budget = \"60s\"");
    let mut session = s.login("limited");
    for n in 0..20 {
        assert_eq!(session.value(&format!("SELECT {n}")), n.to_string());
    }
    assert!(s.router.metrics().sum("switchyard_tenant_waits_total", &[("tenant", "limited")]) >= 1.0);
}

#[test]
fn open_transactions_of_a_tenant_are_limited() {
    let s = with_limits("concurrent_transactions = 1, wait_budget = \"300ms\"");
    let (mut first, mut second) = (s.login("limited"), s.login("limited"));
    first.rows("BEGIN");
    let error = second.error("SELECT 1");
    assert_eq!(error.sqlstate, "53300", "{error:?}");
    assert_eq!(s.login("acme").value("SELECT 1"), "1");
    first.rows("COMMIT");
    assert_eq!(second.value("SELECT 2"), "2");
    // One that vanishes in the middle leaves its place.
    first.rows("BEGIN");
    drop(first);
    wait::until_true("the place", || second.try_rows("SELECT 3").is_ok());
}

#[test]
fn rows_are_counted_as_their_statements_say() {
    let s = setup().start();
    let rows = || s.router.metrics().sum("switchyard_tenant_rows_total", &[("tenant", "acme")]);
    let mut acme = s.login("acme");
    let mut counted = rows();
    let mut counts = |what: &str, expected: f64| {
        let now = rows();
        assert_eq!(now - counted, expected, "{what}");
        counted = now;
    };
    acme.rows("SELECT generate_series(1, 1000)");
    counts("rows returned", 1000.0);
    acme.rows("CREATE TEMP TABLE t (n int); INSERT INTO t SELECT generate_series(1, 50) RETURNING n");
    counts("rows written, once though they are returned too", 50.0);
    acme.rows("UPDATE t SET n = n WHERE n <= 20; DELETE FROM t WHERE n <= 10; SELECT 1 WHERE false");
    counts("rows changed", 30.0);
    // By portals that stop half way, as drivers fetch.
    let fetch = [m::parse("", "SELECT generate_series(1, 25)"), m::bind("", "", &[]), m::execute("", 10)];
    let fetch = [&fetch.concat()[..], &m::execute("", 10), &m::execute("", 10), &m::sync()].concat();
    acme.round(&fetch);
    counts("rows fetched in parts", 25.0);
    acme.send(&m::query("COPY t FROM STDIN"));
    acme.until_tag(b'G');
    acme.send(&[m::copy_data(b"1\n2\n3\n"), m::copy_done()].concat());
    acme.until_ready();
    acme.round(&m::query("COPY t TO STDOUT"));
    counts("rows copied in and out", 46.0);
    acme.rows("SHOW work_mem");
    counts("a row without a number in the tag", 1.0);
    acme.error("SELECT 1 / (5 - n) FROM generate_series(1, 5) n");
    counts("rows in front of an error", 4.0);
}
