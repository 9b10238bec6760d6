//! The console: what operators and their tools reach by connecting to a database that there is not.
//!
//! It speaks both query protocols, answers PgBouncer's SHOW commands with PgBouncer's columns, so that what
//! reads PgBouncer reads us, and has commands of its own. [`command`] says what may be asked and by whom, [`show`]
//! what is answered, [`act`] what is done. Sessions of the console are apart from those of tenants: they have places
//! of their own, and nothing here is on the path of a query.

mod act;
mod command;
mod lexer;
mod periods;
mod protocol;
mod select;
mod session;
mod show;
mod table;
mod time;
mod view;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use parking_lot::Mutex;
use switchyard_config::topology::{ConsoleRole, User};
use switchyard_wire::build::{self, BuildError};
use switchyard_wire::error::{ErrorResponse, sqlstate};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::cancel::key::CancelKey;
use crate::session::handle::ClientFacts;
use crate::shared::Shared;
use crate::stats::{Count, Rejected};
pub(crate) use session::ConsoleSession;

/// What SHOW VERSION and the parameter `server_version` say that we are like: the version of PgBouncer whose columns
/// these are. Tools choose by it what they ask.
const PGBOUNCER: &str = "1.25.2";

/// The name of the console where PgBouncer's tools expect one: in rows about itself.
const OWN_DATABASE: &str = "pgbouncer";

/// What is reported at login. // src/varcache.c and src/admin.c of PgBouncer, admin_pre_login
const PARAMETERS: [(&str, &str); 7] = [
    ("server_version", "1.25.2/bouncer"),
    ("client_encoding", "UTF8"),
    ("server_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "GMT"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "on"),
];

/// All that the console keeps between its sessions.
#[derive(Default)]
pub(crate) struct ConsoleState {
    /// By the place of their cancel keys, as those of tenants.
    sessions: DashMap<u64, Arc<ConsoleHandle>>,
    places: AtomicUsize,
    /// How the process is told to reload or to end; not there while nobody would obey.
    control: OnceLock<mpsc::UnboundedSender<Control>>,
    periods: Mutex<periods::Periods>,
    counts: Counts,
}

/// What the console's own sessions have done.
#[derive(Default)]
struct Counts {
    logins: Count,
    commands: Count,
    command_us: Count,
    bytes_in: Count,
    bytes_out: Count,
}

/// What a process is asked to do.
pub(crate) enum Control {
    /// Read the configuration again, and say whether that went well.
    Reload(oneshot::Sender<Result<(), String>>),
    /// End.
    Shutdown(Shutdown),
}

/// How a process is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shutdown {
    /// Now.
    Now,
    /// When the transactions have ended, or at the drain's deadline: as on SIGTERM.
    WaitForServers,
    /// When all clients have left by themselves. None is let in meanwhile.
    WaitForClients,
}

/// A session of the console, as others see it.
struct ConsoleHandle {
    /// What the client has as the backend's process id and secret.
    key: CancelKey,
    user: String,
    facts: ClientFacts,
    /// Somebody asks to cancel what it waits for.
    cancel: Notify,
    /// Seconds of [`crate::clock`] of its last command.
    last: AtomicU32,
}

impl ConsoleState {
    /// Where the process listens for what it is asked to do. Once.
    pub(crate) fn listen(&self) -> mpsc::UnboundedReceiver<Control> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = self.control.set(sender);
        receiver
    }

    /// A cancel request. True if it was for a session of the console, whose place would be this.
    pub(crate) fn cancel(&self, place: u64, pid: u32, secret: &[u8]) -> bool {
        let session = self.sessions.get(&place).filter(|session| session.key.is(pid, secret));
        session.inspect(|session| session.cancel.notify_waiters()).is_some()
    }

    /// Called about once a second.
    pub(crate) fn tick(&self, shared: &Shared) {
        self.periods.lock().tick(shared);
    }

    fn ask(&self, control: Control) -> Result<(), ErrorResponse> {
        let nobody =
            || ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, "this process cannot be told so");
        self.control.get().ok_or_else(nobody)?.send(control).map_err(|_| nobody())
    }
}

/// What who has proven to be `user` is told, if that user has no role in the console.
pub(crate) fn no_role(user: &str) -> ErrorResponse {
    ErrorResponse::fatal(sqlstate::INSUFFICIENT_PRIVILEGE, format!("user \"{user}\" may not use the console"))
        .hint("This database is the router's console. Roles in it are given by `console` of a user.")
}

/// A place among the sessions of the console; given back when dropped.
pub(crate) struct ConsolePlace {
    shared: Arc<Shared>,
    handle: Arc<ConsoleHandle>,
}

/// A place for a session of the console. The last ones are for admins.
pub(crate) fn take_place(
    shared: &Arc<Shared>,
    user: &User,
    role: ConsoleRole,
    facts: ClientFacts,
    long_key: bool,
) -> Result<ConsolePlace, ErrorResponse> {
    let internal = || ErrorResponse::fatal(sqlstate::INTERNAL, "internal error");
    let key = shared.next_key(long_key, None).ok_or_else(internal)?;
    let console = &shared.console;
    let settings = shared.settings().console.clone();
    let for_admins = if role == ConsoleRole::Admin { 0 } else { settings.admin_sessions };
    if console.places.fetch_add(1, Ordering::AcqRel) >= settings.sessions.saturating_sub(for_admins) {
        console.places.fetch_sub(1, Ordering::AcqRel);
        shared.stats.reject(Rejected::Clients);
        return Err(ErrorResponse::fatal(
            sqlstate::TOO_MANY_CONNECTIONS,
            "sorry, too many sessions of the console already",
        )
        .hint("The limit is `sessions` in [console] of the configuration."));
    }
    let last = AtomicU32::new(crate::clock::seconds());
    let handle = ConsoleHandle { key, user: user.name.clone(), facts, cancel: Notify::new(), last };
    // From here on dropping the place gives it back.
    let place = ConsolePlace { shared: shared.clone(), handle: Arc::new(handle) };
    console.sessions.insert(place.key(), place.handle.clone());
    console.counts.logins.add(1);
    Ok(place)
}

impl ConsolePlace {
    /// Appends what tells the client, who has been let in, what it finds.
    pub(crate) fn welcome(&self, out: &mut Vec<u8>) -> Result<(), BuildError> {
        for (name, value) in PARAMETERS {
            build::parameter_status(out, name, value)?;
        }
        build::backend_key_data(out, self.handle.key.pid(), self.handle.key.secret())?;
        build::ready_for_query(out, b'I');
        Ok(())
    }

    /// Where it stands among the sessions.
    fn key(&self) -> u64 {
        let key = &self.handle.key;
        self.shared.keys.place(key.pid(), key.secret())
    }

    /// What the user may do now: it may have been taken away since login.
    fn role(&self) -> Option<ConsoleRole> {
        self.shared.topology().users.get(&self.handle.user)?.methods.console
    }
}

impl Drop for ConsolePlace {
    fn drop(&mut self) {
        self.shared.console.sessions.remove(&self.key());
        self.shared.console.places.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a session is called in the tables: its number, as far as that goes into the type that tools expect. It comes round
/// after 2^31 sessions.
fn client_id(session: u64) -> u32 {
    (session & 0x7fff_ffff) as u32
}

/// Text that a tenant or a stranger chose, fit for a message.
fn shown(text: &str) -> String {
    text.chars().take(128).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Prepared statements and portals by the client's names.
type Named<T> = HashMap<Vec<u8>, T>;
