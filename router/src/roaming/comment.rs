//! A comment in front of a statement or behind it that names the tenant, as sqlcommenter writes them:
//! `/*route='x',tenant='acme%20inc'*/`.

use memchr::memmem;

use super::Named;
use switchyard_config::TenantId;

/// Whom the comments of `sql` name by `key`; none if they say nothing of it.
pub(crate) fn whom(sql: &[u8], key: &str) -> Option<Named> {
    let text = sql.trim_ascii();
    let text = text.strip_suffix(b";").unwrap_or(text).trim_ascii_end();
    let mut found: Option<Named> = None;
    let mut hear = |comment: &[u8]| {
        if let Some(value) = value(comment, key) {
            let named = value.map_or(Named::Unreadable, |id| match TenantId::new(&id) {
                Ok(id) => Named::Tenant(id),
                Err(_) => Named::Unreadable,
            });
            found = match found.take() {
                Some(first) if first != named => Some(Named::Unreadable),
                _ => Some(named),
            };
        }
    };
    if let Some(rest) = text.strip_prefix(b"/*")
        && let Some(end) = memmem::find(rest, b"*/")
    {
        hear(&rest[..end]);
    }
    if let Some(rest) = text.strip_suffix(b"*/")
        && let Some(begin) = memmem::rfind(rest, b"/*")
        && begin > 0
    {
        hear(&rest[begin + 2..]);
    }
    found
}

/// The value of `key` in the body of a comment: none outside if it is not there, none within if it cannot be read.
fn value(comment: &[u8], key: &str) -> Option<Option<String>> {
    let text = std::str::from_utf8(comment).ok()?;
    for pair in text.split(',') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        if name.trim() != key {
            continue;
        }
        let value = value.trim();
        let value = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
        return Some(value.and_then(decoded));
    }
    None
}

/// Without URL encoding and the backslashes in front of quotes.
fn decoded(value: &str) -> Option<String> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
            }
            b'\\' => out.push(bytes.next()?),
            b'\'' => return None,
            b => out.push(b),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments() {
        let acme = Some(Named::Tenant(TenantId::new("acme inc").unwrap()));
        for (sql, named) in [
            ("SELECT 1", None),
            ("/* tenant='acme%20inc' */ SELECT 1", acme.clone()),
            ("SELECT 1 /*route='x',tenant='acme%20inc'*/;", acme.clone()),
            ("/*tenant='acme inc'*/ SELECT 1 /*tenant='acme%20inc'*/", acme),
            ("/*tenant='a'*/ SELECT 1 /*tenant='b'*/", Some(Named::Unreadable)),
            ("/*tenant=acme*/ SELECT 1", Some(Named::Unreadable)),
            ("/*tenant='%zz'*/ SELECT 1", Some(Named::Unreadable)),
            ("/*tenant=''*/ SELECT 1", Some(Named::Unreadable)),
            ("SELECT '/*tenant=''a''*/' x", None),
            ("SELECT 1 -- tenant='a'", None),
        ] {
            assert_eq!(whom(sql.as_bytes(), "tenant"), named, "{sql}");
        }
    }
}
