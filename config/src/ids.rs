//! The ids that everything else is keyed by.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Number of hash buckets. A bucket belongs to a shard; a tenant without an explicit placement
/// lives where its bucket lives. Fixed for the life of an installation.
pub const BUCKETS: u16 = 4096;

/// Longest tenant id, in bytes.
pub const MAX_TENANT_ID_BYTES: usize = 128;

/// Longest shard name, in bytes.
pub const MAX_SHARD_NAME_BYTES: usize = 63;

/// Why an id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Nothing, where an id is needed.
    #[error("must not be empty")]
    Empty,
    /// Longer than the limit given, in bytes.
    #[error("must be at most {0} bytes")]
    TooLong(usize),
    /// A character that cannot be kept in PostgreSQL text or shown on one line.
    #[error("must not contain control characters")]
    Control,
    /// A character outside the set allowed for names of shards.
    #[error("may contain letters, digits, `_`, `-` and `.` only")]
    Character,
}

/// The unit of isolation, routing, limits, metrics and moves.
///
/// Text of 1 to [`MAX_TENANT_ID_BYTES`] bytes, kept exactly as given: never folded, trimmed or
/// normalised, so that two ids are the same tenant only if their bytes are the same. Control
/// characters are refused, as they have no place in a log line. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// Checks and keeps `id`.
    ///
    /// # Errors
    /// If `id` is empty, too long or holds a control character.
    pub fn new(id: &str) -> Result<Self, InvalidId> {
        if id.is_empty() {
            return Err(InvalidId::Empty);
        }
        if id.len() > MAX_TENANT_ID_BYTES {
            return Err(InvalidId::TooLong(MAX_TENANT_ID_BYTES));
        }
        if id.chars().any(char::is_control) {
            return Err(InvalidId::Control);
        }
        Ok(Self(id.into()))
    }

    /// What stands for a tenant where there is none: it has no characters, so that it equals no id that anybody
    /// can have. Never placed, granted or stored.
    pub fn nobody() -> Self {
        static NOBODY: std::sync::LazyLock<Arc<str>> = std::sync::LazyLock::new(|| "".into());
        Self(NOBODY.clone())
    }

    /// Whether this stands for no tenant.
    pub fn is_nobody(&self) -> bool {
        self.0.is_empty()
    }

    /// The id as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bucket that this tenant hashes to.
    pub fn bucket(&self) -> Bucket {
        let hash = xxhash_rust::xxh3::xxh3_64(self.0.as_bytes());
        Bucket((hash % u64::from(BUCKETS)) as u16)
    }
}

impl TryFrom<String> for TenantId {
    type Error = InvalidId;
    fn try_from(id: String) -> Result<Self, InvalidId> {
        Self::new(&id)
    }
}

impl From<TenantId> for String {
    fn from(id: TenantId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl Borrow<str> for TenantId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One of the [`BUCKETS`] hash buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bucket(pub u16);

/// The name of a shard: 1 to [`MAX_SHARD_NAME_BYTES`] bytes of `[A-Za-z0-9_.-]`, so that it can
/// stand in a metric label, a URL path and a console command without quoting. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShardName(Arc<str>);

impl ShardName {
    /// Checks and keeps `name`.
    ///
    /// # Errors
    /// If `name` is empty, too long or has a character outside the set.
    pub fn new(name: &str) -> Result<Self, InvalidId> {
        if name.is_empty() {
            return Err(InvalidId::Empty);
        }
        if name.len() > MAX_SHARD_NAME_BYTES {
            return Err(InvalidId::TooLong(MAX_SHARD_NAME_BYTES));
        }
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) {
            return Err(InvalidId::Character);
        }
        Ok(Self(name.into()))
    }

    /// The name as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ShardName {
    type Error = InvalidId;
    fn try_from(name: String) -> Result<Self, InvalidId> {
        Self::new(&name)
    }
}

impl From<ShardName> for String {
    fn from(name: ShardName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl Borrow<str> for ShardName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ShardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for ShardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_id_is_kept_exactly() {
        for id in ["a", "Acme", "acme ", "ü", "e\u{301}", "x'; DROP TABLE t; --", &"x".repeat(128)] {
            assert_eq!(TenantId::new(id).unwrap().as_str(), id);
        }
        assert_ne!(TenantId::new("é"), TenantId::new("e\u{301}"));
    }

    #[test]
    fn what_is_no_tenant_id() {
        assert_eq!(TenantId::new(""), Err(InvalidId::Empty));
        assert_eq!(TenantId::new(&"x".repeat(129)), Err(InvalidId::TooLong(128)));
        assert_eq!(TenantId::new("a\0b"), Err(InvalidId::Control));
        assert_eq!(TenantId::new("a\nb"), Err(InvalidId::Control));
    }

    #[test]
    fn buckets_never_change() {
        // Changing any of these would send existing tenants to the wrong shard.
        let bucket = |id: &str| TenantId::new(id).unwrap().bucket().0;
        assert_eq!([bucket("acme"), bucket("globex"), bucket("1"), bucket("ü")], [2273, 1839, 344, 3950]);
    }
}
