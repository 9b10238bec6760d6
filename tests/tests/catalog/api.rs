//! The control plane's API over HTTP, and the commands that speak it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::{Value, json};
use switchyard_tests::Cluster;
use switchyard_tests::cluster::{SUPERUSER, SUPERUSER_PASSWORD};
use switchyard_tests::process::{self, TempDir, free_port};
use switchyard_tests::router::binary;
use switchyard_tests::{metrics, wait};

/// A control plane as a process, with a catalog.
pub(crate) struct ControlPlane {
    cluster: Arc<Cluster>,
    dir: TempDir,
    port: u16,
    config: PathBuf,
    child: std::process::Child,
}

fn run(config: &Path, dir: &TempDir) -> std::process::Child {
    let mut command = process::command(binary(), "TERM", None);
    let log = std::fs::File::create(dir.path().join("log")).expect("the directory is ours");
    command.arg("control-plane").arg("--config").arg(config);
    command.env("SWITCHYARD_LOG", "debug");
    command.stdout(log.try_clone().expect("a file")).stderr(log);
    process::spawn(command)
}

impl ControlPlane {
    pub(crate) fn start() -> Self {
        Self::over(Arc::new(Cluster::start()), "")
    }

    /// Another one, with the same catalog; `more` are lines of its configuration.
    pub(crate) fn over(cluster: Arc<Cluster>, more: &str) -> Self {
        let plane = Self::spawn(cluster, more);
        plane.wait();
        plane
    }

    /// The same, which may not answer yet.
    pub(crate) fn spawn(cluster: Arc<Cluster>, more: &str) -> Self {
        let (dir, port) = (TempDir::new(), free_port());
        let config = dir.write(
            "control-plane.toml",
            &format!(
                "listen = '127.0.0.1:{port}'\ncatalog_url = '{}'\nbootstrap_token_file = 'token'\nkeys_file = 'keys'\n\
                 client_url = 'postgres://127.0.0.1:7777/crm'\n{more}",
                cluster.url(SUPERUSER, SUPERUSER_PASSWORD)
            ),
        );
        let child = run(&config, &dir);
        Self { cluster, dir, port, config, child }
    }

    fn wait(&self) {
        let address = self.address();
        wait::until_true("the control plane", || {
            metrics::get(address, "/readyz").is_ok_and(|(status, _)| status == 200)
        });
    }

    /// Whether it has made its token.
    pub(crate) fn is_ready_to_be_asked(&self) -> bool {
        self.dir.path().join("token").exists()
    }

