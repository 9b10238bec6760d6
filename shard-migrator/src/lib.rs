//! Moves a tenant between shards while its applications keep writing.
//!
//! [`run`] takes up the moves that the catalog has, one task each (`engine`): preflight, a copy as of one moment
//! (`copy`), the changes since (`stream`, `flow`, `apply`), an exact comparison (`verify`), the cutover
//! (`cutover`), and the way back until the move is completed. What is about to be done is in the catalog
//! (`journal`) before it is done; the truth of where a tenant may write is the fence on the shards.

mod apply;
mod closing;
mod copy;
mod cutover;
mod deed;
mod engine;
mod error;
mod fault;
mod fence;
mod flow;
mod inventory;
mod journal;
mod known;
mod pieces;
mod preflight;
mod replies;
mod rest;
mod scope;
mod secrets;
mod sessions;
mod shape;
mod shard;
mod stream;
mod streams;
mod structure;
mod supervisor;
mod throttle;
mod unread;
mod verify;

pub use copy::Sum;
pub use cutover::{BUDGET, Pause};
pub use error::MoveError;
pub use journal::{Options, Phase, Wish};
pub use preflight::Finding;
pub use secrets::{Secrets, Unseal};
pub use supervisor::{Settings, run};
pub use verify::Compared;
