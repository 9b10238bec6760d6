//! The place that a connection takes among those of its pool, for as long as it lives.

use std::sync::{Arc, Weak};

use super::Pool;
use super::queue::Loan;
use crate::server::Route;

/// The place of a connection that was made. A connection that is dropped anywhere but in the pool (its
/// session or its login ended before it was taken) gives the place back by this.
pub(crate) struct ServerPlace {
    pub(super) pool: Weak<Pool>,
    pub(super) route: Route,
    /// Of the server's identity.
    pub(super) id: u64,
    /// Given up by [`Pool::forget`], under the pool's lock.
    pub(super) taken: bool,
    /// Who has it.
    pub(super) lent_to: Option<Loan>,
}

impl ServerPlace {
    /// None, for a connection that belongs to no pool yet.
    pub(crate) fn none(route: Route) -> Self {
        Self { pool: Weak::new(), route, id: 0, taken: false, lent_to: None }
    }

    /// Gives up the claim. None if that was done before.
    pub(super) fn take(&mut self) -> Option<()> {
        std::mem::take(&mut self.taken).then_some(())
    }
}

impl Drop for ServerPlace {
    fn drop(&mut self) {
        if self.taken
            && let Some(pool) = self.pool.upgrade()
        {
            let mut state = pool.state.lock();
            state.lost(self, 0);
            // Nothing else may come back for who waits. Without a runtime the process is on its way out.
            if tokio::runtime::Handle::try_current().is_ok() {
                pool.serve_next(&mut state);
            }
        }
    }
}

/// Gives a place back if connecting is abandoned.
pub(super) struct Place<'a> {
    pub(super) pool: &'a Arc<Pool>,
    pub(super) taken: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.taken {
            let mut state = self.pool.state.lock();
            state.connecting -= 1;
            state.open -= 1;
        }
    }
}
