//! LISTEN for any number of sessions over one server connection for each database, and nobody hears
//! another tenant.
//!
//! A session's LISTEN runs on whatever connection it has, where PostgreSQL accepts or refuses it
//! ([`journal`] follows what commits). Before the session is told that it is ready, the [`hub`] of its
//! database listens for it. What the hub hears goes to the mailboxes ([`subscriber`]) of those sessions
//! whose own tenant has sent it, and from there to the client, between transactions.
//!
//! Whose a notification is cannot be seen in it: it has the process id of the server connection, which
//! serves one tenant after the other. So a connection that comes to a tenant for whom somebody listens,
//! or leaves it, says so on a private channel ([`voice`], [`tag`]), in the transaction that sets the
//! context. PostgreSQL delivers notifications in the order of commits, so that the hub knows who has
//! spoken ([`attribution`]).
//!
//! `docs/decisions/0008-notifications.md` has the reasons and the gaps.

mod attribution;
pub(crate) mod elsewhere;
pub(crate) mod hub;
pub(crate) mod journal;
pub(crate) mod link;
mod registry;
pub(crate) mod subscriber;
pub(crate) mod tag;
pub(crate) mod voice;

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::pool::Pool;
use crate::server::Route;
use crate::shared::Shared;
use crate::stats::Count;
use hub::Hub;
use subscriber::Subscriber;

pub(crate) use registry::Unavailable;

/// What all sessions that listen share.
#[derive(Default)]
pub(crate) struct Notifications {
    /// Sessions that listen, by their number.
    listeners: DashMap<u64, Arc<Subscriber>>,
    hubs: AtomicUsize,
    runtime: OnceLock<Handle>,
    /// Listeners at other routers.
    pub(crate) elsewhere: elsewhere::Elsewhere,
    pub(crate) counts: Counts,
}

/// What was done with notifications.
#[derive(Default)]
pub(crate) struct Counts {
    /// Put into mailboxes, once for each.
    pub(crate) delivered: Count,
    /// Of a tenant that does not listen on the channel; another one does.
    pub(crate) unheard: Count,
    /// Of a process that is no server connection of this router or another that is known, or has not said whose
    /// it is.
    pub(crate) unknown: Count,
    /// For a session whose mailbox was full.
    pub(crate) overflowed: Count,
    /// On the private channel, by somebody who has no business there.
    pub(crate) forged: Count,
    /// Questions that another router has not answered in time.
    pub(crate) unanswered: Count,
    /// Times that a hub was away while sessions listened.
    pub(crate) gaps: Count,
}

impl Notifications {
    /// Hubs run where `runtime` does, not on the workers.
    pub(crate) fn run_on(&self, runtime: Handle) {
        let _ = self.runtime.set(runtime);
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match self.runtime.get() {
            Some(runtime) => drop(runtime.spawn(task)),
            None => drop(tokio::spawn(task)),
        }
    }

    /// A session listens.
    pub(crate) fn listener_came(&self, session: u64, subscriber: &Arc<Subscriber>) {
        self.listeners.insert(session, subscriber.clone());
    }

    /// It no longer does.
    pub(crate) fn listener_went(&self, session: u64) {
        self.listeners.remove(&session);
    }

    /// Has every session that listens look where its tenant lives now.
    pub(crate) fn topology_changed(&self) {
        for listener in &self.listeners {
            listener.look_again();
        }
    }

    /// Sessions that listen, and hubs.
    pub(crate) fn gauges(&self) -> (usize, usize) {
        (self.listeners.len(), self.hubs.load(Ordering::Relaxed))
    }

    fn hub_began(&self) -> HubCount<'_> {
        self.hubs.fetch_add(1, Ordering::Relaxed);
        HubCount(&self.hubs)
    }
}

struct HubCount<'n>(&'n AtomicUsize);

impl Drop for HubCount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The hubs of one pool.
#[derive(Default)]
pub(crate) struct Hubs(Mutex<HashMap<Route, Arc<Hub>>>);

impl Hubs {
    /// The hub for `route`; it is made if there is none.
    pub(crate) fn get(shared: &Arc<Shared>, pool: &Arc<Pool>, route: &Route) -> Arc<Hub> {
        let mut hubs = pool.hubs.0.lock();
        if let Some(hub) = hubs.get(route).filter(|hub| !hub.is_closed()) {
            return hub.clone();
        }
        let hub = Hub::start(shared, pool, route);
        hubs.insert(route.clone(), hub.clone());
        hub
    }

    /// `hub` has ended.
    fn forget(&self, hub: &Arc<Hub>) {
        let mut hubs = self.0.lock();
        if hubs.get(&hub.route).is_some_and(|known| Arc::ptr_eq(known, hub)) {
            hubs.remove(&hub.route);
        }
    }
}
