//! The life of a tenant, by the command line and by REST, over real clusters and a real router.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use switchyard_tests::cluster::{APP, APP_PASSWORD, DATABASE, SUPERUSER, SUPERUSER_PASSWORD};
use switchyard_tests::raw::Target;
use switchyard_tests::router::Router;
use switchyard_tests::{Cluster, wait};

use crate::api::ControlPlane;

/// A control plane with two shards, and a router that has its topology from it.
pub(crate) struct Site {
    pub(crate) plane: ControlPlane,
    pub(crate) shards: Vec<Cluster>,
    pub(crate) router: Router,
}

impl Site {
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    /// `more` are lines of the control plane's configuration.
    pub(crate) fn with(more: &str) -> Self {
        let plane = ControlPlane::over(Arc::new(Cluster::start()), more);
        let shards: Vec<Cluster> = (0..2).map(|_| Cluster::start()).collect();
        for (i, shard) in shards.iter().enumerate() {
            let url = format!("{}?sslmode=disable", shard.url(APP, APP_PASSWORD));
            plane.cli(&["shard", "add", &format!("s{i}"), "--url", &url, "--admin-user", SUPERUSER]);
        }
        let context = json!({ "context": { "variables": { "app.tenant_id": "{tenant}" } },
                              "placement": "least-loaded" });
        plane.request("PATCH", "/v1/settings", &plane.token(), &context.to_string());
        let catalog = plane.cluster().url(SUPERUSER, SUPERUSER_PASSWORD);
        let router = Router::start(&format!("[router]\n[catalog]\nurl = \"{catalog}\"\n"));
        Self { plane, shards, router }
    }

    /// Where the router takes the user of a URL that the control plane answered with.
    pub(crate) fn target(&self, url: &Value) -> Target {
        let rest = url.as_str().and_then(|u| u.strip_prefix("postgres://")).expect("a URL");
        let (login, _) = rest.split_once('@').expect("a login");
        let (user, password) = login.split_once(':').expect("a password");
        self.router.target().user(user).password(password).database(DATABASE)
    }

    pub(crate) fn sum(&self, sql: &str) -> u64 {
        self.shards.iter().map(|s| s.value(sql).parse::<u64>().expect("a number")).sum()
    }

    /// Waits until the router lets this user in.
    pub(crate) fn let_in(&self, target: &Target) {
        wait::until_true("the login", || target.try_connect().is_ok());
    }

    /// Waits until the router refuses this user.
    pub(crate) fn kept_out(&self, target: &Target) {
        wait::until_true("the refusal", || target.try_connect().is_err());
    }
}

pub(crate) const WRITE: &str =
    "INSERT INTO clients (tenant_id, name) VALUES (current_setting('app.tenant_id'), 'Ada')";

