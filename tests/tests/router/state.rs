//! What a session sets is its own: kept for it over few server connections, as on a connection of
//! its own, and seen by nobody else.

use switchyard_tests::raw::differential::{self, Step, round};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Dice, Raw, Setup};

/// What a session can see of itself. Each is asked alone. A setting of one's own that was never set
/// is NULL on a new connection, and empty where anybody has had it before.
const SEEN: &[&str] = &[
    "SELECT current_setting('app.tenant_id'), coalesce(current_setting('my.a', true), ''), current_setting('my.b')",
    "SELECT current_setting('work_mem'), current_setting('statement_timeout'), current_setting('timezone')",
    "SELECT current_setting('search_path'), current_setting('datestyle'), current_setting('application_name')",
    "SELECT current_setting('default_transaction_isolation'), current_setting('role'), current_user",
    "EXECUTE p",
    "EXECUTE q(2)",
    "SELECT count(*) FROM t",
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    "SELECT name FROM pg_cursors ORDER BY name",
    "SELECT name FROM clients ORDER BY id LIMIT 3",
];

/// What changes state that any connection can be given.
const CARRIED: &[&str] = &[
    "SET my.a = 'one'",
    "SET my.a TO 'two'",
    "SET my.b = '{}'",
    "SET SESSION my.b = 'it''s'",
    "SET LOCAL my.a = 'local'",
    "SET work_mem = '7MB'",
    "SET LOCAL work_mem = '9MB'",
    "SET statement_timeout = 54321",
    "SET search_path TO scratch, public",
    "SET search_path = ''",
    "SET TIME ZONE 'Asia/Tokyo'",
    "SET datestyle = 'SQL, DMY'",
    "SET application_name = 'the application'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET work_mem = 'nonsense'",
    "RESET my.a",
    "RESET my.b",
    "RESET work_mem",
    "RESET search_path",
    "RESET application_name",
    "RESET ALL",
    "RESET ALL; SET my.b = 'after'",
    "SET my.a = 'm1'; SET my.b = 'm2'",
    "SET my.a = 'lost'; SELECT 1/0",
    "SELECT set_config('my.a', 'by function', false)",
    "SELECT set_config('my.b', 'local by function', true)",
    "SELECT set_config(name, '11MB', false) FROM pg_settings WHERE name = 'work_mem'",
    "UPDATE pg_settings SET setting = '4321' WHERE name = 'statement_timeout'",
    "DO $$ BEGIN PERFORM set_config('my.a', 'by block', false); END $$",
    "DO $$ BEGIN SET my.b = 'by block'; SET work_mem = '13MB'; END $$",
    "DO $$ BEGIN SET my.a = 'undone'; RAISE 'no'; END $$",
    "SELECT scratch.put('my.b', 'by one of ours')",
    "SELECT scratch.put('search_path', 'public')",
    "INSERT INTO scratch.notes VALUES ('my.a', 'by trigger')",
    "INSERT INTO scratch.notes VALUES ('work_mem', '15MB')",
    "INSERT INTO scratch.notes VALUES ('my.b', 'undone by trigger'), ('work_mem', 'nonsense')",
    "SELECT * FROM scratch.view",
    "PREPARE p AS SELECT 'prepared'",
    "PREPARE q(int) AS SELECT $1 + 1",
    "PREPARE p AS SELECT nothing FROM nowhere",
    "DEALLOCATE p",
    "DEALLOCATE q",
    "DEALLOCATE ALL",
    "DISCARD ALL",
    "DISCARD TEMP",
];

/// What keeps a session on its connection. At most one session has some of it at a time, as the
/// pool would be too small otherwise. The locks are shared, as both of a pair hold them.
const PINNING: &[&str] = &[
    "CREATE TEMP TABLE t AS SELECT 1 AS x",
    "SELECT 1 AS x INTO TEMP t",
    "DO $$ BEGIN CREATE TEMP TABLE IF NOT EXISTS t AS SELECT 1 AS x; END $$",
    "INSERT INTO scratch.held VALUES ('made')",
    "INSERT INTO scratch.held VALUES ('locked')",
    "INSERT INTO t VALUES (2)",
    "DROP TABLE t",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "FETCH c",
    "CLOSE c",
    "CLOSE ALL",
    "SELECT pg_advisory_lock_shared(7)",
    "SELECT pg_advisory_unlock_shared(7)",
    "SELECT pg_advisory_unlock_all()",
    "DISCARD ALL",
];

const CONTROL: &[&str] = &["SAVEPOINT s", "ROLLBACK TO s", "RELEASE s", "SELECT 1/0", "SELECT 1"];

