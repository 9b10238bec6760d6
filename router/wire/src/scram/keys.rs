//! The key schedule: salted password, client key, stored key, server key.

use std::borrow::Cow;
use std::num::NonZeroU32;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::{hmac, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

pub(super) const KEY: usize = 32;
/// Bytes of randomness in a nonce: `SCRAM_RAW_NONCE_LEN` in `src/include/common/scram-common.h`.
const NONCE: usize = 18;

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn unbase64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Exactly one key's worth of base64.
pub(super) fn unbase64_key(text: &str) -> Option<[u8; KEY]> {
    unbase64(text)?.try_into().ok()
}

pub(super) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(bytes)
}

pub(super) fn nonce() -> Option<String> {
    random::<NONCE>().map(|bytes| base64(&bytes))
}

pub(super) fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; KEY] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    let mut tag = [0; KEY];
    tag.copy_from_slice(context.sign().as_ref());
    tag
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; KEY] {
    let mut hash = [0; KEY];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

pub(super) fn xor(a: &[u8; KEY], b: &[u8; KEY]) -> [u8; KEY] {
    std::array::from_fn(|i| a[i] ^ b[i])
}

/// Client key and server key of a password.
pub(super) fn derive(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Derived {
    let normal = normalize(password);
    let mut salted = Zeroizing::new([0; KEY]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, &normal, salted.as_mut());
    Derived {
        client_key: Zeroizing::new(hmac(salted.as_ref(), &[b"Client Key"])),
        server_key: Zeroizing::new(hmac(salted.as_ref(), &[b"Server Key"])),
    }
}

pub(super) struct Derived {
    pub(super) client_key: Zeroizing<[u8; KEY]>,
    pub(super) server_key: Zeroizing<[u8; KEY]>,
}

/// `SASLprep`, or the bytes as they are where that is impossible: not UTF-8, prohibited characters, or nothing
/// left (`pg_saslprep` in `src/common/saslprep.c` and its callers).
pub(super) fn normalize(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let prepared = std::str::from_utf8(password)
        .ok()
        .and_then(|text| stringprep::saslprep(text).ok())
        .filter(|text| !text.is_empty())
        .map(Cow::into_owned)
        .map(String::into_bytes);
    Zeroizing::new(prepared.unwrap_or_else(|| password.to_vec()))
}
