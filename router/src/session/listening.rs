//! A session that listens: which channels, and how what comes by them reaches the client.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use switchyard_wire::error::{ErrorResponse, Severity, sqlstate};
use switchyard_wire::frame;
use switchyard_wire::{build, message};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::relay::Relay;
use super::{Core, End};
use crate::classify::channels::{self, Step};
use crate::exchange::Owed;
use crate::notifications::hub::Hub;
use crate::notifications::journal::Change;
use crate::notifications::subscriber::Subscriber;
use crate::notifications::{Hubs, Unavailable};
use crate::pool::Pool;
use crate::server::Route;
use crate::shared::Shared;

/// What a session that listens keeps.
pub(crate) struct Listening {
    shared: Arc<Shared>,
    session: u64,
    subscriber: Arc<Subscriber>,
    hub: Arc<Hub>,
    channels: BTreeSet<Box<[u8]>>,
    /// The generation of the topology as of which the hub is the right one.
    generation: u64,
}

impl Listening {
    fn names(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.channels.iter().map(|name| &**name)
    }

    /// Whether something waits for the client.
    #[inline]
    pub(super) fn has_mail(&self) -> bool {
        self.subscriber.has_mail()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.hub.unlisten(&self.shared, &self.subscriber, self.names());
        self.shared.notifications.listener_went(self.session);
    }
}

/// Channels that one session may listen on. All who listen at a database share its hub, and for each channel
/// PostgreSQL looks through all that the hub has.
const CHANNELS_MAX: usize = 1000;

/// What the client's next ReadyForQuery waits for.
pub(super) struct Gate {
    answer: oneshot::Receiver<Result<(), Unavailable>>,
    /// Channels that are new, and not listened on if the answer is no.
    added: Vec<Box<[u8]>>,
}

/// The hub of the database that `core` has its seat at.
fn hub(core: &Core) -> Arc<Hub> {
    let (pool, route): (&Arc<Pool>, &Route) = (&core.seat.pool, &core.seat.context.route);
    Hubs::get(&core.shared, pool, route)
}

impl Core {
    /// The session listens on these channels as well. What to wait for.
    fn listen(&mut self, added: &[Box<[u8]>]) -> oneshot::Receiver<Result<(), Unavailable>> {
        if self.are_too_many(added) {
            return oneshot::channel().1;
        }
        if self.listening.is_none() {
            let limit = self.shared.settings().limits.mailbox_bytes;
            let voice = self.seat.voice.clone();
            let subscriber = Arc::new(Subscriber::new(voice, self.handle.clone(), limit));
            self.shared.notifications.listener_came(self.id, &subscriber);
            self.listening = Some(Box::new(Listening {
                shared: self.shared.clone(),
                session: self.id,
                subscriber,
                hub: hub(self),
                channels: BTreeSet::new(),
                generation: self.seat.generation,
            }));
        }
        let max = Some(self.shared.settings().limits.channels_per_tenant);
        loop {
            let found = hub(self);
            let Some(listening) = &mut self.listening else { return oneshot::channel().1 };
            let names = added.iter().map(|name| &**name);
            if Arc::ptr_eq(&found, &listening.hub) {
                if let Some(answer) = found.listen(&self.shared, &listening.subscriber, names, max) {
                    listening.channels.extend(added.iter().cloned());
                    return answer;
                }
                // It has just ended, for want of listeners; the next one is another.
                continue;
            }
            let all: Vec<_> = listening.channels.iter().chain(added).cloned().collect();
            let subscriber = &listening.subscriber;
            // What it has listened on already it has not come to here.
            if let Some(answer) = found.listen(&self.shared, subscriber, all.iter().map(|n| &**n), None) {
                let old = std::mem::replace(&mut listening.hub, found);
                old.unlisten(&self.shared, subscriber, listening.channels.iter().map(|name| &**name));
                listening.channels.extend(added.iter().cloned());
                listening.generation = self.seat.generation;
                return answer;
            }
        }
    }

    /// Whether these would be more channels than a session may listen on.
    fn are_too_many(&self, added: &[Box<[u8]>]) -> bool {
        let there = self.listening.as_ref().map_or(0, |listening| listening.channels.len());
        there + added.len() > CHANNELS_MAX
    }

    /// The session no longer listens on these.
    fn unlisten(&mut self, names: &[Box<[u8]>]) {
        let Some(listening) = &mut self.listening else { return };
        let names = names.iter().filter(|name| listening.channels.remove(*name)).map(|name| &**name);
        let names: Vec<&[u8]> = names.collect();
        listening.hub.unlisten(&self.shared, &listening.subscriber, names.iter().copied());
        names.iter().for_each(|name| listening.subscriber.forget(name));
        if listening.channels.is_empty() {
            self.listening = None;
        }
    }

    /// The session listens on nothing any more.
    pub(super) fn unlisten_all(&mut self) {
        self.listening = None;
    }

