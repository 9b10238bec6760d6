//! How fast a copy may go: a ceiling of bytes per second for the whole move, and a stop while standbys of the target lag.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::MoveError;
use crate::sessions::Session;
use crate::shard::ShardAccess;

/// How often who waits for standbys looks whether it may go on.
const LOOK: Duration = Duration::from_millis(50);

/// Shared by all workers of a move.
pub(crate) struct Throttle {
    /// Bytes per second; 0 is no ceiling.
    rate: u64,
    /// When what has been let pass is paid off.
    paid: Mutex<Instant>,
    /// Longest lag of a standby of the target, in milliseconds; 0 is none that counts.
    most_lag: u64,
    /// The longest lag that was seen last, in milliseconds.
    lag: AtomicU64,
}

impl Throttle {
    pub(crate) fn new(rate: u64, most_lag: u64) -> Self {
        Self { rate, paid: Mutex::new(Instant::now()), most_lag, lag: AtomicU64::new(0) }
    }

    /// Lets `bytes` pass, when it is time for that.
    pub(crate) async fn pass(&self, bytes: usize) {
        while self.is_held() {
            tokio::time::sleep(LOOK).await;
        }
        if self.rate == 0 {
            return;
        }
        let due = {
            let mut paid = self.paid.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // Time that was not used does not count.
            let begin = (*paid).max(Instant::now());
            *paid = begin + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            *paid
        };
        tokio::time::sleep_until(due).await;
    }

    /// Whether standbys lag too far behind for the copy to go on.
    pub(crate) fn is_held(&self) -> bool {
        self.most_lag > 0 && self.lag() > self.most_lag
    }

    /// The longest lag of a standby of the target that was seen last, in milliseconds.
    pub(crate) fn lag(&self) -> u64 {
        self.lag.load(Ordering::Relaxed)
    }

    /// Looks at the standbys of the target.
    pub(crate) async fn look(&self, client: &Session, at: &ShardAccess) -> Result<(), MoveError> {
        // A standby that has replayed everything shows the lag of a while ago; one that replays nothing, that of then.
        let sql = "SELECT coalesce(max(CASE WHEN replay_lsn >= pg_current_wal_lsn() THEN 0 ELSE greatest(
                          extract(epoch FROM replay_lag), extract(epoch FROM clock_timestamp() - reply_time)) END), 0)::float8
                   FROM pg_stat_replication WHERE state = 'streaming' AND pid NOT IN (
                       SELECT active_pid FROM pg_replication_slots WHERE slot_type = 'logical' AND active_pid IS NOT NULL)";
        let row = client.query_one(sql, &[]).await.map_err(at.failed())?;
        self.lag.store((row.get::<_, f64>(0) * 1000.0) as u64, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_ceiling_is_of_all_workers_together_and_what_was_not_used_is_gone() {
        let throttle = Throttle::new(1_000_000, 0);
        let began = Instant::now();
        tokio::join!(throttle.pass(20_000), throttle.pass(20_000), throttle.pass(20_000));
        assert!(began.elapsed() >= Duration::from_millis(60));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let began = Instant::now();
        throttle.pass(50_000).await;
        assert!(began.elapsed() >= Duration::from_millis(50));
    }

    #[tokio::test]
    async fn a_copy_is_held_while_standbys_lag_and_only_then() {
        let throttle = Throttle::new(0, 100);
        throttle.lag.store(101, Ordering::Relaxed);
        assert!(throttle.is_held());
        assert!(tokio::time::timeout(LOOK * 3, throttle.pass(1)).await.is_err());
        throttle.lag.store(100, Ordering::Relaxed);
        throttle.pass(1).await;
        let any = Throttle::new(0, 0);
        any.lag.store(u64::MAX, Ordering::Relaxed);
        assert!(!any.is_held());
    }
}
