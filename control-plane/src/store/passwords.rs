//! Passwords of the roles that administer shards: sealed in the catalog, by the control plane's keys.
//!
//! There are two on a shard: one makes tenants' places and measures them, the other is the mover's. Neither
//! is for routers, whose own must be in the catalog as it is.

use deadpool_postgres::{GenericClient, Transaction};
use secrecy::{ExposeSecret, SecretString};

use super::values::bound;
use super::{Store, StoreError};
use crate::vault::Keys;

/// Whose password it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Administrator {
    /// Makes and measures tenants' places.
    Places,
    /// Moves tenants.
    Moves,
}

impl Administrator {
    const ALL: [Self; 2] = [Self::Places, Self::Moves];

    fn bound(self, shard: &str) -> Vec<u8> {
        let kind = match self {
            Self::Places => "shard administrator",
            Self::Moves => "shard mover",
        };
        bound(kind, shard, "")
    }

    /// Table, and its columns for the shard, the key's name, the sealed password, and one in clear.
    fn columns(self) -> [&'static str; 5] {
        match self {
            Self::Places => ["shards", "name", "admin_kid", "admin_sealed", "admin_password"],
            Self::Moves => ["shard_admins", "shard", "kid", "sealed", "login_password"],
        }
    }

    /// Seals a password of this one on a shard.
    pub(super) fn seal(
        self,
        keys: &Keys,
        shard: &str,
        password: &SecretString,
    ) -> Result<(String, Vec<u8>), StoreError> {
        let (kid, sealed) = keys.seal(&self.bound(shard), password.expose_secret().as_bytes())?;
        Ok((kid.to_owned(), sealed))
    }

    /// Opens what [`Self::seal`] made.
    pub(crate) fn open(self, keys: &Keys, shard: &str, kid: &str, sealed: &[u8]) -> Option<SecretString> {
        let opened = keys.open(kid, &self.bound(shard), sealed)?;
        std::str::from_utf8(&opened).ok().map(SecretString::from)
    }
}

impl Store {
    /// Seals what stands in clear, from before there were keys.
    ///
    /// # Errors
    /// If the catalog fails.
    pub(crate) async fn seal_passwords(&self) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        for whose in Administrator::ALL {
            let [table, shard, kid, sealed, clear] = whose.columns();
            let t = client.transaction().await?;
            let sql = format!("SELECT {shard}, {clear} FROM {table} WHERE {clear} IS NOT NULL FOR UPDATE");
            let rows = t.query(&sql, &[]).await?;
            let Ok(keys) = self.keys() else {
                if !rows.is_empty() {
                    tracing::warn!(
                        table,
                        shards = rows.len(),
                        "passwords are in the catalog in clear: configure `keys_file`"
                    );
                }
                continue;
            };
            for row in &rows {
                let name: &str = row.get(0);
                let (by, text) = whose.seal(keys, name, &SecretString::from(row.get::<_, String>(1)))?;
                let sql = format!(
                    "UPDATE {table} SET {kid} = $2, {sealed} = $3, {clear} = NULL WHERE {shard} = $1"
                );
                t.execute(&sql, &[&name, &by, &text]).await?;
                tracing::info!(shard = name, table, "sealed a password");
            }
            t.commit().await?;
        }
        Ok(())
    }
}

/// Seals passwords that another key has sealed anew. How many there were.
pub(super) async fn rotate(t: &Transaction<'_>, keys: &Keys) -> Result<u64, StoreError> {
    let mut rotated = 0;
    for whose in Administrator::ALL {
        let [table, shard, kid, sealed, _] = whose.columns();
        let sql = format!("SELECT {shard}, {kid}, {sealed} FROM {table} WHERE {kid} <> $1 FOR UPDATE");
        for row in t.query(&sql, &[&keys.current()]).await? {
            let name: &str = row.get(0);
            let password = whose.open(keys, name, row.get(1), row.get(2)).ok_or_else(|| unopened(name))?;
            let (by, text) = whose.seal(keys, name, &password)?;
            let sql = format!("UPDATE {table} SET {kid} = $2, {sealed} = $3 WHERE {shard} = $1");
            t.execute(&sql, &[&name, &by, &text]).await?;
            rotated += 1;
        }
    }
    Ok(rotated)
}

/// The password of who makes tenants' places on a shard.
pub(super) async fn of_administrator(
    client: &impl GenericClient,
    keys: Option<&Keys>,
    shard: &str,
) -> Result<Option<SecretString>, StoreError> {
    let sql = "SELECT admin_kid, admin_sealed, admin_password FROM shards WHERE name = $1";
    let row = client.query_opt(sql, &[&shard]).await?;
    let row = row.ok_or_else(|| StoreError::not_found("shard", shard))?;
    let (kid, sealed): (Option<&str>, Option<&[u8]>) = (row.get(0), row.get(1));
    match kid.zip(sealed) {
        None => Ok(row.get::<_, Option<String>>(2).map(SecretString::from)),
        Some((kid, sealed)) => {
            let opened = keys.and_then(|keys| Administrator::Places.open(keys, shard, kid, sealed));
            opened.map(Some).ok_or_else(|| unopened(shard))
        }
    }
}

fn unopened(shard: &str) -> StoreError {
    StoreError::Unopened {
        tenant: String::new(),
        name: format!("the password of an administrator of shard {shard}"),
    }
}
