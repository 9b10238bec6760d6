//! JSON Web Key Sets (RFC 7517, RFC 7518 section 6, RFC 8037 section 2).

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};
use switchyard_config::topology::JwtAlgorithm;

use super::keys::{Key, bits, check_rsa_bits};
use super::token::strict_json;

/// Largest document, in bytes.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// Most keys kept of one document; the rest are ignored.
const MAX_KEYS: usize = 256;

/// Smallest secret in a document, in bytes: RFC 7518 section 3.2 asks for the size of the hash.
const MIN_SECRET_BYTES: usize = 32;

/// Why a document is not a key set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum JwksError {
    #[error("larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("not JSON, nested too deeply, or an object says something twice")]
    Json,
    #[error("no object with an array called keys")]
    NoKeys,
}

/// What a document holds.
#[derive(Debug)]
pub(super) struct Jwks {
    pub(super) keys: Vec<Key>,
    /// How many keys are of a kind, a use or a size that we do not verify with.
    pub(super) ignored: usize,
}

/// Reads a document. Keys that we cannot use are left out, as RFC 7517 section 5 says.
pub(super) fn parse(document: &[u8]) -> Result<Jwks, JwksError> {
    if document.len() > MAX_BYTES {
        return Err(JwksError::TooLarge);
    }
    let document = strict_json(document).map_err(|_| JwksError::Json)?;
    let all = document.get("keys").and_then(Value::as_array).ok_or(JwksError::NoKeys)?;
    let keys: Vec<Key> = all.iter().filter_map(Value::as_object).filter_map(key).take(MAX_KEYS).collect();
    let ignored = all.len() - keys.len();
    Ok(Jwks { keys, ignored })
}

fn key(jwk: &Map<String, Value>) -> Option<Key> {
    if !is_for_verifying(jwk) {
        return None;
    }
    let kid = match jwk.get("kid") {
        None => None,
        Some(kid) => Some(kid.as_str()?.to_owned()),
    };
    let (algorithm, material) = match jwk.get("kty")?.as_str()? {
        "oct" => {
            let secret = bytes(jwk, "k")?;
            if secret.len() < MIN_SECRET_BYTES {
                return None;
            }
            (JwtAlgorithm::HS256, DecodingKey::from_secret(&secret))
        }
        "RSA" => {
            let (n, e) = (bytes(jwk, "n")?, bytes(jwk, "e")?);
            check_rsa_bits(bits(&n)).ok()?;
            // Some write the sign byte of the encoding as a number; aws-lc wants the number alone.
            let n = &n[n.iter().position(|&b| b != 0)?..];
            (JwtAlgorithm::RS256, DecodingKey::from_rsa_raw_components(n, &e))
        }
        "EC" if jwk.get("crv")?.as_str()? == "P-256" => {
            let (x, y) = (bytes(jwk, "x")?, bytes(jwk, "y")?);
            if x.len() != 32 || y.len() != 32 {
                return None;
            }
            (JwtAlgorithm::ES256, DecodingKey::from_ec_der(&[&[4][..], &x, &y].concat()))
        }
        "OKP" if jwk.get("crv")?.as_str()? == "Ed25519" => {
            let x = bytes(jwk, "x")?;
            if x.len() != 32 {
                return None;
            }
            (JwtAlgorithm::EdDSA, DecodingKey::from_ed_der(&x))
        }
        _ => return None,
    };
    let named = match jwk.get("alg") {
        None => true,
        Some(name) => match (name.as_str()?, algorithm) {
            ("HS256", JwtAlgorithm::HS256)
            | ("RS256", JwtAlgorithm::RS256)
            | ("ES256", JwtAlgorithm::ES256) => true,
            // The second is the name that RFC 9864 gives it.
            ("EdDSA" | "Ed25519", JwtAlgorithm::EdDSA) => true,
            _ => false,
        },
    };
    named.then_some(Key { kid, algorithm, material })
}

/// Whether `use` and `key_ops`, where they are given, allow verifying signatures.
fn is_for_verifying(jwk: &Map<String, Value>) -> bool {
    let by_use = jwk.get("use").is_none_or(|u| u.as_str() == Some("sig"));
    let by_ops = jwk.get("key_ops").is_none_or(|ops| {
        ops.as_array().is_some_and(|ops| ops.iter().any(|op| op.as_str() == Some("verify")))
    });
    by_use && by_ops
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(jwk.get(name)?.as_str()?).ok()
}
