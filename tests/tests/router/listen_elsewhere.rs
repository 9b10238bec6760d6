//! LISTEN at one router and NOTIFY at its peer, without a catalog.

use switchyard_tests::Raw;
use switchyard_tests::{Router, Running, Setup, wait};

const KEY: &str = "a key of more than thirty-two bytes";

/// The configuration of router `id`, which knows these peers and has this key.
fn toml(s: &Running, id: u16, key: &str, peers: &[(u16, &Router)]) -> String {
    let mut toml = s.toml.replacen("[router]\n", &format!("[router]\nid = {id}\n"), 1);
    toml += &format!("\n[notifications]\nkey = \"{key}\"\n");
    for (id, peer) in peers {
        toml += &format!("\n[[peers]]\nid = {id}\naddress = \"{}\"\n", peer.address());
    }
    toml
}

/// Two routers that know each other, as 1 and 2, with these keys.
fn two(keys: [&str; 2]) -> (Running, Router, Router) {
    let s = Setup::new().shards(1).pool("size = 2").tenants(["acme", "globex"]).start();
    let one = Router::start(&toml(&s, 1, keys[0], &[]));
    let two = Router::start(&toml(&s, 2, keys[1], &[(1, &one)]));
    assert!(one.reload(&toml(&s, 1, keys[0], &[(2, &two)])));
    (s, one, two)
}

fn login(s: &Running, router: &Router, tenant: &str) -> Raw {
    s.target(tenant).at(router.address()).connect()
}

/// The payloads of what `listener` hears up to the last word, which `sender` says now.
#[track_caller]
fn heard(listener: &mut Raw, sender: &mut Raw) -> Vec<String> {
    listener.heard(sender, "news").into_iter().map(|(_, payload)| payload).collect()
}

fn metric(router: &Router, name: &str) -> f64 {
    router.metrics().sum(&format!("switchyard_notification{name}"), &[])
}

#[test]
fn a_listener_hears_its_tenant_by_a_peer() {
    let (s, one, two) = two([KEY, KEY]);
    let (mut acme, mut globex) = (login(&s, &two, "acme"), login(&s, &two, "globex"));
    for _ in 0..3 {
        acme.rows("NOTIFY news, 'early'");
        globex.rows("NOTIFY news, 'early'");
    }
    let mut open = login(&s, &two, "acme");
    open.rows("BEGIN; NOTIFY news, 'begun before'");
    let mut listener = login(&s, &one, "acme");
    listener.rows("LISTEN news");
    open.rows("COMMIT");
    for n in 0..5 {
        globex.rows(&format!("NOTIFY news, 'globex {n}'"));
        acme.rows(&format!("NOTIFY news, 'acme {n}'"));
    }
    let expected = ["begun before", "acme 0", "acme 1", "acme 2", "acme 3", "acme 4"];
    assert_eq!(heard(&mut listener, &mut acme), expected);
    // The other way round, and for a tenant that is listened for at both.
    let mut back = login(&s, &two, "acme");
    back.rows("LISTEN news");
    let mut here = login(&s, &one, "acme");
    here.rows("NOTIFY news, 'here'");
    assert_eq!(heard(&mut back, &mut here), ["here"]);
    assert_eq!(heard(&mut listener, &mut acme), ["here"]);
    assert_eq!(metric(&one, "_forgeries_total") + metric(&two, "_forgeries_total"), 0.0);
}

#[test]
fn a_peer_with_another_key_is_not_believed() {
    let (s, one, two) = two([KEY, "another key, which is also long enough"]);
    let mut listener = login(&s, &one, "acme");
    listener.rows("LISTEN news");
    let mut acme = login(&s, &two, "acme");
    acme.rows("NOTIFY news, 'of a stranger'");
    let mut here = login(&s, &one, "acme");
    assert_eq!(heard(&mut listener, &mut here), [""; 0]);
    // And whoever cannot sign at all is a client like others, with a setting of its own.
    let word = format!("{}.{{}}", "0".repeat(64));
    let mut client = s.target("acme").at(one.address()).param("switchyard.word", &word).connect();
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn a_peer_that_is_gone_does_not_hold_up_a_listener() {
    let (s, one, two) = two([KEY, KEY]);
    drop(two);
    let mut listener = login(&s, &one, "acme");
    listener.rows("LISTEN news");
    let mut acme = login(&s, &one, "acme");
    acme.rows("NOTIFY news, 'here'");
    assert_eq!(heard(&mut listener, &mut acme), ["here"]);
    // It comes back at another place, and asks who listens.
    let again = Router::start(&toml(&s, 2, KEY, &[(1, &one)]));
    assert!(one.reload(&toml(&s, 1, KEY, &[(2, &again)])));
    let mut acme = login(&s, &again, "acme");
    wait::until_true("the peer", || {
        acme.rows("NOTIFY news, 'again'");
        metric(&one, "s_delivered_total") > 2.0
    });
    assert!(heard(&mut listener, &mut acme).iter().all(|word| word == "again"));
}
