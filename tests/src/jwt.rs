//! Issuers of JWTs.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256};
use serde_json::{Value, json};

use crate::raw::base64url;

/// A key that signs.
pub struct Key {
    /// The algorithm that it is for.
    pub algorithm: Algorithm,
    /// What is in the header.
    pub kid: Option<String>,
    secret: Vec<u8>,
    pair: Option<KeyPair>,
}

impl Key {
    /// A key for one of HS256, RS256, ES256, EdDSA.
    ///
    /// # Panics
    /// For any other.
    pub fn new(algorithm: Algorithm, kid: Option<&str>) -> Self {
        let pair = match algorithm {
            Algorithm::HS256 => None,
            Algorithm::RS256 => Some(&PKCS_RSA_SHA256),
            Algorithm::ES256 => Some(&PKCS_ECDSA_P256_SHA256),
            Algorithm::EdDSA => Some(&PKCS_ED25519),
            other => panic!("no key for {other:?}"),
        };
        let pair = pair.map(|kind| KeyPair::generate_for(kind).expect("keys can be made"));
        let secret =
            format!("a secret of enough bytes for {} and more", kid.unwrap_or("anyone")).into_bytes();
        Self { algorithm, kid: kid.map(str::to_owned), secret, pair }
    }

    /// The public key in PEM.
    ///
    /// # Panics
    /// If this is a secret.
    pub fn public_pem(&self) -> String {
        self.pair.as_ref().expect("a key pair").public_key_pem()
    }

    /// The secret of HS256.
    pub fn secret(&self) -> String {
        String::from_utf8_lossy(&self.secret).into_owned()
    }

    /// An entry of `keys` in `[[jwt]]`.
    pub fn toml(&self) -> String {
        let kid = self.kid.as_ref().map(|kid| format!("kid = {kid:?}, ")).unwrap_or_default();
        let material = match self.algorithm {
            Algorithm::HS256 => format!("secret = {:?}", self.secret()),
            _ => format!("public_key = {:?}", self.public_pem()),
        };
        format!("{{ {kid}algorithm = \"{:?}\", {material} }}", self.algorithm)
    }

    /// The entry of a JWKS.
    ///
    /// # Panics
    /// If this is a secret.
    pub fn jwk(&self) -> Value {
        let raw = self.pair.as_ref().expect("a key pair").public_key_raw();
        let mut jwk = match self.algorithm {
            Algorithm::RS256 => {
                let (n, e) = rsa_numbers(raw);
                json!({"kty": "RSA", "alg": "RS256", "n": base64url(n), "e": base64url(e)})
            }
            Algorithm::ES256 => {
                let (x, y) = raw[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "x": base64url(x), "y": base64url(y)})
            }
            _ => json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": base64url(raw)}),
        };
        jwk["use"] = "sig".into();
        if let Some(kid) = &self.kid {
            jwk["kid"] = kid.as_str().into();
        }
        jwk
    }

    /// A token with these claims.
    ///
    /// # Panics
    /// If it cannot be signed.
    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid.clone_from(&self.kid);
        let pem = self.pair.as_ref().map(KeyPair::serialize_pem).unwrap_or_default();
        let key = match self.algorithm {
            Algorithm::HS256 => Ok(EncodingKey::from_secret(&self.secret)),
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pem.as_bytes()),
            Algorithm::ES256 => EncodingKey::from_ec_pem(pem.as_bytes()),
            _ => EncodingKey::from_ed_pem(pem.as_bytes()),
        };
        jsonwebtoken::encode(&header, claims, &key.expect("a key")).expect("claims can be signed")
    }
}

/// A token whose header and signature are whatever is given.
pub fn forge(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |v: &Value| base64url(v.to_string().as_bytes());
    format!("{}.{}.{}", part(header), part(claims), base64url(signature))
}

/// A token signed by HMAC with any bytes as the secret: what "key confusion" does with a public key.
///
/// # Panics
/// If it cannot be signed.
pub fn hmac_with(secret: &[u8], kid: Option<&str>, claims: &Value) -> String {
    let mut header = Header::new(Algorithm::HS256);
    header.kid = kid.map(str::to_owned);
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret)).expect("claims can be signed")
}

/// Claims for a tenant, good for an hour.
pub fn claims(tenant: &str) -> Value {
    json!({"sub": "someone", "tenant_id": tenant, "exp": now() + 3600})
}

/// Seconds since 1970.
///
/// # Panics
/// Before that.
pub fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// A JWKS document.
pub fn jwks(keys: &[&Key]) -> String {
    json!({"keys": keys.iter().map(|k| k.jwk()).collect::<Vec<_>>()}).to_string()
}

/// Modulus and exponent of a DER `RSAPublicKey`.
fn rsa_numbers(der: &[u8]) -> (&[u8], &[u8]) {
    let (sequence, _) = element(der);
    let (n, rest) = element(sequence);
    let (e, _) = element(rest);
    (n.strip_prefix(&[0]).unwrap_or(n), e)
}

/// The content of the first DER element, and what follows it.
fn element(der: &[u8]) -> (&[u8], &[u8]) {
    let (len, from) = match der[1] {
        short @ ..0x80 => (usize::from(short), 2),
        long => {
            let digits = usize::from(long & 0x7f);
            (der[2..2 + digits].iter().fold(0, |len, b| len << 8 | usize::from(*b)), 2 + digits)
        }
    };
    der[from..].split_at(len)
}
