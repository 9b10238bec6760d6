//! What we send as a client of a shard.

use super::{Body, BuildError, empty, frame};
use crate::frame::frontend;
use crate::startup::{CANCEL_REQUEST, SSL_REQUEST};

/// A simple Query.
///
/// # Errors
/// A NUL in `sql`, or too long.
pub fn query(buf: &mut Vec<u8>, sql: &[u8]) -> Result<(), BuildError> {
    frame(buf, Some(frontend::QUERY), |body| body.string(sql))
}

/// A Parse; `types` is the raw count and oids of [`crate::message::Parse::types`], or empty for none.
///
/// # Errors
/// A NUL in `name` or `sql`, `types` of another size than its count says, or too long.
pub fn parse(buf: &mut Vec<u8>, name: &[u8], sql: &[u8], types: &[u8]) -> Result<(), BuildError> {
    let types = if types.is_empty() { &[0, 0] } else { types };
    let fits = types
        .split_first_chunk::<2>()
        .is_some_and(|(count, oids)| oids.len() == usize::from(u16::from_be_bytes(*count)) * 4);
    if !fits {
        return Err(BuildError::Value("parameter types"));
    }
    frame(buf, Some(frontend::PARSE), |body| {
        body.string(name)?;
        body.string(sql)?;
        body.bytes(types)
    })
}

/// A Bind with all parameters and all results in text format.
///
/// # Errors
/// A NUL in a name, more than 65535 parameters, or too long.
pub fn bind_text(
    buf: &mut Vec<u8>,
    portal: &[u8],
    statement: &[u8],
    params: &[&[u8]],
) -> Result<(), BuildError> {
    frame(buf, Some(frontend::BIND), |body| {
        body.string(portal)?;
        body.string(statement)?;
        text_values(body, params)?;
        body.u16(0)
    })
}

/// No format codes (all text), then the values.
fn text_values(body: &mut Body<'_>, values: &[&[u8]]) -> Result<(), BuildError> {
    body.u16(0)?;
    body.count(values.len())?;
    values.iter().try_for_each(|value| body.value(Some(value)))
}

/// A Describe of a statement (`kind` `S`) or portal (`P`).
///
/// # Errors
/// Another kind, a NUL in `name`, or too long.
pub fn describe(buf: &mut Vec<u8>, kind: u8, name: &[u8]) -> Result<(), BuildError> {
    target(buf, frontend::DESCRIBE, kind, name)
}

/// A Close of a statement (`kind` `S`) or portal (`P`).
///
/// # Errors
/// As [`describe`].
pub fn close(buf: &mut Vec<u8>, kind: u8, name: &[u8]) -> Result<(), BuildError> {
    target(buf, frontend::CLOSE, kind, name)
}

fn target(buf: &mut Vec<u8>, tag: u8, kind: u8, name: &[u8]) -> Result<(), BuildError> {
    if !matches!(kind, b'S' | b'P') {
        return Err(BuildError::Value("kind of object"));
    }
    frame(buf, Some(tag), |body| {
        body.u8(kind)?;
        body.string(name)
    })
}

/// An Execute; `max_rows` 0 is no limit.
///
/// # Errors
/// A NUL in `portal`, `max_rows` above 2^31-1, or too long.
pub fn execute(buf: &mut Vec<u8>, portal: &[u8], max_rows: u32) -> Result<(), BuildError> {
    if i32::try_from(max_rows).is_err() {
        return Err(BuildError::Value("row limit"));
    }
    frame(buf, Some(frontend::EXECUTE), |body| {
        body.string(portal)?;
        body.u32(max_rows)
    })
}

/// A Sync.
pub fn sync(buf: &mut Vec<u8>) {
    empty(buf, frontend::SYNC);
}

/// A Flush.
pub fn flush(buf: &mut Vec<u8>) {
    empty(buf, frontend::FLUSH);
}

/// A Terminate.
pub fn terminate(buf: &mut Vec<u8>) {
    empty(buf, frontend::TERMINATE);
}

/// A FunctionCall with all arguments and the result in text format.
///
/// # Errors
/// More than 65535 arguments, or too long.
pub fn function_call_text(buf: &mut Vec<u8>, oid: u32, args: &[&[u8]]) -> Result<(), BuildError> {
    frame(buf, Some(frontend::FUNCTION_CALL), |body| {
        body.u32(oid)?;
        text_values(body, args)?;
        body.u16(0)
    })
}

/// The same, where an argument may be NULL.
///
/// # Errors
/// As [`function_call_text`].
pub fn function_call_nullable(buf: &mut Vec<u8>, oid: u32, args: &[Option<&[u8]>]) -> Result<(), BuildError> {
    frame(buf, Some(frontend::FUNCTION_CALL), |body| {
        body.u32(oid)?;
        // One format for all arguments: text.
        body.u16(1)?;
        body.u16(0)?;
        body.count(args.len())?;
        for arg in args {
            body.value(*arg)?;
        }
        body.u16(0)
    })
}

/// A PasswordMessage.
///
/// # Errors
/// A NUL in `password`, or too long.
pub fn password(buf: &mut Vec<u8>, password: &[u8]) -> Result<(), BuildError> {
    frame(buf, Some(frontend::PASSWORD), |body| body.string(password))
}

/// A `SASLInitialResponse` with its data.
///
/// # Errors
/// A NUL in `mechanism`, or too long.
pub fn sasl_initial(buf: &mut Vec<u8>, mechanism: &str, data: &[u8]) -> Result<(), BuildError> {
    frame(buf, Some(frontend::PASSWORD), |body| {
        body.string(mechanism.as_bytes())?;
        body.value(Some(data))
    })
}

/// A `SASLResponse`.
///
/// # Errors
/// Too long.
pub fn sasl_response(buf: &mut Vec<u8>, data: &[u8]) -> Result<(), BuildError> {
    frame(buf, Some(frontend::PASSWORD), |body| body.bytes(data))
}

/// A CopyFail with the reason that the server will quote.
///
/// # Errors
/// A NUL in `reason`, or too long.
pub fn copy_fail(buf: &mut Vec<u8>, reason: &[u8]) -> Result<(), BuildError> {
    frame(buf, Some(frontend::COPY_FAIL), |body| body.string(reason))
}

/// A startup packet; `version` is major << 16 | minor.
///
/// # Errors
/// A NUL in a name or value, an empty name (it would end the list), or too long.
pub fn startup(buf: &mut Vec<u8>, version: u32, params: &[(&str, &str)]) -> Result<(), BuildError> {
    frame(buf, None, |body| {
        body.u32(version)?;
        for (name, value) in params {
            if name.is_empty() {
                return Err(BuildError::Value("parameter name"));
            }
            body.string(name.as_bytes())?;
            body.string(value.as_bytes())?;
        }
        body.u8(0)
    })
}

/// An `SSLRequest`.
pub fn ssl_request(buf: &mut Vec<u8>) {
    buf.extend_from_slice(&8u32.to_be_bytes());
    buf.extend_from_slice(&SSL_REQUEST.to_be_bytes());
}

/// A `CancelRequest`.
///
/// # Errors
/// A key of fewer than 4 or more than 256 bytes.
pub fn cancel_request(buf: &mut Vec<u8>, pid: u32, key: &[u8]) -> Result<(), BuildError> {
    if !(4..=256).contains(&key.len()) {
        return Err(BuildError::Value("cancel key"));
    }
    frame(buf, None, |body| {
        body.u32(CANCEL_REQUEST)?;
        body.u32(pid)?;
        body.bytes(key)
    })
}
