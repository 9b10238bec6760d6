//! Who reads where the tenant is not served any more, in schemas and databases of its own.

use switchyard_tests::cluster::APP;
use switchyard_tests::moves::Moving;
use switchyard_tests::wait;

use crate::world::{Model, World};

/// Who may read what of the tenant's schema, and whether it may pass that on.
fn rights(world: &World) -> String {
    world.sql(
        "SELECT string_agg(x, ';' ORDER BY x) FROM (
             SELECT concat_ws(' ', r.relname, a.grantee::regrole, a.is_grantable) AS x
               FROM pg_class r, aclexplode(coalesce(r.relacl, acldefault('r', r.relowner))) a
              WHERE r.relnamespace = 't_acme'::regnamespace AND r.relkind IN ('r', 'v') AND a.privilege_type = 'SELECT'
             UNION ALL
             SELECT concat_ws(' ', r.relname, t.attname, a.grantee::regrole, a.is_grantable)
               FROM pg_class r JOIN pg_attribute t ON t.attrelid = r.oid, aclexplode(t.attacl) a
              WHERE r.relnamespace = 't_acme'::regnamespace) x",
    )
}

#[test]
fn heavy_who_might_read_may_again_when_the_tenant_has_come_back() {
    let mut world = World::start(Model::Schema, false);
    world.sql(&format!(
        "CREATE TABLE plain (id int PRIMARY KEY, name text, secret text);
         INSERT INTO plain VALUES (1, 'n', 's');
         GRANT SELECT (id, name) ON plain TO {APP};
         CREATE VIEW seen AS SELECT n FROM marks;
         GRANT SELECT ON seen TO {APP} WITH GRANT OPTION;
         CREATE TABLE open (id int PRIMARY KEY); GRANT SELECT ON open TO PUBLIC"
    ));
    let before = rights(&world);
    assert!(before.contains("plain name"), "{before}");
    let mut app = world.m.shards[0].app().connect();
    let moved = world.start_move(&[]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    for read in
        ["SELECT count(*) FROM t_acme.marks", "SELECT id FROM t_acme.plain", "SELECT * FROM t_acme.open"]
    {
        assert_eq!(app.try_rows(read).expect_err(read).sqlstate, "42501", "{read}");
    }
    assert_eq!(app.try_rows("SELECT * FROM t_acme.seen").expect_err("a view").sqlstate, "42501");
    let back = world.m.cli(&["move", "rollback", "acme", "--wait", "--timeout", "60"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
    assert_eq!(rights(&world), before);
    assert_eq!(app.column("SELECT name FROM t_acme.plain"), ["n"]);
    assert_eq!(world.check(), [""; 0]);
    assert_eq!(world.m.one(0, "SELECT count(*) FROM switchyard.closed"), "0");
    world.nothing_left();
}

#[test]
fn heavy_who_reads_in_an_open_transaction_is_waited_for() {
    let mut world = World::start(Model::Schema, false);
    let before = rights(&world);
    // As a router that stands still in the middle of one.
    let mut reader = world.m.shards[0].app().connect();
    reader.rows("BEGIN");
    reader.rows("SELECT count(*) FROM t_acme.marks");
    let id = world.m.cli(&["move", "start", "acme", "--to", "s1", "--attempts", "1000"])["id"].to_string();
    wait::until_true("an attempt that names it", || {
        world.show(&id, "error").contains(&format!("of {APP}, idle in transaction"))
    });
    assert_eq!(world.show(&id, "phase"), "cutover");
    reader.rows("SELECT count(*) FROM t_acme.counters");
    reader.rows("COMMIT");
    wait::until_true("the move", || world.show(&id, "phase") == "moved");
    reader.try_rows("SELECT count(*) FROM t_acme.marks").expect_err("it is not served here");
    let back = world.m.cli(&["move", "rollback", &id, "--wait", "--timeout", "60"]);
    assert_eq!(back["outcome"], "rolled_back", "{back}");
    assert_eq!(rights(&world), before);
    assert_eq!(world.check(), [""; 0]);
    world.nothing_left();
}

#[test]
fn a_fence_lets_nobody_pass_who_has_no_tenant() {
    let m = Moving::start(1, crate::TABLES);
    m.tenant("acme", 0);
    m.shards[0].sql(
        "INSERT INTO clients VALUES ('acme', 1, 'c');
         CREATE POLICY everything ON clients USING (coalesce(current_setting('app.tenant_id', true), '') = '')",
    );
    let mut nobody = m.shards[0].app().connect();
    assert_eq!(nobody.column("SELECT name FROM clients"), ["c"], "so the application has it");
    let moved = m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
    assert_eq!(moved["phase"], "moved", "{moved}");
    let late = "UPDATE clients SET name = 'late'";
    assert_eq!(nobody.try_rows(late).expect_err("not set").sqlstate, "TN001");
    nobody.rows("SET app.tenant_id = ''");
    assert_eq!(nobody.try_rows(late).expect_err("empty").sqlstate, "TN001");
    assert_eq!(m.one(0, "SELECT name FROM clients"), "c");
}