#[test]
fn the_life_of_a_tenant_by_the_command_line() {
    let site = Site::start();
    let plane = &site.plane;
    plane.cli(&["plan", "create", "basic", "connections=10", "statement_timeout=30s"]);
    plane.cli(&["plan", "create", "premium", "--extends", "basic", "connections=100", "weight=400"]);
    let made = plane.cli(&["tenant", "create", "acme", "--plan", "basic"]);
    let other = plane.cli(&["tenant", "create", "globex"]);
    assert_ne!(made["shard"], other["shard"], "the least loaded shard is taken");

    // It works, as it was answered.
    let acme = site.target(&made["url"]);
    site.let_in(&acme);
    let mut session = acme.connect();
    session.rows(WRITE);
    assert_eq!(session.value("SELECT count(*) FROM clients"), "1");
    assert_eq!(plane.cli(&["limit", "get", "acme"])["effective"]["connections"], 10);
    assert_eq!(plane.cli(&["health", "acme"])["status"], "ok");

    // What it used is reported.
    wait::until_true("its usage", || {
        let usage = plane.cli(&["usage", "acme", "--by", "minute"]);
        usage[0]["transactions"].as_u64().is_some_and(|n| n >= 2)
    });
    let day = plane.cli(&["usage", "acme", "--by", "day"]);
    assert_eq!((&day[0]["rows"], &day[0]["limited"]), (&json!(2), &json!(0)), "one written, one read");
    let csv = plane.cli_as(&plane.token(), &["usage", "acme", "--csv"]);
    let csv = String::from_utf8_lossy(&csv.stdout).into_owned();
    assert!(csv.starts_with("tenant,at,transactions,") && csv.contains("\nacme,"), "{csv}");
    let routers = plane.cli(&["routers", "list"]);
    assert_eq!(
        (&routers[0]["alive"], &routers[0]["version"]),
        (&json!(true), &json!(env!("CARGO_PKG_VERSION")))
    );
    wait::until_true("the sign-in", || {
        let (_, _, seen) = plane.request("GET", "/v1/tenants/acme/sign-ins", &plane.token(), "");
        seen["items"]
            .as_array()
            .is_some_and(|i| i.iter().any(|s| s["outcome"] == "ok" && s["user"] == "acme"))
    });

    // It is over its rate, which its client and its bill are told.
    plane.cli(&[
        "limit",
        "set",
        "acme",
        "transactions_per_second=1",
        "transaction_burst=1",
        "wait_budget=1ms",
    ]);
    let mut refused = None;
    wait::until_true("the refusal", || {
        refused = session.try_rows("SELECT 1").err();
        refused.is_some()
    });
    assert_eq!(refused.expect("it was refused").sqlstate, "53400");
    wait::until_true("it in the bill", || {
        plane.cli(&["usage", "acme", "--by", "day"])[0]["limited"].as_u64().is_some_and(|n| n >= 1)
    });
    plane.cli(&["limit", "set", "acme", "transactions_per_second=inherit", "wait_budget=inherit"]);
    wait::until_true("the end of that", || (0..3).all(|_| session.try_rows("SELECT 1").is_ok()));

    // It uses up a quota, and gets a better plan.
    plane.cli(&["limit", "set", "acme", "daily_transactions=1"]);
    wait::until_true("the quota", || plane.cli(&["limit", "get", "acme"])["restriction"]["kind"] == "quota");
    let alerts = plane.cli(&["webhook", "alerts", "--open"]);
    assert!(alerts.as_array().unwrap().iter().any(|a| a["kind"] == "limit_reached" && a["tenant"] == "acme"));
    plane.cli(&["tenant", "update", "acme", "--plan", "premium"]);
    plane.cli(&["limit", "set", "acme", "daily_transactions=inherit"]);
    wait::until_true("the end of it", || plane.cli(&["limit", "get", "acme"])["restriction"].is_null());
    let limits = plane.cli(&["limit", "get", "acme"]);
    assert_eq!(
        (&limits["effective"]["connections"], &limits["effective"]["weight"]),
        (&json!(100), &json!(400))
    );
    assert_eq!(limits["effective"]["statement_timeout_ms"], 30_000, "it inherits");

    // It is suspended and resumed.
    plane.cli(&["tenant", "suspend", "acme"]);
    site.kept_out(&acme);
    wait::until_true("the end of its session", || session.try_rows("SELECT 1").is_err());
    plane.cli(&["tenant", "resume", "acme"]);
    site.let_in(&acme);
    assert_eq!(plane.cli(&["tenant", "read-only", "acme"])["state"], "read-only");
    plane.cli(&["tenant", "resume", "acme"]);

    // It is deleted, comes back, and is deleted for good.
    let operation = plane.cli(&["tenant", "delete", "acme", "--yes", "--grace", "3600"]);
    assert_eq!((&operation["state"], &operation["kind"]), (&json!("pending"), &json!("tenant.delete")));
    assert_eq!(operation["next_steps"][0], "switchyard tenant undelete acme");
    site.kept_out(&acme);
    assert_eq!(plane.code(&["tenant", "delete", "acme", "--yes"]), 4);
    let wait_a_second = ["operation", "wait", operation["id"].as_str().unwrap(), "--timeout", "1"];
    assert_eq!(plane.code(&wait_a_second), 5, "it goes on");
    assert_eq!(plane.cli(&["tenant", "undelete", "acme"])["state"], "active");
    site.let_in(&acme);
    assert_eq!(site.sum("SELECT count(*) FROM clients WHERE tenant_id = 'acme'"), 1);
    plane.cli(&["tenant", "delete", "acme", "--yes", "--grace", "0", "--wait"]);
    assert_eq!(site.sum("SELECT count(*) FROM clients WHERE tenant_id = 'acme'"), 0);
    assert_eq!(plane.code(&["tenant", "show", "acme"]), 3);
    site.kept_out(&acme);
    site.let_in(&site.target(&other["url"]));

    // All of it is in the audit, which shows where something is missing.
    let deeds = plane.cli(&["audit", "list", "--tenant", "acme", "--limit", "100"]);
    for action in ["create", "set-limits", "update", "suspend", "resume", "read-only", "undelete", "delete"] {
        assert!(deeds.as_array().unwrap().iter().any(|d| d["action"] == action), "{action}");
    }
    let suspended = deeds.as_array().unwrap().iter().find(|d| d["action"] == "suspend").expect("it was seen");
    assert_eq!((&suspended["source"], &suspended["method"]), (&json!("127.0.0.1"), &json!("token")));
    assert_eq!(deeds[0]["method"], "process", "what the runner did, it did itself: {}", deeds[0]);
    let proof = plane.cli(&["audit", "verify"]);
    let last = proof["last_hash"].as_str().unwrap();
    plane.cli(&["audit", "verify", "--expect", last]);
    plane.cluster().sql(
        "ALTER TABLE switchyard.audit DISABLE TRIGGER append_only;
         UPDATE switchyard.audit SET actor = 'nobody' WHERE id = 3",
    );
    assert_eq!(plane.code(&["audit", "verify"]), 1);
}

