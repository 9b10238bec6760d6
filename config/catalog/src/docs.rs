//! The JSON documents in the catalog's `jsonb` columns, and the types they stand for.
//!
//! Fields that are not known are left alone, so that a router that is older than the control
//! plane goes on reading; the control plane checks what it writes.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use switchyard_config::topology::{JwtAlgorithm, JwtIssuer, JwtKey, JwtKeys, PoolLimits, ServerTls, SslMode};

/// `shards.pool`: what differs from [`PoolLimits::default`]. Times in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "each field is the one of PoolLimits by the same name")]
pub struct PoolDoc {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_notice_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_max_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_standby_lag_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reads_from_primary: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statements: Option<u32>,
}

impl From<PoolDoc> for PoolLimits {
    fn from(doc: PoolDoc) -> Self {
        let default = Self::default();
        let ms = |given: Option<u64>, default: Duration| given.map_or(default, Duration::from_millis);
        Self {
            size: doc.size.unwrap_or(default.size),
            min: doc.min.unwrap_or(default.min),
            queue_timeout: ms(doc.queue_timeout_ms, default.queue_timeout),
            queue_notice: ms(doc.queue_notice_ms, default.queue_notice),
            lifetime: ms(doc.lifetime_ms, default.lifetime),
            idle_timeout: ms(doc.idle_timeout_ms, default.idle_timeout),
            connect_timeout: ms(doc.connect_timeout_ms, default.connect_timeout),
            backoff_max: ms(doc.backoff_max_ms, default.backoff_max),
            failover_timeout: ms(doc.failover_timeout_ms, default.failover_timeout),
            max_standby_lag: ms(doc.max_standby_lag_ms, default.max_standby_lag),
            reads_from_primary: doc.reads_from_primary.unwrap_or(default.reads_from_primary),
            check_after: ms(doc.check_after_ms, default.check_after),
            statements: doc.statements.unwrap_or(default.statements),
        }
    }
}

/// `shards.tls`: by libpq's names. Paths are those of the router's machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are libpq's")]
pub struct TlsDoc {
    pub sslmode: SslMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslrootcert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslcert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslkey: Option<PathBuf>,
}

impl From<TlsDoc> for ServerTls {
    fn from(doc: TlsDoc) -> Self {
        Self { mode: doc.sslmode, root_cert: doc.sslrootcert, cert: doc.sslcert, key: doc.sslkey }
    }
}

impl From<ServerTls> for TlsDoc {
    fn from(tls: ServerTls) -> Self {
        Self { sslmode: tls.mode, sslrootcert: tls.root_cert, sslcert: tls.cert, sslkey: tls.key }
    }
}

/// An issuer of JWTs: `jwt_issuers.doc`, and each element of `tenants.jwt`.
#[derive(Clone, Serialize, Deserialize)]
pub struct JwtIssuerDoc {
    /// A name for logs.
    pub name: String,
    /// The `iss` claim required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The `aud` claim must hold one of these; not asked if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audience: Vec<String>,
    /// The claim that holds the tenant.
    #[serde(default = "tenant_claim")]
    pub tenant_claim: String,
    /// The claim that must equal the user's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_claim: Option<String>,
    /// Clock skew allowed, in seconds.
    #[serde(default = "leeway_seconds")]
    pub leeway_seconds: u32,
    /// The keys.
    pub keys: JwtKeysDoc,
}

/// Where the keys come from: `{"static": [...]}`, `{"file": "..."}` or `{"url": {...}}`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JwtKeysDoc {
    /// Given here.
    Static(Vec<JwtKeyDoc>),
    /// A JWKS file on the router's machine.
    File(PathBuf),
    /// A JWKS document.
    Url {
        /// Its address.
        url: String,
        /// Age at which it is fetched again, in seconds.
        #[serde(default = "refresh_seconds")]
        refresh_seconds: u32,
        /// PEM file of authorities, on the router's machine.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca: Option<PathBuf>,
    },
}

/// One key.
#[derive(Clone, Serialize, Deserialize)]
pub struct JwtKeyDoc {
    /// The `kid` header it answers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The only algorithm it is used with.
    pub algorithm: JwtAlgorithm,
    /// The secret for HS256, else a PEM public key.
    pub material: String,
}

fn tenant_claim() -> String {
    "tenant_id".to_owned()
}

fn leeway_seconds() -> u32 {
    30
}

fn refresh_seconds() -> u32 {
    300
}

impl From<JwtIssuerDoc> for JwtIssuer {
    fn from(doc: JwtIssuerDoc) -> Self {
        let keys = match doc.keys {
            JwtKeysDoc::Static(keys) => JwtKeys::Static(keys.into_iter().map(JwtKey::from).collect()),
            JwtKeysDoc::File(path) => JwtKeys::File(path),
            JwtKeysDoc::Url { url, refresh_seconds, ca } => {
                JwtKeys::Url { url, refresh: Duration::from_secs(refresh_seconds.into()), ca }
            }
        };
        Self {
            name: doc.name,
            issuer: doc.issuer,
            audience: doc.audience,
            tenant_claim: doc.tenant_claim,
            user_claim: doc.user_claim,
            leeway: Duration::from_secs(doc.leeway_seconds.into()),
            keys,
        }
    }
}

impl From<JwtKeyDoc> for JwtKey {
    fn from(doc: JwtKeyDoc) -> Self {
        Self { kid: doc.kid, algorithm: doc.algorithm, material: SecretString::from(doc.material) }
    }
}

impl From<&JwtKey> for JwtKeyDoc {
    fn from(key: &JwtKey) -> Self {
        Self {
            kid: key.kid.clone(),
            algorithm: key.algorithm,
            material: key.material.expose_secret().to_owned(),
        }
    }
}

impl std::fmt::Debug for JwtKeyDoc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtKeyDoc").field("kid", &self.kid).field("algorithm", &self.algorithm).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_keeps_defaults_for_what_is_absent() {
        let doc: PoolDoc =
            serde_json::from_str(r#"{"size": 3, "queue_timeout_ms": 1500, "later": 1}"#).unwrap();
        let pool = PoolLimits::from(doc);
        assert_eq!(
            pool,
            PoolLimits { size: 3, queue_timeout: Duration::from_millis(1500), ..PoolLimits::default() }
        );
    }

    #[test]
    fn an_issuer_needs_little() {
        let doc: JwtIssuerDoc =
            serde_json::from_str(r#"{"name": "idp", "keys": {"url": {"url": "https://idp/keys"}}}"#).unwrap();
        let issuer = JwtIssuer::from(doc);
        assert_eq!((issuer.tenant_claim.as_str(), issuer.leeway.as_secs()), ("tenant_id", 30));
        assert!(matches!(issuer.keys, JwtKeys::Url { refresh, ca: None, .. } if refresh.as_secs() == 300));
    }

    #[test]
    fn keys_do_not_print_themselves() {
        let doc = JwtKeyDoc { kid: None, algorithm: JwtAlgorithm::HS256, material: "hush".into() };
        assert!(!format!("{doc:?}").contains("hush"));
    }
}
