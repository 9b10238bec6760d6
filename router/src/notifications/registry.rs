//! Who listens on which channel at one hub, without IO.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::subscriber::{Note, Subscriber};
use super::tag::Speaker;
use super::voice::{Voice, Voices};

/// The hub cannot do what it was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Unavailable;

/// Told when the round is done that a session has waited for.
pub(crate) type Reply = oneshot::Sender<Result<(), Unavailable>>;

/// Sessions of one tenant on one channel.
type Members = Vec<Member>;

struct Member {
    subscriber: Arc<Subscriber>,
    /// The round that makes it listen.
    round: u64,
}

struct Tenant {
    voice: Arc<Voice>,
    /// How many members it has, over all channels.
    members: usize,
    /// Announcements with a lower generation are not believed: they may have been made before the
    /// hub could hear all of them.
    since: u64,
    /// Its connections have not been looked for yet.
    fresh: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Registry {
    channels: HashMap<Box<[u8]>, HashMap<Speaker, Members>>,
    tenants: HashMap<Speaker, Tenant>,
    /// Channels that somebody has come to or left since the last round.
    changed: HashSet<Box<[u8]>>,
    waiting: Vec<Reply>,
    /// Number of the last round that has begun.
    begun: u64,
    /// Number of the last round that is done: those who came for a later one do not listen yet.
    done: u64,
    /// The hub has ended.
    pub(crate) closed: bool,
}

/// What is to be done in one round.
pub(crate) struct Round {
    pub(crate) number: u64,
    pub(crate) listen: Vec<Box<[u8]>>,
    pub(crate) unlisten: Vec<Box<[u8]>>,
    /// Tenants whose connections are to be looked for: id of the voice, speaker, generation.
    pub(crate) fresh: Vec<(u64, Speaker, u64)>,
    pub(crate) waiting: Vec<Reply>,
}

/// How a notification was dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// To this many mailboxes.
    To(usize),
    /// Its tenant does not listen on this channel.
    Nobody,
}

impl Registry {
    /// `subscriber` listens on `channel` from the next round on. Whether that is new.
    pub(crate) fn join(&mut self, voices: &Voices, channel: &[u8], subscriber: &Arc<Subscriber>) {
        let voice = &subscriber.voice;
        let members = match self.channels.get_mut(channel) {
            Some(channel) => channel.entry(voice.speaker).or_default(),
            None => {
                self.changed.insert(channel.into());
                self.channels.entry(channel.into()).or_default().entry(voice.speaker).or_default()
            }
        };
        if members.iter().any(|m| Arc::ptr_eq(&m.subscriber, subscriber)) {
            return;
        }
        members.push(Member { subscriber: subscriber.clone(), round: self.begun + 1 });
        let tenant = self.tenants.entry(voice.speaker).or_insert_with(|| {
            voices.begin(voice);
            Tenant { voice: voice.clone(), members: 0, since: u64::MAX, fresh: true }
        });
        tenant.members += 1;
    }

    /// Waits for the next round.
    pub(crate) fn wait(&mut self, reply: Reply) {
        self.waiting.push(reply);
    }

    /// `subscriber` no longer listens on `channel`.
    pub(crate) fn part(&mut self, voices: &Voices, channel: &[u8], subscriber: &Arc<Subscriber>) {
        let speaker = subscriber.voice.speaker;
        let Some(speakers) = self.channels.get_mut(channel) else { return };
        let Some(members) = speakers.get_mut(&speaker) else { return };
        let Some(at) = members.iter().position(|m| Arc::ptr_eq(&m.subscriber, subscriber)) else { return };
        members.swap_remove(at);
        if members.is_empty() {
            speakers.remove(&speaker);
        }
        if speakers.is_empty() {
            self.channels.remove(channel);
            self.changed.insert(channel.into());
        }
        if let Some(tenant) = self.tenants.get_mut(&speaker) {
            tenant.members -= 1;
            if tenant.members == 0 {
                voices.end(&tenant.voice);
                self.tenants.remove(&speaker);
            }
        }
    }

