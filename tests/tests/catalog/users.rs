//! Users that are changed while their sessions are open.

use serde_json::{Value, json};
use switchyard_tests::wait;

use crate::life::Site;
use switchyard_tests::cluster::DATABASE;
use switchyard_tests::raw::Refused;

#[test]
fn a_user_is_changed_and_routers_hear_of_it() {
    let site = Site::start();
    let plane = &site.plane;
    let admin = plane.token();
    let made = plane.cli(&["tenant", "create", "acme"]);
    plane.cli(&["tenant", "create", "globex", "--no-user"]);
    let acme = site.target(&made["url"]);
    site.let_in(&acme);
    let mut session = acme.connect();
    let tenant = "SELECT current_setting('app.tenant_id')";
    assert_eq!(session.value(tenant), "acme");

    // One who has looked changes what was there when it looked, and nothing else.
    let (_, head, before) = plane.request("GET", "/v1/users/acme", &admin, "");
    let tag = head.split("etag: ").nth(1).and_then(|t| t.split("\r\n").next()).expect("a tag").to_owned();
    let patch = |headers: &str, body: Value| {
        let (status, _, user) =
            plane.request_with("PATCH", "/v1/users/acme", &admin, &body.to_string(), headers);
        (status, user)
    };
    assert_eq!(patch("", json!({})).0, 428);
    let (status, user) = patch(&format!("if-match: {tag}\r\n"), json!({ "methods": { "read_only": true } }));
    assert_eq!(status, 200, "{user}");
    let mut expected = before.clone();
    expected["methods"]["read_only"] = json!(true);
    assert_eq!(user, expected);
    assert_eq!(patch(&format!("if-match: {tag}\r\n"), json!({ "pool_mode": "session" })).0, 412);
    wait::until_true("its sessions to be read-only", || {
        acme.connect().try_rows(crate::life::WRITE).is_err_and(|refused| refused.sqlstate == "25006")
    });
    plane.cli(&["user", "set", "acme", "--read-only", "false", "--pool-mode", "session"]);
    wait::until_true("its sessions to write", || acme.connect().try_rows(crate::life::WRITE).is_ok());
    assert_eq!(plane.cli(&["user", "show", "acme"])["pool_mode"], "session");
    assert!(plane.cli(&["user", "set", "acme", "--pool-mode", "none"])["pool_mode"].is_null());

    // What makes no sense is refused, and changes nothing.
    let any = |body: Value| patch("if-match: *\r\n", body).0;
    let before = plane.cli(&["user", "show", "acme"]);
    assert_eq!(any(json!({ "tenants": ["nobody-knows"] })), 404);
    assert_eq!(any(json!({ "tenants": [] })), 422);
    assert_eq!(any(json!({ "any_tenant": true, "tenants": ["acme"] })), 422);
    assert_eq!(any(json!({ "verifier": null })), 422, "no way to log in would be left");
    assert_eq!(any(json!({ "verifier": "secret" })), 422);
    assert_eq!(any(json!({ "server_password": "secret" })), 422);
    assert_eq!(any(json!({ "methods": { "console": "emperor" } })), 422);
    assert_eq!(any(json!({ "name": "other" })), 422);
    assert_eq!(plane.code(&["user", "set", "acme"]), 2);
    assert_eq!(plane.code(&["user", "set", "nobody", "--jwt", "true"]), 3);
    assert_eq!(plane.cli(&["user", "show", "acme"]), before);

    // A tenant that is taken away is so at once, for sessions that are open too.
    assert_eq!(session.value(tenant), "acme", "it has stayed");
    plane.cli(&["user", "set", "acme", "--tenant", "globex"]);
    wait::until_true("the end of the session", || session.try_rows("SELECT 1").is_err());
    let mut session = acme.connect();
    assert_eq!(session.value(tenant), "globex");
    let all = plane.cli(&["user", "set", "acme", "--any-tenant"]);
    assert_eq!((&all["any_tenant"], &all["tenants"]), (&json!(true), &json!([])));
    assert_eq!(session.value(tenant), "globex", "it may stay");

    // All of it is in the audit, without secrets.
    let (_, _, audit) = plane.request("GET", "/v1/audit?target=acme&limit=1000", &admin, "");
    let deeds = audit["items"].as_array().expect("a list");
    let updates: Vec<_> = deeds.iter().filter(|d| d["kind"] == "user" && d["action"] == "update").collect();
    assert_eq!(updates.len(), 5, "{audit}");
    let first = updates.last().expect("there are some");
    assert_eq!(
        (&first["before"]["methods"]["read_only"], &first["after"]["methods"]["read_only"]),
        (&Value::Null, &json!(true))
    );
    assert!(!audit.to_string().contains("SCRAM-SHA-256"));
}

#[test]
fn a_user_of_the_console_needs_no_tenant() {
    let site = Site::start();
    let plane = &site.plane;
    assert_eq!(plane.code(&["user", "create", "app"]), 2, "one that may do nothing at all");
    let made = plane.cli(&["user", "create", "monitor", "--console", "viewer"]);
    assert_eq!((&made["tenants"], &made["methods"]["console"]), (&json!([]), &json!("viewer")));
    assert!(made["url"].is_null(), "no tenant's database lets it in: {made}");
    let password = made["new_password"].as_str().expect("it is told");
    let monitor = site.router.target().user("monitor").password(password);
    let console = monitor.clone().database("pgbouncer");
    site.let_in(&console);
    assert!(!console.connect().rows("SHOW POOLS").is_empty());
    let refused = monitor.database(DATABASE).try_connect().err().expect("it has no tenant");
    assert!(matches!(&refused, Refused::Error { error, .. } if error.sqlstate == "28P01"), "{refused:?}");

    // It stays one that may do something.
    assert_ne!(plane.code(&["user", "set", "monitor", "--console", "none"]), 0);
    plane.cli(&["tenant", "create", "acme", "--no-user"]);
    plane.cli(&["user", "set", "monitor", "--console", "none", "--tenant", "acme"]);
    site.kept_out(&console);
}
