//! Tenants and their placements.

use deadpool_postgres::{GenericClient, Transaction};
use serde::de::DeserializeOwned;
use serde_json::Value;
use switchyard_catalog::docs::JwtIssuerDoc;
use switchyard_config::TenantId;
use switchyard_config::template::check_context;
use switchyard_config::topology::{ContextTemplate, PoolMode, TenantState};
use tokio_postgres::Row;

use super::audit::{Deed, NONE, record};
use super::buckets::bucket_shards;
use super::users::insert_user;
use super::{
    Caller, NewTenant, NewUser, PlacedBy, Secrets, Store, StoreError, Tenant, TenantFilter, TenantPatch,
    User, lock_version, timestamp,
};

/// Tenants read at a time while a list is filtered.
const PAGE: i64 = 1000;

impl Store {
    /// The tenants that `filter` lets through, by id, and where to go on if there are more.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn tenants(&self, filter: &TenantFilter) -> Result<(Vec<Tenant>, Option<String>), StoreError> {
        let limit = usize::from(filter.limit.unwrap_or(100).clamp(1, 1000));
        let client = self.client().await?;
        let buckets = bucket_shards(&client).await?;
        let sql = format!(
            "{} WHERE t.id > $1 AND ($2::text IS NULL OR t.state = $2) ORDER BY t.id LIMIT $3",
            select()
        );
        let state = filter.state.map(TenantState::as_str);
        let mut after = filter.after.clone().unwrap_or_default();
        let mut found = Vec::new();
        loop {
            let rows = client.query(&sql, &[&after, &state, &PAGE]).await?;
            for row in &rows {
                let tenant = tenant(row, &buckets)?;
                // A hash bucket cannot be told in SQL, so the shard is compared here.
                if filter.shard.is_none() || filter.shard == tenant.shard {
                    found.push(tenant);
                }
                if found.len() > limit {
                    found.truncate(limit);
                    let next = found.last().map(|t| t.id.clone());
                    return Ok((found, next));
                }
            }
            match rows.last() {
                Some(last) if rows.len() == PAGE as usize => after = last.get("id"),
                _ => return Ok((found, None)),
            }
        }
    }

    /// One tenant.
    ///
    /// # Errors
    /// If there is none, or the catalog fails.
    pub async fn tenant(&self, id: &str) -> Result<Tenant, StoreError> {
        read(&self.client().await?, id).await
    }

    /// Makes a tenant, with a user bound to it if `user` is given. It goes to the shard asked
    /// for, else to its bucket's, else (if that is cordoned) to the emptiest that is not.
    ///
    /// # Errors
    /// If there is one by that id, a part of it makes no sense, or the catalog fails.
    pub async fn create_tenant(
        &self,
        caller: &Caller,
        new: NewTenant,
        user: Option<NewUser>,
    ) -> Result<(Tenant, Option<(User, Secrets)>), StoreError> {
        let id = TenantId::new(&new.id).map_err(|e| StoreError::invalid("id", e))?;
        check(new.context.as_ref(), Some(&new.jwt))?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let sql = "INSERT INTO tenants (id, name, pool_mode, context, jwt) VALUES ($1, $2, $3, $4, $5)
                   ON CONFLICT (id) DO NOTHING";
        let context = new.context.as_ref().map(to_json).transpose()?;
        let pool_mode = new.pool_mode.map(pool_mode_name);
        let jwt = Value::Array(new.jwt);
        if t.execute(sql, &[&id.as_str(), &new.name, &pool_mode, &context, &jwt]).await? == 0 {
            return Err(StoreError::exists("tenant", &new.id));
        }
        if let Some(shard) = match new.shard {
            Some(shard) => Some(shard),
            None => instead_of_cordoned(&t, &id).await?,
        } {
            set_placement(&t, id.as_str(), &shard).await?;
        }
        let user = match user {
            Some(user) => Some(insert_user(&t, caller, user).await?),
            None => None,
        };
        let tenant = read(&t, id.as_str()).await?;
        record(&t, caller, deed("create", id.as_str()), NONE, Some(&tenant)).await?;
        t.commit().await?;
        Ok((tenant, user))
    }

    /// Changes what `patch` gives.
    ///
    /// # Errors
    /// If there is no such tenant, a part makes no sense, or the catalog fails.
    pub async fn update_tenant(
        &self,
        caller: &Caller,
        id: &str,
        patch: TenantPatch,
    ) -> Result<Tenant, StoreError> {
        check(patch.context.as_ref().and_then(Option::as_ref), patch.jwt.as_ref())?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, id).await?;
        let context = patch.context.as_ref().map(|c| c.as_ref().map(to_json).transpose()).transpose()?;
        let sql = "UPDATE tenants SET
                       name = CASE WHEN $2 THEN $3 ELSE name END,
                       pool_mode = CASE WHEN $4 THEN $5 ELSE pool_mode END,
                       context = CASE WHEN $6 THEN $7 ELSE context END,
                       jwt = COALESCE($8, jwt)
                   WHERE id = $1";
        t.execute(
            sql,
            &[
                &id,
                &patch.name.is_some(),
                &patch.name.flatten(),
                &patch.pool_mode.is_some(),
                &patch.pool_mode.flatten().map(pool_mode_name),
                &context.is_some(),
                &context.flatten(),
                &patch.jwt.map(Value::Array),
            ],
        )
        .await?;
        finish(t, caller, "update", before).await
    }

    /// Suspends a tenant or resumes it. Nothing happens if it is so already.
    ///
    /// # Errors
    /// If there is no such tenant, or the catalog fails.
    pub async fn set_state(
        &self,
        caller: &Caller,
        id: &str,
        state: TenantState,
    ) -> Result<Tenant, StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, id).await?;
        if before.state == state {
            return Ok(before);
        }
        t.execute("UPDATE tenants SET state = $2 WHERE id = $1", &[&id, &state.as_str()]).await?;
        let action = match state {
            TenantState::Active => "resume",
            TenantState::ReadOnly => "read-only",
            TenantState::Suspended | TenantState::Deleting => "suspend",
        };
        finish(t, caller, action, before).await
    }

    /// Gives a tenant a placement of its own and raises its epoch, unless it has it already. The
    /// tenant's rows are not moved by this. A cordoned shard is refused unless `force`.
    ///
    /// # Errors
    /// If there is no such tenant or shard, the shard is cordoned, or the catalog fails.
    pub async fn place(
        &self,
        caller: &Caller,
        id: &str,
        shard: &str,
        force: bool,
    ) -> Result<Tenant, StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, id).await?;
        if before.placed_by == PlacedBy::Placement && before.shard.as_deref() == Some(shard) {
            return Ok(before);
        }
        let row = t.query_opt("SELECT cordoned FROM shards WHERE name = $1", &[&shard]).await?;
        let cordoned: bool = row.ok_or_else(|| StoreError::not_found("shard", shard))?.get(0);
        if cordoned && !force {
            return Err(StoreError::Conflict(format!("shard `{shard}` is cordoned")));
        }
        set_placement(&t, id, shard).await?;
        finish(t, caller, "place", before).await
    }

    /// Takes a tenant out of the catalog, with the users that may act for it alone. Its rows on
    /// the shard stay.
    ///
    /// # Errors
    /// If there is no such tenant, or the catalog fails.
    pub async fn delete_tenant(&self, caller: &Caller, id: &str) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, id).await?;
        t.execute("DELETE FROM users WHERE tenants = ARRAY[$1::text]", &[&id]).await?;
        t.execute(
            "UPDATE users SET tenants = array_remove(tenants, $1) WHERE tenants @> ARRAY[$1::text]",
            &[&id],
        )
        .await?;
        t.execute("DELETE FROM tenants WHERE id = $1", &[&id]).await?;
        record(&t, caller, deed("delete", id), Some(&before), NONE).await?;
        Ok(t.commit().await?)
    }
}

