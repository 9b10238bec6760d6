//! The catalog as its readers see it: snapshot, change feed, and the one place that knows its tables.
//!
//! [`Catalog`] is one connection: it takes a whole [`Topology`](switchyard_config::topology::Topology)
//! in one transaction, and catches up from one it has taken before. [`Watcher`] keeps a topology
//! fresh for as long as a process lives: it listens for changes, polls behind that, reconnects,
//! and keeps the last topology on disk. The tables are made by the control plane's migrations.

mod assemble;
mod connect;
pub mod disk;
pub mod docs;
mod error;
pub mod leases;
pub mod listening;
mod read;
mod reporter;
pub mod signals;
mod tls;
mod watcher;

pub use connect::Endpoint;
pub use error::CatalogError;
pub use read::Catalog;
pub use reporter::{Report, Reporter, SignIn, TenantUsage};
pub use tls::Tls;
pub use watcher::{Registrar, Status, Watcher};

/// The schema that holds the catalog's tables; the search path of every connection to it.
pub const SCHEMA: &str = "switchyard";

/// The channel on which the catalog announces that something changed. Notifications carry nothing.
pub const CHANNEL: &str = "switchyard_topology";
