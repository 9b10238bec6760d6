//! The verbs, as an operator or a script uses them.

use std::process::{Command, Output};

use serde_json::Value;
use switchyard_tests::Cluster;
use switchyard_tests::cluster::{SUPERUSER, SUPERUSER_PASSWORD};
use switchyard_tests::process::TempDir;
use switchyard_tests::router::binary;

struct Site {
    dir: TempDir,
    shards: [Cluster; 2],
}

impl Site {
    fn new() -> Self {
        let site = Self { dir: TempDir::new(), shards: [Cluster::start(), Cluster::start()] };
        let urls = site.shards.iter().enumerate();
        let lines: Vec<_> =
            urls.map(|(i, s)| format!("s{i}={}", s.url(SUPERUSER, SUPERUSER_PASSWORD))).collect();
        site.dir.write("shards", &(lines.join("\n") + "\n"));
        site
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(args).args(["--shards-file", &self.path("shards")]);
        command.output().expect("it runs")
    }

    #[track_caller]
    fn good(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    fn bad(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[args, &["-o", "json"]].concat())).expect("JSON")
    }
}

#[test]
fn from_nothing_to_sealed_and_back() {
    let site = Site::new();
    let key_file = site.path("seal.keys");
    let status = site.json(&["schema", "status"]);
    assert_eq!(status[0]["installed"], false);
    let installed =
        site.json(&["schema", "install", "--key-file", &key_file, "--revoke", "activity,signals"]);
    assert_eq!(
        (&installed[1]["form"], &installed[1]["keys"]),
        (&"parameter".into(), &serde_json::json!([1]))
    );
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&key_file).expect("a file")) & 0o777;
    assert_eq!(mode, 0o600);

    // Printed first, and nothing is done; then done.
    for cluster in &site.shards {
        cluster.sql("DROP TABLE scratch.imports");
    }
    let protect = ["schema", "protect", "--mode", "sealed", "--replace"];
    let plan = site.good(&protect);
    assert_eq!(plan.matches("CREATE POLICY switchyard ON").count(), 8, "{plan}");
    assert_eq!(site.shards[0].value("SELECT count(*) FROM pg_policy WHERE polname = 'switchyard'"), "0");
    site.good(&[&protect[..], &["--apply"]].concat());
    assert_eq!(site.shards[1].value("SELECT count(*) FROM pg_policy WHERE polname = 'switchyard'"), "4");

    // Sequences of two shards collide, which is no error; a policy on a variable is one.
    let doctor = ["doctor", "--mode", "sealed", "--role", "app"];
    let found = site.json(&doctor);
    assert!(found.as_array().expect("a list").iter().all(|f| f["code"] == "sequence-collides"), "{found:#}");
    site.shards[1].sql("CREATE POLICY wide ON leads USING (true)");
    let found = site.bad(1, &doctor);
    assert!(
        found.contains("error: s1: wide on public.leads: ") && found.contains("DROP POLICY wide"),
        "{found}"
    );
    site.shards[1].sql("DROP POLICY wide ON leads");

    let said = site.good(&["schema", "rotate-key", "--key-file", &key_file]);
    assert!(said.starts_with("key 2 is on 2 shards"), "{said}");
    let keys = std::fs::read_to_string(&key_file).expect("a file");
    assert_eq!(keys.lines().map(|l| l.split(' ').next()).collect::<Vec<_>>(), [Some("2"), Some("1")]);
    assert_eq!(site.json(&["schema", "status"])[0]["keys"], serde_json::json!([1, 2]));
    site.good(&["schema", "rotate-key", "--key-file", &key_file, "--retire"]);
    assert_eq!(site.json(&["schema", "status"])[1]["keys"], serde_json::json!([2]));
    for text in [&plan, &said, &site.good(&["schema", "status"])] {
        assert!(keys.lines().all(|line| !text.contains(&line[2..])), "a key was shown");
    }
    assert!(site.good(&["schema", "upgrade"]).contains("s1: current"));

    site.bad(2, &["schema", "remove"]);
    assert!(site.bad(1, &["schema", "remove", "--yes"]).contains("in use by policy switchyard"));
    site.good(&["schema", "remove", "--yes", "--force"]);
    assert_eq!(site.json(&["schema", "status"])[1]["installed"], false);
}

#[test]
fn a_migration_stops_at_its_first_failure_and_is_resumed() {
    let site = Site::new();
    site.good(&["schema", "install"]);
    for cluster in &site.shards {
        cluster.sql("CREATE SCHEMA tenant_a; CREATE SCHEMA tenant_b; CREATE SCHEMA tenant_c");
    }
    let file = site.dir.write("0001_notes.sql", "CREATE TABLE notes (id int)").display().to_string();
    let apply = ["schema", "apply", &file, "--schemas", "tenant_%", "--parallel", "1"];
    // The canary fails, and nothing else is begun.
    site.shards[0].sql("CREATE TABLE tenant_a.notes ()");
    let said = site.bad(1, &apply);
    assert!(said.contains("already exists") && said.contains("1 targets failed, 5 were not begun"), "{said}");
    site.shards[0].sql("DROP TABLE tenant_a.notes; CREATE TABLE tenant_c.notes ()");
    assert!(site.bad(1, &apply).contains("1 targets failed"));
    site.shards[0].sql("DROP TABLE tenant_c.notes");
    let done = site.json(&apply);
    let states: Vec<_> = done.as_array().expect("a list").iter().map(|d| d["state"].clone()).collect();
    assert_eq!(states.iter().filter(|s| *s == "was applied").count(), 2, "{done:#}");
    assert_eq!(states.iter().filter(|s| *s == "applied").count(), 4, "{done:#}");
    let count = "SELECT count(*) FROM pg_class WHERE relname = 'notes' AND relkind = 'r'";
    assert_eq!([site.shards[0].value(count), site.shards[1].value(count)], ["3", "3"]);
    let again = site.json(&apply);
    assert!(again.as_array().is_some_and(|a| a.len() == 6 && a.iter().all(|d| d["state"] == "was applied")));
}

#[test]
fn tables_are_adopted_by_name() {
    let site = Site::new();
    for cluster in &site.shards {
        cluster.sql("CREATE TABLE old (id int PRIMARY KEY); INSERT INTO old VALUES (1), (2)");
    }
    let listed = site.json(&["schema", "adopt", "--tenant", "acme"]);
    assert!(listed.as_array().is_some_and(|l| l.iter().any(|t| t["table"] == "public.old")), "{listed:#}");
    let done = site.json(&["schema", "adopt", "--tenant", "acme", "--table", "old"]);
    assert!(done[1]["added"] == true && done[1]["index"] == "old_tenant_key", "{done:#}");
    assert_eq!(site.shards[1].value("SELECT count(*) FROM old WHERE tenant_id = 'acme'"), "2");
    let refused = site.bad(1, &["schema", "adopt", "--tenant", "acme", "--table", "nothing"]);
    assert!(refused.contains("shard s0: there is no table nothing"), "{refused}");
}
