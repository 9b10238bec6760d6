//! Tokens of the API and what they allow.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::audit::{Deed, NONE, record};
use super::{Store, StoreError, timestamp};
use crate::credentials::{new_token, token_hash};

/// What a token allows; each more than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `/metrics` alone.
    Metrics,
    /// To look.
    Viewer,
    /// To change tenants, users, placements, shards and buckets.
    Operator,
    /// To change settings, issuers and tokens too.
    Admin,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Metrics, Self::Viewer, Self::Operator, Self::Admin].into_iter().find(|r| r.as_str() == text)
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The token's name, for the audit.
    pub name: String,
    /// What it allows.
    pub role: Role,
}

impl Caller {
    /// The process itself.
    pub fn system() -> Self {
        Self { name: "system".to_owned(), role: Role::Admin }
    }
}

/// A token, without what proves it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Token {
    /// Its name, which the audit tells.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it was made, in UTC.
    pub created_at: String,
    /// When it ends, in UTC.
    pub expires_at: Option<String>,
}

/// A token to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// Seconds that it lives; for ever if not given.
    pub lifetime_seconds: Option<u32>,
}

impl Store {
    /// Whom `token` stands for, unless it is unknown or has expired.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn caller(&self, token: &str) -> Result<Option<Caller>, StoreError> {
        // Found by its hash, which an attacker cannot steer: there is no timing to learn from.
        let sql = "SELECT name, role FROM api_tokens
                   WHERE hash = $1 AND (expires_at IS NULL OR expires_at > now())";
        let row = self.client().await?.query_opt(sql, &[&token_hash(token).as_slice()]).await?;
        Ok(row.and_then(|r| Some(Caller { name: r.get(0), role: Role::parse(r.get(1))? })))
    }

    /// Makes `token` an administrator's, by the name `bootstrap`, in place of the one before.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn set_bootstrap_token(&self, token: &SecretString) -> Result<(), StoreError> {
        let sql = "INSERT INTO api_tokens (name, hash, role) VALUES ('bootstrap', $1, 'admin')
                   ON CONFLICT (name) DO UPDATE SET hash = excluded.hash, role = 'admin', expires_at = NULL
                   WHERE api_tokens.hash <> excluded.hash";
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        if t.execute(sql, &[&token_hash(token.expose_secret()).as_slice()]).await? > 0 {
            let deed = Deed { action: "create", kind: "token", target: "bootstrap" };
            record(&t, &Caller::system(), deed, NONE, NONE).await?;
        }
        Ok(t.commit().await?)
    }

    /// Makes a token and returns it, which is the only time that it is seen.
    ///
    /// # Errors
    /// If there is one by that name, or the catalog fails.
    pub async fn create_token(
        &self,
        caller: &Caller,
        new: NewToken,
    ) -> Result<(Token, SecretString), StoreError> {
        if new.name.is_empty() || new.name.len() > 128 || new.name.chars().any(char::is_control) {
            return Err(StoreError::invalid("name", "must be 1 to 128 bytes on one line"));
        }
        let secret = new_token()?;
        let hash = token_hash(secret.expose_secret());
        let lifetime = new.lifetime_seconds.map(f64::from);
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        let sql = format!(
            "INSERT INTO api_tokens (name, hash, role, expires_at)
             VALUES ($1, $2, $3, now() + make_interval(secs => $4)) ON CONFLICT (name) DO NOTHING
             RETURNING {}, {}",
            timestamp("created_at"),
            timestamp("expires_at")
        );
        let row = t
            .query_opt(&sql, &[&new.name, &hash.as_slice(), &new.role.as_str(), &lifetime])
            .await?
            .ok_or_else(|| StoreError::exists("token", &new.name))?;
        let token = Token { name: new.name, role: new.role, created_at: row.get(0), expires_at: row.get(1) };
        let deed = Deed { action: "create", kind: "token", target: &token.name };
        record(&t, caller, deed, NONE, Some(&token)).await?;
        t.commit().await?;
        Ok((token, secret))
    }

    /// All tokens.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        let sql = format!(
            "SELECT name, role, {}, {} FROM api_tokens ORDER BY name",
            timestamp("created_at"),
            timestamp("expires_at")
        );
        let rows = self.client().await?.query(&sql, &[]).await?;
        let token = |r: &tokio_postgres::Row| {
            let (name, role) = (r.get(0), Role::parse(r.get(1))?);
            Some(Token { name, role, created_at: r.get(2), expires_at: r.get(3) })
        };
        Ok(rows.iter().filter_map(token).collect())
    }

    /// Ends a token.
    ///
    /// # Errors
    /// If there is none by that name, or the catalog fails.
    pub async fn delete_token(&self, caller: &Caller, name: &str) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        if t.execute("DELETE FROM api_tokens WHERE name = $1", &[&name]).await? == 0 {
            return Err(StoreError::not_found("token", name));
        }
        record(&t, caller, Deed { action: "delete", kind: "token", target: name }, NONE, NONE).await?;
        Ok(t.commit().await?)
    }
}
