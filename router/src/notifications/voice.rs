//! Which tenants somebody listens for, and what server connections announce because of it.
//!
//! A connection announces its tenant only where that matters: when it comes to a tenant that somebody
//! listens for, and when it leaves one. To everybody else it costs a comparison.
//!
//! Each time a tenant is first listened for at a hub, or a hub begins anew, the tenant gets a new
//! *generation*, a number never used twice, and its connections announce it once more with that. A hub
//! believes no announcement from before: in between, a connection may have changed hands unannounced.
//!
//! Those who listen at other routers count as well, by what these say ([`super::elsewhere`]).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use parking_lot::Mutex;
use switchyard_config::TenantId;

use super::tag::{Place, Speaker, Tag, TagKey};
use crate::server::Server;

/// A tenant, as far as notifications are concerned.
#[derive(Debug)]
pub(crate) struct Voice {
    /// Never 0, and never used twice in the life of the process.
    pub(crate) id: u64,
    pub(crate) tenant: TenantId,
    /// Who it is in tags.
    pub(crate) speaker: Speaker,
    /// 0 where nobody listens for it.
    generation: AtomicU64,
    /// Hubs at which somebody listens for it.
    hubs: Mutex<usize>,
}

impl Voice {
    /// What its connections announce now; 0 where nobody listens for it.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }
}

/// Makes voices, and announcements.
pub(crate) struct Voices {
    pub(crate) key: TagKey,
    /// Who announces: a number that no other process has.
    pub(crate) router: u64,
    /// Other routers have the key as well.
    pub(super) is_shared: bool,
    /// Tenants that somebody listens for.
    listened: AtomicUsize,
    known: DashMap<TenantId, Weak<Voice>>,
    last_id: AtomicU64,
    last_generation: AtomicU64,
    last_number: AtomicU64,
}

impl Voices {
    /// Announces by the key that is made of `secret`, which other routers may have as well, as `router`.
    pub(crate) fn new(secret: &[u8], is_shared: bool, router: u64) -> Self {
        Self {
            key: TagKey::new(secret),
            router,
            is_shared,
            listened: AtomicUsize::new(0),
            known: DashMap::new(),
            last_id: AtomicU64::new(0),
            last_generation: AtomicU64::new(0),
            last_number: AtomicU64::new(0),
        }
    }

    /// The voice of `tenant`; the same for all that ask while somebody has it.
    pub(crate) fn get(&self, tenant: &TenantId) -> Arc<Voice> {
        crate::context::intern(&self.known, tenant.clone(), |tenant| Voice {
            id: self.last_id.fetch_add(1, Ordering::Relaxed) + 1,
            speaker: self.key.speaker(tenant.as_str()),
            tenant: tenant.clone(),
            generation: AtomicU64::new(0),
            hubs: Mutex::new(0),
        })
    }

    /// Somebody wants to listen for it at one hub more.
    pub(crate) fn begin(&self, voice: &Voice) {
        let mut hubs = voice.hubs.lock();
        *hubs += 1;
        if *hubs == 1 {
            self.listened.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// That hub hears announcements from here on: the generation of those that it is to believe.
    pub(crate) fn raise(&self, voice: &Voice) -> u64 {
        let _hubs = voice.hubs.lock();
        let generation = self.last_generation.fetch_add(1, Ordering::Relaxed) + 1;
        voice.generation.store(generation, Ordering::SeqCst);
        generation
    }

    /// Nobody listens for it at one hub any more.
    pub(crate) fn end(&self, voice: &Voice) {
        let mut hubs = voice.hubs.lock();
        *hubs -= 1;
        if *hubs == 0 {
            voice.generation.store(0, Ordering::SeqCst);
            self.listened.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Number of the last tag that was made.
    pub(crate) fn last_number(&self) -> u64 {
        self.last_number.load(Ordering::SeqCst)
    }

    /// What `server` must announce before it serves the tenant of `voice`, if anything: the payload for
    /// the private channel. The caller writes it ahead of all that the tenant sends, or closes
    /// the connection.
    ///
    /// The session must be [attached](crate::session::handle::SessionHandle::attached) to the connection:
    /// whoever begins to listen raises the generation first, and then looks at what is attached. So either
    /// the new generation is seen here, or the connection there.
    #[inline]
    pub(crate) fn announcement(&self, server: &mut Server, voice: &Arc<Voice>) -> Option<String> {
        let same = server.voice.as_ref().is_some_and(|old| Arc::ptr_eq(old, voice));
        if same && server.announced == voice.generation() {
            return None;
        }
        self.change(server, voice)
    }

    #[cold]
    fn change(&self, server: &mut Server, voice: &Arc<Voice>) -> Option<String> {
        // Stored before any generation is read; a hub does it in the other order.
        server.identity.voice.store(voice.id, Ordering::SeqCst);
        let left = match server.voice.replace(voice.clone()) {
            // Somewhere it is believed to serve that tenant until it says otherwise, though nobody may listen
            // any more as far as is known here.
            Some(old) if old.id != voice.id => {
                let told = server.identity.told.swap(false, Ordering::SeqCst);
                told || std::mem::take(&mut server.claimed) || old.generation.load(Ordering::SeqCst) != 0
            }
            Some(_) => false,
            // A process before it may have had its id, and served somebody that is listened for.
            None => self.is_shared || self.listened.load(Ordering::SeqCst) != 0,
        };
        let generation = voice.generation.load(Ordering::SeqCst);
        if !left && (generation == 0 || server.announced == generation) {
            // What it has announced before, if anything, no hub believes any more.
            server.announced = generation;
            return None;
        }
        let number = self.last_number.fetch_add(1, Ordering::SeqCst) + 1;
        // Once more, now that there is a number: a hub that began in between has counted it in.
        let generation = voice.generation.load(Ordering::SeqCst);
        server.announced = generation;
        server.claimed = generation != 0;
        let place = Place {
            shard: server.identity.shard.name.as_str(),
            database: &server.route.database,
            pid: server.identity.pid,
        };
        Some(self.key.tag(place, &Tag { speaker: voice.speaker, router: self.router, generation, number }))
    }
}
