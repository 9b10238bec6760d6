//! Passwords and tokens: made at random, given out once, kept only as what checks them.

use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// Bytes of randomness in what we make: 192 bits, written as 32 characters that need no escape
/// in a URL.
const RANDOM_BYTES: usize = 24;

/// What tokens begin with, so that a scanner for leaked secrets knows one when it sees it.
const TOKEN_PREFIX: &str = "swyd_";

/// Randomness could not be had.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no randomness")]
pub struct NoRandomness;

pub(crate) fn new_password() -> Result<SecretString, NoRandomness> {
    let mut bytes = Zeroizing::new([0; RANDOM_BYTES]);
    rand::fill(bytes.as_mut_slice()).map_err(|_| NoRandomness)?;
    Ok(SecretString::from(URL_SAFE_NO_PAD.encode(bytes.as_slice())))
}

pub(crate) fn new_token() -> Result<SecretString, NoRandomness> {
    let secret = new_password()?;
    Ok(SecretString::from(format!("{TOKEN_PREFIX}{}", secret.expose_secret())))
}

/// An id that no other has: `prefix`, and 26 characters of Crockford's base 32, which begin with
/// the time in milliseconds, so that later ones sort behind (as ULIDs do).
pub(crate) fn new_id(prefix: &str) -> Result<String, NoRandomness> {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let millis = since.map_or(0, |d| d.as_millis());
    let mut random = [0; 16];
    rand::fill(&mut random[6..]).map_err(|_| NoRandomness)?;
    let value = (millis << 80) | u128::from_be_bytes(random);
    let digit = |n: u32| char::from(DIGITS[((value >> (5 * n)) & 31) as usize]);
    Ok(prefix.chars().chain((0..26).rev().map(digit)).collect())
}

/// What is kept of a token. Plain SHA-256: a token has 192 random bits, so there is nothing to guess.
pub(crate) fn token_hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_their_time_and_differ() {
        let (a, b) = (new_id("op_").unwrap(), new_id("op_").unwrap());
        assert_ne!(a, b);
        assert_eq!((a.len(), &a[..6]), (29, &b[..6]));
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(new_id("op_").unwrap() > a.max(b));
    }

    #[test]
    fn passwords_need_no_escape_and_differ() {
        let (a, b) = (new_password().unwrap(), new_password().unwrap());
        assert_ne!(a.expose_secret(), b.expose_secret());
        assert_eq!(a.expose_secret().len(), 32);
        assert!(a.expose_secret().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    }
}
