//! The fields of an ErrorResponse or NoticeResponse from a server, none of which can be relied on to be there.

use super::Malformed;
use super::cursor::Cursor;

/// A checked body; each accessor walks it, for it is read once if at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorFields<'a>(&'a [u8]);

impl<'a> ErrorFields<'a> {
    /// Reads a body: fields of a type byte and a string, ended by a zero byte.
    ///
    /// # Errors
    /// A missing terminator, or bytes after it.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor(body);
        while cursor.u8()? != 0 {
            cursor.string()?;
        }
        cursor.end()?;
        Ok(Self(body))
    }

    /// The severity, untranslated (`V`, since PostgreSQL 9.6), or as the server's language has it (`S`).
    #[must_use]
    pub fn severity(&self) -> Option<&'a [u8]> {
        self.field(b'V').or_else(|| self.field(b'S'))
    }

    /// The SQLSTATE (`C`).
    #[must_use]
    pub fn code(&self) -> Option<&'a [u8]> {
        self.field(b'C')
    }

    /// The message (`M`).
    #[must_use]
    pub fn message(&self) -> Option<&'a [u8]> {
        self.field(b'M')
    }

    /// The detail (`D`).
    #[must_use]
    pub fn detail(&self) -> Option<&'a [u8]> {
        self.field(b'D')
    }

    /// The hint (`H`).
    #[must_use]
    pub fn hint(&self) -> Option<&'a [u8]> {
        self.field(b'H')
    }

    /// The first field of a type; the types are `PG_DIAG_*` in `src/include/postgres_ext.h`.
    #[must_use]
    pub fn field(&self, kind: u8) -> Option<&'a [u8]> {
        let mut cursor = Cursor(self.0);
        loop {
            let (found, text) = match cursor.u8() {
                Ok(0) | Err(_) => return None,
                Ok(found) => (found, cursor.string().ok()?),
            };
            if found == kind {
                return Some(text);
            }
        }
    }
}
