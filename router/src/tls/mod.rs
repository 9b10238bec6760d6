//! TLS toward clients and toward shards.
//!
//! Everything here is made from files once and then shared: to reload, make another and swap it in.

mod client_side;
mod shard_side;
#[cfg(test)]
pub(crate) mod tests;

pub use client_side::{ClientTlsContext, is_for_postgresql, peer_alternative_names, peer_common_name, sni};
pub use shard_side::{ShardTlsContext, peer_end_point_hash};
pub use switchyard_tls::TlsError;
pub use switchyard_tls::names::AlternativeName;
pub(crate) use switchyard_tls::{client_builder, root_store};
