//! What a move does only if asked, and what happens to who is in its way.

use switchyard_tests::moves::Moving;
use switchyard_tests::wait;

use crate::TABLES;

#[test]
fn an_earlier_move_keeps_its_way_back_unless_asked_otherwise() {
    let m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
    let refused = m.command(&["move", "start", "acme", "--to", "s0", "--wait"]);
    assert_eq!(refused.status.code(), Some(4));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("can still be rolled back"), "{text}");
    assert_eq!(m.cli(&["move", "show", "acme"])["wish"], "run");
    let back = m.cli(&["move", "rollback", "acme", "--wait"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
    m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
    let again = m.cli(&["move", "start", "acme", "--to", "s0", "--wait", "--complete-previous"]);
    assert_eq!(again["phase"], "moved", "{again}");
    assert_eq!(m.one(0, "SELECT count(*) FROM clients"), "1");
}

#[test]
fn a_tenant_is_not_deleted_or_placed_in_the_middle_of_a_move_and_may_come_back_where_it_was() {
    let m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
    m.catalog.sql("UPDATE switchyard.buckets SET shard = 's1'");
    for refused in [
        &["tenant", "delete", "acme", "--yes", "--grace", "0"][..],
        &["tenant", "place", "acme", "--to", "s0"],
        &["shard", "remove", "s0", "--yes"],
    ] {
        let output = m.command(refused);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{refused:?}: {text}");
        assert!(text.contains("complete it or roll it back first"), "{refused:?}: {text}");
    }
    assert_eq!(m.one(0, "SELECT count(*) FROM clients"), "1", "the way back");
    m.cli(&["move", "complete", "acme", "--wait"]);
    m.cli(&["tenant", "delete", "acme", "--yes", "--grace", "0", "--wait"]);
    assert_eq!(m.one(1, "SELECT count(*) FROM clients"), "0");

    // What is left of the move would send its clients to the other shard for ever.
    let output = m.command(&["tenant", "create", "acme", "--shard", "s0"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("UPDATE switchyard.fence"), "{text}");
    assert_eq!(m.command(&["tenant", "show", "acme"]).status.code(), Some(3));
    let app = switchyard_tests::cluster::APP;
    m.shards[0].sql(&format!(
        "GRANT USAGE ON SCHEMA switchyard TO {app}; GRANT SELECT, UPDATE ON switchyard.fence TO {app}"
    ));
    let acme = m.tenant("acme", 0);
    let mut client = m.login(&acme, 0);
    client.rows("INSERT INTO clients VALUES ('acme', 2, 'again')");
    assert_eq!(m.one(0, "SELECT count(*) FROM clients"), "1");
    assert_eq!(m.one(1, "SELECT count(*) FROM clients"), "0");
}

#[test]
fn a_session_that_keeps_its_connection_is_named_or_told_to_connect_again() {
    let m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let target = || m.routers[0].target().user(&acme.id).password(&acme.password).database("crm");
    let mut pinned = target().connect();
    let mut free = target().connect();
    pinned.rows("CREATE TEMPORARY TABLE mine (x int)");
    free.rows("SELECT 1");
    let id = m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
    wait::until_true("an attempt that names the session", || {
        let error = m.cli(&["move", "show", &id])["error"].as_str().unwrap_or_default().to_owned();
        error.contains("keeps its server connection (temporary)")
    });
    assert_eq!(pinned.column("SELECT count(*) FROM mine"), ["0"], "it goes on meanwhile");
    m.cli(&["move", "abort", &id, "--wait"]);
    let moved = m.cli(&["move", "start", "acme", "--to", "s1", "--end-pinned", "--wait"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    let told = pinned.try_rows("SELECT 1").unwrap_err();
    assert_eq!(told.sqlstate, "57P01");
    assert_eq!(free.column("SELECT count(*) FROM clients"), ["1"], "who keeps nothing is carried");
}

#[test]
fn a_mover_that_is_gone_holds_nobody_up_for_longer_than_the_budget() {
    let mut m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let mut client = m.login(&acme, 0);
    for (point, frozen) in [("held", false), ("frozen", true)] {
        m.kill_control_plane();
        m.start_control_plane_to_end_at(point);
        let id = m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
        m.wait_control_plane_end();
        if frozen {
            // Nobody but a mover may undo that: clients wait for one.
            m.start_control_plane();
        }
        client.rows("UPDATE clients SET name = name || '!'");
        if !frozen {
            m.start_control_plane();
        }
        m.wait_ready();
        wait::until_true("the move", || m.cli(&["move", "show", &id])["phase"] == "moved");
        client.rows("UPDATE clients SET name = name || '!'");
        m.cli(&["move", "rollback", &id, "--wait"]);
    }
    assert_eq!(client.column("SELECT name FROM clients"), ["c!!!!"]);
}

#[test]
fn an_epoch_never_falls() {
    let m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    let epoch = || m.cli(&["tenant", "show", "acme"])["epoch"].as_i64().expect("a number");
    m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
    m.cli(&["move", "rollback", "acme", "--wait"]);
    let before = epoch();
    assert!(before > 1, "{before}");
    m.catalog.sql("DELETE FROM switchyard.placements");
    let without = epoch();
    assert!(without > before, "{without} after {before}");
    m.cli(&["tenant", "place", "acme", "--to", "s0"]);
    let placed = epoch();
    assert!(placed > without, "{placed} after {without}");
}
