//! What operators have paused or disabled. It is kept here as pools come and go with the topology, and
//! is forgotten when the process ends.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use switchyard_config::{ShardName, TenantId};
use switchyard_wire::error::{ErrorResponse, sqlstate};

use crate::pool::Pool;
use crate::shared::Shared;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    /// All shards are paused, also those to come.
    pub(crate) everything: bool,
    pub(crate) shards: BTreeSet<ShardName>,
    pub(crate) tenants: BTreeSet<TenantId>,
    /// Shards whose tenants cannot log in.
    pub(crate) disabled_shards: BTreeSet<ShardName>,
    /// Tenants that cannot log in.
    pub(crate) disabled_tenants: BTreeSet<TenantId>,
}

impl Held {
    pub(crate) fn is_shard_paused(&self, shard: &ShardName) -> bool {
        self.everything || self.shards.contains(shard)
    }
}

#[derive(Default)]
pub(crate) struct Pauses(Mutex<Held>);

impl Pauses {
    /// As it is now.
    pub(crate) fn now(&self) -> Held {
        self.0.lock().clone()
    }

    /// Tells a pool that is new.
    pub(crate) fn apply_to(&self, pool: &std::sync::Arc<Pool>) {
        let held = self.0.lock();
        pool.hold(held.is_shard_paused(&pool.shard.name), &held.tenants);
    }

    /// Why nobody may log in as `tenant`, who lives on `shard`, if so.
    pub(crate) fn refusal(&self, tenant: &TenantId, shard: &ShardName) -> Option<ErrorResponse> {
        let held = self.0.lock();
        let what = if held.disabled_tenants.contains(tenant) {
            format!("tenant \"{tenant}\" is disabled")
        } else if held.disabled_shards.contains(shard) {
            "the shard of this tenant is disabled".to_owned()
        } else {
            return None;
        };
        Some(
            ErrorResponse::fatal(sqlstate::CANNOT_CONNECT_NOW, what)
                .hint("The operators of this service take no new connections for it; try again later."),
        )
    }
}

impl Shared {
    /// Changes what is held, and tells all pools before it returns.
    pub(crate) fn change_holds<R>(&self, change: impl FnOnce(&mut Held) -> R) -> R {
        let mut held = self.pauses.0.lock();
        let result = change(&mut held);
        for pool in self.pools() {
            pool.hold(held.is_shard_paused(&pool.shard.name), &held.tenants);
        }
        result
    }
}
