//! Changes of the catalog, and the topology after them.

use std::collections::HashMap;
use std::sync::Arc;

use switchyard_config::BUCKETS;
use switchyard_config::limits::Plans;
use switchyard_config::topology::{
    ContextTemplate, JwtIssuer, Shard, ShardIndex, Tenant, Topology, UnknownTenants, User,
};

use crate::CatalogError;

/// What is not per tenant or user; always read as a whole.
pub(crate) struct Layout {
    pub(crate) shards: Vec<Arc<Shard>>,
    pub(crate) buckets: Vec<ShardIndex>,
    pub(crate) context: Arc<ContextTemplate>,
    pub(crate) unknown_tenants: UnknownTenants,
    pub(crate) jwt: Vec<Arc<JwtIssuer>>,
    pub(crate) plans: Arc<Plans>,
}

/// What lies between two versions.
pub(crate) struct Changes {
    /// The later version.
    pub(crate) version: u64,
    /// The layout, if it changed.
    pub(crate) layout: Option<Layout>,
    /// Tenants that are new or changed.
    pub(crate) tenants: Vec<Arc<Tenant>>,
    /// Users that are new or changed.
    pub(crate) users: Vec<Arc<User>>,
    /// Tenants deleted; they may have been made again, and are in `tenants` then.
    pub(crate) deleted_tenants: Vec<String>,
    /// Users deleted, likewise.
    pub(crate) deleted_users: Vec<String>,
}

impl Changes {
    /// The topology that `held` becomes.
    pub(crate) fn applied_to(self, held: &Topology) -> Topology {
        let mut next = held.clone();
        next.version = self.version;
        if let Some(layout) = self.layout {
            next.shards = layout.shards;
            next.buckets = layout.buckets;
            next.context = layout.context;
            next.unknown_tenants = layout.unknown_tenants;
            next.jwt = layout.jwt;
            if next.plans != layout.plans {
                next.plans = layout.plans;
                resolve_again(&mut next);
            }
        }
        for id in &self.deleted_tenants {
            next.tenants.remove(id.as_str());
        }
        for name in &self.deleted_users {
            next.users.remove(name);
        }
        next.tenants.extend(self.tenants.into_iter().map(|t| (t.id.clone(), t)));
        next.users.extend(self.users.into_iter().map(|u| (u.name.clone(), u)));
        next
    }
}

/// Gives every tenant what its plan says now.
fn resolve_again(topology: &mut Topology) {
    let plans = topology.plans.clone();
    for tenant in topology.tenants.values_mut() {
        let limits = plans.resolve(tenant.plan.as_deref(), tenant.own_limits.as_deref());
        if tenant.limits != limits {
            *tenant = Arc::new(Tenant { limits, ..(**tenant).clone() });
        }
    }
}

/// The shard of each bucket, from the rows in order of their buckets.
///
/// # Errors
/// Unless there are either all buckets or none, each with a shard that exists.
pub(crate) fn buckets_by_name<'r>(
    shards: &[Arc<Shard>],
    rows: impl Iterator<Item = (i32, &'r str)>,
) -> Result<Vec<ShardIndex>, CatalogError> {
    let index: HashMap<&str, usize> = shards.iter().enumerate().map(|(i, s)| (s.name.as_str(), i)).collect();
    let mut buckets = Vec::with_capacity(usize::from(BUCKETS));
    for (bucket, shard) in rows {
        let invalid = |reason: &str| CatalogError::invalid("bucket", &bucket.to_string(), reason);
        if usize::try_from(bucket) != Ok(buckets.len()) {
            return Err(invalid("the one before it has no shard"));
        }
        let shard = index.get(shard).ok_or_else(|| invalid("its shard does not exist"))?;
        buckets.push(ShardIndex::try_from(*shard).map_err(|_| invalid("there are too many shards"))?);
    }
    match buckets.len() {
        0 => Ok(buckets),
        n if n == usize::from(BUCKETS) => Ok(buckets),
        n => Err(CatalogError::invalid("bucket", &n.to_string(), "it has no shard")),
    }
}

