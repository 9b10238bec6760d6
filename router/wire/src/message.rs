//! Readers of message bodies: the bytes of a whole frame after its five-byte header.
//!
//! All borrow, none allocates. Errors have PostgreSQL's own texts (`src/backend/libpq/pqformat.c`).

use thiserror::Error;

mod auth;
mod cursor;
mod error_fields;
mod extended;
mod values;

pub use auth::{Auth, Mechanisms, SaslInitial, auth, password, sasl_initial};
pub use error_fields::ErrorFields;
pub use extended::{
    Bind, BindNames, Execute, Parse, Target, bind, bind_names, close, describe, execute, parse,
};
pub use values::{Parameters, Values, bind_parameters, data_row};

use cursor::Cursor;

/// A body that is not what its type says. The frame was whole, so the stream is still in step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// A string without its terminator.
    #[error("invalid string in message")]
    String,
    /// The body ended before its last field.
    #[error("insufficient data left in message")]
    Short,
    /// The body goes on after its last field.
    #[error("invalid message format")]
    Trailing,
    /// A field has a value it cannot have.
    #[error("invalid {0} in message")]
    Value(&'static str),
}

/// The text of a Query, without its NUL.
///
/// # Errors
/// No NUL, or anything after the first one.
#[inline]
pub fn query(body: &[u8]) -> Result<&[u8], Malformed> {
    only_string(body)
}

/// The tag of a CommandComplete, such as `SELECT 1`.
///
/// # Errors
/// As [`query`].
#[inline]
pub fn command_tag(body: &[u8]) -> Result<&[u8], Malformed> {
    only_string(body)
}

/// Name and value of a ParameterStatus.
///
/// # Errors
/// Fewer or more than two strings.
pub fn parameter_status(body: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let mut cursor = Cursor(body);
    let pair = (cursor.string()?, cursor.string()?);
    cursor.end()?;
    Ok(pair)
}

/// The transaction status of a ReadyForQuery: `I` idle, `T` in a transaction, `E` in a failed one.
///
/// # Errors
/// Anything else.
#[inline]
pub fn ready_status(body: &[u8]) -> Result<u8, Malformed> {
    match body {
        &[status @ (b'I' | b'T' | b'E')] => Ok(status),
        [] => Err(Malformed::Short),
        [_] => Err(Malformed::Value("transaction status")),
        _ => Err(Malformed::Trailing),
    }
}

/// Process id and secret key of a BackendKeyData. The key has 4 bytes in protocol 3.0 and up to 256 since
/// 3.2 (protocol documentation, "BackendKeyData").
///
/// # Errors
/// A key of another size.
pub fn backend_key(body: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let mut cursor = Cursor(body);
    let pid = cursor.u32()?;
    let key = cursor.0;
    match key.len() {
        0..4 => Err(Malformed::Short),
        4..=256 => Ok((pid, key)),
        _ => Err(Malformed::Trailing),
    }
}

/// A NotificationResponse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification<'a> {
    /// Process id of the backend whose transaction sent it.
    pub pid: u32,
    /// The channel.
    pub channel: &'a [u8],
    /// What was sent along; may be empty.
    pub payload: &'a [u8],
}

/// What a NotificationResponse says.
///
/// # Errors
/// A body too short, or with anything but two strings behind the process id.
pub fn notification(body: &[u8]) -> Result<Notification<'_>, Malformed> {
    let mut cursor = Cursor(body);
    let read = Notification { pid: cursor.u32()?, channel: cursor.string()?, payload: cursor.string()? };
    cursor.end()?;
    Ok(read)
}

/// The newest minor version the server has (as sent: PostgreSQL puts the whole version number here since 3.2,
/// the minor number alone before) and how many protocol options it does not know.
///
/// # Errors
/// The body does not hold as many strings as it says.
pub fn negotiate_version(body: &[u8]) -> Result<(u32, u32), Malformed> {
    let mut cursor = Cursor(body);
    let version = cursor.u32()?;
    let count = cursor.u32()?;
    for _ in 0..count {
        cursor.string()?;
    }
    cursor.end()?;
    Ok((version, count))
}

fn only_string(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut cursor = Cursor(body);
    let text = cursor.string()?;
    cursor.end()?;
    Ok(text)
}

#[cfg(test)]
mod tests;
