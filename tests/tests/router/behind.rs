//! What runs behind the text of a statement (a trigger, a view) and sets, locks or makes something for the session:
//! kept for the session, and seen by nobody else.

use switchyard_tests::{Running, Setup, wait};

/// `noted` sets, `held` locks and makes a temporary table, when rows are inserted; `seen` sets when it is read.
const SCHEMA: &str = "\
    CREATE FUNCTION scratch.inner_put(value text) RETURNS void LANGUAGE plpgsql AS \
        $$ BEGIN PERFORM set_config('my.note', value, false); SET work_mem = '7MB'; END $$; \
    CREATE FUNCTION scratch.note() RETURNS trigger LANGUAGE plpgsql AS \
        $$ BEGIN PERFORM scratch.inner_put(NEW.body); RETURN NEW; END $$; \
    CREATE TABLE scratch.noted (body text); \
    CREATE TRIGGER note BEFORE INSERT ON scratch.noted FOR EACH ROW EXECUTE FUNCTION scratch.note(); \
    CREATE FUNCTION scratch.hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
        CREATE TEMP TABLE made AS SELECT 'secret' AS body; PERFORM pg_advisory_lock_shared(7); RETURN NEW; END $$; \
    CREATE TABLE scratch.held (body text); \
    CREATE TRIGGER hold BEFORE INSERT ON scratch.held FOR EACH ROW EXECUTE FUNCTION scratch.hold(); \
    CREATE FUNCTION scratch.steal() RETURNS trigger LANGUAGE plpgsql AS \
        $$ BEGIN PERFORM set_config('app.tenant_id', 'globex', false); RETURN NEW; END $$; \
    CREATE TABLE scratch.stolen (body text); \
    CREATE TRIGGER steal BEFORE INSERT ON scratch.stolen FOR EACH ROW EXECUTE FUNCTION scratch.steal(); \
    CREATE FUNCTION scratch.look() RETURNS text LANGUAGE sql AS \
        $$ SELECT set_config('my.note', 'by a view', false) $$; \
    CREATE VIEW scratch.seen AS SELECT scratch.look() AS body; \
    CREATE VIEW scratch.itself AS SELECT set_config('work_mem', '9MB', false) AS body; \
    CREATE TABLE scratch.filled (body text, kb text DEFAULT set_config('work_mem', '9MB', false)); \
    GRANT ALL ON ALL TABLES IN SCHEMA scratch TO app";

/// What a session can see of it.
const LEFT: &str = "SELECT coalesce(current_setting('my.note', true), '') || '|' || current_setting('work_mem') \
    || '|' || (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()) \
    || '|' || (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())";

const CLEAN: &str = "|4MB|0|0";

const NAMES: &str = "SELECT name FROM clients ORDER BY id";

fn start(size: usize) -> Running {
    let pool = format!("size = {size}\nqueue_timeout = \"30s\"");
    Setup::new().shards(1).pool(&pool).tenants(["acme", "globex"]).sql(SCHEMA).start()
}

#[test]
fn what_runs_behind_a_statement_is_gone_for_the_next_tenant() {
    let s = start(1);
    for statement in [
        "INSERT INTO scratch.noted VALUES ('secret')",
        "INSERT INTO scratch.held VALUES ('secret')",
        "INSERT INTO scratch.stolen VALUES ('secret')",
        "SELECT * FROM scratch.seen",
        "SELECT * FROM scratch.itself",
        "INSERT INTO scratch.filled VALUES ('secret')",
        "BEGIN; INSERT INTO scratch.held VALUES ('secret'); INSERT INTO scratch.noted VALUES ('secret'); COMMIT",
    ] {
        let mut acme = s.login("acme");
        acme.rows(statement);
        drop(acme);
        for tenant in ["globex", "acme"] {
            let mut other = s.login(tenant);
            assert_eq!(other.value(LEFT), CLEAN, "{tenant} after {statement}");
            assert_eq!(other.column(NAMES), s.canaries(tenant), "{tenant} after {statement}");
        }
    }
}