/// Heads and bodies of requests.
type Requests = Arc<Mutex<Vec<(String, String)>>>;

/// Takes requests and answers them all with 200; the first with 500, as an address that is busy.
fn receiver() -> (u16, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let seen = Requests::default();
    let taken = seen.clone();
    std::thread::spawn(move || {
        for (n, socket) in listener.incoming().enumerate() {
            let Ok(mut socket) = socket else { return };
            let mut text = String::new();
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = socket.read(&mut buffer) {
                text += &String::from_utf8_lossy(&buffer[..read]);
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head
                    .to_ascii_lowercase()
                    .split("content-length: ")
                    .nth(1)
                    .and_then(|l| l.split("\r\n").next().and_then(|l| l.parse::<usize>().ok()));
                if body.len() >= length.unwrap_or(0) {
                    taken.lock().expect("no panic").push((head.to_ascii_lowercase(), body.to_owned()));
                    break;
                }
            }
            let status = if n == 0 { "500 Internal Server Error" } else { "200 OK" };
            let _ = write!(socket, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (port, seen)
}

#[test]
fn the_life_of_a_tenant_by_rest() {
    let site = Site::start();
    let plane = &site.plane;
    let admin = plane.token();
    let rest = |method: &str, path: &str, body: Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        plane.request(method, path, &admin, &body)
    };

    // A request that is sent twice is done once, and answers the same: the password too.
    let new = json!({ "id": "acme" }).to_string();
    let once =
        |body: &str| plane.request_with("POST", "/v1/tenants", &admin, body, "idempotency-key: k-1\r\n");
    let (status, head, made) = once(&new);
    assert_eq!(status, 201, "{made}");
    assert!(head.contains("etag: ") && !head.contains("idempotency-replayed"), "{head}");
    let (status, head, again) = once(&new);
    assert_eq!((status, &again), (201, &made));
    assert!(head.contains("idempotency-replayed: true"), "{head}");
    let (status, _, other) = once(&json!({ "id": "globex" }).to_string());
    assert_eq!((status, &other["code"]), (422, &json!("idempotency_key_reused")));
    assert_eq!(rest("POST", "/v1/tenants", json!({ "id": "acme" })).0, 409);
    let stored = plane.cluster().value("SELECT string_agg(i::text, '') FROM switchyard.idempotency i");
    let password = made["user"]["new_password"].as_str().expect("it was made");
    assert!(!stored.contains(password), "the password is not kept");

    let acme = site.target(&made["url"]);
    site.let_in(&acme);
    acme.connect().rows(WRITE);

    // It is over its rate, gets a better plan, is suspended and resumed.
    let slow = json!({ "transactions_per_second": 1, "transaction_burst": 1, "wait_budget_ms": 1 });
    for (name, limits) in [("slow", slow), ("fast", json!({}))] {
        let (status, _, plan) = rest("POST", "/v1/plans", json!({ "name": name, "limits": limits }));
        assert_eq!(status, 201, "{plan}");
    }
    let is_of = |plan: &str| assert_eq!(rest("PATCH", "/v1/tenants/acme", json!({ "plan": plan })).0, 200);
    let mut session = acme.connect();
    is_of("slow");
    let mut refused = None;
    wait::until_true("the refusal", || {
        refused = session.try_rows("SELECT 1").err();
        refused.is_some()
    });
    assert_eq!(refused.expect("it was refused").sqlstate, "53400");
    is_of("fast");
    wait::until_true("the end of that", || (0..3).all(|_| session.try_rows("SELECT 1").is_ok()));
    assert_eq!(rest("POST", "/v1/tenants/acme/suspend", Value::Null).2["state"], "suspended");
    site.kept_out(&acme);
    wait::until_true("the end of its session", || session.try_rows("SELECT 1").is_err());
    assert_eq!(rest("POST", "/v1/tenants/acme/resume", Value::Null).2["state"], "active");
    site.let_in(&acme);

    // Who changes something says what it takes it for.
    let (_, head, _) = rest("GET", "/v1/tenants/acme", Value::Null);
    let tag = head.split("etag: ").nth(1).and_then(|t| t.split("\r\n").next()).expect("a tag").to_owned();
    let rename = |headers: &str, name: &str| {
        let body = json!({ "name": name }).to_string();
        let (status, _, answer) = plane.request_with("PATCH", "/v1/tenants/acme", &admin, &body, headers);
        (status, answer["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(rename("", "A"), (428, "precondition_required".into()));
    assert_eq!(rename(&format!("if-match: {tag}\r\n"), "A").0, 200);
    assert_eq!(rename(&format!("if-match: {tag}\r\n"), "B"), (412, "changed".into()));

    // Alerts are sent, signed, until they are taken.
    let (port, seen) = receiver();
    let hook =
        json!({ "name": "ops", "url": format!("http://127.0.0.1:{port}/hook"), "kinds": ["limit_reached"] });
    let (status, _, hook) = rest("POST", "/v1/webhooks", hook);
    assert_eq!(status, 201, "{hook}");
    let secret = hook["secret"].as_str().expect("it is told once").to_owned();
    assert_eq!(rest("PUT", "/v1/tenants/acme/limits", json!({ "monthly_transactions": 1 })).0, 200);
    wait::until_true("the alert, twice", || seen.lock().expect("no panic").len() >= 2);
    let mut ids = BTreeSet::new();
    for (head, body) in seen.lock().expect("no panic").iter() {
        let signature = head.split("switchyard-signature: ").nth(1).and_then(|s| s.split("\r\n").next());
        let (time, signed) =
            signature.and_then(|s| s.strip_prefix("t=")?.split_once(",v1=")).expect("a signature");
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
        let right = aws_lc_rs::hmac::sign(&key, format!("{time}.{body}").as_bytes());
        let hex: String = right.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(signed, hex);
        let id = head.split("switchyard-event-id: ").nth(1).and_then(|id| id.split("\r\n").next());
        ids.insert(id.expect("an id").to_owned());
        let alert: Value = serde_json::from_str(body).expect("it is JSON");
        assert_eq!((&alert["kind"], &alert["tenant"]), (&json!("limit_reached"), &json!("acme")));
    }
    assert_eq!(ids.len(), 1, "what was sent again is told to be the same");
    let (_, _, open) = rest("GET", "/v1/alerts?open=true", Value::Null);
    assert_eq!(open["items"].as_array().map(Vec::len), Some(1), "however often it is found: {open}");

    // Values: the application reads them, who only looks does not see what is secret.
    let set = json!({ "value": { "host": "smtp.example", "password": "hush-hush" }, "secret": true });
    assert_eq!(rest("PUT", "/v1/tenants/acme/values/smtp", set).0, 200);
    assert_eq!(rest("PUT", "/v1/tenants/acme/values/theme", json!({ "value": "dark" })).0, 200);
    let token = |role: &str| {
        let body = json!({ "name": role, "role": role, "tenant": "acme" });
        rest("POST", "/v1/tokens", body).2["secret"].as_str().expect("it is told once").to_owned()
    };
    let (application, viewer) = (token("application"), token("viewer"));
    let (_, head, values) = plane.request("GET", "/v1/tenants/acme/configuration", &application, "");
    assert_eq!(
        values,
        json!({ "smtp": { "host": "smtp.example", "password": "hush-hush" }, "theme": "dark" })
    );
    assert!(head.contains("cache-control: no-store"), "{head}");
    let (_, _, listed) = plane.request("GET", "/v1/tenants/acme/values", &viewer, "");
    assert!(!listed.to_string().contains("hush-hush") && listed.to_string().contains("dark"), "{listed}");
    assert_eq!(plane.request("GET", "/v1/tenants/acme/values/smtp", &viewer, "").0, 403);
    for table in ["tenant_values", "audit", "data_keys", "idempotency"] {
        let text = plane
            .cluster()
            .value(&format!("SELECT COALESCE(string_agg(x::text, ''), '') FROM switchyard.{table} x"));
        assert!(!text.contains("hush-hush"), "{table}");
    }
    let (_, _, audit) = rest("GET", "/v1/audit?tenant=acme&limit=1000", Value::Null);
    let read = audit["items"].as_array().unwrap().iter().find(|d| d["action"] == "read").expect("it is told");
    assert_eq!((&read["actor"], &read["kind"]), (&json!("application"), &json!("value")));

    // What happens is sent as it happens, and an operation is waited for.
    let (status, head, operation) = rest("DELETE", "/v1/tenants/acme?grace_seconds=0", Value::Null);
    assert_eq!(status, 202, "{operation}");
    let id = operation["id"].as_str().expect("an id");
    assert!(head.contains(&format!("location: /v1/operations/{id}")), "{head}");
    let (_, _, ended) = rest("GET", &format!("/v1/operations/{id}?wait=30"), Value::Null);
    assert_eq!((&ended["state"], &ended["result"]["rows_deleted"]), (&json!("succeeded"), &json!(1)));
    let mut socket = std::net::TcpStream::connect(plane.address()).expect("it listens");
    write!(
        socket,
        "GET /v1/events?since=0 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {admin}\r\nconnection: close\r\n\r\n"
    )
    .expect("it reads");
    let mut events = String::new();
    let mut buffer = [0; 4096];
    while !events.contains("\"succeeded\"") {
        let read = socket.read(&mut buffer).expect("it goes on");
        assert!(read > 0, "{events}");
        events += &String::from_utf8_lossy(&buffer[..read]);
    }
    assert!(events.contains("text/event-stream") && events.contains("event: change"), "{events}");
}

#[test]
fn the_busiest_tenants_are_shown_live_on_a_terminal() {
    let site = Site::start();
    let plane = &site.plane;
    let made = plane.cli(&["tenant", "create", "acme"]);
    let acme = site.target(&made["url"]);
    site.let_in(&acme);
    acme.connect().rows(WRITE);
    wait::until_true("its usage", || {
        let (_, _, top) = plane.request("GET", "/v1/usage/top", &plane.token(), "");
        top["items"].as_array().is_some_and(|items| items.iter().any(|item| item["tenant"] == "acme"))
    });
    let seen = switchyard_tests::drivers::python(
        "top.py",
        &json!({ "command": [switchyard_tests::router::binary(), "top", "--every", "1"], "tenant": "acme",
                 "env": { "SWITCHYARD_URL": format!("http://{}", plane.address()),
                          "SWITCHYARD_TOKEN": plane.token() } }),
    );
    assert_eq!(seen, json!({ "sorted": ["transactions", "connections"], "restored": true, "code": 0 }));
    // Where there is no terminal it is printed once.
    let once = plane.cli_as(&plane.token(), &["top"]);
    let once = String::from_utf8_lossy(&once.stdout).into_owned();
    assert!(once.starts_with("TENANT") && once.contains("\nacme "), "{once}");
}

#[test]
fn another_control_plane_takes_over() {
    let mut first = ControlPlane::start();
    let cluster = first.cluster().clone();
    let leader = || cluster.value("SELECT name FROM switchyard.leader");
    wait::until_true("a leader", || leader().ends_with(&format!("/{}", first.pid())));
    let second = ControlPlane::over(cluster.clone(), "");
    let term: i64 = cluster.value("SELECT term FROM switchyard.leader").parse().expect("a number");
    second.cli(&["tenant", "create", "acme", "--no-user"]);
    let operation = second.cli(&["tenant", "delete", "acme", "--yes", "--grace", "1"]);
    first.kill9();
    wait::until_true("the other to lead", || leader().ends_with(&format!("/{}", second.pid())));
    assert!(cluster.value("SELECT term FROM switchyard.leader").parse::<i64>().expect("a number") > term);
    // What the first was asked for is done by the second.
    second.cli(&["operation", "wait", operation["id"].as_str().expect("an id")]);
    assert_eq!(second.code(&["tenant", "show", "acme"]), 3);
    // Whoever leads no more can write no more.
    let refused =
        cluster.admin().try_rows(&format!("SET search_path = switchyard; SELECT still_leads({term})"));
    assert!(refused.is_err());
    assert!(!second.log().contains("panicked"));
}
