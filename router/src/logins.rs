//! The logins that users bring to the shards, where these are not the shard's own.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use dashmap::DashMap;
use secrecy::ExposeSecret;
use switchyard_config::topology::{ServerLogin, ServerSecret};

/// Gives each login a number that stays the same as long as role and secret do, so that a reload
/// does not make connections strange that are not.
#[derive(Default)]
pub(crate) struct Logins {
    by_number: DashMap<u64, Arc<ServerLogin>>,
    hasher: RandomState,
}

impl Logins {
    /// The number of `login`.
    pub(crate) fn number(&self, login: &Arc<ServerLogin>) -> u64 {
        let number = match &login.secret {
            ServerSecret::None => self.hasher.hash_one((&login.user, 0_u8)),
            ServerSecret::Password(p) => self.hasher.hash_one((&login.user, 1_u8, p.expose_secret())),
            ServerSecret::ScramKeys { client_key, server_key } => {
                self.hasher.hash_one((&login.user, 2_u8, client_key.0, server_key.0))
            }
        }
        .max(1);
        self.by_number.entry(number).or_insert_with(|| login.clone());
        number
    }

    /// The login of a number; `None` for 0.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<ServerLogin>> {
        self.by_number.get(&number).map(|l| l.clone())
    }
}
