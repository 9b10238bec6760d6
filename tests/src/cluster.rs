//! PostgreSQL clusters.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::certs::{Certs, install_for_postgres};
use crate::process::{self, TempDir};
use crate::raw::{Raw, Target};
use crate::wait;

const SCHEMA: &str = include_str!("schema.sql");

/// Name of the superuser of every cluster.
pub const SUPERUSER: &str = "super";
/// Its password.
pub const SUPERUSER_PASSWORD: &str = "super-secret";
/// The role that the router logs in as: neither superuser nor owner.
pub const APP: &str = "app";
/// Its password.
pub const APP_PASSWORD: &str = "app-secret";
/// The database that holds the application.
pub const DATABASE: &str = "crm";

/// A running cluster of its own, with the application's schema and no rows. Gone on drop.
pub struct Cluster {
    dir: TempDir,
    port: u16,
    child: Child,
    tls: bool,
}

/// What a cluster may have besides.
#[derive(Default)]
pub struct Builder<'a> {
    tls: Option<&'a Certs>,
    settings: Vec<String>,
    hba: String,
}

impl<'a> Builder<'a> {
    /// TLS with the certificate `server` of `certs`.
    pub fn tls(mut self, certs: &'a Certs) -> Self {
        self.tls = Some(certs);
        self
    }

    /// A line of `postgresql.conf`.
    pub fn setting(mut self, line: &str) -> Self {
        self.settings.push(line.to_owned());
        self
    }

    /// Lines of `pg_hba.conf` that come before the usual ones.
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = format!("{lines}\n");
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(self) -> Cluster {
        let dir = TempDir::new();
        process::give_to_postgres(dir.path());
        let data = dir.path().join("data");
        run(as_postgres(Path::new("cp")).arg("-a").arg(template()).arg(&data));
        let port = process::free_port();
        let mut conf = format!(
            "\nport = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\n",
            dir.path().display()
        );
        if let Some(certs) = self.tls {
            install_for_postgres(certs, &data);
            conf += "ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_ca_file = 'ca.crt'\n";
        }
        for line in &self.settings {
            conf = conf + line + "\n";
        }
        append(&data.join("postgresql.conf"), &conf);
        if !self.hba.is_empty() {
            let usual = std::fs::read_to_string(data.join("pg_hba.conf")).expect("initdb wrote it");
            std::fs::write(data.join("pg_hba.conf"), self.hba + &usual).expect("the file is ours");
        }
        let child = start(&dir);
        let cluster = Cluster { dir, port, child, tls: self.tls.is_some() };
        cluster.wait_ready();
        cluster
    }
}

impl Cluster {
    /// A cluster with nothing special.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// A cluster that is said more about.
    pub fn builder<'a>() -> Builder<'a> {
        Builder::default()
    }

