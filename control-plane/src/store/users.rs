//! Users whom clients may log in as.

use deadpool_postgres::{GenericClient, Transaction};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use switchyard_config::TenantId;
use switchyard_config::topology::LoginMethods;
use switchyard_config::verifier::{check_verifier, parse_scram_keys};
use switchyard_wire::scram::Verifier;
use tokio_postgres::Row;

use super::audit::{Deed, NONE, record_of, refuse};
use super::tenants::{from_json, pool_mode_name, to_json};
use super::{Caller, NewUser, Secrets, Store, StoreError, User, UserPatch, lock_version, timestamp};
use crate::credentials::new_password;

/// Iterations of verifiers that we make: PostgreSQL's `SCRAM_SHA_256_DEFAULT_ITERATIONS`
/// (src/include/common/scram-common.h).
const ITERATIONS: u32 = 4096;

/// What only administrators may have to do with.
const CONSOLE_USER: &str = "a user with a role in the console";

/// Longest name of a user, in bytes.
const MAX_NAME_BYTES: usize = 256;

impl Store {
    /// Users by name behind `after`, of one tenant if given; at most `limit`.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn users(
        &self,
        after: &str,
        tenant: Option<&str>,
        limit: i64,
    ) -> Result<Vec<User>, StoreError> {
        let sql = format!(
            "{} WHERE name > $1 AND ($2::text IS NULL OR tenants @> ARRAY[$2::text]) ORDER BY name LIMIT $3",
            select()
        );
        self.client().await?.query(&sql, &[&after, &tenant, &limit]).await?.iter().map(user).collect()
    }

    /// One user.
    ///
    /// # Errors
    /// If there is none, or the catalog fails.
    pub async fn user(&self, name: &str) -> Result<User, StoreError> {
        read(&self.client().await?, name).await
    }

    /// Makes a user.
    ///
    /// # Errors
    /// If there is one by that name, the caller may not make such a user, a part of it makes no sense, or the catalog fails.
    pub async fn create_user(&self, caller: &Caller, new: NewUser) -> Result<(User, Secrets), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        if !caller.may_touch(&new.methods) {
            return Err(refuse(t, caller, Deed::new("create", "user", &new.name), None, CONSOLE_USER).await);
        }
        let made = insert_user(&t, caller, new).await?;
        t.commit().await?;
        Ok(made)
    }

    /// Gives a user a new password, which is returned this once.
    ///
    /// # Errors
    /// If there is no such user, the caller may not touch it, or the catalog fails.
    pub async fn reset_password(&self, caller: &Caller, name: &str) -> Result<(User, Secrets), StoreError> {
        let password = new_password()?;
        let verifier = verifier_of(&password);
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let deed = Deed::new("reset-password", "user", name);
        let before = read(&t, name).await?;
        if !caller.may_touch(&before.methods) {
            return Err(refuse(t, caller, deed, only(&before), CONSOLE_USER).await);
        }
        caller.expects(&before)?;
        t.execute("UPDATE users SET verifier = $2 WHERE name = $1", &[&name, &verifier]).await?;
        let after = read(&t, name).await?;
        record_of(&t, caller, deed, only(&after), Some(&before), Some(&after)).await?;
        t.commit().await?;
        Ok((after, Secrets { password: Some(password) }))
    }

    /// Changes what is given.
    ///
    /// # Errors
    /// If there is no such user, the caller may not have to do with what it is or would be, what it would be makes no
    /// sense, or the catalog fails.
    pub async fn update_user(
        &self,
        caller: &Caller,
        name: &str,
        patch: UserPatch,
    ) -> Result<User, StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let deed = Deed::new("update", "user", name);
        let before = read(&t, name).await?;
        let methods = patch.methods.unwrap_or_default().apply_to(&before.methods);
        if !caller.may_touch(&before.methods) || !caller.may_touch(&methods) {
            return Err(refuse(t, caller, deed, only(&before), CONSOLE_USER).await);
        }
        caller.expects(&before)?;
        let any_tenant = patch.any_tenant.unwrap_or(before.any_tenant && patch.tenants.is_none());
        let kept = || if any_tenant { Vec::new() } else { before.tenants.clone() };
        let tenants = patch.tenants.unwrap_or_else(kept);
        check_tenants(&t, any_tenant, &tenants, &methods).await?;
        let has_password = patch.verifier.as_ref().map_or(before.password, Option::is_some);
        if !has_password && !methods.jwt && !methods.cert && !methods.trust {
            return Err(StoreError::invalid("methods", "would leave it no way to log in"));
        }
        let verifier = patch.verifier.as_ref().map(Option::as_ref);
        if let Some(Some(verifier)) = verifier {
            check_verifier(verifier.expose_secret()).map_err(|e| StoreError::invalid("verifier", e))?;
        }
        let server_user = patch.server_user.clone().unwrap_or_else(|| before.server_user.clone());
        let server_password = match patch.server_user {
            Some(None) => Some(patch.server_password.flatten()),
            _ => patch.server_password,
        };
        check_server_login(server_user.as_deref(), server_password.as_ref().and_then(Option::as_ref))?;
        let sql = "UPDATE users SET
                       verifier = CASE WHEN $2 THEN $3 ELSE verifier END,
                       methods = $4, any_tenant = $5, tenants = $6,
                       pool_mode = CASE WHEN $7 THEN $8 ELSE pool_mode END,
                       server_user = $9,
                       server_password = CASE WHEN $10 THEN $11 ELSE server_password END
                   WHERE name = $1";
        t.execute(
            sql,
            &[
                &name,
                &verifier.is_some(),
                &verifier.flatten().map(ExposeSecret::expose_secret),
                &to_json(&methods)?,
                &any_tenant,
                &tenants,
                &patch.pool_mode.is_some(),
                &patch.pool_mode.flatten().map(pool_mode_name),
                &server_user,
                &server_password.is_some(),
                &server_password.as_ref().and_then(Option::as_ref).map(ExposeSecret::expose_secret),
            ],
        )
        .await?;
        let after = read(&t, name).await?;
        let of = only(&after).or_else(|| only(&before));
        record_of(&t, caller, deed, of, Some(&before), Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }

    /// Takes a user away. Its open sessions end as soon as routers hear of it.
    ///
    /// # Errors
    /// If there is none, the caller may not touch it, or the catalog fails.
    pub async fn delete_user(&self, caller: &Caller, name: &str) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let deed = Deed::new("delete", "user", name);
        let before = read(&t, name).await?;
        if !caller.may_touch(&before.methods) {
            return Err(refuse(t, caller, deed, only(&before), CONSOLE_USER).await);
        }
        caller.expects(&before)?;
        t.execute("DELETE FROM users WHERE name = $1", &[&name]).await?;
        record_of(&t, caller, deed, only(&before), Some(&before), NONE).await?;
        Ok(t.commit().await?)
    }
}

