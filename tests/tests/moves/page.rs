//! The control plane's page in a real browser.

use serde_json::json;
use switchyard_tests::drivers;
use switchyard_tests::moves::Moving;

use crate::TABLES;

/// What a stranger may call a tenant.
const ID: &str = "<img src=x onerror=\"window.hacked=1\">";

#[test]
fn tenants_are_looked_at_suspended_resumed_and_moved_on_the_page() {
    let m = Moving::start(1, TABLES);
    m.cli(&["tenant", "create", ID, "--name", "<b>Bold</b>", "--shard", "s0", "--no-user"]);
    m.cli(&["tenant", "create", "other", "--shard", "s0", "--no-user"]);
    let row = format!("INSERT INTO clients (tenant_id, id, name) VALUES ('{ID}', 1, 'Ada')");
    m.shards[0].sql(&row);
    let seen = drivers::python(
        "page.py",
        &json!({ "url": m.page(), "token": m.read("token").trim(), "tenant": ID, "to": "s1",
                 "screenshots": std::env::var("SWITCHYARD_TESTS_SCREENSHOTS").ok() }),
    );
    assert_eq!(seen["refused"], "The control plane does not take this token: it is wrong, or has expired.");
    assert_eq!(
        seen["pages"],
        json!(["Overview", "Tenants", "Shards", "Moves", "Operations", "Routers", "Audit"])
    );
    assert_eq!(seen["found"], json!([ID]), "the search finds one of two");
    assert_eq!(seen["title"], ID);
    assert_eq!((&seen["images"], &seen["bold"], &seen["hacked"]), (&json!(0), &json!(0), &json!(false)));
    assert_eq!(seen["disabled_at_first"], true, "nothing is changed by accident");
    assert_eq!(seen["states"], json!(["active", "suspended", "active"]));
    assert_eq!(seen["moved"], "moved");
    assert!(seen["copied"].as_str().is_some_and(|text| text.contains(" tables, ")), "{seen}");
    assert_eq!(seen["completed"], "completed");
    assert_eq!(seen["console"], json!([]), "errors in the console, or of the content security policy");
    assert_eq!(m.cli(&["tenant", "show", ID])["shard"], "s1");
    assert_eq!(m.one(1, "SELECT name FROM clients"), "Ada");
}
