//! `switchyard demo`, as somebody who tries it and as a script.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};

use serde_json::Value;
use switchyard_tests::process::{self, TempDir, free_port};
use switchyard_tests::router::binary;
use switchyard_tests::{metrics, wait};

/// A demo that runs.
struct Demo {
    dir: TempDir,
    child: Child,
}

impl Demo {
    /// Starts one, with a temporary directory of its own, as another account if asked to.
    fn start(args: &[&str], user: Option<&process::OsUser>) -> Self {
        let dir = TempDir::new();
        if user.is_some() {
            process::give_to_postgres(dir.path());
        }
        let mut command = process::command(binary(), "TERM", user);
        command.arg("demo").arg("--state").arg(dir.path().join("state.json")).args(args);
        let out = File::create(dir.path().join("out")).expect("the directory is ours");
        command.stdout(out.try_clone().expect("a file")).stderr(out).env("TMPDIR", dir.path());
        let child = process::spawn(command);
        Self { dir, child }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("out")).unwrap_or_default()
    }

    fn state(&mut self) -> Value {
        let path = self.dir.path().join("state.json");
        wait::until("the demo", || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the demo has ended ({status}):\n{}", self.text());
            }
            serde_json::from_str(&std::fs::read_to_string(&path).ok()?).ok()
        })
    }

    fn wait_text(&self, text: &str) {
        wait::until_true(&format!("`{text}`"), || self.text().contains(text));
    }

    fn wait_end(&mut self) -> Option<i32> {
        wait::until("the end", || self.child.try_wait().expect("it is ours")).code()
    }

    /// Its directory, which the first line of every process's command names.
    fn site(pid: &Value) -> PathBuf {
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("it runs");
        let config =
            command.split('\0').find(|a| a.contains("switchyard-demo-")).expect("it has a file there");
        PathBuf::from(config).ancestors().nth(2).expect("two levels below").to_owned()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the demo said\n{}", self.text());
        }
        process::end(&mut self.child, "TERM");
    }
}

