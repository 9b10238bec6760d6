//! Tokens in place of passwords: JWTs in the compact form, signed by an issuer that we trust.
//!
//! What a token says of its own verification is not believed. The algorithm is the key's; the key
//! comes from the configuration, a JWKS file or a JWKS address; `jku`, `x5u`, `jwk` and `x5c` are
//! not looked at, `crit` is refused. `exp` must be there. A token never appears in an error or a log line.

mod claims;
mod error;
mod fetch;
mod jwks;
mod keys;
mod source;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, crypto};
use switchyard_config::TenantId;
use switchyard_config::topology::{JwtAlgorithm, JwtIssuer};

pub use claims::Claims;
pub use error::JwtError;
use keys::{Key, KeySet};
pub use keys::{KeyError, check_keys};
use source::{Held, Sources};
use token::Token;
pub use token::{MAX_TOKEN_BYTES, looks_like_jwt};

/// Most signatures checked for one token and issuer: a token without `kid` is tried with every key of its
/// algorithm, and nobody publishes more than a few at a time.
const MAX_TRIES: usize = 16;

/// The claim that holds the tenant, where an issuer does not say otherwise.
const DEFAULT_TENANT_CLAIM: &str = "tenant_id";

/// Verifies tokens. Made once per process and shared by all workers: the keys that it has read or
/// fetched are kept in it. Bound to no runtime.
#[derive(Debug)]
pub struct JwtVerifier {
    sources: Sources,
}

impl Default for JwtVerifier {
    fn default() -> Self {
        Self::new()
    }
}

impl JwtVerifier {
    /// A verifier that holds no keys yet.
    pub fn new() -> Self {
        Self { sources: Sources::new(source::Pace::default()) }
    }

    /// Verifies `token` by the issuers of one tenant and by those of all tenants.
    ///
    /// `tenant_issuers` are those of the tenant that the session claims; none if it claims none. They are asked
    /// first. May wait for keys to be fetched: some seconds at most.
    ///
    /// # Errors
    /// If the token is malformed, signed by nobody we trust, or not good here and now. Of several issuers'
    /// errors, the one that came furthest.
    pub async fn verify(
        &self,
        token: &str,
        global: &[Arc<JwtIssuer>],
        tenant_issuers: &[Arc<JwtIssuer>],
    ) -> Result<Claims, JwtError> {
        self.verify_at(token, global, tenant_issuers, SystemTime::now()).await
    }

    /// The tenant that `token` names, unverified: good only for choosing whose issuers to ask. What
    /// they then verify must name that tenant.
    pub fn named_tenant(&self, token: &str, global: &[Arc<JwtIssuer>]) -> Option<TenantId> {
        let token = Token::parse(token).ok()?;
        let usual = std::iter::once(DEFAULT_TENANT_CLAIM);
        let paths = usual.chain(global.iter().map(|issuer| issuer.tenant_claim.as_str()));
        paths.into_iter().find_map(|path| claims::tenant_at(&token, path))
    }

    async fn verify_at(
        &self,
        token: &str,
        global: &[Arc<JwtIssuer>],
        tenant_issuers: &[Arc<JwtIssuer>],
        now: SystemTime,
    ) -> Result<Claims, JwtError> {
        let token = Token::parse(token)?;
        let mut furthest = JwtError::UnknownIssuer;
        let issuers = tenant_issuers.iter().map(|i| (i, true)).chain(global.iter().map(|i| (i, false)));
        for (issuer, of_tenant) in issuers {
            if issuer.issuer.is_some() && issuer.issuer.as_deref() != token.issuer() {
                continue;
            }
            let result = match self.check_signature(&token, issuer).await {
                Ok(()) => claims::check(&token, issuer, of_tenant, now),
                Err(error) => Err(error),
            };
            match result {
                Ok(claims) => return Ok(claims),
                Err(error) if error.rank() > furthest.rank() => furthest = error,
                Err(_) => {}
            }
        }
        Err(furthest)
    }

    /// Whether a key of `issuer` signed the token. Where none did and the token was perhaps signed by a
    /// key newer than those at hand, they are fetched again.
    async fn check_signature(&self, token: &Token<'_>, issuer: &JwtIssuer) -> Result<(), JwtError> {
        let held = self.sources.keys(issuer).await;
        let Some(Held { keys, source }) = held else {
            return Err(JwtError::KeysUnavailable { issuer: issuer.name.clone() });
        };
        let error = match try_keys(token, issuer, &keys) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let named = token.kid().is_some_and(|kid| keys.iter().any(|key| key.kid.as_deref() == Some(kid)));
        if named {
            return Err(error);
        }
        match source {
            Some(source) => match source.newer_than(&keys).await {
                Some(newer) => try_keys(token, issuer, &newer),
                None => Err(error),
            },
            None => Err(error),
        }
    }
}

/// Tries the keys that the token can have been signed with.
fn try_keys(token: &Token<'_>, issuer: &JwtIssuer, keys: &KeySet) -> Result<(), JwtError> {
    let answers = |key: &&Key| match (token.kid(), key.kid.as_deref()) {
        (Some(wanted), Some(kid)) => wanted == kid,
        _ => true,
    };
    let mut tried = 0;
    let mut other_algorithm = false;
    for key in keys.iter().filter(answers) {
        if key.algorithm != token.algorithm() {
            other_algorithm = true;
            continue;
        }
        if tried == MAX_TRIES {
            break;
        }
        tried += 1;
        let algorithm = match key.algorithm {
            JwtAlgorithm::HS256 => Algorithm::HS256,
            JwtAlgorithm::RS256 => Algorithm::RS256,
            JwtAlgorithm::ES256 => Algorithm::ES256,
            JwtAlgorithm::EdDSA => Algorithm::EdDSA,
        };
        // An error is a key that turns out to be unusable, such as a point that is not on its curve.
        if crypto::verify(token.signature(), token.signed(), &key.material, algorithm).unwrap_or(false) {
            return Ok(());
        }
    }
    let issuer = issuer.name.clone();
    Err(if tried > 0 {
        JwtError::Signature { issuer }
    } else if other_algorithm {
        JwtError::OtherAlgorithm { issuer }
    } else {
        JwtError::UnknownKey { issuer, kid: token.kid().map(error::shown) }
    })
}

/// Seconds as a duration, for the constants of this module.
const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
