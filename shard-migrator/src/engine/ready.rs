//! What is done before clients wait, so that they need not wait for it.

use std::collections::BTreeSet;
use std::time::Duration;

use switchyard_catalog::signals::{ORDERS, Order};
use switchyard_config::ShardName;
use tokio::time::Instant;

use super::Work;
use crate::MoveError;
use crate::apply::parse_lsn;
use crate::cutover::Presence;
use crate::flow::Flow;
use crate::replies::Talk;
use crate::sessions::Session;
use crate::shard::ShardAccess;

/// How long routers may take to have connections to the target ready. One that does not say so, because it stands still
/// or is of an earlier version, has had that long.
const ARMED: Duration = Duration::from_millis(500);

/// How often their answers are looked for, where there is nothing to apply.
const LISTEN: Duration = Duration::from_millis(2);

/// How often the physical part is timed; the median counts.
const SAMPLES: usize = 3;

/// How long the stream may take to tell of one sample.
const SAMPLE: Duration = Duration::from_secs(1);

/// Has the routers make their connections to the target ready.
pub(super) async fn arm(
    work: &Work<'_>,
    flow: &mut Flow,
    (talk, presence): (&mut Talk, &mut Presence),
    to: &ShardName,
) -> Result<(), MoveError> {
    let attempt = format!("{}.{}.ready", work.turn.id, work.turn.term);
    let mut missing: BTreeSet<i32> = talk.routers().await?.into_iter().collect();
    let order = Order::Arm { tenant: work.job.tenant.clone(), to: to.clone(), attempt: attempt.clone() };
    talk.say(ORDERS, &order).await?;
    let until = Instant::now() + ARMED;
    while !missing.is_empty() && Instant::now() < until {
        flow.step(LISTEN).await?;
        while let Some(reply) = talk.next_within(Duration::ZERO).await {
            presence.heard(reply.router);
            if reply.attempt == attempt {
                missing.remove(&reply.router);
            }
        }
    }
    Ok(())
}

/// What no cutover can do without: a commit at the source, its way through the stream, a commit at the target.
pub(super) async fn floor(
    flow: &mut Flow,
    source: &Session,
    at: &ShardAccess,
) -> Result<Duration, MoveError> {
    let emit = "SELECT pg_logical_emit_message(true, 'switchyard', '')::text";
    let mut position = flow.subscription.position.clone();
    let mut took = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        flow.catch_up(Duration::from_millis(20)).await?;
        let began = Instant::now();
        let row = source.query_one(emit, &[]).await.map_err(at.failed())?;
        let emitted = parse_lsn(row.get(0)).unwrap_or(0);
        let _ = tokio::time::timeout(SAMPLE, position.wait_for(|read| *read > emitted)).await;
        flow.applier.touch().await?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    Ok(took[SAMPLES / 2])
}
