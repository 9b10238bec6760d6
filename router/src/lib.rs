//! The data plane of Switchyard: listener, login, session, forwarding, pool, observation.
//!
//! The path of a query: [`worker`] accepts, [`login`] finds out who and which tenant,
//! [`session`] forwards, [`pool`] lends a server connection, [`context`] makes it the tenant's.

pub mod auth;
mod buffer;
mod cancel;
mod classify;
mod clock;
mod console;
mod context;
mod exchange;
mod hidden;
mod holds;
mod http;
pub mod identity;
mod leases;
mod limits;
mod listen;
mod login;
mod logins;
mod metrics;
mod notifications;
mod pauses;
mod pool;
mod prime;
mod quiet;
mod report;
mod roaming;
mod run;
mod seal;
mod server;
mod session;
mod shared;
mod statements;
mod stats;
mod stream;
pub mod tls;
mod worker;

pub use run::{Life, Router, Successor, run};
pub use shared::StartError;
