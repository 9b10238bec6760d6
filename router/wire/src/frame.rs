//! Frames: one tag byte, then a big-endian length that counts itself but not the tag.

use thiserror::Error;

/// Bytes in a frame's header: the tag and the four length bytes.
pub const HEADER: usize = 5;

/// The largest length a frame may declare, in bytes: `MaxAllocSize` in `src/include/utils/memutils.h`.
pub const MAX_DECLARED: usize = 0x3fff_ffff;

/// The largest length that a message may declare which holds a name or nothing, in bytes:
/// `PQ_SMALL_MESSAGE_LIMIT` in `src/include/libpq/libpq.h`.
pub const MAX_SMALL: usize = 10_000;

/// Whether a client's message is larger than PostgreSQL reads of its kind (`SocketBackend` in
/// `src/backend/tcop/postgres.c`).
#[inline]
#[must_use]
pub fn is_oversized(header: Header) -> bool {
    use frontend as f;
    header.len > MAX_SMALL + 1
        && matches!(
            header.tag,
            f::CLOSE
                | f::DESCRIBE
                | f::EXECUTE
                | f::FLUSH
                | f::SYNC
                | f::TERMINATE
                | f::COPY_DONE
                | f::COPY_FAIL
        )
}

/// A decoded frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The message type; see [`frontend`] and [`backend`].
    pub tag: u8,
    /// Size of the whole frame in bytes, the tag included: never less than [`HEADER`].
    pub len: usize,
}

/// A declared length that no frame can have; the connection cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("invalid message length {declared} in a message of type {tag:#04x}")]
pub struct FrameError {
    /// The message type as received.
    pub tag: u8,
    /// The length as declared, in bytes.
    pub declared: u32,
}

/// Reads the header at the start of `buf`; `None` when fewer than [`HEADER`] bytes are there.
///
/// # Errors
/// A declared length below 4 or above [`MAX_DECLARED`].
#[inline]
pub fn header(buf: &[u8]) -> Result<Option<Header>, FrameError> {
    let Some(&[tag, a, b, c, d]) = buf.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let declared = u32::from_be_bytes([a, b, c, d]);
    if declared < 4 || declared as usize > MAX_DECLARED {
        return Err(FrameError { tag, declared });
    }
    Ok(Some(Header { tag, len: declared as usize + 1 }))
}

/// Tags of messages that a client sends (`src/include/libpq/protocol.h`, `PqMsg_*`).
pub mod frontend {
    /// Simple query.
    pub const QUERY: u8 = b'Q';
    /// Parse: make a prepared statement.
    pub const PARSE: u8 = b'P';
    /// Bind: make a portal of a statement.
    pub const BIND: u8 = b'B';
    /// Execute a portal.
    pub const EXECUTE: u8 = b'E';
    /// Describe a statement or portal.
    pub const DESCRIBE: u8 = b'D';
    /// Close a statement or portal.
    pub const CLOSE: u8 = b'C';
    /// End of an extended-query batch.
    pub const SYNC: u8 = b'S';
    /// Ask for the answers so far.
    pub const FLUSH: u8 = b'H';
    /// Fast-path function call.
    pub const FUNCTION_CALL: u8 = b'F';
    /// Orderly goodbye.
    pub const TERMINATE: u8 = b'X';
    /// A chunk of COPY data.
    pub const COPY_DATA: u8 = b'd';
    /// End of COPY data.
    pub const COPY_DONE: u8 = b'c';
    /// The client gives up a COPY.
    pub const COPY_FAIL: u8 = b'f';
    /// Password, `SASLInitialResponse` or `SASLResponse`, as the authentication in progress has it.
    pub const PASSWORD: u8 = b'p';
}

/// Tags of messages that a server sends (`src/include/libpq/protocol.h`, `PqMsg_*`).
pub mod backend {
    /// Any authentication request, and `AuthenticationOk`.
    pub const AUTH: u8 = b'R';
    /// A reported setting and its value.
    pub const PARAMETER_STATUS: u8 = b'S';
    /// The key for cancel requests.
    pub const BACKEND_KEY_DATA: u8 = b'K';
    /// The server waits for the next query; carries the transaction status.
    pub const READY_FOR_QUERY: u8 = b'Z';
    /// An error.
    pub const ERROR: u8 = b'E';
    /// A notice or warning.
    pub const NOTICE: u8 = b'N';
    /// A NOTIFY from another session.
    pub const NOTIFICATION: u8 = b'A';
    /// A statement is complete.
    pub const COMMAND_COMPLETE: u8 = b'C';
    /// One row.
    pub const DATA_ROW: u8 = b'D';
    /// The columns of the rows that follow.
    pub const ROW_DESCRIPTION: u8 = b'T';
    /// Parse succeeded.
    pub const PARSE_COMPLETE: u8 = b'1';
    /// Bind succeeded.
    pub const BIND_COMPLETE: u8 = b'2';
    /// Close succeeded.
    pub const CLOSE_COMPLETE: u8 = b'3';
    /// The parameter types of a described statement.
    pub const PARAMETER_DESCRIPTION: u8 = b't';
    /// The described statement or portal returns no rows.
    pub const NO_DATA: u8 = b'n';
    /// Execute stopped at its row limit.
    pub const PORTAL_SUSPENDED: u8 = b's';
    /// The query string was empty.
    pub const EMPTY_QUERY: u8 = b'I';
    /// The server waits for COPY data.
    pub const COPY_IN: u8 = b'G';
    /// The server will send COPY data.
    pub const COPY_OUT: u8 = b'H';
    /// COPY in both directions (streaming replication).
    pub const COPY_BOTH: u8 = b'W';
    /// The result of a function call.
    pub const FUNCTION_RESULT: u8 = b'V';
    /// The newest protocol version the server has, and the options it does not know.
    pub const NEGOTIATE_VERSION: u8 = b'v';
    /// A chunk of COPY data.
    pub const COPY_DATA: u8 = b'd';
    /// End of COPY data.
    pub const COPY_DONE: u8 = b'c';
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn incomplete_headers_are_none() {
        for n in 0..HEADER {
            assert_eq!(header(&[0xff; HEADER][..n]), Ok(None));
        }
    }

    #[test]
    fn bounds_of_the_declared_length() {
        let at = |declared: u32| {
            let mut bytes = vec![b'Q'];
            bytes.extend_from_slice(&declared.to_be_bytes());
            header(&bytes)
        };
        for bad in [0, 1, 2, 3, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            assert_eq!(at(bad), Err(FrameError { tag: b'Q', declared: bad }));
        }
        assert_eq!(at(4), Ok(Some(Header { tag: b'Q', len: 5 })));
        assert_eq!(at(0x3fff_ffff), Ok(Some(Header { tag: b'Q', len: 0x4000_0000 })));
    }

    #[test]
    fn small_messages_are_small() {
        let is = |tag: u8, len| is_oversized(Header { tag, len });
        assert!(is(b'S', 10_002) && !is(b'S', 10_001) && !is(b'S', 5));
        assert!(is(b'f', 1 << 20) && is(b'D', 1 << 30));
        assert!([b'Q', b'P', b'B', b'F', b'd', b'!'].iter().all(|tag| !is(*tag, 1 << 30)));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..16)) {
            if let Ok(Some(h)) = header(&bytes) {
                prop_assert!(h.len >= HEADER && h.tag == bytes[0]);
            }
        }
    }
}