    /// Listens where the tenant lives now, if that is elsewhere. What comes from there is delivered from
    /// when its hub listens; until then the old one goes on.
    pub(super) fn follow(&mut self) -> Result<(), End> {
        let generation = self.shared.generation();
        if self.listening.as_ref().is_none_or(|listening| listening.generation == generation) {
            return Ok(());
        }
        self.refresh_seat()?;
        let found = hub(self);
        let Some(listening) = &mut self.listening else { return Ok(()) };
        listening.generation = generation;
        if Arc::ptr_eq(&found, &listening.hub) {
            return Ok(());
        }
        let (shared, subscriber) = (self.shared.clone(), listening.subscriber.clone());
        let Some(answer) = found.listen(&shared, &subscriber, listening.names(), None) else {
            // It has just ended; at the next look there is another.
            listening.generation = 0;
            self.handle.command(super::handle::Order::Refresh);
            return Ok(());
        };
        let old = std::mem::replace(&mut listening.hub, found);
        let names: Vec<_> = listening.channels.iter().cloned().collect();
        self.shared.notifications.spawn(async move {
            let _ = answer.await;
            old.unlisten(&shared, &subscriber, names.iter().map(|name| &**name));
        });
        Ok(())
    }

    /// Puts what waits in the session's mailbox behind `out`.
    fn take_mail(&mut self, out: &mut Vec<u8>) -> Result<(), End> {
        let Some(listening) = &self.listening else { return Ok(()) };
        match listening.subscriber.take(out) {
            Ok(_) => Ok(()),
            Err(overflowed) => {
                self.shared.notifications.counts.overflowed.add(1);
                Err(End::Fatal(
                    ErrorResponse::fatal(
                        sqlstate::CONFIGURATION_LIMIT_EXCEEDED,
                        "too many notifications wait for this session",
                    )
                    .detail(format!("The limit is {} bytes (limits.mailbox_bytes).", overflowed.limit))
                    .hint("Read more often, or keep transactions short. Notifications may have been missed."),
                ))
            }
        }
    }
}

impl Relay {
    /// The client sends `text`, which leaves something behind; `certain` says that it has a LISTEN or an
    /// UNLISTEN. Without a text, it is too large to be read, or in another encoding.
    pub(super) fn note_channels(&mut self, core: &Core, certain: bool, text: Option<&str>) {
        let Some(text) = text else {
            if certain {
                self.note_steps(vec![Step::Unreadable]);
            }
            return;
        };
        if certain || channels::may_listen(text.as_bytes()) {
            self.note_steps(channels::steps(text.as_bytes()));
        } else {
            self.note_plain(core, text.as_bytes());
        }
        self.notifies |= core.listening.is_some() && channels::may_notify(text.as_bytes());
    }

    /// The client sends `text`, in which nothing was found that stays.
    #[inline]
    pub(super) fn note_plain(&mut self, core: &Core, text: &[u8]) {
        if self.journal.is_in_transaction() {
            self.note_steps(channels::steps(text));
        }
        if core.listening.is_some() {
            self.notifies |= channels::may_notify(text);
        }
    }

    /// Whether every statement must be looked at for what it does to channels.
    #[inline]
    pub(super) fn follows_channels(&self, core: &Core) -> bool {
        self.journal.is_in_transaction() || core.listening.is_some()
    }

    fn note_steps(&mut self, steps: Vec<Step>) {
        if !steps.is_empty() {
            self.journal.sent(steps);
            // What has been accepted must be known before anything else is run.
            self.stall = true;
        }
    }

    /// The connection listens on these channels, by what nobody has seen in a statement's text: a function,
    /// a `DO` block. The client has been told already that it is done.
    #[cold]
    pub(super) fn found_listening(&mut self, core: &mut Core, channels: Vec<Box<[u8]>>) {
        if core.roaming.is_some() {
            // Of which tenant it would be heard is not known.
            self.hush();
            return;
        }
        let known = |name: &[u8]| core.listening.as_ref().is_some_and(|l| l.channels.contains(name));
        let added: Vec<_> = channels.into_iter().filter(|name| !known(name)).collect();
        if !added.is_empty() {
            // Nobody waits for the answer. If the hub cannot listen now, it tries again.
            if !matches!(core.listen(&added).try_recv(), Err(TryRecvError::Empty) | Ok(Ok(()))) {
                core.unlisten(&added);
                let text = "the channels that this session was to listen on are too many";
                let warning = ErrorResponse::error(sqlstate::CONFIGURATION_LIMIT_EXCEEDED, text);
                ErrorResponse { severity: Severity::Warning, ..warning }.encode(self.s.own());
            }
        }
        self.hush();
    }

    /// Whether the notification of `len` bytes is the session's own, from the transaction that has begun to
    /// listen on its channel: the hub begins after that.
    #[cold]
    pub(super) fn is_own_notification(&self, core: &Core, len: usize) -> bool {
        let fresh = self.s.buffer.fresh();
        let Some(Ok(note)) = fresh.get(frame::HEADER..len).map(message::notification) else { return false };
        let by_hub = core.listening.as_ref().is_some_and(|l| l.channels.contains(note.channel));
        let own = self.server.as_ref().is_some_and(|server| server.identity.pid == note.pid);
        own && !by_hub && self.journal.listens_on(note.channel)
    }

