//! A connection to a shard, and what it carries.

pub(crate) mod connect;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use switchyard_config::topology::{Endpoint, Shard};

use crate::context::Wishes;
use crate::seal::ServerSeal;
use crate::server::connect::Target;
use crate::statements::ServerStatements;
use crate::stream::ServerStream;
use crate::tls::ShardTlsContext;

/// Which connections of a shard can serve a session at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Route {
    /// The database.
    pub(crate) database: Arc<str>,
    /// The login: 0 is the shard's own, others are known to [`crate::logins::Logins`].
    pub(crate) login: u64,
}

/// What was left on a connection.
#[derive(Debug, Clone)]
pub(crate) struct Carried {
    /// Id of the tenant context; 0 is a clean connection.
    pub(crate) context: u64,
    /// What the last session asked for.
    pub(crate) wishes: Arc<Wishes>,
    /// The last session changed something that is neither context nor wish.
    pub(crate) dirty: bool,
    /// The tenant's own context may have been changed by the tenant; it must be set again.
    pub(crate) lost: bool,
    /// The last session.
    pub(crate) session: u64,
}

/// Beside their count: a cancel request was sent that nobody has seen arrive.
const IN_DOUBT: u32 = 1 << 31;

/// What is needed to reach a connection from elsewhere, to cancel its query.
pub(crate) struct ServerIdentity {
    /// Never used twice in the life of a process.
    pub(crate) id: u64,
    pub(crate) shard: Arc<Shard>,
    /// The host that it is a connection to, by the topology of the time when it was made.
    pub(crate) endpoint: Endpoint,
    /// TLS toward that host.
    pub(crate) tls: Arc<ShardTlsContext>,
    pub(crate) pid: u32,
    pub(crate) key: Box<[u8]>,
    /// The voice of the tenant that it serves, or served last; 0 is none. For hubs.
    pub(crate) voice: AtomicU64,
    /// A hub has been told that it serves that tenant, by others than itself.
    pub(crate) told: AtomicBool,
    /// The role it is logged in as.
    pub(crate) role: String,
    pub(crate) socket: SocketFacts,
    /// When it was made.
    pub(crate) made: Instant,
    /// The session that has it; 0 if none has.
    holder: AtomicU64,
    /// Seconds of [`crate::clock`] when it was last lent.
    lent_at: AtomicU32,
    /// Statements prepared on it when it last came back.
    statements: AtomicU32,
    /// Cancel requests under way. Until they have arrived, the connection must not serve anybody
    /// else: a late one would hit a stranger's query.
    cancels: AtomicU32,
}

/// What the ends of a socket are, for those who look at it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SocketFacts {
    /// None on a unix socket.
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) local: Option<SocketAddr>,
    /// Version and cipher suite.
    pub(crate) tls: Option<Box<str>>,
}

impl ServerIdentity {
    pub(crate) fn new(target: &Target, role: String, pid: u32, key: Box<[u8]>, socket: SocketFacts) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self {
            id: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            shard: target.shard.clone(),
            endpoint: target.endpoint.clone(),
            tls: target.tls.clone(),
            pid,
            key,
            role,
            socket,
            made: Instant::now(),
            holder: AtomicU64::new(0),
            lent_at: AtomicU32::new(crate::clock::seconds()),
            statements: AtomicU32::new(0),
            voice: AtomicU64::new(0),
            told: AtomicBool::new(false),
            cancels: AtomicU32::new(0),
        }
    }

    /// The pool lends it to this session. Called under the pool's lock.
    #[inline]
    pub(crate) fn lent(&self, to: u64) {
        self.holder.store(to, Ordering::Relaxed);
        self.lent_at.store(crate::clock::seconds(), Ordering::Relaxed);
    }

    /// It is back, with so many statements prepared on it. Called under the pool's lock.
    #[inline]
    pub(crate) fn came_back(&self, statements: usize) {
        self.holder.store(0, Ordering::Relaxed);
        self.statements.store(statements as u32, Ordering::Relaxed);
    }

    /// The session that has it; 0 if none has.
    pub(crate) fn holder(&self) -> u64 {
        self.holder.load(Ordering::Relaxed)
    }

    /// Seconds since it was lent last, or made.
    pub(crate) fn seconds_since_lent(&self) -> u32 {
        crate::clock::seconds().saturating_sub(self.lent_at.load(Ordering::Relaxed))
    }

    /// Statements prepared on it when it last came back.
    pub(crate) fn statements(&self) -> u32 {
        self.statements.load(Ordering::Relaxed)
    }

    /// Cancel requests under way to it.
    pub(crate) fn cancels(&self) -> u32 {
        self.cancels.load(Ordering::Relaxed)
    }

    pub(crate) fn cancel_begins(&self) {
        self.cancels.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn cancel_ends(&self) {
        self.cancels.fetch_sub(1, Ordering::AcqRel);
    }

    /// A request may reach the server at any time from now on.
    pub(crate) fn cancel_is_in_doubt(&self) {
        self.cancels.fetch_or(IN_DOUBT, Ordering::AcqRel);
    }

    /// Whether a cancel request is on its way, or may be.
    #[inline]
    pub(crate) fn may_be_canceled(&self) -> bool {
        self.cancels.load(Ordering::Acquire) != 0
    }

    pub(crate) fn is_being_canceled(&self) -> bool {
        self.cancels.load(Ordering::Acquire) & !IN_DOUBT != 0
    }
}

