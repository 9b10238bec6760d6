//! MD5 passwords, for drivers that know nothing newer. Off unless configured: the stored form is as good as
//! the password to whoever reads it.

use ::md5::{Digest, Md5};

/// The stored form, `md5` and 32 hexadecimal digits of `md5(password || user)`: `pg_md5_encrypt` in
/// `src/common/md5_common.c`.
#[must_use]
pub fn md5_password(user: &str, password: &str) -> String {
    hashed(password.as_bytes(), user.as_bytes())
}

/// What a client answers to a salt: `md5` and the digits of `md5(digits of stored || salt)`. `stored` is the
/// form of [`md5_password`]. Compare the result in constant time.
#[must_use]
pub fn md5_response(stored: &str, salt: [u8; 4]) -> String {
    hashed(stored.strip_prefix("md5").unwrap_or(stored).as_bytes(), &salt)
}

fn hashed(first: &[u8], second: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hash = Md5::new();
    hash.update(first);
    hash.update(second);
    let mut text = String::with_capacity(35);
    text.push_str("md5");
    for byte in hash.finalize().as_slice() {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From PostgreSQL 15: `SET password_encryption = md5; ALTER ROLE m PASSWORD 'secret'; SELECT rolpassword`.
    #[test]
    fn stored_form() {
        assert_eq!(md5_password("m", "secret"), "md5b52328d7451bfeace80c4b8c338106f9");
    }

    #[test]
    fn response_depends_on_salt() {
        let stored = md5_password("u", "secret");
        let response = md5_response(&stored, [1, 2, 3, 4]);
        assert_eq!(response.len(), 35);
        assert!(response.starts_with("md5"));
        assert_ne!(response, md5_response(&stored, [1, 2, 3, 5]));
    }
}
