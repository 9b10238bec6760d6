//! The control plane of Switchyard: catalog store and migrations, REST API.
//!
//! [`store::Store`] writes the catalog, which routers read by `switchyard_catalog`; [`api`] is
//! what operators and scripts speak to; [`run`] is the process.

mod api;
mod credentials;
mod metrics;
mod migrations;
mod process;
mod settings;
pub mod store;

pub use migrations::{MIGRATIONS, MigrationError};
pub use process::{StartError, run};
pub use settings::{Settings, SettingsError};
