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
    /// When the last attempt to fetch them ended, whether it succeeded or not. One fetches; others see what it found.
    fetching: tokio::sync::Mutex<Option<Instant>>,
    pause: Duration,
}

impl Oidc {
    pub(crate) fn new(settings: OidcSettings) -> Self {
        Self { settings, keys: Mutex::default(), fetching: tokio::sync::Mutex::default(), pause: PAUSE }
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
        let mut tried = self.fetching.lock().await;
        let wanted = held().is_none_or(|(keys, at)| stale(at) || find(&keys, kid, algorithm).is_none());
        // A provider that is away is asked no more often than one that is there.
        if wanted && tried.is_none_or(|at| at.elapsed() > self.pause) {
            match self.read_keys().await {
                Ok(keys) => {
                    if let Ok(mut held) = self.keys.lock() {
                        *held = Some((keys, Instant::now()));
                    }
                }
                // The old ones serve on.
                Err(error) => tracing::warn!(error, "the key set of the identity provider cannot be read"),
            }
            *tried = Some(Instant::now());
        }
        drop(tried);
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    /// A provider that serves what it is told to, or nothing, and counts how often it is asked.
    struct Provider {
        keys: Arc<Mutex<Option<Value>>>,
        asked: Arc<AtomicUsize>,
        url: String,
    }

    impl Provider {
        fn start(kids: &[&str]) -> Self {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/keys", listener.local_addr().unwrap());
            let (keys, asked) = (Arc::new(Mutex::new(Some(key_set(kids)))), Arc::new(AtomicUsize::new(0)));
            let (serves, counts) = (keys.clone(), asked.clone());
            std::thread::spawn(move || {
                for socket in listener.incoming() {
                    let mut socket = socket.unwrap();
                    let _ = socket.read(&mut [0; 4096]);
                    counts.fetch_add(1, Ordering::SeqCst);
                    let body = serves.lock().unwrap().as_ref().map(Value::to_string);
                    let status = if body.is_some() { "200 OK" } else { "503 Service Unavailable" };
                    let body = body.unwrap_or_default();
                    let length = body.len();
                    let _ = write!(
                        socket,
                        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                    );
                }
            });
            Self { keys, asked, url }
        }

        fn serves(&self, keys: Option<Value>) {
            *self.keys.lock().unwrap() = keys;
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }

        fn oidc(&self, pause: Duration) -> Oidc {
            let settings = json!({ "issuer": "https://id.example", "audience": "us", "jwks_url": self.url });
            Oidc { pause, ..Oidc::new(serde_json::from_value(settings).unwrap()) }
        }
    }

    /// The public key of RFC 8037, appendix A, by these names.
    fn key_set(kids: &[&str]) -> Value {
        let key = |kid: &&str| {
            json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "alg": "EdDSA",
                    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" })
        };
        json!({ "keys": kids.iter().map(key).collect::<Vec<_>>() })
    }

    async fn knows(oidc: &Oidc, kid: &str) -> bool {
        oidc.key(Some(kid), Algorithm::EdDSA).await.is_some()
    }

    #[tokio::test]
    async fn an_unknown_key_id_has_the_keys_fetched_again() {
        let provider = Provider::start(&["first"]);
        let oidc = provider.oidc(Duration::ZERO);
        assert!(knows(&oidc, "first").await);
        assert!(knows(&oidc, "first").await);
        assert_eq!(provider.asked(), 1, "what is known is not asked for");
        provider.serves(Some(key_set(&["second"])));
        assert!(knows(&oidc, "second").await);
        assert!(!knows(&oidc, "first").await, "what the provider has taken back is good no more");
        // The provider is away: what is held serves on.
        provider.serves(None);
        assert!(!knows(&oidc, "third").await);
        assert!(knows(&oidc, "second").await);
    }

    #[tokio::test]
    async fn whatever_key_ids_tokens_name_the_provider_is_asked_once_in_a_while() {
        let long = Duration::from_secs(86_400);
        let provider = Provider::start(&["first"]);
        let oidc = provider.oidc(long);
        assert!(knows(&oidc, "first").await);
        for n in 0..50 {
            assert!(!knows(&oidc, &format!("made-up-{n}")).await);
        }
        assert_eq!(provider.asked(), 1);
        // Nor is one that does not answer.
        let away = Provider::start(&[]);
        away.serves(None);
        let oidc = away.oidc(long);
        for n in 0..50 {
            assert!(!knows(&oidc, &format!("made-up-{n}")).await);
        }
        assert_eq!(away.asked(), 1);
    }
}
