//! The syntax of SCRAM messages: `a=value` separated by commas.

use super::{MAX_MESSAGE, ScramError};

/// A message as text: not empty, not too long, without NUL, UTF-8 (as RFC 5802 has it; only the ignored user
/// name could be anything but ASCII).
pub(super) fn text(message: &[u8]) -> Result<&str, ScramError> {
    if message.is_empty() {
        return Err(ScramError::Malformed("The message is empty."));
    }
    if message.len() > MAX_MESSAGE {
        return Err(ScramError::Malformed("The message is too long."));
    }
    if message.contains(&0) {
        return Err(ScramError::Malformed("Message length does not match input length."));
    }
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("The message is not UTF-8."))
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
            _ => Err(ScramError::Malformed("Attribute expected.")),
        }
    }

    /// The next attribute, which must have this name (`read_attr_value`). A mandatory extension in its place
    /// is refused as what it is.
    pub(super) fn expect(&mut self, name: char) -> Result<&'a str, ScramError> {
        match self.any()? {
            Some((found, value)) if found == name => Ok(value),
            Some(('m', _)) => Err(ScramError::MandatoryExtension),
            _ => Err(ScramError::Malformed("Unexpected attribute.")),
        }
    }

    /// Passes over optional extensions to the end. None of them is called `m`, which is mandatory, or `p`: a
    /// proof ends its message.
    pub(super) fn skip_rest(&mut self) -> Result<(), ScramError> {
        while let Some((name, _)) = self.any()? {
            match name {
                'm' => return Err(ScramError::MandatoryExtension),
                'p' => return Err(ScramError::Malformed("Unexpected attribute.")),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether a nonce has only the characters RFC 5802 allows: printable ASCII but the comma. None at all
/// passes (`is_scram_printable`): our own part is long enough.
pub(super) fn is_nonce(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, 0x21..=0x7e) && byte != b',')
}
