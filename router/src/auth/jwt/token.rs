//! The compact form of a JWT (RFC 7519 section 3), read strictly.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use switchyard_config::topology::JwtAlgorithm;

use super::error::JwtError;

/// Longest token, in bytes, whatever the caller allows.
pub const MAX_TOKEN_BYTES: usize = 65_536;

/// Deepest nesting of objects and arrays in a token or a key set. Real ones have two or three levels.
const MAX_DEPTH: usize = 16;

/// Whether a password is to be taken for a token: three parts, the first of which begins an object.
///
/// What looks like one need not be one; a real password that does is not worth supporting.
pub fn looks_like_jwt(password: &[u8]) -> bool {
    let mut parts = password.split(|&b| b == b'.');
    let (Some(header), Some(claims), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    // The first six bits of `{`, and its last two in front of any four.
    let object = |part: &[u8]| matches!(part, [b'e', b'w'..=b'z' | b'0'..=b'9' | b'-' | b'_', _, ..]);
    let text =
        |part: &[u8]| part.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'='));
    object(header) && object(claims) && text(header) && text(claims) && text(signature)
}

/// A token taken apart; nothing of it is verified.
pub(super) struct Token<'t> {
    algorithm: JwtAlgorithm,
    kid: Option<String>,
    claims: Map<String, Value>,
    signed: &'t str,
    signature: &'t str,
}

impl<'t> Token<'t> {
    pub(super) fn parse(token: &'t str) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwtError::TooLarge);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed("not three parts"))?;
        let (header, claims) = signed.split_once('.').ok_or(JwtError::Malformed("not three parts"))?;
        if claims.contains('.') {
            return Err(JwtError::Malformed("not three parts"));
        }
        let header = object(header)
            .ok_or(JwtError::Malformed("its header is not an object, or says something twice"))?;
        let algorithm = algorithm(&header)?;
        if header.contains_key("crit") {
            return Err(JwtError::Critical);
        }
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.clone()),
            Some(_) => return Err(JwtError::Malformed("its key id is not a string")),
        };
        let claims = object(claims)
            .ok_or(JwtError::Malformed("its claims are not an object, or say something twice"))?;
        if !matches!(claims.get("iss"), None | Some(Value::String(_))) {
            return Err(JwtError::Malformed("its issuer is not a string"));
        }
        Ok(Self { algorithm, kid, claims, signed, signature })
    }

    /// The algorithm it names. Only good for choosing among keys.
    pub(super) fn algorithm(&self) -> JwtAlgorithm {
        self.algorithm
    }

    pub(super) fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The issuer it names. Only good for choosing among issuers.
    pub(super) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }

    /// All claims; to be believed once the signature has been verified.
    pub(super) fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// What the signature is over.
    pub(super) fn signed(&self) -> &[u8] {
        self.signed.as_bytes()
    }

    /// The signature, in base64url.
    pub(super) fn signature(&self) -> &str {
        self.signature
    }
}

fn algorithm(header: &Map<String, Value>) -> Result<JwtAlgorithm, JwtError> {
    match header.get("alg").and_then(Value::as_str) {
        Some("HS256") => Ok(JwtAlgorithm::HS256),
        Some("RS256") => Ok(JwtAlgorithm::RS256),
        Some("ES256") => Ok(JwtAlgorithm::ES256),
        Some("EdDSA") => Ok(JwtAlgorithm::EdDSA),
        _ => Err(JwtError::Algorithm),
    }
}

fn object(part: &str) -> Option<Map<String, Value>> {
    let json = BASE64_URL_SAFE_NO_PAD.decode(part).ok()?;
    match strict_json(&json).ok()? {
        Value::Object(map) => Some(map),
        _ => None,
    }
}

/// JSON in which no object has a key twice, and that is not nested deeply. Parsers differ on which of two
/// equal keys counts, so that a token would mean one thing to its issuer and another to us.
///
/// # Errors
/// If it is anything else.
pub(super) fn strict_json(json: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = Strict { depth: MAX_DEPTH }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Self { depth })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if values.insert(key, map.next_value_seed(inner)?).is_some() {
                return Err(A::Error::custom("an object says something twice"));
            }
        }
        Ok(Value::Object(values))
    }
}
