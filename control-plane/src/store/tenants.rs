//! Tenants and their placements.

use deadpool_postgres::{GenericClient, Transaction};
use serde::de::DeserializeOwned;
use serde_json::Value;
use switchyard_catalog::docs::JwtIssuerDoc;
use switchyard_config::TenantId;
use switchyard_config::template::check_context;
use switchyard_config::topology::{ContextTemplate, PoolMode, TenantState};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::audit::{Deed, NONE, record, refuse};
use super::buckets::bucket_shards;
use super::moves::none_of_tenant;
use super::operations::{cancel_open, insert_operation};
use super::users::insert_user;
use super::{
    Caller, NewOperation, NewTenant, NewUser, Operation, PlacedBy, Secrets, Store, StoreError, Tenant,
    TenantFilter, TenantPatch, User, lock_version, timestamp,
};

/// Tenants read at a time while a list is filtered.
const PAGE: i64 = 1000;

impl Store {
    /// The tenants that `filter` lets through, by id, and where to go on if there are more.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn tenants(
        &self,
        filter: &TenantFilter,
        after: &str,
        limit: usize,
    ) -> Result<(Vec<Tenant>, Option<String>), StoreError> {
        let client = self.client().await?;
        let buckets = bucket_shards(&client).await?;
        let sql = format!(
            "{} WHERE t.id > $1 AND ($2::text IS NULL OR t.state = $2) AND ($4::text IS NULL OR t.plan = $4)
               AND ($5::text IS NULL OR strpos(lower(t.id), lower($5)) > 0 OR strpos(lower(t.name), lower($5)) > 0)
             ORDER BY t.id LIMIT $3",
            select()
        );
        let state = filter.state.map(TenantState::as_str);
        let mut after = after.to_owned();
        let mut found = Vec::new();
        loop {
            let rows = client.query(&sql, &[&after, &state, &PAGE, &filter.plan, &filter.search]).await?;
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
        check_name(new.name.as_deref())?;
        let limits = new.limits.checked()?;
        let limits = if limits.is_empty() { None } else { Some(to_json(&limits)?) };
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        check_plan(&t, new.plan.as_deref()).await?;
        let sql = "INSERT INTO tenants (id, name, pool_mode, context, jwt, plan, limits)
                   VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING";
        let context = new.context.as_ref().map(to_json).transpose()?;
        let pool_mode = new.pool_mode.map(pool_mode_name);
        let jwt = Value::Array(new.jwt);
        let plan = &new.plan;
        let values: [&(dyn ToSql + Sync); 7] =
            [&id.as_str(), &new.name, &pool_mode, &context, &jwt, plan, &limits];
        if t.execute(sql, &values).await? == 0 {
            return Err(StoreError::exists("tenant", &new.id));
        }
        if let Some(shard) = match new.shard {
            Some(shard) => Some(shard),
            None => shard_by_policy(&t, &id).await?,
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
        check_name(patch.name.as_ref().and_then(Option::as_deref))?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, id).await?;
        caller.expects(&before)?;
        if let Some(plan) = &patch.plan {
            check_plan(&t, plan.as_deref()).await?;
        }
        let context = patch.context.as_ref().map(|c| c.as_ref().map(to_json).transpose()).transpose()?;
        let sql = "UPDATE tenants SET
                       name = CASE WHEN $2 THEN $3 ELSE name END,
                       pool_mode = CASE WHEN $4 THEN $5 ELSE pool_mode END,
                       context = CASE WHEN $6 THEN $7 ELSE context END,
                       jwt = COALESCE($8, jwt),
                       plan = CASE WHEN $9 THEN $10 ELSE plan END
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
                &patch.plan.is_some(),
                &patch.plan.flatten(),
            ],
        )
        .await?;
        finish(t, caller, "update", before).await
    }

    /// Suspends a tenant, makes it read-only or resumes it. Nothing happens if it is so already.
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
        if before.state == TenantState::Deleting || state == TenantState::Deleting {
            return Err(StoreError::Conflict(format!("tenant `{id}` is being deleted; `undelete` it first")));
        }
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
        caller.expects(&before)?;
        if before.placed_by == PlacedBy::Placement && before.shard.as_deref() == Some(shard) {
            return Ok(before);
        }
        none_of_tenant(&t, id).await?;
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
        caller.expects(&before)?;
        none_of_tenant(&t, id).await?;
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

    /// Serves a tenant no more, and begins the operation that deletes its rows and takes it out of
    /// the catalog once `grace_seconds` are over.
    ///
    /// # Errors
    /// If there is no such tenant, it is being deleted already, the caller may not touch one of its users, or
    /// the catalog fails.
    pub async fn schedule_deletion(
        &self,
        caller: &Caller,
        id: &str,
        grace_seconds: f64,
        keep_data: bool,
    ) -> Result<Operation, StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, id).await?;
        caller.expects(&before)?;
        none_of_tenant(&t, id).await?;
        // Its own users go with it.
        let sql = "SELECT name, methods FROM users WHERE tenants = ARRAY[$1::text]";
        for row in t.query(sql, &[&id]).await? {
            if !caller.may_touch(&from_json("methods", row.get(1))?) {
                let what = "deleting the tenant of a user with a role in the console";
                return Err(refuse(t, caller, deed("schedule-deletion", id), Some(id), what).await);
            }
        }
        let operation = NewOperation {
            kind: "tenant.delete",
            target_kind: "tenant",
            target: id,
            tenant: Some(id),
            input: serde_json::json!({ "keep_data": keep_data, "grace_seconds": grace_seconds }),
            cancelable: true,
            delay_seconds: grace_seconds,
            next_steps: vec![format!("switchyard tenant undelete {}", shown(id))],
        };
        let operation = insert_operation(&t, caller, operation).await?;
        let sql = "UPDATE tenants SET state_before = state, state = 'deleting',
                          delete_after = now() + make_interval(secs => $2) WHERE id = $1";
        t.execute(sql, &[&id, &grace_seconds]).await?;
        finish(t, caller, "schedule-deletion", before).await?;
        Ok(operation)
    }

    /// Serves a tenant again as before, as long as nothing of it has been deleted yet.
    ///
    /// # Errors
    /// If there is no such tenant, it is not being deleted or that has begun, or the catalog fails.
    pub async fn undelete(&self, caller: &Caller, id: &str) -> Result<Tenant, StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, id).await?;
        if before.state != TenantState::Deleting {
            return Err(StoreError::Conflict(format!("tenant `{id}` is not being deleted")));
        }
        let sql = "SELECT id FROM operations WHERE kind = 'tenant.delete' AND target = $1
                   AND finished_at IS NULL AND started_at IS NOT NULL FOR UPDATE";
        if let Some(row) = t.query_opt(sql, &[&id]).await? {
            return Err(StoreError::Busy { operation: row.get(0), target: format!("tenant {id}") });
        }
        cancel_open(&t, "tenant.delete", "tenant", id).await?;
        let sql = "UPDATE tenants SET state = COALESCE(state_before, 'suspended'), state_before = NULL,
                          delete_after = NULL WHERE id = $1";
        t.execute(sql, &[&id]).await?;
        finish(t, caller, "undelete", before).await
    }

    /// Puts an issuer into a tenant's own, in place of the one by that name, or takes it away.
    ///
    /// # Errors
    /// If there is no such tenant or issuer, it makes no sense, or the catalog fails.
    pub async fn set_tenant_issuer(
        &self,
        caller: &Caller,
        id: &str,
        name: &str,
        doc: Option<Value>,
    ) -> Result<Tenant, StoreError> {
        let doc = doc.map(|doc| named_issuer(name, doc)).transpose()?;
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let before = read(&t, id).await?;
        caller.expects(&before)?;
        if doc.is_none() && !before.jwt_issuers.iter().any(|i| i == name) {
            return Err(StoreError::not_found("issuer", name));
        }
        let action = if doc.is_some() { "put-issuer" } else { "delete-issuer" };
        let sql =
            "UPDATE tenants SET jwt = (SELECT COALESCE(jsonb_agg(j), '[]') FROM jsonb_array_elements(jwt) j
                          WHERE j ->> 'name' IS DISTINCT FROM $2) || COALESCE($3, '[]'::jsonb) WHERE id = $1";
        t.execute(sql, &[&id, &name, &doc.map(|d| Value::Array(vec![d]))]).await?;
        finish(t, caller, action, before).await
    }
}

