//! Everything that a move needs: shards, a catalog, a control plane, and routers that follow it.

use std::path::PathBuf;
use std::process::{Child, Command, Output};

use serde_json::Value;

use crate::cluster::{self, Cluster, SUPERUSER, SUPERUSER_PASSWORD};
use crate::faults::FaultProxy;
use crate::process::{self, TempDir, free_port};
use crate::raw::Raw;
use crate::router::{Router, binary};
use crate::{metrics, wait};

/// What has been started. All of it ends on drop.
pub struct Moving {
    /// The shards, `s0` first.
    pub shards: Vec<Cluster>,
    /// The cluster of the catalog.
    pub catalog: Cluster,
    /// The routers.
    pub routers: Vec<Router>,
    /// What stands in front of each shard, for routers and mover alike, if that was asked for.
    pub proxies: Vec<FaultProxy>,
    /// What stands between the catalog and all routers but the first, if that was asked for.
    pub catalog_proxy: Option<FaultProxy>,
    dir: TempDir,
    config: PathBuf,
    port: u16,
    child: Child,
    second: Option<Child>,
}

/// Where the control plane finds the mover's password for the first shard.
const PASSWORD_ENV: &str = "SWITCHYARD_SHARD_S0";

/// A tenant and its password.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its id, and the name of its user.
    pub id: String,
    /// The password of its user.
    pub password: String,
}

impl Moving {
    /// Two shards with the tests' schema and `sql`, and so many routers.
    ///
    /// # Panics
    /// If something does not start.
    pub fn start(routers: usize, sql: &str) -> Self {
        Self::start_with(routers, sql, "")
    }

    /// As [`Self::start`], with further lines of the routers' configuration.
    ///
    /// # Panics
    /// If something does not start.
    pub fn start_with(routers: usize, sql: &str, router_toml: &str) -> Self {
        Self::start_all(routers, sql, router_toml, false)
    }

    /// As [`Self::start_with`], with proxies in front of the shards, and of the catalog for all routers but the first.
    ///
    /// # Panics
    /// If something does not start.
    pub fn start_proxied(routers: usize, sql: &str, router_toml: &str) -> Self {
        Self::start_all(routers, sql, router_toml, true)
    }

