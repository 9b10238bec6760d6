//! One server connection that listens for all sessions of a database.
//!
//! Whoever comes or leaves changes the [`Registry`] and wakes the hub's task, which brings the server to
//! the same state, in rounds: the LISTEN and UNLISTEN of all that have changed, and a *mark*, a
//! notification to itself, in one transaction. Notifications are queued in the order of commits, so when
//! the mark is heard, everything sent before it has been heard, and the round is done.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use switchyard_config::topology::Shard;
use switchyard_wire::frame::{self, backend};
use switchyard_wire::{build, message};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::attribution::Attribution;
use super::registry::{Answer, Delivered, Registry, Reply, Round, Unavailable};
use super::subscriber::Subscriber;
use super::tag::{Heard, Place, Speaker};
use crate::pool::Pool;
use crate::server::{Route, Server};
use crate::shared::Shared;

/// How long a hub stays when nobody listens any more.
const LINGER: Duration = Duration::from_secs(10);

/// How long the server may take for a round.
const ROUND_TIMEOUT: Duration = Duration::from_secs(30);

/// First pause after a failure; it doubles up to the shard's `backoff_max`.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// Largest message that a hub accepts, in bytes. A notification has no more than 8064.
const MESSAGE_BYTES: usize = 64 * 1024;

/// What the hub's connection is told first. Whatever the server's configuration says, it may be idle for
/// as long as it takes.
const PREPARE: &str = "SET idle_session_timeout = 0; SET statement_timeout = 0; SET lock_timeout = 0; \
    SET client_encoding = 'UTF8'; SET client_min_messages = warning; SET search_path = pg_catalog";

/// See the module.
pub(crate) struct Hub {
    /// Never used twice in the life of the process.
    pub(crate) number: u64,
    pub(crate) shard: Arc<Shard>,
    pub(crate) route: Route,
    registry: Mutex<Registry>,
    work: Notify,
}

/// Why a connection of a hub ended.
enum Ended {
    /// Nobody needs it.
    Unused,
    /// It was lost, or is of no use.
    Lost(String),
}

impl Hub {
    /// A hub for the databases and login of `route`, and the task that does its work.
    pub(crate) fn start(shared: &Arc<Shared>, pool: &Arc<Pool>, route: &Route) -> Arc<Self> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let hub = Arc::new(Self {
            number: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            shard: pool.shard.clone(),
            route: route.clone(),
            registry: Mutex::default(),
            work: Notify::new(),
        });
        let task = Task { hub: hub.clone(), shared: shared.clone(), pool: pool.clone() };
        shared.notifications.spawn(task.run());
        hub
    }

    /// `subscriber` listens on these channels from when the answer says so; where its tenant would then have more than
    /// `max`, if there is a limit, the answer is no. None if the hub has ended.
    pub(crate) fn listen<'c>(
        &self,
        shared: &Shared,
        subscriber: &Arc<Subscriber>,
        channels: impl Iterator<Item = &'c [u8]> + Clone,
        max: Option<usize>,
    ) -> Option<oneshot::Receiver<Result<(), Unavailable>>> {
        let (reply, answer) = oneshot::channel();
        let mut registry = self.registry.lock();
        if registry.closed {
            return None;
        }
        if max.is_some_and(|max| registry.are_too_many(subscriber.voice.speaker, channels.clone(), max)) {
            let _ = reply.send(Err(Unavailable::TooMany));
            return Some(answer);
        }
        for channel in channels {
            registry.join(&shared.voices, channel, subscriber);
        }
        registry.wait(reply);
        drop(registry);
        self.work.notify_one();
        Some(answer)
    }

    /// Another router has said what it announces.
    pub(super) fn answered(&self, answer: Answer) {
        self.registry.lock().answered(answer);
        self.work.notify_one();
    }

    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.registry.lock().closed
    }

    /// Answers when everything that was committed before has been delivered.
    pub(crate) fn catch_up(&self) -> oneshot::Receiver<Result<(), Unavailable>> {
        let (reply, answer) = oneshot::channel();
        self.registry.lock().wait(reply);
        self.work.notify_one();
        answer
    }

    /// `subscriber` no longer listens on these channels; what came by them and waits is dropped.
    pub(crate) fn unlisten<'c>(
        &self,
        shared: &Shared,
        subscriber: &Arc<Subscriber>,
        channels: impl Iterator<Item = &'c [u8]>,
    ) {
        let mut registry = self.registry.lock();
        for channel in channels {
            registry.part(&shared.voices, channel, subscriber);
        }
        drop(registry);
        self.work.notify_one();
    }
}

struct Task {
    hub: Arc<Hub>,
    shared: Arc<Shared>,
    pool: Arc<Pool>,
}

