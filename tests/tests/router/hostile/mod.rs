//! Peers that mean harm: clients and shards. A module for each of the groups of attacks.

mod copy;
mod desync;
mod guessing;
mod lengths;
mod neighbours;
mod secrets;
mod shard;
mod slots;
mod stranger;
