//! Keys that verify tokens.

use std::fmt;

use jsonwebtoken::DecodingKey;
use secrecy::ExposeSecret;
use switchyard_config::topology::{JwtAlgorithm, JwtIssuer, JwtKey, JwtKeys};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::{PublicKey, RSAPublicKey};
use x509_parser::x509::SubjectPublicKeyInfo;

/// Smallest RSA modulus, in bits; also the smallest that aws-lc verifies with (`RSA_PKCS1_2048_8192_SHA256`).
pub(super) const MIN_RSA_BITS: usize = 2048;

/// Largest RSA modulus, in bits, for the same reason.
pub(super) const MAX_RSA_BITS: usize = 8192;

/// `id-ecPublicKey` (RFC 5480), `prime256v1` (RFC 5480) and `id-Ed25519` (RFC 8410).
const OID_EC: &str = "1.2.840.10045.2.1";
const OID_P256: &str = "1.2.840.10045.3.1.7";
const OID_ED25519: &str = "1.3.101.112";

/// A key that verifies by one algorithm and no other.
pub(super) struct Key {
    /// The key id it answers to; any if none.
    pub(super) kid: Option<String>,
    /// Its only algorithm.
    pub(super) algorithm: JwtAlgorithm,
    /// Fits the algorithm.
    pub(super) material: DecodingKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// The keys of one issuer as of one moment.
pub(super) type KeySet = [Key];

/// Why a configured key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The secret of HS256 is empty, or is a PEM file.
    #[error("the secret of HS256 is empty or a PEM file")]
    Secret,
    /// Not a PEM public key.
    #[error("not a PEM public key")]
    Pem,
    /// A private key, where a public one is to be given.
    #[error("a private key, where the public one is needed")]
    Private,
    /// A key of another kind than the algorithm needs.
    #[error("the key is not of the kind that the algorithm needs")]
    Kind,
    /// An RSA key that is too small or too large.
    #[error("an RSA key must have 2048 to 8192 bits")]
    RsaSize,
}

/// What is wrong with the keys given in the configuration or the catalog, by their position.
///
/// Keys in files and at addresses are read later and are not looked at.
pub fn check_keys(issuer: &JwtIssuer) -> Vec<(usize, KeyError)> {
    match &issuer.keys {
        JwtKeys::Static(keys) => {
            keys.iter().enumerate().filter_map(|(at, key)| Some((at, from_config(key).err()?))).collect()
        }
        JwtKeys::File(_) | JwtKeys::Url { .. } => Vec::new(),
    }
}

/// The configured keys that can be used.
pub(super) fn usable(keys: &[JwtKey]) -> Vec<Key> {
    keys.iter().filter_map(|key| from_config(key).ok()).collect()
}

fn from_config(key: &JwtKey) -> Result<Key, KeyError> {
    let text = key.material.expose_secret();
    let material = match key.algorithm {
        JwtAlgorithm::HS256 => secret(text)?,
        JwtAlgorithm::RS256 | JwtAlgorithm::ES256 | JwtAlgorithm::EdDSA => public(text, key.algorithm)?,
    };
    Ok(Key { kid: key.kid.clone(), algorithm: key.algorithm, material })
}

/// A public key taken for a secret is known to everybody.
fn secret(text: &str) -> Result<DecodingKey, KeyError> {
    if text.is_empty() || text.trim_start().starts_with("-----BEGIN") {
        return Err(KeyError::Secret);
    }
    Ok(DecodingKey::from_secret(text.as_bytes()))
}

fn public(text: &str, algorithm: JwtAlgorithm) -> Result<DecodingKey, KeyError> {
    let pem = Pem::iter_from_buffer(text.as_bytes()).next().and_then(Result::ok).ok_or(KeyError::Pem)?;
    let parsed;
    let certificate;
    let key = match pem.label.as_str() {
        "PUBLIC KEY" => {
            (_, parsed) = SubjectPublicKeyInfo::from_der(&pem.contents).map_err(|_| KeyError::Pem)?;
            &parsed
        }
        "CERTIFICATE" => {
            certificate = pem.parse_x509().map_err(|_| KeyError::Pem)?;
            &certificate.tbs_certificate.subject_pki
        }
        // PKCS #1: the key without the name of its algorithm.
        "RSA PUBLIC KEY" if algorithm == JwtAlgorithm::RS256 => {
            let (_, rsa) = RSAPublicKey::from_der(&pem.contents).map_err(|_| KeyError::Pem)?;
            check_rsa_bits(bits(rsa.modulus))?;
            return Ok(DecodingKey::from_rsa_der(&pem.contents));
        }
        label if label.contains("PRIVATE") => return Err(KeyError::Private),
        _ => return Err(KeyError::Pem),
    };
    let oid = key.algorithm.algorithm.to_id_string();
    let bytes = &key.subject_public_key.data;
    match algorithm {
        JwtAlgorithm::RS256 => match key.parsed() {
            Ok(PublicKey::RSA(rsa)) => {
                check_rsa_bits(bits(rsa.modulus))?;
                Ok(DecodingKey::from_rsa_der(bytes))
            }
            _ => Err(KeyError::Kind),
        },
        JwtAlgorithm::ES256 => {
            let curve =
                key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok()).map(|o| o.to_id_string());
            if oid != OID_EC || curve.as_deref() != Some(OID_P256) {
                return Err(KeyError::Kind);
            }
            Ok(DecodingKey::from_ec_der(bytes))
        }
        JwtAlgorithm::EdDSA if oid == OID_ED25519 => Ok(DecodingKey::from_ed_der(bytes)),
        JwtAlgorithm::EdDSA | JwtAlgorithm::HS256 => Err(KeyError::Kind),
    }
}

/// The length of a big-endian number, in bits.
pub(super) fn bits(number: &[u8]) -> usize {
    match number.iter().position(|&b| b != 0) {
        Some(first) => (number.len() - first) * 8 - number[first].leading_zeros() as usize,
        None => 0,
    }
}

/// Refuses RSA keys of sizes that aws-lc would not verify with.
pub(super) fn check_rsa_bits(bits: usize) -> Result<(), KeyError> {
    if (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) { Ok(()) } else { Err(KeyError::RsaSize) }
}
