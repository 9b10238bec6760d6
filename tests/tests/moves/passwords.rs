//! The mover's passwords: sealed where the catalog has them, and opened by the control plane alone.

use switchyard_tests::cluster::{SUPERUSER, SUPERUSER_PASSWORD};
use switchyard_tests::moves::Moving;

use crate::TABLES;

/// Every row of both tables that have passwords of administrators.
const KEPT: &str = "SELECT string_agg(t, '') FROM (SELECT a::text AS t FROM switchyard.shard_admins a
                    UNION ALL SELECT concat(admin_user, admin_password, admin_kid, admin_sealed) FROM switchyard.shards) x";

#[test]
fn a_password_in_the_catalog_is_sealed_moves_tenants_and_follows_the_rotation_of_keys() {
    let mut m = Moving::start(1, TABLES);
    m.tenant("acme", 0);
    m.shards[0].sql("INSERT INTO clients VALUES ('acme', 1, 'c')");
    for shard in ["s0", "s1"] {
        let args = ["shard", "admin", shard, "--user", SUPERUSER, "--password-stdin"];
        let output = m.command_with(&args, SUPERUSER_PASSWORD);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let kept = m.catalog.value(KEPT);
    let hex: String = SUPERUSER_PASSWORD.bytes().map(|b| format!("{b:02x}")).collect();
    assert!(kept.contains("k1") && !kept.contains(SUPERUSER_PASSWORD) && !kept.contains(&hex), "{kept}");
    m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
    m.cli(&["move", "rollback", "acme", "--wait"]);

    // Sealed for one shard, it opens for no other.
    m.catalog.sql(
        "UPDATE switchyard.shard_admins a SET sealed = b.sealed FROM switchyard.shard_admins b
         WHERE a.shard = 's0' AND b.shard = 's1'",
    );
    let swapped = m.command(&["move", "start", "acme", "--to", "s1", "--wait", "--timeout", "30"]);
    let told =
        format!("{}{}", String::from_utf8_lossy(&swapped.stdout), String::from_utf8_lossy(&swapped.stderr));
    assert!(told.contains("it does not open") && !told.contains(SUPERUSER_PASSWORD), "{told}");

    // What stands in clear, from before, is sealed when a control plane starts; and then by a new key.
    m.catalog.sql(&format!(
        "UPDATE switchyard.shard_admins SET kid = NULL, sealed = NULL, login_password = '{SUPERUSER_PASSWORD}';
         UPDATE switchyard.shards SET admin_user = '{SUPERUSER}', admin_password = '{SUPERUSER_PASSWORD}'"
    ));
    m.kill_control_plane();
    let keys = m.read("keys");
    m.write("keys", &format!("k2 {}=\n{keys}", "A".repeat(43)));
    m.start_control_plane();
    m.wait_ready();
    let kept = m.catalog.value(KEPT);
    assert!(kept.contains("k2") && !kept.contains(SUPERUSER_PASSWORD), "{kept}");
    m.kill_control_plane();
    m.write("keys", &format!("{keys}k2 {}=\n", "A".repeat(43)));
    m.start_control_plane();
    m.wait_ready();
    m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
    m.cli(&["move", "rollback", "acme", "--wait"]);
    let output = m.command_with(&["value", "rotate-keys"], "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let kept = m.catalog.value(KEPT);
    assert!(kept.contains("k1") && !kept.contains("k2"), "{kept}");
    m.cli(&["move", "start", "acme", "--to", "s1", "--wait"]);
}
