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
    let mut client = m.routers[0].target().user(&acme.id).password(&acme.password).database("crm").connect();
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
