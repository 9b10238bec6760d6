//! What holds for the whole tree, and no compiler checks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files that are kept in the repository, or that would be, by their path from the root.
fn files(ending: &str) -> Vec<(String, String)> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*"])
        .current_dir(root())
        .output()
        .expect("git runs");
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let of_kind = names.lines().filter(|name| name.ends_with(ending));
    let read = of_kind.filter_map(|n| Some((n.to_owned(), std::fs::read_to_string(root().join(n)).ok()?)));
    let files: Vec<_> = read.collect();
    assert!(!files.is_empty(), "no files end with {ending}");
    files
}

/// What each package may depend on. The router and the control plane never on each other: what
/// passes between them is the topology.
const MAY: &[(&str, &[&str])] = &[
    ("switchyard-config", &[]),
    ("switchyard-wire", &[]),
    ("switchyard-tls", &["switchyard-config"]),
    ("switchyard-catalog", &["switchyard-config", "switchyard-tls"]),
    ("switchyard-router", &["switchyard-config", "switchyard-catalog", "switchyard-tls", "switchyard-wire"]),
    ("switchyard-control-plane", &["switchyard-config", "switchyard-catalog", "switchyard-wire"]),
    ("switchyard-shard-schema", &["switchyard-config", "switchyard-catalog"]),
    (
        "switchyard-migrator",
        &["switchyard-config", "switchyard-catalog", "switchyard-wire", "switchyard-shard-schema"],
    ),
];

#[test]
fn dependencies_point_one_way() {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |v: &Value| v["name"].as_str().unwrap_or_default().to_owned();
    let ours: BTreeSet<_> = packages.iter().map(name).collect();
    let may: BTreeMap<_, _> = MAY.iter().copied().collect();
    for package in packages {
        let Some(may) = may.get(name(package).as_str()) else { continue };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let (on, dev) = (name(dependency), dependency["kind"] == "dev");
            assert!(
                dev || !ours.contains(&on) || may.contains(&on.as_str()),
                "{} depends on {on}",
                name(package)
            );
        }
    }
}

#[test]
fn files_fit_a_reader() {
    let long: Vec<_> = files(".rs").into_iter().filter(|(_, text)| text.lines().count() > 800).collect();
    let names: Vec<_> = long.iter().map(|(name, text)| (name, text.lines().count())).collect();
    assert!(names.is_empty(), "over 800 lines: {names:?}");
}

#[test]
fn log_messages_begin_small_and_end_without_a_stop() {
    let mut wrong = Vec::new();
    for (name, text) in files(".rs") {
        for level in ["trace!(", "debug!(", "info!(", "warn!(", "error!("] {
            for (at, _) in text.match_indices(level) {
                let call = &text[at..text[at..].find(");").map_or(text.len(), |end| at + end)];
                // The message is the last literal of a call that has one.
                let Some(message) = call.strip_suffix('"').and_then(|c| c.rsplit_once('"')).map(|c| c.1)
                else {
                    continue;
                };
                // Names such as SIGTERM and TLS are spelt as they are.
                let mut letters = message.chars();
                let (first, second) = (letters.next().unwrap_or('x'), letters.next().unwrap_or('x'));
                if (first.is_uppercase() && second.is_lowercase()) || message.ends_with('.') {
                    wrong.push(format!("{name}: {message}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn locked_packages_of_node_say_what_and_not_from_where() {
    for (name, text) in files("package-lock.json") {
        assert!(!text.contains("\"resolved\""), "{name}");
        assert!(text.contains("\"integrity\""), "{name}");
    }
}