/// The parameter by which a server tells that it is a standby, as it stands in ParameterStatus.
const IN_HOT_STANDBY: &[u8] = b"in_hot_standby\0";

/// Whose unnamed statement a connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnnamedOf {
    /// Id of the session.
    pub(crate) session: u64,
    /// Which of all that the session had, or that it has none, see [`crate::statements::ClientStatements`].
    pub(crate) serial: u64,
}

/// In [`Server::unnamed_of`]: there may be an unnamed statement, and no session may find it. It is
/// the router's own, or one of which nobody knows whether it was made.
pub(crate) const UNNAMED_OF_NOBODY: UnnamedOf = UnnamedOf { session: u64::MAX, serial: 0 };

/// In [`Server::sequences_of`]: more than one session.
pub(crate) const SEQUENCES_OF_MANY: u64 = u64::MAX;

/// A connection to a shard. It is lent to one session at a time, and comes back to the pool only
/// through [`crate::pool::Pool::give_back`], which decides whether it may be used again.
pub(crate) struct Server {
    pub(crate) stream: ServerStream,
    pub(crate) identity: Arc<ServerIdentity>,
    pub(crate) route: Route,
    /// Its place among the pool's connections.
    pub(crate) place: crate::pool::ServerPlace,
    pub(crate) carried: Carried,
    /// The voice of the tenant that it serves, or served last.
    pub(crate) voice: Option<Arc<crate::notifications::voice::Voice>>,
    /// The generation with which it has announced that tenant to hubs; 0 is not at all.
    pub(crate) announced: u64,
    /// It has said that it serves that tenant, to whoever listens, and not taken it back.
    pub(crate) claimed: bool,
    pub(crate) statements: ServerStatements,
    /// What its session has prepared by SQL here.
    pub(crate) sql_names: std::collections::HashSet<String>,
    /// Session whose unnamed statement it has, or that has found none, and which of the session's that is; else
    /// [`UNNAMED_OF_NOBODY`].
    pub(crate) unnamed_of: UnnamedOf,
    /// The only session that may have called `nextval` here since `currval` and `lastval` were forgotten; 0 if none has, or
    /// [`SEQUENCES_OF_MANY`].
    pub(crate) sequences_of: u64,
    /// Its place in the shard's list of server processes, where contexts are sealed.
    pub(crate) seal: Option<ServerSeal>,
    /// Whether it has been asked for: the router had a key when it connected.
    pub(crate) asked_for_seal: bool,
    /// Worker thread whose runtime watches the socket.
    pub(crate) home: usize,
    /// Since when nobody has used it, where it was only probed since.
    pub(crate) idle_since: Option<Instant>,
    /// When it is to be closed for its age.
    pub(crate) expires: Instant,
    /// A session has set when it is to end by itself: it is not used after that session.
    pub(crate) short_lived: bool,
    /// Something was read that nobody asked for, or it ended, or it is in the middle of something.
    pub(crate) broken: bool,
}

impl Server {
    /// What it is left with after a reset: a clean connection, its statements gone.
    pub(crate) fn was_cleaned(&mut self) {
        self.statements.clear();
        self.sql_names.clear();
        self.unnamed_of = UNNAMED_OF_NOBODY;
        self.sequences_of = 0;
        self.carried.dirty = false;
    }

