//! PostgreSQL clusters.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, NoTls};

use super::site::{FAST, Site};
use super::stack::{free_port, random};

/// The oldest version that does.
const MIN_VERSION: u32 = 15;

/// How long a cluster may take to accept connections.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// PostgreSQL's programs.
pub(super) struct Programs {
    dir: PathBuf,
    /// As `postgres --version` says.
    pub(super) version: String,
}

/// A cluster that runs.
pub(super) struct Cluster {
    /// Its name.
    pub(super) name: String,
    /// Its port on 127.0.0.1.
    pub(super) port: u16,
    /// Password of its superuser `postgres`.
    /// The superuser's.
    pub(super) password: String,
}

impl Programs {
    /// The newest programs on this machine, or those that `PG_BIN` names.
    pub(super) async fn find() -> anyhow::Result<Self> {
        let mut best: Option<(u32, Self)> = None;
        for dir in candidates() {
            if !dir.join("initdb").is_file() {
                continue;
            }
            let Ok(output) = Command::new(dir.join("postgres")).arg("--version").output().await else {
                continue;
            };
            let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let major =
                version.split_whitespace().nth(2).and_then(|v| v.split(|c: char| !c.is_ascii_digit()).next());
            let Some(major) = major.and_then(|m| m.parse().ok()).filter(|m| *m >= MIN_VERSION) else {
                continue;
            };
            let chosen = std::env::var_os("PG_BIN").is_some_and(|d| Path::new(&d) == dir);
            if chosen || best.as_ref().is_none_or(|(found, _)| *found < major) {
                best = Some((major, Self { dir, version }));
            }
            if chosen {
                break;
            }
        }
        best.map(|(_, programs)| programs).with_context(|| {
            format!(
                "no PostgreSQL server of version {MIN_VERSION} or later found; scripts/install-postgres.sh \
                 installs one, or set PG_BIN to the directory of initdb and postgres"
            )
        })
    }

    fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = std::env::var_os("PG_BIN").map(PathBuf::from).into_iter().collect();
    let below = |parent: &str, prefix: &str, rest: &str| {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        let named = entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
        named.map(|e| e.path().join(rest)).collect::<Vec<_>>()
    };
    dirs.extend(below("/usr/lib/postgresql", "", "bin"));
    dirs.extend(below("/usr", "pgsql-", "bin"));
    dirs.extend(below("/usr/libexec", "postgresql", ""));
    dirs.extend(below("/opt/homebrew/opt", "postgresql@", "bin"));
    dirs.extend(below("/usr/local/opt", "postgresql@", "bin"));
    dirs.push("/usr/local/pgsql/bin".into());
    dirs.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect::<Vec<_>>());
    dirs
}

/// Makes a cluster and starts it; `connections` is its `max_connections`.
pub(super) async fn start(
    site: &mut Site,
    programs: &Programs,
    name: &str,
    connections: u32,
) -> anyhow::Result<Cluster> {
    let dir = site.postgres_dir(name)?;
    let password = random(18)?;
    initialise(site, programs, &dir, &password).await?;
    let port = free_port()?;
    // `fsync` off: nothing of a demo must survive a crash of the machine.
    let settings = format!(
        "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\n\
         unix_socket_permissions = 0700\nmax_connections = {connections}\nshared_buffers = 64MB\n\
         fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n\
         wal_level = logical\nmax_replication_slots = 20\nmax_wal_senders = 20\n\
         logging_collector = off\nlog_destination = stderr\n",
        dir.display()
    );
    let conf = dir.join("data/postgresql.conf");
    let before = fs::read_to_string(&conf).with_context(|| conf.display().to_string())?;
    fs::write(&conf, before + &settings).with_context(|| conf.display().to_string())?;
    let postgres = programs.program("postgres");
    let mut command = if ends_with_parent().await {
        let mut setpriv = site.as_postgres(Path::new("setpriv"), &dir);
        setpriv.args(["--pdeathsig", "INT", "--"]).arg(postgres);
        setpriv
    } else {
        site.as_postgres(&postgres, &dir)
    };
    command.arg("-D").arg(dir.join("data"));
    site.start(name, command, FAST)?;
    let cluster = Cluster { name: name.to_owned(), port, password };
    cluster.wait(site).await?;
    Ok(cluster)
}

/// Whether `setpriv` can have the kernel stop a cluster when the demo is killed. The kernel looks
/// at the thread that started it, which is the main thread here.
async fn ends_with_parent() -> bool {
    let mut probe = Command::new("setpriv");
    probe
        .args(["--pdeathsig", "INT", "--", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    probe.status().await.is_ok_and(|s| s.success())
}

async fn initialise(site: &Site, programs: &Programs, dir: &Path, password: &str) -> anyhow::Result<()> {
    let secret = dir.join("password");
    switchyard_catalog::disk::write_private(&secret, password.as_bytes())?;
    site.give(&secret)?;
    let mut initdb = site.as_postgres(&programs.program("initdb"), dir);
    initdb.args([
        "--auth=scram-sha-256",
        "--username=postgres",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
    ]);
    initdb.arg("-D").arg(dir.join("data")).arg("--pwfile").arg(&secret);
    let output = initdb.stdout(Stdio::piped()).stderr(Stdio::piped()).output().await.context("initdb")?;
    fs::remove_file(&secret)?;
    if !output.status.success() {
        bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

impl Cluster {
    /// The superuser and its password, for what moves tenants.
    pub(super) fn superuser(&self) -> (&str, &str) {
        ("postgres", &self.password)
    }

    /// The URL of a database as its superuser.
    pub(super) fn url(&self, database: &str) -> String {
        self.url_of("postgres", &self.password, database)
    }

    /// The URL of a database as somebody else.
    pub(super) fn url_of(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    async fn wait(&self, site: &mut Site) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            site.check()?;
            match connect(&self.url("postgres")).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("{} does not accept connections", self.name)));
                }
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// Connects, without TLS: everything is on this machine.
pub(super) async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