struct Session {
    tenant: &'static str,
    direct: Raw,
    routed: Raw,
    done: Vec<String>,
}

impl Session {
    /// Does the same on both, and compares what comes back.
    fn both(&mut self, what: &str, bytes: Vec<u8>) {
        let script: Vec<Step> = round(bytes);
        self.done.push(what.to_owned());
        if let Some(difference) = differential::difference(&mut self.direct, &mut self.routed, &script) {
            panic!("{}: after\n  {}\n{difference}", self.tenant, self.done.join("\n  "));
        }
    }

    fn query(&mut self, sql: &str) {
        self.both(sql, m::query(sql));
    }
}

fn sent(dice: &mut Dice, session: &mut Session, sql: &str) {
    // As one message it may hold several statements, prepared it may not.
    if dice.roll(3) == 0 && !sql.contains("; S") {
        session.both(&format!("{sql} (extended)"), m::extended(sql, &[]));
    } else {
        session.query(sql);
    }
}

/// One transaction, or a few statements outside of any.
fn turn(dice: &mut Dice, session: &mut Session, may_pin: bool) {
    let block = dice.roll(3) > 0;
    if block {
        session.query("BEGIN");
    }
    for _ in 0..=dice.roll(4) {
        match dice.roll(10) {
            0 | 1 if block => session.query(dice.pick::<&str>(CONTROL)),
            2 => {
                let value = dice.roll(1000).to_string();
                let params = [Some(&b"my.a"[..]), Some(value.as_bytes())];
                let bytes = m::extended("SELECT set_config($1, $2, false)", &params);
                session.both(&format!("set_config($1, {value})"), bytes);
            }
            3 | 4 if may_pin => {
                let sql = *dice.pick(PINNING);
                sent(dice, session, sql);
            }
            _ => {
                let sql = *dice.pick(CARRIED);
                sent(dice, session, sql);
            }
        }
    }
    if block {
        session.query(dice.pick::<&str>(&["COMMIT", "COMMIT", "ROLLBACK"]));
    }
    for _ in 0..3 {
        let sql = *dice.pick(SEEN);
        sent(dice, session, sql);
    }
}

#[test]
fn heavy_sessions_see_what_they_set_and_nothing_else() {
    let s = Setup::new()
        .shards(1)
        .tenants(["acme", "globex", "initech"])
        .pool("size = 2\nqueue_timeout = \"30s\"")
        .sql(
            "CREATE FUNCTION scratch.put(name text, value text) RETURNS void LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM set_config(name, value, false); END $$; \
             CREATE TABLE scratch.notes (name text, value text); \
             CREATE FUNCTION scratch.note() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM scratch.put(NEW.name, NEW.value); RETURN NULL; END $$; \
             CREATE TRIGGER note BEFORE INSERT ON scratch.notes FOR EACH ROW EXECUTE FUNCTION scratch.note(); \
             CREATE FUNCTION scratch.look() RETURNS text LANGUAGE sql AS \
             $$ SELECT set_config('my.b', 'by a view', false) $$; \
             CREATE TABLE scratch.held (what text); \
             CREATE FUNCTION scratch.hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.what = 'made' THEN CREATE TEMP TABLE IF NOT EXISTS t AS SELECT 1 AS x; \
             ELSE PERFORM pg_advisory_lock_shared(7); END IF; RETURN NULL; END $$; \
             CREATE TRIGGER hold BEFORE INSERT ON scratch.held FOR EACH ROW EXECUTE FUNCTION scratch.hold(); \
             CREATE VIEW scratch.view AS SELECT scratch.look() AS seen; \
             GRANT ALL ON ALL TABLES IN SCHEMA scratch TO app",
        )
        .start();
    for seed in 1..=3 {
        let mut dice = Dice::new(seed);
        let mut sessions: Vec<_> = ["acme", "globex", "initech", "acme", "globex"]
            .map(|tenant| {
                let options = format!("-c app.tenant_id={tenant} -c my.b=startup -c work_mem=5MB");
                let direct = s.shard_of(tenant).app().param("options", &options);
                let routed = s.target(tenant).param("options", "-c my.b=startup -c work_mem=5MB");
                let [direct, routed] =
                    [direct, routed].map(|to| to.param("application_name", "state").connect());
                Session { tenant, direct, routed, done: Vec::new() }
            })
            .into();
        for n in 0..500 {
            let at = dice.roll(sessions.len());
            let owner = (n / 25) % sessions.len();
            if n % 25 == 0 {
                // Whoever could keep a connection so far lets go of it.
                let before = (owner + sessions.len() - 1) % sessions.len();
                sessions[before].query("DISCARD ALL");
            }
            turn(&mut dice, &mut sessions[at], at == owner);
        }
    }
}
