//! The router as a process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use crate::metrics::{self, Metrics};
use crate::process::{self, TempDir};
use crate::raw::Target;
use crate::wait;

/// What the router logs when it has taken a new configuration.
const RELOADED: &str = "configuration reloaded";
/// What the router logs when it keeps the old one.
const REFUSED: &str = "configuration not reloaded";

/// What the router logs when another process has taken over.
const HANDING_OVER: &str = "handing over";
/// What the router logs last before it serves.
const LISTENING_HTTP: &str = "listening for http";

/// How a process is started.
#[derive(Default)]
struct Start {
    /// The process to take over from.
    takeover: Option<u32>,
    /// It ends with its standard input, which ends with us; so do those that it starts.
    ends_with_stdin: bool,
    /// How much it logs, where that is not the usual.
    level: Option<&'static str>,
}

/// A process that another has taken the place of. Killed on drop.
pub struct OldRouter(Child);

impl OldRouter {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal, named as `kill` names it.
    pub fn signal(&self, signal: &str) {
        process::signal(&self.0, signal);
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Waits for it to end by itself.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_exit(&mut self) -> ExitStatus {
        wait::until("the old process to end", || self.0.try_wait().expect("it is our child"))
    }
}

impl Drop for OldRouter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running router. On drop it is ended, and the test fails if it had panicked.
pub struct Router {
    dir: TempDir,
    config: PathBuf,
    port: u16,
    http: u16,
    child: Child,
}

impl Router {
    /// Starts a router and waits until it is ready. `toml` is the configuration, in which
    /// `listen` and `http_listen` are added to the table `[router]`, which must come first.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start(toml: &str) -> Self {
        let router = Self::launch(toml);
        router.wait_ready();
        router
    }

    /// Starts a router without waiting.
    ///
    /// # Panics
    /// If it cannot be built or started.
    pub fn launch(toml: &str) -> Self {
        Self::launch_with(toml, None, None)
    }

    fn launch_with(toml: &str, files: Option<u32>, level: Option<&'static str>) -> Self {
        let dir = TempDir::new();
        let (port, http) = (process::free_port(), process::free_port());
        let config = dir.write("router.toml", &with_addresses(toml, dir.path(), port, http));
        let child = run(&config, &dir, files, &Start { level, ..Start::default() });
        Self { dir, config, port, http, child }
    }

