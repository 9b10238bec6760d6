//! Where a tenant's transactions run.

use switchyard_tests::raw::messages as m;
use switchyard_tests::setup::bucket_shard;
use switchyard_tests::{Running, Setup};

const PORT: &str = "SELECT current_setting('port')";

fn ports(s: &Running) -> Vec<String> {
    s.shards.iter().map(|shard| shard.port().to_string()).collect()
}

#[test]
fn by_bucket_and_by_explicit_placement() {
    let ids: Vec<String> = (0..12).map(|n| format!("t{n}")).collect();
    let s = Setup::new()
        .tenants(ids.iter().map(String::as_str))
        .tenant_on("left", 0)
        .tenant_on("right", 1)
        .start();
    let ports = ports(&s);
    let mut used = [0, 0];
    for id in &ids {
        let shard = bucket_shard(id, 2);
        used[shard] += 1;
        let mut session = s.login(id);
        assert_eq!(session.value(PORT), ports[shard], "{id}");
        assert_eq!(session.column("SELECT name FROM clients ORDER BY id"), s.canaries(id));
    }
    assert!(used[0] > 0 && used[1] > 0, "{used:?}");
    assert_eq!(s.login("left").value(PORT), ports[0]);
    assert_eq!(s.login("right").value(PORT), ports[1]);
}

#[test]
fn buckets_may_be_dealt_by_hand() {
    let all_right =
        "[[buckets]]\nfrom = 0\nto = 9\nshard = \"s0\"\n[[buckets]]\nfrom = 10\nto = 4095\nshard = \"s1\"";
    let s =
        Setup::new().tenant_on("left", 0).section(all_right).section("[[tenants]]\nid = \"acme\"").start();
    let ports = ports(&s);
    assert_eq!(s.login("acme").value(PORT), ports[1]);
    assert_eq!(s.login("left").value(PORT), ports[0]);
}

#[test]
fn a_reload_moves_new_transactions_and_nobody_else() {
    let mut s = Setup::new().pool("size = 4").tenant_on("mover", 0).tenant_on("stays", 0).start();
    let ports = ports(&s);
    let (mut mover, mut open, mut stays) = (s.login("mover"), s.login("mover"), s.login("stays"));
    stays.rows("SET my.note = 'kept'");
    open.rows("BEGIN");
    assert_eq!(open.value(PORT), ports[0]);
    assert_eq!(mover.value(PORT), ports[0]);
    assert!(
        s.reload(|toml| toml.replace("id = \"mover\"\nshard = \"s0\"", "id = \"mover\"\nshard = \"s1\""))
    );
    assert_eq!(mover.value(PORT), ports[1]);
    // A transaction ends where it began.
    assert_eq!(open.value(PORT), ports[0]);
    open.rows("COMMIT");
    assert_eq!(open.value(PORT), ports[1]);
    assert_eq!(stays.value(PORT), ports[0]);
    assert_eq!(stays.value("SELECT current_setting('my.note')"), "kept");
    assert_eq!(s.login("mover").value(PORT), ports[1]);
}

#[test]
fn prepared_statements_move_with_their_session() {
    let mut s = Setup::new().tenant_on("mover", 0).start();
    let ports = ports(&s);
    let mut mover = s.login("mover");
    mover.round(&[m::parse("p", PORT), m::sync()].concat());
    let run = [m::bind("", "p", &[]), m::execute("", 0), m::sync()].concat();
    let port =
        |messages: &[m::Message]| messages.iter().find(|m| m.tag == b'D').expect("a row").values()[0].clone();
    assert_eq!(port(&mover.round(&run)).as_deref(), Some(ports[0].as_str()));
    assert!(s.reload(|toml| toml.replace("shard = \"s0\"", "shard = \"s1\"")));
    assert_eq!(port(&mover.round(&run)).as_deref(), Some(ports[1].as_str()));
}

#[test]
fn unknown_tenants_are_refused_or_served() {
    let s = Setup::new().tenants(["acme"]).start();
    assert_eq!(s.refused("stranger").sqlstate(), "28P01");
    let s = Setup::new().tenants(["acme"]).router("unknown_tenants = \"create\"").start();
    let ports = ports(&s);
    for id in ["stranger", "another", "third"] {
        let mut session = s.login(id);
        assert_eq!(session.value(PORT), ports[bucket_shard(id, 2)]);
        assert_eq!(session.value("SELECT current_setting('app.tenant_id')"), id);
        assert_eq!(session.value("SELECT count(*) FROM clients"), "0");
    }
}

#[test]
fn a_tenant_can_be_suspended_while_it_is_connected() {
    let mut s = Setup::new().tenant_on("acme", 0).tenant_on("globex", 0).start();
    let (mut acme, mut globex) = (s.login("acme"), s.login("globex"));
    assert_eq!(acme.value("SELECT 1"), "1");
    assert!(s.reload(|toml| toml.replace("id = \"acme\"\n", "id = \"acme\"\nstate = \"suspended\"\n")));
    let error = acme.error("SELECT 1");
    assert!(error.message.contains("suspended"), "{error:?}");
    assert_eq!(globex.value("SELECT 1"), "1");
    assert!(s.reload(|toml| toml.replace("state = \"suspended\"\n", "")));
    assert_eq!(s.login("acme").value("SELECT 1"), "1");
}

#[test]
fn a_session_that_cannot_be_carried_is_told_that_its_tenant_moved() {
    let mut s = Setup::new().pool("size = 4").tenant_on("mover", 0).start();
    let ports = ports(&s);
    let mut pinned = s.login("mover");
    pinned.rows("CREATE TEMP TABLE kept (a int)");
    assert_eq!(pinned.value(PORT), ports[0]);
    assert!(
        s.reload(|toml| toml.replace("id = \"mover\"\nshard = \"s0\"", "id = \"mover\"\nshard = \"s1\""))
    );
    pinned.send(&m::query("INSERT INTO kept VALUES (1)"));
    let answer = pinned.until_ready_or_end();
    assert!(answer.iter().any(|m| m.tag == b'E' && m.sqlstate() == "57P01"), "{answer:?}");
    assert_eq!(s.login("mover").value(PORT), ports[1]);
}

#[test]
fn a_session_that_waits_goes_where_its_tenant_has_moved() {
    let mut s = Setup::new().pool("size = 1").tenant_on("mover", 0).tenant_on("stays", 0).start();
    let ports = ports(&s);
    let (mut holder, mut mover) = (s.login("stays"), s.login("mover"));
    holder.rows("BEGIN");
    mover.send(&m::query(PORT));
    switchyard_tests::wait::until_true("the client to wait", || {
        s.router.metrics().sum("switchyard_client_connections", &[("state", "waiting")]) >= 1.0
    });
    assert!(
        s.reload(|toml| toml.replace("id = \"mover\"\nshard = \"s0\"", "id = \"mover\"\nshard = \"s1\""))
    );
    holder.rows("COMMIT");
    let answer = mover.until_ready();
    let port = answer.iter().find(|m| m.tag == b'D').expect("a row");
    assert!(port.body.ends_with(ports[1].as_bytes()), "{answer:?}");
}
