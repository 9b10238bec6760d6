//! Builders of messages: each appends one whole frame to a buffer.
//!
//! Those that take anything of a caller's choosing can fail, and then leave the buffer as it was: a string
//! with a NUL in it or a length that does not fit would otherwise let its author write the frames that follow
//! (the class of CVE-2024-27304).

use thiserror::Error;

use crate::frame::MAX_DECLARED;

mod backend;
mod frontend;

pub use backend::*;
pub use frontend::*;

/// Why a message cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BuildError {
    /// The message, or a count in it, would be larger than the protocol can say.
    #[error("message too long")]
    TooLong,
    /// A string has a NUL in it, which would end it early.
    #[error("string with a NUL byte in a message")]
    Nul,
    /// A fixed field was given a value it cannot have.
    #[error("invalid {0} for a message")]
    Value(&'static str),
}

/// Appends a frame whose body `fill` writes; takes it all back when `fill` fails or the body is too long.
fn frame(
    buf: &mut Vec<u8>,
    tag: Option<u8>,
    fill: impl FnOnce(&mut Body<'_>) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let start = buf.len();
    buf.extend(tag);
    let at = buf.len();
    buf.extend_from_slice(&[0; 4]);
    let filled = fill(&mut Body { buf, at }).and_then(|()| {
        let declared = buf.len() - at;
        if declared > MAX_DECLARED {
            return Err(BuildError::TooLong);
        }
        u32::try_from(declared).map_err(|_| BuildError::TooLong)
    });
    match filled {
        Ok(declared) => {
            buf[at..at + 4].copy_from_slice(&declared.to_be_bytes());
            Ok(())
        }
        Err(error) => {
            buf.truncate(start);
            Err(error)
        }
    }
}

/// A frame without a body.
fn empty(buf: &mut Vec<u8>, tag: u8) {
    buf.extend_from_slice(&[tag, 0, 0, 0, 4]);
}

/// The body of a frame in the making; refuses to grow past what a frame can hold.
struct Body<'b> {
    buf: &'b mut Vec<u8>,
    at: usize,
}

impl Body<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        if bytes.len() > MAX_DECLARED.saturating_sub(self.buf.len() - self.at) {
            return Err(BuildError::TooLong);
        }
        self.buf.extend_from_slice(bytes);
        Ok(())
    }

    fn u8(&mut self, value: u8) -> Result<(), BuildError> {
        self.bytes(&[value])
    }

    fn u16(&mut self, value: u16) -> Result<(), BuildError> {
        self.bytes(&value.to_be_bytes())
    }

    fn u32(&mut self, value: u32) -> Result<(), BuildError> {
        self.bytes(&value.to_be_bytes())
    }

    /// A 16-bit count. PostgreSQL reads it unsigned where it counts parameters (65535 at most) and columns
    /// (1664 at most).
    fn count(&mut self, count: usize) -> Result<(), BuildError> {
        self.u16(u16::try_from(count).map_err(|_| BuildError::TooLong)?)
    }

    fn string(&mut self, text: &[u8]) -> Result<(), BuildError> {
        if memchr::memchr(0, text).is_some() {
            return Err(BuildError::Nul);
        }
        self.bytes(text)?;
        self.u8(0)
    }

    /// A value with its 32-bit length, -1 for NULL.
    fn value(&mut self, value: Option<&[u8]>) -> Result<(), BuildError> {
        let Some(value) = value else {
            return self.u32(u32::MAX);
        };
        self.u32(i32::try_from(value.len()).map_err(|_| BuildError::TooLong)?.cast_unsigned())?;
        self.bytes(value)
    }
}

#[cfg(test)]
mod tests;