    /// Starts a router whose successors, which it starts itself, end with it or with this process.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start_with_successors(toml: &str) -> Self {
        let dir = TempDir::new();
        let (port, http) = (process::free_port(), process::free_port());
        let config = dir.write("router.toml", &with_addresses(toml, dir.path(), port, http));
        let child = run(&config, &dir, None, &Start { ends_with_stdin: true, ..Start::default() });
        let router = Self { dir, config, port, http, child };
        router.wait_ready();
        router
    }

    /// Starts another process of the same configuration on the same addresses, which does not know
    /// of this one, and is this router from now on. Returns the old process.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_beside(&mut self) -> OldRouter {
        self.succeed(&Start::default())
    }

    /// Starts another process of the same configuration that takes over from this one. Returns the
    /// old process, which knows that it has been taken over from.
    ///
    /// # Panics
    /// If it does not.
    pub fn take_over(&mut self) -> OldRouter {
        let before = self.log().matches(HANDING_OVER).count();
        let old = self.succeed(&Start { takeover: Some(self.pid()), ..Start::default() });
        wait::until_true("the old process to hand over", || {
            self.log().matches(HANDING_OVER).count() > before
        });
        old
    }

    fn succeed(&mut self, start: &Start) -> OldRouter {
        let listening = self.log().matches(LISTENING_HTTP).count();
        let new = run(&self.config, &self.dir, None, start);
        let old = OldRouter(std::mem::replace(&mut self.child, new));
        wait::until_true("the new process to listen", || {
            assert!(self.is_running(), "the new process has ended:\n{}", self.log());
            self.log().matches(LISTENING_HTTP).count() > listening
        });
        old
    }

    /// Writes a new configuration without telling the router.
    pub fn write_config(&self, toml: &str) {
        self.dir.write("router.toml", &with_addresses(toml, self.dir.path(), self.port, self.http));
    }

    /// Starts a router that may have this many files open.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start_with_files(toml: &str, files: u32) -> Self {
        let router = Self::launch_with(toml, Some(files), None);
        router.wait_ready();
        router
    }

    /// Starts a router that logs at this level.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start_with_level(toml: &str, level: &'static str) -> Self {
        let router = Self::launch_with(toml, None, Some(level));
        router.wait_ready();
        router
    }

    /// What a router says that must not start: its output.
    ///
    /// # Panics
    /// If it does start.
    pub fn refused(toml: &str) -> String {
        let mut router = Self::launch(toml);
        let status = router.wait_exit();
        assert!(!status.success(), "the router ended without an error");
        router.log()
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Panics
    /// If it does not, or the router has ended.
    pub fn wait_ready(&self) {
        let pid = self.child.id();
        wait::until_true("the router to be ready", || {
            let gone = std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim().starts_with('Z')));
            assert!(!gone, "the router has ended:\n{}", self.log());
            metrics::get(self.http(), "/readyz").is_ok_and(|(status, _)| status == 200)
        });
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Where metrics and health are.
    pub fn http(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.http).into()
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(format!(".s.PGSQL.{}", self.port))
    }

    /// A target over TCP without user and password.
    pub fn target(&self) -> Target {
        Target::tcp(self.address())
    }

    /// A target over the unix socket without user and password.
    pub fn unix_target(&self) -> Target {
        Target::unix(self.socket())
    }

    /// Scrapes and reads `/metrics`.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn metrics(&self) -> Metrics {
        let (status, body) = metrics::get(self.http(), "/metrics").expect("the router answers");
        assert_eq!(status, 200);
        Metrics::parse(&body)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until the log holds `text`.
    ///
    /// # Panics
    /// If it never does.
    pub fn wait_log(&self, text: &str) {
        wait::until_true(&format!("`{text}` in the log"), || self.log().contains(text));
    }

    /// Sends a signal, named as `kill` names it.
    pub fn signal(&self, signal: &str) {
        process::signal(&self.child, signal);
    }

    /// Replaces the configuration and asks for a reload. Returns when the router has said that it
    /// reloaded or refused to, which is whether it did.
    ///
    /// # Panics
    /// If the router says neither.
    pub fn reload(&self, toml: &str) -> bool {
        let text = with_addresses(toml, self.dir.path(), self.port, self.http);
        self.dir.write("router.toml", &text);
        self.reload_files()
    }

    /// Asks for a reload of what is there.
    ///
    /// # Panics
    /// If the router says neither that it did nor that it did not.
    pub fn reload_files(&self) -> bool {
        let count = |text: &str| self.log().matches(text).count();
        let (ok, refused) = (count(RELOADED), count(REFUSED));
        self.signal("HUP");
        wait::until("the reload", || match () {
            () if count(RELOADED) > ok => Some(true),
            () if count(REFUSED) > refused => Some(false),
            () => None,
        })
    }

    /// Waits for the process to end by itself.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_exit(&mut self) -> ExitStatus {
        wait::until("the router to end", || self.child.try_wait().expect("it is our child"))
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it, as a machine's end would.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after its end, with the same configuration, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start_again(&mut self) {
        self.child = run(&self.config, &self.dir, None, &Start::default());
        self.wait_ready();
    }

    /// Open file descriptors of the process.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map(Iterator::count).unwrap_or(0)
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.memory(1)
    }

    /// Address space, in bytes.
    pub fn virtual_bytes(&self) -> u64 {
        self.memory(0)
    }

    fn memory(&self, field: usize) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).unwrap_or_default();
        let pages: u64 = statm.split(' ').nth(field).and_then(|p| p.parse().ok()).unwrap_or(0);
        pages * 4096
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        if self.is_running() {
            // Sessions that a test has left open are not worth the wait of a drain.
            process::signal(&self.child, "TERM");
            let end = Instant::now() + std::time::Duration::from_millis(300);
            while self.is_running() && Instant::now() < end {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            self.kill9();
        }
        let log = self.log();
        if std::thread::panicking() {
            if let Some(at) = log.find("panicked at") {
                eprintln!("--- THE ROUTER PANICKED\n{}", &log[at..].chars().take(400).collect::<String>());
            }
            eprintln!("--- log of the router (end)");
            let lines: Vec<_> = log.lines().collect();
            lines[lines.len().saturating_sub(60)..].iter().for_each(|line| eprintln!("{line}"));
        } else {
            assert!(!log.contains("panicked at"), "the router panicked:\n{log}");
        }
    }
}

fn with_addresses(toml: &str, dir: &Path, port: u16, http: u16) -> String {
    let listen = format!("listen = [\"127.0.0.1:{port}\", \"unix:{}:{port}\"]\n", dir.display());
    let http = format!("http_listen = \"127.0.0.1:{http}\"\n");
    let rest = toml.strip_prefix("[router]\n").unwrap_or_else(|| panic!("[router] must come first:\n{toml}"));
    format!("[router]\n{listen}{http}{rest}")
}

fn run(config: &Path, dir: &TempDir, files: Option<u32>, start: &Start) -> Child {
    let log = dir.path().join("log");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("the directory is ours");
    let mut command = match files {
        None => process::command(binary(), "KILL", None),
        Some(files) => {
            let mut command = process::command(Path::new("sh"), "KILL", None);
            command.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")]).arg(binary());
            command
        }
    };
    command.arg("router").arg("--config").arg(config);
    if let Some(old) = start.takeover {
        command.arg("--takeover").arg(old.to_string());
    }
    if let Some(level) = start.level {
        command.env("RUST_LOG", level);
    } else if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", "debug");
    }
    command.env("RUST_BACKTRACE", "1").env("RUST_LIB_BACKTRACE", "0");
    if start.ends_with_stdin {
        command.env("SWITCHYARD_ENDS_WITH_STDIN", "1").stdin(Stdio::piped());
    } else {
        command.stdin(Stdio::null());
    }
    command.stdout(log.try_clone().expect("a file")).stderr(log);
    process::spawn(command)
}

/// The program under test: `SWITCHYARD_BIN`, or the one in the target directory that this very
/// test was built into, which is built first if it is not there.
///
/// # Panics
/// If it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("SWITCHYARD_BIN") {
            return path.into();
        }
        let test = std::env::current_exe().expect("this program has a path");
        // target/<profile>/deps/<test>
        let profile = test.ancestors().nth(2).expect("tests are built into deps").to_owned();
        let path = profile.join("switchyard");
        if !path.exists() {
            let release = profile.ends_with("release").then_some("--release");
            let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
            let status = Command::new(cargo).args(["build", "-p", "switchyard"]).args(release).status();
            assert!(status.is_ok_and(|s| s.success()), "the program cannot be built");
        }
        path
    })
}
