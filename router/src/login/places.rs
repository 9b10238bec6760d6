//! Places for connections that have not logged in. When all are taken, whoever comes gets the place
//! of the one that has been at it for longest: a login takes milliseconds, and who holds its place
//! for longer than it takes a thousand others to come is no login.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Places beyond the limit for when all that have one have proven themselves, and so cannot be made to go: they
/// may be waiting for a shard, and an operator who wants to see to it must get in.
const RESERVED: usize = 4;

/// All places.
#[derive(Default)]
pub(crate) struct Places {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    /// Those that can be made to go, by age.
    waiting: BTreeMap<u64, (Option<IpAddr>, Arc<Notify>)>,
    /// Of each address, the oldest first. Loopback and unix sockets are one.
    of_address: HashMap<Option<IpAddr>, VecDeque<u64>>,
    /// All that have a place.
    taken: usize,
}

impl State {
    /// Makes the oldest of an address go.
    fn evict(&mut self, address: Option<IpAddr>) -> bool {
        let oldest = self.of_address.get(&address).and_then(|numbers| numbers.front().copied());
        let Some(number) = oldest else { return false };
        if let Some((_, gone)) = self.remove(number) {
            gone.notify_one();
            // Its place is free now; that it has left is seen later.
            self.taken -= 1;
        }
        true
    }

    fn remove(&mut self, number: u64) -> Option<(Option<IpAddr>, Arc<Notify>)> {
        let found = self.waiting.remove(&number)?;
        if let Some(numbers) = self.of_address.get_mut(&found.0) {
            numbers.retain(|n| *n != number);
            if numbers.is_empty() {
                self.of_address.remove(&found.0);
            }
        }
        Some(found)
    }

    /// The address that has the most places.
    fn crowd(&self) -> Option<Option<IpAddr>> {
        let most = self.of_address.iter().max_by_key(|(_, numbers)| numbers.len());
        most.map(|(address, _)| *address)
    }
}

impl Places {
    /// A place, if there is one to be had: at most `all`, and `each` of an address that is given.
    pub(crate) fn take(self: &Arc<Self>, address: Option<IpAddr>, all: usize, each: usize) -> Option<Place> {
        let mut state = self.state.lock();
        let of_address = state.of_address.get(&address).map_or(0, VecDeque::len);
        let crowded = address.is_some() && of_address >= each;
        if crowded {
            state.evict(address);
        } else if state.taken >= all {
            match state.crowd() {
                Some(crowd) => drop(state.evict(crowd)),
                // All have proven themselves, and wait for their servers perhaps.
                None if state.taken < all + RESERVED => {}
                None => return None,
            }
        }
        state.last += 1;
        state.taken += 1;
        let number = state.last;
        let gone = Arc::new(Notify::new());
        state.waiting.insert(number, (address, gone.clone()));
        state.of_address.entry(address).or_default().push_back(number);
        Some(Place { places: self.clone(), number, gone, proven: false })
    }

    /// Places that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.state.lock().taken
    }
}

/// A place; given back when dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    gone: Arc<Notify>,
    /// It is no stranger's any more, and nobody else gets it.
    proven: bool,
}

impl Place {
    /// Tells whoever has it that somebody else got it.
    pub(crate) fn gone(&self) -> Arc<Notify> {
        self.gone.clone()
    }

    /// The client has proven itself: its place is its own until it has become a session.
    pub(crate) fn keep(&mut self) {
        // Where it has been taken already, that counts.
        self.proven = self.places.state.lock().remove(self.number).is_some();
    }

    /// The same, for who does not come for the console: one of the places that are reserved stays free
    /// for the next. Whether there is another.
    pub(crate) fn keep_unless_reserved(&mut self, all: usize) -> bool {
        let mut state = self.places.state.lock();
        if state.taken > all {
            return false;
        }
        self.proven = state.remove(self.number).is_some();
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.state.lock();
        if state.remove(self.number).is_some() || self.proven {
            state.taken -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, n]))
    }

    fn is_gone(place: &Place) -> bool {
        use std::future::Future;
        let notified = place.gone();
        let mut future = std::pin::pin!(notified.notified());
        future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[test]
    fn places_are_reserved_for_when_nobody_can_be_made_to_go() {
        let places = Arc::new(Places::default());
        let mut proven: Vec<_> = (0..3).map(|_| places.take(address(2), 3, 9).unwrap()).collect();
        proven.iter_mut().for_each(|place| assert!(place.keep_unless_reserved(3)));
        let mut tenant = places.take(address(1), 3, 9).unwrap();
        assert!(!tenant.keep_unless_reserved(3), "it cannot have what is reserved");
        // Strangers take the reserve from each other.
        let mut operator = places.take(address(1), 3, 9).unwrap();
        assert!(is_gone(&tenant) && !is_gone(&operator));
        operator.keep();
        drop(tenant);
        let mut others = Vec::new();
        for _ in 1..RESERVED {
            let mut other = places.take(address(1), 3, 9).unwrap();
            other.keep();
            others.push(other);
        }
        assert!(places.take(address(1), 3, 9).is_none());
        proven.clear();
        assert_eq!(places.taken(), RESERVED);
    }

    #[test]
    fn the_oldest_of_the_crowd_goes() {
        let places = Arc::new(Places::default());
        let quiet = places.take(address(1), 5, 9).unwrap();
        let crowd: Vec<_> = (0..4).map(|_| places.take(address(2), 5, 9).unwrap()).collect();
        let new = places.take(address(3), 5, 9).unwrap();
        assert!(is_gone(&crowd[0]) && !is_gone(&crowd[1]) && !is_gone(&quiet) && !is_gone(&new));
        assert_eq!(places.taken(), 5);
        drop(crowd);
        assert_eq!(places.taken(), 2);
        drop((quiet, new));
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn an_address_has_so_many() {
        let places = Arc::new(Places::default());
        let mut held: Vec<_> = (0..10).map(|_| places.take(address(1), 100, 3).unwrap()).collect();
        assert_eq!(places.taken(), 3);
        assert_eq!(held.iter().filter(|p| is_gone(p)).count(), 7);
        held.drain(..7);
        assert_eq!(places.taken(), 3);
        // Loopback has no limit of its own.
        let local: Vec<_> = (0..10).map(|_| places.take(None, 100, 3).unwrap()).collect();
        assert!(local.iter().all(|p| !is_gone(p)));
    }

    #[test]
    fn the_proven_stay() {
        let places = Arc::new(Places::default());
        let mut held: Vec<_> = (0..3).map(|_| places.take(None, 3, 9).unwrap()).collect();
        held.iter_mut().for_each(Place::keep);
        let reserved = places.take(None, 3, 9).expect("one that is reserved");
        assert!(!is_gone(&reserved));
        drop(reserved);
        held.pop();
        assert!(places.take(None, 3, 9).is_some());
        drop(held);
        assert_eq!(places.taken(), 0);
    }
}
