//! Who gets into the console, and what everybody else learns.

use switchyard_tests::setup::user_toml;
use switchyard_tests::{Refused, Setup};

use super::{PASSWORD, console, setup, users};

#[test]
fn what_is_reported_at_login_is_what_drivers_expect() {
    let s = setup().start();
    let console = console(&s, "viewer");
    for (name, value) in [
        ("server_version", "1.25.2/bouncer"),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "on"),
    ] {
        assert_eq!(console.parameter(name), value, "{name}");
    }
    assert_eq!(console.key().len(), 8);
}

#[test]
fn a_stranger_learns_nothing_of_the_console() {
    let s = setup().start();
    // What is compared: all bytes of the error, with the name replaced.
    let refused = |user: &str, password: &str, database: &str| match s
        .plain_target(user, password)
        .database(database)
        .refused()
    {
        Refused::Error { bytes, shape, .. } => {
            // Behind the length, which is that of the name.
            (String::from_utf8_lossy(&bytes[5..]).replace(user, "NAME"), shape)
        }
        Refused::Closed(why) => panic!("{why}"),
    };
    let (usual, _) = refused("nobody", "x", "crm");
    assert!(usual.contains("28P01"), "{usual}");
    for (user, password) in [("nobody", "x"), ("viewer", "wrong"), ("app", "wrong"), ("app.acme", "wrong")] {
        let (told, _) = refused(user, password, "switchyard");
        assert_eq!(told, usual, "{user}");
    }
    // The steps look alike, too: same length of names, same length of messages.
    assert_eq!(refused("nobody", "x", "switchyard").1, refused("viewer", "wrong", "switchyard").1);
    // With the right password there is nothing to hide from who has no role.
    let told = s.plain_target("app", switchyard_tests::setup::PASSWORD).database("switchyard").refused();
    assert_eq!(told.sqlstate(), "42501");
    // And who has nothing but a role gets nowhere else.
    assert_eq!(s.plain_target("admin", PASSWORD).database("crm").refused().sqlstate(), "28P01");
}

#[test]
fn a_role_and_a_tenant_go_together() {
    let both = user_toml("both", PASSWORD, "tenant = \"acme\"\nconsole = \"viewer\"");
    let s = setup().section(&both).start();
    let mut as_tenant = s.plain_target("both", PASSWORD).connect();
    assert_eq!(as_tenant.column("SELECT name FROM clients ORDER BY id"), s.canaries("acme"));
    assert_eq!(console(&s, "both").value("SELECT 1"), "1");
}

#[test]
fn names_of_the_console_can_be_chosen() {
    let s = setup().section("[console]\ndatabases = [\"desk\"]").start();
    let target = |database: &str| s.plain_target("admin", PASSWORD).database(database);
    assert_eq!(target("desk").connect().value("SHOW STATE"), "active");
    assert_eq!(target("pgbouncer").refused().sqlstate(), "28P01");
    assert_eq!(s.target("acme").database("switchyard").connect().value("SELECT 1"), "1");
}

#[test]
fn an_admin_gets_in_when_everything_else_is_full() {
    let s = setup().section("[limits]\nclients = 2\n\n[console]\nsessions = 3\nadmin_sessions = 1").start();
    let _clients = [s.login("acme"), s.login("globex")];
    assert_eq!(s.refused("acme").sqlstate(), "53300");
    let _viewers = [console(&s, "viewer"), console(&s, "viewer")];
    let refused = s.plain_target("viewer", PASSWORD).database("switchyard").refused();
    assert_eq!(refused.sqlstate(), "53300");
    let mut admin = console(&s, "admin");
    assert_eq!(admin.value("SELECT 1"), "1");
    assert_eq!(s.plain_target("admin", PASSWORD).database("switchyard").refused().sqlstate(), "53300");
    drop(admin);
    switchyard_tests::wait::until_true("the place to be free", || {
        s.plain_target("admin", PASSWORD).database("switchyard").try_connect().is_ok()
    });
}

#[test]
fn over_tls_and_unix_sockets() {
    let s = setup().tls("require").start();
    let mut over_tls = console(&s, "viewer");
    let rows = super::named_rows(&mut over_tls, "SHOW CLIENTS");
    assert!(rows[0]["tls"].starts_with("TLSv1."), "{rows:?}");
    let unix = s.router.unix_target().user("viewer").password(PASSWORD).database("switchyard");
    let rows = super::named_rows(&mut unix.connect(), "SHOW CLIENTS");
    assert!(rows.iter().any(|row| row["addr"] == "unix"), "{rows:?}");
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let toml =
        |lines: &str| format!("[router]\n{lines}\n[[shards]]\nname = \"s\"\nurl = \"postgres://a@b/c\"\n");
    for (lines, word) in [
        ("[console]\nsessions = 2\nadmin_sessions = 3", "admin_sessions"),
        ("[[users]]\nname = \"x\"\nverifier = \"v\"\nconsole = \"king\"", "console"),
        ("[[users]]\nname = \"x\"\nconsole = \"admin\"", "has no way to log in"),
    ] {
        let said = switchyard_tests::Router::refused(&toml(lines));
        assert!(said.contains(word), "{lines}:\n{said}");
    }
    drop(Setup::new().shards(1).section(&users()).start());
}

#[test]
fn an_operator_gets_in_while_all_places_are_taken_by_logins_that_wait() {
    let s = setup_with("[limits]\nunauthenticated = 4\nlogin_timeout = \"60s\"");
    let mut busy = s.login("acme");
    busy.rows("BEGIN; SELECT 1");
    // By session a login waits for a server, and there is one, which is not free.
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let target = s.target("globex");
            std::thread::spawn(move || target.try_connect().map(drop))
        })
        .collect();
    let logins = || s.router.metrics().sum("switchyard_pool_waiting_clients", &[]);
    switchyard_tests::wait::until_true("the logins to wait", || logins() == 4.0);
    for _ in 0..3 {
        assert!(!console(&s, "admin").rows("SHOW POOLS").is_empty());
    }
    let refused = s.refused("globex");
    assert_eq!(refused.sqlstate(), "53300", "{refused:?}");
    drop(busy);
    for login in waiting {
        login.join().expect("a thread").expect("a login, once there is a server");
    }
}

fn setup_with(section: &str) -> switchyard_tests::Running {
    super::setup().router("pool_mode = \"session\"").pool("size = 1").section(section).start()
}
