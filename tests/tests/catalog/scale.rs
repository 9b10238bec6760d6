//! A hundred thousand tenants: what a router's start, a change and each tenant cost. Times are
//! printed and decide nothing; memory does.

use std::time::Instant;

use switchyard_tests::cluster::{SUPERUSER, SUPERUSER_PASSWORD};
use switchyard_tests::router::Router;
use switchyard_tests::{metrics, wait};

use crate::api::ControlPlane;

const TENANTS: u64 = 100_000;

/// Most bytes that a router may hold for a tenant with a user of its own, a third of them with
/// limits of their own.
const BYTES_PER_TENANT: u64 = 4096;

#[test]
fn a_router_holds_a_hundred_thousand_tenants() {
    let plane = ControlPlane::start();
    plane.cli(&["shard", "add", "s1", "--url", "postgres://app@127.0.0.1:1/crm"]);
    plane.cli(&["plan", "create", "basic", "connections=10", "statement_timeout=30s"]);
    let catalog = plane.cluster().url(SUPERUSER, SUPERUSER_PASSWORD);
    let config = format!("[router]\n[catalog]\nurl = \"{catalog}\"\npoll = \"1h\"\n");
    let empty = Router::start(&config);
    let before = empty.resident_bytes();
    drop(empty);
    let verifier = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    plane.cluster().sql(&format!(
        "INSERT INTO switchyard.tenants (id, plan, limits)
            SELECT 'tenant-' || n, 'basic', CASE WHEN n % 3 = 0 THEN '{{\"weight\": 200}}'::jsonb END
            FROM generate_series(1, {TENANTS}) n;
         INSERT INTO switchyard.users (name, verifier, tenants)
            SELECT 'tenant-' || n, '{verifier}', ARRAY['tenant-' || n] FROM generate_series(1, {TENANTS}) n"
    ));
    let started = Instant::now();
    let router = Router::start(&config);
    let start = started.elapsed();
    let seen =
        |text: &str| metrics::get(router.http(), "/metrics").is_ok_and(|(_, body)| body.contains(text));
    let version = || plane.cluster().value("SELECT version FROM switchyard.topology_version");
    plane.cli(&["tenant", "suspend", "tenant-77"]);
    let changed = Instant::now();
    let line = format!("switchyard_topology_version {}\n", version());
    wait::until_true("the change", || seen(&line));
    let change = changed.elapsed();
    plane.cli(&["plan", "set", "basic", "connections=20"]);
    let changed = Instant::now();
    let line = format!("switchyard_topology_version {}\n", version());
    wait::until_true("the change of a plan", || seen(&line));
    let plan = changed.elapsed();
    let bytes = router.resident_bytes().saturating_sub(before) / TENANTS;
    println!(
        "{TENANTS} tenants and users: start {start:?}, a tenant's change {change:?}, a plan's {plan:?}, {bytes} bytes per tenant"
    );
    assert!(bytes < BYTES_PER_TENANT, "{bytes} bytes per tenant");
    // Lists are paged, and the last page has an end.
    let (status, _, page) = plane.request("GET", "/v1/tenants?limit=1000", &plane.token(), "");
    assert_eq!((status, page["items"].as_array().map(Vec::len)), (200, Some(1000)));
    assert!(page["next"].is_string());
}