    /// The file of its keys.
    pub(crate) fn keys(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("keys")).expect("it was made")
    }

    /// Ends it, and starts it again with other keys.
    pub(crate) fn restart_with_keys(&mut self, keys: &str) {
        process::end(&mut self.child, "TERM");
        std::fs::write(self.dir.path().join("keys"), keys).expect("the directory is ours");
        self.child = run(&self.config, &self.dir);
        self.wait();
    }

    /// Its catalog, and what else is in that cluster.
    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Kills it, as a machine's end would.
    pub(crate) fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("token")).expect("it was made").trim().to_owned()
    }

    /// Runs an operator's command with a token.
    pub(crate) fn cli_as(&self, token: &str, args: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(args).env("SWITCHYARD_URL", format!("http://127.0.0.1:{}", self.port));
        command.env("SWITCHYARD_ADMIN_PASSWORD", SUPERUSER_PASSWORD);
        command.env("SWITCHYARD_TOKEN", token).output().expect("it runs")
    }

    /// Runs one and reads its JSON.
    pub(crate) fn cli(&self, args: &[&str]) -> Value {
        let output = self.cli_as(&self.token(), &[args, &["-o", "json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    pub(crate) fn code(&self, args: &[&str]) -> i32 {
        self.cli_as(&self.token(), args).status.code().expect("it ended by itself")
    }

    /// One request as curl would send it.
    pub(crate) fn request(&self, method: &str, path: &str, token: &str, body: &str) -> (u16, String, Value) {
        self.request_with(method, path, token, body, "if-match: *\r\n")
    }

    /// The same with these headers.
    pub(crate) fn request_with(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: &str,
        headers: &str,
    ) -> (u16, String, Value) {
        use std::io::{Read, Write};
        let mut socket = std::net::TcpStream::connect(self.address()).expect("it listens");
        let length = body.len();
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\
             content-type: application/json\r\n{headers}connection: close\r\n\r\n{body}"
        )
        .expect("it reads");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head[9..12].parse().expect("a status");
        (status, head.to_ascii_lowercase(), serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        process::end(&mut self.child, "TERM");
    }
}

#[test]
fn operators_commands() {
    let plane = ControlPlane::start();
    plane.cli(&["shard", "add", "s1", "--url", "postgres://app:hush@10.0.0.1:5433/crm?sslmode=require"]);
    let shards = plane.cli(&["shard", "list"]);
    assert_eq!(shards[0]["buckets"], 4096);
    assert_eq!(shards[0]["tls"]["sslmode"], "require");
    assert!(!shards.to_string().contains("hush"), "the password is not told");
    assert!(plane.log().contains("catalog changed") && !plane.log().contains("hush"), "nor logged");
    plane.cli(&["shard", "add", "s2", "--url", "postgres://app@10.0.0.2/crm"]);

    let made = plane.cli(&["tenant", "create", "acme", "--name", "Acme Ltd"]);
    let password = made["user"]["new_password"].as_str().expect("it is told once");
    assert_eq!(made["url"], format!("postgres://acme:{password}@127.0.0.1:7777/crm"));
    assert_eq!((&made["shard"], &made["placed_by"]), (&json!("s1"), &json!("bucket")));
    assert!(plane.cli(&["tenant", "show", "acme"]).get("url").is_none());
    let odd = "a/b c?'ü";
    plane.cli(&["tenant", "create", odd, "--no-user"]);
    assert_eq!(plane.cli(&["tenant", "show", odd])["id"], odd);

    assert_eq!(plane.cli(&["tenant", "suspend", "acme"])["state"], "suspended");
    assert_eq!(plane.cli(&["tenant", "list", "--state", "suspended"])[0]["id"], "acme");
    assert_eq!(plane.cli(&["tenant", "resume", "acme"])["state"], "active");
    let placed = plane.cli(&["tenant", "place", "acme", "--to", "s2"]);
    assert_eq!((&placed["shard"], &placed["epoch"]), (&json!("s2"), &json!(1)));
    assert_eq!(plane.cli(&["tenant", "list", "--shard", "s2"]).as_array().map(Vec::len), Some(1));
    plane.cli(&["user", "create", "ops", "--any-tenant"]);
    assert_eq!(plane.cli(&["user", "list"]).as_array().map(Vec::len), Some(2));
    assert_eq!(plane.cli(&["user", "list", "--tenant", "acme"])[0]["name"], "acme");

    // Exit codes, which scripts decide by.
    assert_eq!(plane.code(&["tenant", "show", "nobody"]), 3);
    assert_eq!(plane.code(&["tenant", "place", "acme", "--to", "nowhere"]), 3);
    assert_eq!(plane.code(&["tenant", "create", "acme"]), 4);
    assert_eq!(plane.code(&["shard", "remove", "s2", "--yes"]), 4);
    assert_eq!(plane.code(&["tenant", "delete", "acme"]), 2);
    assert_eq!(plane.code(&["tenant", "fly"]), 2);
    assert_eq!(plane.cli_as("wrong-token", &["tenant", "list"]).status.code(), Some(1));
    assert_eq!(
        plane.code(&["tenant", "delete", "acme", "--yes", "--grace", "0", "--keep-data", "--wait"]),
        0
    );
    assert_eq!(plane.code(&["tenant", "show", "acme"]), 3);
    let table = plane.cli_as(&plane.token(), &["tenant", "list"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.starts_with("ID") && table.contains(odd), "{table}");
}

#[test]
fn a_first_start_has_nothing_to_complain_of() {
    let plane = ControlPlane::start();
    wait::until_true("the moves", || plane.log().contains("leads the moves"));
    let log = plane.log();
    let complaints: Vec<&str> =
        log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn a_token_ends_when_it_expires() {
    let plane = ControlPlane::start();
    let body = json!({ "name": "brief", "role": "viewer", "lifetime_seconds": 1 }).to_string();
    let (_, _, made) = plane.request("POST", "/v1/tokens", &plane.token(), &body);
    let token = made["secret"].as_str().expect("it is told").to_owned();
    wait::until_true("its end", || plane.request("GET", "/v1/topology", &token, "").0 == 401);
}

#[test]
fn errors_are_problems_that_quote_no_secret() {
    let plane = ControlPlane::start();
    let admin = plane.token();
    let (status, head, problem) = plane.request("GET", "/v1/tenants/nobody", &admin, "");
    assert_eq!((status, &problem["code"]), (404, &json!("not_found")));
    assert!(head.contains("content-type: application/problem+json"), "{head}");
    let wrong = r#"{"name": "u", "any_tenant": true, "password": ["hunter2"]}"#;
    for (method, path, body, want) in [
        ("POST", "/v1/users", wrong, 422),
        ("POST", "/v1/users", r#"{"name": "u", "any_tenant": true, "verifier": "hunter2"}"#, 422),
        ("POST", "/v1/shards", r#"{"name": "s", "url": "mysql://u:hunter2@h/d"}"#, 422),
        (
            "PUT",
            "/v1/issuers/i",
            r#"{"keys": {"static": [{"algorithm": "HS256", "material": {"hunter2": 1}}]}}"#,
            422,
        ),
        ("PATCH", "/v1/settings", r#"{"context": {"variables": {"search_path": "hunter2"}}}"#, 422),
        ("POST", "/v1/tenants", r#"{"id": ""}"#, 422),
        ("GET", "/v1/nothing", "", 404),
    ] {
        let (status, _, problem) = plane.request(method, path, &admin, body);
        assert_eq!(status, want, "{method} {path}: {problem}");
        assert!(problem["detail"].is_string(), "{problem}");
        assert!(!problem.to_string().contains("hunter2"), "{problem}");
    }
    let (status, text) = metrics::get(plane.address(), "/metrics").expect("it answers");
    assert_eq!(status, 200);
    assert!(text.contains("switchyard_catalog_up 1"), "{text}");
    assert!(!text.contains("nobody"), "ids are no labels: {text}");
}
