//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides (RFC 5802, RFC 7677), as PostgreSQL has them
//! (`src/backend/libpq/auth-scram.c`, `src/interfaces/libpq/fe-auth-scram.c`).
//!
//! PostgreSQL's flavour: the user name of the messages is ignored (the startup packet has it), passwords go
//! through `SASLprep` and are taken as they are where it fails, the one channel binding is `tls-server-end-point`.

use thiserror::Error;

use crate::error::{ErrorResponse, SqlState, sqlstate};

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

/// Why an exchange ended. The texts are PostgreSQL's, as the client hears them.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScramError {
    /// The other side broke the protocol; what it did wrong.
    #[error("malformed SCRAM message")]
    Malformed(&'static str),
    /// The client chose a mechanism that was not offered.
    #[error("client selected an invalid SASL authentication mechanism")]
    Mechanism,
    /// An authorization identity.
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    /// A mandatory extension, of which there are none.
    #[error("client requires an unsupported SCRAM extension")]
    MandatoryExtension,
    /// A channel binding other than `tls-server-end-point`.
    #[error("unsupported SCRAM channel-binding type \"{0}\"")]
    BindingType(String),
    /// The client saw no channel binding on offer although there was one: somebody is in the middle.
    #[error("SCRAM channel binding negotiation error")]
    Downgrade,
    /// The client bound to another certificate: somebody is in the middle.
    #[error("SCRAM channel binding check failed")]
    ChannelBinding,
    /// The client's last message says something else of channel binding than its first.
    #[error("unexpected SCRAM channel-binding attribute in client-final-message")]
    BindingAttribute,
    /// A nonce with characters that are not allowed there.
    #[error("non-printable characters in SCRAM nonce")]
    NonceCharacters,
    /// The nonce that came back is another.
    #[error("invalid SCRAM response")]
    Nonce,
    /// The proof does not fit the verifier: a wrong password, or a user that does not exist. Or the message is
    /// longer than any proof.
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
            Self::Malformed(_)
            | Self::Mechanism
            | Self::BindingType(_)
            | Self::BindingAttribute
            | Self::NonceCharacters
            | Self::Nonce
            | Self::State => sqlstate::PROTOCOL_VIOLATION,
            Self::AuthorizationIdentity | Self::MandatoryExtension => sqlstate::FEATURE_NOT_SUPPORTED,
            Self::Downgrade | Self::ChannelBinding => sqlstate::INVALID_AUTHORIZATION,
            Self::WrongProof => sqlstate::INVALID_PASSWORD,
            Self::WrongServerSignature | Self::Refused | Self::Iterations(_) => sqlstate::SQLCLIENT_UNABLE,
            Self::Random => sqlstate::INTERNAL,
        }
    }

    /// What the client is told.
    #[must_use]
    pub fn response(&self) -> ErrorResponse {
        let response = ErrorResponse::fatal(self.sqlstate(), self.to_string());
        match self {
            Self::Malformed(what) => response.detail(*what),
            Self::Nonce => response.detail("Nonce does not match."),
            Self::Downgrade => response.detail(
                "The client supports SCRAM channel binding but thinks the server does not.  However, this server does support channel binding.",
            ),
            _ => response,
        }
    }
}