    /// A standby that streams from this cluster, and has all that is there now.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn standby(&self) -> Self {
        let dir = TempDir::new();
        process::give_to_postgres(dir.path());
        let data = dir.path().join("data");
        run(as_postgres(&bin("pg_basebackup"))
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--username", SUPERUSER])
            .arg("--host")
            .arg(self.dir.path())
            .args(["--port", &self.port.to_string(), "--pgdata"])
            .arg(&data));
        let port = process::free_port();
        let own = format!("\nport = {port}\nunix_socket_directories = '{}'\n", dir.path().display());
        append(&data.join("postgresql.conf"), &own);
        let child = start(&dir);
        let cluster = Self { dir, port, child, tls: self.tls };
        cluster.wait_ready();
        self.wait_replayed(&cluster);
        cluster
    }

    /// Waits until `standby` has replayed all that this cluster has written so far.
    ///
    /// # Panics
    /// If it never has.
    pub fn wait_replayed(&self, standby: &Self) {
        let written = self.value("SELECT pg_current_wal_flush_lsn()");
        wait::until_true("the standby to replay", || {
            standby.value(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")) == "t"
        });
    }

    /// Makes a standby the primary.
    ///
    /// # Panics
    /// If it does not become one.
    pub fn promote(&self) {
        assert_eq!(self.value("SELECT pg_promote()"), "t");
    }

    /// Its TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its TCP address.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The directory of its unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Whether it offers TLS.
    pub fn has_tls(&self) -> bool {
        self.tls
    }

    /// Where a client logs in as `user` directly.
    pub fn target(&self, user: &str, password: &str) -> Target {
        Target::tcp(self.address()).user(user).password(password).database(DATABASE)
    }

    /// Where the router's role logs in directly.
    pub fn app(&self) -> Target {
        self.target(APP, APP_PASSWORD)
    }

    /// A session of the superuser, over the unix socket.
    ///
    /// # Panics
    /// If it cannot be had.
    pub fn admin(&self) -> Raw {
        let target = Target::unix(self.dir.path().join(format!(".s.PGSQL.{}", self.port)));
        target.user(SUPERUSER).database(DATABASE).connect()
    }

    /// Runs statements as the superuser; the rows of the last, as text.
    ///
    /// # Panics
    /// If one fails.
    pub fn sql(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.admin().rows(sql)
    }

    /// The one value that a statement yields to the superuser.
    ///
    /// # Panics
    /// If it yields none.
    pub fn value(&self, sql: &str) -> String {
        self.admin().value(sql)
    }

    /// A libpq URL for `user`.
    pub fn url(&self, user: &str, password: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{DATABASE}", self.port)
    }

    /// Sends a signal, such as `STOP`, to the postmaster alone: its backends go on.
    pub fn signal_postmaster(&self, name: &str) {
        process::signal(&self.child, name);
    }

    /// Seconds of processor time that it has taken since it was started.
    pub fn processor_seconds(&self) -> f64 {
        process::processor_seconds(self.child.id())
    }

    /// Kills the postmaster as a machine's end would. Returns when nobody answers any more.
    pub fn kill9(&mut self) {
        // It makes no more children from here on.
        process::signal(&self.child, "STOP");
        let children = process::children(self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
        // They would notice by themselves, but for one that waits for what another held that has gone.
        for child in &children {
            let _ = Command::new("kill").args(["-KILL", &child.to_string()]).stderr(Stdio::null()).status();
        }
        wait::until_true("the backends to end", || children.iter().all(|child| !process::is_running(*child)));
    }

    /// Stops it as an administrator would, with `pg_ctl stop -m fast`.
    pub fn stop(&mut self) {
        process::end(&mut self.child, "INT");
    }

    /// Starts it again, on the same port with the same data.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_again(&mut self) {
        // After a kill the old shared memory may be in use for a moment yet.
        wait::until("the cluster to start again", || {
            self.child = start(&self.dir);
            loop {
                if self.answers() {
                    return Some(());
                }
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return None;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        });
    }

    /// Fast stop and start.
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Number of sessions of `user`, as the cluster sees them.
    pub fn sessions_of(&self, user: &str) -> usize {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{user}'");
        self.value(&sql).parse().expect("a count")
    }

    fn answers(&self) -> bool {
        let target = Target::unix(self.dir.path().join(format!(".s.PGSQL.{}", self.port)));
        target.user(SUPERUSER).database(DATABASE).try_connect().is_ok()
    }

    fn wait_ready(&self) {
        let end = std::time::Instant::now() + wait::DEADLINE;
        while !self.answers() {
            assert!(std::time::Instant::now() < end, "the cluster does not start:\n{}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        process::end(&mut self.child, "QUIT");
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- end of the log of the cluster on port {}", self.port);
            lines[lines.len().saturating_sub(15)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

fn start(dir: &TempDir) -> Child {
    let log = dir.path().join("log");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("the directory is ours");
    let data = dir.path().join("data");
    let mut command = process::command(&bin("postgres"), "QUIT", process::postgres_user());
    command.arg("-D").arg(&data).env("SWITCHYARD_TESTS_DATA", &data).current_dir("/");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
    process::spawn(command)
}

/// The directory of PostgreSQL's server programs: `PG_BIN`, or the newest that is installed.
///
/// # Panics
/// If there is none of version 15 or later.
pub fn bin(program: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("PG_BIN") {
            return dir.into();
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/pg-bin.sh");
        let output = Command::new("sh").arg(script).output().expect("sh runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    })
    .join(program)
}

/// The data directory that clusters are copied from: `initdb`, settings, roles, schema. Made once
/// and kept; several processes may make it at once, and the first to finish wins.
fn template() -> PathBuf {
    let mut hash = DefaultHasher::new();
    let version = Command::new(bin("postgres")).arg("--version").output().expect("postgres runs");
    (SCHEMA, CONF, HBA, &version.stdout).hash(&mut hash);
    let done = process::root().join(format!("template-{:016x}", hash.finish()));
    if !done.exists() {
        let dir = TempDir::new();
        process::give_to_postgres(dir.path());
        make_template(&dir);
        // Fails if another process was faster, whose work is as good.
        let _ = std::fs::rename(dir.path().join("data"), &done);
    }
    done
}

const CONF: &str = "
# Durability is not what is tested here.
fsync = off
full_page_writes = off
shared_buffers = 16MB
min_wal_size = 2MB
max_wal_size = 64MB
wal_level = logical
max_connections = 60
password_encryption = 'scram-sha-256'
log_min_messages = warning
log_connections = off
autovacuum = off
max_worker_processes = 4
jit = off
timezone = 'UTC'
";

const HBA: &str =
    "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";

fn make_template(dir: &TempDir) {
    let data = dir.path().join("data");
    let password = dir.write("password", SUPERUSER_PASSWORD);
    process::give_to_postgres(&password);
    run(as_postgres(&bin("initdb"))
        .args(["--no-sync", "--wal-segsize=1", "--locale=C", "--encoding=UTF8", "-A", "scram-sha-256"])
        .args(["-U", SUPERUSER, "--pwfile"])
        .arg(password)
        .arg("-D")
        .arg(&data));
    append(&data.join("postgresql.conf"), CONF);
    std::fs::write(data.join("pg_hba.conf"), HBA).expect("the file is ours");
    let port = process::free_port();
    let options = format!("-p {port} -c listen_addresses='' -k {}", dir.path().display());
    let control = |action: &[&str]| {
        run(as_postgres(&bin("pg_ctl"))
            .args(["-w", "-s", "-D"])
            .arg(&data)
            .args(action)
            .stdout(Stdio::null()));
    };
    let log = dir.path().join("log").display().to_string();
    control(&["start", "-o", &options, "-l", &log]);
    let schema = dir.write("schema.sql", SCHEMA);
    run(Command::new("psql")
        .args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            SUPERUSER,
            "-d",
            "postgres",
            "-p",
            &port.to_string(),
        ])
        .arg("-h")
        .arg(dir.path())
        .arg("-f")
        .arg(schema));
    control(&["stop", "-m", "fast"]);
}

fn as_postgres(program: &Path) -> Command {
    let mut command = process::command(program, "KILL", process::postgres_user());
    command.current_dir("/");
    command
}

fn append(path: &Path, text: &str) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).open(path).expect("the file is there");
    file.write_all(text.as_bytes()).expect("the file is ours");
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::null());
    let output = output.spawn().and_then(std::process::Child::wait_with_output).expect("the program runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
