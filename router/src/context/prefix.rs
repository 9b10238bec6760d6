//! What is owed for what was written ahead of a client's bytes.

use switchyard_wire::frame::backend;

/// The tag of the command that ends each transaction of the router's own.
const COMMIT: &[u8] = b"COMMIT\0";

/// Replies that the router has asked for itself, and the client must not see.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// CommandComplete messages to come.
    pub(crate) commands: u16,
    /// CloseComplete messages to come, each behind a COMMIT.
    pub(crate) closes: u16,
    /// ReadyForQuery messages to come.
    pub(crate) readies: u16,
    /// The last command that completed was a COMMIT: what was set before it stays.
    pub(crate) committed: bool,
}

impl Prefix {
    /// Whether replies are still to come.
    #[inline]
    pub(crate) fn is_pending(self) -> bool {
        self.commands != 0 || self.closes != 0 || self.readies != 0
    }

    /// Takes a reply that is no error. False if it cannot stand here: the server is out of step, or has not committed
    /// what it was told to.
    pub(crate) fn got(&mut self, tag: u8, body: &[u8]) -> bool {
        match tag {
            backend::COMMAND_COMPLETE if self.commands > 0 => {
                self.commands -= 1;
                self.committed = body == COMMIT;
            }
            backend::CLOSE_COMPLETE if self.closes > 0 && self.committed => self.closes -= 1,
            backend::READY_FOR_QUERY if self.readies > 0 && body == b"I" => self.readies -= 1,
            backend::FUNCTION_RESULT
            | backend::PARSE_COMPLETE
            | backend::BIND_COMPLETE
            | backend::DATA_ROW
            | backend::NOTICE
            | backend::NOTIFICATION
            | backend::PARAMETER_STATUS => {}
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix() -> Prefix {
        Prefix { commands: 3, closes: 1, readies: 1, committed: false }
    }

    #[test]
    fn all_that_is_owed_is_taken_once() {
        let mut p = prefix();
        for (tag, body) in [
            (backend::PARSE_COMPLETE, &b""[..]),
            (backend::BIND_COMPLETE, b""),
            (backend::COMMAND_COMPLETE, b"BEGIN\0"),
            (backend::DATA_ROW, b"\0\0"),
            (backend::COMMAND_COMPLETE, b"SELECT 1\0"),
            (backend::COMMAND_COMPLETE, COMMIT),
            (backend::PARAMETER_STATUS, b"TimeZone\0UTC\0"),
            (backend::CLOSE_COMPLETE, b""),
            (backend::FUNCTION_RESULT, b"\xff\xff\xff\xff"),
        ] {
            assert!(p.is_pending() && p.got(tag, body), "{tag}");
        }
        assert!(p.is_pending() && p.got(backend::READY_FOR_QUERY, b"I") && !p.is_pending());
        for (tag, body) in [
            (backend::COMMAND_COMPLETE, COMMIT),
            (backend::CLOSE_COMPLETE, b""),
            (backend::READY_FOR_QUERY, b"I"),
        ] {
            assert!(!p.got(tag, body), "{tag}");
        }
    }

    #[test]
    fn what_was_not_committed_is_not_set() {
        for last in [&b"ROLLBACK\0"[..], b"COMMIT", b"SELECT 1\0", b""] {
            let mut p = prefix();
            assert!(p.got(backend::COMMAND_COMPLETE, b"BEGIN\0") && p.got(backend::COMMAND_COMPLETE, COMMIT));
            assert!(p.got(backend::COMMAND_COMPLETE, last));
            assert!(!p.got(backend::CLOSE_COMPLETE, b""), "{last:?}");
        }
        assert!(!prefix().got(backend::CLOSE_COMPLETE, b""), "no command has completed");
        for status in [&b"T"[..], b"E", b""] {
            assert!(!prefix().got(backend::READY_FOR_QUERY, status));
        }
        assert!(!prefix().got(backend::COPY_IN, b"") && !prefix().got(backend::PORTAL_SUSPENDED, b""));
    }
}