#[test]
fn what_a_trigger_or_a_view_sets_is_the_sessions_own() {
    let s = start(1);
    let [mut one, mut two, mut other] = [s.login("acme"), s.login("acme"), s.login("globex")];
    for round in 0..5 {
        one.rows(&format!("INSERT INTO scratch.noted VALUES ('round {round}')"));
        assert_eq!(two.value(LEFT), CLEAN);
        assert_eq!(other.value(LEFT), CLEAN);
        assert_eq!(one.value(LEFT), format!("round {round}|7MB|0|0"));
        one.rows("SELECT * FROM scratch.seen");
        assert_eq!(two.value(LEFT), CLEAN);
        assert_eq!(one.value(LEFT), "by a view|7MB|0|0");
        one.rows("BEGIN; INSERT INTO scratch.noted VALUES ('undone'); ROLLBACK");
        assert_eq!(one.value(LEFT), "by a view|7MB|0|0");
    }
}

#[test]
fn views_and_defaults_that_set_by_themselves_are_noticed() {
    for statement in ["SELECT * FROM scratch.itself", "INSERT INTO scratch.filled VALUES ('x')"] {
        let s = start(1);
        let [mut one, mut two] = [s.login("acme"), s.login("acme")];
        for _ in 0..2 {
            one.rows(statement);
            assert_eq!(two.value(LEFT), CLEAN, "{statement}");
            assert_eq!(one.value(LEFT), "|9MB|0|0", "{statement}");
        }
    }
}

#[test]
fn a_trigger_does_not_change_the_tenant_of_later_transactions() {
    let s = start(1);
    let [mut one, mut two] = [s.login("acme"), s.login("acme")];
    for _ in 0..5 {
        one.rows("INSERT INTO scratch.stolen VALUES ('x')");
        assert_eq!(one.column(NAMES), s.canaries("acme"));
        one.rows("INSERT INTO scratch.stolen VALUES ('x')");
        assert_eq!(two.column(NAMES), s.canaries("acme"));
    }
}

#[test]
fn what_a_trigger_makes_keeps_the_connection() {
    let s = start(2);
    let [mut one, mut two, mut other] = [s.login("acme"), s.login("acme"), s.login("globex")];
    one.rows("INSERT INTO scratch.held VALUES ('x')");
    assert_eq!(two.value(LEFT), CLEAN);
    assert_eq!(other.value(LEFT), CLEAN);
    assert_eq!(one.value("SELECT body FROM made"), "secret");
    assert_eq!(one.value(LEFT), "|4MB|1|1");
    one.rows("DISCARD ALL");
    assert_eq!(one.value(LEFT), CLEAN);
}

#[test]
fn a_trigger_that_is_made_later_is_noticed() {
    let s = Setup::new().shards(1).pool("size = 1").tenants(["acme", "globex"]).start();
    let [mut one, mut two] = [s.login("acme"), s.login("acme")];
    one.rows("CREATE TABLE scratch.late (body text)");
    one.rows("INSERT INTO scratch.late VALUES ('quiet')");
    assert_eq!(two.value(LEFT), CLEAN);
    two.rows(
        "CREATE FUNCTION scratch.late() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM set_config('my.note', NEW.body, false); RETURN NEW; END $$",
    );
    two.rows(
        "CREATE TRIGGER late BEFORE INSERT ON scratch.late FOR EACH ROW EXECUTE FUNCTION scratch.late()",
    );
    // By this router: at once.
    one.rows("INSERT INTO scratch.late VALUES ('noticed')");
    assert_eq!(two.value(LEFT), CLEAN);
    assert_eq!(one.value(LEFT), "noticed|4MB|0|0");
    // By somebody else: after a while.
    s.shards[0].value("SELECT 1");
    let mut owner = s.direct("acme");
    owner.rows(
        "CREATE OR REPLACE FUNCTION scratch.late() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM set_config('my.other', NEW.body, false); RETURN NEW; END $$",
    );
    let mut n = 0;
    wait::until_true("the change to be noticed", || {
        n += 1;
        one.rows(&format!("INSERT INTO scratch.late VALUES ('other {n}')"));
        assert_eq!(two.value(LEFT), CLEAN);
        one.value("SELECT coalesce(current_setting('my.other', true), '')") == format!("other {n}")
    });
}
