//! What we send as a server to our clients.

use super::{BuildError, empty, frame};
use crate::frame::backend;

/// `AuthenticationOk`.
pub fn auth_ok(buf: &mut Vec<u8>) {
    buf.extend_from_slice(&[backend::AUTH, 0, 0, 0, 8, 0, 0, 0, 0]);
}

/// `AuthenticationCleartextPassword`.
pub fn auth_cleartext(buf: &mut Vec<u8>) {
    buf.extend_from_slice(&[backend::AUTH, 0, 0, 0, 8, 0, 0, 0, 3]);
}

/// `AuthenticationMD5Password`.
pub fn auth_md5(buf: &mut Vec<u8>, salt: [u8; 4]) {
    buf.extend_from_slice(&[backend::AUTH, 0, 0, 0, 12, 0, 0, 0, 5]);
    buf.extend_from_slice(&salt);
}

/// `AuthenticationSASL` with the mechanisms on offer, the preferred one first.
///
/// # Errors
/// An empty name, a NUL in one, or too long.
pub fn auth_sasl(buf: &mut Vec<u8>, mechs: &[&str]) -> Result<(), BuildError> {
    frame(buf, Some(backend::AUTH), |body| {
        body.u32(10)?;
        for mechanism in mechs {
            if mechanism.is_empty() {
                return Err(BuildError::Value("mechanism"));
            }
            body.string(mechanism.as_bytes())?;
        }
        body.u8(0)
    })
}

/// `AuthenticationSASLContinue`.
///
/// # Errors
/// Too long.
pub fn auth_sasl_continue(buf: &mut Vec<u8>, data: &[u8]) -> Result<(), BuildError> {
    sasl(buf, 11, data)
}

/// `AuthenticationSASLFinal`.
///
/// # Errors
/// Too long.
pub fn auth_sasl_final(buf: &mut Vec<u8>, data: &[u8]) -> Result<(), BuildError> {
    sasl(buf, 12, data)
}

fn sasl(buf: &mut Vec<u8>, code: u32, data: &[u8]) -> Result<(), BuildError> {
    frame(buf, Some(backend::AUTH), |body| {
        body.u32(code)?;
        body.bytes(data)
    })
}

/// A ParameterStatus.
///
/// # Errors
/// A NUL in `name` or `value`, or too long.
pub fn parameter_status(
    buf: &mut Vec<u8>,
    name: impl AsRef<[u8]>,
    value: impl AsRef<[u8]>,
) -> Result<(), BuildError> {
    frame(buf, Some(backend::PARAMETER_STATUS), |body| {
        body.string(name.as_ref())?;
        body.string(value.as_ref())
    })
}

/// A BackendKeyData. Clients of protocol 3.0 must be given a key of exactly 4 bytes.
///
/// # Errors
/// A key of fewer than 4 or more than 256 bytes.
pub fn backend_key_data(buf: &mut Vec<u8>, pid: u32, key: &[u8]) -> Result<(), BuildError> {
    if !(4..=256).contains(&key.len()) {
        return Err(BuildError::Value("cancel key"));
    }
    frame(buf, Some(backend::BACKEND_KEY_DATA), |body| {
        body.u32(pid)?;
        body.bytes(key)
    })
}

/// A ReadyForQuery; `status` is `I`, `T` or `E`.
pub fn ready_for_query(buf: &mut Vec<u8>, status: u8) {
    debug_assert!(matches!(status, b'I' | b'T' | b'E'), "transaction status {status}");
    buf.extend_from_slice(&[backend::READY_FOR_QUERY, 0, 0, 0, 5, status]);
}

