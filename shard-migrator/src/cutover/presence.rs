//! Which routers are waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// Attempts, and time since the first of them, in which a router has not said a word, before the cutover goes on without
/// it: the fence stops it, and its clients get errors. One that is only slow is given that time.
const SILENT_ATTEMPTS: u32 = 5;
const SILENT_FOR: Duration = Duration::from_secs(3);

/// Routers that have not answered: since when, and how often they were asked since.
#[derive(Default)]
pub(crate) struct Presence(BTreeMap<i32, (Instant, u32)>);

impl Presence {
    pub(crate) fn heard(&mut self, router: i32) {
        self.0.remove(&router);
    }

    /// Those of `there` that are to answer now; the rest has been silent for too long.
    pub(super) fn expected(&mut self, there: &[i32]) -> BTreeSet<i32> {
        self.0.retain(|router, _| there.contains(router));
        let mut expected = BTreeSet::new();
        for router in there {
            let (since, asked) = self.0.entry(*router).or_insert((Instant::now(), 0));
            if *asked < SILENT_ATTEMPTS || since.elapsed() < SILENT_FOR {
                expected.insert(*router);
            }
            *asked += 1;
        }
        expected
    }
}