/// An id as a shell takes it.
fn shown(id: &str) -> String {
    let plain =
        id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@:/".contains(&b)) && !id.starts_with('-');
    if plain { id.to_owned() } else { format!("-- '{}'", id.replace('\'', "'\\''")) }
}

pub(super) fn check_name(name: Option<&str>) -> Result<(), StoreError> {
    match name {
        Some(name) if name.len() > 256 || name.chars().any(char::is_control) => {
            Err(StoreError::invalid("name", "must be at most 256 bytes on one line"))
        }
        _ => Ok(()),
    }
}

async fn check_plan(t: &Transaction<'_>, plan: Option<&str>) -> Result<(), StoreError> {
    match plan {
        Some(plan) if t.query_opt("SELECT 1 FROM plans WHERE name = $1", &[&plan]).await?.is_none() => {
            Err(StoreError::not_found("plan", plan))
        }
        _ => Ok(()),
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
    Deed::new(action, "tenant", target)
}

/// The shard of a new tenant that does not say, unless its bucket says it: by the policy
/// `least-loaded`, and where its bucket's shard takes no new tenants, the one with the least on it.
async fn shard_by_policy(t: &Transaction<'_>, id: &TenantId) -> Result<Option<String>, StoreError> {
    let policy: String = t.query_one("SELECT placement FROM settings", &[]).await?.get(0);
    let sql = "SELECT s.cordoned FROM buckets b JOIN shards s ON s.name = b.shard WHERE b.bucket = $1";
    match t.query_opt(sql, &[&i32::from(id.bucket().0)]).await? {
        Some(row) if row.get::<_, bool>(0) || policy == "least-loaded" => {}
        _ => return Ok(None),
    }
    // Tenants that are placed, by their own weights, in relation to the shard's.
    let sql = "SELECT s.name FROM shards s LEFT JOIN placements p ON p.shard = s.name
               LEFT JOIN tenants t ON t.id = p.tenant
               LEFT JOIN plans l ON l.name = COALESCE(t.plan, (SELECT default_plan FROM settings))
               WHERE NOT s.cordoned GROUP BY s.name
               ORDER BY sum(CASE WHEN t.id IS NULL THEN 0 ELSE
                        COALESCE((t.limits ->> 'weight')::float8, (l.limits ->> 'weight')::float8, 100) END) / s.weight,
                        s.name LIMIT 1";
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
        "SELECT t.id, t.name, t.state, t.pool_mode, t.context, p.shard, coalesce(p.epoch, d.epoch, 0) AS epoch,
                t.plan, {} AS created_at,
                {} AS delete_after,
                ARRAY(SELECT j ->> 'name' FROM jsonb_array_elements(t.jwt) j) AS jwt_issuers,
                CASE WHEN t.jwt <> '[]' THEN left(encode(sha256(convert_to(t.jwt::text, 'UTF8')), 'hex'), 16) END AS jwt_digest
         FROM tenants t LEFT JOIN placements p ON p.tenant = t.id
         LEFT JOIN deleted d ON d.kind = 'placement' AND d.id = t.id",
        timestamp("t.created_at"),
        timestamp("t.delete_after")
    )
}

