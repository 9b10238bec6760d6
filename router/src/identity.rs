//! Who is the tenant of a bound session. Pure: no IO, no clock.
//!
//! It takes two steps, because a client proves itself in between. [`resolve`] finds the user and what
//! the session itself says of its tenant; [`decide`] adds what the proof says and gives the tenant. All that
//! speak must agree, and the credential must be allowed to act for the tenant: a claim is never a proof.
//!
//! Except for [`IdentityError::Suspended`] and [`IdentityError::NoConsole`], a client must not be able to tell any of the errors from a
//! wrong password: whoever gets one from [`resolve`] goes on with an exchange that fails.

mod agreement;
mod error;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use switchyard_config::TenantId;
use switchyard_config::settings::IdentitySettings;
use switchyard_config::topology::{
    ConsoleRole, ContextTemplate, Tenant, TenantGrant, TenantState, Topology, User,
};

use crate::auth::jwt::Claims;
use agreement::Agreement;
pub use error::{IdentityError, Source};
use template::Inverted;

/// What a session says of itself before it has proven anything.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The `user` startup parameter.
    pub user: &'a str,
    /// The `database` startup parameter; empty if the client named none.
    pub database: &'a str,
    /// All other startup parameters, in order.
    pub startup: &'a [(String, String)],
    /// The settings in the `options` startup parameter, already taken apart.
    pub options: &'a [(String, String)],
    /// The server name of the TLS handshake.
    pub sni: Option<&'a str>,
}

/// What is known before the client has proven itself.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The user to be proven.
    pub user: Arc<User>,
    /// The user name as the client gave it, with any suffix.
    pub login_name: String,
    /// The tenant that all sources but the token and the credential agree on; none if none spoke.
    pub claimed: Option<TenantId>,
    /// Names, as the client spelt them, of parameters and options that spoke of the tenant and must not be
    /// replayed as settings. The names of settings are compared without case: see [`Self::is_consumed`].
    pub consumed: Vec<String>,
    /// What `claimed` came from, for the rest of the comparison.
    said: Agreement,
    /// Custom settings given by the client. The tenant's own context, known only at the end, may have
    /// variables among them.
    custom: Vec<(String, String)>,
}

impl Resolved {
    /// Whether the parameter `name` spoke of the tenant and must not be replayed as a setting.
    pub fn is_consumed(&self, name: &str) -> bool {
        self.consumed.iter().any(|c| c.eq_ignore_ascii_case(name))
    }

    /// The tenant that the session will be of, as far as can be told before a proof: the one claimed, or the only one
    /// of the user. Its own issuers are to be asked about a token.
    pub fn expected(&self) -> Option<&TenantId> {
        self.claimed.as_ref().or_else(|| only_tenant(&self.user.tenants))
    }
}

/// What the client has proven itself with.
#[derive(Debug, Clone, Copy)]
pub enum Proof<'a> {
    /// A password, a certificate, or nothing where that is trusted.
    Credential,
    /// A token.
    Token {
        /// What was verified.
        claims: &'a Claims,
        /// The tenant whose own issuers were given to the verifier, if any.
        issuers_of: Option<&'a TenantId>,
    },
}

/// Finds the user, and the tenant that the session claims.
///
/// The order of the sources is fixed: server name, user suffix, startup parameter, session variables
/// of the context, database name.
///
/// # Errors
/// If there is no such user, if two sources contradict each other, or if one says what is no tenant id.
pub fn resolve(
    topology: &Topology,
    settings: &IdentitySettings,
    sources: &Sources<'_>,
) -> Result<Resolved, IdentityError> {
    let (user, suffix) = find_user(topology, settings, sources.user)?;
    let mut said = Agreement::default();
    let mut consumed = Vec::new();

    if let Some(front) = sources.sni.and_then(|sni| in_front_of_suffix(settings, sni)) {
        hear_server_name(&mut said, topology, front)?;
    }
    if let Some(suffix) = suffix {
        said.hear(Source::UserSuffix, tenant_id(Source::UserSuffix, suffix)?)?;
    }
    let parameters = || sources.startup.iter().chain(sources.options);
    if let Some(key) = &settings.startup_parameter {
        for (name, value) in parameters().filter(|(name, _)| name.eq_ignore_ascii_case(key)) {
            said.hear(Source::StartupParameter, tenant_id(Source::StartupParameter, value)?)?;
            consume(&mut consumed, name);
        }
    }
    if let Some(template) = &settings.database
        && !sources.database.is_empty()
        && let Inverted::Tenant(id) = template::invert(template, &user.name, sources.database)
    {
        said.hear(Source::Database, tenant_id(Source::Database, id)?)?;
    }
    // Whose context counts is best known now; a tenant found later is compared in `decide`.
    let custom: Vec<_> = parameters().filter(|(name, _)| name.contains('.')).cloned().collect();
    // To a roaming user they are settings like any other, which a transaction may change.
    if !user.methods.roaming {
        let context = context_of(topology, said.tenant().or_else(|| only_tenant(&user.tenants)));
        hear_variables(&mut said, &context, &user, &custom, &mut consumed)?;
    }

    Ok(Resolved {
        claimed: said.tenant().cloned(),
        login_name: sources.user.to_owned(),
        user,
        consumed,
        said,
        custom,
    })
}

