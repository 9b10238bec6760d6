//! What a server keeps of a password.

use std::fmt;
use std::num::NonZeroU32;

use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::DEFAULT_ITERATIONS;
use super::keys::{self, KEY, base64, hmac, sha256, unbase64, unbase64_key};

/// Bytes of salt in a new verifier: `SCRAM_DEFAULT_SALT_LEN` in `src/include/common/scram-common.h`.
const SALT: usize = 16;
/// Largest salt read from a stored verifier, in bytes: the first server message has to hold it.
const MAX_SALT: usize = 256;

/// The stored form of a password, as in `pg_authid.rolpassword`:
/// `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, binary parts in base64.
///
/// Not the password, yet a secret: with it one can pretend to be the server, and guess passwords offline.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Verifier {
    /// Iterations of PBKDF2, at least 1.
    pub iterations: u32,
    /// The salt.
    pub salt: Vec<u8>,
    /// SHA-256 of the client key.
    pub stored_key: [u8; KEY],
    /// The key the server signs with.
    pub server_key: [u8; KEY],
}

/// A text that is no verifier. Says nothing of what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a SCRAM-SHA-256 verifier")]
pub struct VerifierError;

impl Verifier {
    /// Reads the stored form (`parse_scram_secret` in `src/backend/libpq/auth-scram.c`).
    ///
    /// # Errors
    /// Anything but that form.
    pub fn parse(text: &str) -> Result<Self, VerifierError> {
        let read = || {
            let rest = text.strip_prefix("SCRAM-SHA-256$")?;
            let (head, keys) = rest.split_once('$')?;
            let (iterations, salt) = head.split_once(':')?;
            let (stored_key, server_key) = keys.split_once(':')?;
            if !iterations.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            Some(Self {
                iterations: iterations.parse().ok().filter(|&n: &u32| n > 0 && n <= i32::MAX as u32)?,
                salt: unbase64(salt).filter(|salt| (1..=MAX_SALT).contains(&salt.len()))?,
                stored_key: unbase64_key(stored_key)?,
                server_key: unbase64_key(server_key)?,
            })
        };
        read().ok_or(VerifierError)
    }

    /// Makes a verifier with a random salt. Costs `iterations` hashes: keep it off an event loop. 0 counts as 1.
    ///
    /// # Panics
    /// The system gives no random bytes.
    #[must_use]
    #[expect(clippy::expect_used, reason = "without randomness there is no salt and nothing to go on with")]
    pub fn from_password(password: &[u8], iterations: u32) -> Self {
        let salt = keys::random::<SALT>().expect("random bytes from the system");
        Self::with_salt(password, salt.to_vec(), iterations)
    }

    /// Whether this is the verifier of `password`, given as it is. Runs PBKDF2.
    #[must_use]
    pub fn matches(&self, password: &[u8]) -> bool {
        use subtle::ConstantTimeEq;
        let other = Self::with_salt(password, self.salt.clone(), self.iterations);
        self.stored_key.ct_eq(&other.stored_key).into()
    }

    pub(super) fn with_salt(password: &[u8], salt: Vec<u8>, iterations: u32) -> Self {
        let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        let derived = keys::derive(password, &salt, iterations);
        Self {
            iterations: iterations.get(),
            salt,
            stored_key: sha256(derived.client_key.as_ref()),
            server_key: *derived.server_key,
        }
    }

    /// A verifier for a user that does not exist, so that the exchange looks like any other and fails at the
    /// proof (`mock_scram_secret`). The same user gets the same salt as long as `nonce_secret` stays, which all
    /// processes behind one address must share. Nobody has the password: the stored key is the output of a keyed
    /// hash, not the hash of a key.
    #[must_use]
    pub fn mock(user: &str, nonce_secret: &[u8; 32]) -> Self {
        Self::mock_with(user, nonce_secret, DEFAULT_ITERATIONS, SALT)
    }

    /// A secret for the purpose that `label` names, which whoever has the verifier can make again and nobody
    /// else can guess. It tells nothing of the verifier.
    #[must_use]
    pub fn derive(&self, label: &[u8]) -> [u8; 32] {
        hmac(&self.server_key, &[b"derived\0", label, b"\0", &self.stored_key])
    }

    /// As [`Self::mock`], where the real verifiers have another number of iterations, or another length of their
    /// salt in bytes, of which at most 32 are given.
    #[must_use]
    pub fn mock_with(user: &str, nonce_secret: &[u8; 32], iterations: u32, salt: usize) -> Self {
        let part = |label: &[u8]| hmac(nonce_secret, &[label, b"\0", user.as_bytes()]);
        Self {
            iterations: iterations.max(1),
            salt: part(b"salt")[..salt.clamp(1, KEY)].to_vec(),
            stored_key: part(b"stored key"),
            server_key: part(b"server key"),
        }
    }
}

/// The stored form.
impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { iterations, salt, stored_key, server_key } = self;
        let (salt, stored, server) = (base64(salt), base64(stored_key), base64(server_key));
        write!(f, "SCRAM-SHA-256${iterations}:{salt}${stored}:{server}")
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}
