//! What a user who does not exist looks like: a verifier that always fails, made up the same way each time.

use secrecy::ExposeSecret;
use switchyard_config::topology::{Topology, Verifier};
use switchyard_wire::scram;
use zeroize::Zeroizing;

/// Length of the salt that PostgreSQL makes, in bytes. // src/include/common/scram-common.h
/// SCRAM_DEFAULT_SALT_LEN
const SALT_BYTES: usize = 16;

/// How the verifiers of nobody are made up, by a topology.
pub(crate) struct Nobody {
    /// Of most verifiers.
    iterations: u32,
    /// Length of the salt of most verifiers, in bytes.
    salt: usize,
    /// All routers of one topology must make up the same, and a router after its restart what it made up
    /// before: else asking twice tells who exists. So it is taken from what they share and keep to
    /// themselves, a verifier that exists.
    secret: Zeroizing<[u8; 32]>,
}

impl Nobody {
    /// By the verifiers of `topology`; where there are none, with `secret`.
    pub(crate) fn of(topology: &Topology, secret: &[u8; 32]) -> Self {
        let mut counts = std::collections::HashMap::new();
        let mut first: Option<(&str, scram::Verifier)> = None;
        for user in topology.users.values() {
            let Some(Verifier::Scram(text)) = &user.verifier else { continue };
            let Ok(verifier) = scram::Verifier::parse(text.expose_secret()) else { continue };
            *counts.entry((verifier.iterations, verifier.salt.len())).or_insert(0_usize) += 1;
            if first.as_ref().is_none_or(|(name, _)| user.name.as_str() < *name) {
                first = Some((&user.name, verifier));
            }
        }
        let most = counts.into_iter().max_by_key(|(kind, count)| (*count, *kind));
        let (iterations, salt) = most.map_or((scram::DEFAULT_ITERATIONS, SALT_BYTES), |(kind, _)| kind);
        let secret = first.map_or(*secret, |(_, verifier)| verifier.derive(b"users who do not exist"));
        Self { iterations, salt, secret: Zeroizing::new(secret) }
    }

    /// The verifier of a login that does not exist, or has none.
    pub(crate) fn verifier(&self, login: &str) -> scram::Verifier {
        scram::Verifier::mock_with(login, &self.secret, self.iterations, self.salt)
    }
}
