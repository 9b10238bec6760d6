//! How a session is reached from outside: to cancel its query, to end it, to look at it.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::Notify;

use switchyard_config::TenantId;

use super::Who;
use crate::cancel::key::CancelKey;
use crate::classify::Pin;
use crate::server::{ServerIdentity, SocketFacts};

/// What a session can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Order {
    /// End now.
    Terminate = 1,
    /// End when no transaction is open.
    Drain = 2,
    /// End if idle.
    IdleTimeout = 4,
    /// Look at the topology even if idle: the tenant may not be served any more.
    Refresh = 16,
    /// End if idle inside a transaction.
    IdleInTransactionTimeout = 8,
    /// Stop waiting for a server connection, if it is the wait that was canceled.
    CancelWait = 32,
    /// Look at the mailbox.
    Mail = 64,
    /// End if between transactions: the tenant moves, and what the session keeps cannot be carried.
    Moving = 128,
}

impl Order {
    /// All, the most pressing first.
    const ALL: [Self; 8] = [
        Self::Terminate,
        Self::Moving,
        Self::CancelWait,
        Self::Refresh,
        Self::Mail,
        Self::IdleTimeout,
        Self::IdleInTransactionTimeout,
        Self::Drain,
    ];
}

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Activity {
    /// Between transactions, without a server connection.
    Idle = 0,
    /// In a transaction, or waiting for a server connection.
    Active = 1,
    /// In a transaction, and it is the client's turn.
    IdleInTransaction = 2,
}

/// What a cancel request for a session meets.
#[derive(Default)]
struct Cancelable {
    /// The server connection that it has borrowed.
    server: Option<Arc<ServerIdentity>>,
    /// A request has begun since it was borrowed.
    canceled: bool,
    /// Whether it waits for one.
    wait: Wait,
    /// Told, once, when the server connection is given back.
    told: Option<Arc<Notify>>,
}

/// A session's wait for a server connection, as cancel requests see it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Wait {
    #[default]
    No,
    Yes,
    /// What it waits for is not to run.
    Canceled,
}

/// What a cancel request has met.
pub(crate) enum Canceled {
    /// A server connection, on which the request is counted in.
    On(Arc<ServerIdentity>),
    /// A wait for one, which ends.
    Wait,
    /// A session that is idle.
    Nothing,
}

impl ClientFacts {
    pub(crate) fn new(session: u64, socket: SocketFacts, application_name: &str) -> Self {
        let mut end = application_name.len().min(APPLICATION_NAME_BYTES);
        while !application_name.is_char_boundary(end) {
            end -= 1;
        }
        let application_name = application_name[..end].into();
        Self { session, socket, began: SystemTime::now(), application_name }
    }
}

/// Longest `application_name` kept, in bytes. // NAMEDATALEN - 1, src/include/pg_config_manual.h
const APPLICATION_NAME_BYTES: usize = 63;

/// A session as the registry has it.
pub(crate) struct SessionHandle {
    /// What the client has as the backend's process id and secret.
    pub(crate) key: CancelKey,
    pub(crate) who: Arc<Who>,
    /// The tenant of a roaming session, as of its last transaction.
    roams_as: arc_swap::ArcSwapOption<TenantId>,
    orders: AtomicU8,
    activity: AtomicU8,
    /// Seconds since the router began, of the last change of activity.
    since: AtomicU32,
    waker: OnceLock<Waker>,
    target: Mutex<Cancelable>,
    /// What does not change, for who looks at it.
    pub(crate) facts: OnceLock<Box<ClientFacts>>,
    /// Number of the reason for which it keeps its server connection, and one; 0 for none.
    pin: AtomicU8,
    /// Seconds since the router began, of when it was pinned.
    pinned_since: AtomicU32,
    /// Prepared statements after its last transaction.
    statements: AtomicU32,
}

/// What a session is, for who looks at it.
#[derive(Debug)]
pub(crate) struct ClientFacts {
    /// Its number in the log.
    pub(crate) session: u64,
    pub(crate) socket: SocketFacts,
    pub(crate) began: SystemTime,
    /// As given at startup.
    pub(crate) application_name: Box<str>,
}

impl SessionHandle {
    pub(crate) fn new(key: CancelKey, who: Arc<Who>) -> Self {
        Self {
            key,
            who,
            roams_as: arc_swap::ArcSwapOption::empty(),
            orders: AtomicU8::new(0),
            activity: AtomicU8::new(Activity::Idle as u8),
            since: AtomicU32::new(crate::clock::seconds()),
            waker: OnceLock::new(),
            target: Mutex::default(),
            facts: OnceLock::new(),
            pin: AtomicU8::new(0),
            pinned_since: AtomicU32::new(0),
            statements: AtomicU32::new(0),
        }
    }