    /// Has PostgreSQL listen on nothing on this connection: the hub does.
    fn hush(&mut self) {
        let Some(server) = &mut self.server else { return };
        if build::query(self.c.own(), b"UNLISTEN *").is_ok() {
            self.exchange.sent_own(Owed::OwnQuery(None));
            server.unnamed_of = crate::server::UNNAMED_OF_NOBODY;
        } else {
            server.carried.dirty = true;
        }
    }

    /// ReadyForQuery is next. False if it must wait for a hub.
    #[inline]
    pub(super) fn may_be_ready(&mut self, core: &mut Core, status: u8) -> bool {
        if self.journal.is_empty() && !self.notifies {
            return true;
        }
        self.changed_channels(core, status);
        self.gate.is_none()
    }

    #[cold]
    fn changed_channels(&mut self, core: &mut Core, status: u8) {
        let changes = self.journal.ready(status, self.failed);
        let before: BTreeSet<_> = core.listening.iter().flat_map(|l| l.channels.iter().cloned()).collect();
        let mut after = before.clone();
        if changes.iter().any(|change| matches!(change, Change::Listen(_) | Change::Unreadable)) {
            self.hush();
        }
        for change in changes {
            match change {
                Change::Listen(name) => drop(after.insert(name)),
                Change::Unlisten(name) => drop(after.remove(&name)),
                Change::UnlistenAll => after.clear(),
                Change::Unreadable => {
                    core.account.errors.add(1);
                    let text = "the name of the channel cannot be read by the router";
                    ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
                        .hint("Send LISTEN by itself, with a plain or a quoted name, in UTF-8.")
                        .encode(self.s.own());
                }
            }
        }
        if before != after {
            let gone: Vec<_> = before.difference(&after).cloned().collect();
            core.unlisten(&gone);
        }
        let added: Vec<_> = after.difference(&before).cloned().collect();
        if !added.is_empty() {
            let answer = core.listen(&added);
            self.gate = Some(Gate { answer, added });
        } else if status == b'I'
            && std::mem::take(&mut self.notifies)
            && let Some(listening) = &core.listening
        {
            // As from PostgreSQL, its own notifications come before it is ready.
            self.gate = Some(Gate { answer: listening.hub.catch_up(), added });
        }
    }

    /// Whether what ReadyForQuery waits for has come.
    #[inline]
    pub(super) fn poll_gate(&mut self, core: &mut Core, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let Some(gate) = &mut self.gate else { return Poll::Ready(Ok(())) };
        let answer = ready!(Pin::new(&mut gate.answer).poll(cx));
        let added = self.gate.take().map(|gate| gate.added).unwrap_or_default();
        self.notifies = false;
        if !matches!(answer, Ok(Ok(()))) && !added.is_empty() {
            let too_many = core.are_too_many(&added);
            core.unlisten(&added);
            core.account.errors.add(1);
            let error = if too_many {
                let text = format!("a session can listen on {CHANNELS_MAX} channels");
                ErrorResponse::error(sqlstate::CONFIGURATION_LIMIT_EXCEEDED, text)
            } else if matches!(answer, Ok(Err(Unavailable::TooMany))) {
                let limit = core.shared.settings().limits.channels_per_tenant;
                let text = "the sessions of this tenant listen on too many channels";
                ErrorResponse::error(sqlstate::CONFIGURATION_LIMIT_EXCEEDED, text)
                    .detail(format!("The limit is {limit} channels (limits.channels_per_tenant)."))
            } else {
                ErrorResponse::error(sqlstate::CONNECTION_FAILURE, "the shard cannot be listened to")
                    .hint("Nothing is listened on by this LISTEN. The router's log has the cause.")
            };
            error.encode(self.s.own());
        }
        Poll::Ready(core.take_mail(self.s.own()))
    }

    /// Puts what has come for the client behind what it is being sent, if it is between transactions.
    #[inline]
    pub(super) fn deliver(&mut self, core: &mut Core) -> Result<(), End> {
        if core.listening.as_ref().is_some_and(|listening| listening.has_mail())
            && self.gate.is_none()
            && self.exchange.is_over()
            && self.s.pass == 0
            && self.s.drop == 0
            && self.s.buffer.fresh().is_empty()
        {
            core.take_mail(self.s.own())?;
        }
        Ok(())
    }
}

impl super::Session {
    /// What has come for a session that has a relay is delivered by that; an idle one gets one. Ends a session
    /// that has too much waiting, whatever it does.
    pub(super) fn has_mail(&mut self) -> Result<bool, End> {
        let core = &mut self.core;
        let Some(listening) = &core.listening else { return Ok(false) };
        if !listening.has_mail() {
            return Ok(false);
        }
        if listening.subscriber.has_overflowed() {
            core.take_mail(&mut Vec::new())?;
        }
        Ok(self.relay.is_none())
    }
}