pub(super) async fn insert_user(
    t: &Transaction<'_>,
    caller: &Caller,
    new: NewUser,
) -> Result<(User, Secrets), StoreError> {
    check(&new)?;
    check_tenants(t, new.any_tenant, &new.tenants, &new.methods).await?;
    let (verifier, secrets) = proof(&new)?;
    let sql = "INSERT INTO users (name, verifier, methods, any_tenant, tenants, pool_mode, server_user, server_password)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (name) DO NOTHING";
    let made = t
        .execute(
            sql,
            &[
                &new.name,
                &verifier,
                &to_json(&new.methods)?,
                &new.any_tenant,
                &new.tenants,
                &new.pool_mode.map(pool_mode_name),
                &new.server_user,
                &new.server_password.as_ref().map(ExposeSecret::expose_secret),
            ],
        )
        .await?;
    if made == 0 {
        return Err(StoreError::exists("user", &new.name));
    }
    let user = read(t, &new.name).await?;
    let deed = Deed::new("create", "user", &user.name);
    record_of(t, caller, deed, only(&user), NONE, Some(&user)).await?;
    Ok((user, secrets))
}

/// The one tenant that a user may act for, if it is just one.
fn only(user: &User) -> Option<&str> {
    match user.tenants.as_slice() {
        [tenant] => Some(tenant),
        _ => None,
    }
}

