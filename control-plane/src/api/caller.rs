//! Who asks, as handlers take it: by the least role that they need, and by whose things they show.
//!
//! [`Viewer`], [`Operator`] and [`Admin`] are for what concerns the whole installation: a token of
//! one tenant is refused. [`TenantViewer`] and its like are for what concerns the tenant whose id
//! is in the path as `{id}`, and let that tenant's tokens in too. [`AnyViewer`] is for lists that
//! the handler itself cuts down to the caller's tenant.

use axum::extract::connect_info::ConnectInfo;
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};

use super::App;
use super::problem::Problem;
use crate::listen::Peer;
use crate::store::{Caller, Precondition, Role};

/// Tells a request apart; put there for every request.
#[derive(Clone)]
pub(super) struct RequestId(pub(super) String);

/// Whose things a call is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The whole installation's.
    Everything,
    /// Those of the tenant in the path.
    PathTenant,
    /// Those of whoever asks.
    Own,
}

/// Whom the headers prove the caller to be.
pub(super) async fn authenticate(headers: &HeaderMap, app: &App) -> Result<Caller, Problem> {
    let header = headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
    let (scheme, token) = header.and_then(|h| h.split_once(' ')).ok_or_else(Problem::unauthenticated)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Problem::unauthenticated());
    }
    let token = token.trim();
    if let Some(oidc) = &app.oidc
        && token.bytes().filter(|b| *b == b'.').count() == 2
    {
        return oidc.caller(token).await.ok_or_else(Problem::unauthenticated);
    }
    app.store.caller(token).await?.ok_or_else(Problem::unauthenticated)
}

/// The caller, if it may do what needs `role` within `scope`.
pub(super) async fn caller(
    parts: &mut Parts,
    app: &App,
    role: Role,
    scope: Scope,
) -> Result<Caller, Problem> {
    let mut caller = authenticate(&parts.headers, app).await?;
    let peer = parts.extensions.get::<ConnectInfo<Peer>>();
    caller.source = peer.map(|ConnectInfo(Peer(address))| address.ip().to_canonical().to_string());
    caller.request_id = parts.extensions.get::<RequestId>().map(|id| id.0.clone());
    let in_scope = match scope {
        Scope::Everything => caller.tenant.is_none(),
        Scope::Own => true,
        Scope::PathTenant => {
            let params = RawPathParams::from_request_parts(parts, app).await;
            let id = params.ok().and_then(|p| p.iter().find(|(k, _)| *k == "id").map(|(_, v)| v.to_owned()));
            id.is_some_and(|id| caller.reaches(&id))
        }
    };
    if !in_scope || !caller.role.covers(role) {
        let route = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
        app.store.record_refusal(&caller, &format!("{} {route}", parts.method)).await?;
        return Err(Problem::forbidden(role.as_str(), !in_scope));
    }
    if [Method::PUT, Method::PATCH, Method::DELETE].contains(&parts.method) {
        caller.precondition = precondition(&parts.headers)?;
    }
    Ok(caller)
}

/// `If-Match: *` says that the caller does not mind what it changes.
fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    let mut tags = Vec::new();
    for value in headers.get_all(header::IF_MATCH) {
        let text = value.to_str().map_err(|_| Problem::precondition_required())?;
        for tag in text.split(',').map(str::trim) {
            if tag == "*" {
                return Ok(Precondition::None);
            }
            tags.push(tag.to_owned());
        }
    }
    if tags.is_empty() { Err(Problem::precondition_required()) } else { Ok(Precondition::Match(tags)) }
}

macro_rules! callers {
    ($($(#[$doc:meta])* $name:ident: $role:ident, $scope:ident;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name(
            #[allow(dead_code, reason = "who only looks is seldom asked who it is")] pub(super) Caller,
        );

        impl FromRequestParts<App> for $name {
            type Rejection = Problem;
            async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
                caller(parts, app, Role::$role, Scope::$scope).await.map(Self)
            }
        }
    )*};
}

callers! {
    /// May look at everything.
    Viewer: Viewer, Everything;
    /// May change what tenants see.
    Operator: Operator, Everything;
    /// May do anything.
    Admin: Admin, Everything;
    /// May look at the tenant in the path.
    TenantViewer: Viewer, PathTenant;
    /// May change what is the own of the tenant in the path.
    TenantOperator: Operator, PathTenant;
    /// May read the values of the tenant in the path.
    TenantApplication: Application, PathTenant;
    /// May look at what the handler finds to be the caller's own.
    AnyViewer: Viewer, Own;
    /// May read the metrics.
    Scraper: Metrics, Everything;
}
