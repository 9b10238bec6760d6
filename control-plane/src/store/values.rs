//! Values that applications read, tenant by tenant. Secret ones are sealed by a data key of the
//! tenant's own, which is sealed by a key that only the control plane holds.

use deadpool_postgres::{GenericClient, Transaction};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::audit::{Deed, NONE, record_of};
use super::{Caller, Store, StoreError, timestamp};
use crate::vault::{self, KEY_BYTES, Key, Keys};

/// Largest value as JSON, in bytes.
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// Most values of a tenant.
const MAX_VALUES: i64 = 1000;

/// Longest name, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// Data keys sealed anew at a time.
const ROTATED_AT_A_TIME: i64 = 500;

/// A value, without what it is if that is secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct ValueInfo {
    /// Its name.
    pub name: String,
    /// Whether it is sealed.
    pub secret: bool,
    /// What it is, unless it is secret.
    #[schema(value_type = Option<Object>)]
    pub value: Option<Value>,
    /// Rises with every change.
    pub version: i64,
    /// When it was last changed, in UTC.
    pub changed_at: String,
    /// By whom.
    pub changed_by: String,
}

/// A value to be set.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewValue {
    /// Any JSON.
    #[schema(value_type = Object)]
    pub value: Value,
    /// Whether to seal it.
    #[serde(default)]
    pub secret: bool,
}

impl Store {
    /// All values of a tenant, by name, without those that are secret.
    ///
    /// # Errors
    /// If there is no such tenant, or the catalog fails.
    pub async fn values(&self, tenant: &str) -> Result<Vec<ValueInfo>, StoreError> {
        let client = self.client().await?;
        must_exist(&client, tenant).await?;
        let sql = format!("{} WHERE tenant = $1 ORDER BY name", select());
        Ok(client.query(&sql, &[&tenant]).await?.iter().map(info).collect())
    }

