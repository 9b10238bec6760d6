//! How much each tenant holds on its shard.

use std::collections::{HashMap, HashSet};

use switchyard_config::topology::ContextTemplate;

use crate::provision::{OnShard, Place, quoted, tables_with};
use crate::store::{Store, StoreError, TenantFilter};

/// Pages of a table that are looked at; of a larger one a sample of about as many.
const PAGES: f64 = 20_000.0;

/// The column that tells tenants apart, unless the settings say otherwise.
const TENANT_COLUMN: &str = "tenant_id";

/// Bytes of a page, as PostgreSQL is built.
const PAGE_BYTES: f64 = 8192.0;

/// Shards of which it has been said that what their tenants hold cannot be known.
pub(super) type Told = HashSet<String>;

/// A table whose rows row-level security hides from a role.
struct Hidden {
    table: String,
    role: String,
}

/// Measures every shard. One that does not answer is left out, and told of; so is, once, one whose rows are hidden from
/// the control plane: a part of what tenants hold would be no measure.
pub(super) async fn measure(store: &Store, hidden: &mut Told) -> Result<(), StoreError> {
    let (context, provision) = store.provisioning().await?;
    let column = provision.tenant_column.as_deref().unwrap_or(TENANT_COLUMN);
    for shard in store.shards().await? {
        match shard_storage(store, &shard.name, &context, column).await {
            Ok(Ok(found)) => {
                hidden.remove(&shard.name);
                if !found.is_empty() {
                    store.set_storage(&found).await?;
                }
            }
            Ok(Err(Hidden { table, role })) => {
                if hidden.insert(shard.name.clone()) {
                    tracing::warn!(
                        shard = shard.name,
                        table,
                        role,
                        "what tenants hold here is not known: row-level security hides rows from the role; give the \
                         shard an administrator with BYPASSRLS"
                    );
                }
            }
            Err(error) => tracing::warn!(shard = shard.name, %error, "what tenants hold is not measured"),
        }
    }
    Ok(())
}

async fn shard_storage(
    store: &Store,
    shard: &str,
    context: &ContextTemplate,
    column: &str,
) -> Result<Result<Vec<(String, i64)>, Hidden>, StoreError> {
    let on = OnShard::connect(&store.shard_access(shard, true).await?, None).await?;
    let sizes = match Place::of(context, "x") {
        Place::Rows => match rows(&on, column).await? {
            Ok(sizes) => sizes,
            Err(hidden) => return Ok(Err(hidden)),
        },
        Place::Database(_) => {
            sizes(&on, "SELECT datname, pg_database_size(oid) FROM pg_database WHERE datallowconn").await?
        }
        Place::Schema(_) => {
            let sql = "SELECT n.nspname, sum(pg_total_relation_size(c.oid))::bigint
                       FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                       WHERE c.relkind IN ('r', 'm') GROUP BY 1";
            sizes(&on, sql).await?
        }
    };
    of_tenants(store, shard, context, &sizes).await.map(Ok)
}

async fn sizes(on: &OnShard, sql: &str) -> Result<HashMap<String, i64>, StoreError> {
    let found = on.client.query(sql, &[]).await.map_err(|e| on.failed(&e))?;
    Ok(found.iter().map(|r| (r.get(0), r.get(1))).collect())
}

/// What the tenants that live on the shard hold there. What is left there of others is nobody's.
async fn of_tenants(
    store: &Store,
    shard: &str,
    context: &ContextTemplate,
    sizes: &HashMap<String, i64>,
) -> Result<Vec<(String, i64)>, StoreError> {
    let filter = TenantFilter { shard: Some(shard.to_owned()), ..TenantFilter::default() };
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let (tenants, next) = store.tenants(&filter, &after, 1000).await?;
        for tenant in tenants {
            let name = match Place::of(tenant.context.as_ref().unwrap_or(context), &tenant.id) {
                Place::Schema(name) | Place::Database(name) => name,
                Place::Rows => tenant.id.clone(),
            };
            let bytes = sizes.get(&name).copied().unwrap_or_default();
            found.push((tenant.id, bytes));
        }
        match next {
            Some(next) => after = next,
            None => return Ok(found),
        }
    }
}

/// Each tenant's part of the shared tables: of a table's size with its indexes, in proportion to
/// the bytes of the tenant's rows, in all of it or in a sample.
async fn rows(on: &OnShard, column: &str) -> Result<Result<HashMap<String, i64>, Hidden>, StoreError> {
    if let Some(hidden) = hidden(on, column).await? {
        return Ok(Err(hidden));
    }
    // Where row-level security would hide rows after all, an error is better than a sum that is too small.
    on.client.batch_execute("SET row_security = off").await.map_err(|e| on.failed(&e))?;
    let mut sums: HashMap<String, f64> = HashMap::new();
    for (table, size) in tables_with(on, column).await? {
        let pages = size as f64 / PAGE_BYTES;
        let sample = if pages > PAGES {
            format!(" TABLESAMPLE SYSTEM ({:.4})", 100.0 * PAGES / pages)
        } else {
            String::new()
        };
        let sql = format!(
            "SELECT t.{}::text, sum(pg_column_size(t.*))::float8 FROM {table} t{sample} GROUP BY 1",
            quoted(column)
        );
        let found = on.client.query(&sql, &[]).await.map_err(|e| on.failed(&e))?;
        let parts: Vec<(Option<String>, f64)> = found.iter().map(|r| (r.get(0), r.get(1))).collect();
        let whole: f64 = parts.iter().map(|p| p.1).sum();
        for (tenant, part) in parts {
            if let Some(tenant) = tenant
                && whole > 0.0
            {
                *sums.entry(tenant).or_default() += size as f64 * part / whole;
            }
        }
    }
    Ok(Ok(sums.into_iter().map(|(tenant, bytes)| (tenant, bytes as i64)).collect()))
}

/// A table whose rows row-level security hides from who measures, if there is one.
async fn hidden(on: &OnShard, column: &str) -> Result<Option<Hidden>, StoreError> {
    let sql = "SELECT current_user::text, format('%I.%I', n.nspname, c.relname)
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = $1 AND NOT a.attisdropped
               WHERE c.relkind = 'r' AND row_security_active(c.oid) ORDER BY 2 LIMIT 1";
    let row = on.client.query_opt(sql, &[&column]).await.map_err(|e| on.failed(&e))?;
    Ok(row.map(|r| Hidden { role: r.get(0), table: r.get(1) }))
}