pub(super) async fn read(client: &impl GenericClient, id: &str) -> Result<Tenant, StoreError> {
    let row = client.query_opt(&format!("{} WHERE t.id = $1", select()), &[&id]).await?;
    let row = row.ok_or_else(|| StoreError::not_found("tenant", id))?;
    // There are thousands of buckets, and who is placed lives in none.
    let buckets = match row.get::<_, Option<&str>>("shard") {
        Some(_) => Vec::new(),
        None => bucket_shards(client).await?,
    };
    tenant(&row, &buckets)
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
        epoch: row.get("epoch"),
        bucket,
        pool_mode: text("pool_mode").map(|v| from_json("pool_mode", v)).transpose()?,
        context: row.get::<_, Option<Value>>("context").map(|v| from_json("context", v)).transpose()?,
        jwt_issuers: row.get::<_, Vec<Option<String>>>("jwt_issuers").into_iter().flatten().collect(),
        jwt_digest: row.get("jwt_digest"),
        plan: row.get("plan"),
        delete_after: row.get("delete_after"),
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

/// An issuer's document with its name in it, if it makes sense.
pub(super) fn named_issuer(name: &str, mut doc: Value) -> Result<Value, StoreError> {
    if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
        return Err(StoreError::invalid("name", "must be 1 to 128 bytes on one line"));
    }
    if let Some(fields) = doc.as_object_mut() {
        fields.insert("name".to_owned(), name.into());
    }
    check_issuer("issuer", &doc)?;
    Ok(doc)
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
