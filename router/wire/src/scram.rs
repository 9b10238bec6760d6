//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides (RFC 5802, RFC 7677), as PostgreSQL has them
//! (`src/backend/libpq/auth-scram.c`, `src/interfaces/libpq/fe-auth-scram.c`).
//!
//! PostgreSQL's flavour: the user name of the messages is ignored (the startup packet has it), passwords go
//! through `SASLprep` and are taken as they are where it fails, the one channel binding is `tls-server-end-point`.

use thiserror::Error;

use crate::error::{SqlState, sqlstate};

mod attributes;
mod client;
mod keys;
mod server;
#[cfg(test)]
mod tests;
mod verifier;

pub use client::{ClientScram, ClientSecret, DerivedKeys, MAX_ITERATIONS};
pub use server::{ChannelBinding, ServerScram};
pub use verifier::{Verifier, VerifierError};

/// The mechanism without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Iterations of PBKDF2 that PostgreSQL uses by default: `SCRAM_SHA_256_DEFAULT_ITERATIONS` in
/// `src/include/common/scram-common.h`.
pub const DEFAULT_ITERATIONS: u32 = 4096;

/// Largest SCRAM message that either side reads, in bytes: `PG_MAX_SASL_MESSAGE_LENGTH` in
/// `src/backend/libpq/auth-sasl.c`. Bounds nonces and salts, too.
pub const MAX_MESSAGE: usize = 1024;

/// Why an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ScramError {
    /// The other side broke the protocol; what it did wrong.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// Something that the protocol has and neither PostgreSQL nor we do: an authorization identity, a mandatory
    /// extension, another channel binding.
    #[error("unsupported in SCRAM: {0}")]
    Unsupported(&'static str),
    /// The client saw no channel binding on offer although there was one, or bound to another certificate:
    /// somebody is in the middle.
    #[error("SCRAM channel binding check failed")]
    ChannelBinding,
    /// The proof does not fit the verifier: a wrong password, or a user that does not exist.
    #[error("SCRAM proof is wrong")]
    WrongProof,
    /// The server's signature does not fit the password, so it does not know it (client side).
    #[error("SCRAM server signature is wrong")]
    WrongServerSignature,
    /// The server ended the exchange with an error of its own (client side).
    #[error("SCRAM exchange refused by the server")]
    Refused,
    /// The server asks for more iterations of the hash than we are willing to compute (client side).
    #[error("SCRAM iteration count {0} is out of bounds")]
    Iterations(u32),
    /// A call out of order, or after a failure.
    #[error("SCRAM exchange is not at this step")]
    State,
    /// The system gave no randomness.
    #[error("no random bytes for a SCRAM nonce")]
    Random,
}

impl ScramError {
    /// The code that PostgreSQL answers a client with. The text of 28P01 names the user, so it is the caller's;
    /// towards a shard these are our own failures to connect.
    #[must_use]
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Self::Malformed(_) | Self::State => sqlstate::PROTOCOL_VIOLATION,
            Self::Unsupported(_) => sqlstate::FEATURE_NOT_SUPPORTED,
            Self::ChannelBinding => sqlstate::INVALID_AUTHORIZATION,
            Self::WrongProof => sqlstate::INVALID_PASSWORD,
            Self::WrongServerSignature | Self::Refused | Self::Iterations(_) => sqlstate::SQLCLIENT_UNABLE,
            Self::Random => sqlstate::INTERNAL,
        }
    }
}
