//! The PostgreSQL wire protocol without IO: frames, startup, errors, keys, SCRAM.
//!
//! Nothing here reads a socket or keeps a clock. Readers borrow from the bytes they are given, check every
//! bound and never allocate by a length that a peer declared; builders append to a caller's buffer and leave
//! it as it was when they fail. Constants cite the PostgreSQL source they come from.

pub mod build;
pub mod error;
pub mod frame;
pub mod md5;
pub mod message;
pub mod proxy;
pub mod scram;
pub mod startup;
pub mod tls_endpoint;
