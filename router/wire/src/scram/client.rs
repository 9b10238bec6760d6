//! The client's side of an exchange, towards a server that may be hostile.

use std::fmt;
use std::num::NonZeroU32;

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::attributes::{Attributes, is_nonce, text};
use super::keys::{self, KEY, base64, hmac, sha256, unbase64, unbase64_key, xor};
use super::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError};

/// Iterations of PBKDF2 that we compute for a server at most: about 25 times PostgreSQL's default. A server
/// chooses the number before it has proved anything, and could keep a core busy with it (CVE-2026-42198).
pub const MAX_ITERATIONS: u32 = 100_000;
/// Largest salt taken from a server, in bytes.
const MAX_SALT: usize = 256;

/// What the client knows.
pub enum ClientSecret {
    /// The password.
    Password(SecretString),
    /// Keys derived before, or learnt from a client's own proof ([`super::ServerScram::last`]). They fit one
    /// salt and iteration count only, which the server must still have.
    Keys {
        /// The key whose hash the server has.
        client_key: [u8; 32],
        /// The key the server signs with.
        server_key: [u8; 32],
    },
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password(_) => "Password(..)",
            Self::Keys { .. } => "Keys { .. }",
        })
    }
}

impl Drop for ClientSecret {
    fn drop(&mut self) {
        if let Self::Keys { client_key, server_key } = self {
            client_key.zeroize();
            server_key.zeroize();
        }
    }
}

/// The outcome of PBKDF2 for a password, a salt and a count: worth keeping, for it is all the cost of a login.
/// As secret as the password.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct DerivedKeys {
    /// The server's salt.
    pub salt: Vec<u8>,
    /// The server's iteration count.
    pub iterations: u32,
    /// The key whose hash the server has.
    pub client_key: [u8; 32],
    /// The key the server signs with.
    pub server_key: [u8; 32],
}

impl fmt::Debug for DerivedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DerivedKeys").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// One exchange with a server: [`Self::mechanism`], [`Self::first`], [`Self::challenge`], [`Self::verify`].
pub struct ClientScram {
    secret: ClientSecret,
    binding: Option<Vec<u8>>,
    plus: bool,
    nonce: String,
    cache: Option<DerivedKeys>,
    state: State,
}

enum State {
    Start,
    /// The signature that the server must come up with.
    Proved(Zeroizing<[u8; KEY]>),
    Done,
}

impl ClientScram {
    /// Begins an exchange; `binding` is the hash of the server's certificate ([`crate::tls_endpoint`]), on TLS.
    ///
    /// Without random bytes from the system the exchange fails at [`Self::challenge`].
    #[must_use]
    pub fn new(secret: ClientSecret, binding: Option<Vec<u8>>) -> Self {
        let nonce = keys::nonce().unwrap_or_default();
        Self { secret, binding, plus: false, nonce, cache: None, state: State::Start }
    }

    /// Gives keys kept from an earlier exchange of the same user and password; they are used if the server still
    /// has their salt and count.
    #[must_use]
    pub fn with_cache(mut self, cache: Option<DerivedKeys>) -> Self {
        self.cache = cache;
        self
    }

