//! A harness for clusters, processes and clients, and the tests named by behaviour.
//!
//! A test of the router is ten lines:
//!
//! ```no_run
//! use switchyard_tests::Setup;
//!
//! let setup = Setup::new().tenants(["acme", "globex"]).start();
//! let mut acme = setup.login("acme");
//! let names = acme.column("SELECT name FROM clients");
//! assert!(names.iter().all(|name| name.starts_with("acme")));
//! ```
//!
//! Everything is real: PostgreSQL clusters from a cached `initdb`, the router as a process, bytes
//! on sockets. Nothing here decides by time: waiting is always for a condition
//! ([`wait::until`]), and a deadline only ends a test that has already failed.

pub mod certs;
pub mod cluster;
pub mod dice;
pub mod drivers;
pub mod fake;
pub mod faults;
pub mod jwt;
pub mod metrics;
pub mod moves;
pub mod process;
pub mod raw;
pub mod router;
pub mod sealed;
pub mod setup;
pub mod tokio_tls;
pub mod wait;

pub use certs::Certs;
pub use cluster::Cluster;
pub use dice::Dice;
pub use fake::FakeShard;
pub use faults::FaultProxy;
pub use raw::{Raw, Refused, SqlError, Target};
pub use router::{OldRouter, Router};
pub use setup::{Running, Setup};
