//! What a client is given to cancel by: a process id and a secret, which also say which router, and
//! which process of it, has the session.
//!
//! The secret of a client of protocol 3.0 has 32 bits, and all of them are random: the address is in
//! the process id. In session pooling the process id is that of the session's server connection, and
//! whoever does not know the key asks everybody.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Bytes of a secret in protocol 3.2, as PostgreSQL 18's.
// MAX_CANCEL_KEY_LENGTH in src/include/storage/procsignal.h
pub(crate) const LONG_BYTES: usize = 32;

/// First byte of a long secret: its layout.
const LONG_FORMAT: u8 = 1;

/// A process id with this bit is made up here. PostgreSQL's own are smaller (at most 2^22 on Linux), and
/// it is positive as a signed number, which drivers take it for.
const MADE_UP: u32 = 1 << 30;

/// A router, and one of its processes on one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// See [`switchyard_config::settings::RouterSettings::id`].
    pub(crate) router: u16,
    /// Tells apart processes of this router that live at the same time.
    pub(crate) process: u8,
}

/// A session's process id and secret.
pub(crate) struct CancelKey {
    pid: u32,
    secret: Zeroizing<Box<[u8]>>,
}

impl CancelKey {
    /// What stands in BackendKeyData as the backend's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// What stands there as its secret.
    pub(crate) fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// Whether it is this one; in a time that does not depend on where they differ.
    pub(crate) fn is(&self, pid: u32, secret: &[u8]) -> bool {
        self.pid == pid && bool::from(self.secret.ct_eq(secret))
    }
}

/// Makes the keys of a process, and places them in a map.
pub(crate) struct Keys {
    own: Holder,
    last: AtomicU32,
    hasher: RandomState,
}

impl Keys {
    pub(crate) fn new(own: Holder) -> Self {
        Self { own, last: AtomicU32::new(0), hasher: RandomState::new() }
    }

    pub(crate) fn own(&self) -> Holder {
        self.own
    }

    /// A key for a new session, with a long secret for a client of protocol 3.2. `backend` is the
    /// process id to show, where it is not to be made up. None if the system gives no random numbers.
    pub(crate) fn draw(&self, long: bool, backend: Option<u32>) -> Option<CancelKey> {
        let mut secret = Zeroizing::new(vec![0; if long { LONG_BYTES } else { 4 }].into_boxed_slice());
        aws_lc_rs::rand::fill(&mut secret).ok()?;
        if long {
            let [high, low] = self.own.router.to_be_bytes();
            secret[..4].copy_from_slice(&[LONG_FORMAT, high, low, self.own.process]);
        }
        let low = self.last.fetch_add(1, Ordering::Relaxed) & 0xff;
        let made_up = MADE_UP | u32::from(self.own.router) << 16 | u32::from(self.own.process) << 8 | low;
        Some(CancelKey { pid: backend.unwrap_or(made_up), secret })
    }

    /// Where a key stands in the map of sessions: keyed by a random hash, so that the time of a look
    /// says nothing of how nearly a guess is right.
    pub(crate) fn place(&self, pid: u32, secret: &[u8]) -> u64 {
        self.hasher.hash_one((pid, secret))
    }
}

/// Who has the session of a key. None if the key does not say.
pub(crate) fn holder(pid: u32, secret: &[u8]) -> Option<Holder> {
    if let [LONG_FORMAT, high, low, process, ..] = *secret
        && secret.len() == LONG_BYTES
    {
        return Some(Holder { router: u16::from_be_bytes([high, low]), process });
    }
    (pid & MADE_UP != 0).then_some(Holder { router: (pid >> 16 & 0x3fff) as u16, process: (pid >> 8) as u8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_who_has_the_session() {
        let own = Holder { router: 16_383, process: 255 };
        let keys = Keys::new(own);
        for long in [false, true] {
            let key = keys.draw(long, None).unwrap();
            assert_eq!(key.secret().len(), if long { LONG_BYTES } else { 4 });
            assert_eq!(holder(key.pid(), key.secret()), Some(own));
            assert!(i32::try_from(key.pid()).is_ok());
            assert!(key.is(key.pid(), key.secret()));
            assert!(!key.is(key.pid() ^ 1, key.secret()) && !key.is(key.pid(), &key.secret()[1..]));
        }
        let of_backend = keys.draw(false, Some(4711)).unwrap();
        assert_eq!((of_backend.pid(), holder(4711, of_backend.secret())), (4711, None));
        let long = keys.draw(true, Some(4711)).unwrap();
        assert_eq!(holder(4711, long.secret()), Some(own));
    }

    #[test]
    fn short_secrets_are_random_in_every_bit() {
        let keys = Keys::new(Holder { router: 1, process: 1 });
        let (mut ones, mut zeros) = (0, 0);
        for _ in 0..64 {
            let key = keys.draw(false, None).unwrap();
            let word = u32::from_be_bytes(key.secret().try_into().unwrap());
            ones |= word;
            zeros |= !word;
        }
        // That a bit is the same in 64 draws happens once in 2^58.
        assert_eq!((ones, zeros), (u32::MAX, u32::MAX));
    }
}
