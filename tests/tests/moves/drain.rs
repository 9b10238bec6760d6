//! Everybody away from a shard.

use serde_json::Value;
use switchyard_tests::moves::Moving;
use switchyard_tests::wait;

use crate::TABLES;

/// What `shard drain` ends with, and what it says of each tenant.
fn drain(m: &Moving, further: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let output = m.command(&[&["shard", "drain", "s0", "-o", "json"], further].concat());
    let told = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), told, error)
}

fn of<'v>(told: &'v [Value], tenant: &str) -> &'v Value {
    told.iter().find(|one| one["tenant"] == tenant).expect("it is told of")
}

#[test]
fn who_cannot_be_moved_is_told_of_and_keeps_nobody_else() {
    let mut m = Moving::start(1, TABLES);
    for tenant in ["acme", "globex", "initech", "umbrella"] {
        m.tenant(tenant, 0);
        m.shards[0].sql(&format!("INSERT INTO clients VALUES ('{tenant}', 1, 'c')"));
    }
    assert_eq!(drain(&m, &["--to", "s0"]).0, Some(2));
    assert_eq!(drain(&m, &["--to", "s9"]).0, Some(3));
    // One has come from the other shard and can go back; of another something is in the way there.
    m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
    m.cli(&["move", "complete", "acme", "--wait"]);
    m.cli(&["move", "start", "acme", "--to", "s0", "--wait"]);
    m.shards[1].sql("INSERT INTO clients VALUES ('globex', 9, 'of before')");

    let (code, told, error) = drain(&m, &["--wait", "--timeout", "60"]);
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("2 of 4 tenants stay on s0"), "{error}");
    assert_eq!(of(&told, "acme")["phase"], "not begun");
    assert!(of(&told, "acme")["error"].to_string().contains("complete it first"), "{told:?}");
    assert_eq!(of(&told, "globex")["outcome"], "refused");
    assert!(of(&told, "globex")["error"].to_string().contains("clients"), "{told:?}");
    for gone in ["initech", "umbrella"] {
        assert_eq!(of(&told, gone)["phase"], "moved", "{told:?}");
    }
    assert_eq!(m.one(1, "SELECT count(*) FROM clients WHERE tenant_id IN ('initech', 'umbrella')"), "2");

    // Once more when that is mended, through a crash; the second command takes up what the first has begun.
    m.shards[1].sql("DELETE FROM clients WHERE tenant_id = 'globex'");
    m.cli(&["move", "complete", "acme", "--wait"]);
    m.kill_control_plane();
    m.start_control_plane_to_end_at("copied");
    let (code, told, error) = drain(&m, &[]);
    assert_eq!((code, told.len()), (Some(0), 2), "{error}");
    m.wait_control_plane_end();
    m.start_control_plane();
    m.wait_ready();
    let (code, _, error) = drain(&m, &["--wait", "--timeout", "60"]);
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(m.one(1, "SELECT count(DISTINCT tenant_id) FROM clients"), "4");
    wait::until_true("nobody to live there", || {
        let output = m.command(&["shard", "drain", "s0"]);
        String::from_utf8_lossy(&output.stdout).contains("nobody lives on s0")
    });
    let started = "SELECT count(*) FROM switchyard.moves WHERE tenant = 'globex' AND outcome IS DISTINCT FROM 'refused'";
    assert_eq!(m.catalog.value(started), "1");
}
