//! The schema `switchyard` that goes on every shard: the fence that says which tenants may run there, and
//! the seal by which a shard knows that a tenant's context was set by a router.
//!
//! [`install`](install::install) puts it there or brings it up to date, in one transaction; it is versioned, and can be taken
//! away again. The SQL is in `sql/`, meant to be read. `docs/sealing.md` says what it is for.

pub mod adopt;
pub mod connect;
pub mod doctor;
pub mod error;
pub mod install;
pub mod keys;
pub mod migrate;
pub mod protect;
pub mod tables;

pub use error::SchemaError;

/// The schema's name. Also that of the catalog's schema, which must be in another database.
pub const SCHEMA: &str = "switchyard";

/// The role that owns it. Nobody logs in as this role.
pub const OWNER: &str = "switchyard_owner";

/// `name` as a quoted identifier.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as a quoted literal, whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}
