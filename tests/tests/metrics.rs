//! What a router counts, against what has been done through it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use switchyard_tests::metrics::{self, Metrics};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Running, Setup, wait};

fn setup() -> Setup {
    Setup::new().shards(1).tenants(["acme", "globex"])
}

fn tenant(seen: &Metrics, name: &str, tenant: &str) -> f64 {
    seen.sum(&format!("switchyard_tenant_{name}"), &[("tenant", tenant)])
}

fn clients(seen: &Metrics, state: &str) -> f64 {
    seen.sum("switchyard_client_connections", &[("state", state)])
}

/// Waits until the metrics say so: a worker counts after it has answered.
#[track_caller]
fn wait_for(s: &Running, what: &str, condition: impl Fn(&Metrics) -> bool) -> Metrics {
    wait::until(what, || {
        let seen = s.router.metrics();
        condition(&seen).then_some(seen)
    })
}

/// All series that must never go backwards, with their values.
fn counters(seen: &Metrics) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for (name, samples) in &seen.samples {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let is_histogram = family.is_some_and(|f| seen.types.get(f).is_some_and(|t| t == "histogram"));
        if is_histogram || seen.types.get(name).is_some_and(|t| t == "counter") {
            all.extend(samples.iter().map(|s| (format!("{name}{:?}", s.labels), s.value)));
        }
    }
    all
}

#[track_caller]
fn nothing_went_back(before: &Metrics, after: &Metrics) {
    let after = counters(after);
    for (series, was) in counters(before) {
        if let Some(is) = after.get(&series) {
            assert!(*is >= was, "{series} went from {was} to {is}");
        }
    }
}

#[test]
fn work_is_counted_exactly_and_for_whom_it_was() {
    let s = setup().start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    for n in 0..10 {
        assert_eq!(acme.value(&format!("SELECT {n}")), n.to_string());
    }
    acme.rows("BEGIN; SELECT 1");
    acme.rows("COMMIT");
    acme.error("SELECT 1/0");
    assert_eq!(globex.value("SELECT repeat('x', 100000)").len(), 100_000);
    let seen = wait_for(&s, "twelve transactions", |seen| tenant(seen, "transactions_total", "acme") == 12.0);
    assert_eq!(tenant(&seen, "transactions_total", "globex"), 1.0);
    assert_eq!(tenant(&seen, "transactions_total", "_other"), 0.0);
    // A simple query counts once, however many statements its text holds.
    assert_eq!(tenant(&seen, "statements_total", "acme"), 13.0);
    assert_eq!((tenant(&seen, "errors_total", "acme"), tenant(&seen, "errors_total", "globex")), (1.0, 0.0));
    let out = |of| seen.sum("switchyard_tenant_bytes_total", &[("tenant", of), ("direction", "out")]);
    assert!(out("globex") > 100_000.0 && out("globex") < 101_000.0, "{}", out("globex"));
    assert!(out("acme") > 100.0 && out("acme") < 10_000.0, "{}", out("acme"));
    assert!(tenant(&seen, "busy_seconds_total", "acme") > 0.0);
    for who in ["acme", "globex"] {
        assert_eq!(tenant(&seen, "client_connections", who), 1.0);
        assert_eq!(tenant(&seen, "info", who), 1.0);
    }

    assert_eq!(seen.sum("switchyard_transaction_seconds_count", &[("shard", "s0")]), 13.0);
    assert_eq!(seen.sum("switchyard_statements_total", &[]), 14.0);
    assert_eq!(seen.sum("switchyard_errors_total", &[]), 1.0);
    let scram =
        |outcome| seen.sum("switchyard_auth_attempts_total", &[("method", "scram"), ("outcome", outcome)]);
    assert_eq!((scram("success"), scram("failure")), (2.0, 0.0));
    assert_eq!(seen.sum("switchyard_tenants_active", &[]), 2.0);
    drop((acme, globex));
    let seen =
        wait_for(&s, "the clients to be gone", |seen| seen.sum("switchyard_client_connections", &[]) == 0.0);
    assert_eq!(seen.sum("switchyard_tenant_client_connections", &[]), 0.0);
}

