//! Settings and issuers that all tenants share, and how much there is of everything.

use deadpool_postgres::GenericClient;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use switchyard_config::topology::{ContextTemplate, UnknownTenants};
use utoipa::ToSchema;

use super::audit::{Deed, NONE, record};
use super::tenants::{check_template, from_json, named_issuer, to_json};
use super::{Caller, Store, StoreError, given, lock_version};

/// What to change of the settings.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SettingsPatch {
    /// The context of tenants that have none of their own.
    #[schema(value_type = Option<Object>)]
    pub context: Option<ContextTemplate>,
    /// `refuse` or `create`.
    #[schema(value_type = Option<String>)]
    pub unknown_tenants: Option<UnknownTenants>,
    /// The plan of tenants that have none; `null` for no plan.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub default_plan: Option<Option<String>>,
    /// Where new tenants go that do not say: `bucket`, or `least-loaded`.
    #[schema(pattern = "^(bucket|least-loaded)$")]
    pub placement: Option<String>,
    /// How a new tenant's place on its shard is made ready.
    pub provision: Option<Provision>,
}

/// How a new tenant's place on its shard is made ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Provision {
    /// SQL that makes the tables, for a schema or a database per tenant. It runs as the shard's
    /// administrator, with that schema as the search path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_sql: Option<String>,
    /// SQL that writes a tenant's first rows. It runs as the routers' role, in the tenant's context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed_sql: Option<String>,
    /// The database that a tenant's own is made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_database: Option<String>,
    /// The column that tells tenants apart in shared tables. Default `tenant_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_column: Option<String>,
}

/// The issuers whose tokens are accepted for all tenants.
#[derive(Debug, Serialize, ToSchema)]
pub struct Issuers {
    /// Their names.
    pub items: Vec<String>,
    /// Changes with any of them, their keys included.
    pub digest: String,
}

/// How much there is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Counts {
    /// The version that routers should have.
    pub version: i64,
    /// Shards.
    pub shards: i64,
    /// Tenants.
    pub tenants: i64,
    /// Of these, suspended.
    pub suspended: i64,
    /// Placements that are not by bucket.
    pub placements: i64,
    /// Users.
    pub users: i64,
}

