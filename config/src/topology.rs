//! The topology: the immutable, versioned snapshot that a router decides from.
//!
//! It is made by the configuration file alone or from the catalog, replaced as a whole, and read
//! on every transaction. Nothing here does IO.

mod issuers;
mod shards;
mod tenants;
mod users;

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{BUCKETS, TenantId};
use crate::limits::Plans;

pub use issuers::{JwtAlgorithm, JwtIssuer, JwtKey, JwtKeys};
pub use shards::{Endpoint, PoolLimits, SecretKey, ServerLogin, ServerSecret, ServerTls, Shard, SslMode};
pub use tenants::{ContextMode, ContextTemplate, Placement, PoolMode, Restriction, Tenant, TenantState};
pub use users::{ConsoleRole, LoginMethods, TenantGrant, User, Verifier};

/// Index of a shard in [`Topology::shards`].
pub type ShardIndex = u16;

/// Everything a router needs to know to serve a session, as of one version.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Rises with every change in the catalog; for a file, with every reload.
    pub version: u64,
    /// All shards; [`ShardIndex`] indexes it.
    pub shards: Vec<Arc<Shard>>,
    /// The shard of each bucket: [`BUCKETS`] entries, or none where there is no shard at all.
    pub buckets: Vec<ShardIndex>,
    /// Tenants that are known, by id.
    pub tenants: HashMap<TenantId, Arc<Tenant>>,
    /// Client users, by name.
    pub users: HashMap<String, Arc<User>>,
    /// The context of tenants that do not say otherwise.
    pub context: Arc<ContextTemplate>,
    /// What happens to a tenant that is not in `tenants`.
    pub unknown_tenants: UnknownTenants,
    /// Trusted issuers of JWTs for all tenants. Those of one tenant are in [`Tenant::jwt`].
    pub jwt: Vec<Arc<JwtIssuer>>,
    /// Plans, by which tenants have their limits.
    pub plans: Arc<Plans>,
}

/// Where a tenant lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Its shard.
    pub shard: ShardIndex,
    /// Rises with every change of placement; 0 for a tenant that has only ever been placed by its bucket.
    pub epoch: u64,
}

impl Topology {
    /// A topology that knows nobody, to begin from.
    pub fn empty() -> Self {
        Self {
            version: 0,
            shards: Vec::new(),
            buckets: Vec::new(),
            tenants: HashMap::new(),
            users: HashMap::new(),
            context: Arc::new(ContextTemplate::default()),
            unknown_tenants: UnknownTenants::Refuse,
            jwt: Vec::new(),
            plans: Arc::default(),
        }
    }

    /// The tenant's record, or one made up for it where unknown tenants are accepted.
    pub fn tenant(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        match self.tenants.get(id) {
            None if id.is_nobody() => None,
            Some(tenant) => Some(tenant.clone()),
            None if self.unknown_tenants == UnknownTenants::Refuse => None,
            None => {
                let limits = self.plans.resolve(None, None);
                Some(Arc::new(Tenant { limits, ..Tenant::new(id.clone()) }))
            }
        }
    }

    /// Where `tenant` lives: its explicit placement if it has one, else its bucket's shard.
    /// `None` only if there is no shard for it.
    pub fn place(&self, tenant: &Tenant) -> Option<Placed> {
        match &tenant.placement {
            Some(p) => {
                let shard = self.shards.iter().position(|s| s.name == p.shard)?;
                Some(Placed { shard: shard as ShardIndex, epoch: p.epoch })
            }
            None => {
                debug_assert!(self.buckets.is_empty() || self.buckets.len() == usize::from(BUCKETS));
                let shard = *self.buckets.get(usize::from(tenant.id.bucket().0))?;
                Some(Placed { shard, epoch: tenant.bucket_epoch })
            }
        }
    }

    /// Buckets dealt out evenly: shard `i` of `n` gets a run of about `BUCKETS / n`.
    pub fn even_buckets(shards: usize) -> Vec<ShardIndex> {
        if shards == 0 {
            return Vec::new();
        }
        (0..usize::from(BUCKETS)).map(|b| (b * shards / usize::from(BUCKETS)) as ShardIndex).collect()
    }
}

/// What a router does with a tenant that is not in the topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownTenants {
    /// The login is refused, and looks like a wrong password.
    #[default]
    Refuse,
    /// The tenant is served from its bucket's shard once somebody who may act for it has logged
    /// in; with a catalog it is also written there.
    Create,
}
