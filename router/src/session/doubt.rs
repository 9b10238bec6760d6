//! An error behind which the fence may be.
//!
//! Where a tenant has a schema or a database of its own, a shard that it has left lets nobody read its tables. A router that
//! has not heard of the move sees no more of that than a missing right, or that there is no such thing where the right to
//! use the schema is missing, and asks before it passes the error on.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::Core;
use super::relay::Relay;
use crate::holds;

/// What a shard says to whose right was taken: `insufficient_privilege`; and what of names in a schema that may not be used:
/// `undefined_table`, `undefined_function`, `undefined_object`; and where the schema is gone that a name is said to be in:
/// `invalid_schema_name`.
const REFUSED: [&[u8; 5]; 5] = [b"42501", b"42P01", b"42883", b"42704", b"3F000"];

/// What is known of the error that comes next.
pub(super) enum Doubt {
    /// The fence is being asked.
    Asked(oneshot::Receiver<bool>),
    /// Whether it is behind it.
    Told(bool),
}

impl Relay {
    /// Whether the fence is behind the error that has come. None if that is not known yet: the error waits.
    pub(super) fn is_behind(&mut self, core: &Core, code: Option<[u8; 5]>) -> Option<bool> {
        if code == Some(*holds::FENCED) {
            return Some(true);
        }
        match self.doubt.take() {
            Some(Doubt::Told(fenced)) => Some(fenced),
            Some(asked) => {
                self.doubt = Some(asked);
                None
            }
            None if code.is_some_and(|code| REFUSED.contains(&&code)) && core.has_own_tables() => {
                let from = core.seat.pool.shard.name.clone();
                let asked = holds::doubt(core.shared.clone(), core.who.tenant.clone(), from);
                self.doubt = Some(Doubt::Asked(asked));
                None
            }
            None => Some(false),
        }
    }

    /// Whether it is known by now what the next error means.
    #[inline]
    pub(super) fn poll_doubt(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Doubt::Asked(asked)) = &mut self.doubt else { return Poll::Ready(()) };
        let Poll::Ready(fenced) = Pin::new(asked).poll(cx) else { return Poll::Pending };
        self.doubt = Some(Doubt::Told(fenced.unwrap_or(false)));
        Poll::Ready(())
    }
}

impl Core {
    /// Whether the tenant's tables are in a schema or a database of its own.
    fn has_own_tables(&self) -> bool {
        let context = &self.seat.context;
        context.search_path().is_some() || *context.route.database != *self.seat.pool.shard.database
    }
}