async fn finish(
    t: deadpool_postgres::Transaction<'_>,
    caller: &Caller,
    action: &'static str,
    before: Tenant,
) -> Result<Tenant, StoreError> {
    let after = read(&t, &before.id).await?;
    record(&t, caller, deed(action, &before.id), Some(&before), Some(&after)).await?;
    t.commit().await?;
    Ok(after)
}

fn deed<'a>(action: &'static str, target: &'a str) -> Deed<'a> {
    Deed { action, kind: "tenant", target }
}

/// The emptiest shard that takes new tenants, if the one of `id`'s bucket does not.
async fn instead_of_cordoned(t: &Transaction<'_>, id: &TenantId) -> Result<Option<String>, StoreError> {
    let sql = "SELECT s.cordoned FROM buckets b JOIN shards s ON s.name = b.shard WHERE b.bucket = $1";
    match t.query_opt(sql, &[&i32::from(id.bucket().0)]).await? {
        Some(row) if row.get::<_, bool>(0) => {}
        _ => return Ok(None),
    }
    let sql = "SELECT s.name FROM shards s LEFT JOIN placements p ON p.shard = s.name
               WHERE NOT s.cordoned GROUP BY s.name ORDER BY count(p.tenant), s.name LIMIT 1";
    match t.query_opt(sql, &[]).await? {
        Some(row) => Ok(Some(row.get(0))),
        None => Err(StoreError::Conflict("every shard is cordoned".to_owned())),
    }
}

