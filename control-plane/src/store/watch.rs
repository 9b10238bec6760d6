//! What the leader looks at now and then.

use std::collections::HashMap;

use serde_json::Value;
use switchyard_config::limits::{LimitSet, Plans};
use switchyard_config::topology::Restriction;

use super::buckets::bucket_shards;
use super::plans::resolved;
use super::tenants::{from_json, to_json};
use super::{Store, StoreError, lock_version};

/// What a tenant has used of what is counted by day and month.
pub(crate) struct Used {
    pub(crate) tenant: String,
    pub(crate) plan: Option<String>,
    pub(crate) own: Option<LimitSet>,
    /// Transactions and bytes today.
    pub(crate) day: (u64, u64),
    /// The same this month.
    pub(crate) month: (u64, u64),
    /// Bytes on its shard.
    pub(crate) storage: u64,
    /// When today ends, in seconds since 1970.
    pub(crate) day_ends: u64,
    /// When this month ends.
    pub(crate) month_ends: u64,
}

/// What a tenant did in the last five minutes.
pub(crate) struct Recent {
    pub(crate) tenant: String,
    pub(crate) shard: Option<String>,
    pub(crate) transactions: i64,
    pub(crate) statements: i64,
    pub(crate) errors: i64,
    pub(crate) server_us: i64,
    pub(crate) limits_reached: i64,
}

impl Store {
    /// The plans as routers see them.
    pub(crate) async fn resolved_plans(&self) -> Result<Plans, StoreError> {
        resolved(&self.client().await?).await
    }

    /// Tenants that have used something this month.
    pub(crate) async fn used(&self) -> Result<Vec<Used>, StoreError> {
        let sql = "WITH day AS (SELECT date_trunc('day', now(), 'UTC') AS d, date_trunc('month', now(), 'UTC') AS m)
                   SELECT t.id, t.plan, t.limits,
                       COALESCE(sum(u.transactions) FILTER (WHERE u.at >= day.d), 0)::bigint,
                       COALESCE(sum(u.bytes_in + u.bytes_out) FILTER (WHERE u.at >= day.d), 0)::bigint,
                       COALESCE(sum(u.transactions), 0)::bigint,
                       COALESCE(sum(u.bytes_in + u.bytes_out), 0)::bigint,
                       COALESCE((array_agg(u.storage ORDER BY u.at DESC) FILTER (WHERE u.storage IS NOT NULL))[1], 0),
                       extract(epoch FROM day.d + interval '1 day')::bigint,
                       extract(epoch FROM date_trunc('month', (day.m AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC')::bigint
                   FROM day, usage u JOIN tenants t ON t.id = u.tenant
                   WHERE u.span = 'd' AND u.at >= day.m GROUP BY t.id, t.plan, t.limits, day.d, day.m";
        let rows = self.client().await?.query(sql, &[]).await?;
        let used = |r: &tokio_postgres::Row| {
            let n = |i: usize| u64::try_from(r.get::<_, i64>(i)).unwrap_or(0);
            let own = r.get::<_, Option<Value>>(2).map(|v| from_json("limits", v)).transpose()?;
            Ok(Used {
                tenant: r.get(0),
                plan: r.get(1),
                own,
                day: (n(3), n(4)),
                month: (n(5), n(6)),
                storage: n(7),
                day_ends: n(8),
                month_ends: n(9),
            })
        };
        rows.iter().map(used).collect()
    }

    /// Makes these the marks of tenants, and takes all others away.
    pub(crate) async fn mark(&self, marks: &HashMap<String, Restriction>) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let held =
            client.query("SELECT id, restriction FROM tenants WHERE restriction IS NOT NULL", &[]).await?;
        let mut changes: Vec<(String, Option<Value>)> = Vec::new();
        let mut right = HashMap::new();
        for (tenant, mark) in marks {
            right.insert(tenant.clone(), to_json(mark)?);
        }
        for row in &held {
            let (tenant, mark): (String, Value) = (row.get(0), row.get(1));
            match right.remove(&tenant) {
                Some(wanted) if wanted == mark => {}
                wanted => changes.push((tenant, wanted)),
            }
        }
        changes.extend(right.into_iter().map(|(tenant, mark)| (tenant, Some(mark))));
        if changes.is_empty() {
            return Ok(());
        }
        let t = client.transaction().await?;
        lock_version(&t).await?;
        for (tenant, mark) in &changes {
            t.execute("UPDATE tenants SET restriction = $2 WHERE id = $1", &[tenant, mark]).await?;
            tracing::info!(tenant, restricted = mark.is_some(), "what a tenant has used up has changed");
        }
        Ok(t.commit().await?)
    }

    /// Tenants that did something in the last five minutes, or were not well when last looked at.
    pub(crate) async fn recent(&self) -> Result<Vec<Recent>, StoreError> {
        let sql =
            "SELECT t.id, p.shard, COALESCE(u.transactions, 0)::bigint, COALESCE(u.statements, 0)::bigint,
                          COALESCE(u.errors, 0)::bigint, COALESCE(u.server_us, 0)::bigint,
                          (SELECT count(*) FROM alerts a WHERE a.tenant = t.id AND a.kind = 'limit_reached'
                              AND a.cleared_at IS NULL)
                   FROM (SELECT tenant, sum(transactions) AS transactions, sum(statements) AS statements,
                                sum(errors) AS errors, sum(server_us) AS server_us
                         FROM usage WHERE span = 'm' AND at >= now() - interval '5 min' GROUP BY tenant) u
                   FULL JOIN (SELECT tenant FROM tenant_health WHERE status <> 'ok') h ON h.tenant = u.tenant
                   JOIN tenants t ON t.id = COALESCE(u.tenant, h.tenant)
                   LEFT JOIN placements p ON p.tenant = t.id";
        let client = self.client().await?;
        let buckets = bucket_shards(&client).await?;
        let rows = client.query(sql, &[]).await?;
        let recent = |r: &tokio_postgres::Row| {
            let tenant: String = r.get(0);
            let by_bucket = || {
                let bucket = switchyard_config::TenantId::new(&tenant).ok()?.bucket().0;
                buckets.get(usize::from(bucket)).cloned()
            };
            Recent {
                shard: r.get::<_, Option<String>>(1).or_else(by_bucket),
                transactions: r.get(2),
                statements: r.get(3),
                errors: r.get(4),
                server_us: r.get(5),
                limits_reached: r.get(6),
                tenant,
            }
        };
        Ok(rows.iter().map(recent).collect())
    }

    /// Addresses that were refused at least `least` times in the last five minutes: the tenant
    /// that they tried, the address, and how often.
    pub(crate) async fn refused_lately(
        &self,
        least: i64,
    ) -> Result<Vec<(Option<String>, String, i64)>, StoreError> {
        let sql = "SELECT tenant, source, sum(count)::bigint FROM sign_ins
                   WHERE at >= now() - interval '5 min' AND outcome = 'refused'
                   GROUP BY tenant, source HAVING sum(count) >= $1::bigint LIMIT 1000";
        let rows = self.client().await?.query(sql, &[&least]).await?;
        Ok(rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect())
    }
}
