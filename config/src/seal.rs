//! The keys that the seal is made with: what routers sign a tenant's context by, and shards check
//! it by.

use std::fmt;

use zeroize::Zeroizing;

/// Length of a key, in bytes: as long as the hash of HMAC-SHA256 is.
pub const SEAL_KEY_BYTES: usize = 32;

/// Most keys in one file. Two are in use while keys are changed.
pub const MAX_SEAL_KEYS: usize = 16;

/// A key and its number. Neither shown nor logged; zeroed when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SealKey {
    /// Its number, from 1, by which a shard finds it.
    pub kid: u32,
    /// The key.
    pub secret: Zeroizing<[u8; SEAL_KEY_BYTES]>,
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey {{ kid: {} }}", self.kid)
    }
}

/// Why the text of keys was refused. Never holds any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSealKeys {
    /// There is none.
    #[error("holds no key; each line must be a number from 1 and 64 hexadecimal digits")]
    None,
    /// There are too many.
    #[error("holds more than {MAX_SEAL_KEYS} keys")]
    TooMany,
    /// This line, from 1, is not a key.
    #[error("line {0} must be a number from 1 and 64 hexadecimal digits")]
    Line(usize),
    /// Two keys have this number.
    #[error("holds two keys of number {0}")]
    Twice(u32),
}

/// Reads keys: a line for each, of a number and 64 hexadecimal digits. The first is signed with;
/// `#` begins a comment.
///
/// # Errors
/// If a line is not a key, two have the same number, or there is none.
pub fn parse_seal_keys(text: &str) -> Result<Vec<SealKey>, InvalidSealKeys> {
    let mut keys: Vec<SealKey> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let key = parse_line(line).ok_or(InvalidSealKeys::Line(n + 1))?;
        if keys.iter().any(|k| k.kid == key.kid) {
            return Err(InvalidSealKeys::Twice(key.kid));
        }
        if keys.len() == MAX_SEAL_KEYS {
            return Err(InvalidSealKeys::TooMany);
        }
        keys.push(key);
    }
    if keys.is_empty() { Err(InvalidSealKeys::None) } else { Ok(keys) }
}

fn parse_line(line: &str) -> Option<SealKey> {
    let (kid, digits) = line.split_once(char::is_whitespace)?;
    // As wide as the column that holds it.
    let kid = kid.parse::<u32>().ok().filter(|kid| (1..=i32::MAX as u32).contains(kid))?;
    let digits = digits.trim().as_bytes();
    if digits.len() != 2 * SEAL_KEY_BYTES {
        return None;
    }
    let mut secret = Zeroizing::new([0; SEAL_KEY_BYTES]);
    for (byte, pair) in secret.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |b: u8| char::from(b).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(SealKey { kid, secret })
}

/// The line of a key, as [`parse_seal_keys`] reads it.
pub fn seal_key_line(key: &SealKey) -> Zeroizing<String> {
    use fmt::Write;
    let mut line = Zeroizing::new(String::with_capacity(2 * SEAL_KEY_BYTES + 12));
    let _ = write!(line, "{} ", key.kid);
    for byte in key.secret.iter() {
        let _ = write!(line, "{byte:02x}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_written() {
        let (a, b) = ("ab".repeat(32), "01".repeat(32));
        let keys = parse_seal_keys(&format!("# current\n2 {a}\n\n1\t{b} # the last\n")).unwrap();
        assert_eq!(keys.iter().map(|k| k.kid).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(*keys[1].secret, [1; 32]);
        assert_eq!(*seal_key_line(&keys[0]), format!("2 {a}"));
        assert_eq!(format!("{keys:?}"), "[SealKey { kid: 2 }, SealKey { kid: 1 }]");
    }

    #[test]
    fn what_is_no_key() {
        let a = "ab".repeat(32);
        assert_eq!(parse_seal_keys("# nothing\n"), Err(InvalidSealKeys::None));
        for line in ["", "x", "1", "0 a", "-1 a", "1 ab", "99999999999 a", "1 \u{fc}"] {
            let line = line.replace(" a", &format!(" {a}"));
            if !line.is_empty() {
                assert_eq!(parse_seal_keys(&format!("\n{line}")), Err(InvalidSealKeys::Line(2)), "{line}");
            }
        }
        assert_eq!(parse_seal_keys(&format!("1 {a}\n1 {a}")), Err(InvalidSealKeys::Twice(1)));
        let many: String = (1..=17).map(|n| format!("{n} {a}\n")).collect();
        assert_eq!(parse_seal_keys(&many), Err(InvalidSealKeys::TooMany));
    }
}
