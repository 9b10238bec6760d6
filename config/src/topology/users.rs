//! Whom clients may log in as, and for which tenants.

use std::sync::Arc;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{PoolMode, ServerLogin};
use crate::ids::TenantId;

/// Whom a client may log in as.
#[derive(Debug, Clone)]
pub struct User {
    /// The name, without any tenant suffix.
    pub name: String,
    /// What proves a password. Without one, the user cannot log in by password.
    pub verifier: Option<Verifier>,
    /// Ways to log in besides the verifier.
    pub methods: LoginMethods,
    /// For whom the user may act.
    pub tenants: TenantGrant,
    /// Its own pool mode, where its tenant has none.
    pub pool_mode: Option<PoolMode>,
    /// The role on the shards, where it is not the shard's own login.
    pub server_login: Option<Arc<ServerLogin>>,
}

/// What is stored to check a password by: never the password.
#[derive(Debug, Clone)]
pub enum Verifier {
    /// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, as in `pg_authid`.
    Scram(SecretString),
    /// `md5` and the 32 hexadecimal digits, as in `pg_authid`.
    Md5(SecretString),
}

/// Ways to log in, beside a password checked by SCRAM, and what the user's sessions are like. All off by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoginMethods {
    /// A JWT in place of the password.
    pub jwt: bool,
    /// A client certificate whose common name is the user's name.
    pub cert: bool,
    /// No proof at all; only on loopback or a unix socket.
    pub trust: bool,
    /// All its sessions are read-only, and are served by standbys where there are any.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The sessions are of no tenant: each transaction says in SQL whose it is, of those that are granted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub roaming: bool,
    /// What the user may do in the console; nothing if not given. How it proves itself there is as
    /// everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleRole>,
}

/// What a user may do in the console. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleRole {
    /// Look.
    Viewer,
    /// Pause, resume, disable, enable, reconnect, reload; end sessions of one client or tenant.
    Operator,
    /// All, also ending everything.
    Admin,
}

impl ConsoleRole {
    /// All, from the least.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// As it stands in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// For whom a user may act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantGrant {
    /// One tenant, which need not be said.
    One(TenantId),
    /// Any of these, which must be said (unless there is just one).
    List(Vec<TenantId>),
    /// Every tenant; it must be said. With a JWT, the claim is what allows it.
    Any,
}

impl TenantGrant {
    /// Whether `tenant` is among those granted.
    pub fn allows(&self, tenant: &TenantId) -> bool {
        match self {
            Self::One(t) => t == tenant,
            Self::List(list) => list.contains(tenant),
            Self::Any => true,
        }
    }
}