    fn start_all(routers: usize, sql: &str, router_toml: &str, proxied: bool) -> Self {
        let mut clusters: Vec<_> = std::thread::scope(|scope| {
            let one = || {
                Cluster::builder()
                    .setting("max_connections = 120")
                    .setting("max_replication_slots = 10")
                    .setting("max_wal_senders = 10")
                    .setting("max_wal_size = 1GB")
                    .start()
            };
            let starting: Vec<_> = (0..3).map(|_| scope.spawn(one)).collect();
            starting.into_iter().map(|t| t.join().expect("the cluster starts")).collect()
        });
        let catalog = clusters.pop().expect("three of them");
        for shard in &clusters {
            // Its rows are told by a column, and nothing keeps them apart.
            shard.sql("DROP TABLE scratch.imports");
            shard.sql(sql);
        }
        let (dir, port) = (TempDir::new(), free_port());
        let url = catalog.url(SUPERUSER, SUPERUSER_PASSWORD);
        let config = dir.write(
            "control-plane.toml",
            &format!(
                "listen = '127.0.0.1:{port}'\ncatalog_url = '{url}'\nbootstrap_token_file = 'token'\n\
                 secrets_dir = '.'\nkeys_file = 'keys'\n"
            ),
        );
        dir.write("shard.password", &format!("{SUPERUSER_PASSWORD}\n"));
        let child = control_plane(&dir, &config, None);
        let proxies = clusters.iter().filter(|_| proxied).map(|c| FaultProxy::start(c.address())).collect();
        let catalog_proxy = proxied.then(|| FaultProxy::start(catalog.address()));
        let mut moving = Self {
            shards: clusters,
            catalog,
            routers: Vec::new(),
            proxies,
            catalog_proxy,
            dir,
            config,
            port,
            child,
            second: None,
        };
        moving.wait_ready();
        for (i, shard) in moving.shards.iter().enumerate() {
            let name = format!("s{i}");
            let at = format!(
                "postgres://{}:{}@127.0.0.1:{}/{}?sslmode=disable",
                cluster::APP,
                cluster::APP_PASSWORD,
                moving.proxies.get(i).map_or_else(|| shard.port(), |p| p.address().port()),
                cluster::DATABASE
            );
            moving.cli(&["shard", "add", &name, "--url", &at]);
            // Neither password is in the catalog.
            let from = match i {
                0 => ["--password-env", PASSWORD_ENV],
                _ => ["--password-file", "shard.password"],
            };
            moving.cli(&[&["shard", "admin", &name, "--user", SUPERUSER], &from[..]].concat());
        }
        moving.context(r#"{"variables": {"app.tenant_id": "{tenant}"}}"#);
        let direct = format!("127.0.0.1:{}", moving.catalog.port());
        let by = moving.catalog_proxy.as_ref().map_or_else(|| direct.clone(), |p| p.address().to_string());
        let toml = |url: &str| format!("[router]\n\n[catalog]\nurl = \"{url}\"\n{router_toml}\n");
        let urls = (0..routers).map(|n| if n == 0 { url.clone() } else { url.replace(&direct, &by) });
        moving.routers = urls.map(|url| Router::start(&toml(&url))).collect();
        moving
    }

    /// Sets the context of tenants, as JSON.
    ///
    /// # Panics
    /// If the catalog does not take it.
    pub fn context(&self, json: &str) {
        self.catalog.sql(&format!("UPDATE switchyard.settings SET context = '{json}'"));
    }

    /// Makes a tenant on a shard, with a user.
    ///
    /// # Panics
    /// If the control plane does not.
    pub fn tenant(&self, id: &str, shard: usize) -> Tenant {
        self.known_tenant(id, shard, &[])
    }

    /// As [`Self::tenant`], with further arguments for the command.
    ///
    /// # Panics
    /// If the control plane does not.
    pub fn known_tenant(&self, id: &str, shard: usize, further: &[&str]) -> Tenant {
        let shard = format!("s{shard}");
        let made = self.cli(&[&["tenant", "create", id, "--shard", &shard], further].concat());
        let url = made["url"].as_str().expect("a url");
        let login = url.split_once("://").and_then(|(_, rest)| rest.split('@').next()).expect("a login");
        let password = login.split_once(':').expect("a password").1.to_owned();
        let tenant = Tenant { id: id.to_owned(), password };
        for router in 0..self.routers.len() {
            let url = self.url(&tenant, router);
            wait::until_true("the routers to know the tenant", || {
                let output = Command::new("psql").args([&url, "-XAtqc", "SELECT 1"]).output();
                output.expect("psql is installed").status.success()
            });
        }
        tenant
    }

    /// A session of a tenant through a router.
    ///
    /// # Panics
    /// If the router does not let it in.
    #[track_caller]
    pub fn login(&self, tenant: &Tenant, router: usize) -> Raw {
        let target = self.routers[router].target().user(&tenant.id).password(&tenant.password);
        target.database(cluster::DATABASE).connect()
    }

    /// Waits until a control plane that stood still, and was followed by another, has found that out.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_followed(&self) {
        wait::until_true("the first to find out", || {
            let log = self.log();
            let awake = log.rfind("\"going on\"").map(|at| log[at..].to_owned());
            awake.is_some_and(|log| log.contains("moves are not worked on"))
        });
    }

    /// The URL of a tenant at a router.
    pub fn url(&self, tenant: &Tenant, router: usize) -> String {
        let port = self.routers[router].address().port();
        format!("postgres://{}:{}@127.0.0.1:{port}/{}", tenant.id, tenant.password, cluster::DATABASE)
    }

