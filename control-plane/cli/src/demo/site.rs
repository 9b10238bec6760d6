//! What the demo has made: a directory and processes, all gone at the end.

use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;
use switchyard_catalog::disk::write_private;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::stack::random;

/// How often processes are looked at.
const WATCH: Duration = Duration::from_millis(200);

/// Longest path of a unix socket's directory: 107 bytes (`sun_path`) less the socket's name.
const MAX_SOCKET_DIR_BYTES: usize = 80;

/// How a process is asked to end, and how long it may take before it is made to.
#[derive(Clone, Copy)]
pub(super) struct Ending {
    signal: Signal,
    patience: Duration,
}

/// For our own processes.
pub(super) const TERMINATE: Ending = Ending { signal: Signal::TERM, patience: Duration::from_secs(8) };

/// For PostgreSQL, which then ends its sessions at once ("fast shutdown").
pub(super) const FAST: Ending = Ending { signal: Signal::INT, patience: Duration::from_secs(10) };

struct Process {
    name: String,
    child: Child,
    ending: Ending,
    reported: bool,
}

/// The account that PostgreSQL runs as, where that is not ourselves: it refuses to run as root.
#[derive(Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

/// The demo's directory and processes. [`Self::take_down`] ends it; a drop without that kills.
pub(super) struct Site {
    dir: PathBuf,
    account: Option<Account>,
    processes: Vec<Process>,
    state: Option<PathBuf>,
}

impl Site {
    pub(super) fn new() -> anyhow::Result<Self> {
        let account = if geteuid().is_root() { Some(account()?) } else { None };
        // The id says whose it is, should one ever be left behind.
        let name = format!("switchyard-demo-{}-{}", random(6)?, std::process::id());
        let mut dir = std::env::temp_dir().join(&name);
        // Root's own temporary directory may be closed to PostgreSQL's account.
        if account.is_some() || dir.as_os_str().len() > MAX_SOCKET_DIR_BYTES {
            dir = Path::new("/tmp").join(name);
        }
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let site = Self { dir, account, processes: Vec::new(), state: None };
        // Others may pass through, to what is theirs, and see nothing.
        let mode = if account.is_some() { 0o711 } else { 0o700 };
        fs::set_permissions(&site.dir, Permissions::from_mode(mode))?;
        site.own_dir("private")?;
        Ok(site)
    }

    /// A file for our eyes only.
    pub(super) fn private(&self, name: &str) -> PathBuf {
        self.dir.join("private").join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.private(name);
        write_private(&path, text.as_bytes()).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    fn own_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        fs::set_permissions(&path, Permissions::from_mode(0o700))?;
        Ok(path)
    }

    /// A directory that PostgreSQL's account owns.
    pub(super) fn postgres_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.own_dir(name)?;
        self.give(&path)?;
        Ok(path)
    }

    /// Gives a file to PostgreSQL's account.
    pub(super) fn give(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(account) = self.account {
            chown(path, Some(account.uid), Some(account.gid)).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// A command that runs as PostgreSQL's account, apart from the terminal's signals.
    pub(super) fn as_postgres(&self, program: &Path, dir: &Path) -> Command {
        let mut command = Command::new(program);
        // initdb and postgres complain of settings and directories that are not theirs.
        command.current_dir(dir).env_remove("PGDATA").env("LC_ALL", "C").stdin(Stdio::null());
        command.process_group(0).kill_on_drop(true);
        if let Some(account) = self.account {
            command.gid(account.gid).uid(account.uid);
        }
        command
    }

    /// Starts a process that lives as long as the demo, and returns its id. Its log goes to a file.
    pub(super) fn start(&mut self, name: &str, mut command: Command, ending: Ending) -> anyhow::Result<u32> {
        let path = self.log(name);
        let log = File::create(&path).with_context(|| path.display().to_string())?;
        command.stdout(log.try_clone()?).stderr(log).process_group(0).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        let pid = child.id().ok_or_else(|| anyhow!("{name} has no id"))?;
        self.processes.push(Process { name: name.to_owned(), child, ending, reported: false });
        Ok(pid)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.private(&format!("{name}.log"))
    }

    /// The id of a process.
    pub(super) fn pid(&self, name: &str) -> Option<u32> {
        self.processes.iter().find(|p| p.name == name)?.child.id()
    }

    /// Fails if any process has ended.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        for i in 0..self.processes.len() {
            let process = &mut self.processes[i];
            if let Some(status) = process.child.try_wait()? {
                let name = process.name.clone();
                bail!("{name} has ended ({status}); its log ends with:\n{}", self.last_of_log(&name));
            }
        }
        Ok(())
    }

    fn last_of_log(&self, name: &str) -> String {
        let text = fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Watches until a process fails. One that somebody stopped, to see what happens without it,
    /// is only told of.
    pub(super) async fn watch(&mut self) -> anyhow::Result<()> {
        loop {
            for i in 0..self.processes.len() {
                let process = &mut self.processes[i];
                if process.reported {
                    continue;
                }
                let Some(status) = process.child.try_wait()? else { continue };
                process.reported = true;
                let name = process.name.clone();
                if !was_stopped(status) {
                    bail!("{name} has failed ({status}); its log ends with:\n{}", self.last_of_log(&name));
                }
                eprintln!("{name} was stopped by somebody ({status}); all else goes on");
            }
            sleep(WATCH).await;
        }
    }

    /// Writes the state, whole or not at all. It is removed at the end.
    pub(super) fn write_state(&mut self, path: &Path, state: &Value) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(state)?;
        write_private(path, format!("{text}\n").as_bytes()).with_context(|| path.display().to_string())?;
        self.state = Some(path.to_owned());
        Ok(())
    }

    /// Ends the processes, the last one first, and removes what was made.
    pub(super) async fn take_down(mut self) {
        if let Some(path) = self.state.take() {
            let _ = fs::remove_file(path);
        }
        while let Some(process) = self.processes.pop() {
            let ending = process.ending.signal;
            // Those that are ended alike have nothing to wait for from each other.
            let mut batch = vec![process];
            while self.processes.last().is_some_and(|p| p.ending.signal == ending) {
                batch.extend(self.processes.pop());
            }
            for process in &batch {
                process.signal();
            }
            for process in batch {
                process.ended().await;
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Killed by `kill_on_drop`, unless they were ended in good order.
        self.processes.clear();
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => eprintln!("{} stays: {e}", self.dir.display()),
            _ => {}
        }
    }
}

impl Process {
    fn signal(&self) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            let _ = kill_process(pid, self.ending.signal);
        }
    }

    async fn ended(mut self) {
        if timeout(self.ending.patience, self.child.wait()).await.is_err() {
            eprintln!("{} does not end and is killed", self.name);
            let _ = self.child.kill().await;
        }
    }
}

/// Whether a process was stopped on purpose: killed by hand, or told to end in good order.
fn was_stopped(status: ExitStatus) -> bool {
    let crashes = [Signal::SEGV, Signal::ABORT, Signal::BUS, Signal::ILL];
    match status.signal() {
        Some(signal) => !crashes.iter().any(|c| c.as_raw() == signal),
        None => status.success(),
    }
}

/// `postgres`, or else `nobody`.
fn account() -> anyhow::Result<Account> {
    let passwd = fs::read_to_string("/etc/passwd").context("/etc/passwd")?;
    let of = |name: &str| {
        let line = passwd.lines().find(|l| l.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some(Account { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    };
    of("postgres")
        .or_else(|| of("nobody"))
        .context("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`")
}