    /// Its tenant; of a roaming session, that of its last transaction.
    pub(crate) fn tenant(&self) -> TenantId {
        match &*self.roams_as.load() {
            Some(tenant) => TenantId::clone(tenant),
            None => self.who.tenant.clone(),
        }
    }

    /// It is a session of this tenant from now on.
    pub(crate) fn becomes(&self, tenant: &TenantId) {
        self.roams_as.store(Some(Arc::new(tenant.clone())));
    }

    /// Its number: no two sessions of a process have the same. 0 before it is said.
    pub(crate) fn number(&self) -> u64 {
        self.facts.get().map_or(0, |facts| facts.session)
    }

    /// Remembers how to wake the session. A task's waker never changes, so once is enough.
    #[inline]
    pub(crate) fn register(&self, waker: &Waker) {
        if self.waker.get().is_none() {
            let _ = self.waker.set(waker.clone());
            // Before the orders are looked at: either they are seen, or the waker.
            fence(Ordering::SeqCst);
        }
    }

    /// Gives an order and wakes the session.
    pub(crate) fn command(&self, order: Order) {
        self.orders.fetch_or(order as u8, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// The most pressing order.
    #[inline]
    pub(crate) fn order(&self) -> Option<Order> {
        let orders = self.orders.load(Ordering::Acquire);
        if orders == 0 {
            return None;
        }
        Order::ALL.into_iter().find(|o| orders & *o as u8 != 0)
    }

    /// Whether an order stands.
    pub(crate) fn has(&self, order: Order) -> bool {
        self.orders.load(Ordering::Acquire) & order as u8 != 0
    }

    /// Takes an order back.
    pub(crate) fn withdraw(&self, order: Order) {
        self.orders.fetch_and(!(order as u8), Ordering::AcqRel);
    }

    #[inline]
    pub(crate) fn now_idle(&self) {
        self.set_activity(Activity::Idle);
    }

    #[inline]
    pub(crate) fn now_active(&self) {
        self.set_activity(Activity::Active);
    }

    #[inline]
    pub(crate) fn set_activity(&self, activity: Activity) {
        if self.activity.load(Ordering::Relaxed) != activity as u8 {
            self.activity.store(activity as u8, Ordering::Relaxed);
            self.since.store(crate::clock::seconds(), Ordering::Relaxed);
        }
    }

    /// What it is doing, and for how many seconds.
    pub(crate) fn activity(&self) -> (Activity, u32) {
        let activity = match self.activity.load(Ordering::Relaxed) {
            0 => Activity::Idle,
            1 => Activity::Active,
            _ => Activity::IdleInTransaction,
        };
        (activity, crate::clock::seconds().saturating_sub(self.since.load(Ordering::Relaxed)))
    }

    /// The session waits for a server connection, for a statement that the client has sent.
    pub(crate) fn waits(&self) {
        let mut target = self.target.lock();
        if target.wait == Wait::No {
            target.wait = Wait::Yes;
        }
    }

    /// It does not wait any more. Whether a cancel request has ended the wait.
    pub(crate) fn waits_no_more(&self) -> bool {
        std::mem::take(&mut self.target.lock().wait) == Wait::Canceled
    }

    /// The session has borrowed this server connection. False if a cancel request came while it waited:
    /// then it is not attached, and nothing must run.
    #[inline]
    #[must_use]
    pub(crate) fn attached(&self, server: &Arc<ServerIdentity>) -> bool {
        let mut target = self.target.lock();
        if std::mem::take(&mut target.wait) == Wait::Canceled {
            return false;
        }
        (target.server, target.canceled) = (Some(server.clone()), false);
        true
    }

    /// It gives it back. After this, no cancel request for the session can begin on it; one that
    /// has begun is counted in the server's identity.
    #[inline]
    pub(crate) fn detached(&self) {
        let told = {
            let mut target = self.target.lock();
            target.server = None;
            target.told.take()
        };
        self.unpinned();
        if let Some(told) = told {
            told.notify_one();
        }
    }

    /// It keeps its server connection from now on.
    pub(crate) fn pinned(&self, pin: Pin) {
        self.pinned_since.store(crate::clock::seconds(), Ordering::Relaxed);
        self.pin.store(pin as u8 + 1, Ordering::Relaxed);
    }

    /// It does not any more.
    pub(crate) fn unpinned(&self) {
        self.pin.store(0, Ordering::Relaxed);
    }

    /// Why it keeps its server connection, and for how many seconds.
    pub(crate) fn pin(&self) -> Option<(Pin, u32)> {
        let number = self.pin.load(Ordering::Relaxed).checked_sub(1)?;
        let pin = *Pin::ALL.get(usize::from(number))?;
        let since = self.pinned_since.load(Ordering::Relaxed);
        Some((pin, crate::clock::seconds().saturating_sub(since)))
    }

    /// It has so many prepared statements.
    #[inline]
    pub(crate) fn note_statements(&self, count: usize) {
        self.statements.store(count as u32, Ordering::Relaxed);
    }

    /// Prepared statements after its last transaction.
    pub(crate) fn statements(&self) -> u32 {
        self.statements.load(Ordering::Relaxed)
    }

    /// The server connection that it has borrowed, if any.
    pub(crate) fn target(&self) -> Option<Arc<ServerIdentity>> {
        self.target.lock().server.clone()
    }

    /// Whether it has a server connection. If so, `told` is when it has none any more.
    pub(crate) fn is_attached(&self, told: &Arc<Notify>) -> bool {
        let mut target = self.target.lock();
        let attached = target.server.is_some();
        if attached {
            target.told = Some(told.clone());
        }
        attached
    }

    /// A cancel request has come. What it means is decided here and now: what the client sends after it
    /// has been dealt with is not to be hit.
    pub(crate) fn cancel(&self) -> Canceled {
        let mut target = self.target.lock();
        if let Some(server) = target.server.clone() {
            target.canceled = true;
            server.cancel_begins();
            return Canceled::On(server);
        }
        if target.wait == Wait::No {
            return Canceled::Nothing;
        }
        target.wait = Wait::Canceled;
        drop(target);
        self.command(Order::CancelWait);
        Canceled::Wait
    }

    /// The same, once for all requests since it was asked last.
    pub(crate) fn take_canceled(&self) -> bool {
        std::mem::take(&mut self.target.lock().canceled)
    }

    /// Whether a cancel request has begun on the server connection that the session has, or had last.
    pub(crate) fn was_canceled(&self) -> bool {
        self.target.lock().canceled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::key::{Holder, Keys};
    use crate::session::Reads;

    fn handle() -> SessionHandle {
        let key = Keys::new(Holder { router: 1, process: 1 }).draw(false, None).unwrap();
        let tenant = TenantId::new("acme").unwrap();
        let who = Who { user: "app".to_owned(), tenant, reads: Reads::Anything, login: 0, roams: None };
        SessionHandle::new(key, Arc::new(who))
    }

    #[test]
    fn a_request_ends_the_wait_that_it_meets_and_no_other() {
        let session = handle();
        assert!(matches!(session.cancel(), Canceled::Nothing));
        assert!(!session.has(Order::CancelWait), "what is sent after it must not be hit");
        session.waits();
        assert!(!session.waits_no_more());
        session.waits();
        assert!(matches!(session.cancel(), Canceled::Wait));
        // A turn has come, and then a connection is waited for: it is the same statement.
        session.waits();
        assert!(session.waits_no_more());
        session.waits();
        assert!(session.has(Order::CancelWait) && !session.waits_no_more(), "the order comes late");
    }

    #[test]
    fn of_orders_that_arrive_together_none_is_lost_and_the_most_pressing_comes_first() {
        let session = handle();
        for order in Order::ALL.into_iter().chain(Order::ALL).rev() {
            session.command(order);
        }
        let mut seen = Vec::new();
        while let Some(order) = session.order() {
            assert!(session.has(order));
            seen.push(order);
            if seen.len() == 1 {
                // Given once more while it is dealt with: it is the same order.
                session.command(order);
            }
            session.withdraw(order);
            assert!(!session.has(order));
        }
        assert_eq!(seen, Order::ALL);
        // The one that stands until it can be obeyed must hide no other from who looks for the next.
        assert_eq!(seen.last(), Some(&Order::Drain));
        assert_eq!(
            seen.iter().map(|order| u32::from(*order as u8)).sum::<u32>(),
            255,
            "each has a bit of its own"
        );
    }

    #[test]
    fn an_order_wakes_the_session_and_one_that_came_before_it_slept_is_seen() {
        struct Woken(AtomicU32);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (session, woken) = (handle(), Arc::new(Woken(AtomicU32::new(0))));
        session.command(Order::Refresh);
        session.register(&Waker::from(woken.clone()));
        assert_eq!(session.order(), Some(Order::Refresh));
        session.command(Order::Mail);
        session.command(Order::Terminate);
        assert_eq!(woken.0.load(Ordering::SeqCst), 2);
        assert_eq!(session.order(), Some(Order::Terminate));
    }
}