#[test]
fn a_queue_can_be_seen() {
    let s = setup().pool("size = 1").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.rows("BEGIN");
    globex.send(&m::query("SELECT 7"));
    let seen = wait_for(&s, "the one in the queue", |seen| {
        (clients(seen, "waiting"), clients(seen, "idle_in_transaction")) == (1.0, 1.0)
    });
    assert_eq!(clients(&seen, "idle"), 0.0);
    assert_eq!(seen.sum("switchyard_pool_waiting_clients", &[("shard", "s0")]), 1.0);
    assert!(seen.sum("switchyard_pool_oldest_wait_seconds", &[("shard", "s0")]) > 0.0);
    let active = [("shard", "s0"), ("state", "active")];
    assert_eq!(seen.sum("switchyard_server_connections", &active), 1.0);
    let (_, ready) = metrics::get(s.router.http(), "/readyz?verbose").unwrap();
    assert!(ready.contains("shard s0 size=1 active=1 idle=0 connecting=0 waiting=1"), "{ready}");
    acme.rows("COMMIT");
    globex.until_ready();
    let seen = wait_for(&s, "nobody to wait", |seen| clients(seen, "idle") == 2.0);
    assert_eq!(clients(&seen, "waiting"), 0.0);
    assert!(tenant(&seen, "wait_seconds_total", "globex") > 0.0);
    assert!(seen.sum("switchyard_pool_wait_seconds_count", &[("shard", "s0")]) >= 1.0);
    assert_eq!(seen.sum("switchyard_server_connections", &active), 0.0);
}

#[test]
fn who_gets_no_connection_in_time_is_counted() {
    let s = setup().pool("size = 1\nqueue_timeout = \"1s\"").start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    acme.rows("BEGIN");
    globex.send(&m::query("SELECT 7"));
    globex.until_ready_or_end();
    wait_for(&s, "the timeout", |seen| {
        seen.sum("switchyard_pool_queue_timeouts_total", &[("shard", "s0")]) == 1.0
    });
}

#[test]
fn what_sessions_do_is_counted_by_kind() {
    let s = setup().pool("size = 1").start();
    let (mut acme, mut other) = (s.login("acme"), s.login("acme"));
    acme.round(&[m::parse("p", "SELECT 2"), m::sync()].concat());
    other.round(&[m::parse("q", "SELECT 2"), m::sync()].concat());
    for _ in 0..3 {
        acme.round(&[m::bind("", "p", &[]), m::execute("", 0), m::sync()].concat());
    }
    acme.rows("CREATE TEMP TABLE notes (a int)");
    acme.rows("SELECT 1");
    let mut cancel = s.plain_target("", "").open().unwrap();
    cancel.send(&m::cancel_request(&[0, 0, 0, 1, 0, 0, 0, 2]));
    assert!(cancel.ends());
    let seen =
        wait_for(&s, "the pin", |seen| seen.sum("switchyard_pins_total", &[("reason", "temporary")]) == 1.0);
    assert_eq!(seen.sum("switchyard_pins_total", &[]), 1.0);
    assert_eq!(seen.sum("switchyard_cancels_total", &[("outcome", "ignored")]), 1.0);
    // One connection serves both, and the second asks for what the first has prepared.
    assert_eq!(seen.sum("switchyard_prepared_parses_total", &[]), 1.0);
    assert_eq!(seen.sum("switchyard_prepared_reuses_total", &[]), 1.0);
    assert!(seen.sum("switchyard_session_resets_total", &[("kind", "context"), ("shard", "s0")]) >= 1.0);
    assert_eq!(seen.sum("switchyard_handover_failures_total", &[]), 0.0);
}

