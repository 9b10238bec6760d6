//! Tokens signed by real keys of all four kinds, the ways to forge them, and keys that change.

mod algorithms;
mod attacks;
mod claims;
mod key_sets;
mod rotation;

use std::time::UNIX_EPOCH;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use secrecy::SecretString;
use serde_json::{Value, json};
use switchyard_config::topology::{JwtKey, JwtKeys};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::*;

pub(super) const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A key that signs.
pub(super) enum Signer {
    Hs(String),
    Rs(RsaKeyPair),
    Es(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Signer {
    pub(super) fn hs() -> Self {
        Self::Hs(SECRET.to_owned())
    }

    pub(super) fn rs() -> Self {
        Self::Rs(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    pub(super) fn es() -> Self {
        Self::Es(EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    pub(super) fn ed() -> Self {
        Self::Ed(Ed25519KeyPair::generate().unwrap())
    }

    pub(super) fn algorithm(&self) -> JwtAlgorithm {
        match self {
            Self::Hs(_) => JwtAlgorithm::HS256,
            Self::Rs(_) => JwtAlgorithm::RS256,
            Self::Es(_) => JwtAlgorithm::ES256,
            Self::Ed(_) => JwtAlgorithm::EdDSA,
        }
    }

    pub(super) fn sign_raw(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Hs(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
                hmac::sign(&key, message).as_ref().to_vec()
            }
            Self::Rs(key) => {
                let mut out = vec![0; key.public_modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &random, message, &mut out).unwrap();
                out
            }
            Self::Es(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// The public key as `SubjectPublicKeyInfo`.
    fn spki(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = match self {
            Self::Hs(_) => panic!("no public key"),
            Self::Rs(key) => key.public_key().as_der().unwrap(),
            Self::Es(key) => key.public_key().as_der().unwrap(),
            Self::Ed(key) => key.public_key().as_der().unwrap(),
        };
        der.as_ref().to_vec()
    }

    /// The key as it stands in a configuration.
    pub(super) fn material(&self) -> String {
        match self {
            Self::Hs(secret) => secret.clone(),
            _ => pem("PUBLIC KEY", &self.spki()),
        }
    }

    pub(super) fn key(&self, kid: Option<&str>) -> JwtKey {
        let material = SecretString::from(self.material());
        JwtKey { kid: kid.map(str::to_owned), algorithm: self.algorithm(), material }
    }

    /// The key as it stands in a key set.
    pub(super) fn jwk(&self, kid: &str) -> Value {
        let mut jwk = match self {
            Self::Hs(secret) => json!({ "kty": "oct", "k": b64(secret) }),
            Self::Rs(_) => {
                let spki = self.spki();
                let (_, parsed) = SubjectPublicKeyInfo::from_der(&spki).unwrap();
                let Ok(PublicKey::RSA(rsa)) = parsed.parsed() else { panic!("no rsa key") };
                json!({ "kty": "RSA", "n": b64(rsa.modulus), "e": b64(rsa.exponent) })
            }
            Self::Es(key) => {
                let point = key.public_key().as_ref();
                json!({ "kty": "EC", "crv": "P-256", "x": b64(&point[1..33]), "y": b64(&point[33..]) })
            }
            Self::Ed(key) => json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key()) }),
        };
        jwk["kid"] = kid.into();
        jwk
    }

    /// A token of these two, which are taken as they stand.
    pub(super) fn token_of(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", b64(header), b64(claims));
        format!("{signed}.{}", b64(self.sign_raw(signed.as_bytes())))
    }

    /// A token with the proper header.
    pub(super) fn token(&self, kid: Option<&str>, claims: &Value) -> String {
        let mut header = json!({ "typ": "JWT", "alg": format!("{:?}", self.algorithm()) });
        if let Some(kid) = kid {
            header["kid"] = kid.into();
        }
        self.token_of(&header.to_string(), &claims.to_string())
    }
}

pub(super) fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
}

pub(super) fn issuer(keys: JwtKeys) -> JwtIssuer {
    JwtIssuer {
        name: "idp".to_owned(),
        issuer: None,
        audience: Vec::new(),
        tenant_claim: "tenant_id".to_owned(),
        user_claim: None,
        leeway: seconds(30),
        keys,
    }
}

pub(super) fn of_keys(keys: &[JwtKey]) -> JwtIssuer {
    issuer(JwtKeys::Static(keys.to_vec()))
}

/// Seconds since 1970, from now.
pub(super) fn from_now(seconds: i64) -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap() + seconds
}

/// Claims that are good for a while, and others.
pub(super) fn good(others: Value) -> Value {
    let mut claims = json!({ "exp": from_now(600), "tenant_id": "acme" });
    for (name, value) in others.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

/// The claims, or the label of the error.
pub(super) async fn verify(token: &str, issuer: &JwtIssuer) -> Result<Claims, &'static str> {
    let result = JwtVerifier::new().verify(token, &[Arc::new(issuer.clone())], &[]).await;
    if let Err(error) = &result {
        // No part of a token that proves anything is in the text.
        for part in token.split('.').filter(|part| part.len() > 8) {
            assert!(!format!("{error} {error:?}").contains(part), "{error:?}");
        }
    }
    result.map_err(|e| e.label())
}

/// The same, for tables.
pub(super) async fn label(token: &str, issuer: &JwtIssuer) -> &'static str {
    verify(token, issuer).await.err().unwrap_or("good")
}

#[test]
fn what_looks_like_a_token() {
    let real = Signer::hs().token(None, &good(json!({})));
    let unsigned = format!("{}.{}.", b64(r#"{"alg":"none"}"#), b64("{}"));
    let spaced = format!("{}.{}.x", b64("{\n \"alg\": \"HS256\"}"), b64("{ }"));
    for yes in [&real, &unsigned, &spaced] {
        assert!(looks_like_jwt(yes.as_bytes()), "{yes}");
    }
    for no in [
        "",
        "a.b.c",
        "password",
        "..",
        "eyJ.eyJ",
        "eyJhbGciOiJub25lIn0.eyJ9.x.y",
        "eyJ9.eyJ9.pass word",
        "e.e.e",
    ] {
        assert!(!looks_like_jwt(no.as_bytes()), "{no}");
    }
    assert!(!looks_like_jwt(b"eyJ9.eyJ9.\xff"));
}

#[test]
fn it_can_be_shared() {
    fn shared<T: Send + Sync + 'static>(_: &T) {}
    fn sent<T: Send>(_: &T) {}
    let verifier = JwtVerifier::new();
    shared(&verifier);
    sent(&verifier.verify("", &[], &[]));
}