    /// The URL of the control plane's page.
    pub fn page(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Waits until the control plane is ready.
    ///
    /// # Panics
    /// If it does not become so.
    pub fn wait_ready(&self) {
        let address = ([127, 0, 0, 1], self.port).into();
        wait::until_true("the control plane", || {
            metrics::get(address, "/readyz").is_ok_and(|(status, _)| status == 200)
        });
    }

    /// What the control plane counts.
    ///
    /// # Panics
    /// If it does not say.
    pub fn metrics(&self) -> String {
        metrics::get(([127, 0, 0, 1], self.port).into(), "/metrics").expect("the control plane answers").1
    }

    /// Kills the control plane, and the mover in it, as a machine's end would.
    pub fn kill_control_plane(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again, without waiting.
    pub fn start_control_plane(&mut self) {
        self.child = control_plane(&self.dir, &self.config, None);
    }

    /// Starts it again so that it ends by itself at a named point of a move, or stands still there if `stop:` is in front
    /// of the name. Several names have commas between them.
    pub fn start_control_plane_to_end_at(&mut self, point: &str) {
        self.child = control_plane(&self.dir, &self.config, Some(point));
        self.wait_ready();
    }

    /// Starts it again, and waits until it has ended by itself at a named point, of what it finds to be done.
    ///
    /// # Panics
    /// If it does not end.
    pub fn run_control_plane_until(&mut self, point: &str) {
        self.child = control_plane(&self.dir, &self.config, Some(point));
        self.wait_control_plane_end();
    }

    /// Stops it, as a machine that stands still would be.
    pub fn freeze_control_plane(&self) {
        process::signal(&self.child, "STOP");
    }

    /// Tells it to end, as an operator would.
    pub fn end_control_plane(&self) {
        process::signal(&self.child, "TERM");
    }

    /// Lets it go on.
    pub fn thaw_control_plane(&self) {
        process::signal(&self.child, "CONT");
    }

    /// Starts a second control plane beside it, and waits until that is ready. Commands go there from now on.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_second_control_plane(&mut self) {
        let port = free_port();
        let config = std::fs::read_to_string(&self.config).expect("we wrote it");
        let config = config.replace(&format!(":{}'", self.port), &format!(":{port}'"));
        let config = self.dir.write("second.toml", &config);
        self.second = Some(control_plane(&self.dir, &config, None));
        self.port = port;
        self.wait_ready();
    }

    /// Waits until the control plane stands still at the point that it was started to stop at.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_control_plane_stopped(&self) {
        let stat = format!("/proc/{}/stat", self.child.id());
        wait::until_true("the control plane to stand still", || {
            std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
    }

    /// Waits for the control plane to end by itself.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_control_plane_end(&mut self) {
        wait::until("the control plane to end", || self.child.try_wait().expect("it is our child"));
    }

    /// Seconds of processor time that each part has taken since it was started: the control plane, the catalog, the
    /// shards, and the routers.
    pub fn processor_seconds(&self) -> [(&'static str, f64); 4] {
        [
            ("control plane", process::processor_seconds(self.child.id())),
            ("catalog", self.catalog.processor_seconds()),
            ("shards", self.shards.iter().map(Cluster::processor_seconds).sum()),
            ("routers", self.routers.iter().map(|r| process::processor_seconds(r.pid())).sum()),
        ]
    }

    /// What the control plane has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Runs an operator's command.
    ///
    /// # Panics
    /// If it cannot be run.
    pub fn command(&self, args: &[&str]) -> Output {
        let token = std::fs::read_to_string(self.dir.path().join("token")).expect("it was made");
        let mut command = Command::new(binary());
        command.args(args).env("SWITCHYARD_URL", format!("http://127.0.0.1:{}", self.port));
        command.env("SWITCHYARD_TOKEN", token.trim()).output().expect("it runs")
    }

    /// The same, with something on its standard input.
    ///
    /// # Panics
    /// If it cannot be run.
    pub fn command_with(&self, args: &[&str], input: &str) -> Output {
        use std::io::Write;
        let token = std::fs::read_to_string(self.dir.path().join("token")).expect("it was made");
        let mut command = Command::new(binary());
        command.args(args).env("SWITCHYARD_URL", format!("http://127.0.0.1:{}", self.port));
        command.env("SWITCHYARD_TOKEN", token.trim());
        command.stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
        child.wait_with_output().expect("it ends")
    }

    /// Where a file of the control plane's directory is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file into the control plane's directory.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) {
        self.dir.write(name, text);
    }

    /// Reads one.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).expect("it is there")
    }

    /// Runs one and reads its JSON.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> Value {
        let output = self.command(&[args, &["-o", "json"]].concat());
        assert!(
            output.status.success(),
            "{args:?}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// What SQL answers on a shard, as the superuser: the first column of the first row, as text.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn one(&self, shard: usize, sql: &str) -> String {
        self.shards[shard].value(sql)
    }

    /// Asserts that nothing of moves is left: no slot, no publication, no record.
    ///
    /// # Panics
    /// If there is.
    #[track_caller]
    pub fn nothing_left(&self) {
        for (i, _) in self.shards.iter().enumerate() {
            for what in ["pg_replication_slots", "pg_publication", "switchyard.moves"] {
                let count = self.one(i, &format!("SELECT count(*) FROM {what}"));
                assert_eq!(count, "0", "{what} of s{i}");
            }
        }
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the control plane (end)");
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            lines[lines.len().saturating_sub(60)..].iter().for_each(|line| eprintln!("{line}"));
        }
        if let Some(second) = &mut self.second {
            process::end(second, "TERM");
        }
        // One that stands still hears nothing else.
        process::signal(&self.child, "CONT");
        process::end(&mut self.child, "TERM");
    }
}

fn control_plane(dir: &TempDir, config: &std::path::Path, fault: Option<&str>) -> Child {
    let log = dir.path().join("log");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("the directory is ours");
    let mut command = process::command(binary(), "KILL", None);
    command.arg("control-plane").arg("--config").arg(config).env("SWITCHYARD_LOG", "info");
    command.env(PASSWORD_ENV, SUPERUSER_PASSWORD);
    if let Some(fault) = fault {
        command.env("SWITCHYARD_FAULT", fault);
    }
    command.stdout(log.try_clone().expect("a file")).stderr(log);
    process::spawn(command)
}
