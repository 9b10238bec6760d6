//! A roaming session among the connections of the tenant that it speaks for.
//!
//! It counts for that tenant from its first statement to when it speaks for another or for nobody: with `SET LOCAL`
//! or a comment to the end of the transaction, with `SET` until the setting is changed. While it does not count it is
//! asked whether the tenant's limit of connections has room for it, before it borrows a connection.

use std::future::Future;
use std::pin::Pin as StdPin;

use switchyard_wire::error::{ErrorResponse, Severity};

use super::super::Core;
use crate::limits::{self, Presence};
use crate::roaming::Named;

/// A place that comes, or does not.
pub(in super::super) type Place = StdPin<Box<dyn Future<Output = Result<Presence, ErrorResponse>> + Send>>;

impl Core {
    /// Counts a roaming session for the tenant that it is now, and no other. Some if it has to wait for that.
    pub(in super::super) fn count_for_tenant(&mut self) -> Option<Place> {
        let roaming = self.roaming.as_mut()?;
        if self.who.tenant.is_nobody() {
            roaming.counted = None;
            return None;
        }
        if roaming.counted.as_ref().is_some_and(|(tenant, _)| *tenant == self.who.tenant) {
            return None;
        }
        roaming.counted = None;
        let shared = self.shared.clone();
        let stats = shared.stats.tenant(&self.who.tenant);
        let limits = shared.topology().tenant(&self.who.tenant)?.limits.clone();
        if let Some(presence) = limits::try_join(&limits, &stats, &shared.leasing) {
            self.is_counted(presence);
            return None;
        }
        Some(Box::pin(async move {
            let admitted = limits::admit(&limits, &stats, None, &shared.leasing).await;
            match admitted {
                Ok(arrival) => Ok(arrival.stay()),
                Err(error) => Err(ErrorResponse { severity: Severity::Error, ..error }),
            }
        }))
    }

    /// It has got its place.
    pub(in super::super) fn is_counted(&mut self, presence: Presence) {
        if let Some(roaming) = &mut self.roaming {
            roaming.counted = Some((self.who.tenant.clone(), presence));
        }
    }

    /// The session has nothing to do: it counts on only for a tenant that its setting still names.
    pub(in super::super) fn count_while_named(&mut self) {
        let Some(roaming) = &mut self.roaming else { return };
        if roaming.counted.is_none() {
            return;
        }
        let track = roaming.ahead(&self.wishes);
        roaming
            .counted
            .take_if(|(tenant, _)| !matches!(track.now(), Named::Tenant(named) if named == tenant));
    }
}
