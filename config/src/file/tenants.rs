//! `tenants`.

use std::collections::HashMap;
use std::sync::Arc;

use super::context;
use super::jwt;
use super::plans;
use super::reader::Table;
use super::settings::POOL_MODES;
use super::shards::ShardNames;
use super::value::Value;
use crate::ids::TenantId;
use crate::limits::Plans;
use crate::topology::{Placement, Tenant, TenantState};

/// The id of a tenant.
pub(super) fn id(v: &Value<'_>) -> Option<TenantId> {
    match TenantId::new(v.text()?) {
        Ok(id) => Some(id),
        Err(e) => v.error(e.to_string()),
    }
}

pub(super) fn read(
    root: &Table<'_>,
    shards: &ShardNames,
    known: &Plans,
    catalog: bool,
) -> HashMap<TenantId, Arc<Tenant>> {
    let mut tenants = HashMap::new();
    for table in root.tables("tenants") {
        let id = table.need("id", id);
        let states = [TenantState::Active, TenantState::ReadOnly, TenantState::Suspended];
        let states = states.map(|s| (s.as_str(), s));
        let state = table.opt("state", |v| v.one_of(&states)).unwrap_or_default();
        // A file cannot know how often a placement has changed: 1 says that there is one.
        let placement = table.opt("shard", |v| Some(Placement { shard: shards.read(v)?, epoch: 1 }));
        let pool_mode = table.opt("pool_mode", |v| v.one_of(&POOL_MODES));
        let context = table.table("context").map(|t| Arc::new(context::read(t)));
        let jwt = jwt::read(&table);
        let name = table.opt("name", |v| v.name(256)).map(str::to_owned);
        let plan = table.opt("plan", |v| {
            let name = v.name(plans::MAX_PLAN_BYTES)?;
            // Plans of a catalog are not known here.
            if known.contains(name) || catalog { Some(name) } else { v.error("there is no such plan") }
        });
        let own_limits = table.table("limits").map(|t| Arc::new(plans::read_own(t)));
        let limits = known.resolve(plan, own_limits.as_deref());
        let plan = plan.map(Arc::from);
        if let Some(id) = id {
            let at = table.at_key("id");
            let tenant = Tenant {
                id: id.clone(),
                state,
                placement,
                bucket_epoch: 0,
                context,
                pool_mode,
                jwt,
                name,
                plan,
                own_limits,
                limits,
                restriction: None,
            };
            if tenants.insert(id.clone(), Arc::new(tenant)).is_some() {
                table.ctx.error(&at, format!("there is another tenant {id:?}"));
            }
        }
        table.finish();
    }
    tenants
}
