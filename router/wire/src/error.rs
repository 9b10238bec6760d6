//! Errors and notices as PostgreSQL words them on the wire.

use std::fmt;

use crate::frame::backend;
use crate::message::Malformed;

pub mod sqlstate;

/// Longest text that [`ErrorResponse::encode`] writes for one field, in bytes; the rest is cut off. Ours:
/// texts may quote what a client sent, and an error should not echo a megabyte.
const MAX_FIELD: usize = 8 * 1024;

/// A five-character error code (`src/backend/utils/errcodes.txt`); see [`sqlstate`] for the known ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(pub [u8; 5]);

impl SqlState {
    /// The code as text; `?????` if it is not ASCII, which only a hand-made value can be.
    #[must_use]
    pub fn as_str(&self) -> &str {
        if self.0.is_ascii() { std::str::from_utf8(&self.0).unwrap_or("?????") } else { "?????" }
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({})", self.as_str())
    }
}

/// How bad it is. The first three go out as ErrorResponse, the others as NoticeResponse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed; the session goes on.
    Error,
    /// The session ends.
    Fatal,
    /// All sessions of the server end.
    Panic,
    /// Something is not as the client may think.
    Warning,
    /// Information.
    Notice,
}

impl Severity {
    /// The untranslated word of the `S` and `V` fields.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Panic => "PANIC",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
        }
    }

    fn tag(self) -> u8 {
        match self {
            Severity::Error | Severity::Fatal | Severity::Panic => backend::ERROR,
            Severity::Warning | Severity::Notice => backend::NOTICE,
        }
    }
}

/// What a client is told. The log has its own, fuller text: nothing secret belongs here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorResponse {
    /// Fields `S` and `V`.
    pub severity: Severity,
    /// Field `C`.
    pub code: SqlState,
    /// Field `M`.
    pub message: String,
    /// Field `D`.
    pub detail: Option<String>,
    /// Field `H`.
    pub hint: Option<String>,
}

impl ErrorResponse {
    /// A message of any severity.
    #[must_use]
    pub fn new(severity: Severity, code: SqlState, message: impl Into<String>) -> Self {
        Self { severity, code, message: message.into(), detail: None, hint: None }
    }

    /// An error that ends the session.
    #[must_use]
    pub fn fatal(code: SqlState, message: impl Into<String>) -> Self {
        Self::new(Severity::Fatal, code, message)
    }

    /// An error that ends the statement.
    #[must_use]
    pub fn error(code: SqlState, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, message)
    }

    /// A notice.
    #[must_use]
    pub fn notice(code: SqlState, message: impl Into<String>) -> Self {
        Self::new(Severity::Notice, code, message)
    }

    /// Adds the `H` field.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the `D` field.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Appends the frame. Never fails: a field ends at its first NUL or after 8 KiB, at a character boundary.
    pub fn encode(&self, buf: &mut Vec<u8>) {
        buf.push(self.severity.tag());
        let at = buf.len();
        buf.extend_from_slice(&[0; 4]);
        field(buf, b'S', self.severity.as_str());
        field(buf, b'V', self.severity.as_str());
        field(buf, b'C', self.code.as_str());
        field(buf, b'M', &self.message);
        if let Some(detail) = &self.detail {
            field(buf, b'D', detail);
        }
        if let Some(hint) = &self.hint {
            field(buf, b'H', hint);
        }
        buf.push(0);
        // At most six fields of 8 KiB: the cast cannot lose anything.
        let declared = (buf.len() - at) as u32;
        buf[at..at + 4].copy_from_slice(&declared.to_be_bytes());
    }
}

fn field(buf: &mut Vec<u8>, kind: u8, text: &str) {
    let text = text.split('\0').next().unwrap_or_default();
    let mut end = text.len().min(MAX_FIELD);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    buf.push(kind);
    buf.extend_from_slice(&text.as_bytes()[..end]);
    buf.push(0);
}

impl From<Malformed> for ErrorResponse {
    /// 08P01 with PostgreSQL's text. An error, not fatal: the frame was whole, so the stream is still in step.
    fn from(malformed: Malformed) -> Self {
        Self::error(sqlstate::PROTOCOL_VIOLATION, malformed.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::frame::{self, HEADER};
    use crate::message::ErrorFields;

    fn encoded(response: &ErrorResponse) -> Vec<u8> {
        let mut buf = Vec::new();
        response.encode(&mut buf);
        assert_eq!(frame::header(&buf).unwrap().unwrap().len, buf.len());
        buf
    }

    #[test]
    fn bytes_of_a_fatal_error() {
        let response = ErrorResponse::fatal(sqlstate::TOO_MANY_CONNECTIONS, "full").detail("d").hint("h");
        let expected = b"E\0\0\0\x26SFATAL\0VFATAL\0C53300\0Mfull\0Dd\0Hh\0\0";
        assert_eq!(encoded(&response), expected);
    }

    #[test]
    fn severity_decides_the_tag() {
        use Severity::{Error, Fatal, Notice, Panic, Warning};
        for (severity, tag) in [(Error, b'E'), (Fatal, b'E'), (Panic, b'E'), (Warning, b'N'), (Notice, b'N')]
        {
            assert_eq!(encoded(&ErrorResponse::new(severity, sqlstate::INTERNAL, "m"))[0], tag);
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = format!("a{}", "\u{e9}".repeat(MAX_FIELD));
        let buf = encoded(&ErrorResponse::error(sqlstate::INTERNAL, text));
        let message = ErrorFields::parse(&buf[HEADER..]).unwrap().message().unwrap();
        assert_eq!(message.len(), MAX_FIELD - 1);
        assert!(std::str::from_utf8(message).is_ok());
    }

    #[test]
    fn codes_are_distinct_and_well_formed() {
        let codes: HashSet<_> = sqlstate::ALL.iter().map(SqlState::as_str).collect();
        assert_eq!(codes.len(), sqlstate::ALL.len());
        assert!(codes.iter().all(|code| code.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase())));
    }

    #[test]
    fn malformed_messages_have_the_server_s_words() {
        let response = ErrorResponse::from(Malformed::Short);
        assert_eq!(response.code, sqlstate::PROTOCOL_VIOLATION);
        assert_eq!(response.message, "insufficient data left in message");
    }

    proptest! {
        #[test]
        fn any_text_comes_back_up_to_its_nul(message in ".{0,80}", detail in "[^\0]{0,40}", hint in "[^\0]{0,40}") {
            let response =
                ErrorResponse::error(sqlstate::INTERNAL, &message).detail(&detail).hint(&hint);
            let buf = encoded(&response);
            let fields = ErrorFields::parse(&buf[HEADER..]).unwrap();
            prop_assert_eq!(fields.severity(), Some(&b"ERROR"[..]));
            prop_assert_eq!(fields.code(), Some(&b"XX000"[..]));
            prop_assert_eq!(fields.message(), message.split('\0').next().map(str::as_bytes));
            prop_assert_eq!(fields.detail(), Some(detail.as_bytes()));
            prop_assert_eq!(fields.hint(), Some(hint.as_bytes()));
        }
    }
}
