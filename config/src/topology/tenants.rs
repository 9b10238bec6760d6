//! Tenants: their state, their placement and their context.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::JwtIssuer;
use crate::ids::{ShardName, TenantId};
use crate::limits::{LimitSet, TenantLimits};

/// A tenant that the router knows.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Whether it is served.
    pub state: TenantState,
    /// Its explicit placement; else its bucket decides.
    pub placement: Option<Placement>,
    /// Its epoch where its bucket decides: above all that it has had.
    pub bucket_epoch: u64,
    /// Its own context, where it differs from the default.
    pub context: Option<Arc<ContextTemplate>>,
    /// Its own pool mode; else the user's, else the router's.
    pub pool_mode: Option<PoolMode>,
    /// Issuers whose JWTs are accepted for this tenant only.
    pub jwt: Vec<Arc<JwtIssuer>>,
    /// A display name for people, kept from the catalog.
    pub name: Option<String>,
    /// Its plan; else the default one.
    pub plan: Option<Arc<str>>,
    /// What it has otherwise than its plan says.
    pub own_limits: Option<Arc<LimitSet>>,
    /// What it may use: by `own_limits` and `plan`, resolved.
    pub limits: Arc<TenantLimits>,
    /// What the control plane has found it to have used up.
    pub restriction: Option<Restriction>,
}

/// What a tenant has used up, beside its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Restriction {
    /// More storage than its limit, where that makes it read-only.
    Storage,
    /// Its daily or monthly quota: it begins no transaction until this time, in seconds since 1970.
    Quota {
        /// When the quota begins anew.
        until: u64,
    },
}

impl Tenant {
    /// An active tenant with nothing of its own.
    pub fn new(id: TenantId) -> Self {
        Self {
            id,
            state: TenantState::Active,
            placement: None,
            bucket_epoch: 0,
            context: None,
            pool_mode: None,
            jwt: Vec::new(),
            name: None,
            plan: None,
            own_limits: None,
            limits: Arc::default(),
            restriction: None,
        }
    }

    /// Whether it may log in and run statements.
    pub fn is_served(&self) -> bool {
        matches!(self.state, TenantState::Active | TenantState::ReadOnly)
    }

    /// Whether its transactions must be read-only.
    pub fn is_read_only(&self) -> bool {
        self.state == TenantState::ReadOnly || self.restriction == Some(Restriction::Storage)
    }

    /// Until when its quota is used up, in seconds since 1970, as of `now`.
    pub fn out_of_quota(&self, now: u64) -> Option<u64> {
        match self.restriction {
            Some(Restriction::Quota { until }) if until > now => Some(until),
            _ => None,
        }
    }
}

/// Whether a tenant is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TenantState {
    /// Served.
    #[default]
    Active,
    /// Served, and every transaction is read-only.
    ReadOnly,
    /// Not served: who proves to be the tenant is told so, everyone else learns nothing.
    Suspended,
    /// As suspended; its rows are deleted at the end of a time of grace.
    Deleting,
}

impl TenantState {
    /// The name that configuration, API and metrics have for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::ReadOnly => "read-only",
            Self::Suspended => "suspended",
            Self::Deleting => "deleting",
        }
    }
}

/// An explicit placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The shard's name.
    pub shard: ShardName,
    /// Rises with every change.
    pub epoch: u64,
}

/// Against whom a tenant's context is guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContextMode {
    /// Against accidents: the variables of the context are all there is, and whoever runs SQL can
    /// change them.
    #[default]
    Plain,
    /// Against hostile SQL: the connection is entered with a signed token, and policies ask
    /// `switchyard.tenant_id()`. Needs the schema on the shard, and a key.
    Sealed,
}

impl ContextMode {
    /// Whether this is the plain mode.
    pub fn is_plain(&self) -> bool {
        *self == Self::Plain
    }
}

/// What is set on a server connection for a tenant, with `{tenant}` (and `{user}`) to be filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextTemplate {
    /// What the shard takes the tenant's word for.
    #[serde(default, skip_serializing_if = "ContextMode::is_plain")]
    pub mode: ContextMode,
    /// Session variables and the templates of their values, such as `app.tenant_id = "{tenant}"`.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// Schemas of `search_path` in order, each a template; each is quoted as an identifier,
    /// except `"$user"`, which stands for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search_path: Option<Vec<String>>,
    /// Template of the role that statements run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Template of the database, for a database per tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

/// When a server connection goes back to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolMode {
    /// After each transaction.
    #[default]
    Transaction,
    /// When the client leaves.
    Session,
}