    /// Sets a value.
    ///
    /// # Errors
    /// If there is no such tenant, the value or its name is too large, it is to be sealed and there
    /// are no keys, or the catalog fails.
    pub async fn set_value(
        &self,
        caller: &Caller,
        tenant: &str,
        name: &str,
        new: NewValue,
    ) -> Result<ValueInfo, StoreError> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            let reason = format!("must be 1 to {MAX_NAME_BYTES} bytes on one line");
            return Err(StoreError::invalid("name", reason));
        }
        let text =
            Zeroizing::new(serde_json::to_vec(&new.value).map_err(|e| StoreError::invalid("value", e))?);
        if text.len() > MAX_VALUE_BYTES {
            return Err(StoreError::invalid("value", format!("must be at most {MAX_VALUE_BYTES} bytes")));
        }
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        must_exist(&t, tenant).await?;
        let before = read(&t, tenant, name).await?;
        if let Some(before) = &before {
            caller.expects(before)?;
        } else {
            let sql = "SELECT count(*) FROM tenant_values WHERE tenant = $1";
            if t.query_one(sql, &[&tenant]).await?.get::<_, i64>(0) >= MAX_VALUES {
                return Err(StoreError::Conflict(format!("a tenant has at most {MAX_VALUES} values")));
            }
        }
        let (plain, sealed) = if new.secret {
            let key = data_key(&t, self.keys()?, tenant).await?;
            (None, Some(vault::seal(&key, &bound("value", tenant, name), &text)?))
        } else {
            (Some(new.value), None)
        };
        let sql = "INSERT INTO tenant_values AS v (tenant, name, value, sealed, changed_by)
                   VALUES ($1, $2, $3, $4, $5)
                   ON CONFLICT (tenant, name) DO UPDATE SET value = excluded.value, sealed = excluded.sealed,
                       version = v.version + 1, changed_at = now(), changed_by = excluded.changed_by";
        t.execute(sql, &[&tenant, &name, &plain, &sealed, &caller.name]).await?;
        let after = read(&t, tenant, name).await?.ok_or_else(|| StoreError::not_found("value", name))?;
        let deed = Deed::new("set", "value", name);
        record_of(&t, caller, deed, Some(tenant), before.as_ref(), Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }

    /// Takes a value away.
    ///
    /// # Errors
    /// If there is none, or the catalog fails.
    pub async fn delete_value(&self, caller: &Caller, tenant: &str, name: &str) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        let before = read(&t, tenant, name).await?.ok_or_else(|| StoreError::not_found("value", name))?;
        caller.expects(&before)?;
        t.execute("DELETE FROM tenant_values WHERE tenant = $1 AND name = $2", &[&tenant, &name]).await?;
        let deed = Deed::new("delete", "value", name);
        record_of(&t, caller, deed, Some(tenant), Some(&before), NONE).await?;
        Ok(t.commit().await?)
    }

    /// What an application reads: a tenant's values by name, opened; or the one named. That secret
    /// ones were read is recorded first.
    ///
    /// # Errors
    /// If there is no such tenant or value, a value cannot be opened, or the catalog fails.
    pub async fn open_values(
        &self,
        caller: &Caller,
        tenant: &str,
        name: Option<&str>,
    ) -> Result<Map<String, Value>, StoreError> {
        let client = self.client().await?;
        must_exist(&client, tenant).await?;
        let sql = "SELECT v.name, v.value, v.sealed, k.kid, k.sealed FROM tenant_values v
                   LEFT JOIN data_keys k ON k.tenant = v.tenant
                   WHERE v.tenant = $1 AND ($2::text IS NULL OR v.name = $2) ORDER BY v.name";
        let rows = client.query(sql, &[&tenant, &name]).await?;
        drop(client);
        if let (Some(name), true) = (name, rows.is_empty()) {
            return Err(StoreError::not_found("value", name));
        }
        if rows.iter().any(|r| r.get::<_, Option<&[u8]>>(2).is_some()) {
            self.record_read(caller, "value", name.unwrap_or("all"), Some(tenant)).await?;
        }
        let mut values = Map::new();
        for row in &rows {
            let name: String = row.get(0);
            let value = match row.get::<_, Option<&[u8]>>(2) {
                None => row.get::<_, Option<Value>>(1).unwrap_or_default(),
                Some(sealed) => {
                    let unopened = || StoreError::Unopened { tenant: tenant.to_owned(), name: name.clone() };
                    let (kid, wrapped) = (row.get::<_, Option<&str>>(3), row.get::<_, Option<&[u8]>>(4));
                    let (kid, wrapped) = kid.zip(wrapped).ok_or_else(unopened)?;
                    let key = unwrap_key(self.keys()?, tenant, kid, wrapped).ok_or_else(unopened)?;
                    let text =
                        vault::open(&key, &bound("value", tenant, &name), sealed).ok_or_else(unopened)?;
                    serde_json::from_slice(&text).map_err(|_| unopened())?
                }
            };
            values.insert(name, value);
        }
        Ok(values)
    }

    /// Seals every data key, webhook secret and administrator's password that another key has sealed
    /// anew with the current one. How many there were.
    ///
    /// # Errors
    /// If there are no keys, one cannot be opened, or the catalog fails.
    pub async fn rotate_keys(&self, caller: &Caller) -> Result<u64, StoreError> {
        let keys = self.keys()?;
        let mut client = self.client().await?;
        let mut rotated = 0;
        loop {
            let t = client.transaction().await?;
            let sql = "SELECT tenant, kid, sealed FROM data_keys WHERE kid <> $1 LIMIT $2 FOR UPDATE";
            let rows = t.query(sql, &[&keys.current(), &ROTATED_AT_A_TIME]).await?;
            for row in &rows {
                let (tenant, kid, sealed): (&str, &str, &[u8]) = (row.get(0), row.get(1), row.get(2));
                let key = unwrap_key(keys, tenant, kid, sealed).ok_or_else(|| StoreError::Unopened {
                    tenant: tenant.to_owned(),
                    name: "its data key".to_owned(),
                })?;
                let (kid, sealed) = keys.seal(&bound("key", tenant, ""), key.bytes())?;
                let sql = "UPDATE data_keys SET kid = $2, sealed = $3, rotated_at = now() WHERE tenant = $1";
                t.execute(sql, &[&tenant, &kid, &sealed]).await?;
            }
            let sql = "SELECT name, kid, secret FROM webhooks WHERE kid <> $1 LIMIT $2 FOR UPDATE";
            let hooks = t.query(sql, &[&keys.current(), &ROTATED_AT_A_TIME]).await?;
            for row in &hooks {
                let (name, kid, sealed): (&str, &str, &[u8]) = (row.get(0), row.get(1), row.get(2));
                let secret = keys.open(kid, &bound("webhook", name, ""), sealed);
                let secret = secret.ok_or_else(|| StoreError::Unopened {
                    tenant: String::new(),
                    name: format!("the secret of webhook {name}"),
                })?;
                let (kid, sealed) = keys.seal(&bound("webhook", name, ""), &secret)?;
                t.execute(
                    "UPDATE webhooks SET kid = $2, secret = $3 WHERE name = $1",
                    &[&name, &kid, &sealed],
                )
                .await?;
            }
            rotated += (rows.len() + hooks.len()) as u64 + super::passwords::rotate(&t, keys).await?;
            let done = rows.is_empty() && hooks.is_empty();
            if done {
                let deed = Deed::new("rotate", "keys", keys.current());
                record_of(&t, caller, deed, None, NONE, Some(&serde_json::json!({ "sealed": rotated })))
                    .await?;
            }
            t.commit().await?;
            if done {
                return Ok(rotated);
            }
        }
    }

    pub(super) fn keys(&self) -> Result<&Keys, StoreError> {
        let none = || StoreError::Conflict("nothing can be sealed: `keys_file` is not configured".to_owned());
        self.keys.as_deref().ok_or_else(none)
    }
}

