//! Child processes that end with the test, however it ends.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{OnceLock, mpsc};

use crate::wait;

type Job = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts `command` from a thread that lives as long as this process. The kernel's "parent has
/// died" signal is sent when the *thread* that started a child ends, so tests' threads must not.
///
/// # Panics
/// If the command cannot be started.
pub fn spawn(command: Command) -> Child {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in queue {
                let _ = answer.send(command.spawn());
            }
        });
        jobs
    });
    let name = format!("{:?}", command.get_program());
    let (answer, child) = mpsc::channel();
    spawner.send((command, answer)).expect("the spawner lives as long as the process");
    let child = child.recv().expect("the spawner answers");
    child.unwrap_or_else(|e| panic!("cannot start {name}: {e}"))
}

/// A command that is sent `signal` when this process dies, run as `user` if one is given.
pub fn command(program: &Path, signal: &str, user: Option<&OsUser>) -> Command {
    if !Path::new("/usr/bin/setpriv").exists() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    if let Some(user) = user {
        command
            .args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid)])
            .arg("--clear-groups");
        command.env("HOME", "/").env("USER", &user.name);
    }
    command.args(["--pdeathsig", signal, "--"]).arg(program);
    command
}

/// Sends a signal, named as `kill` names it, to a process started here.
pub fn signal(child: &Child, signal: &str) {
    let _ = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
}

/// The field of a process's `stat` that has this number, counted from its state on.
fn stat(pid: u32, field: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything.
    Some(stat.rsplit_once(") ")?.1.split(' ').nth(field)?.to_owned())
}

/// The processes that one has started and that are still there.
pub fn children(of: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| stat(*pid, 1).is_some_and(|parent| parent == of.to_string())).collect()
}

/// Clock ticks in a second. // getconf CLK_TCK, the same on every Linux
const TICKS: f64 = 100.0;

/// Seconds of processor time that a process and all that it has started have taken, those that have ended included, if
/// they were waited for.
pub fn processor_seconds(pid: u32) -> f64 {
    // utime and stime, and the same of children that were waited for.
    let own = (11..15).filter_map(|field| stat(pid, field)?.parse::<f64>().ok());
    own.sum::<f64>() / TICKS + children(pid).into_iter().map(processor_seconds).sum::<f64>()
}

/// Whether a process is there, and not only waited for by who has started it.
pub fn is_running(pid: u32) -> bool {
    stat(pid, 0).is_some_and(|state| state != "Z")
}

/// Sends `first`, and SIGKILL if the process is still there after the deadline of waiting.
pub fn end(child: &mut Child, first: &str) {
    signal(child, first);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while matches!(child.try_wait(), Ok(None)) {
        if std::time::Instant::now() > end {
            let _ = child.kill();
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// An account of the operating system.
#[derive(Debug, Clone)]
pub struct OsUser {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// The account that PostgreSQL runs as, where we are root: it refuses to be root itself.
pub fn postgres_user() -> Option<&'static OsUser> {
    static USER: OnceLock<Option<OsUser>> = OnceLock::new();
    USER.get_or_init(|| {
        if uid() != 0 {
            return None;
        }
        let accounts = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd can be read");
        let find = |wanted: &str| {
            accounts.lines().find_map(|line| {
                let fields: Vec<_> = line.split(':').collect();
                let [name, _, uid, gid, ..] = fields[..] else { return None };
                let user =
                    || Some(OsUser { name: name.into(), uid: uid.parse().ok()?, gid: gid.parse().ok()? });
                (name == wanted).then(user).flatten()
            })
        };
        Some(find("postgres").or_else(|| find("nobody")).expect("an account for PostgreSQL"))
    })
    .as_ref()
}

/// The number of the account that we run as: that of what we make.
fn uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    static UID: OnceLock<u32> = OnceLock::new();
    *UID.get_or_init(|| {
        let probe = std::env::temp_dir().join(format!("switchyard-tests-whoami-{}", std::process::id()));
        std::fs::write(&probe, "").expect("the temporary directory is writable");
        let uid = std::fs::metadata(&probe).expect("it was just made").uid();
        let _ = std::fs::remove_file(&probe);
        uid
    })
}

/// Gives `path` to the account that PostgreSQL runs as.
///
/// # Panics
/// If that is not allowed.
pub fn give_to_postgres(path: &Path) {
    if let Some(user) = postgres_user() {
        chown(path, Some(user.uid), Some(user.gid)).expect("root may give files away");
    }
}

/// The directory that holds everything the harness makes. Short, as it holds unix sockets.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = std::env::temp_dir().join(format!("switchyard-tests-{}", uid()));
        std::fs::create_dir_all(&root).expect("the temporary directory is writable");
        sweep(&root);
        root
    })
}

/// Removes what test processes that were killed have left.
fn sweep(root: &Path) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("p").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
            && Path::new("/proc/self").exists()
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// A directory that is removed on drop.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes one. PostgreSQL's account may pass through it.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = root().join(format!("p{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary directory is writable");
        Self(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it and says where.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        // By way of a rename, as a reader may be looking at the old one.
        let draft = self.0.join(format!(".{name}"));
        std::fs::write(&draft, content).expect("the directory is ours");
        std::fs::rename(&draft, &path).expect("the directory is ours");
        path
    }
}

impl Default for TempDir {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if std::env::var_os("SWITCHYARD_TESTS_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A TCP port on loopback that nobody listens on. It is below the range from which the kernel
/// takes the local ports of outgoing connections, so it stays free until it is bound.
///
/// # Panics
/// If there is none.
pub fn free_port() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new();
    let mut attempt = 0_u64;
    wait::until("a free port", || {
        attempt += 1;
        let port = 12_000 + (random.hash_one((std::process::id(), attempt)) % 20_000) as u16;
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok().map(|_| port)
    })
}