    /// Nobody listens, and nobody waits.
    pub(crate) fn is_unused(&self) -> bool {
        self.channels.is_empty() && self.waiting.is_empty()
    }

    /// Those who wait.
    pub(crate) fn take_waiting(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.waiting)
    }

    /// What is to be done now, given what the server listens on; none if nothing is. The private
    /// channel must be listened on: what is announced from here on counts.
    pub(crate) fn begin(&mut self, voices: &Voices, listened: &mut HashSet<Box<[u8]>>) -> Option<Round> {
        if self.changed.is_empty() && self.waiting.is_empty() && self.tenants.values().all(|t| !t.fresh) {
            return None;
        }
        self.begun += 1;
        let (mut listen, mut unlisten) = (Vec::new(), Vec::new());
        for channel in self.changed.drain() {
            if self.channels.contains_key(&channel) {
                if listened.insert(channel.clone()) {
                    listen.push(channel);
                }
            } else if listened.remove(&channel) {
                unlisten.push(channel);
            }
        }
        let mut fresh = Vec::new();
        for tenant in self.tenants.values_mut().filter(|tenant| tenant.fresh) {
            tenant.fresh = false;
            tenant.since = voices.raise(&tenant.voice);
            fresh.push((tenant.voice.id, tenant.voice.speaker, tenant.since));
        }
        let waiting = std::mem::take(&mut self.waiting);
        Some(Round { number: self.begun, listen, unlisten, fresh, waiting })
    }

    /// The mark of round `number` has been heard: who came for it listens.
    pub(crate) fn is_done(&mut self, number: u64) {
        self.done = self.done.max(number);
    }

    /// These have not been listened on after all: they are tried again.
    pub(crate) fn failed(&mut self, round: &Round, listened: &mut HashSet<Box<[u8]>>) {
        for channel in &round.listen {
            listened.remove(channel);
            if self.channels.contains_key(channel) {
                self.changed.insert(channel.clone());
            }
        }
        // Being listened on for longer does no harm; it is put right with the next change.
        listened.extend(round.unlisten.iter().cloned());
    }

    /// The server's connection is another one: nothing is listened on, and nothing is believed.
    pub(crate) fn begin_anew(&mut self) {
        self.changed = self.channels.keys().cloned().collect();
        for tenant in self.tenants.values_mut() {
            tenant.since = u64::MAX;
            tenant.fresh = true;
        }
    }

    /// Tells those who listen that they may have missed something. How many there are.
    pub(crate) fn tell_of_gap(&self) -> usize {
        let mut told: HashSet<*const Subscriber> = HashSet::new();
        for member in self.channels.values().flat_map(HashMap::values).flatten() {
            if member.round <= self.done && told.insert(Arc::as_ptr(&member.subscriber)) {
                member.subscriber.gap();
            }
        }
        told.len()
    }

    /// Whether anybody at all listens on `channel`.
    pub(crate) fn has_channel(&self, channel: &[u8]) -> bool {
        self.channels.contains_key(channel)
    }

    /// Whether announcements of this speaker with this generation are believed.
    pub(crate) fn believes(&self, speaker: &Speaker, generation: u64) -> bool {
        self.tenants.get(speaker).is_some_and(|tenant| generation >= tenant.since)
    }

    /// Puts a notification of `speaker` into the mailboxes it is for.
    pub(crate) fn deliver(&self, speaker: &Speaker, channel: &[u8], frame: &[u8]) -> Delivered {
        let Some(members) = self.channels.get(channel).and_then(|speakers| speakers.get(speaker)) else {
            return Delivered::Nobody;
        };
        let note = Arc::new(Note { channel: channel.into(), frame: frame.into() });
        let listening = members.iter().filter(|member| member.round <= self.done);
        Delivered::To(listening.filter(|member| member.subscriber.deliver(&note)).count())
    }
}
