//! The control plane of Switchyard: catalog store and migrations, REST API.
//!
//! [`store::Store`] writes the catalog, which routers read by `switchyard_catalog`; [`api`] is
//! what operators and scripts speak to; [`run`] is the process.

mod api;
pub mod client;
mod credentials;
mod feed;
mod jobs;
mod leader;
mod listen;
mod metrics;
mod migrations;
mod oidc;
mod process;
mod provision;
mod runner;
mod settings;
pub mod store;
mod vault;

pub use migrations::{MIGRATIONS, MigrationError};
pub use oidc::OidcSettings;
pub use process::{Opener, StartError, run};
pub use settings::{Settings, SettingsError};
pub use vault::KeysError;