/// A NegotiateProtocolVersion: the newest version we speak as PostgreSQL writes it (major << 16 | minor,
/// `SendNegotiateProtocolVersion` in `src/backend/tcop/backend_startup.c`), and the options we do not know.
///
/// # Errors
/// A NUL in an option's name, or too long.
pub fn negotiate_version(
    buf: &mut Vec<u8>,
    minor_supported: u32,
    unrecognized: &[&[u8]],
) -> Result<(), BuildError> {
    frame(buf, Some(backend::NEGOTIATE_VERSION), |body| {
        body.u32(minor_supported)?;
        body.u32(u32::try_from(unrecognized.len()).map_err(|_| BuildError::TooLong)?)?;
        unrecognized.iter().try_for_each(|name| body.string(name))
    })
}

/// A ParseComplete.
pub fn parse_complete(buf: &mut Vec<u8>) {
    empty(buf, backend::PARSE_COMPLETE);
}

/// A BindComplete.
pub fn bind_complete(buf: &mut Vec<u8>) {
    empty(buf, backend::BIND_COMPLETE);
}

/// A CloseComplete.
pub fn close_complete(buf: &mut Vec<u8>) {
    empty(buf, backend::CLOSE_COMPLETE);
}

/// A NoData.
pub fn no_data(buf: &mut Vec<u8>) {
    empty(buf, backend::NO_DATA);
}

/// A PortalSuspended.
pub fn portal_suspended(buf: &mut Vec<u8>) {
    empty(buf, backend::PORTAL_SUSPENDED);
}

/// A ParameterDescription: the type oid of each parameter.
///
/// # Errors
/// More than 65535 of them.
pub fn parameter_description(buf: &mut Vec<u8>, types: &[u32]) -> Result<(), BuildError> {
    frame(buf, Some(backend::PARAMETER_DESCRIPTION), |body| {
        body.count(types.len())?;
        types.iter().try_for_each(|oid| body.u32(*oid))
    })
}

/// An EmptyQueryResponse.
pub fn empty_query(buf: &mut Vec<u8>) {
    empty(buf, backend::EMPTY_QUERY);
}

/// A CommandComplete with its tag, such as `SELECT 1`.
///
/// # Errors
/// A NUL in `tag`, or too long.
pub fn command_complete(buf: &mut Vec<u8>, tag: impl AsRef<[u8]>) -> Result<(), BuildError> {
    frame(buf, Some(backend::COMMAND_COMPLETE), |body| body.string(tag.as_ref()))
}

/// A RowDescription of columns in text format that belong to no table: name, type oid, and type size in bytes
/// (-1 for a type of variable size).
///
/// # Errors
/// A NUL in a name, more than 65535 columns, or too long.
pub fn row_description(buf: &mut Vec<u8>, cols: &[(&str, u32, i16)]) -> Result<(), BuildError> {
    row_description_in(buf, cols, |_| false)
}

/// The same, where `binary` says of each column, by its index, whether it is in binary format.
///
/// # Errors
/// As [`row_description`].
pub fn row_description_in(
    buf: &mut Vec<u8>,
    cols: &[(&str, u32, i16)],
    binary: impl Fn(usize) -> bool,
) -> Result<(), BuildError> {
    frame(buf, Some(backend::ROW_DESCRIPTION), |body| {
        body.count(cols.len())?;
        for (at, (name, oid, size)) in cols.iter().enumerate() {
            body.string(name.as_bytes())?;
            // No table and no attribute number.
            body.bytes(&[0; 6])?;
            body.u32(*oid)?;
            body.u16(size.cast_unsigned())?;
            // No type modifier (-1); the format is 0 for text, 1 for binary.
            body.bytes(&[0xff, 0xff, 0xff, 0xff, 0, u8::from(binary(at))])?;
        }
        Ok(())
    })
}

/// A DataRow.
///
/// # Errors
/// More than 65535 values, or too long.
pub fn data_row(buf: &mut Vec<u8>, values: &[Option<&[u8]>]) -> Result<(), BuildError> {
    frame(buf, Some(backend::DATA_ROW), |body| {
        body.count(values.len())?;
        values.iter().try_for_each(|value| body.value(*value))
    })
}
