//! Tenants and users as the API shows and takes them.

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use switchyard_config::topology::{ConsoleRole, ContextTemplate, LoginMethods, PoolMode, TenantState};
use utoipa::ToSchema;

use super::Limits;

/// A tenant.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Tenant {
    /// Its id, exactly as given.
    pub id: String,
    /// For people.
    pub name: Option<String>,
    /// Whether it is served.
    #[schema(value_type = String, example = "active")]
    pub state: TenantState,
    /// The shard it lives on; none only while there is no shard.
    pub shard: Option<String>,
    /// What says so.
    pub placed_by: PlacedBy,
    /// Rises with every change of placement; 0 for a tenant placed by its bucket.
    pub epoch: i64,
    /// Its hash bucket.
    pub bucket: u16,
    /// Its own pool mode.
    #[schema(value_type = Option<String>)]
    pub pool_mode: Option<PoolMode>,
    /// Its own context.
    #[schema(value_type = Option<Object>)]
    pub context: Option<ContextTemplate>,
    /// Names of the issuers whose tokens are accepted for it alone.
    pub jwt_issuers: Vec<String>,
    /// Changes with any of them; none if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt_digest: Option<String>,
    /// Its plan; the default one if none.
    pub plan: Option<String>,
    /// When its rows are deleted, in UTC, if it is being deleted.
    pub delete_after: Option<String>,
    /// When it was made, in UTC.
    pub created_at: String,
}

/// What says where a tenant lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlacedBy {
    /// Its hash bucket.
    Bucket,
    /// A placement of its own.
    Placement,
}

/// A tenant to be made.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTenant {
    /// 1 to 128 bytes.
    pub id: String,
    /// For people.
    pub name: Option<String>,
    /// A shard, if not its bucket's.
    pub shard: Option<String>,
    /// Its own pool mode.
    #[schema(value_type = Option<String>)]
    pub pool_mode: Option<PoolMode>,
    /// Its own context.
    #[schema(value_type = Option<Object>)]
    pub context: Option<ContextTemplate>,
    /// Issuers whose tokens are accepted for it alone.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub jwt: Vec<Value>,
    /// Its plan; the default one if not given.
    pub plan: Option<String>,
    /// What it has otherwise than its plan says.
    #[serde(default)]
    pub limits: Limits,
}

/// What to change of a tenant; `null` takes it away.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantPatch {
    /// For people.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Option<String>>,
    /// Its own pool mode.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub pool_mode: Option<Option<PoolMode>>,
    /// Its own context.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<Object>)]
    pub context: Option<Option<ContextTemplate>>,
    /// Its plan.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub plan: Option<Option<String>>,
    /// All issuers whose tokens are accepted for it alone.
    #[schema(value_type = Option<Vec<Object>>)]
    pub jwt: Option<Vec<Value>>,
}

/// Tells a field that is `null` from one that is absent.
///
/// # Errors
/// Those of `T`.
pub fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(d).map(Some)
}

/// Which tenants to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct TenantFilter {
    /// Where to go on, as a list has answered.
    pub cursor: Option<String>,
    /// Those on this shard.
    pub shard: Option<String>,
    /// Those in this state.
    #[param(value_type = Option<String>)]
    pub state: Option<TenantState>,
    /// Those of this plan.
    pub plan: Option<String>,
    /// Those whose id or name holds this, whatever its case.
    pub search: Option<String>,
    /// At most so many; 100 if not given, 1000 at most.
    pub limit: Option<u16>,
}

/// A user whom clients may log in as, without what proves it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Whether it has a password.
    pub password: bool,
    /// Other ways to log in.
    #[schema(value_type = Object)]
    pub methods: LoginMethods,
    /// Whether it may act for every tenant.
    pub any_tenant: bool,
    /// Else, for whom it may act.
    pub tenants: Vec<String>,
    /// Its own pool mode, where its tenant has none.
    #[schema(value_type = Option<String>)]
    pub pool_mode: Option<PoolMode>,
    /// The role on the shards, where it is not the shard's own login.
    pub server_user: Option<String>,
    /// When it was made, in UTC.
    pub created_at: String,
}

