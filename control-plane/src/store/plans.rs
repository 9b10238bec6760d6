//! Plans, and the limits of tenants.

use deadpool_postgres::{GenericClient, Transaction};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use switchyard_config::limits::{LimitSet, Plan as Said, Plans};
use switchyard_config::topology::Restriction;
use tokio_postgres::Row;
use utoipa::ToSchema;

use super::audit::{Deed, NONE, record};
use super::tenants::{from_json, to_json};
use super::{Caller, Store, StoreError, given, lock_version, timestamp};

/// Limits: what is absent is inherited, and `0` takes an inherited limit away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Client connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Transactions that are open at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_transactions: Option<u32>,
    /// Transactions begun per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transactions_per_second: Option<u32>,
    /// Transactions that may begin at once after a pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction_burst: Option<u32>,
    /// Bytes per second, both directions together.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 9007199254740991_u64)]
    pub bytes_per_second: Option<u64>,
    /// Bytes that may pass at once after a pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 9007199254740991_u64)]
    pub byte_burst: Option<u64>,
    /// Transactions per day of UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 9007199254740991_u64)]
    pub daily_transactions: Option<u64>,
    /// Bytes per day of UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 9007199254740991_u64)]
    pub daily_bytes: Option<u64>,
    /// Transactions per calendar month of UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 9007199254740991_u64)]
    pub monthly_transactions: Option<u64>,
    /// Bytes per calendar month of UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 9007199254740991_u64)]
    pub monthly_bytes: Option<u64>,
    /// Longest that a statement may run, in milliseconds; up to a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 86400000)]
    pub statement_timeout_ms: Option<u64>,
    /// Longest that a transaction may be open, in milliseconds; up to a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 86400000)]
    pub transaction_timeout_ms: Option<u64>,
    /// Longest that a session may be idle within a transaction, in milliseconds; up to a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 86400000)]
    pub idle_in_transaction_timeout_ms: Option<u64>,
    /// Bytes on the shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 9007199254740991_u64)]
    pub storage_bytes: Option<u64>,
    /// What happens over `storage_bytes`: `alert`, or `read-only` too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^(alert|read-only)$")]
    pub over_storage: Option<String>,
    /// Addresses and ranges that clients may come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 256)]
    pub allow: Option<Vec<String>>,
    /// Share of a full pool, relative to other tenants; 1 to 10 000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10000)]
    pub weight: Option<u32>,
    /// How long a transaction over a limit waits before it is refused, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 86400000)]
    pub wait_budget_ms: Option<u64>,
}

/// The largest whole number that every reader of JSON keeps exactly.
const MOST: u64 = (1 << 53) - 1;

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// Ranges of addresses of one tenant or plan.
const MAX_RANGES: usize = 256;

impl Limits {
    /// What routers read, if it makes sense.
    pub(super) fn checked(&self) -> Result<LimitSet, StoreError> {
        let amounts = [
            ("bytes_per_second", self.bytes_per_second, MOST),
            ("byte_burst", self.byte_burst, MOST),
            ("daily_transactions", self.daily_transactions, MOST),
            ("daily_bytes", self.daily_bytes, MOST),
            ("monthly_transactions", self.monthly_transactions, MOST),
            ("monthly_bytes", self.monthly_bytes, MOST),
            ("storage_bytes", self.storage_bytes, MOST),
            ("statement_timeout_ms", self.statement_timeout_ms, DAY_MS),
            ("transaction_timeout_ms", self.transaction_timeout_ms, DAY_MS),
            ("idle_in_transaction_timeout_ms", self.idle_in_transaction_timeout_ms, DAY_MS),
            ("wait_budget_ms", self.wait_budget_ms, DAY_MS),
        ];
        for (field, value, most) in amounts {
            if value.is_some_and(|v| v > most) {
                return Err(StoreError::invalid(field, format!("must be at most {most}")));
            }
        }
        if self.weight.is_some_and(|w| !(1..=10_000).contains(&w)) {
            return Err(StoreError::invalid("weight", "must be from 1 to 10000"));
        }
        if self.allow.as_ref().is_some_and(|a| a.len() > MAX_RANGES) {
            return Err(StoreError::invalid("allow", format!("must be at most {MAX_RANGES} ranges")));
        }
        for range in self.allow.iter().flatten() {
            if let Err(error) = range.parse::<switchyard_config::limits::IpRange>() {
                return Err(StoreError::invalid("allow", error));
            }
        }
        from_json("over_storage", to_json(self)?)
    }

    pub(super) fn of(said: &LimitSet) -> Result<Self, StoreError> {
        from_json("limits", to_json(said)?)
    }
}

