//! Listeners at other routers: their tenants are announced here, and those of our own listeners there.
//!
//! A hub hears what is notified through any router, as all are on one database; but it knows whose that is only
//! where the tenant is announced. So before a tenant's first LISTEN at a hub is answered, all other routers are
//! asked, and answer when they announce it. Each raises a generation of its own for that, so that what it
//! announced before is not believed ([`super::voice`]), and says which of its server processes serve the
//! tenant already.
//!
//! What is said is a [`Word`]. It may be lost, and nobody waits for longer than [`ASK`]: who is asked in vain is
//! asked again. Who has announced a tenant and forgets that says so when it leaves it all the same, so that
//! nobody hears another tenant, whatever is lost.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use switchyard_catalog::listening::{Says, Word};
use switchyard_config::TenantId;
use tokio::sync::{mpsc, oneshot};

use super::hub::Hub;
use super::link::{Inbox, Link, Lost, Means};
use super::registry::Answer;
use super::voice::Voice;
use crate::shared::Shared;

/// Longest that a LISTEN waits for other routers.
const ASK: Duration = Duration::from_secs(2);

/// Longest that a router that starts waits to be told who listens elsewhere.
const START: Duration = Duration::from_secs(1);

/// How often others are told again who is listened for, and asked again who has not answered.
const RENEW: Duration = Duration::from_secs(10);

/// How long a router that says nothing more is believed to listen. Only while others can be heard.
const FORGET: Duration = Duration::from_secs(120);

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Pause between attempts to reach the others.
const PAUSE: Duration = Duration::from_millis(500);

/// Most tenants in one word, and most bytes of their ids: a notification has less than 8000.
const TENANTS: (usize, usize) = (200, 3000);

/// Most entries of an answer in one word, of some 30 bytes.
const ENTRIES: usize = 200;

/// What hubs have to say.
enum Command {
    Ask { hub: Arc<Hub>, tenants: Vec<TenantId>, done: Arc<Done> },
    Left { hub: u64, tenants: Vec<TenantId> },
    Ended { hub: u64 },
}

/// Says that a question has been dealt with, when the last part of it is dropped.
struct Done(Option<oneshot::Sender<()>>);

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
    }
}

/// The way to other routers, for hubs. Without one, every hub hears its own router's clients.
pub(crate) struct Elsewhere {
    commands: mpsc::UnboundedSender<Command>,
    taken: Mutex<Option<mpsc::UnboundedReceiver<Command>>>,
    /// There are others to be asked.
    on: AtomicBool,
    /// Where words of peers go.
    pub(super) inbox: Inbox,
}

impl Default for Elsewhere {
    fn default() -> Self {
        let (commands, taken) = mpsc::unbounded_channel();
        Self { commands, taken: Mutex::new(Some(taken)), on: AtomicBool::new(false), inbox: Inbox::default() }
    }
}

impl Elsewhere {
    /// Has all other routers announce these tenants. The answer comes when they do; who has not answered in
    /// time is asked again. None if there are no others.
    pub(super) fn ask(&self, hub: &Arc<Hub>, tenants: Vec<TenantId>) -> Option<oneshot::Receiver<()>> {
        let (done, answered) = oneshot::channel();
        let done = Arc::new(Done(Some(done)));
        self.tell(Command::Ask { hub: hub.clone(), tenants, done }).then_some(answered)
    }

    /// Nobody listens for these at the hub any more.
    pub(super) fn left(&self, hub: &Hub, tenants: Vec<TenantId>) {
        self.tell(Command::Left { hub: hub.number, tenants });
    }

    /// The hub has ended.
    pub(super) fn ended(&self, hub: &Hub) {
        self.tell(Command::Ended { hub: hub.number });
    }

    fn tell(&self, command: Command) -> bool {
        self.on.load(Ordering::Relaxed) && self.commands.send(command).is_ok()
    }
}

/// Speaks with other routers by these means, for as long as the process lives. `ready` is told when it is known
/// who listens elsewhere, or others cannot be heard; without it, clients are served before. To be called once.
pub(crate) fn follow(
    shared: &Arc<Shared>,
    means: Means,
    ready: Option<oneshot::Sender<()>>,
) -> impl Future<Output = ()> + use<> {
    let elsewhere = &shared.notifications.elsewhere;
    let commands = elsewhere.taken.lock().take();
    elsewhere.on.store(commands.is_some(), Ordering::Relaxed);
    let task = Task {
        shared: shared.clone(),
        hubs: HashMap::new(),
        asked: HashMap::new(),
        last_ask: 0,
        present: HashMap::new(),
        awaited: None,
        ready,
        out: Vec::new(),
    };
    async move {
        if let Some(commands) = commands {
            task.run(means, commands).await;
        }
    }
}

