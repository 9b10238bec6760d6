//! The data plane of Switchyard: listener, login, session, forwarding, pool, observation.

pub mod auth;
pub mod identity;
pub mod tls;