/// The tenant of a session whose client has proven to be `resolved.user`.
///
/// # Errors
/// If the proof contradicts the session, if nothing names a tenant, or if the tenant is not granted, not known or
/// suspended. The last is found only after everything else is in order, so that it may be told.
pub fn decide(
    topology: &Topology,
    resolved: &Resolved,
    proof: Proof<'_>,
) -> Result<Arc<Tenant>, IdentityError> {
    let user = &resolved.user;
    let mut said = resolved.said.clone();
    if let Proof::Token { claims, issuers_of } = proof {
        hear_token(&mut said, resolved, claims, issuers_of)?;
    }
    if let Some(only) = only_tenant(&user.tenants) {
        said.hear(Source::Credential, only.clone())?;
    }
    let id = said.tenant().cloned().ok_or_else(|| IdentityError::NotNamed { user: user.name.clone() })?;
    if !user.tenants.allows(&id) {
        return Err(IdentityError::NotGranted { user: user.name.clone(), tenant: id });
    }
    let context = context_of(topology, Some(&id));
    hear_variables(&mut said, &context, user, &resolved.custom, &mut Vec::new())?;
    let tenant = topology.tenant(&id).ok_or(IdentityError::UnknownTenant { tenant: id })?;
    match tenant.state {
        TenantState::Active | TenantState::ReadOnly => Ok(tenant),
        TenantState::Suspended | TenantState::Deleting => Err(IdentityError::Suspended { tenant }),
    }
}

/// Whether the client, having proven to be `resolved.user`, gets a session that roams; none if its session is of one
/// tenant, as its user does not roam or something names a tenant.
///
/// # Errors
/// If a token does not say that it was made for this user.
pub fn decide_roaming(resolved: &Resolved, proof: Proof<'_>) -> Option<Result<(), IdentityError>> {
    let user = &resolved.user;
    if !user.methods.roaming || resolved.claimed.is_some() {
        return None;
    }
    let Proof::Token { claims, .. } = proof else { return Some(Ok(())) };
    if claims.tenant.is_some() || claims.from_tenant_issuer {
        return None;
    }
    Some(match &claims.user {
        Some(name) if *name == user.name || *name == resolved.login_name => Ok(()),
        Some(name) => Err(IdentityError::OtherUser { user: user.name.clone(), claim: error::shown(name) }),
        None => Err(IdentityError::TokenWithoutTenant { user: user.name.clone() }),
    })
}

/// Finds the user of a session of the console, which has no tenant: nothing but its own name says who it is.
///
/// # Errors
/// If there is no such user.
pub fn resolve_console(topology: &Topology, login: &str) -> Result<Resolved, IdentityError> {
    let user =
        topology.users.get(login).ok_or_else(|| IdentityError::UnknownUser { login: error::shown(login) })?;
    Ok(Resolved {
        user: user.clone(),
        login_name: login.to_owned(),
        claimed: None,
        consumed: Vec::new(),
        said: Agreement::default(),
        custom: Vec::new(),
    })
}

/// What the client, having proven to be `resolved.user`, may do in the console.
///
/// # Errors
/// If that is nothing, or if a token does not say that it was made for this user: one that names a tenant
/// only would let every client of that tenant in.
pub fn decide_console(resolved: &Resolved, proof: Proof<'_>) -> Result<ConsoleRole, IdentityError> {
    let user = &resolved.user;
    if let Proof::Token { claims, .. } = proof {
        match &claims.user {
            _ if claims.from_tenant_issuer => return Err(IdentityError::IssuerOfNobody),
            Some(name) if *name == user.name => {}
            Some(name) => {
                return Err(IdentityError::OtherUser { user: user.name.clone(), claim: error::shown(name) });
            }
            None => return Err(IdentityError::TokenWithoutTenant { user: user.name.clone() }),
        }
    }
    user.methods.console.ok_or_else(|| IdentityError::NoConsole { user: user.name.clone() })
}

/// The user called `login`, or the user in front of a separator in it and the tenant behind.
fn find_user<'a>(
    topology: &Topology,
    settings: &IdentitySettings,
    login: &'a str,
) -> Result<(Arc<User>, Option<&'a str>), IdentityError> {
    if let Some(user) = topology.users.get(login) {
        return Ok((user.clone(), None));
    }
    for (at, separator) in login.char_indices().filter(|(_, c)| settings.user_separators.contains(c)) {
        if let Some(user) = topology.users.get(&login[..at]) {
            return Ok((user.clone(), Some(&login[at + separator.len_utf8()..])));
        }
    }
    Err(IdentityError::UnknownUser { login: error::shown(login) })
}