/// A hub of this router.
struct Own {
    hub: Weak<Hub>,
    shard: String,
    tenants: HashSet<TenantId>,
    /// Somebody has not answered: all are asked once more.
    again: bool,
}

/// A question that others have been asked.
struct Asked {
    hub: u64,
    tenants: Vec<TenantId>,
    /// Who has not answered.
    waits_for: HashSet<i32>,
    since: Instant,
    done: Option<Arc<Done>>,
}

/// What another router has said of one of its hubs.
struct Present {
    voices: HashMap<TenantId, Arc<Voice>>,
    heard: Instant,
}

struct Task {
    shared: Arc<Shared>,
    hubs: HashMap<u64, Own>,
    asked: HashMap<u64, Asked>,
    last_ask: u64,
    /// By router and hub.
    present: HashMap<(u64, u64), Present>,
    /// Who has not told yet who listens there.
    awaited: Option<(HashSet<i32>, Instant)>,
    /// No client was served before others could be heard.
    ready: Option<oneshot::Sender<()>>,
    /// What is to be said, and to whom a question in it goes, if not to all.
    out: Vec<(Says, Option<i32>)>,
}

impl Task {
    async fn run(mut self, means: Means, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            let connecting = Link::connect(&means);
            tokio::pin!(connecting);
            let link = loop {
                tokio::select! {
                    link = &mut connecting => break link,
                    Some(command) = commands.recv() => self.unheard(command),
                }
            };
            match link {
                Ok(mut link) => {
                    if let Err(Lost(error)) = self.speak(&mut link, &mut commands).await {
                        tracing::debug!(error, "lost the connection to other routers");
                    }
                }
                Err(Lost(error)) => tracing::debug!(error, "no connection to other routers"),
            }
            self.is_ready();
            self.give_up(|_| true);
            let pause = tokio::time::sleep(PAUSE);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(command) = commands.recv() => self.unheard(command),
                }
            }
        }
    }

    /// What is said while nobody hears it. All hubs are spoken for when there is a connection.
    fn unheard(&mut self, command: Command) {
        self.command(command);
        self.give_up(|_| true);
        self.out.clear();
    }

    /// Listens and speaks for as long as the link lasts.
    async fn speak(
        &mut self,
        link: &mut Link,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Result<(), Lost> {
        // How long nobody could be heard does not count.
        self.present.values_mut().for_each(|present| present.heard = Instant::now());
        self.hubs.values_mut().for_each(|own| own.again = true);
        self.out.push((Says::Came, None));
        self.renew();
        self.flush(link).await?;
        self.awaited = Some((link.others().await?, Instant::now()));
        let mut renewed = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        loop {
            let told = |(who, since): &(HashSet<i32>, Instant)| who.is_empty() || since.elapsed() >= START;
            if self.awaited.as_ref().is_some_and(told) {
                self.awaited = None;
                self.is_ready();
            }
            tokio::select! {
                word = link.next() => self.heard(word?),
                Some(command) = commands.recv() => self.command(command),
                _ = ticks.tick() => self.give_up(|asked| asked.since.elapsed() >= ASK),
            }
            if renewed.elapsed() >= RENEW {
                renewed = Instant::now();
                self.renew();
                self.forget();
            }
            self.flush(link).await?;
        }
    }

    async fn flush(&mut self, link: &mut Link) -> Result<(), Lost> {
        if self.out.is_empty() {
            return Ok(());
        }
        let mut asked = Vec::new();
        for (says, to) in std::mem::take(&mut self.out) {
            if let Says::Listened { ask, .. } = &says {
                asked.push((*ask, to));
            }
            let (from, seat) = (self.shared.voices.router, link.seat());
            link.say(Word { from, seat, number: 0, says }).await?;
        }
        if asked.is_empty() {
            return Ok(());
        }
        let others = link.others().await?;
        for (ask, to) in asked {
            let Some(asked) = self.asked.get_mut(&ask) else { continue };
            asked.waits_for = others.iter().copied().filter(|seat| to.is_none_or(|to| to == *seat)).collect();
            if asked.waits_for.is_empty() {
                asked.done = None;
            }
        }
        Ok(())
    }

    fn is_ready(&mut self) {
        if let Some(ready) = self.ready.take() {
            // The router may be on its way out.
            let _ = ready.send(());
        }
    }

    /// Nobody waits for the answers to these questions any longer.
    fn give_up(&mut self, which: impl Fn(&Asked) -> bool) {
        for asked in self.asked.values_mut().filter(|asked| which(asked)) {
            asked.done = None;
            if !std::mem::take(&mut asked.waits_for).is_empty() {
                self.shared.notifications.counts.unanswered.add(1);
                tracing::warn!(
                    tenants = asked.tenants.len(),
                    "another router has not said that it announces tenants that are listened for here"
                );
                if let Some(own) = self.hubs.get_mut(&asked.hub) {
                    own.again = true;
                }
            }
        }
        self.asked.retain(|_, asked| asked.since.elapsed() < FORGET);
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Ask { hub, tenants, done } => {
                let own = self.hubs.entry(hub.number).or_insert_with(|| Own {
                    hub: Arc::downgrade(&hub),
                    shard: hub.shard.name.to_string(),
                    tenants: HashSet::new(),
                    again: false,
                });
                own.tenants.extend(tenants.iter().cloned());
                let shard = own.shard.clone();
                for tenants in in_words(tenants) {
                    self.listened(hub.number, &shard, tenants, Some(&done), (true, false), None);
                }
            }
            Command::Left { hub, tenants } => {
                if let Some(own) = self.hubs.get_mut(&hub) {
                    own.tenants.retain(|tenant| !tenants.contains(tenant));
                }
                self.unlistened(hub, tenants);
            }
            Command::Ended { hub } => {
                if let Some(own) = self.hubs.remove(&hub) {
                    self.unlistened(hub, own.tenants.into_iter().collect());
                }
            }
        }
    }

    fn unlistened(&mut self, hub: u64, tenants: Vec<TenantId>) {
        for tenants in in_words(tenants) {
            self.out.push((Says::Unlistened { hub, tenants }, None));
        }
    }

    /// Says that somebody listens at this hub, to one or to all.
    fn listened(
        &mut self,
        hub: u64,
        shard: &str,
        tenants: Vec<TenantId>,
        done: Option<&Arc<Done>>,
        (anew, late): (bool, bool),
        to: Option<i32>,
    ) {
        self.last_ask += 1;
        let ask = self.last_ask;
        let says = Says::Listened { hub, shard: shard.to_owned(), ask, tenants: tenants.clone(), anew, late };
        self.out.push((says, to));
        let (waits_for, since) = (HashSet::new(), Instant::now());
        self.asked.insert(ask, Asked { hub, tenants, waits_for, since, done: done.cloned() });
    }

    /// Says once more who is listened for. Who has forgotten it, or had not heard it, answers.
    fn renew(&mut self) {
        let hubs: Vec<_> = self
            .hubs
            .iter_mut()
            .map(|(number, own)| {
                let tenants: Vec<_> = own.tenants.iter().cloned().collect();
                (*number, own.shard.clone(), tenants, std::mem::take(&mut own.again))
            })
            .collect();
        for (hub, shard, tenants, again) in hubs {
            for tenants in in_words(tenants) {
                self.listened(hub, &shard, tenants, None, (again, true), None);
            }
        }
    }

    fn heard(&mut self, word: Word) {
        let Word { from, seat, says, .. } = word;
        let me = self.shared.voices.router;
        if from == me {
            return;
        }
        match says {
            Says::Came => {
                let hubs = self.hubs.iter().map(|(number, own)| {
                    (*number, own.shard.clone(), own.tenants.iter().cloned().collect::<Vec<_>>())
                });
                for (hub, shard, tenants) in hubs.collect::<Vec<_>>() {
                    for tenants in in_words(tenants) {
                        self.listened(hub, &shard, tenants, None, (false, true), Some(seat));
                    }
                }
                self.out.push((Says::Told { to: from }, None));
            }
            Says::Told { to } if to == me => {
                if let Some((awaited, _)) = &mut self.awaited {
                    awaited.remove(&seat);
                }
            }
            Says::Listened { hub, shard, ask, tenants, anew, late } => {
                self.announce((from, hub), &shard, ask, &tenants, (anew, late));
            }
            Says::Unlistened { hub, tenants } => {
                if let Some(present) = self.present.get_mut(&(from, hub)) {
                    for voice in tenants.iter().filter_map(|tenant| present.voices.remove(tenant)) {
                        self.shared.voices.end(&voice);
                    }
                    if present.voices.is_empty() {
                        self.present.remove(&(from, hub));
                    }
                }
            }
            Says::Announces { to, ask, as_of, what, late, done } if to == me => {
                let Some(asked) = self.asked.get_mut(&ask) else { return };
                let entry = |(at, generation, pid): (u32, u64, u32)| {
                    Some((asked.tenants.get(at as usize)?.clone(), generation, pid))
                };
                let what = what.into_iter().filter_map(entry).collect();
                let hub = self.hubs.get(&asked.hub).and_then(|own| own.hub.upgrade());
                if let Some(hub) = hub {
                    hub.answered(Answer { router: from, as_of, what, late });
                }
                if done {
                    asked.waits_for.remove(&seat);
                    if asked.waits_for.is_empty() {
                        asked.done = None;
                    }
                }
            }
            Says::Told { .. } | Says::Announces { .. } => {}
        }
    }

    /// Announces these tenants from now on, and says so. With `anew` also those that are announced already.
    fn announce(
        &mut self,
        (from, hub): (u64, u64),
        shard: &str,
        ask: u64,
        tenants: &[TenantId],
        (anew, late): (bool, bool),
    ) {
        let voices = &self.shared.voices;
        let now = Instant::now();
        let present = self.present.entry((from, hub));
        let present = present.or_insert_with(|| Present { voices: HashMap::new(), heard: now });
        present.heard = now;
        let (mut raised, mut news) = (HashMap::new(), false);
        for (at, tenant) in (0..).zip(tenants) {
            let known = present.voices.contains_key(tenant);
            if known && !anew {
                continue;
            }
            let voice = voices.get(tenant);
            if !known {
                voices.begin(&voice);
                present.voices.insert(tenant.clone(), voice.clone());
                news = true;
            }
            raised.insert(voice.id, (at, voices.raise(&voice)));
        }
        if raised.is_empty() && !anew {
            // Not in question; and whoever asks has the answer, or asks anew.
            return self.out.push((answer(from, ask, 0, Vec::new(), false, true), None));
        }
        let as_of = voices.last_number();
        let mut what: Vec<(u32, u64, u32)> = raised.values().map(|(at, raised)| (*at, *raised, 0)).collect();
        for session in &self.shared.sessions {
            let Some(identity) = session.target().filter(|identity| identity.shard.name.as_str() == shard)
            else {
                continue;
            };
            if let Some((at, generation)) = raised.get(&identity.voice.load(Ordering::SeqCst)) {
                identity.told.store(true, Ordering::SeqCst);
                what.push((*at, *generation, identity.pid));
            }
        }
        let late = late && news && self.ready.is_none();
        let mut chunks = what.chunks(ENTRIES).peekable();
        while let Some(chunk) = chunks.next() {
            let done = chunks.peek().is_none();
            self.out.push((answer(from, ask, as_of, chunk.to_vec(), late, done), None));
        }
    }

    /// Forgets routers that have said nothing for long.
    fn forget(&mut self) {
        let voices = &self.shared.voices;
        self.present.retain(|_, present| {
            let stays = present.heard.elapsed() < FORGET;
            if !stays {
                present.voices.values().for_each(|voice| voices.end(voice));
            }
            stays
        });
    }
}

fn answer(to: u64, ask: u64, as_of: u64, what: Vec<(u32, u64, u32)>, late: bool, done: bool) -> Says {
    Says::Announces { to, ask, as_of, what, late, done }
}

/// Parts that are small enough to be sent.
fn in_words(tenants: Vec<TenantId>) -> Vec<Vec<TenantId>> {
    let mut words: Vec<Vec<TenantId>> = Vec::new();
    let mut bytes = 0;
    for tenant in tenants {
        bytes += tenant.as_str().len();
        match words.last_mut() {
            Some(word) if word.len() < TENANTS.0 && bytes <= TENANTS.1 => word.push(tenant),
            _ => {
                bytes = tenant.as_str().len();
                words.push(vec![tenant]);
            }
        }
    }
    words
}
