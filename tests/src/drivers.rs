//! Real applications in other languages, run against a URL.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn tests_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `tests/drivers/<script>` with the Python that has the drivers: what it printed, as JSON.
///
/// # Panics
/// If it fails or prints no JSON.
pub fn python(script: &str, input: &Value) -> Value {
    let python = std::env::var_os("SWITCHYARD_TESTS_PYTHON")
        .map_or_else(|| tests_dir().join(".venv/bin/python"), PathBuf::from);
    assert!(python.exists(), "{} is missing: run scripts/install-test-deps.sh", python.display());
    run(Command::new(python).arg(tests_dir().join("drivers").join(script)), input)
}

/// Runs `tests/node/<script>` with Node.js: what it printed, as JSON.
///
/// # Panics
/// If it fails or prints no JSON.
pub fn node(script: &str, input: &Value) -> Value {
    let dir = tests_dir().join("node");
    assert!(dir.join("node_modules").exists(), "node_modules is missing: run scripts/install-test-deps.sh");
    run(Command::new("node").arg(dir.join(script)), input)
}

fn run(command: &mut Command, input: &Value) -> Value {
    let output = command.arg(input.to_string()).stdin(Stdio::null()).output().expect("the interpreter runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed:\n{out}{err}");
    let last = out.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|e| panic!("{command:?}: {e}:\n{out}{err}"))
}

/// Runs psql with a URL or connection string and statements, each in its own `-c`.
///
/// # Panics
/// If psql is not there.
pub fn psql(url: &str, statements: &[&str]) -> Output {
    let mut command = Command::new("psql");
    command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", url]);
    for statement in statements {
        command.args(["-c", statement]);
    }
    command.stdin(Stdio::null()).output().expect("psql is installed")
}

/// What psql printed.
///
/// # Panics
/// If it failed.
#[track_caller]
pub fn psql_ok(url: &str, statements: &[&str]) -> String {
    let output = psql(url, statements);
    assert!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}
