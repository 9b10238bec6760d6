//! The API as its own description has it, by requests that Schemathesis makes up: whatever is asked, no request may
//! fail for a reason that is the control plane's.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::api::ControlPlane;

/// Requests made up for each call.
const EXAMPLES: &str = "4";

#[test]
fn heavy_nothing_that_is_asked_makes_the_control_plane_fail() {
    let plane = ControlPlane::start();
    plane.cli(&["tenant", "create", "acme"]);
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/schemathesis");
    assert!(program.exists(), "{} is missing: run scripts/install-test-deps.sh", program.display());
    let output = Command::new(program)
        .args(["run", &format!("http://{}/openapi.json", plane.address())])
        .args(["-H", &format!("Authorization: Bearer {}", plane.token()), "-H", "If-Match: *"])
        .args(["--workers", "1", "--max-examples", EXAMPLES, "--checks", "not_a_server_error", "--seed", "1"])
        // The first never ends, the second would end the caller's own token, the third waits as long as it is
        // asked to.
        .args(["--exclude-path-regex", "^/v1/(events|tokens/|operations/)", "--no-color"])
        .args(["--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all"])
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("Tested: "), "{said}");
    assert!(!plane.log().contains("panicked"), "a handler panicked");
}
