//! What a token whose signature is good says, and whether it is good here and now.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use switchyard_config::TenantId;
use switchyard_config::topology::JwtIssuer;

use super::error::JwtError;
use super::token::Token;

/// What a verified token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The name of the issuer, as configured.
    pub issuer_name: String,
    /// The tenant, where the token has the issuer's tenant claim.
    pub tenant: Option<TenantId>,
    /// The user, where the issuer is configured with a user claim; the token then has it.
    /// `identity::decide` compares it with the user who logs in.
    pub user: Option<String>,
    /// When the token expires, without leeway.
    pub expires: Option<SystemTime>,
    /// The issuer is one of the tenant's own: the token is good for that tenant and no other.
    pub from_tenant_issuer: bool,
}

/// The tenant at `path` in a token, if there is one.
pub(super) fn tenant_at(token: &Token<'_>, path: &str) -> Option<TenantId> {
    find(token.claims(), path).ok().flatten().and_then(tenant)
}

/// Checks times, audience and the claims that the configuration names.
pub(super) fn check(
    token: &Token<'_>,
    issuer: &JwtIssuer,
    from_tenant_issuer: bool,
    now: SystemTime,
) -> Result<Claims, JwtError> {
    let claims = token.claims();
    let name = || issuer.name.clone();
    let wrong = |claim: &str, problem| JwtError::Claim { issuer: name(), claim: claim.to_owned(), problem };

    let expires = date(claims, "exp", &wrong)?.ok_or_else(|| wrong("exp", "is missing"))?;
    // Where a sum does not fit, the time is further off than any clock.
    if expires.checked_add(issuer.leeway).is_some_and(|end| end <= now) {
        return Err(JwtError::Expired { issuer: name() });
    }
    for claim in ["nbf", "iat"] {
        let from = date(claims, claim, &wrong)?;
        let latest = now.checked_add(issuer.leeway).unwrap_or(now);
        if from.is_some_and(|from| from > latest) {
            return Err(JwtError::NotYetValid { issuer: name() });
        }
    }
    if !issuer.audience.is_empty() && !has_audience(claims, &issuer.audience) {
        return Err(JwtError::Audience { issuer: name() });
    }
    let tenant = match find(claims, &issuer.tenant_claim)
        .map_err(|problem| wrong(&issuer.tenant_claim, problem))?
    {
        None => None,
        Some(value) => Some(tenant(value).ok_or_else(|| wrong(&issuer.tenant_claim, "is not a tenant id"))?),
    };
    let user = match &issuer.user_claim {
        None => None,
        Some(path) => match find(claims, path).map_err(|problem| wrong(path, problem))? {
            Some(Value::String(user)) => Some(user.clone()),
            Some(_) => return Err(wrong(path, "is not a string")),
            None => return Err(wrong(path, "is missing")),
        },
    };
    Ok(Claims { issuer_name: name(), tenant, user, expires: Some(expires), from_tenant_issuer })
}

/// A `NumericDate` (RFC 7519 section 2): seconds since 1970, perhaps with a fraction.
fn date(
    claims: &Map<String, Value>,
    claim: &str,
    wrong: &impl Fn(&str, &'static str) -> JwtError,
) -> Result<Option<SystemTime>, JwtError> {
    let Some(value) = claims.get(claim) else {
        return Ok(None);
    };
    let since = match (value.as_u64(), value.as_f64()) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds)),
        (None, Some(seconds)) if seconds < 0.0 => Some(Duration::ZERO),
        (None, Some(seconds)) => Duration::try_from_secs_f64(seconds).ok(),
        (None, None) => None,
    };
    let date =
        since.and_then(|since| UNIX_EPOCH.checked_add(since)).ok_or_else(|| wrong(claim, "is not a time"))?;
    Ok(Some(date))
}

fn has_audience(claims: &Map<String, Value>, accepted: &[String]) -> bool {
    let ours = |value: &Value| value.as_str().is_some_and(|aud| accepted.iter().any(|ours| ours == aud));
    match claims.get("aud") {
        Some(Value::Array(all)) => all.iter().any(ours),
        Some(one) => ours(one),
        None => false,
    }
}

/// The value at a path. The whole path may be the name of a claim, as in
/// `https://example.com/tenant_id`; else its dots reach into objects.
fn find<'c>(claims: &'c Map<String, Value>, path: &str) -> Result<Option<&'c Value>, &'static str> {
    let whole = claims.get(path);
    let Some((first, rest)) = path.split_once('.') else {
        return Ok(whole);
    };
    let reached =
        claims.get(first).and_then(|value| rest.split('.').try_fold(value, |at, name| at.get(name)));
    match (whole, reached) {
        (Some(_), Some(_)) => Err("is there both by its whole name and by its path"),
        (found, None) | (None, found) => Ok(found),
    }
}

fn tenant(value: &Value) -> Option<TenantId> {
    match value {
        Value::String(id) => TenantId::new(id).ok(),
        Value::Number(number) if !number.is_f64() => TenantId::new(&number.to_string()).ok(),
        _ => None,
    }
}
