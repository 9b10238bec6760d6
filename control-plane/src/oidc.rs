//! Callers that an identity provider vouches for, by JWTs in place of our own tokens.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Uri};
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;

use crate::client;
use crate::store::{Caller, Precondition, Role};

/// Largest token, in bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Largest key set, in bytes.
const MAX_KEYS_BYTES: usize = 1 << 20;

/// Deadline of fetching the key set.
const FETCH: Duration = Duration::from_secs(5);

/// Age at which the key set is fetched again.
const FRESH: Duration = Duration::from_secs(300);

/// Shortest time between two fetches, whatever key ids tokens name.
const PAUSE: Duration = Duration::from_secs(10);

/// An identity provider, as the settings name it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcSettings {
    /// The `iss` claim required.
    pub issuer: String,
    /// The `aud` claim must hold it.
    pub audience: String,
    /// A file with the key set, or else:
    pub jwks_file: Option<PathBuf>,
    /// its address: `https://`, or `http://` on loopback.
    pub jwks_url: Option<String>,
    /// The claim that holds the role, or an array with it. Default `switchyard_role`.
    #[serde(default = "role_claim")]
    pub role_claim: String,
    /// The claim that holds the one tenant that the caller is confined to, if any. Default
    /// `switchyard_tenant`.
    #[serde(default = "tenant_claim")]
    pub tenant_claim: String,
}

fn role_claim() -> String {
    "switchyard_role".to_owned()
}

fn tenant_claim() -> String {
    "switchyard_tenant".to_owned()
}

/// The provider, and its keys as last seen.
pub(crate) struct Oidc {
    settings: OidcSettings,
    keys: Mutex<Option<(JwkSet, Instant)>>,
    fetching: tokio::sync::Mutex<()>,
}

impl Oidc {
    pub(crate) fn new(settings: OidcSettings) -> Self {
        Self { settings, keys: Mutex::default(), fetching: tokio::sync::Mutex::default() }
    }

    /// Whom `token` stands for; none if it is not good, for whatever reason: the log says which.
    pub(crate) async fn caller(&self, token: &str) -> Option<Caller> {
        match self.verified(token).await {
            Ok(caller) => Some(caller),
            Err(reason) => {
                tracing::info!(reason, "an oidc token is refused");
                None
            }
        }
    }

    async fn verified(&self, token: &str) -> Result<Caller, &'static str> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err("it is too long");
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| "its header makes no sense")?;
        let accepted = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
        if !accepted.contains(&header.alg) {
            return Err("its algorithm is not accepted");
        }
        let key = self.key(header.kid.as_deref(), header.alg).await.ok_or("its key is not known")?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_audience(&[&self.settings.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = 30;
        let claims = jsonwebtoken::decode::<Value>(token, &key, &validation)
            .map_err(|_| "its signature or claims are not good")?
            .claims;
        let role = match &claims[&self.settings.role_claim] {
            Value::String(role) => Role::parse(role),
            Value::Array(roles) => roles.iter().filter_map(|r| Role::parse(r.as_str()?)).max(),
            _ => None,
        };
        let role = role.ok_or("it has no role")?;
        let tenant = match &claims[&self.settings.tenant_claim] {
            Value::Null => None,
            Value::String(tenant) if !tenant.is_empty() => Some(tenant.clone()),
            _ => return Err("its tenant makes no sense"),
        };
        if (role == Role::Application) != tenant.is_some() && role == Role::Application {
            return Err("an application needs a tenant");
        }
        let name = claims["sub"].as_str().filter(|s| !s.is_empty() && s.len() <= 256);
        let name = name.filter(|s| !s.chars().any(char::is_control)).ok_or("its subject makes no sense")?;
        Ok(Caller {
            name: name.to_owned(),
            role,
            tenant,
            method: "oidc",
            source: None,
            request_id: None,
            precondition: Precondition::None,
        })
    }

    async fn key(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
        let held = || self.keys.lock().ok().and_then(|k| k.clone());
        let stale = |at: Instant| at.elapsed() > FRESH;
        if let Some((keys, at)) = held()
            && !stale(at)
            && let Some(key) = find(&keys, kid, algorithm)
        {
            return Some(key);
        }
        // One fetches; the others see what it found.
        let _fetching = self.fetching.lock().await;
        let fetch = held().is_none_or(|(keys, at)| {
            stale(at) || (at.elapsed() > PAUSE && find(&keys, kid, algorithm).is_none())
        });
        if fetch {
            match self.read_keys().await {
                Ok(keys) => {
                    if let Ok(mut held) = self.keys.lock() {
                        *held = Some((keys, Instant::now()));
                    }
                }
                // The old ones serve on.
                Err(error) => tracing::warn!(error, "the key set of the identity provider cannot be read"),
            }
        }
        find(&held()?.0, kid, algorithm)
    }

    async fn read_keys(&self) -> Result<JwkSet, String> {
        if let Some(path) = &self.settings.jwks_file {
            let text = tokio::fs::read(path).await.map_err(|e| format!("{}: {e}", path.display()))?;
            return serde_json::from_slice(&text).map_err(|_| "it is no key set".to_owned());
        }
        let url = self.settings.jwks_url.as_deref().unwrap_or_default();
        let uri: Uri = url.parse().map_err(|_| "its address is no URL".to_owned())?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let request = Request::get(path).body(Full::<Bytes>::default()).map_err(|e| e.to_string())?;
        let answer = client::send(&uri, request, FETCH, MAX_KEYS_BYTES).await.map_err(|e| e.to_string())?;
        if !answer.status.is_success() {
            return Err(format!("it was answered with {}", answer.status));
        }
        serde_json::from_slice(&answer.body).map_err(|_| "it is no key set".to_owned())
    }
}

fn find(keys: &JwkSet, kid: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
    let fits = |params: &AlgorithmParameters| {
        matches!(
            (params, algorithm),
            (AlgorithmParameters::RSA(_), Algorithm::RS256)
                | (AlgorithmParameters::EllipticCurve(_), Algorithm::ES256)
                | (AlgorithmParameters::OctetKeyPair(_), Algorithm::EdDSA)
        )
    };
    let named = |jwk: &&jsonwebtoken::jwk::Jwk| kid.is_none() || jwk.common.key_id.as_deref() == kid;
    let jwk = keys.keys.iter().filter(named).find(|jwk| fits(&jwk.algorithm))?;
    DecodingKey::from_jwk(jwk).ok()
}
