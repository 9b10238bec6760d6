//! Typed configuration, ids, the topology snapshot and limits of Switchyard; no network.
//!
//! Strings come in, a typed tree goes out, and every mistake is reported at once: see [`mod@file`].
//! What a router decides from is a [`topology::Topology`], whoever made it: the file alone, or
//! the catalog.

pub mod file;
pub mod ids;
pub mod limits;
pub mod seal;
pub mod settings;
pub mod snapshot;
pub mod template;
pub mod topology;
pub mod url;
pub mod verifier;

pub use ids::{BUCKETS, Bucket, ShardName, TenantId};