#[test]
fn a_shard_that_is_away_is_counted_and_the_router_stays_ready() {
    let mut s = setup().start();
    s.login("acme").rows("SELECT 1");
    s.shards[0].kill9();
    let failures = [("shard", "s0"), ("outcome", "failure")];
    wait_for(&s, "a failure to connect", |seen| {
        if let Ok(mut acme) = s.target("acme").try_connect() {
            let _ = acme.try_rows("SELECT 1");
        }
        seen.sum("switchyard_server_connects_total", &failures) > 0.0
    });
    for path in ["/livez", "/readyz"] {
        assert_eq!(metrics::get(s.router.http(), path).unwrap().0, 200, "{path}");
    }
}

#[test]
fn counters_never_go_backwards() {
    let ids: Vec<String> = (0..12).map(|n| format!("t{n}")).collect();
    let mut s = setup().tenants(ids.iter().map(String::as_str)).router("metrics_tenants = 3").start();
    let mut before = s.router.metrics();
    let mut done = 0.0;
    for round in 0..6 {
        for (n, id) in ids.iter().enumerate() {
            if round == 3 && n == 0 {
                continue;
            }
            let mut session = s.login(id);
            for _ in 0..=(n + round * 5) % 12 {
                session.rows("SELECT 1");
                done += 1.0;
            }
        }
        let now = wait_for(&s, "all transactions", |seen| {
            seen.sum("switchyard_transaction_seconds_count", &[]) == done
        });
        nothing_went_back(&before, &now);
        assert_eq!(now.values_of("tenant").len(), 4);
        before = now;
        // Each reload replaces the pool; in between a tenant goes and comes back, and the number of
        // series changes.
        let taken = s.reload(|toml| match round {
            2 => toml.replace("size = 2", "size = 3").replace("id = \"t0\"", "id = \"u0\""),
            3 => toml.replace("size = 3", "size = 2").replace("id = \"u0\"", "id = \"t0\""),
            n => toml.replace(
                if n % 2 == 0 { "size = 2" } else { "size = 3" },
                if n % 2 == 0 { "size = 3" } else { "size = 2" },
            ),
        });
        assert!(taken);
        let now = s.router.metrics();
        nothing_went_back(&before, &now);
        before = now;
    }
    assert_eq!(before.sum("switchyard_config_reloads_total", &[("outcome", "success")]), 6.0);
    assert_eq!(before.sum("switchyard_statements_total", &[]), done);
}

#[test]
fn the_parts_of_the_page() {
    let s = setup().start();
    s.login("acme").rows("SELECT 1");
    let part = |path: &str| {
        let (status, text) = metrics::get(s.router.http(), path).unwrap();
        assert_eq!(status, 200, "{path}");
        Metrics::parse(&text)
    };
    let (all, router, tenants) = (part("/metrics"), part("/metrics/router"), part("/metrics/tenants"));
    assert!(router.values_of("tenant").is_empty());
    assert!(tenants.values_of("tenant").contains("acme"));
    let mut names: Vec<_> = router.types.keys().chain(tenants.types.keys()).collect();
    names.sort();
    assert_eq!(names, all.types.keys().collect::<Vec<_>>());
    assert!(all.sum("process_resident_memory_bytes", &[]) > 1e6);
    assert!(all.sum("process_open_fds", &[]) > 5.0);
}

#[test]
fn http_that_is_none_does_no_harm() {
    let s = setup().start();
    let mut acme = s.login("acme");
    let before = s.router.resident_bytes();
    let garbage: [&[u8]; 6] = [
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        &[b'x'; 200_000],
        b"\r\n\r\n\r\n\r\n",
    ];
    for _ in 0..5 {
        for bytes in garbage {
            let mut socket = TcpStream::connect(s.router.http()).unwrap();
            let _ = socket.write_all(bytes);
            let _ = socket.shutdown(std::net::Shutdown::Write);
            let _ = socket.read_to_end(&mut Vec::new());
        }
    }
    assert_eq!(metrics::get(s.router.http(), "/livez").unwrap().0, 200);
    assert_eq!(acme.value("SELECT 1"), "1");
    let grown = s.router.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
}
