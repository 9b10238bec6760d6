//! Plans, and what tenants get by them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{LimitSet, TenantLimits};

/// Plans that may extend each other in a row.
pub const MAX_DEPTH: usize = 8;

/// A named set of limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its name, unique among plans.
    pub name: String,
    /// The plan whose limits it inherits.
    pub extends: Option<String>,
    /// What it says itself.
    pub limits: LimitSet,
}

/// Why plans do not fit each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Two of one name.
    #[error("there is another plan `{0}`")]
    Twice(String),
    /// An extended plan, or the default one, that is not there.
    #[error("there is no plan `{0}`")]
    Missing(String),
    /// Plans that extend each other in a circle, or too many in a row.
    #[error("plan `{0}` extends itself, or more than {MAX_DEPTH} plans in a row")]
    Depth(String),
}

/// All plans, with what they inherit.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plans {
    plans: BTreeMap<String, Resolved>,
    default: Option<String>,
    /// Of tenants without a plan where there is no default.
    none: Arc<TenantLimits>,
}

#[derive(Debug, PartialEq, Eq)]
struct Resolved {
    plan: Plan,
    /// With all that is inherited.
    said: LimitSet,
    limits: Arc<TenantLimits>,
}

impl Plans {
    /// Puts plans together. `default` is the plan of tenants that have none.
    ///
    /// # Errors
    /// If they do not fit each other.
    pub fn new(plans: Vec<Plan>, default: Option<String>) -> Result<Self, PlanError> {
        let mut by_name: BTreeMap<String, Plan> = BTreeMap::new();
        for plan in plans {
            if let Some(other) = by_name.insert(plan.name.clone(), plan) {
                return Err(PlanError::Twice(other.name));
            }
        }
        if let Some(missing) = default.as_ref().filter(|name| !by_name.contains_key(*name)) {
            return Err(PlanError::Missing(missing.clone()));
        }
        let mut resolved = BTreeMap::new();
        for plan in by_name.values() {
            let said = inherited(plan, &by_name)?;
            let limits = Arc::new(TenantLimits::from(&said));
            resolved.insert(plan.name.clone(), Resolved { plan: plan.clone(), said, limits });
        }
        Ok(Self { plans: resolved, default, none: Arc::default() })
    }

    /// The plans as they were said, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Plan> {
        self.plans.values().map(|r| &r.plan)
    }

    /// The plan of tenants that have none.
    pub fn default_plan(&self) -> Option<&str> {
        self.default.as_deref()
    }

    /// Whether there is a plan of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.plans.contains_key(name)
    }

    /// All that holds by plan `name` alone, with what it inherits.
    pub fn said_by(&self, name: &str) -> Option<&LimitSet> {
        self.plans.get(name).map(|r| &r.said)
    }

    /// What holds for a tenant: by its own word, else by its plan, or the default one. A plan that
    /// is not there counts as the default.
    pub fn resolve(&self, plan: Option<&str>, own: Option<&LimitSet>) -> Arc<TenantLimits> {
        let plan = plan.and_then(|name| self.plans.get(name));
        let plan = plan.or_else(|| self.plans.get(self.default.as_deref()?));
        match (plan, own.filter(|own| !own.is_empty())) {
            (Some(plan), None) => plan.limits.clone(),
            (None, None) => self.none.clone(),
            (Some(plan), Some(own)) => Arc::new(TenantLimits::from(&own.over(&plan.said))),
            (None, Some(own)) => Arc::new(TenantLimits::from(own)),
        }
    }
}

fn inherited(plan: &Plan, all: &BTreeMap<String, Plan>) -> Result<LimitSet, PlanError> {
    let mut said = plan.limits.clone();
    let mut next = plan.extends.as_deref();
    for _ in 0..MAX_DEPTH {
        let Some(name) = next else { return Ok(said) };
        let parent = all.get(name).ok_or_else(|| PlanError::Missing(name.to_owned()))?;
        said = said.over(&parent.limits);
        next = parent.extends.as_deref();
    }
    Err(PlanError::Depth(plan.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(name: &str, extends: Option<&str>, connections: Option<u32>, weight: Option<u32>) -> Plan {
        Plan {
            name: name.to_owned(),
            extends: extends.map(str::to_owned),
            limits: LimitSet { connections, weight, ..LimitSet::default() },
        }
    }

    #[test]
    fn plans_inherit_and_tenants_override() {
        let plans = vec![
            plan("premium", Some("basic"), Some(50), None),
            plan("basic", None, Some(10), Some(50)),
            plan("vip", Some("premium"), None, Some(400)),
        ];
        let plans = Plans::new(plans, Some("basic".to_owned())).unwrap();
        let of = |plan, own| {
            let limits = plans.resolve(plan, own);
            (limits.connections, limits.weight)
        };
        assert_eq!(of(Some("premium"), None), (Some(50), 50));
        assert_eq!(of(Some("vip"), None), (Some(50), 400));
        assert_eq!(of(None, None), (Some(10), 50));
        assert_eq!(of(Some("gone"), None), (Some(10), 50));
        let own = LimitSet { connections: Some(7), ..LimitSet::default() };
        assert_eq!(of(Some("vip"), Some(&own)), (Some(7), 400));
        assert!(Arc::ptr_eq(&plans.resolve(Some("vip"), None), &plans.resolve(Some("vip"), None)));
    }

    #[test]
    fn plans_that_do_not_fit_are_refused() {
        let new = |plans| Plans::new(plans, None).unwrap_err();
        assert_eq!(
            new(vec![plan("a", None, None, None), plan("a", None, None, None)]),
            PlanError::Twice("a".into())
        );
        assert_eq!(new(vec![plan("a", Some("b"), None, None)]), PlanError::Missing("b".into()));
        let circle = vec![plan("a", Some("b"), None, None), plan("b", Some("a"), None, None)];
        assert!(matches!(new(circle), PlanError::Depth(_)));
        assert_eq!(Plans::new(vec![], Some("x".into())).unwrap_err(), PlanError::Missing("x".into()));
    }
}
