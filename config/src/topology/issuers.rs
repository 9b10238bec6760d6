//! Who else vouches for a client: issuers of JWTs.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// An issuer of JWTs whose keys we trust.
#[derive(Debug, Clone)]
pub struct JwtIssuer {
    /// A name for logs.
    pub name: String,
    /// The `iss` claim required; any if not given.
    pub issuer: Option<String>,
    /// The `aud` claim must hold one of these; not asked if empty.
    pub audience: Vec<String>,
    /// The claim that holds the tenant. Default `tenant_id`. Dots reach into objects.
    pub tenant_claim: String,
    /// The claim that must equal the user's name, if given.
    pub user_claim: Option<String>,
    /// Clock skew allowed. Default 30 s.
    pub leeway: Duration,
    /// The keys.
    pub keys: JwtKeys,
}

/// Where an issuer's keys come from.
#[derive(Debug, Clone)]
pub enum JwtKeys {
    /// Keys given in the configuration or the catalog.
    Static(Vec<JwtKey>),
    /// A JWKS file, re-read when it changes.
    File(PathBuf),
    /// A JWKS document over HTTP(S), fetched again when a key id is unknown and at `refresh`.
    Url {
        /// `https://`, or `http://` to a loopback address.
        url: String,
        /// Age at which it is fetched again. Default 5 min.
        refresh: Duration,
        /// PEM file of authorities to trust, if not the system's.
        ca: Option<PathBuf>,
    },
}

/// A key that verifies JWTs by one algorithm.
#[derive(Debug, Clone)]
pub struct JwtKey {
    /// The `kid` header it answers to; any if not given.
    pub kid: Option<String>,
    /// The only algorithm it is used with.
    pub algorithm: JwtAlgorithm,
    /// The secret's bytes for HS256, else a PEM public key.
    pub material: SecretString,
}

/// Algorithms accepted in JWTs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256.
    HS256,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}