fn psql(url: &Value, sql: &str) -> Result<String, String> {
    let url = url.as_str().expect("a url");
    let output = Command::new("psql").args([url, "-XAtc", sql]).output().expect("psql is installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn gone(pid: &Value) -> bool {
    !PathBuf::from(format!("/proc/{pid}")).exists()
}

#[test]
fn everything_that_the_state_names_works_and_nothing_stays() {
    let port = free_port();
    let mut demo = Demo::start(&["--port", &port.to_string(), "--routers", "2", "--shards", "3"], None);
    let state = demo.state();
    assert_eq!(state["router"]["port"], port);
    assert_eq!(state["shards"].as_array().map(Vec::len), Some(3));
    assert_eq!(state["tenants"].as_array().map(Vec::len), Some(6));

    // Each tenant sees its rows, all of them and no others, on the shard that is named.
    for tenant in state["tenants"].as_array().expect("tenants") {
        let id = tenant["id"].as_str().expect("an id");
        assert_eq!(psql(&tenant["url"], "SELECT DISTINCT tenant_id FROM leads").as_deref(), Ok(id));
        let shard = state["shards"].as_array().and_then(|s| s.iter().find(|s| s["name"] == tenant["shard"]));
        let shard = &shard.expect("its shard")["url"];
        for table in ["clients", "leads", "campaigns", "conversations"] {
            let through = psql(&tenant["url"], &format!("SELECT count(*) FROM {table}")).expect("it answers");
            let direct = psql(shard, &format!("SELECT count(*) FROM {table} WHERE tenant_id = '{id}'"));
            assert_eq!(Ok(&through), direct.as_ref());
            assert_ne!(through, "0", "{id} has rows in {table}");
        }
    }
    let acme = &state["tenants"][0]["url"];
    let insert =
        "INSERT INTO leads (first_name, last_name, email) VALUES ('New', 'Lead', 'n@l') RETURNING tenant_id";
    assert!(psql(acme, insert).is_ok_and(|out| out.starts_with("acme")));
    let forged = "INSERT INTO leads (tenant_id, first_name, last_name) VALUES ('globex', 'x', 'y')";
    assert!(psql(acme, forged).is_err_and(|e| e.contains("row-level security")));

    // The second router serves the same.
    let second = state["routers"][1]["port"].as_u64().expect("a port");
    let there = acme.as_str().expect("a url").replace(&format!(":{port}/"), &format!(":{second}/"));
    assert_eq!(psql(&there.into(), "SELECT DISTINCT tenant_id FROM clients").as_deref(), Ok("acme"));
    for router in state["routers"].as_array().expect("routers") {
        let url = router["metrics_url"].as_str().expect("a url");
        let address = url.trim_start_matches("http://").trim_end_matches("/metrics");
        let (status, text) =
            metrics::get(address.parse().expect("an address"), "/metrics").expect("it answers");
        assert_eq!(status, 200);
        assert!(text.contains("switchyard_"));
    }
    assert!(psql(&state["catalog_url"], "SELECT count(*) FROM switchyard.tenants").is_ok_and(|n| n == "6"));

    // The lines to paste work as they stand.
    let text = demo.text();
    let lines: Vec<_> = text.lines().filter(|l| l.trim_start().starts_with("psql ")).collect();
    assert_eq!(lines.len(), 4, "two tenants by their own URLs, and the same by the one for all");
    let rows: Vec<_> = lines
        .iter()
        .map(|line| Command::new("sh").args(["-c", line]).output().expect("sh").stdout)
        .map(|out| String::from_utf8_lossy(&out).into_owned())
        .collect();
    assert!(rows.iter().all(|r| r.contains("(3 rows)")) && rows[0] != rows[1], "{rows:?}");
    assert!(rows[2].contains(&rows[0]) && rows[3].contains(&rows[1]), "{rows:?}");
    assert!(
        psql(&state["roaming_url"], "SELECT count(*) FROM leads").is_err_and(|e| e.contains("no tenant"))
    );

    // A new tenant works with the URL that it is given, and goes where it is placed.
    let operate = |args: &[&str]| {
        let mut command = Command::new(binary());
        command.args(args).args(["-o", "json"]);
        command.env("SWITCHYARD_URL", state["control_plane"]["url"].as_str().expect("a url"));
        command.env("SWITCHYARD_TOKEN", state["control_plane"]["token"].as_str().expect("a token"));
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let made = operate(&["tenant", "create", "newco"]);
    assert_eq!(psql(&made["url"], "SELECT count(*) FROM leads").as_deref(), Ok("0"));
    let port_of = |shard: &str| {
        let found = state["shards"].as_array().and_then(|s| s.iter().find(|s| s["name"] == shard));
        psql(&found.expect("a shard")["url"], "SELECT inet_server_port()").expect("it answers")
    };
    for shard in ["shard-3", "shard-1", "shard-2"] {
        operate(&["tenant", "place", "newco", "--to", shard]);
        wait::until_true("the new shard", || {
            psql(&made["url"], "SELECT inet_server_port()").is_ok_and(|p| p == port_of(shard))
        });
    }

    // The lines that move a tenant, and have it go back, do.
    let leads = psql(acme, "SELECT count(*) FROM leads").expect("it answers");
    let home = psql(acme, "SELECT inet_server_port()").expect("it answers");
    let line = |of: &str| text.lines().find(|l| l.contains(of)).unwrap_or_else(|| panic!("no {of}: {text}"));
    for (verb, stays) in [("move start", false), ("move rollback", true)] {
        let script = format!("{}\n{}", line("export SWITCHYARD_URL"), line(verb));
        let output = Command::new("sh").args(["-c", &script]).output().expect("sh");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(psql(acme, "SELECT count(*) FROM leads").as_ref(), Ok(&leads));
        assert_eq!(psql(acme, "SELECT inet_server_port()").is_ok_and(|port| port == home), stays, "{verb}");
    }

    let site = Demo::site(&state["pids"]["router"]);
    assert!(site.exists());
    process::signal(&demo.child, "TERM");
    assert_eq!(demo.wait_end(), Some(0));
    assert!(!site.exists(), "the directory is gone");
    assert!(!demo.dir.path().join("state.json").exists(), "the state is gone");
    let pids = &state["pids"];
    let shards = pids["shards"].as_object().expect("shards").values();
    for pid in [&pids["control_plane"], &pids["catalog"], &pids["routers"][0], &pids["routers"][1]]
        .into_iter()
        .chain(shards)
    {
        assert!(gone(pid), "{pid} is still there");
    }
}

#[test]
fn routers_go_on_when_the_catalog_is_stopped_and_a_crash_ends_the_demo() {
    let mut demo = Demo::start(&["--tenants", "2", "--shards", "1"], None);
    let state = demo.state();
    let kill = |signal: &str, pid: &Value| {
        let done = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status();
        assert!(done.is_ok_and(|s| s.success()));
    };
    kill("KILL", &state["pids"]["catalog"]);
    demo.wait_text("catalog was stopped by somebody");
    let url = &state["tenants"][1]["url"];
    assert_eq!(psql(url, "SELECT DISTINCT tenant_id FROM leads").as_deref(), Ok("umbrella"));
    let site = Demo::site(&state["pids"]["router"]);
    kill("ABRT", &state["pids"]["router"]);
    assert_eq!(demo.wait_end(), Some(1));
    assert!(demo.text().contains("router-1 has failed"), "{}", demo.text());
    assert!(!site.exists() && gone(&state["pids"]["shards"]["shard-1"]), "nothing stays");
}

#[test]
fn a_start_that_fails_leaves_nothing() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("it has one").port().to_string();
    let mut demo = Demo::start(&["--port", &port], None);
    assert_eq!(demo.wait_end(), Some(1));
    assert!(demo.text().contains(&format!("port {port}")), "{}", demo.text());

    // Stopped in the middle of it.
    let mut demo = Demo::start(&[], None);
    demo.wait_text("starting the control plane");
    process::signal(&demo.child, "INT");
    assert_eq!(demo.wait_end(), Some(0));
    let left: Vec<_> = std::fs::read_dir("/tmp").expect("it is there").flatten().collect();
    let mark = demo.child.id().to_string();
    let ours = |e: &std::fs::DirEntry| {
        let name = e.file_name().to_string_lossy().into_owned();
        name.starts_with("switchyard-demo-") && name.ends_with(&format!("-{mark}"))
    };
    assert!(!left.iter().any(ours), "its directory is gone");
}

#[test]
fn sealed_it_withstands_hostile_sql() {
    let mut demo = Demo::start(&["--tenants", "3", "--context", "sealed"], None);
    let state = demo.state();
    for tenant in state["tenants"].as_array().expect("tenants") {
        let id = tenant["id"].as_str().expect("an id");
        assert_eq!(psql(&tenant["url"], "SELECT DISTINCT tenant_id FROM leads").as_deref(), Ok(id));
    }
    let acme = &state["tenants"][0]["url"];
    let walk = "SELECT set_config('app.tenant_id', 'globex', false); SELECT DISTINCT tenant_id FROM leads";
    assert_eq!(psql(acme, walk).as_deref(), Ok("globex\nacme"));
    let forged = "SELECT set_config('backtrace_functions', 'sc_1_globex', false)";
    assert!(psql(acme, forged).is_err_and(|e| e.contains("permission denied")));
    // What it set up is as doctor would have it.
    let mut doctor = Command::new(binary());
    doctor.args(["doctor", "--mode", "sealed", "--role", "crm_app", "-o", "json"]);
    for shard in state["shards"].as_array().expect("shards") {
        doctor.args(["--shard", shard["url"].as_str().expect("a url")]);
    }
    let output = doctor.output().expect("it runs");
    let findings: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let codes: Vec<_> = findings.as_array().expect("a list").iter().map(|f| &f["code"]).collect();
    // A demo's clusters are of one machine, and are not made for moves.
    assert!(output.status.success() && codes.iter().all(|c| *c == "wal-level"), "{findings:#}");
}

#[test]
fn it_runs_as_an_ordinary_user() {
    // Where the tests are not run by root, all the others are this one.
    let Some(user) = process::postgres_user() else { return };
    let mut demo = Demo::start(&["--tenants", "2"], Some(user));
    let state = demo.state();
    let owner =
        std::fs::read_to_string(format!("/proc/{}/status", state["pids"]["router"])).expect("it runs");
    assert!(owner.contains(&format!("Uid:\t{}", user.uid)), "{owner}");
    assert_eq!(
        psql(&state["tenants"][0]["url"], "SELECT DISTINCT tenant_id FROM leads").as_deref(),
        Ok("acme")
    );
}
