//! Who may do what: every call of the API's own description, for every role, within a tenant and
//! beyond. A call that is not listed here fails the test.

use serde_json::{Value, json};

use crate::api::ControlPlane;

/// The least that a caller needs: a role for everything, or one of the tenant in the path.
#[derive(Clone, Copy, PartialEq)]
enum Needs {
    /// Nobody is asked.
    Nothing,
    /// This role, for the whole installation.
    Everywhere(&'static str),
    /// This role, for the tenant in the path or for all.
    Tenant(&'static str),
    /// This role, for any tenant or for all; what is shown is cut down to the tenant.
    Own(&'static str),
}

use Needs::{Everywhere, Nothing, Own, Tenant};

/// Each call, and what it needs.
const MATRIX: &[(&str, &str, Needs)] = &[
    ("GET", "/livez", Nothing),
    ("GET", "/readyz", Nothing),
    // Open by default; see `open_metrics`.
    ("GET", "/metrics", Nothing),
    ("GET", "/v1/tenants", Everywhere("viewer")),
    ("POST", "/v1/tenants", Everywhere("operator")),
    ("GET", "/v1/tenants/{id}", Tenant("viewer")),
    ("PATCH", "/v1/tenants/{id}", Everywhere("operator")),
    ("DELETE", "/v1/tenants/{id}", Everywhere("operator")),
    ("PUT", "/v1/tenants/{id}/placement", Everywhere("operator")),
    ("POST", "/v1/tenants/{id}/suspend", Everywhere("operator")),
    ("POST", "/v1/tenants/{id}/resume", Everywhere("operator")),
    ("POST", "/v1/tenants/{id}/read-only", Everywhere("operator")),
    ("POST", "/v1/tenants/{id}/undelete", Everywhere("operator")),
    ("GET", "/v1/tenants/{id}/limits", Tenant("viewer")),
    ("PUT", "/v1/tenants/{id}/limits", Everywhere("operator")),
    ("PUT", "/v1/tenants/{id}/issuers/{name}", Tenant("operator")),
    ("DELETE", "/v1/tenants/{id}/issuers/{name}", Tenant("operator")),
    ("GET", "/v1/tenants/{id}/users", Tenant("viewer")),
    ("POST", "/v1/tenants/{id}/users", Tenant("operator")),
    ("DELETE", "/v1/tenants/{id}/users/{name}", Tenant("operator")),
    ("POST", "/v1/tenants/{id}/users/{name}/password", Tenant("operator")),
    ("GET", "/v1/tenants/{id}/values", Tenant("viewer")),
    ("GET", "/v1/tenants/{id}/values/{name}", Tenant("application")),
    ("PUT", "/v1/tenants/{id}/values/{name}", Tenant("operator")),
    ("DELETE", "/v1/tenants/{id}/values/{name}", Tenant("operator")),
    ("GET", "/v1/tenants/{id}/configuration", Tenant("application")),
    ("POST", "/v1/keys/rotate", Everywhere("admin")),
    ("GET", "/v1/users", Everywhere("viewer")),
    ("POST", "/v1/users", Everywhere("operator")),
    ("GET", "/v1/users/{name}", Everywhere("viewer")),
    ("PATCH", "/v1/users/{name}", Everywhere("operator")),
    ("DELETE", "/v1/users/{name}", Everywhere("operator")),
    ("POST", "/v1/users/{name}/password", Everywhere("operator")),
    ("GET", "/v1/usage", Own("viewer")),
    ("GET", "/v1/usage/top", Everywhere("viewer")),
    ("GET", "/v1/tenants/{id}/usage", Tenant("viewer")),
    ("GET", "/v1/tenants/{id}/health", Tenant("viewer")),
    ("GET", "/v1/tenants/{id}/sign-ins", Tenant("viewer")),
    ("GET", "/v1/routers", Everywhere("viewer")),
    ("GET", "/v1/alerts", Own("viewer")),
    ("GET", "/v1/webhooks", Everywhere("viewer")),
    ("POST", "/v1/webhooks", Everywhere("admin")),
    ("DELETE", "/v1/webhooks/{name}", Everywhere("admin")),
    ("GET", "/v1/plans", Everywhere("viewer")),
    ("POST", "/v1/plans", Everywhere("operator")),
    ("GET", "/v1/plans/{name}", Everywhere("viewer")),
    ("PATCH", "/v1/plans/{name}", Everywhere("operator")),
    ("DELETE", "/v1/plans/{name}", Everywhere("operator")),
    ("GET", "/v1/shards", Everywhere("viewer")),
    ("POST", "/v1/shards", Everywhere("operator")),
    ("GET", "/v1/shards/{name}", Everywhere("viewer")),
    ("PATCH", "/v1/shards/{name}", Everywhere("operator")),
    ("DELETE", "/v1/shards/{name}", Everywhere("operator")),
    ("PUT", "/v1/shards/{name}/admin", Everywhere("admin")),
    ("GET", "/v1/moves", Everywhere("viewer")),
    ("POST", "/v1/moves", Everywhere("operator")),
    ("GET", "/v1/moves/{id}", Everywhere("viewer")),
    ("GET", "/v1/moves/{id}/events", Everywhere("viewer")),
    ("POST", "/v1/moves/{id}/pause", Everywhere("operator")),
    ("POST", "/v1/moves/{id}/resume", Everywhere("operator")),
    ("POST", "/v1/moves/{id}/abort", Everywhere("operator")),
    ("POST", "/v1/moves/{id}/rollback", Everywhere("operator")),
    ("POST", "/v1/moves/{id}/complete", Everywhere("operator")),
    ("GET", "/v1/buckets", Everywhere("viewer")),
    ("PUT", "/v1/buckets", Everywhere("operator")),
    ("GET", "/v1/settings", Everywhere("viewer")),
    ("PATCH", "/v1/settings", Everywhere("admin")),
    ("GET", "/v1/issuers", Everywhere("viewer")),
    ("PUT", "/v1/issuers/{name}", Everywhere("admin")),
    ("DELETE", "/v1/issuers/{name}", Everywhere("admin")),
    ("GET", "/v1/topology", Everywhere("viewer")),
    ("GET", "/v1/operations", Own("viewer")),
    ("GET", "/v1/operations/{id}", Own("viewer")),
    ("POST", "/v1/operations/{id}/cancel", Everywhere("operator")),
    ("POST", "/v1/operations/{id}/pause", Everywhere("operator")),
    ("POST", "/v1/operations/{id}/resume", Everywhere("operator")),
    ("GET", "/v1/events", Own("viewer")),
    ("GET", "/v1/audit", Own("viewer")),
    ("GET", "/v1/audit/proof", Everywhere("viewer")),
    ("GET", "/v1/tokens", Everywhere("admin")),
    ("POST", "/v1/tokens", Everywhere("admin")),
    ("DELETE", "/v1/tokens/{name}", Everywhere("admin")),
];

/// What each role covers, said once more than in the code under test.
fn covers(role: &str, needed: &str) -> bool {
    match needed {
        "viewer" => ["viewer", "operator", "admin"].contains(&role),
        "operator" => ["operator", "admin"].contains(&role),
        "admin" => role == "admin",
        "application" => ["application", "operator", "admin"].contains(&role),
        other => panic!("{other}"),
    }
}

/// A role, and the tenant that its token is bound to.
const TOKENS: &[(&str, Option<&str>)] = &[
    ("metrics", None),
    ("viewer", None),
    ("operator", None),
    ("admin", None),
    ("viewer", Some("acme")),
    ("operator", Some("acme")),
    ("application", Some("acme")),
];

#[test]
fn every_call_is_for_those_whom_it_is_for_and_no_others() {
    let plane = ControlPlane::start();
    let admin = plane.token();
    for id in ["acme", "globex"] {
        plane.cli(&["tenant", "create", id, "--no-user"]);
    }
    let (_, _, description) = plane.request("GET", "/openapi.json", "", "");
    let mut calls = Vec::new();
    for (path, operations) in description["paths"].as_object().expect("paths") {
        for method in operations.as_object().expect("operations").keys() {
            calls.push((method.to_uppercase(), path.clone()));
        }
    }
    for (method, path) in &calls {
        let listed = MATRIX.iter().any(|(m, p, _)| m == method && p == path);
        assert!(listed, "{method} {path} is not in the matrix");
    }
    assert_eq!(calls.len(), MATRIX.len(), "the matrix has calls that the description has not");

    let tokens: Vec<String> = TOKENS
        .iter()
        .map(|(role, tenant)| {
            let name = format!("{role}-{}", tenant.unwrap_or("all"));
            let body = json!({ "name": name, "role": role, "tenant": tenant }).to_string();
            let (status, _, made) = plane.request("POST", "/v1/tokens", &admin, &body);
            assert_eq!(status, 201, "{made}");
            made["secret"].as_str().expect("it is told once").to_owned()
        })
        .collect();
    for (method, path, needs) in MATRIX.iter().filter(|(_, path, _)| *path != "/v1/events") {
        for tenant in ["acme", "globex"] {
            let of_tenant = path.starts_with("/v1/tenants/{id}");
            let concrete = path.replace("{id}", if of_tenant { tenant } else { "x" }).replace("{name}", "x");
            if *needs == Nothing {
                assert_eq!(plane.request(method, &concrete, "wrong", "").0, 200, "{method} {path}");
                continue;
            }
            assert_eq!(plane.request(method, &concrete, "wrong", "[]").0, 401, "{method} {path}");
            for ((role, bound), token) in TOKENS.iter().zip(&tokens) {
                let allowed = match *needs {
                    Nothing => true,
                    Everywhere(needed) => bound.is_none() && covers(role, needed),
                    Tenant(needed) => bound.is_none_or(|b| b == tenant) && covers(role, needed),
                    Own(needed) => covers(role, needed),
                };
                // What is allowed is asked for in a form that changes nothing.
                if allowed && (*method == "DELETE" || changes_without_body(path)) {
                    continue;
                }
                let (status, _, answer) = plane.request(method, &concrete, token, "[]");
                let what = format!("{method} {concrete} as {role} of {bound:?}: {status} {answer}");
                assert_eq!(status == 403, !allowed, "{what}");
                assert_ne!(status, 401, "{what}");
                assert!(status < 500, "{what}");
            }
        }
    }
    // What was refused to somebody known is in the audit.
    let (_, _, audit) = plane.request("GET", "/v1/audit?target=POST%20/v1/tokens&limit=1000", &admin, "");
    let refused = audit["items"].as_array().expect("a list").iter().filter(|d| d["outcome"] == "refused");
    assert!(refused.count() >= TOKENS.len() - 1, "{audit}");
}

fn changes_without_body(path: &str) -> bool {
    ["suspend", "resume", "read-only", "undelete", "rotate", "cancel", "pause", "password"]
        .iter()
        .any(|end| path.ends_with(end))
}

#[test]
fn lists_are_cut_down_to_the_tenant_of_the_token() {
    let plane = ControlPlane::start();
    for id in ["acme", "globex"] {
        plane.cli(&["tenant", "create", id]);
        plane.cli(&["tenant", "delete", id, "--yes"]);
    }
    let token = plane.cli(&["token", "create", "t", "--role", "viewer", "--tenant", "acme"])["secret"]
        .as_str()
        .expect("it is told")
        .to_owned();
    let get = |path: &str| plane.request("GET", path, &token, "").2;
    let items = |answer: &Value| answer["items"].as_array().expect("a list").clone();
    let operations = items(&get("/v1/operations?tenant=globex"));
    assert_eq!(operations.len(), 1);
    assert_eq!(operations[0]["target"], "acme");
    let other = plane.cli(&["operation", "list", "--tenant", "globex"])[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(plane.request("GET", &format!("/v1/operations/{other}"), &token, "").0, 404);
    for deed in items(&get("/v1/audit?tenant=globex")) {
        assert_eq!(deed["tenant"], "acme", "{deed}");
    }
}

/// Who can set a console user's password is a console user: such users are the administrators' alone, by
/// whatever way they are reached.
#[test]
fn users_with_a_role_in_the_console_are_for_administrators() {
    let plane = ControlPlane::start();
    let admin = plane.token();
    for id in ["acme", "globex"] {
        plane.cli(&["tenant", "create", id, "--no-user"]);
    }
    let token = |args: &[&str]| {
        let made = plane.cli(&[&["token", "create"], args].concat());
        made["secret"].as_str().expect("it is told once").to_owned()
    };
    let operator = token(&["all", "--role", "operator"]);
    let of_acme = token(&["acme", "--role", "operator", "--tenant", "acme"]);
    let user = |name: &str, console: Option<&str>| {
        json!({ "name": name, "tenants": ["acme"], "methods": { "console": console } }).to_string()
    };
    for role in ["viewer", "operator", "admin"] {
        // Given.
        for (token, allowed) in [(&operator, false), (&of_acme, false), (&admin, true)] {
            let (status, _, answer) = plane.request("POST", "/v1/users", token, &user(role, Some(role)));
            assert_eq!(status, if allowed { 201 } else { 403 }, "{role}: {answer}");
        }
        // Kept, with another password; taken away.
        let (global, own) = (format!("/v1/users/{role}"), format!("/v1/tenants/acme/users/{role}"));
        let before = plane.request("GET", &global, &admin, "").2;
        for path in [&global, &own] {
            for token in [&operator, &of_acme] {
                for (method, path) in [("POST", format!("{path}/password")), ("DELETE", path.clone())] {
                    let (status, _, answer) = plane.request(method, &path, token, "");
                    assert_eq!(status, 403, "{method} {path}: {answer}");
                }
            }
        }
        let changes = [json!({ "methods": { "console": null } }), json!({ "verifier": null }), json!({})];
        for change in changes {
            let (status, _, answer) = plane.request("PATCH", &global, &operator, &change.to_string());
            assert_eq!(status, 403, "{change}: {answer}");
        }
        assert_eq!(plane.request("GET", &global, &admin, "").2, before);
    }
    // Nor by way of the tenant that they belong to.
    assert_eq!(plane.request("DELETE", "/v1/tenants/acme", &operator, "").0, 403);
    let inner = r#"{"name": "x", "methods": {"console": "admin"}}"#;
    assert_eq!(plane.request("POST", "/v1/tenants/acme/users", &of_acme, inner).0, 422);

    // Administrators may, and others are the operators' as before.
    assert_eq!(plane.request("POST", "/v1/users/viewer/password", &admin, "").0, 200);
    assert_eq!(plane.request("DELETE", "/v1/tenants/acme/users/viewer", &admin, "").0, 204);
    assert_eq!(plane.request("POST", "/v1/users", &operator, &user("plain", None)).0, 201);
    let to_console = r#"{"methods": {"console": "viewer"}}"#;
    assert_eq!(plane.request("PATCH", "/v1/users/plain", &operator, to_console).0, 403);
    assert_eq!(plane.request("PATCH", "/v1/users/plain", &operator, r#"{"methods": {"jwt": true}}"#).0, 200);
    assert_eq!(plane.request("POST", "/v1/users/plain/password", &operator, "").0, 200);
    assert_eq!(plane.request("POST", "/v1/tenants/acme/users/plain/password", &of_acme, "").0, 200);
    assert_eq!(plane.request("DELETE", "/v1/users/plain", &operator, "").0, 204);
    assert_eq!(plane.request("DELETE", "/v1/tenants/globex", &operator, "").0, 202);

    // What was refused is in the audit, by what it was about.
    let (_, _, audit) = plane.request("GET", "/v1/audit?target=admin&limit=1000", &admin, "");
    let refused = |action: &str| {
        let deeds = audit["items"].as_array().expect("a list").iter();
        deeds.filter(|d| d["outcome"] == "refused" && d["action"] == action).count()
    };
    assert_eq!((refused("create"), refused("reset-password"), refused("delete")), (1, 3, 3), "{audit}");
    assert_eq!(refused("update"), 3, "{audit}");
}
