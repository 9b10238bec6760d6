//! A target that is lost for good when the tenant may have arrived there, and an operator who gives it up.

use std::time::{Duration, Instant};

use switchyard_tests::cluster::APP;
use switchyard_tests::moves::{Moving, Tenant};
use switchyard_tests::wait;

use crate::TABLES;
use crate::world::{Model, World};

/// Longest time from the operator's word to a write that is acknowledged. What was seen is printed.
const WRITABLE: Duration = Duration::from_secs(10);

const ACCEPTED: [&str; 2] = ["--without-target", "--accept-loss"];

fn wait_event(m: &Moving, id: &str, like: &str) {
    let sql =
        format!("SELECT count(*) FROM switchyard.move_events WHERE move_id = {id} AND what LIKE '{like}'");
    wait::until_true(like, || m.catalog.value(&sql) != "0");
}

/// The next move to the shard that is back is refused, and why.
#[track_caller]
fn refused(m: &Moving, why: &str) {
    let again = m.command(&["move", "start", "acme", "--to", "s1"]);
    assert_eq!(again.status.code(), Some(4), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains(why), "{again:?}");
}

/// A tenant that has arrived on the second shard, and whose mover has ended before it has written that down.
fn arrived(routers: usize) -> (Moving, Tenant, String) {
    let mut m = Moving::start(routers, TABLES);
    let acme = m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    m.kill_control_plane();
    m.start_control_plane_to_end_at("moved");
    let id = m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
    m.wait_control_plane_end();
    (m, acme, id)
}