impl Store {
    /// The version and how much there is.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        let sql = "SELECT (SELECT version FROM topology_version),
                          (SELECT count(*) FROM shards),
                          (SELECT count(*) FROM tenants),
                          (SELECT count(*) FROM tenants WHERE state = 'suspended'),
                          (SELECT count(*) FROM placements),
                          (SELECT count(*) FROM users)";
        let r = self.client().await?.query_one(sql, &[]).await?;
        Ok(Counts {
            version: r.get(0),
            shards: r.get(1),
            tenants: r.get(2),
            suspended: r.get(3),
            placements: r.get(4),
            users: r.get(5),
        })
    }

    /// The settings.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn settings(&self) -> Result<SettingsPatch, StoreError> {
        read_settings(&self.client().await?).await
    }

    /// The context of tenants that have none of their own, and how new ones are provisioned.
    ///
    /// # Errors
    /// If the catalog fails.
    pub(crate) async fn provisioning(&self) -> Result<(ContextTemplate, Provision), StoreError> {
        let settings = self.settings().await?;
        Ok((settings.context.unwrap_or_default(), settings.provision.unwrap_or_default()))
    }

    /// Changes what `patch` gives.
    ///
    /// # Errors
    /// If the context makes no sense, or the catalog fails.
    pub async fn update_settings(
        &self,
        caller: &Caller,
        patch: SettingsPatch,
    ) -> Result<SettingsPatch, StoreError> {
        if let Some(context) = &patch.context {
            check_template(context)?;
        }
        if patch.placement.as_deref().is_some_and(|p| p != "bucket" && p != "least-loaded") {
            return Err(StoreError::invalid("placement", "must be `bucket` or `least-loaded`"));
        }
        let parts = patch.provision.iter().flat_map(|p| {
            [&p.schema_sql, &p.seed_sql, &p.template_database, &p.tenant_column].into_iter().flatten()
        });
        if parts.into_iter().any(|text| text.contains('\0')) {
            return Err(StoreError::invalid("provision", "must not contain NUL"));
        }
        let context = patch.context.as_ref().map(to_json).transpose()?;
        let provision = patch.provision.as_ref().map(to_json).transpose()?;
        let unknown = patch.unknown_tenants.map(|u| match u {
            UnknownTenants::Refuse => "refuse",
            UnknownTenants::Create => "create",
        });
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read_settings(&t).await?;
        caller.expects(&before)?;
        if let Some(Some(plan)) = &patch.default_plan
            && t.query_opt("SELECT 1 FROM plans WHERE name = $1", &[plan]).await?.is_none()
        {
            return Err(StoreError::not_found("plan", plan));
        }
        let sql = "UPDATE settings SET context = COALESCE($1, context),
                          unknown_tenants = COALESCE($2, unknown_tenants),
                          default_plan = CASE WHEN $3 THEN $4 ELSE default_plan END,
                          placement = COALESCE($5, placement), provision = COALESCE($6, provision)";
        let plan = (patch.default_plan.is_some(), patch.default_plan.clone().flatten());
        t.execute(sql, &[&context, &unknown, &plan.0, &plan.1, &patch.placement, &provision]).await?;
        let after = read_settings(&t).await?;
        record(&t, caller, deed("update", "settings", "all"), Some(&before), Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }

    /// The issuers whose tokens are accepted for all tenants.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn issuers(&self) -> Result<Issuers, StoreError> {
        read_issuers(&self.client().await?).await
    }

    /// Adds an issuer, or puts it in place of the one by that name.
    ///
    /// # Errors
    /// If `doc` makes no sense, or the catalog fails.
    pub async fn put_issuer(&self, caller: &Caller, name: &str, doc: Value) -> Result<(), StoreError> {
        let doc = named_issuer(name, doc)?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        caller.expects(&read_issuers(&t).await?)?;
        let sql =
            "INSERT INTO jwt_issuers VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET doc = excluded.doc";
        t.execute(sql, &[&name, &doc]).await?;
        record(&t, caller, deed("put", "issuer", name), NONE, NONE).await?;
        Ok(t.commit().await?)
    }

    /// Trusts an issuer no more.
    ///
    /// # Errors
    /// If there is none by that name, or the catalog fails.
    pub async fn delete_issuer(&self, caller: &Caller, name: &str) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        caller.expects(&read_issuers(&t).await?)?;
        if t.execute("DELETE FROM jwt_issuers WHERE name = $1", &[&name]).await? == 0 {
            return Err(StoreError::not_found("issuer", name));
        }
        record(&t, caller, deed("delete", "issuer", name), NONE, NONE).await?;
        Ok(t.commit().await?)
    }
}

fn deed<'a>(action: &'static str, kind: &'static str, target: &'a str) -> Deed<'a> {
    Deed::new(action, kind, target)
}

async fn read_issuers(client: &impl GenericClient) -> Result<Issuers, StoreError> {
    let sql = "SELECT coalesce(array_agg(name ORDER BY name), '{}'),
                      left(encode(sha256(convert_to(coalesce(string_agg(doc::text, ',' ORDER BY name), ''), 'UTF8')),
                                  'hex'), 16) FROM jwt_issuers";
    let row = client.query_one(sql, &[]).await?;
    Ok(Issuers { items: row.get(0), digest: row.get(1) })
}

async fn read_settings(client: &impl GenericClient) -> Result<SettingsPatch, StoreError> {
    let sql = "SELECT context, unknown_tenants, default_plan, placement, provision FROM settings";
    let row = client.query_one(sql, &[]).await?;
    Ok(SettingsPatch {
        context: Some(from_json("context", row.get(0))?),
        unknown_tenants: Some(from_json("unknown_tenants", Value::String(row.get(1)))?),
        default_plan: Some(row.get(2)),
        placement: Some(row.get(3)),
        provision: Some(from_json("provision", row.get(4))?),
    })
}
