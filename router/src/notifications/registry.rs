//! Who listens on which channel at one hub, without IO.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use switchyard_config::TenantId;
use tokio::sync::oneshot;

use super::subscriber::{Note, Subscriber};
use super::tag::Speaker;
use super::voice::{Voice, Voices};

/// Why the hub does not do what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// It cannot.
    Away,
    /// The tenant would listen on more channels than it may.
    TooMany,
}

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
    /// How many channels it has members on.
    channels: usize,
    /// By router: announcements with a lower generation are not believed, as they may have been made before
    /// the hub could hear all of them.
    since: HashMap<u64, u64>,
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
    /// Tenants that nobody listens for any more, and of which other routers have been told.
    left: Vec<TenantId>,
    /// What other routers have answered since the last round.
    answers: Vec<Answer>,
    /// Number of the last round that has begun.
    begun: u64,
    /// Number of the last round that is done: those who came for a later one do not listen yet.
    done: u64,
    /// The hub has ended.
    pub(crate) closed: bool,
}

/// What another router has said of the tenants that it was asked to announce.
pub(crate) struct Answer {
    /// The router.
    pub(crate) router: u64,
    /// Number of the last tag that it had made.
    pub(crate) as_of: u64,
    /// Tenants, the generations that they are announced with, and a process that serves one right now, or 0.
    pub(crate) what: Vec<(TenantId, u64, u32)>,
    /// Whether something may have been missed.
    pub(crate) late: bool,
}

/// What is to be done in one round.
pub(crate) struct Round {
    pub(crate) number: u64,
    pub(crate) listen: Vec<Box<[u8]>>,
    pub(crate) unlisten: Vec<Box<[u8]>>,
    /// Tenants whose connections are to be looked for, with their generations.
    pub(crate) fresh: Vec<(Arc<Voice>, u64)>,
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
        let first = members.is_empty();
        members.push(Member { subscriber: subscriber.clone(), round: self.begun + 1 });
        let tenant = self.tenants.entry(voice.speaker).or_insert_with(|| {
            voices.begin(voice);
            Tenant { voice: voice.clone(), members: 0, channels: 0, since: HashMap::new(), fresh: true }
        });
        tenant.members += 1;
        tenant.channels += usize::from(first);
    }

    /// Whether the tenant would have more than `max` channels with these, as new ones of any of its sessions.
    pub(crate) fn are_too_many<'c>(
        &self,
        speaker: Speaker,
        channels: impl Iterator<Item = &'c [u8]>,
        max: usize,
    ) -> bool {
        let there = self.tenants.get(&speaker).map_or(0, |tenant| tenant.channels);
        let is_there = |name: &[u8]| self.channels.get(name).is_some_and(|c| c.contains_key(&speaker));
        let new = channels.filter(|name| !is_there(name)).count();
        new > 0 && there + new > max
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
        let last = members.is_empty();
        if last {
            speakers.remove(&speaker);
        }
        if speakers.is_empty() {
            self.channels.remove(channel);
            self.changed.insert(channel.into());
        }
        if let Some(tenant) = self.tenants.get_mut(&speaker) {
            tenant.members -= 1;
            tenant.channels -= usize::from(last);
            if tenant.members == 0 {
                voices.end(&tenant.voice);
                if !tenant.fresh {
                    self.left.push(tenant.voice.tenant.clone());
                }
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
        let nothing = self.changed.is_empty() && self.waiting.is_empty() && self.answers.is_empty();
        if nothing && self.tenants.values().all(|t| !t.fresh) {
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
            let generation = voices.raise(&tenant.voice);
            tenant.since = [(voices.router, generation)].into();
            fresh.push((tenant.voice.clone(), generation));
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
            tenant.since.clear();
            tenant.fresh = true;
        }
        self.answers.clear();
    }

    /// Tenants that nobody listens for any more, since this was asked last.
    pub(crate) fn take_left(&mut self) -> Vec<TenantId> {
        std::mem::take(&mut self.left)
    }

    /// Another router has answered; it counts from the end of the next round.
    pub(crate) fn answered(&mut self, answer: Answer) {
        self.answers.push(answer);
    }

    /// What has been answered since this was asked last.
    pub(crate) fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// The mark has been heard behind everything that was sent before this answer: from here on the router's
    /// announcements are believed. The processes that are known to serve somebody: pid, speaker, generation.
    pub(crate) fn believe(&mut self, voices: &Voices, answer: &Answer) -> Vec<(u32, Speaker, u64)> {
        let mut known = Vec::new();
        let mut missed = HashSet::new();
        for (tenant, generation, pid) in &answer.what {
            let speaker = voices.key.speaker(tenant.as_str());
            let Some(tenant) = self.tenants.get_mut(&speaker).filter(|tenant| !tenant.fresh) else {
                continue;
            };
            if tenant.since.insert(answer.router, *generation).is_none_or(|before| before != *generation)
                && answer.late
            {
                missed.insert(speaker);
            }
            if *pid != 0 {
                known.push((*pid, speaker, *generation));
            }
        }
        if !missed.is_empty() {
            self.tell_those(|speaker| missed.contains(speaker));
        }
        known
    }

    /// Tells those who listen that they may have missed something. How many there are.
    pub(crate) fn tell_of_gap(&self) -> usize {
        self.tell_those(|_| true)
    }

    fn tell_those(&self, which: impl Fn(&Speaker) -> bool) -> usize {
        let mut told: HashSet<*const Subscriber> = HashSet::new();
        let members = self.channels.values().flatten().filter(|(speaker, _)| which(speaker));
        for member in members.flat_map(|(_, members)| members) {
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

    /// Whether announcements of this speaker by this router with this generation are believed.
    pub(crate) fn believes(&self, speaker: &Speaker, router: u64, generation: u64) -> bool {
        let since = self.tenants.get(speaker).and_then(|tenant| tenant.since.get(&router));
        since.is_some_and(|since| generation >= *since)
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