/// What a sealed text belongs to: it opens nowhere else.
pub(super) fn bound(kind: &str, tenant: &str, name: &str) -> Vec<u8> {
    format!("{kind}\0{tenant}\0{name}").into_bytes()
}

async fn must_exist(client: &impl GenericClient, tenant: &str) -> Result<(), StoreError> {
    let found = client.query_opt("SELECT 1 FROM tenants WHERE id = $1 FOR KEY SHARE", &[&tenant]).await?;
    found.map(|_| ()).ok_or_else(|| StoreError::not_found("tenant", tenant))
}

/// The tenant's data key, made if it has none yet.
async fn data_key(t: &Transaction<'_>, keys: &Keys, tenant: &str) -> Result<Key, StoreError> {
    let made = Key::random()?;
    let (kid, sealed) = keys.seal(&bound("key", tenant, ""), made.bytes())?;
    let sql = "INSERT INTO data_keys (tenant, kid, sealed) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    t.execute(sql, &[&tenant, &kid, &sealed]).await?;
    let row = t.query_one("SELECT kid, sealed FROM data_keys WHERE tenant = $1", &[&tenant]).await?;
    unwrap_key(keys, tenant, row.get(0), row.get(1))
        .ok_or_else(|| StoreError::Unopened { tenant: tenant.to_owned(), name: "its data key".to_owned() })
}

fn unwrap_key(keys: &Keys, tenant: &str, kid: &str, sealed: &[u8]) -> Option<Key> {
    let opened = keys.open(kid, &bound("key", tenant, ""), sealed)?;
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    if opened.len() != KEY_BYTES {
        return None;
    }
    bytes.copy_from_slice(&opened);
    Some(Key::new(bytes))
}

fn select() -> String {
    format!(
        "SELECT name, sealed IS NOT NULL, value, version, {}, changed_by FROM tenant_values",
        timestamp("changed_at")
    )
}

async fn read(
    client: &impl GenericClient,
    tenant: &str,
    name: &str,
) -> Result<Option<ValueInfo>, StoreError> {
    let sql = format!("{} WHERE tenant = $1 AND name = $2", select());
    Ok(client.query_opt(&sql, &[&tenant, &name]).await?.as_ref().map(info))
}

fn info(row: &tokio_postgres::Row) -> ValueInfo {
    ValueInfo {
        name: row.get(0),
        secret: row.get(1),
        value: row.get(2),
        version: row.get(3),
        changed_at: row.get(4),
        changed_by: row.get(5),
    }
}
