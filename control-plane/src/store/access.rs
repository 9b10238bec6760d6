//! Tokens of the API and what they allow.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::audit::{Deed, NONE, record_of};
use super::{Caller, Precondition, Store, StoreError, timestamp};
use crate::credentials::{new_token, token_hash};

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `/metrics` alone.
    Metrics,
    /// The values of one tenant, and nothing else.
    Application,
    /// To look.
    Viewer,
    /// To change tenants, users, placements, shards and buckets.
    Operator,
    /// To change settings, issuers, webhooks and tokens too.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [Self::Metrics, Self::Application, Self::Viewer, Self::Operator, Self::Admin];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Application => "application",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// The role of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == text)
    }

    /// Whether who has this role may do what needs the role `needed`.
    pub fn covers(self, needed: Self) -> bool {
        match needed {
            Self::Metrics => self != Self::Application,
            // Secrets are not for those who only look.
            Self::Application => matches!(self, Self::Application | Self::Operator | Self::Admin),
            needed => self >= needed,
        }
    }
}

/// A token, without what proves it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Token {
    /// Its name, which the audit tells.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// The one tenant that it is good for.
    pub tenant: Option<String>,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made, in UTC.
    pub created_at: String,
    /// When it ends, in UTC.
    pub expires_at: Option<String>,
    /// When it was last used, in UTC, to the minute.
    pub last_used: Option<String>,
}

/// A token to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Its name.
    #[schema(min_length = 1, max_length = 128)]
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// The one tenant that it is good for: viewers and operators then see and change what is that
    /// tenant's own. `application` needs one.
    pub tenant: Option<String>,
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
        let sql = "SELECT name, role, tenant, last_used IS NULL OR last_used < now() - interval '1 min'
                   FROM api_tokens WHERE hash = $1 AND (expires_at IS NULL OR expires_at > now())";
        let hash = token_hash(token);
        let client = self.client().await?;
        let Some(row) = client.query_opt(sql, &[&hash.as_slice()]).await? else { return Ok(None) };
        if row.get(3) {
            let seen = "UPDATE api_tokens SET last_used = date_trunc('minute', now()) WHERE hash = $1";
            client.execute(seen, &[&hash.as_slice()]).await?;
        }
        Ok(Role::parse(row.get(1)).map(|role| Caller {
            name: row.get(0),
            role,
            tenant: row.get(2),
            method: "token",
            source: None,
            request_id: None,
            precondition: Precondition::None,
        }))
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
            let deed = Deed::new("create", "token", "bootstrap");
            record_of(&t, &Caller::system(), deed, None, NONE, NONE).await?;
        }
        Ok(t.commit().await?)
    }

    /// Makes a token and returns it, which is the only time that it is seen.
    ///
    /// # Errors
    /// If there is one by that name, it makes no sense, or the catalog fails.
    pub async fn create_token(
        &self,
        caller: &Caller,
        new: NewToken,
    ) -> Result<(Token, SecretString), StoreError> {
        if new.name.is_empty() || new.name.len() > 128 || new.name.chars().any(char::is_control) {
            return Err(StoreError::invalid("name", "must be 1 to 128 bytes on one line"));
        }
        match (new.role, &new.tenant) {
            (Role::Application, None) => {
                return Err(StoreError::invalid("tenant", "is needed for this role"));
            }
            (Role::Metrics | Role::Admin, Some(_)) => {
                return Err(StoreError::invalid("tenant", "goes with the other roles only"));
            }
            _ => {}
        }
        let secret = new_token()?;
        let hash = token_hash(secret.expose_secret());
        let lifetime = new.lifetime_seconds.map(f64::from);
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        if let Some(tenant) = &new.tenant
            && t.query_opt("SELECT 1 FROM tenants WHERE id = $1 FOR KEY SHARE", &[tenant]).await?.is_none()
        {
            return Err(StoreError::not_found("tenant", tenant));
        }
        let sql = format!(
            "INSERT INTO api_tokens (name, hash, role, tenant, created_by, expires_at)
             VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6)) ON CONFLICT (name) DO NOTHING
             RETURNING {}",
            columns()
        );
        let row = t
            .query_opt(
                &sql,
                &[&new.name, &hash.as_slice(), &new.role.as_str(), &new.tenant, &caller.name, &lifetime],
            )
            .await?
            .ok_or_else(|| StoreError::exists("token", &new.name))?;
        let token = token(&row).ok_or_else(|| StoreError::invalid("role", "is not known"))?;
        let deed = Deed::new("create", "token", &token.name);
        record_of(&t, caller, deed, token.tenant.as_deref(), NONE, Some(&token)).await?;
        t.commit().await?;
        Ok((token, secret))
    }

    /// Tokens by name behind `after`, at most `limit`.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn tokens(&self, after: &str, limit: i64) -> Result<Vec<Token>, StoreError> {
        let sql = format!("SELECT {} FROM api_tokens WHERE name > $1 ORDER BY name LIMIT $2", columns());
        let rows = self.client().await?.query(&sql, &[&after, &limit]).await?;
        Ok(rows.iter().filter_map(token).collect())
    }

    /// Ends a token.
    ///
    /// # Errors
    /// If there is none by that name, or the catalog fails.
    pub async fn delete_token(&self, caller: &Caller, name: &str) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        let sql = format!("SELECT {} FROM api_tokens WHERE name = $1 FOR UPDATE", columns());
        let row = t.query_opt(&sql, &[&name]).await?;
        let before = row.as_ref().and_then(token).ok_or_else(|| StoreError::not_found("token", name))?;
        caller.expects(&before)?;
        t.execute("DELETE FROM api_tokens WHERE name = $1", &[&name]).await?;
        let deed = Deed::new("delete", "token", name);
        record_of(&t, caller, deed, before.tenant.as_deref(), Some(&before), NONE).await?;
        Ok(t.commit().await?)
    }
}

fn columns() -> String {
    let [created, expires, used] = ["created_at", "expires_at", "last_used"].map(timestamp);
    format!("name, role, tenant, created_by, {created}, {expires}, {used}")
}

fn token(r: &tokio_postgres::Row) -> Option<Token> {
    Some(Token {
        name: r.get(0),
        role: Role::parse(r.get(1))?,
        tenant: r.get(2),
        created_by: r.get(3),
        created_at: r.get(4),
        expires_at: r.get(5),
        last_used: r.get(6),
    })
}

#[cfg(test)]
mod tests {
    use super::Role::{self, Admin, Application, Metrics, Operator, Viewer};

    #[test]
    fn what_roles_cover() {
        let covered =
            |role: Role| Role::ALL.into_iter().filter(|needed| role.covers(*needed)).collect::<Vec<_>>();
        assert_eq!(covered(Metrics), [Metrics]);
        assert_eq!(covered(Application), [Application]);
        assert_eq!(covered(Viewer), [Metrics, Viewer]);
        assert_eq!(covered(Operator), [Metrics, Application, Viewer, Operator]);
        assert_eq!(covered(Admin), Role::ALL);
    }
}