#[test]
fn what_was_written_at_a_target_that_is_given_up_stays_there_and_is_served_to_nobody() {
    let (mut m, acme, id) = arrived(2);
    let mut clients = [0, 1].map(|router| m.login(&acme, router));
    wait::until_true("a write at the target", || {
        clients.iter_mut().all(|c| c.try_rows("UPDATE clients SET name = 'there'").is_ok())
    });
    assert_eq!(
        (m.one(0, "SELECT name FROM clients"), m.one(1, "SELECT name FROM clients")),
        ("c".into(), "there".into())
    );
    let arrived: i64 = m.one(1, "SELECT epoch FROM switchyard.fence").parse().expect("an epoch");
    m.shards[1].kill9();
    m.start_control_plane();
    m.wait_ready();

    let wrong = m.command(&["move", "abort", &id, "--accept-loss"]);
    assert_eq!(wrong.status.code(), Some(2), "it goes with --without-target");
    m.command(&["move", "abort", &id, "--without-target", "--wait", "--timeout", "2"]);
    wait_event(&m, &id, "the tenant is moved on shard s0 and has arrived on shard s1%--accept-loss%");
    assert_ne!(m.one(0, "SELECT state FROM switchyard.fence"), "active");

    let done = m.cli(&[&["move", "abort", &id, "--wait", "--timeout", "60"], &ACCEPTED[..]].concat());
    assert_eq!(done["outcome"], "aborted", "{done}");
    for client in &mut clients {
        wait::until_true("a write at the source", || {
            client.try_rows("UPDATE clients SET name = name || '!'").is_ok()
        });
    }
    assert_eq!(
        m.one(0, "SELECT name FROM clients"),
        "c!!",
        "as it was when it was frozen, and what came after"
    );
    let placed =
        m.catalog.value("SELECT shard || ' ' || epoch FROM switchyard.placements WHERE tenant = 'acme'");
    let epoch = arrived + 1;
    assert_eq!(placed, format!("s0 {epoch}"));
    let fence = "SELECT concat_ws(' ', state, moved_to, epoch, move_id) FROM switchyard.fence WHERE tenant_id = 'acme'";
    assert_eq!(m.one(0, fence), format!("active {epoch}"));
    wait_event(&m, &id, "% accepts the loss of what shard s1 may have");
    let audited =
        "SELECT count(*) FROM switchyard.audit WHERE action = 'abort_accepting_loss' AND actor <> ''";
    assert_eq!(m.catalog.value(audited), "1");
    refused(&m, "is not cleared yet");

    m.shards[1].start_again();
    wait_event(&m, &id, "the tenant had arrived on shard s1%rows whose tenant_id is acme%");
    wait::until_true("the fence there to be closed", || m.one(1, fence) == format!("moved s0 {arrived}"));
    let mut old = m.shards[1].app().param("options", "-c app.tenant_id=acme").connect();
    assert_eq!(old.try_rows("SELECT name FROM clients").expect_err("it has gone").sqlstate, "TN002");
    wait::until_true("the slot to be dropped", || {
        m.one(1, "SELECT count(*) FROM pg_replication_slots") == "0"
    });
    refused(&m, "has rows that tenant `acme` wrote there when its loss was accepted");
    // More than once it is looked whether somebody has deleted them.
    let looked = format!("SELECT term FROM switchyard.moves WHERE id = {id}");
    let term: i64 = m.catalog.value(&looked).parse().expect("a term");
    wait::until_true("a look", || m.catalog.value(&looked).parse::<i64>().is_ok_and(|now| now > term));
    assert_eq!(m.one(1, "SELECT name FROM clients"), "there");
    m.shards[1].sql("DELETE FROM clients");
    wait_event(&m, &id, "what was left on shard s1 is cleared");
    let moved = m.cli(&["move", "start", "acme", "--to", "s1", "--wait", "--timeout", "60"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    for client in &mut clients {
        assert_eq!(client.column("SELECT name FROM clients"), ["c!!"]);
    }
    m.cli(&["move", "complete", "acme", "--wait"]);
    m.nothing_left();
}

/// A move whose target is killed when the mover has ended at a point, and that is given up although the tenant was frozen.
/// Each of those who bring that to an end is killed, too, at the points that are named.
fn given_up(world: &mut World, point: &str, then: &[&str]) -> String {
    world.m.kill_control_plane();
    world.m.start_control_plane_to_end_at(point);
    let id = world.m.cli(&["move", "start", "acme", "--to", "s1"])["id"].to_string();
    world.m.wait_control_plane_end();
    world.m.shards[1].kill9();
    match then {
        [] => {
            world.m.start_control_plane();
            world.m.wait_ready();
            world.m.cli(&[&["move", "abort", &id], &ACCEPTED[..]].concat());
        }
        [first, rest @ ..] => {
            world.m.start_control_plane_to_end_at(first);
            world.m.cli(&[&["move", "abort", &id], &ACCEPTED[..]].concat());
            world.m.wait_control_plane_end();
            rest.iter().for_each(|point| world.m.run_control_plane_until(point));
            world.m.start_control_plane();
            world.m.wait_ready();
        }
    }
    id
}

#[allow(clippy::print_stdout, reason = "what was seen is part of the test's answer")]
fn wait_writable(world: &World, began: Instant, point: &str) {
    world.wait_write();
    let writable = began.elapsed();
    println!("{:?}, `{point}`: writable {} ms after the word", world.model, writable.as_millis());
    assert!(writable < WRITABLE, "{writable:?}");
}

fn ended_well(mut world: World, id: &str) {
    wait::until_true("the end", || world.show(id, "phase") == "done");
    assert_eq!(world.show(id, "outcome"), "aborted");
    let moved = world.start_move(&[]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    world.home = 1;
    let done = world.m.cli(&["move", "complete", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    let errors = world.check();
    assert!(errors.iter().all(|e| e.starts_with("40001")), "{errors:?}");
    world.nothing_left();
}

/// The target was lost before the tenant arrived: what the move has brought there goes by itself.
fn lost_before(model: Model) {
    let mut world = World::start(model, false);
    let id = given_up(&mut world, "frozen", &[]);
    wait_writable(&world, Instant::now(), "frozen");
    world.m.shards[1].start_again();
    wait_event(&world.m, &id, "what was left on shard s1 is cleared");
    world.nothing_left();
    ended_well(world, &id);
}

/// It was lost behind the activation: what is there stays until somebody deletes it.
fn lost_behind(model: Model, then: &[&str], behind: &[&str]) {
    let mut world = World::start(model, false);
    let id = given_up(&mut world, "activated", then);
    wait_writable(&world, Instant::now(), "activated");
    wait::until_true("the end", || world.show(&id, "phase") == "done");
    world.m.kill_control_plane();
    world.m.shards[1].start_again();
    behind.iter().for_each(|point| world.m.run_control_plane_until(point));
    world.m.start_control_plane();
    world.m.wait_ready();
    wait_event(&world.m, &id, "the tenant had arrived on shard s1%");
    let (there, count) = match model {
        Model::Schema => ("crm", "SELECT count(*) > 0 FROM t_acme.ballast"),
        Model::Database => ("crm_acme", "SELECT count(*) > 0 FROM ballast"),
        Model::Rows | Model::Sealed => ("crm", "SELECT count(*) > 0 FROM ballast WHERE tenant_id = 'acme'"),
    };
    let fence = "SELECT state || ' ' || moved_to FROM switchyard.fence WHERE tenant_id = 'acme'";
    wait::until_true("the fence there to be closed", || world.database(1, there, fence) == "moved s0");
    assert_eq!(world.database(1, there, count), "t", "what is there stays");
    if model == Model::Schema {
        let may = format!("SELECT has_table_privilege('{APP}', 't_acme.marks', 'SELECT')");
        assert_eq!(world.m.one(1, &may), "f", "nobody reads it");
    }
    refused(&world.m, "wrote there when its loss was accepted");
    match model {
        Model::Schema => drop(world.database(1, there, "DROP SCHEMA t_acme CASCADE")),
        Model::Database => drop(world.database(1, "postgres", "DROP DATABASE crm_acme WITH (FORCE)")),
        Model::Rows | Model::Sealed => {
            drop(world.database(1, there, "DELETE FROM marks; DELETE FROM counters; DELETE FROM ballast"));
        }
    }
    wait_event(&world.m, &id, "what was left on shard s1 is cleared");
    ended_well(world, &id);
}

#[test]
fn heavy_a_target_that_is_lost_as_the_tenant_arrives_is_given_up() {
    lost_before(Model::Rows);
    // Whoever acts upon the word may end at any point of it.
    lost_behind(Model::Rows, &["loss accepted", "placed at source", "active at source"], &["kept", "closed"]);
}

#[test]
#[ignore = "takes minutes: make faults-moves"]
fn heavy_a_target_of_something_of_its_own_too() {
    for model in [Model::Schema, Model::Database] {
        lost_before(model);
        lost_behind(model, &[], &[]);
    }
}

/// The catalog has the tenant at the target already, and the source says so, too: all of that is taken back.
fn lost_when_placed(model: Model) {
    let mut world = World::start(model, false);
    assert_eq!(world.check(), [""; 0]);
    let before = world.sql("SELECT count(*) FROM marks");
    let mut client = world.m.login(&world.acme, 1);
    let id = given_up(&mut world, "placed", &[]);
    wait::until_true("the end", || world.show(&id, "phase") == "done");
    let insert = "INSERT INTO marks (tenant_id, writer, n) VALUES ('acme', 9, 1)";
    wait::until_true("a write", || client.try_rows(insert).is_ok());
    let n = before.parse::<u64>().expect("a number") + 1;
    assert_eq!(client.column("SELECT count(*) FROM marks"), [n.to_string()], "{model:?}: it is read, too");
    assert_eq!(world.sql("SELECT count(*) FROM marks"), n.to_string());
    assert_eq!(world.m.cli(&["tenant", "show", "acme"])["shard"], "s0");
    assert_eq!(world.sql("SELECT count(*) FROM switchyard.closed"), "0");
    // Who comes anew does as well.
    assert_eq!(world.m.login(&world.acme, 0).column("SELECT count(*) FROM marks"), [n.to_string()]);
}

#[test]
fn heavy_a_target_that_is_lost_when_the_tenant_has_been_placed_there_is_given_up() {
    std::thread::scope(|scope| {
        let own = scope.spawn(|| lost_when_placed(Model::Schema));
        lost_when_placed(Model::Rows);
        own.join().expect("the schema");
    });
}

/// An operator who thinks better of it, and a target that comes back, are too late by then.
#[test]
fn a_loss_that_has_been_acted_upon_is_not_taken_back() {
    let (mut m, _, id) = arrived(1);
    m.shards[1].kill9();
    m.start_control_plane_to_end_at("loss accepted");
    m.cli(&[&["move", "abort", &id], &ACCEPTED[..]].concat());
    m.wait_control_plane_end();
    // For now nobody can go on with it.
    m.shards[0].kill9();
    m.start_control_plane();
    m.wait_ready();
    for verb in ["abort", "pause", "resume"] {
        let late = m.command(&["move", verb, &id]);
        assert_eq!(late.status.code(), Some(4), "{verb}: {late:?}");
        assert!(String::from_utf8_lossy(&late.stderr).contains("accepted as lost"), "{verb}: {late:?}");
    }
    m.shards.iter_mut().for_each(|shard| shard.start_again());
    wait::until_true("the end", || m.cli(&["move", "show", &id])["outcome"] == "aborted");
    wait_event(&m, &id, "the tenant had arrived on shard s1%");
    let fence = "SELECT state FROM switchyard.fence WHERE tenant_id = 'acme'";
    wait::until_true("the fence there to be closed", || m.one(1, fence) == "moved");
    assert_eq!(m.one(0, fence), "active");
}

/// Nothing is lost that need not be: a target that answers is asked, whatever the operator believes.
#[test]
fn nothing_is_given_up_where_the_target_answers() {
    let (mut m, acme, id) = arrived(1);
    let mut client = m.login(&acme, 0);
    wait::until_true("a write at the target", || {
        client.try_rows("UPDATE clients SET name = 'there'").is_ok()
    });
    m.catalog.sql(&format!("UPDATE switchyard.moves SET wish = 'abort_accepting_loss' WHERE id = {id}"));
    m.start_control_plane();
    m.wait_ready();
    wait_event(&m, &id, "the target answers: nothing need be lost");
    wait::until_true("the move", || m.cli(&["move", "show", &id])["phase"] == "moved");
    assert_eq!(client.column("SELECT name FROM clients"), ["there"]);
    wait::until_true("the wish to be taken back", || m.cli(&["move", "show", &id])["wish"] == "run");
}

/// Another server in the target's place says nothing about where the tenant is.
#[test]
fn a_target_that_has_forgotten_the_move_is_not_believed() {
    let (mut m, acme, id) = arrived(1);
    m.shards[1].sql("DROP SCHEMA switchyard CASCADE; DELETE FROM clients");
    m.start_control_plane();
    m.wait_ready();
    wait::until_true("the word", || {
        m.cli(&["move", "show", &id])["error"].to_string().contains("knows nothing of it")
    });
    assert_ne!(m.one(0, "SELECT state FROM switchyard.fence"), "active");
    let done = m.cli(&[&["move", "abort", &id, "--wait", "--timeout", "60"], &ACCEPTED[..]].concat());
    assert_eq!(done["outcome"], "aborted", "{done}");
    let mut client = m.login(&acme, 0);
    wait::until_true("a write at the source", || client.try_rows("UPDATE clients SET name = 'here'").is_ok());
    assert_eq!(m.one(0, "SELECT name FROM clients"), "here");
}