fn check(new: &NewUser) -> Result<(), StoreError> {
    if new.name.is_empty() || new.name.len() > MAX_NAME_BYTES || new.name.chars().any(char::is_control) {
        return Err(StoreError::invalid("name", "must be 1 to 256 bytes on one line"));
    }
    if new.password.is_some() && new.verifier.is_some() {
        return Err(StoreError::invalid("password", "and `verifier` exclude each other"));
    }
    check_server_login(new.server_user.as_deref(), new.server_password.as_ref())
}

/// For whom a user may act: everybody, or tenants, all of which must exist; an unknown one would never be let in, or,
/// worse, be made. Nobody at all will do for who has a role in the console.
async fn check_tenants(
    t: &Transaction<'_>,
    any: bool,
    tenants: &[String],
    methods: &LoginMethods,
) -> Result<(), StoreError> {
    if any && !tenants.is_empty() {
        return Err(StoreError::invalid("tenants", "and `any_tenant` exclude each other"));
    }
    if !any && tenants.is_empty() && methods.console.is_none() {
        let why =
            "must name tenants, unless `any_tenant` is true or `methods` gives it a role in the console";
        return Err(StoreError::invalid("tenants", why));
    }
    for tenant in tenants {
        TenantId::new(tenant).map_err(|e| StoreError::invalid("tenants", e))?;
    }
    let sql = "SELECT id FROM unnest($1::text[]) AS asked(id) WHERE id NOT IN (SELECT id FROM tenants)";
    match t.query(sql, &[&tenants]).await?.first() {
        Some(missing) => Err(StoreError::not_found("tenant", missing.get(0))),
        None => Ok(()),
    }
}

fn check_server_login(user: Option<&str>, password: Option<&SecretString>) -> Result<(), StoreError> {
    if password.is_some() && user.is_none() {
        return Err(StoreError::invalid("server_password", "needs a `server_user`"));
    }
    match password.map(ExposeSecret::expose_secret) {
        Some(keys) if keys.starts_with("SCRAM-SHA-256") => {
            parse_scram_keys(keys).map(|_| ()).map_err(|e| StoreError::invalid("server_password", e))
        }
        _ => Ok(()),
    }
}

/// What is kept to check the user's password by, and what is told of it.
fn proof(new: &NewUser) -> Result<(Option<String>, Secrets), StoreError> {
    let nothing = Secrets { password: None };
    if let Some(verifier) = &new.verifier {
        let text = verifier.expose_secret();
        check_verifier(text).map_err(|e| StoreError::invalid("verifier", e))?;
        return Ok((Some(text.to_owned()), nothing));
    }
    if let Some(password) = &new.password {
        if password.expose_secret().is_empty() {
            return Err(StoreError::invalid("password", "must not be empty"));
        }
        return Ok((Some(verifier_of(password)), nothing));
    }
    if new.methods.jwt || new.methods.cert || new.methods.trust {
        return Ok((None, nothing));
    }
    let password = new_password()?;
    Ok((Some(verifier_of(&password)), Secrets { password: Some(password) }))
}

fn verifier_of(password: &SecretString) -> String {
    Verifier::from_password(password.expose_secret().as_bytes(), ITERATIONS).to_string()
}

fn select() -> String {
    format!(
        "SELECT name, verifier IS NOT NULL AS password, methods, any_tenant, tenants, pool_mode, server_user,
                {} AS created_at FROM users",
        timestamp("created_at")
    )
}

async fn read(client: &impl GenericClient, name: &str) -> Result<User, StoreError> {
    let row = client.query_opt(&format!("{} WHERE name = $1", select()), &[&name]).await?;
    user(&row.ok_or_else(|| StoreError::not_found("user", name))?)
}

fn user(row: &Row) -> Result<User, StoreError> {
    let mode = row.get::<_, Option<String>>("pool_mode").map(Value::String);
    Ok(User {
        name: row.get("name"),
        password: row.get("password"),
        methods: from_json("methods", row.get("methods"))?,
        any_tenant: row.get("any_tenant"),
        tenants: row.get("tenants"),
        pool_mode: mode.map(|m| from_json("pool_mode", m)).transpose()?,
        server_user: row.get("server_user"),
        created_at: row.get("created_at"),
    })
}
