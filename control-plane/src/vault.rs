//! Sealing of values with AES-256-GCM, and the keys that the control plane holds for it.
//!
//! Each tenant has a data key; it is kept in the catalog sealed by one of the control plane's
//! keys, which are in a file and never in the catalog. To rotate a key of the control plane only
//! the data keys are sealed anew.

use std::fs;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::credentials::NoRandomness;

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;

/// A key that does not print itself.
#[derive(Clone)]
pub(crate) struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl Key {
    pub(crate) fn new(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self(bytes)
    }

    pub(crate) fn random() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        rand::fill(bytes.as_mut_slice()).map_err(|_| NoRandomness)?;
        Ok(Self(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    fn aead(&self) -> Option<LessSafeKey> {
        Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, self.0.as_slice()).ok()?))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Seals `plain` so that it opens only together with `bound`: what it is and whose. The nonce is
/// random and stands in front; a key seals far fewer than the 2^32 values that this is good for.
pub(crate) fn seal(key: &Key, bound: &[u8], plain: &[u8]) -> Result<Vec<u8>, NoRandomness> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).map_err(|_| NoRandomness)?;
    let aead = key.aead().ok_or(NoRandomness)?;
    let mut text = plain.to_vec();
    aead.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound), &mut text)
        .map_err(|_| NoRandomness)?;
    let mut sealed = nonce.to_vec();
    sealed.append(&mut text);
    Ok(sealed)
}

/// Opens what [`seal`] made; none if key, binding or text are not the ones.
pub(crate) fn open(key: &Key, bound: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
    let mut text = Zeroizing::new(text.to_vec());
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let length = key.aead()?.open_in_place(nonce, Aad::from(bound), &mut text).ok()?.len();
    text.truncate(length);
    Some(text)
}

/// The control plane's keys. The first seals; all open.
#[derive(Debug, Clone)]
pub(crate) struct Keys(Vec<(String, Key)>);

/// Why the file of keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// Its form. Says the line, and nothing of what stands there.
    #[error(
        "line {0} must be a name of 1 to 63 letters, digits, `-` and `_`, a space, and 32 bytes in base64"
    )]
    Form(usize),
    /// Two by one name.
    #[error("line {0} has a name that an earlier line has")]
    Twice(usize),
    /// Nothing in it.
    #[error("there is no key in it")]
    Empty,
}

impl Keys {
    /// Reads lines of `name base64`; empty ones and those that begin with `#` are left out.
    pub(crate) fn parse(text: &str) -> Result<Self, KeysError> {
        let mut keys: Vec<(String, Key)> = Vec::new();
        for (number, line) in (1..).zip(text.lines()).map(|(n, l)| (n, l.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, encoded) = line.split_once(' ').ok_or(KeysError::Form(number))?;
            let named = (1..=63).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            let bytes = STANDARD.decode(encoded.trim()).map(Zeroizing::new);
            let bytes =
                bytes.ok().filter(|b| named && b.len() == KEY_BYTES).ok_or(KeysError::Form(number))?;
            if keys.iter().any(|k| k.0 == name) {
                return Err(KeysError::Twice(number));
            }
            let mut key = Zeroizing::new([0; KEY_BYTES]);
            key.copy_from_slice(&bytes);
            keys.push((name.to_owned(), Key(key)));
        }
        if keys.is_empty() { Err(KeysError::Empty) } else { Ok(Self(keys)) }
    }

    /// A file's content with one new key.
    pub(crate) fn new_file() -> Result<SecretString, NoRandomness> {
        let key = Key::random()?;
        let encoded = Zeroizing::new(STANDARD.encode(key.bytes()));
        Ok(SecretString::from(format!("k1 {}\n", encoded.as_str())))
    }

    /// Reads the file, or makes it with one key in it.
    pub(crate) fn load_or_make(path: &Path) -> Result<Self, std::io::Error> {
        let text = match fs::read_to_string(path).map(Zeroizing::new) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let made = Self::new_file().map_err(std::io::Error::other)?;
                switchyard_catalog::disk::write_private(path, made.expose_secret().as_bytes())?;
                tracing::info!(path = %path.display(), "wrote a key for sealed values; keep a copy of it");
                Zeroizing::new(made.expose_secret().to_owned())
            }
            Err(e) => return Err(e),
        };
        Self::parse(&text).map_err(std::io::Error::other)
    }

    /// The name of the key that seals.
    pub(crate) fn current(&self) -> &str {
        &self.0[0].0
    }

    /// Seals with the first key; its name, and what it made.
    pub(crate) fn seal(&self, bound: &[u8], plain: &[u8]) -> Result<(&str, Vec<u8>), NoRandomness> {
        let (name, key) = &self.0[0];
        Ok((name, seal(key, bound, plain)?))
    }

    /// Opens with the key of this name.
    pub(crate) fn open(&self, name: &str, bound: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (_, key) = self.0.iter().find(|k| k.0 == name)?;
        open(key, bound, sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_and_binding_only() {
        let (key, other) = (Key::random().unwrap(), Key::random().unwrap());
        let sealed = seal(&key, b"acme/smtp", b"hush").unwrap();
        assert_eq!(open(&key, b"acme/smtp", &sealed).unwrap().as_slice(), b"hush");
        assert!(open(&other, b"acme/smtp", &sealed).is_none());
        assert!(open(&key, b"globex/smtp", &sealed).is_none());
        for cut in 0..sealed.len() {
            assert!(open(&key, b"acme/smtp", &sealed[..cut]).is_none());
        }
        assert_ne!(seal(&key, b"acme/smtp", b"hush").unwrap(), sealed, "the nonce differs");
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let encoded = |byte: u8| STANDARD.encode([byte; 32]);
        let old = Keys::parse(&format!("a {}\n", encoded(1))).unwrap();
        let both = Keys::parse(&format!("# newest first\nb {}\n\na {}\n", encoded(2), encoded(1))).unwrap();
        let (name, sealed) = old.seal(b"x", b"plain").unwrap();
        assert_eq!(both.open(name, b"x", &sealed).unwrap().as_slice(), b"plain");
        assert_eq!(both.current(), "b");
        assert!(old.open("b", b"x", &both.seal(b"x", b"plain").unwrap().1).is_none());
        assert!(!format!("{both:?}").contains(&encoded(1)));
    }

    #[test]
    fn a_file_of_keys_is_checked_and_not_quoted() {
        let key = STANDARD.encode([7; 32]);
        assert_eq!(Keys::parse("").unwrap_err(), KeysError::Empty);
        assert_eq!(Keys::parse(&format!("a {key}\na {key}")).unwrap_err(), KeysError::Twice(2));
        for wrong in ["a", "a hush", &key, &format!("a/b {key}"), "a AAAA"] {
            assert_eq!(Keys::parse(wrong).unwrap_err(), KeysError::Form(1), "{wrong}");
        }
    }
}