/// A plan.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// The plan whose limits it inherits.
    pub extends: Option<String>,
    /// What it says itself.
    pub limits: Limits,
    /// All that holds by it, with what it inherits.
    pub effective: Limits,
    /// Whether tenants without a plan have this one.
    pub default: bool,
    /// Tenants that name it.
    pub tenants: i64,
    /// When it was made, in UTC.
    pub created_at: String,
}

/// A plan to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPlan {
    /// 1 to 63 bytes on one line.
    #[schema(min_length = 1, max_length = 63)]
    pub name: String,
    /// For people.
    #[schema(max_length = 1000)]
    pub description: Option<String>,
    /// The plan whose limits it inherits.
    pub extends: Option<String>,
    /// What it says itself.
    #[serde(default)]
    pub limits: Limits,
}

/// What to change of a plan; `null` takes it away.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlanPatch {
    /// For people.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub description: Option<Option<String>>,
    /// The plan whose limits it inherits.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub extends: Option<Option<String>>,
    /// Everything that it says itself.
    pub limits: Option<Limits>,
}

/// What a tenant may use.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TenantLimits {
    /// Its plan.
    pub plan: Option<String>,
    /// What it has otherwise than its plan says.
    pub own: Limits,
    /// What holds.
    pub effective: Limits,
    /// What it has used up: `kind` is `storage`, or `quota` with the time `until`, in seconds
    /// since 1970.
    #[schema(value_type = Option<Object>)]
    pub restriction: Option<Restriction>,
}

impl Store {
    /// All plans, by name.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn plans(&self) -> Result<Vec<Plan>, StoreError> {
        all(&self.client().await?).await
    }

    /// One plan.
    ///
    /// # Errors
    /// If there is none, or the catalog fails.
    pub async fn plan(&self, name: &str) -> Result<Plan, StoreError> {
        read(&self.client().await?, name).await
    }

    /// Makes a plan.
    ///
    /// # Errors
    /// If there is one by that name, it makes no sense, or the catalog fails.
    pub async fn create_plan(&self, caller: &Caller, new: NewPlan) -> Result<Plan, StoreError> {
        if new.name.is_empty() || new.name.len() > 63 || new.name.chars().any(char::is_control) {
            return Err(StoreError::invalid("name", "must be 1 to 63 bytes on one line"));
        }
        check_description(new.description.as_deref())?;
        let limits = to_json(&new.limits.checked()?)?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let sql = "INSERT INTO plans (name, description, extends, limits) VALUES ($1, $2, NULL, $3)
                   ON CONFLICT (name) DO NOTHING";
        if t.execute(sql, &[&new.name, &new.description, &limits]).await? == 0 {
            return Err(StoreError::exists("plan", &new.name));
        }
        set_extends(&t, &new.name, new.extends.as_deref()).await?;
        let after = read(&t, &new.name).await?;
        record(&t, caller, Deed::new("create", "plan", &new.name), NONE, Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }

    /// Changes what `patch` gives, at once for all tenants of the plan.
    ///
    /// # Errors
    /// If there is none, it makes no sense, or the catalog fails.
    pub async fn update_plan(
        &self,
        caller: &Caller,
        name: &str,
        patch: PlanPatch,
    ) -> Result<Plan, StoreError> {
        check_description(patch.description.as_ref().and_then(Option::as_deref))?;
        let limits = patch.limits.as_ref().map(Limits::checked).transpose()?;
        let limits = limits.as_ref().map(to_json).transpose()?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, name).await?;
        caller.expects(&before)?;
        let sql = "UPDATE plans SET description = CASE WHEN $2 THEN $3 ELSE description END,
                          limits = COALESCE($4, limits) WHERE name = $1";
        t.execute(sql, &[&name, &patch.description.is_some(), &patch.description.flatten(), &limits]).await?;
        if let Some(extends) = patch.extends {
            set_extends(&t, name, extends.as_deref()).await?;
        }
        let after = read(&t, name).await?;
        record(&t, caller, Deed::new("update", "plan", name), Some(&before), Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }

    /// Takes away a plan that nothing refers to.
    ///
    /// # Errors
    /// If there is none, something refers to it, or the catalog fails.
    pub async fn delete_plan(&self, caller: &Caller, name: &str) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, name).await?;
        caller.expects(&before)?;
        if before.tenants > 0 || before.default {
            let reason = if before.default {
                "is the default".to_owned()
            } else {
                format!("has {} tenants", before.tenants)
            };
            return Err(StoreError::Conflict(format!("plan `{name}` {reason}")));
        }
        t.execute("DELETE FROM plans WHERE name = $1", &[&name]).await?;
        record(&t, caller, Deed::new("delete", "plan", name), Some(&before), NONE).await?;
        Ok(t.commit().await?)
    }

    /// What a tenant may use.
    ///
    /// # Errors
    /// If there is no such tenant, or the catalog fails.
    pub async fn tenant_limits(&self, id: &str) -> Result<TenantLimits, StoreError> {
        limits_of(&self.client().await?, id).await
    }

    /// Sets everything that a tenant has otherwise than its plan says.
    ///
    /// # Errors
    /// If there is no such tenant, it makes no sense, or the catalog fails.
    pub async fn set_tenant_limits(
        &self,
        caller: &Caller,
        id: &str,
        own: Limits,
    ) -> Result<TenantLimits, StoreError> {
        let said = own.checked()?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = limits_of(&t, id).await?;
        caller.expects(&before)?;
        let json = if said.is_empty() { None } else { Some(to_json(&said)?) };
        t.execute("UPDATE tenants SET limits = $2 WHERE id = $1", &[&id, &json]).await?;
        let after = limits_of(&t, id).await?;
        record(&t, caller, Deed::new("set-limits", "tenant", id), Some(&before), Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }
}

