//! What goes wrong late: behind the commit of a move there is no way back, and before it nothing is left behind.

use switchyard_tests::moves::Moving;
use switchyard_tests::wait;

use crate::TABLES;

#[test]
fn a_tenant_that_has_arrived_is_not_let_go_on_where_it_was() {
    let m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    m.cli(&["move", "rehearse", "acme", "--to", "s1", "--wait"]);
    m.shards[0].sql(
        "CREATE FUNCTION not_now() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now'; END $$;
         CREATE TRIGGER not_now BEFORE UPDATE ON switchyard.fence FOR EACH ROW WHEN (NEW.state = 'moved')
         EXECUTE FUNCTION not_now()",
    );
    let id = m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
    wait::until_true("the refusal", || m.log().matches("not now").count() > 1);
    let fence = "SELECT state FROM switchyard.fence WHERE tenant_id = 'acme'";
    assert_eq!((m.one(0, fence).as_str(), m.one(1, fence).as_str()), ("frozen", "active"));
    let mut client = m.login(&acme, 0);
    client.rows("UPDATE clients SET name = 'there'");
    m.shards[0].sql("DROP TRIGGER not_now ON switchyard.fence");
    wait::until_true("the move", || m.cli(&["move", "show", &id])["phase"] == "moved");
    assert_eq!(m.one(1, "SELECT name FROM clients"), "there");
    m.cli(&["move", "complete", &id, "--wait"]);
    m.nothing_left();
}

#[test]
fn what_is_refused_when_a_move_is_taken_up_again_leaves_nothing() {
    let mut m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    m.kill_control_plane();
    m.start_control_plane_to_end_at("copied");
    let id = m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
    m.wait_control_plane_end();
    m.shards[1].sql("ALTER TABLE leads DROP COLUMN email");
    m.start_control_plane();
    m.wait_ready();
    wait::until_true("the end", || m.cli(&["move", "show", &id])["phase"] == "done");
    assert_eq!(m.cli(&["move", "show", &id])["outcome"], "refused");
    assert_eq!(m.one(1, "SELECT count(*) FROM clients"), "0");
    assert_eq!(m.one(1, "SELECT count(*) FROM switchyard.fence"), "0");
    assert_eq!(m.one(0, "SELECT state || coalesce(move_id, '-') FROM switchyard.fence"), "active-");
    m.nothing_left();
}

