//! Who asks, as handlers take it: by the least role that they need.

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;

use super::App;
use super::problem::Problem;
use crate::store::{Caller, Role};

/// May look.
pub(super) struct Viewer;

/// May change what tenants see.
pub(super) struct Operator(pub(super) Caller);

/// May do anything.
pub(super) struct Admin(pub(super) Caller);

/// The caller, if its token is good for `role`.
pub(super) async fn caller(parts: &Parts, app: &App, role: Role, needed: &str) -> Result<Caller, Problem> {
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
    let (scheme, token) = header.and_then(|h| h.split_once(' ')).ok_or_else(Problem::unauthenticated)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Problem::unauthenticated());
    }
    let caller = app.store.caller(token.trim()).await?.ok_or_else(Problem::unauthenticated)?;
    if caller.role < role { Err(Problem::forbidden(needed)) } else { Ok(caller) }
}

impl FromRequestParts<App> for Viewer {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        caller(parts, app, Role::Viewer, "viewer").await.map(|_| Self)
    }
}

impl FromRequestParts<App> for Operator {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        caller(parts, app, Role::Operator, "operator").await.map(Self)
    }
}

impl FromRequestParts<App> for Admin {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        caller(parts, app, Role::Admin, "admin").await.map(Self)
    }
}