fn check_description(text: Option<&str>) -> Result<(), StoreError> {
    match text {
        Some(text) if text.chars().count() > 1000 || text.contains('\0') => {
            Err(StoreError::invalid("description", "must be at most 1000 characters, without NUL"))
        }
        _ => Ok(()),
    }
}

async fn set_extends(t: &Transaction<'_>, name: &str, extends: Option<&str>) -> Result<(), StoreError> {
    if let Some(parent) = extends
        && t.query_opt("SELECT 1 FROM plans WHERE name = $1", &[&parent]).await?.is_none()
    {
        return Err(StoreError::not_found("plan", parent));
    }
    t.execute("UPDATE plans SET extends = $2 WHERE name = $1", &[&name, &extends]).await?;
    // Circles show only in the whole.
    resolved(t).await.map(|_| ())
}

/// The plans as routers see them.
pub(crate) async fn resolved(client: &impl GenericClient) -> Result<Plans, StoreError> {
    let sql = "SELECT name, extends, limits, (SELECT default_plan FROM settings) FROM plans ORDER BY name";
    let rows = client.query(sql, &[]).await?;
    let default = rows.first().and_then(|r| r.get(3));
    let said =
        |r: &Row| Ok(Said { name: r.get(0), extends: r.get(1), limits: from_json("limits", r.get(2))? });
    let plans = rows.iter().map(said).collect::<Result<Vec<_>, StoreError>>()?;
    Plans::new(plans, default).map_err(|e| StoreError::invalid("extends", format!("is refused: {e}")))
}

async fn all(client: &impl GenericClient) -> Result<Vec<Plan>, StoreError> {
    let sql = format!(
        "SELECT name, description, extends, limits, {} AS created_at,
                (SELECT count(*) FROM tenants t WHERE t.plan = p.name) AS tenants,
                name IS NOT DISTINCT FROM (SELECT default_plan FROM settings) AS is_default
         FROM plans p ORDER BY name",
        timestamp("created_at")
    );
    let plans = resolved(client).await?;
    let plan = |r: &Row| {
        let name: String = r.get("name");
        Ok(Plan {
            description: r.get("description"),
            extends: r.get("extends"),
            limits: from_json("limits", r.get("limits"))?,
            effective: plans.said_by(&name).map(Limits::of).transpose()?.unwrap_or_default(),
            default: r.get("is_default"),
            tenants: r.get("tenants"),
            created_at: r.get("created_at"),
            name,
        })
    };
    client.query(&sql, &[]).await?.iter().map(plan).collect()
}

async fn read(client: &impl GenericClient, name: &str) -> Result<Plan, StoreError> {
    let found = all(client).await?.into_iter().find(|p| p.name == name);
    found.ok_or_else(|| StoreError::not_found("plan", name))
}

async fn limits_of(client: &impl GenericClient, id: &str) -> Result<TenantLimits, StoreError> {
    let sql = "SELECT plan, limits, restriction FROM tenants WHERE id = $1";
    let row = client.query_opt(sql, &[&id]).await?.ok_or_else(|| StoreError::not_found("tenant", id))?;
    let plan: Option<String> = row.get(0);
    let own: Option<LimitSet> = row.get::<_, Option<Value>>(1).map(|v| from_json("limits", v)).transpose()?;
    let own = own.unwrap_or_default();
    let plans = resolved(client).await?;
    let by_plan = plan.as_deref().and_then(|p| plans.said_by(p));
    let by_plan = by_plan.or_else(|| plans.said_by(plans.default_plan()?));
    let effective = by_plan.map_or_else(|| own.clone(), |said| own.over(said));
    Ok(TenantLimits {
        own: Limits::of(&own)?,
        effective: Limits::of(&effective)?,
        restriction: row.get::<_, Option<Value>>(2).map(|v| from_json("restriction", v)).transpose()?,
        plan,
    })
}