impl Task {
    async fn run(self) {
        let _count = self.shared.notifications.hub_began();
        let mut pause = BACKOFF_MIN;
        loop {
            match self.pool.connect_apart(&self.hub.route).await {
                Ok(server) => {
                    let began = Instant::now();
                    match self.serve(server).await {
                        Ended::Unused => return,
                        Ended::Lost(cause) => {
                            let told = self.lost();
                            tracing::warn!(shard = %self.hub.shard.name, database = %self.hub.route.database,
                                cause, listeners = told, "lost the connection that listens");
                        }
                    }
                    if began.elapsed() > Duration::from_secs(10) {
                        pause = BACKOFF_MIN;
                    }
                }
                Err(error) => {
                    tracing::warn!(shard = %self.hub.shard.name, database = %self.hub.route.database,
                        %error, "cannot listen");
                    self.refuse_all();
                }
            }
            if self.close_if_unused() {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.hub.shard.pool.backoff_max);
        }
    }

    /// Those who wait learn that it will not be now. Those who listen stay.
    fn refuse_all(&self) {
        let waiting = self.hub.registry.lock().take_waiting();
        answer(waiting, &Err(Unavailable::Away));
    }

    fn lost(&self) -> usize {
        let told = self.hub.registry.lock().tell_of_gap();
        if told > 0 {
            self.shared.notifications.counts.gaps.add(1);
        }
        told
    }

    fn close_if_unused(&self) -> bool {
        let mut registry = self.hub.registry.lock();
        registry.closed = registry.is_unused();
        let closed = registry.closed;
        drop(registry);
        if closed {
            self.pool.hubs.forget(&self.hub);
            self.shared.notifications.elsewhere.ended(&self.hub);
        }
        closed
    }

    async fn serve(&self, server: Server) -> Ended {
        let mut connection = Connection {
            task: self,
            channel: self.shared.voices.key.channel().to_owned(),
            server,
            buf: Vec::new(),
            listened: HashSet::new(),
            attribution: Attribution::default(),
            round: None,
        };
        self.hub.registry.lock().begin_anew();
        match connection.work().await {
            Ok(()) => Ended::Unused,
            Err(cause) => Ended::Lost(cause),
        }
    }
}

fn answer(waiting: Vec<Reply>, with: &Result<(), Unavailable>) {
    for reply in waiting {
        // Whoever has gone does not want to know.
        let _ = reply.send(*with);
    }
}

/// A round: other routers are asked first, where somebody is listened for who was not, then the server.
struct Pending {
    round: Round,
    /// Other routers have been asked, and not all of them have answered.
    asked: Option<oneshot::Receiver<()>>,
    /// What they have answered.
    answers: Vec<Answer>,
    /// Which processes were whose when it began, as of which tag.
    known: Vec<(u32, Speaker, u64)>,
    as_of: u64,
    marked: bool,
    ready: bool,
    error: Option<String>,
    deadline: Instant,
}

struct Connection<'t> {
    task: &'t Task,
    /// The private channel.
    channel: String,
    server: Server,
    buf: Vec<u8>,
    listened: HashSet<Box<[u8]>>,
    attribution: Attribution,
    round: Option<Pending>,
}

