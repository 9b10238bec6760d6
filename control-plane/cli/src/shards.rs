//! Verbs that work on the shards themselves, by SQL: `schema` and `doctor`.

pub(crate) mod doctor;
mod migrate;
pub(crate) mod schema;
mod seal;
mod targets;

pub(crate) use doctor::DoctorArgs;
pub(crate) use schema::SchemaArgs;

use anyhow::Context;

use crate::failure::Outcome;

/// Runs one verb.
fn run(verb: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("tokio")?;
    runtime.block_on(verb)
}
