//! Cancel requests that come to another router than the one that has the session.

use switchyard_tests::raw::messages as m;
use switchyard_tests::{Raw, Router, Running, Setup, wait};

/// The configuration of router `id`, which knows these peers.
fn toml(s: &Running, id: u16, peers: &[(u16, &Router)]) -> String {
    let mut toml = s.toml.replacen("[router]\n", &format!("[router]\nid = {id}\n"), 1);
    for (id, peer) in peers {
        toml += &format!("\n[[peers]]\nid = {id}\naddress = \"{}\"\n", peer.address());
    }
    toml
}

/// Two routers that know each other, as 1 and 2, and the setup with its own router, which neither knows.
fn two(setup: Setup) -> (Running, Router, Router) {
    let s = setup.start();
    let one = Router::start(&toml(&s, 1, &[]));
    let two = Router::start(&toml(&s, 2, &[(1, &one)]));
    assert!(one.reload(&toml(&s, 1, &[(2, &two)])));
    (s, one, two)
}

fn login(s: &Running, router: &Router) -> Raw {
    s.target("acme").at(router.address()).connect()
}

fn sleep(s: &Running, session: &mut Raw) {
    session.send(&m::query("SELECT pg_sleep(600)"));
    wait::until_true("the statement to run", || sleeping(s) == "1");
}

fn sleeping(s: &Running) -> String {
    s.shards[0].value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
}

/// Sends a cancel request to `router` and waits until it has been dealt with.
fn cancel(s: &Running, router: &Router, key: &[u8]) {
    let mut raw = s.plain_target("", "").at(router.address()).open().expect("the router listens");
    raw.send(&m::cancel_request(key));
    assert!(raw.ends());
}

fn is_canceled(session: &mut Raw) -> bool {
    session.until_ready().iter().any(|m| m.sqlstate() == "57014")
}

fn cancels(router: &Router, outcome: &str) -> f64 {
    router.metrics().sum("switchyard_cancels_total", &[("outcome", outcome)])
}

#[test]
fn a_request_reaches_the_router_that_has_the_session() {
    let (s, one, two) = two(Setup::new().shards(1).tenants(["acme"]));
    for (has, gets) in [(&one, &two), (&two, &one)] {
        let mut acme = login(&s, has);
        sleep(&s, &mut acme);
        cancel(&s, gets, acme.key());
        assert!(is_canceled(&mut acme));
        assert_eq!(acme.value("SELECT 1"), "1");
        assert_eq!((cancels(gets, "passed_on"), cancels(has, "forwarded")), (1.0, 1.0));
    }
}

#[test]
fn by_session_as_well_where_the_process_id_is_the_servers() {
    let (s, one, two) = two(Setup::new().shards(1).tenants(["acme"]).router("pool_mode = \"session\""));
    for (has, gets) in [(&one, &two), (&two, &one)] {
        let mut acme = login(&s, has);
        let pid = u32::from_be_bytes(acme.key()[..4].try_into().unwrap());
        assert_eq!(acme.value("SELECT pg_backend_pid()"), pid.to_string());
        sleep(&s, &mut acme);
        cancel(&s, gets, acme.key());
        assert!(is_canceled(&mut acme));
        assert_eq!(acme.value("SELECT pg_backend_pid()"), pid.to_string());
    }
}

#[test]
fn a_request_reaches_it_over_tls_and_goes_on_over_tls() {
    let (s, one, two) = two(Setup::new().shards(1).tenants(["acme"]).tls("require"));
    let tls = |id: u16, peer: (u16, &Router)| {
        toml(&s, id, &[peer]) + &format!("sslmode = \"verify-ca\"\nsslrootcert = {:?}\n", s.certs.ca())
    };
    assert!(two.reload(&tls(2, (1, &one))));
    let mut acme = login(&s, &one);
    sleep(&s, &mut acme);
    cancel(&s, &two, acme.key());
    assert!(is_canceled(&mut acme));
}

#[test]
fn a_router_that_nobody_knows_gets_nothing_and_a_wrong_secret_does_nothing() {
    let (s, one, two) = two(Setup::new().shards(1).tenants(["acme"]));
    let mut acme = login(&s, &one);
    sleep(&s, &mut acme);
    let key = acme.key().to_vec();
    // The setup's own router is no peer of anybody.
    cancel(&s, &s.router, &key);
    let mut wrong = key.clone();
    wrong[7] ^= 1;
    cancel(&s, &two, &wrong);
    assert_eq!((sleeping(&s).as_str(), cancels(&one, "forwarded")), ("1", 0.0));
    assert_eq!((cancels(&s.router, "ignored"), cancels(&one, "ignored")), (1.0, 1.0));
    cancel(&s, &two, &key);
    assert!(is_canceled(&mut acme));
}

#[test]
fn the_key_of_a_dead_process_reaches_nobody() {
    let (s, mut one, two) = two(Setup::new().shards(1).tenants(["acme"]));
    let old = login(&s, &one).key().to_vec();
    one.kill9();
    // Nobody there at all.
    cancel(&s, &two, &old);
    one.start_again();
    let mut acme = login(&s, &one);
    sleep(&s, &mut acme);
    cancel(&s, &two, &old);
    cancel(&s, &one, &old);
    assert_eq!(sleeping(&s), "1");
    cancel(&s, &two, acme.key());
    assert!(is_canceled(&mut acme));
}

#[test]
fn peers_in_a_circle_pass_a_request_on_no_more_than_twice() {
    let s = Setup::new().shards(1).tenants(["acme"]).start();
    let (one, two) = (Router::start(&toml(&s, 1, &[])), Router::start(&toml(&s, 2, &[])));
    // Each believes that the other is router 3.
    assert!(one.reload(&toml(&s, 1, &[(3, &two)])));
    assert!(two.reload(&toml(&s, 2, &[(3, &one)])));
    let of_three = (1_u32 << 30 | 3 << 16).to_be_bytes();
    cancel(&s, &one, &[of_three, [1; 4]].concat());
    assert_eq!((cancels(&one, "passed_on"), cancels(&two, "passed_on")), (1.0, 1.0));
    assert_eq!((cancels(&one, "ignored"), cancels(&two, "ignored")), (1.0, 0.0));
}

#[test]
fn guesses_are_limited_and_known_keys_are_not() {
    let s = Setup::new().shards(1).tenants(["acme"]).section("[limits]\nunknown_cancels = 5").start();
    let acme = s.login("acme");
    for _ in 0..50 {
        cancel(&s, &s.router, acme.key());
    }
    assert_eq!(cancels(&s.router, "limited"), 0.0);
    let mut wrong = acme.key().to_vec();
    wrong[4] ^= 1;
    wait::until_true("the limit", || {
        cancel(&s, &s.router, &wrong);
        cancels(&s.router, "limited") >= 1.0
    });
}