/// A user to be made. Without a password and a verifier, and with no other way to log in, it is
/// given a password, which the answer tells once.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// Its name, without any tenant suffix.
    pub name: String,
    /// A password to make the verifier of.
    #[schema(value_type = Option<String>)]
    pub password: Option<SecretString>,
    /// `SCRAM-SHA-256$...` or `md5...`, as in `pg_authid`.
    #[schema(value_type = Option<String>)]
    pub verifier: Option<SecretString>,
    /// Other ways to log in.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub methods: LoginMethods,
    /// Whether it may act for every tenant.
    #[serde(default)]
    pub any_tenant: bool,
    /// Else, for whom it may act.
    #[serde(default)]
    pub tenants: Vec<String>,
    /// Its own pool mode, where its tenant has none.
    #[schema(value_type = Option<String>)]
    pub pool_mode: Option<PoolMode>,
    /// The role on the shards, where it is not the shard's own login.
    pub server_user: Option<String>,
    /// That role's password, or `SCRAM-SHA-256-KEYS$...`.
    #[schema(value_type = Option<String>)]
    pub server_password: Option<SecretString>,
}

impl NewUser {
    /// A user with nothing but a name, for one tenant.
    pub fn of_tenant(name: &str, tenant: &str) -> Self {
        Self {
            name: name.to_owned(),
            password: None,
            verifier: None,
            methods: LoginMethods::default(),
            any_tenant: false,
            tenants: vec![tenant.to_owned()],
            pool_mode: None,
            server_user: None,
            server_password: None,
        }
    }
}

/// What to change of a user. What says how it logs in and what its sessions are holds for sessions from then on; those
/// of a tenant that is taken away from it end.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserPatch {
    /// `SCRAM-SHA-256$...` or `md5...`, as in `pg_authid`; `null` takes the password away.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub verifier: Option<Option<SecretString>>,
    /// Other ways to log in, and what its sessions are.
    pub methods: Option<MethodsPatch>,
    /// Whether it may act for every tenant. If true, no tenants are named any more.
    pub any_tenant: Option<bool>,
    /// Else, for whom it may act, all of them.
    pub tenants: Option<Vec<String>>,
    /// Its own pool mode, where its tenant has none; `null` takes it away.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub pool_mode: Option<Option<PoolMode>>,
    /// The role on the shards; `null` takes it and its password away.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub server_user: Option<Option<String>>,
    /// That role's password, or `SCRAM-SHA-256-KEYS$...`; `null` takes it away.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub server_password: Option<Option<SecretString>>,
}

/// What to change of the ways to log in; what is not given stays.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MethodsPatch {
    /// A JWT in place of the password.
    pub jwt: Option<bool>,
    /// A client certificate whose common name is the user's name.
    pub cert: Option<bool>,
    /// No proof at all; only on loopback or a unix socket.
    pub trust: Option<bool>,
    /// All its sessions are read-only, and are served by standbys where there are any.
    pub read_only: Option<bool>,
    /// Its sessions are of no tenant: each transaction says in SQL whose it is.
    pub roaming: Option<bool>,
    /// What it may do in the console, which administrators alone may say; `null` for nothing.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub console: Option<Option<ConsoleRole>>,
}

impl MethodsPatch {
    /// `methods` with the changes.
    pub(super) fn apply_to(&self, methods: &LoginMethods) -> LoginMethods {
        LoginMethods {
            jwt: self.jwt.unwrap_or(methods.jwt),
            cert: self.cert.unwrap_or(methods.cert),
            trust: self.trust.unwrap_or(methods.trust),
            read_only: self.read_only.unwrap_or(methods.read_only),
            roaming: self.roaming.unwrap_or(methods.roaming),
            console: self.console.unwrap_or(methods.console),
        }
    }
}

/// What is told once.
pub struct Secrets {
    /// The password, if it was made here.
    pub password: Option<SecretString>,
}
