//! The syntax of SCRAM messages: `a=value` separated by commas.

use super::{MAX_MESSAGE, ScramError};

/// A message as text: not empty, not too long, without NUL, UTF-8 (as RFC 5802 has it; only the ignored user
/// name could be anything but ASCII).
pub(super) fn text(message: &[u8]) -> Result<&str, ScramError> {
    if message.is_empty() {
        return Err(ScramError::Malformed("empty message"));
    }
    if message.len() > MAX_MESSAGE {
        return Err(ScramError::Malformed("message too long"));
    }
    if message.contains(&0) {
        return Err(ScramError::Malformed("NUL in message"));
    }
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("message is not UTF-8"))
}

/// What is left of a message's attributes.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(Option<&'a str>);

impl<'a> Attributes<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self(Some(text))
    }

    /// The next attribute, whatever its name; `None` at the end (`read_any_attr`).
    pub(super) fn any(&mut self) -> Result<Option<(char, &'a str)>, ScramError> {
        let Some(text) = self.0 else {
            return Ok(None);
        };
        let (attribute, rest) = match text.split_once(',') {
            Some((attribute, rest)) => (attribute, Some(rest)),
            None => (text, None),
        };
        self.0 = rest;
        let mut chars = attribute.chars();
        match (chars.next(), chars.next()) {
            (Some(name), Some('=')) if name.is_ascii_alphabetic() => Ok(Some((name, chars.as_str()))),
            _ => Err(ScramError::Malformed("attribute expected")),
        }
    }

    /// The next attribute, which must have this name (`read_attr_value`). A mandatory extension in its place
    /// is refused as what it is.
    pub(super) fn expect(&mut self, name: char) -> Result<&'a str, ScramError> {
        match self.any()? {
            Some((found, value)) if found == name => Ok(value),
            Some(('m', _)) => Err(ScramError::Unsupported("mandatory extension")),
            _ => Err(ScramError::Malformed("unexpected attribute")),
        }
    }

    /// Passes over optional extensions to the end. None of them is called `m`, which is mandatory, or `p`: a
    /// proof ends its message.
    pub(super) fn skip_rest(&mut self) -> Result<(), ScramError> {
        while let Some((name, _)) = self.any()? {
            match name {
                'm' => return Err(ScramError::Unsupported("mandatory extension")),
                'p' => return Err(ScramError::Malformed("unexpected attribute")),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether a nonce has only the characters RFC 5802 allows: printable ASCII but the comma.
pub(super) fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, 0x21..=0x7e) && byte != b',')
}