/// What stands in front of the configured suffix in a server name. Names that do not end in it say
/// nothing of a tenant: clients may well reach us by another name.
fn in_front_of_suffix<'a>(settings: &IdentitySettings, sni: &'a str) -> Option<&'a str> {
    let suffix = settings.sni_suffix.as_deref()?.trim_start_matches('.');
    let sni = sni.strip_suffix('.').unwrap_or(sni);
    let split = sni.len().checked_sub(suffix.len())?;
    let (front, end) = sni.split_at_checked(split)?;
    let front = front.strip_suffix('.').filter(|front| !front.is_empty())?;
    (!suffix.is_empty() && end.eq_ignore_ascii_case(suffix)).then_some(front)
}

/// Host names have no case (RFC 4343) and tenants do: an exact match wins, then the only one without case.
/// A name that matches none stands for whichever spelling another source gives.
fn hear_server_name(said: &mut Agreement, topology: &Topology, name: &str) -> Result<(), IdentityError> {
    if let Some((id, _)) = topology.tenants.get_key_value(name) {
        return said.hear(Source::ServerName, id.clone());
    }
    let mut alike = topology.tenants.keys().filter(|id| id.as_str().eq_ignore_ascii_case(name));
    match (alike.next(), alike.next()) {
        (Some(id), None) => said.hear(Source::ServerName, id.clone()),
        (Some(_), Some(_)) => Err(IdentityError::AmbiguousServerName { name: error::shown(name) }),
        (None, _) => said.hear_without_case(
            Source::ServerName,
            tenant_id(Source::ServerName, &name.to_ascii_lowercase())?,
        ),
    }
}

/// Compares settings that the client gives with the context's variables that hold the tenant.
///
/// Only custom settings (those with a dot) speak of a tenant: `application_name` and the like have a
/// meaning of their own to the client, even where the context sets them too.
fn hear_variables(
    said: &mut Agreement,
    context: &ContextTemplate,
    user: &User,
    custom: &[(String, String)],
    consumed: &mut Vec<String>,
) -> Result<(), IdentityError> {
    for (variable, template) in &context.variables {
        for (name, value) in custom.iter().filter(|(name, _)| name.eq_ignore_ascii_case(variable)) {
            match template::invert(template, &user.name, value) {
                Inverted::NoTenant => {}
                Inverted::Tenant(id) => {
                    said.hear(Source::Variable, tenant_id(Source::Variable, id)?)?;
                    consume(consumed, name);
                }
                Inverted::Mismatch => {
                    return Err(IdentityError::InvalidTenant {
                        said_by: Source::Variable,
                        value: error::shown(value),
                        why: "it does not fit the template of the variable".to_owned(),
                    });
                }
            }
        }
    }
    Ok(())
}

/// What a token says of the user and the tenant, and whether that is enough.
fn hear_token(
    said: &mut Agreement,
    resolved: &Resolved,
    claims: &Claims,
    issuers_of: Option<&TenantId>,
) -> Result<(), IdentityError> {
    let user = &resolved.user;
    if let Some(name) = &claims.user
        && *name != user.name
        && *name != resolved.login_name
    {
        return Err(IdentityError::OtherUser { user: user.name.clone(), claim: error::shown(name) });
    }
    if let Some(tenant) = &claims.tenant {
        said.hear(Source::TokenClaim, tenant.clone())?;
    }
    if claims.from_tenant_issuer {
        let tenant = issuers_of.ok_or(IdentityError::IssuerOfNobody)?;
        return said.hear(Source::TokenIssuer, tenant.clone());
    }
    match (&claims.tenant, &user.tenants) {
        (Some(_), _) => Ok(()),
        (None, TenantGrant::Any) => Err(IdentityError::TokenWithoutTenant { user: user.name.clone() }),
        // It names neither the user nor the tenant: every token of the issuer would do for this user.
        (None, _) if claims.user.is_none() => {
            Err(IdentityError::TokenWithoutTenant { user: user.name.clone() })
        }
        (None, _) => Ok(()),
    }
}

/// The tenant that need not be said, as there is no other.
fn only_tenant(grant: &TenantGrant) -> Option<&TenantId> {
    match grant {
        TenantGrant::One(tenant) => Some(tenant),
        TenantGrant::List(list) => match list.as_slice() {
            [tenant] => Some(tenant),
            _ => None,
        },
        TenantGrant::Any => None,
    }
}

fn context_of(topology: &Topology, tenant: Option<&TenantId>) -> Arc<ContextTemplate> {
    let own = tenant.and_then(|id| topology.tenants.get(id)).and_then(|tenant| tenant.context.clone());
    own.unwrap_or_else(|| topology.context.clone())
}

fn tenant_id(said_by: Source, value: &str) -> Result<TenantId, IdentityError> {
    TenantId::new(value).map_err(|why| IdentityError::InvalidTenant {
        said_by,
        value: error::shown(value),
        why: why.to_string(),
    })
}

fn consume(consumed: &mut Vec<String>, name: &str) {
    if !consumed.iter().any(|c| c == name) {
        consumed.push(name.to_owned());
    }
}
