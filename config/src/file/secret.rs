//! Secrets: given in place, in a file of their own, or in the environment.

use std::io::Read;

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::io_reason;
use super::reader::{At, Table, list};
use super::value::Value;

/// Most bytes read from a file that holds a secret; keys in PEM are the longest of them.
const MAX_SECRET_BYTES: u64 = 65_536;

/// A secret and where it was given.
pub(super) struct Found {
    pub(super) at: At,
    pub(super) text: SecretString,
}

impl Found {
    pub(super) fn expose(&self) -> &str {
        self.text.expose_secret()
    }
}

impl Table<'_> {
    /// The secret under `key`, `key_file` or `key_env`, of which at most one may be given.
    pub(super) fn secret(&self, key: &str) -> Option<Found> {
        let (file, env) = (format!("{key}_file"), format!("{key}_env"));
        let literal = self.value(key);
        let file_value = self.value(&file);
        let env_value = self.value(&env);
        let given = [literal.is_some(), file_value.is_some(), env_value.is_some()];
        if given.iter().filter(|g| **g).count() > 1 {
            let names = [key, &file, &env].into_iter().zip(given).filter(|n| n.1).map(|n| n.0);
            self.ctx
                .error(&self.at_key(key_given(key, &file, given)), format!("give one of {}", list(names)));
            return None;
        }
        if let Some(value) = literal {
            keep(&value, value.text()?)
        } else if let Some(value) = file_value {
            keep(&value, &read_file(&value)?)
        } else {
            let value = env_value?;
            let name = value.name(256)?;
            match self.ctx.env(name) {
                Some(secret) => keep(&value, &Zeroizing::new(secret)),
                None => value.error(format!("the environment has no `{name}`, or it is not UTF-8")),
            }
        }
    }

    /// Whether any form of the secret `key` is given.
    pub(super) fn has_secret(&self, key: &str) -> bool {
        ["", "_file", "_env"].iter().any(|suffix| self.has(&format!("{key}{suffix}")))
    }
}

fn key_given<'k>(key: &'k str, file: &'k str, given: [bool; 3]) -> &'k str {
    if given[0] { key } else { file }
}

fn keep(value: &Value<'_>, secret: &str) -> Option<Found> {
    if secret.is_empty() {
        return value.error("the secret is empty");
    }
    if secret.contains('\0') {
        return value.error("the secret must not contain NUL");
    }
    Some(Found { at: value.at.clone(), text: SecretString::from(secret) })
}

/// The file's text without the newline that editors put at its end.
fn read_file(value: &Value<'_>) -> Option<Zeroizing<String>> {
    let path = value.path()?;
    let mut text = Zeroizing::new(String::new());
    let read =
        std::fs::File::open(&path).and_then(|f| f.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text));
    match read {
        Err(e) => return value.error(format!("{}: {}", path.display(), io_reason(&e))),
        Ok(n) if n as u64 > MAX_SECRET_BYTES => {
            return value.error(format!("{} is longer than {MAX_SECRET_BYTES} bytes", path.display()));
        }
        Ok(_) => {}
    }
    let trimmed = text.strip_suffix('\n').map(|t| t.strip_suffix('\r').unwrap_or(t)).map(str::len);
    if let Some(len) = trimmed {
        text.truncate(len);
    }
    Some(text)
}
