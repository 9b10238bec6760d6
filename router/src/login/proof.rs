//! How a client proves to be who it says: SCRAM, a token or a password under TLS, a certificate.

use std::sync::Arc;

use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use switchyard_config::TenantId;
use switchyard_config::topology::{Topology, Verifier};
use switchyard_wire::error::{ErrorResponse, sqlstate};
use switchyard_wire::scram::{self, ChannelBinding, ServerScram};
use switchyard_wire::{build, md5, message};
use zeroize::Zeroizing;

use super::Wrong;
use super::startup::{Expected, Opened, Opening};
use crate::auth::jwt::{Claims, looks_like_jwt};
use crate::identity::{Proof, Resolved};
use crate::stats::Method;

/// How it ended badly.
pub(crate) enum Failed {
    /// The client left.
    Gone,
    /// The client does not speak the protocol; what it is told.
    Protocol(ErrorResponse),
    /// The proof is no proof.
    Wrong(Wrong),
}

/// What was proven, and how.
pub(crate) struct Proven {
    pub(crate) method: Method,
    /// What the token says, and the tenant whose own issuers were asked about it.
    token: Option<(Claims, Option<TenantId>)>,
}

impl Proven {
    pub(crate) fn as_proof(&self) -> Proof<'_> {
        match &self.token {
            Some((claims, asked)) => {
                Proof::Token { claims, issuers_of: asked.as_ref().filter(|_| claims.from_tenant_issuer) }
            }
            None => Proof::Credential,
        }
    }
}

fn wrong(method: Method, cause: impl Into<String>) -> Failed {
    Failed::Wrong(Wrong { method, cause: cause.into() })
}

/// What the client sent is no message of the protocol.
pub(crate) fn malformed(error: &dyn std::fmt::Display) -> Failed {
    Failed::Protocol(ErrorResponse::fatal(sqlstate::PROTOCOL_VIOLATION, error.to_string()))
}

fn proven(method: Method) -> Proven {
    Proven { method, token: None }
}

/// Has the client prove to be `resolved`; with nobody, goes through the motions and fails.
pub(crate) async fn prove(
    opening: &mut Opening,
    topology: &Arc<Topology>,
    opened: &Opened,
    resolved: Option<&Resolved>,
) -> Result<Proven, Failed> {
    let settings = opening.shared.settings().login;
    let protected = opened.tls || opening.local;
    let Some(resolved) = resolved else {
        // The method that most users have, so that a made-up name does not stand out.
        let all_by_token = topology.users.values().all(|u| u.verifier.is_none() && u.methods.jwt);
        if all_by_token && !topology.users.is_empty() && protected {
            ask_in_clear(opening).await?;
            return Err(wrong(Method::None, "unknown user"));
        }
        return by_scram(opening, None, opened.startup.user()).await;
    };
    let user = &resolved.user;
    if user.methods.trust && settings.trust && opening.local {
        return Ok(proven(Method::Trust));
    }
    if user.methods.cert
        && let Some(name) = &opened.certificate
    {
        if *name == user.name || *name == resolved.login_name {
            return Ok(proven(Method::Cert));
        }
        if user.verifier.is_none() && !user.methods.jwt {
            // Ask anyway: a missing question would tell which users have certificates only.
            by_scram(opening, None, opened.startup.user()).await.ok();
            return Err(wrong(Method::Cert, format!("the certificate is for {name:?}")));
        }
    }
    if user.methods.jwt && protected {
        return by_token(opening, topology, resolved).await;
    }
    match &user.verifier {
        Some(Verifier::Scram(verifier)) => {
            by_scram(opening, Some(verifier.expose_secret()), opened.startup.user()).await
        }
        Some(Verifier::Md5(stored)) if settings.md5 => by_md5(opening, stored.expose_secret()).await,
        Some(Verifier::Md5(_)) => {
            let _ = by_scram(opening, None, opened.startup.user()).await?;
            Err(wrong(Method::Md5, "md5 is switched off"))
        }
        None => match by_scram(opening, None, opened.startup.user()).await {
            Err(Failed::Wrong(_)) | Ok(_) => Err(wrong(
                Method::None,
                "the user has no password; tokens are accepted over tls or on loopback only",
            )),
            Err(other) => Err(other),
        },
    }
}