    /// Chooses among the mechanisms that the server offers: channel binding where there is something to bind
    /// to. `None` if there is none we know. Call it before [`Self::first`], which depends on the choice.
    pub fn mechanism(&mut self, offered: &[&str]) -> Option<&'static str> {
        self.plus = self.binding.is_some() && offered.contains(&SCRAM_SHA_256_PLUS);
        match self.plus {
            true => Some(SCRAM_SHA_256_PLUS),
            false => offered.contains(&SCRAM_SHA_256).then_some(SCRAM_SHA_256),
        }
    }

    /// The header that says how we stand to channel binding: used, possible but not offered, impossible.
    fn header(&self) -> &'static str {
        match (&self.binding, self.plus) {
            (Some(_), true) => "p=tls-server-end-point,,",
            (Some(_), false) => "y,,",
            (None, _) => "n,,",
        }
    }

    fn first_bare(&self) -> String {
        // The server has the user name from the startup packet.
        format!("n=,r={}", self.nonce)
    }

    /// The first message, for `SASLInitialResponse`.
    #[must_use]
    pub fn first(&self) -> Vec<u8> {
        format!("{}{}", self.header(), self.first_bare()).into_bytes()
    }

    /// Reads the server's challenge; returns the proof. Costs PBKDF2 unless keys were given or the cache fits: up
    /// to [`MAX_ITERATIONS`] hashes, tens of milliseconds.
    ///
    /// # Errors
    /// See [`ScramError`]; the exchange is over. Accepts 1 to [`MAX_ITERATIONS`] iterations, a message of
    /// [`super::MAX_MESSAGE`] bytes and a salt of 256.
    pub fn challenge(&mut self, server_first: &[u8]) -> Result<Vec<u8>, ScramError> {
        let State::Start = std::mem::replace(&mut self.state, State::Done) else {
            return Err(ScramError::State);
        };
        if self.nonce.is_empty() {
            return Err(ScramError::Random);
        }
        let server_first = text(server_first)?;
        let mut attributes = Attributes::new(server_first);
        let nonce = attributes.expect('r')?;
        let salt = attributes.expect('s')?;
        let iterations = attributes.expect('i')?;
        attributes.skip_rest()?;
        let theirs = nonce.strip_prefix(self.nonce.as_str());
        if !theirs.is_some_and(|theirs| !theirs.is_empty() && is_nonce(theirs)) {
            return Err(ScramError::Malformed("nonce does not match"));
        }
        let salt = unbase64(salt)
            .filter(|salt| (1..=MAX_SALT).contains(&salt.len()))
            .ok_or(ScramError::Malformed("salt"))?;
        let iterations = bounded(iterations)?;
        let (client_key, server_key) = self.keys(salt, iterations);

        let mut bound = self.header().as_bytes().to_vec();
        if let (Some(hash), true) = (&self.binding, self.plus) {
            bound.extend_from_slice(hash);
        }
        let without_proof = format!("c={},r={nonce}", base64(&bound));
        let first_bare = self.first_bare();
        let parts: [&[u8]; 5] =
            [first_bare.as_bytes(), b",", server_first.as_bytes(), b",", without_proof.as_bytes()];
        let signature = hmac(&sha256(client_key.as_ref()), &parts);
        let proof = xor(&client_key, &signature);
        self.state = State::Proved(Zeroizing::new(hmac(server_key.as_ref(), &parts)));
        Ok(format!("{without_proof},p={}", base64(&proof)).into_bytes())
    }

    fn keys(
        &mut self,
        salt: Vec<u8>,
        iterations: NonZeroU32,
    ) -> (Zeroizing<[u8; KEY]>, Zeroizing<[u8; KEY]>) {
        let password = match &self.secret {
            ClientSecret::Keys { client_key, server_key } => {
                return (Zeroizing::new(*client_key), Zeroizing::new(*server_key));
            }
            ClientSecret::Password(password) => password,
        };
        let fits = |kept: &DerivedKeys| kept.iterations == iterations.get() && kept.salt == salt;
        if let Some(kept) = self.cache.as_ref().filter(|kept| fits(kept)) {
            return (Zeroizing::new(kept.client_key), Zeroizing::new(kept.server_key));
        }
        let derived = keys::derive(password.expose_secret().as_bytes(), &salt, iterations);
        self.cache = Some(DerivedKeys {
            salt,
            iterations: iterations.get(),
            client_key: *derived.client_key,
            server_key: *derived.server_key,
        });
        (derived.client_key, derived.server_key)
    }

    /// Reads the server's last message and checks that it knows the verifier. Until this has succeeded the server
    /// is a stranger, and an `AuthenticationOk` means nothing.
    ///
    /// # Errors
    /// [`ScramError::Refused`] if the server says so, [`ScramError::WrongServerSignature`] if it is an impostor.
    pub fn verify(&mut self, server_final: &[u8]) -> Result<(), ScramError> {
        let State::Proved(expected) = std::mem::replace(&mut self.state, State::Done) else {
            return Err(ScramError::State);
        };
        let mut attributes = Attributes::new(text(server_final)?);
        let signature = match attributes.any()? {
            Some(('v', signature)) => signature,
            Some(('e', _)) => return Err(ScramError::Refused),
            _ => return Err(ScramError::Malformed("unexpected attribute")),
        };
        attributes.skip_rest()?;
        let signature = unbase64_key(signature).ok_or(ScramError::Malformed("server signature"))?;
        if bool::from(signature.ct_eq(expected.as_ref())) {
            Ok(())
        } else {
            Err(ScramError::WrongServerSignature)
        }
    }

    /// The keys derived from the password in this exchange or taken from the cache, to be kept once
    /// [`Self::verify`] has succeeded. `None` before [`Self::challenge`], or with [`ClientSecret::Keys`].
    #[must_use]
    pub fn derived(&self) -> Option<DerivedKeys> {
        match (&self.state, &self.secret) {
            (State::Start, _) | (_, ClientSecret::Keys { .. }) => None,
            _ => self.cache.clone(),
        }
    }

    #[cfg(test)]
    pub(super) fn set_nonce(&mut self, nonce: &str) {
        self.nonce = nonce.to_owned();
    }
}

fn bounded(text: &str) -> Result<NonZeroU32, ScramError> {
    // No sign, and no more digits than a sensible count has.
    if text.is_empty() || text.len() > 10 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ScramError::Malformed("iteration count"));
    }
    let count = text.parse::<u64>().unwrap_or(u64::MAX).try_into().unwrap_or(u32::MAX);
    NonZeroU32::new(count).filter(|n| n.get() <= MAX_ITERATIONS).ok_or(ScramError::Iterations(count))
}
