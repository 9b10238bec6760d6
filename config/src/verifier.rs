//! The written forms of password verifiers and SCRAM keys. Syntax only: nothing is computed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::topology::{SecretKey, ServerSecret, Verifier};

/// Longest salt, in bytes; PostgreSQL makes 16 (`SCRAM_DEFAULT_SALT_LEN`). The same as the wire
/// protocol's, so that what is accepted here can be used there.
const MAX_SALT_BYTES: usize = 256;

/// What the SCRAM keys of a role on a shard begin with.
const SCRAM_KEYS_PREFIX: &str = "SCRAM-SHA-256-KEYS$";

/// Why a verifier was refused. Holds nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    /// Neither form: most likely the password itself.
    #[error("is no verifier, and a password is not kept here: make one with `switchyard auth hash`")]
    Plain,
    /// Begins like SCRAM and goes on wrong.
    #[error("is no SCRAM verifier: it should read SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>")]
    Scram,
    /// Begins like SCRAM keys and goes on wrong.
    #[error("must read {SCRAM_KEYS_PREFIX}<ClientKey>:<ServerKey>, each 32 bytes in base64")]
    Keys,
    /// Keys of a role on a shard, where a verifier of a client is meant.
    #[error("holds SCRAM keys, which are for shards: make a verifier with `switchyard auth hash`")]
    KeysForVerifier,
    /// A verifier, where keys are meant: one cannot log in by it.
    #[error(
        "holds a verifier, by which nobody can log in: it must read {SCRAM_KEYS_PREFIX}<ClientKey>:<ServerKey>"
    )]
    VerifierForKeys,
}

/// Checks the form of a verifier as in `pg_authid.rolpassword`.
///
/// # Errors
/// If it is neither `SCRAM-SHA-256$...` nor `md5` with 32 lower case hexadecimal digits.
pub fn check_verifier(text: &str) -> Result<Verifier, VerifierError> {
    if text.starts_with(SCRAM_KEYS_PREFIX) {
        return Err(VerifierError::KeysForVerifier);
    }
    if let Some(rest) = text.strip_prefix("SCRAM-SHA-256$") {
        return match scram_parts(rest) {
            Some(()) => Ok(Verifier::Scram(SecretString::from(text))),
            None => Err(VerifierError::Scram),
        };
    }
    // As get_password_type in src/backend/libpq/crypt.c.
    match text.strip_prefix("md5") {
        Some(hex) if hex.len() == 32 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
            Ok(Verifier::Md5(SecretString::from(text)))
        }
        _ => Err(VerifierError::Plain),
    }
}

fn scram_parts(rest: &str) -> Option<()> {
    let (parameters, keys) = rest.split_once('$')?;
    let (iterations, salt) = parameters.split_once(':')?;
    let (stored, server) = keys.split_once(':')?;
    let digits = !iterations.is_empty() && iterations.bytes().all(|b| b.is_ascii_digit());
    // PostgreSQL keeps the count in an int (parse_scram_secret, src/backend/libpq/auth-scram.c).
    let count = iterations.parse::<i32>().ok().filter(|n| digits && *n > 0);
    let salt = STANDARD.decode(salt).ok().filter(|s| (1..=MAX_SALT_BYTES).contains(&s.len()));
    (count.is_some() && salt.is_some() && key(stored).is_some() && key(server).is_some()).then_some(())
}

fn key(text: &str) -> Option<SecretKey> {
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    Some(SecretKey(bytes.as_slice().try_into().ok()?))
}

/// Reads `SCRAM-SHA-256-KEYS$<ClientKey>:<ServerKey>` into [`ServerSecret::ScramKeys`].
///
/// # Errors
/// If the text has another form, or a key is not 32 bytes in base64.
pub fn parse_scram_keys(text: &str) -> Result<ServerSecret, VerifierError> {
    if text.starts_with("SCRAM-SHA-256$") {
        return Err(VerifierError::VerifierForKeys);
    }
    let read = || {
        let (client, server) = text.strip_prefix(SCRAM_KEYS_PREFIX)?.split_once(':')?;
        Some(ServerSecret::ScramKeys { client_key: key(client)?, server_key: key(server)? })
    };
    read().ok_or(VerifierError::Keys)
}

/// Writes keys the way [`parse_scram_keys`] reads them. The text is as secret as the keys.
pub fn scram_keys_text(client_key: &SecretKey, server_key: &SecretKey) -> Zeroizing<String> {
    let encode = |k: &SecretKey| Zeroizing::new(STANDARD.encode(k.0));
    Zeroizing::new(format!("{SCRAM_KEYS_PREFIX}{}:{}", *encode(client_key), *encode(server_key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677's example: user `user`, password `pencil`.
    const SCRAM: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn verifiers() {
        assert!(matches!(check_verifier(SCRAM), Ok(Verifier::Scram(_))));
        let md5 = "md53175bce1d3201d16594cebf9d7eb3f9d";
        assert!(matches!(check_verifier(md5), Ok(Verifier::Md5(_))));
        for plain in
            ["", "hunter2", "md5", "md53175", &md5.to_uppercase(), &format!("{md5}0"), "scram-sha-256$"]
        {
            assert_eq!(check_verifier(plain).unwrap_err(), VerifierError::Plain, "{plain}");
        }
        for (from, to) in [
            ("4096", "0"),
            ("4096", "-1"),
            ("4096", "+1"),
            ("4096", ""),
            ("4096", "99999999999"),
            ("W22ZaJ0SNY7soEsUEjb6gQ==", ""),
            ("W22ZaJ0SNY7soEsUEjb6gQ==", "*"),
            ("W22ZaJ0SNY7soEsUEjb6gQ==", &"A".repeat(344)),
            ("$WG5d", "$"),
            (":wfPL", ":"),
            (":wfPL", ""),
            ("$WG5d", ""),
        ] {
            let bad = SCRAM.replacen(from, to, 1);
            assert_eq!(check_verifier(&bad).unwrap_err(), VerifierError::Scram, "{bad}");
        }
    }

    #[test]
    fn scram_keys_are_written_as_read() {
        let (client_key, server_key) = (SecretKey([7; 32]), SecretKey([255; 32]));
        let text = scram_keys_text(&client_key, &server_key);
        let Ok(ServerSecret::ScramKeys { client_key: c, server_key: s }) = parse_scram_keys(&text) else {
            panic!("not read")
        };
        assert_eq!((c.0, s.0), ([7; 32], [255; 32]));
        assert_eq!(check_verifier(&text).unwrap_err(), VerifierError::KeysForVerifier);
        assert_eq!(parse_scram_keys(SCRAM).unwrap_err(), VerifierError::VerifierForKeys);
        for bad in ["", "x", &text[1..], &text[..text.len() - 1], &format!("{}=", *text)] {
            assert_eq!(parse_scram_keys(bad).unwrap_err(), VerifierError::Keys, "{bad}");
        }
    }
}
