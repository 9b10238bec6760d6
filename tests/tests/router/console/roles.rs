//! Who may say what: every role and every command.

use super::{console, setup};

const ROLES: [&str; 3] = ["viewer", "operator", "admin"];

/// Commands and the least role that may say them. None of these does harm to the test where it is allowed; those that
/// would are about what is not there, which is found out only behind the permission.
const COMMANDS: &[(&str, &str)] = &[
    ("SHOW CLIENTS", "viewer"),
    ("SHOW CONFIG", "viewer"),
    ("SHOW DATABASES", "viewer"),
    ("SHOW DNS_HOSTS", "viewer"),
    ("SHOW DNS_ZONES", "viewer"),
    ("SHOW HELP", "viewer"),
    ("SHOW LIMITS", "viewer"),
    ("SHOW LISTS", "viewer"),
    ("SHOW MEM", "viewer"),
    ("SHOW PEERS", "viewer"),
    ("SHOW PEER_POOLS", "viewer"),
    ("SHOW PINS", "viewer"),
    ("SHOW POOLS", "viewer"),
    ("SHOW SERVERS", "viewer"),
    ("SHOW SESSIONS", "viewer"),
    ("SHOW SHARDS", "viewer"),
    ("SHOW STATE", "viewer"),
    ("SHOW STATS", "viewer"),
    ("SHOW STATS_AVERAGES", "viewer"),
    ("SHOW STATS_TOTALS", "viewer"),
    ("SHOW TENANT acme", "viewer"),
    ("SHOW TENANTS", "viewer"),
    ("SHOW TOTALS", "viewer"),
    ("SHOW USERS", "viewer"),
    ("SHOW VERSION", "viewer"),
    ("SHOW client_encoding", "viewer"),
    ("SELECT 1", "viewer"),
    ("SET extra_float_digits = 3", "viewer"),
    ("BEGIN", "viewer"),
    ("COMMIT", "viewer"),
    ("ROLLBACK", "viewer"),
    ("PAUSE nowhere", "operator"),
    ("PAUSE TENANT nobody", "operator"),
    ("PAUSE", "operator"),
    ("RESUME", "operator"),
    ("RESUME nowhere", "operator"),
    ("RESUME TENANT nobody", "operator"),
    ("DISABLE nowhere", "operator"),
    ("DISABLE TENANT nobody", "operator"),
    ("ENABLE nowhere", "operator"),
    ("ENABLE TENANT nobody", "operator"),
    ("RECONNECT", "operator"),
    ("RECONNECT nowhere", "operator"),
    ("WAIT_CLOSE", "operator"),
    ("WAIT_CLOSE nowhere", "operator"),
    ("KILL_CLIENT 4711", "operator"),
    ("KILL TENANT nobody", "operator"),
    ("RELOAD", "operator"),
    ("KILL nowhere", "admin"),
    ("KILL", "admin"),
    ("RESUME", "operator"),
    ("SHUTDOWN", "admin"),
    ("SHUTDOWN WAIT_FOR_SERVERS", "admin"),
    ("SHUTDOWN WAIT_FOR_CLIENTS", "admin"),
];

#[test]
fn each_command_asks_for_its_role_and_no_less() {
    let s = setup().start();
    for role in ROLES {
        let rank = |role: &str| ROLES.iter().position(|r| *r == role).expect("a role");
        let mut session = console(&s, role);
        for (command, least) in COMMANDS {
            let allowed = rank(role) >= rank(least);
            if allowed && command.starts_with("SHUTDOWN") {
                // It would end what the others are tested with; there are tests of its own.
                continue;
            }
            let denied = matches!(session.try_rows(command), Err(e) if e.sqlstate == "42501");
            assert_eq!(denied, !allowed, "{role}: {command}");
        }
    }
    assert_eq!(s.login("acme").value("SELECT 1"), "1");
    let log = s.router.log();
    let refused = log.lines().filter(|line| line.contains("console command refused"));
    assert!(refused.clone().any(|line| line.contains("\"SHUTDOWN\"") && line.contains("\"operator\"")));
    assert_eq!(refused.filter(|line| line.contains("\"admin\"")).count(), 0);
}

#[test]
fn a_role_that_is_taken_away_ends_at_once() {
    let mut s = setup().start();
    let (mut admin, mut operator) = (console(&s, "admin"), console(&s, "operator"));
    operator.rows("RELOAD");
    assert!(s.reload(|toml| {
        toml.replace("console = \"operator\"", "console = \"viewer\"")
            .replace("console = \"admin\"", "tenant = \"acme\"")
    }));
    assert_eq!(operator.error("RELOAD").sqlstate, "42501");
    assert_eq!(operator.value("SELECT 1"), "1");
    for command in ["SELECT 1", "SHOW STATS", "PAUSE"] {
        assert_eq!(admin.error(command).sqlstate, "42501", "{command}");
    }
}
