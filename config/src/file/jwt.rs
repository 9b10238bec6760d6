//! `jwt`: trusted issuers, for all tenants or for one.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::reader::Table;
use super::value::Value;
use crate::topology::{JwtAlgorithm, JwtIssuer, JwtKey, JwtKeys};

/// Least bytes of an HS256 secret: as many as the hash has (RFC 7518, 3.2).
const MIN_HS256_BYTES: usize = 32;

const ALGORITHMS: [(&str, JwtAlgorithm); 4] = [
    ("HS256", JwtAlgorithm::HS256),
    ("RS256", JwtAlgorithm::RS256),
    ("ES256", JwtAlgorithm::ES256),
    ("EdDSA", JwtAlgorithm::EdDSA),
];

/// The issuers under `jwt` of the document or of a tenant.
pub(super) fn read(parent: &Table<'_>) -> Vec<Arc<JwtIssuer>> {
    let mut issuers: Vec<Arc<JwtIssuer>> = Vec::new();
    let mut names = HashSet::new();
    for table in parent.tables("jwt") {
        let name = table.need("name", |v| {
            let name = v.name(128)?;
            if names.insert(name) { Some(name) } else { v.error(format!("there is another issuer {name:?}")) }
        });
        issuers.extend(issuer(table, name).map(Arc::new));
    }
    issuers
}

fn issuer(t: Table<'_>, name: Option<&str>) -> Option<JwtIssuer> {
    let text = |v: &Value<'_>| v.name(1024).map(str::to_owned);
    let issuer = t.opt("issuer", text);
    let audience = t.opt("audience", |v| v.array(text)).unwrap_or_default();
    let tenant_claim = t.opt("tenant_claim", text).unwrap_or_else(|| "tenant_id".to_owned());
    let user_claim = t.opt("user_claim", text);
    let mut leeway = Duration::from_secs(30);
    t.set("leeway", &mut leeway, |v| v.duration(Duration::ZERO..=Duration::from_secs(600)));
    let keys = keys(&t);
    t.finish();
    Some(JwtIssuer {
        name: name?.to_owned(),
        issuer,
        audience,
        tenant_claim,
        user_claim,
        leeway,
        keys: keys?,
    })
}

fn keys(t: &Table<'_>) -> Option<JwtKeys> {
    let file = t.opt("jwks_file", Value::file).map(JwtKeys::File);
    let url = t.opt("jwks_url", jwks_url);
    let mut refresh = Duration::from_secs(300);
    t.set("refresh", &mut refresh, |v| v.duration(Duration::from_secs(1)..=Duration::from_secs(86_400)));
    let ca = t.opt("ca", Value::file);
    let fixed = t.opt("keys", static_keys).map(JwtKeys::Static);
    for key in ["refresh", "ca"] {
        if t.has(key) && !t.has("jwks_url") {
            t.ctx.error(&t.at_key(key), "is for `jwks_url` only");
        }
    }
    if ["jwks_file", "jwks_url", "keys"].iter().filter(|k| t.has(k)).count() != 1 {
        t.ctx.error(&t.at, "give exactly one of `keys`, `jwks_file`, `jwks_url`");
        return None;
    }
    file.or(url.map(|url| JwtKeys::Url { url, refresh, ca })).or(fixed)
}

fn static_keys(v: &Value<'_>) -> Option<Vec<JwtKey>> {
    let tables = v.tables()?;
    if tables.is_empty() {
        return v.error("must hold at least one key");
    }
    let mut keys: Vec<JwtKey> = Vec::new();
    for table in tables {
        let (ctx, at) = (table.ctx, table.at_key("kid"));
        if let Some(key) = key(table) {
            if key.kid.is_some() && keys.iter().any(|k| k.kid == key.kid) {
                ctx.error(&at, "there is another key of this id");
            }
            keys.push(key);
        }
    }
    Some(keys)
}

fn key(t: Table<'_>) -> Option<JwtKey> {
    let kid = t.opt("kid", |v| v.name(256)).map(str::to_owned);
    let algorithm = t.need("algorithm", |v| v.one_of(&ALGORITHMS));
    let (secret, public) = (t.secret("secret"), t.secret("public_key"));
    let (wanted, other) = match algorithm {
        Some(JwtAlgorithm::HS256) => ("secret", "public_key"),
        _ => ("public_key", "secret"),
    };
    if let Some(algorithm) = algorithm {
        if t.has_secret(other) {
            t.ctx.error(&t.at, format!("{algorithm:?} takes `{wanted}`, not `{other}`"));
        } else if !t.has_secret(wanted) {
            t.ctx.error(&t.at_key(wanted), "is missing");
        }
    }
    if let Some(secret) = &secret
        && secret.expose().len() < MIN_HS256_BYTES
    {
        t.ctx.error(&secret.at, format!("must be at least {MIN_HS256_BYTES} bytes"));
    }
    if let Some(public) = &public {
        let pem = public.expose();
        if pem.contains("PRIVATE KEY-----") {
            t.ctx.error(&public.at, "holds a private key: only the public key belongs here");
        } else if !(pem.contains("-----BEGIN ") && pem.contains("PUBLIC KEY-----")) {
            t.ctx.error(&public.at, "must be a public key in PEM (-----BEGIN PUBLIC KEY-----)");
        }
    }
    t.finish();
    let found = if algorithm? == JwtAlgorithm::HS256 { secret } else { public };
    Some(JwtKey { kid, algorithm: algorithm?, material: found?.text })
}

/// `https://`, or `http://` to this very machine: keys that are fetched in the clear are keys of
/// whoever sits on the way.
fn jwks_url(v: &Value<'_>) -> Option<String> {
    let url = v.name(2048)?;
    let (scheme, rest) = url.split_once("://").unwrap_or(("", ""));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return v.error("must not hold a user or password");
    }
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next(),
        None => authority.split(':').next(),
    }
    .unwrap_or_default();
    if host.is_empty() || url.contains(char::is_whitespace) {
        return v.error("must be a URL such as https://issuer.example.com/.well-known/jwks.json");
    }
    let loopback =
        host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|a: IpAddr| a.is_loopback());
    match scheme {
        "https" => Some(url.to_owned()),
        "http" if loopback => Some(url.to_owned()),
        "http" => v.error("must be https://; http:// is for loopback addresses only"),
        _ => v.error("must begin with https://"),
    }
}