/// SCRAM by a stored verifier; without one, by one made up, which always fails.
async fn by_scram(opening: &mut Opening, verifier: Option<&str>, login: &str) -> Result<Proven, Failed> {
    let parsed = verifier.map(scram::Verifier::parse).transpose();
    let (verifier, cause) = match parsed {
        Ok(Some(verifier)) => (verifier, "wrong password"),
        Ok(None) => (mock(opening, login), "no password is stored"),
        Err(_) => (mock(opening, login), "the stored verifier is malformed"),
    };
    let hash = opening.shared.client_tls().and_then(|tls| tls.end_point_hash().map(<[u8]>::to_vec));
    let binding = match hash.filter(|_| opening.is_tls()) {
        Some(hash) => ChannelBinding::TlsServerEndPoint(hash),
        None => ChannelBinding::None,
    };
    let mut exchange = ServerScram::new(&verifier, binding);
    let mut out = Vec::new();
    build::auth_sasl(&mut out, exchange.mechanisms()).map_err(|e| malformed(&e))?;
    opening.send(&out).await.map_err(|_| Failed::Gone)?;
    let body = opening.password(Expected::Sasl).await?;
    let end = body.iter().position(|b| *b == 0).ok_or_else(|| malformed(&"invalid string in message"))?;
    let mechanism = String::from_utf8_lossy(&body[..end]);
    if !exchange.mechanisms().contains(&mechanism.as_ref()) {
        return Err(scram_failed(scram::ScramError::Mechanism, cause));
    }
    let initial = message::sasl_initial(&body).map_err(|e| malformed(&e))?;
    let later;
    let first = match initial.data {
        Some(first) => first,
        None => {
            // The client begins once it is asked to. // RFC 4422, section 3.3
            out.clear();
            build::auth_sasl_continue(&mut out, b"").map_err(|e| malformed(&e))?;
            opening.send(&out).await.map_err(|_| Failed::Gone)?;
            later = opening.password(Expected::Sasl).await?;
            &later
        }
    };
    let challenge = exchange.first(&mechanism, first).map_err(|e| scram_failed(e, cause))?;
    out.clear();
    build::auth_sasl_continue(&mut out, &challenge).map_err(|e| malformed(&e))?;
    opening.send(&out).await.map_err(|_| Failed::Gone)?;
    let body = Zeroizing::new(opening.password(Expected::Sasl).await?);
    let (last, _client_key) = exchange.last(&body).map_err(|e| scram_failed(e, cause))?;
    // Sent together with the welcome, and only if there is one.
    build::auth_sasl_final(&mut opening.parting, &last).map_err(|e| malformed(&e))?;
    Ok(proven(Method::Scram))
}

/// The verifier of nobody. Of a user that exists all tenants' sessions see the same salt; of one that
/// does not, too.
fn mock(opening: &Opening, login: &str) -> scram::Verifier {
    let settings = opening.shared.settings();
    let name = login.split(|c| settings.identity.user_separators.contains(&c)).next().unwrap_or(login);
    opening.shared.mock_verifier(name)
}

fn scram_failed(error: scram::ScramError, cause: &str) -> Failed {
    match error {
        scram::ScramError::WrongProof => wrong(Method::Scram, cause),
        other => Failed::Protocol(other.response()),
    }
}

/// Asks for a password as it is. Only where nobody can listen.
async fn ask_in_clear(opening: &mut Opening) -> Result<Zeroizing<Vec<u8>>, Failed> {
    let mut out = Vec::new();
    build::auth_cleartext(&mut out);
    opening.send(&out).await.map_err(|_| Failed::Gone)?;
    let body = Zeroizing::new(opening.password(Expected::Password).await?);
    let password = message::password(&body).map_err(|e| malformed(&e))?;
    Ok(Zeroizing::new(password.to_vec()))
}

/// A token; from users who have a verifier as well, a password is as good.
async fn by_token(opening: &mut Opening, topology: &Topology, resolved: &Resolved) -> Result<Proven, Failed> {
    let password = ask_in_clear(opening).await?;
    if !looks_like_jwt(&password) {
        let Some(Verifier::Scram(verifier)) = &resolved.user.verifier else {
            return Err(wrong(Method::Jwt, "not a token"));
        };
        return by_password(&password, verifier.expose_secret());
    }
    let token = std::str::from_utf8(&password).map_err(|_| wrong(Method::Jwt, "not a token"))?;
    let jwt = &opening.shared.jwt;
    // Whose own issuers to ask: the session says, or else the token does.
    let asked = resolved.expected().cloned().or_else(|| jwt.named_tenant(token, &topology.jwt));
    let tenant = asked.as_ref().and_then(|id| topology.tenants.get(id));
    let claims = jwt
        .verify(token, &topology.jwt, tenant.map(|t| t.jwt.as_slice()).unwrap_or_default())
        .await
        .map_err(|error| wrong(Method::Jwt, error.to_string()))?;
    if claims.user.as_ref().is_some_and(|user| *user != resolved.user.name && *user != resolved.login_name) {
        return Err(wrong(Method::Jwt, "the token is for another user"));
    }
    Ok(Proven { method: Method::Jwt, token: Some((claims, asked)) })
}

/// A password given as it is, checked by the SCRAM verifier.
fn by_password(password: &[u8], verifier: &str) -> Result<Proven, Failed> {
    let verifier = scram::Verifier::parse(verifier)
        .map_err(|_| wrong(Method::Password, "the stored verifier is malformed"))?;
    if verifier.matches(password) {
        Ok(proven(Method::Password))
    } else {
        Err(wrong(Method::Password, "wrong password"))
    }
}

/// The challenge of old drivers.
async fn by_md5(opening: &mut Opening, stored: &str) -> Result<Proven, Failed> {
    let mut salt = [0; 4];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| Failed::Gone)?;
    let mut out = Vec::new();
    build::auth_md5(&mut out, salt);
    opening.send(&out).await.map_err(|_| Failed::Gone)?;
    let body = opening.password(Expected::Password).await?;
    let answer = message::password(&body).map_err(|e| malformed(&e))?;
    let expected = md5::md5_response(stored, salt);
    if bool::from(expected.as_bytes().ct_eq(answer)) {
        Ok(proven(Method::Md5))
    } else {
        Err(wrong(Method::Md5, "wrong password"))
    }
}