impl Connection<'_> {
    /// Works until nobody needs it; an error is why it cannot go on.
    async fn work(&mut self) -> Result<(), String> {
        let prepare = format!("{PREPARE}; LISTEN {}", self.channel);
        self.query(prepare.as_bytes()).await?;
        self.until_ready().await?;
        let mut unused_since = None;
        let mut retry = None;
        loop {
            if self.round.is_none() && retry.is_none_or(|at| Instant::now() >= at) {
                retry = None;
                self.begin_round().await?;
            }
            if self.task.hub.registry.lock().is_unused() && self.round.is_none() {
                let since = *unused_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= LINGER && self.task.close_if_unused() {
                    return Ok(());
                }
            } else {
                unused_since = None;
            }
            let wake = match (&self.round, retry, unused_since) {
                (Some(round), _, _) => Some(round.deadline),
                (None, Some(at), _) => Some(at),
                (None, None, Some(since)) => Some(since + LINGER),
                (None, None, None) => None,
            };
            let mut chunk = [0; 16 * 1024];
            tokio::select! {
                read = self.server.stream.read(&mut chunk) => {
                    match read {
                        Ok(0) => return Err("it ended".to_owned()),
                        Ok(n) => self.buf.extend_from_slice(&chunk[..n]),
                        Err(error) => return Err(error.to_string()),
                    }
                    self.frames()?;
                    if self.round.as_ref().is_some_and(|r| r.ready && (r.marked || r.error.is_some())) {
                        retry = self.end_round();
                    }
                }
                () = answered(&mut self.round), if self.round.as_ref().is_some_and(|r| r.asked.is_some()) => {
                    self.ask_server().await?;
                }
                () = self.task.hub.work.notified(), if self.round.is_none() => {}
                () = sleep_until(wake), if wake.is_some() => {
                    if self.round.as_ref().is_some_and(|round| Instant::now() >= round.deadline) {
                        return Err("no answer in time".to_owned());
                    }
                }
            }
            if self.attribution.is_full() {
                return Err("too many processes to tell apart".to_owned());
            }
        }
    }

    async fn query(&mut self, sql: &[u8]) -> Result<(), String> {
        let mut out = Vec::with_capacity(sql.len() + 6);
        build::query(&mut out, sql).map_err(|e| e.to_string())?;
        let written = tokio::time::timeout(ROUND_TIMEOUT, self.server.stream.write_all(&out)).await;
        written.map_err(|_| "no answer in time".to_owned())?.map_err(|e| e.to_string())
    }

    /// Reads up to the first ReadyForQuery; an error of the server is one.
    async fn until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + ROUND_TIMEOUT;
        loop {
            while let Some(len) = self.whole_frame()? {
                let frame: Vec<u8> = self.buf.drain(..len).collect();
                match frame[0] {
                    backend::ERROR => return Err(error_text(&frame)),
                    backend::READY_FOR_QUERY => return Ok(()),
                    _ => {}
                }
            }
            let mut chunk = [0; 1024];
            let read = tokio::time::timeout_at(deadline, self.server.stream.read(&mut chunk)).await;
            match read.map_err(|_| "no answer in time".to_owned())? {
                Ok(0) => return Err("it ended".to_owned()),
                Ok(n) => self.buf.extend_from_slice(&chunk[..n]),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn whole_frame(&self) -> Result<Option<usize>, String> {
        match frame::header(&self.buf) {
            Ok(Some(header)) if header.len > MESSAGE_BYTES => Err("a message that is too large".to_owned()),
            Ok(Some(header)) => Ok((self.buf.len() >= header.len).then_some(header.len)),
            Ok(None) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn begin_round(&mut self) -> Result<(), String> {
        let shared = &self.task.shared;
        let elsewhere = &shared.notifications.elsewhere;
        let (left, begun) = {
            let mut registry = self.task.hub.registry.lock();
            (registry.take_left(), registry.begin(&shared.voices, &mut self.listened))
        };
        if !left.is_empty() {
            elsewhere.left(&self.task.hub, left);
        }
        let Some(round) = begun else { return Ok(()) };
        // The generations of these tenants have just been raised; see `Voices::announcement`.
        let as_of = shared.voices.last_number();
        let known = if round.fresh.is_empty() { Vec::new() } else { self.look_around(&round) };
        let fresh: Vec<_> = round.fresh.iter().map(|(voice, _)| voice.tenant.clone()).collect();
        let asked = if fresh.is_empty() { None } else { elsewhere.ask(&self.task.hub, fresh) };
        self.round = Some(Pending {
            round,
            asked,
            answers: Vec::new(),
            known,
            as_of,
            marked: false,
            ready: false,
            error: None,
            deadline: Instant::now() + ROUND_TIMEOUT,
        });
        match self.round.as_ref().is_some_and(|round| round.asked.is_some()) {
            true => Ok(()),
            false => self.ask_server().await,
        }
    }

    /// Everything is known that counts from the mark on.
    async fn ask_server(&mut self) -> Result<(), String> {
        let shared = &self.task.shared;
        let Some(pending) = &mut self.round else { return Ok(()) };
        pending.asked = None;
        pending.answers = self.task.hub.registry.lock().take_answers();
        let mut sql = Vec::new();
        for (verb, channels) in [("LISTEN ", &pending.round.listen), ("UNLISTEN ", &pending.round.unlisten)] {
            for channel in channels {
                sql.extend_from_slice(verb.as_bytes());
                quote(&mut sql, channel);
                sql.extend_from_slice(b"; ");
            }
        }
        let number = pending.round.number;
        pending.deadline = Instant::now() + ROUND_TIMEOUT;
        let mark = shared.voices.key.mark(self.place(self.server.identity.pid), number);
        sql.extend_from_slice(format!("SELECT pg_notify('{}', '{mark}')", self.channel).as_bytes());
        self.query(&sql).await
    }

    /// The processes that serve these tenants right now.
    fn look_around(&self, round: &Round) -> Vec<(u32, Speaker, u64)> {
        let mut known = Vec::new();
        for session in &self.task.shared.sessions {
            let Some(identity) = session.target() else { continue };
            let same = Arc::ptr_eq(&identity.shard, &self.task.hub.shard);
            let voice = identity.voice.load(Ordering::SeqCst);
            if let Some((voice, generation)) = round.fresh.iter().find(|(fresh, _)| same && fresh.id == voice)
            {
                known.push((identity.pid, voice.speaker, *generation));
            }
        }
        known
    }

    fn place(&self, pid: u32) -> Place<'_> {
        Place { shard: self.task.hub.shard.name.as_str(), database: &self.task.hub.route.database, pid }
    }

    /// Deals with the messages that have arrived.
    fn frames(&mut self) -> Result<(), String> {
        let mut at = 0;
        let buf = std::mem::take(&mut self.buf);
        while let Ok(Some(header)) = frame::header(&buf[at..]) {
            if header.len > MESSAGE_BYTES {
                return Err("a message that is too large".to_owned());
            }
            let Some(frame) = buf.get(at..at + header.len) else { break };
            at += header.len;
            match header.tag {
                backend::NOTIFICATION => self.notification(frame)?,
                backend::READY_FOR_QUERY => {
                    if let Some(round) = &mut self.round {
                        round.ready = true;
                    }
                }
                backend::ERROR => {
                    let text = error_text(frame);
                    match &mut self.round {
                        Some(round) => round.error = Some(text),
                        None => return Err(text),
                    }
                }
                _ => {}
            }
        }
        self.buf = buf;
        self.buf.drain(..at);
        if frame::header(&self.buf).is_err() {
            return Err("a message of no length".to_owned());
        }
        Ok(())
    }

    /// The server has dealt with the round. When to try again, if that is needed.
    fn end_round(&mut self) -> Option<Instant> {
        let pending = self.round.take()?;
        if pending.marked {
            answer(pending.round.waiting, &Ok(()));
            return None;
        }
        tracing::warn!(shard = %self.task.hub.shard.name, database = %self.task.hub.route.database,
            error = pending.error, "cannot listen");
        let mut registry = self.task.hub.registry.lock();
        registry.failed(&pending.round, &mut self.listened);
        pending.answers.into_iter().for_each(|answer| registry.answered(answer));
        drop(registry);
        answer(pending.round.waiting, &Err(Unavailable::Away));
        Some(Instant::now() + Duration::from_secs(1))
    }

    fn notification(&mut self, frame: &[u8]) -> Result<(), String> {
        let note = message::notification(&frame[frame::HEADER..]).map_err(|e| e.to_string())?;
        if note.channel == self.channel.as_bytes() {
            self.private(note.pid, note.payload);
            return Ok(());
        }
        let counts = &self.task.shared.notifications.counts;
        let registry = self.task.hub.registry.lock();
        if !registry.has_channel(note.channel) {
            return Ok(());
        }
        match self.attribution.speaker(note.pid) {
            Some((speaker, router, generation)) if registry.believes(&speaker, router, generation) => {
                match registry.deliver(&speaker, note.channel, frame) {
                    Delivered::To(n) => counts.delivered.add(n as u64),
                    Delivered::Nobody => counts.unheard.add(1),
                }
            }
            // Its tenant has said that it is somebody for whom nobody listens.
            None if self.attribution.is_known(note.pid) => counts.unheard.add(1),
            _ => counts.unknown.add(1),
        }
        Ok(())
    }

    fn private(&mut self, pid: u32, payload: &[u8]) {
        let shared = &self.task.shared;
        match shared.voices.key.read(self.place(pid), payload) {
            Some(Heard::Tag(tag)) => {
                if !self.attribution.tagged(pid, &tag) {
                    shared.notifications.counts.forged.add(1);
                }
            }
            Some(Heard::Mark(number)) if pid == self.server.identity.pid => {
                let Some(pending) = &mut self.round else { return };
                if pending.round.number == number && !pending.marked {
                    pending.marked = true;
                    let own = shared.voices.router;
                    for (pid, speaker, generation) in pending.known.drain(..) {
                        self.attribution.known(pid, own, speaker, generation, pending.as_of);
                    }
                    let mut registry = self.task.hub.registry.lock();
                    for answer in &pending.answers {
                        for (pid, speaker, generation) in registry.believe(&shared.voices, answer) {
                            self.attribution.known(pid, answer.router, speaker, generation, answer.as_of);
                        }
                    }
                    registry.is_done(number);
                }
            }
            // Another hub's, to itself.
            Some(Heard::Mark(_)) => {}
            _ => shared.notifications.counts.forged.add(1),
        }
    }
}

/// Until other routers have answered, or have not in time.
async fn answered(round: &mut Option<Pending>) {
    match round.as_mut().and_then(|round| round.asked.as_mut()) {
        Some(asked) => {
            let _ = asked.await;
        }
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn quote(out: &mut Vec<u8>, name: &[u8]) {
    out.push(b'"');
    for byte in name {
        if *byte == b'"' {
            out.push(b'"');
        }
        out.push(*byte);
    }
    out.push(b'"');
}

fn error_text(frame: &[u8]) -> String {
    let fields = message::ErrorFields::parse(&frame[frame::HEADER..]).ok();
    let text = fields.as_ref().and_then(|fields| fields.message()).unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}
