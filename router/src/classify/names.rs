//! Names of settings in texts that are not understood.

use memchr::memchr;

use super::suspects::word_before;

/// Whatever in `text` may be the name of a setting of somebody's own (`app.user`): for statements of
/// which it is not known what they set.
pub(crate) fn custom_names(text: &[u8]) -> Vec<String> {
    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.') || b >= 0x80;
    let mut names = Vec::new();
    let mut at = 0;
    while let Some(found) = memchr(b'.', &text[at..]) {
        let dot = at + found;
        let start = text[at..dot].iter().rposition(|b| !is_name(*b)).map_or(at, |i| at + i + 1);
        let end = text[dot..].iter().position(|b| !is_name(*b)).map_or(text.len(), |i| dot + i);
        at = end.max(dot + 1);
        let before = text[..start].last();
        let within = start < dot && end > dot + 1 && !text[start].is_ascii_digit();
        // In quotes, as a function is given it, or behind SET; not a column of a table.
        let called_so = before == Some(&b'\'')
            || word_before(&text[..start], b"set")
            || word_before(&text[..start], b"session")
            || word_before(&text[..start], b"reset");
        if within && called_so && end - start < 64 && names.len() < NAMES_MAX {
            names.extend(std::str::from_utf8(&text[start..end]).ok().map(str::to_ascii_lowercase));
        }
    }
    names
}

/// Most names of settings that are taken from one text.
const NAMES_MAX: usize = 32;