#[cfg(test)]
mod tests {
    use switchyard_config::topology::{PoolLimits, ServerLogin, ServerSecret, ServerTls, TenantState};
    use switchyard_config::{ShardName, TenantId};

    use super::*;

    fn shard(name: &str) -> Arc<Shard> {
        Arc::new(Shard {
            name: ShardName::new(name).unwrap(),
            host: "localhost".into(),
            port: 5432,
            other_hosts: Vec::new(),
            database: "crm".into(),
            login: ServerLogin { user: "app".into(), secret: ServerSecret::None },
            tls: ServerTls::default(),
            pool: PoolLimits::default(),
            cordoned: false,
        })
    }

    fn tenant(id: &str, state: TenantState) -> Arc<Tenant> {
        Arc::new(Tenant { state, ..Tenant::new(TenantId::new(id).unwrap()) })
    }

    fn changes(version: u64, tenants: Vec<Arc<Tenant>>, deleted: &[&str]) -> Changes {
        Changes {
            version,
            layout: None,
            tenants,
            users: Vec::new(),
            deleted_tenants: deleted.iter().map(|d| (*d).to_owned()).collect(),
            deleted_users: Vec::new(),
        }
    }

    #[test]
    fn deletions_come_before_what_was_made_again() {
        let held = changes(1, vec![tenant("a", TenantState::Active), tenant("b", TenantState::Active)], &[])
            .applied_to(&Topology::empty());
        let next = changes(2, vec![tenant("a", TenantState::Suspended)], &["a", "b"]).applied_to(&held);
        assert_eq!(next.version, 2);
        assert_eq!(next.tenants["a"].state, TenantState::Suspended);
        assert!(!next.tenants.contains_key("b"));
        assert!(held.tenants.contains_key("b"), "what is held is never changed");
    }

    #[test]
    fn a_change_of_a_plan_reaches_the_tenants_that_are_held() {
        use switchyard_config::limits::{LimitSet, Plan};
        let plans = |connections| {
            let limits = LimitSet { connections: Some(connections), ..LimitSet::default() };
            let plan = Plan { name: "p".into(), extends: None, limits };
            Arc::new(Plans::new(vec![plan], None).unwrap())
        };
        let with_layout = |version, connections| Changes {
            layout: Some(Layout {
                shards: Vec::new(),
                buckets: Vec::new(),
                context: Arc::default(),
                unknown_tenants: UnknownTenants::Refuse,
                jwt: Vec::new(),
                plans: plans(connections),
            }),
            ..changes(version, Vec::new(), &[])
        };
        let planned = Tenant { plan: Some("p".into()), ..Tenant::new(TenantId::new("a").unwrap()) };
        let held = changes(1, vec![Arc::new(planned), tenant("b", TenantState::Active)], &[])
            .applied_to(&Topology::empty());
        let first = with_layout(2, 5).applied_to(&held);
        assert_eq!(first.tenants["a"].limits.connections, Some(5));
        assert_eq!(first.tenants["b"].limits.connections, None);
        let second = with_layout(3, 6).applied_to(&first);
        assert_eq!(second.tenants["a"].limits.connections, Some(6));
        assert!(Arc::ptr_eq(&first.tenants["b"], &second.tenants["b"]));
    }

    #[test]
    fn buckets_are_all_or_none() {
        let shards = [shard("s1"), shard("s2")];
        let all = |n: i32| (0..n).map(|b| (b, if b % 2 == 0 { "s2" } else { "s1" }));
        assert_eq!(buckets_by_name(&shards, all(0)).unwrap().len(), 0);
        let buckets = buckets_by_name(&shards, all(i32::from(BUCKETS))).unwrap();
        assert_eq!(buckets[..3], [1, 0, 1]);
        assert!(buckets_by_name(&shards, all(4095)).is_err());
        assert!(buckets_by_name(&shards, all(4096).skip(1)).is_err());
        assert!(buckets_by_name(&shards, std::iter::once((0, "s3"))).is_err());
    }
}