    /// Reads what has arrived while nobody used it. True if it is still good: nothing came, or
    /// only what a server may say at any time (a notice, a parameter, a notification).
    pub(crate) fn is_alive(&mut self) -> bool {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        // Nearly always there is nothing, and no reason to have room for much of it.
        let mut first = [0_u8; 64];
        match self.stream.poll_read(&mut cx, &mut first) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(Err(_) | Ok(0)) => false,
            std::task::Poll::Ready(Ok(n)) => self.has_said_nothing_bad(&mut cx, &first[..n]),
        }
    }

    /// The same, of one that has said something, which begins with `first`.
    #[cold]
    fn has_said_nothing_bad(&mut self, cx: &mut std::task::Context<'_>, first: &[u8]) -> bool {
        use switchyard_wire::frame::{self, backend};
        let mut buf = [0_u8; 4096];
        let mut held = first.len();
        buf[..held].copy_from_slice(first);
        loop {
            let mut at = 0;
            while let Ok(Some(header)) = frame::header(&buf[at..held]) {
                let harmless =
                    matches!(header.tag, backend::NOTICE | backend::PARAMETER_STATUS | backend::NOTIFICATION);
                if !harmless || header.len > buf.len() {
                    return false;
                }
                if header.tag == backend::PARAMETER_STATUS {
                    if buf[at..held].windows(IN_HOT_STANDBY.len()).any(|w| w == IN_HOT_STANDBY) {
                        // It was promoted, or is a standby now: what it is must be found out anew.
                        return false;
                    }
                    // A setting was changed under it (a reload of the server's configuration).
                    tracing::debug!(shard = %self.identity.shard.name, "shard changed a parameter");
                }
                if at + header.len > held {
                    break;
                }
                at += header.len;
            }
            buf.copy_within(at..held, 0);
            held -= at;
            if held == buf.len() {
                return false;
            }
            match self.stream.poll_read(cx, &mut buf[held..]) {
                std::task::Poll::Pending => return held == 0,
                std::task::Poll::Ready(Err(_) | Ok(0)) => return false,
                std::task::Poll::Ready(Ok(n)) => held += n,
            }
        }
    }
}

/// Longest that a connection is given to answer what nobody waits for.
const FINISH: std::time::Duration = std::time::Duration::from_secs(5);

/// Most bytes of such an answer.
const FINISH_BYTES: usize = 64 * 1024;

/// Ends the transaction that a session has left open, so that the connection can be used again.
/// What does not go by the book marks it broken.
pub(crate) async fn roll_back(server: &mut Server) {
    let mut out = Vec::new();
    // Whatever the transaction has set beside its rows is unknown.
    server.carried.dirty = true;
    match switchyard_wire::build::query(&mut out, b"ROLLBACK") {
        Ok(()) => {
            let _ = finish(server, &out, 1).await;
        }
        Err(_) => server.broken = true,
    }
}

/// Takes away all that the last session has left: locks, temporary tables, settings, the context. A
/// limit of the session's on the time of statements could end it, so that limit goes first.
pub(crate) async fn clean(server: &mut Server) {
    let mut out = Vec::new();
    let made = [&b"SET statement_timeout = 0"[..], b"DISCARD ALL"]
        .into_iter()
        .try_for_each(|sql| switchyard_wire::build::query(&mut out, sql));
    if server.broken || made.is_err() {
        server.broken = true;
        return;
    }
    if finish(server, &out, 2).await {
        server.was_cleaned();
        server.carried.context = 0;
        server.carried.wishes = Arc::default();
        server.carried.lost = false;
    } else {
        server.broken = true;
    }
}

/// Sends `unsent` and reads up to the last of `readies` ReadyForQuery, which must say that no
/// transaction is open; else the connection is marked broken. Whether there was no error.
pub(crate) async fn finish(server: &mut Server, unsent: &[u8], mut readies: usize) -> bool {
    use switchyard_wire::frame::{self, backend};
    let done = tokio::time::timeout(FINISH, async {
        server.stream.write_all(unsent).await.ok()?;
        let mut held = Vec::new();
        let mut status = b'?';
        let mut well = true;
        while readies > 0 {
            let mut chunk = [0; 1024];
            let n = server.stream.read(&mut chunk).await.ok().filter(|n| *n > 0)?;
            held.extend_from_slice(&chunk[..n]);
            let mut at = 0;
            while let Some(header) = frame::header(&held[at..]).ok()? {
                if held.len() - at < header.len {
                    break;
                }
                well &= header.tag != backend::ERROR;
                if header.tag == backend::READY_FOR_QUERY {
                    readies = readies.checked_sub(1)?;
                    status = *held.get(at + frame::HEADER)?;
                }
                at += header.len;
            }
            held.drain(..at);
            if held.len() > FINISH_BYTES {
                return None;
            }
        }
        (held.is_empty() && status == b'I').then_some(well)
    })
    .await;
    server.broken |= !matches!(done, Ok(Some(_)));
    matches!(done, Ok(Some(true)))
}