#[test]
fn a_tenant_that_has_arrived_is_served_without_the_catalog() {
    let mut m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let mut client = m.login(&acme, 0);
    assert_eq!(client.column("SELECT name FROM clients"), ["c"]);
    m.kill_control_plane();
    m.start_control_plane_to_end_at("stop:activated");
    let id = m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
    m.wait_control_plane_stopped();
    m.catalog.kill9();
    m.thaw_control_plane();
    let fence = "SELECT state || ' ' || moved_to FROM switchyard.fence WHERE tenant_id = 'acme'";
    wait::until_true("the fence to say where it is", || m.one(0, fence) == "moved s1");
    client.rows("UPDATE clients SET name = 'there'");
    assert_eq!(m.one(1, "SELECT name FROM clients"), "there");
    m.catalog.start_again();
    wait::until_true("the move", || {
        let shown = m.command(&["move", "show", &id, "-o", "json"]);
        String::from_utf8_lossy(&shown.stdout).contains("\"moved\"")
    });
    wait::until_true("the source to follow", || m.one(0, "SELECT name FROM clients") == "there");
    let back = m.cli(&["move", "rollback", &id, "--wait", "--timeout", "60"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
    m.nothing_left();
}

/// Whoever is in the middle of a cutover brings it to an end by what the shards say.
#[test]
fn a_catalog_that_dies_in_a_cutover_holds_nobody_up() {
    let mut m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let mut client = m.login(&acme, 0);
    for point in ["held", "frozen", "activated"] {
        m.kill_control_plane();
        m.start_control_plane_to_end_at(&format!("stop:{point}"));
        let id = m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
        m.wait_control_plane_stopped();
        m.catalog.kill9();
        m.thaw_control_plane();
        client.rows("UPDATE clients SET name = name || '!'");
        m.catalog.start_again();
        wait::until_true("the move", || {
            let shown = m.command(&["move", "show", &id, "-o", "json"]);
            String::from_utf8_lossy(&shown.stdout).contains("\"phase\": \"moved\"")
        });
        client.rows("UPDATE clients SET name = name || '!'");
        let back = m.cli(&["move", "rollback", &id, "--wait", "--timeout", "60"]);
        assert_eq!(back["outcome"], "rolled_back", "{back}");
    }
    assert_eq!(client.column("SELECT name FROM clients"), ["c!!!!!!"]);
    m.nothing_left();
}

#[test]
fn a_mover_that_is_told_to_end_leaves_nobody_frozen() {
    let mut m = Moving::start(1, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let mut client = m.login(&acme, 0);
    m.kill_control_plane();
    m.start_control_plane_to_end_at("stop:frozen");
    let id = m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
    m.wait_control_plane_stopped();
    m.end_control_plane();
    m.thaw_control_plane();
    m.wait_control_plane_end();
    let states = (0..2).map(|shard| m.one(shard, "SELECT state FROM switchyard.fence")).collect::<Vec<_>>();
    assert!(states.iter().any(|state| state == "active"), "{states:?}");
    client.rows("UPDATE clients SET name = name || '!'");
    m.start_control_plane();
    m.wait_ready();
    wait::until_true("the move", || m.cli(&["move", "show", &id])["phase"] == "moved");
    assert_eq!(client.column("SELECT name FROM clients"), ["c!"]);
}

#[test]
fn a_password_that_is_not_there_for_now_does_not_end_a_move_that_has_begun() {
    let mut m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    m.kill_control_plane();
    m.start_control_plane_to_end_at("source fenced");
    let id = m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
    m.wait_control_plane_end();
    m.catalog
        .sql("UPDATE switchyard.shard_admins SET password_env = 'SWITCHYARD_SHARD_X' WHERE shard = 's0'");
    m.start_control_plane();
    m.wait_ready();
    let lacks = "the variable SWITCHYARD_SHARD_X is not set";
    wait::until_true("the failure", || m.cli(&["move", "show", &id])["error"].to_string().contains(lacks));
    assert_eq!(m.cli(&["move", "show", &id])["phase"], "preparing");
    m.catalog
        .sql("UPDATE switchyard.shard_admins SET password_env = 'SWITCHYARD_SHARD_S0' WHERE shard = 's0'");
    wait::until_true("the move", || m.cli(&["move", "show", &id])["phase"] == "moved");
    m.cli(&["move", "complete", &id, "--wait"]);
    m.nothing_left();
}

#[test]
fn a_home_of_before_is_fenced_when_a_move_there_was_given_up() {
    let m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    let id = m.cli(&["move", "start", "acme", "--to", "s1", "--wait"])["id"].to_string();
    m.cli(&["move", "complete", &id, "--wait"]);
    let rehearsed = m.cli(&["move", "rehearse", "acme", "--to", "s0", "--wait"]);
    assert_eq!(rehearsed["outcome"], "rehearsed", "{rehearsed}");
    // A router that knows no better.
    let mut old = m.shards[0].app().param("options", "-c app.tenant_id=acme").connect();
    let refused = old.try_rows("INSERT INTO clients (tenant_id, name) VALUES ('acme', 'late')").unwrap_err();
    assert_eq!(refused.sqlstate, "TN002");
    let fence = "SELECT concat_ws(' ', state, moved_to, move_id) FROM switchyard.fence";
    assert_eq!(m.one(0, fence), "moved s1");
    let epoch = "SELECT epoch FROM switchyard.fence";
    let epochs: Vec<i64> = (0..2).map(|shard| m.one(shard, epoch).parse().unwrap()).collect();
    assert_eq!(epochs[0] + 1, epochs[1], "the row tells which epoch has ended there");
    let back = m.cli(&["move", "start", "acme", "--to", "s0", "--wait"]);
    assert_eq!(back["phase"], "moved", "{back}");
}

#[test]
fn a_freezing_that_comes_while_changes_are_applied_is_not_missed() {
    let m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    // Applying takes long, and there is always something to apply until the tenant is frozen.
    m.shards[1].sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.015); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION slow();
         ALTER TABLE ledger ENABLE ALWAYS TRIGGER slow",
    );
    let id = m.cli(&["move", "start", "acme", "--to", "s1", "--pause-budget", "3000"])["id"].to_string();
    let mut writer = m.shards[0].app().param("options", "-c app.tenant_id=acme").connect();
    let mut seq = 0;
    let refused = loop {
        seq += 1;
        std::thread::sleep(std::time::Duration::from_millis(17));
        let sql = format!("INSERT INTO ledger (tenant_id, client, seq) VALUES ('acme', 1, {seq})");
        if let Err(error) = writer.try_rows(&sql) {
            break error.sqlstate;
        }
    };
    assert_eq!(refused, "TN002");
    wait::until_true("the move", || m.cli(&["move", "show", &id])["phase"] == "moved");
    let given_up = "SELECT count(*) FROM switchyard.move_events WHERE what LIKE '%did not arrive%'";
    assert_eq!(m.catalog.value(given_up), "0");
    assert_eq!(m.one(1, "SELECT count(*) FROM ledger"), (seq - 1).to_string());
    m.cli(&["move", "complete", &id, "--wait"]);
    m.nothing_left();
}
