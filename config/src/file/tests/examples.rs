//! The examples load, and they and the documentation know every key.

use std::collections::BTreeSet;

use super::*;

const FULL: &str = include_str!("../../../examples/full.toml");
const DOCS: &str = include_str!("../../../../docs/configuration.md");

fn env(name: &str) -> Option<String> {
    let keys = || format!("SCRAM-SHA-256-KEYS${0}:{0}", "A".repeat(43) + "=");
    Some(if name.ends_with("_KEYS") { keys() } else { format!("a value of {name}, long enough for HS256") })
}

/// The full example beside the files it names.
fn full_dir(test: &str) -> Dir {
    let dir = Dir::new(test);
    for name in [
        "server.crt",
        "server.key",
        "clients-ca.crt",
        "shards-ca.crt",
        "routers-ca.crt",
        "router.crt",
        "router.key",
    ] {
        dir.write(&format!("tls/{name}"), "pem");
    }
    dir.write("tls/globex.pub", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n");
    dir.write("tls/login-ca.crt", "pem");
    dir.write("tls/batch-jwks.json", "{}");
    dir.write("secrets/catalog-url", "postgres://router:pw@catalog.internal/switchyard\n");
    dir.write("secrets/shard-password", "pw\n");
    dir.write("secrets/notifications.key", &"0c".repeat(32));
    dir.write("secrets/seal.keys", &format!("2 {}\n1 {}\n", "0a".repeat(32), "0b".repeat(32)));
    dir
}

#[test]
fn every_example_loads() {
    let dir = full_dir("examples");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let loaded = parse(&text, &dir.0.join(path.file_name().unwrap()), &env);
        match loaded {
            Ok(loaded) => assert_eq!(loaded.warnings, [], "{}", path.display()),
            Err(e) => panic!("{e}"),
        }
        seen += 1;
    }
    assert!(seen >= 2);
}

#[test]
fn the_routers_on_kubernetes_have_a_configuration_that_loads() {
    let map = include_str!("../../../../deploy/kubernetes/router.yaml");
    let (_, map) = map.split_once("router.toml: |\n").unwrap();
    let lines = map.lines().take_while(|l| *l != "---").map(|l| l.strip_prefix("    ").unwrap_or(l));
    let text = lines.collect::<Vec<_>>().join("\n").replace("@ID@", "3");
    let text = text.replace("/etc/switchyard/tls/tls.", "tls/server.");
    let text = text.replace("/etc/switchyard/catalog/url", "secrets/catalog-url");
    let loaded = parse(&text, &full_dir("kubernetes").0.join("router.toml"), &env);
    assert_eq!(loaded.unwrap_or_else(|e| panic!("{e}")).warnings, []);
}

#[test]
fn what_is_commented_out_is_the_default() {
    let dir = full_dir("defaults");
    let path = dir.0.join("full.toml");
    // Lines such as `# workers = 0`, except those that show an alternative.
    let all: String = FULL
        .lines()
        .map(|l| match l.strip_prefix("# ") {
            Some(rest)
                if rest.contains(" = ") && !rest.contains("tenant_{tenant}") && !rest.contains(", ") =>
            {
                rest
            }
            Some(rest) if rest.starts_with("user_separators") => rest,
            _ => l,
        })
        .collect::<Vec<_>>()
        .join("\n");
    assert!(all.contains("\nworkers = 0\n"));
    let [as_is, spelled_out] = [FULL, &all].map(|text| {
        let loaded = parse(text, &path, &env).unwrap_or_else(|e| panic!("{e}"));
        (format!("{:?}", loaded.settings), crate::snapshot::to_json(&loaded.topology))
    });
    assert_eq!(as_is, spelled_out);
}

/// Every key that the reader asks for while it reads the full example, as section and key. The
/// three forms of a secret count as one.
fn known_keys() -> BTreeSet<(String, String)> {
    let dir = full_dir("keys");
    let path = dir.0.join("full.toml");
    let ctx = Ctx::new(FULL, &path, &env);
    read_document(FULL, &ctx).unwrap();
    let asked = ctx.asked.into_inner();
    let nested = [
        ("shards.pool", "pool"),
        ("tenants.context", "context"),
        ("tenants.jwt.keys", "jwt"),
        ("tenants.limits", "plans"),
    ];
    let keys = asked.iter().filter_map(|path| {
        let (section, key) = path.rsplit_once('.')?;
        let base = ["_file", "_env"].iter().find_map(|s| key.strip_suffix(s)).unwrap_or(key);
        let key = if asked.contains(&format!("{section}.{base}")) { base } else { key };
        let section = nested.iter().find(|n| n.0 == section).map_or(section, |n| n.1);
        let section = if section == "jwt.keys" || section == "tenants.jwt" { "jwt" } else { section };
        Some((section.to_owned(), key.to_owned()))
    });
    let keys: BTreeSet<_> = keys.collect();
    assert!(keys.len() > 80, "{keys:?}");
    keys
}

#[test]
fn the_full_example_has_every_key() {
    for (section, key) in known_keys() {
        let forms = [key.clone(), format!("{key}_file"), format!("{key}_env"), format!("[{section}.{key}]")];
        let there = forms.iter().any(|f| {
            FULL.match_indices(f.as_str()).any(|(at, _)| {
                let before = FULL[..at].chars().next_back();
                let after = &FULL[at + f.len()..];
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
                    && (after.starts_with(" =") || f.starts_with('[') || after.starts_with("]"))
            })
        });
        assert!(there, "examples/full.toml lacks {section}.{key}");
    }
}

#[test]
fn the_documentation_has_every_key() {
    for (section, key) in known_keys() {
        let heads = [format!("## `[{section}]`"), format!("## `[[{section}]]`")];
        let text =
            heads.iter().find_map(|h| DOCS.split_once(h.as_str())).unwrap_or_else(|| panic!("{section}")).1;
        let text = text.split("\n## ").next().unwrap();
        assert!(text.contains(&format!("| `{key}`")), "docs/configuration.md lacks {section}.{key}");
    }
}