/// The epoch goes on from where it was, even if the tenant was deleted in between.
async fn set_placement(t: &Transaction<'_>, id: &str, shard: &str) -> Result<(), StoreError> {
    if t.query_opt("SELECT 1 FROM shards WHERE name = $1", &[&shard]).await?.is_none() {
        return Err(StoreError::not_found("shard", shard));
    }
    let sql = "INSERT INTO placements AS p (tenant, shard, epoch)
               VALUES ($1, $2, 1 + COALESCE((SELECT epoch FROM deleted WHERE kind = 'placement' AND id = $1), 0))
               ON CONFLICT (tenant) DO UPDATE SET shard = $2, epoch = p.epoch + 1, changed_at = now()";
    t.execute(sql, &[&id, &shard]).await?;
    Ok(())
}

fn select() -> String {
    format!(
        "SELECT t.id, t.name, t.state, t.pool_mode, t.context, p.shard, p.epoch, {} AS created_at,
                ARRAY(SELECT j ->> 'name' FROM jsonb_array_elements(t.jwt) j) AS jwt_issuers
         FROM tenants t LEFT JOIN placements p ON p.tenant = t.id",
        timestamp("t.created_at")
    )
}

async fn read(client: &impl GenericClient, id: &str) -> Result<Tenant, StoreError> {
    let row = client.query_opt(&format!("{} WHERE t.id = $1", select()), &[&id]).await?;
    let row = row.ok_or_else(|| StoreError::not_found("tenant", id))?;
    tenant(&row, &bucket_shards(client).await?)
}

fn tenant(row: &Row, buckets: &[String]) -> Result<Tenant, StoreError> {
    let id: String = row.get("id");
    let bucket = TenantId::new(&id).map_err(|e| StoreError::invalid("id", e))?.bucket().0;
    let placed: Option<String> = row.get("shard");
    let text = |column: &str| row.get::<_, Option<String>>(column).map(Value::String);
    Ok(Tenant {
        name: row.get("name"),
        state: from_json("state", Value::String(row.get("state")))?,
        placed_by: if placed.is_some() { PlacedBy::Placement } else { PlacedBy::Bucket },
        shard: placed.or_else(|| buckets.get(usize::from(bucket)).cloned()),
        epoch: row.get::<_, Option<i64>>("epoch").unwrap_or(0),
        bucket,
        pool_mode: text("pool_mode").map(|v| from_json("pool_mode", v)).transpose()?,
        context: row.get::<_, Option<Value>>("context").map(|v| from_json("context", v)).transpose()?,
        jwt_issuers: row.get::<_, Vec<Option<String>>>("jwt_issuers").into_iter().flatten().collect(),
        created_at: row.get("created_at"),
        id,
    })
}

fn check(context: Option<&ContextTemplate>, jwt: Option<&Vec<Value>>) -> Result<(), StoreError> {
    if let Some(context) = context {
        check_template(context)?;
    }
    for issuer in jwt.into_iter().flatten() {
        check_issuer("jwt", issuer)?;
    }
    Ok(())
}

/// Checks a context as the configuration file would.
pub(super) fn check_template(context: &ContextTemplate) -> Result<(), StoreError> {
    match check_context(context).into_iter().next() {
        None => Ok(()),
        Some(problem) => {
            let at = problem.entry.map(|e| format!(".{e}")).unwrap_or_default();
            Err(StoreError::invalid("context", format!("{}{at}: {}", problem.key, problem.message)))
        }
    }
}

pub(super) fn check_issuer(field: &'static str, issuer: &Value) -> Result<JwtIssuerDoc, StoreError> {
    from_json(field, issuer.clone())
}

/// serde's messages may quote the value, which here may be a key; so they are not passed on.
pub(super) fn from_json<T: DeserializeOwned>(field: &'static str, value: Value) -> Result<T, StoreError> {
    serde_json::from_value(value).map_err(|_| StoreError::invalid(field, "is not of the right form"))
}

pub(super) fn to_json<T: serde::Serialize>(value: &T) -> Result<Value, StoreError> {
    serde_json::to_value(value).map_err(|e| StoreError::invalid("context", e))
}

pub(super) fn pool_mode_name(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
    }
}
