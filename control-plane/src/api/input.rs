//! Extractors whose refusals are problems too.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// A body that is a JSON object. What serde says of a wrong one may quote it, so only the place is told.
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(|e| Problem::malformed(e.status(), e.body_text()))?;
        // PostgreSQL keeps no NUL, in text or JSON.
        if body.windows(6).any(|w| w == b"\\u0000") || body.contains(&0) {
            let detail = "the body must not hold the character NUL";
            return Err(Problem::malformed(StatusCode::UNPROCESSABLE_ENTITY, detail));
        }
        // serde would take an array for a struct too, field by field.
        if body.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err(Problem::malformed(
                StatusCode::UNPROCESSABLE_ENTITY,
                "the body must be a JSON object",
            ));
        }
        serde_json::from_slice(&body).map(Self).map_err(|e| {
            let text = e.to_string();
            let names_only = ["missing field", "unknown field", "duplicate field"];
            let what = if names_only.iter().any(|n| text.starts_with(n)) {
                text
            } else {
                format!("the body is no JSON of the right form, near line {} column {}", e.line(), e.column())
            };
            Problem::malformed(StatusCode::UNPROCESSABLE_ENTITY, what)
        })
    }
}

/// Parameters of the query string.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        if parts.uri.query().is_some_and(|q| q.contains("%00")) {
            let detail = "the query must not hold the character NUL";
            return Err(Problem::malformed(StatusCode::BAD_REQUEST, detail));
        }
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query.map(|q| Self(q.0)).map_err(|e| Problem::malformed(StatusCode::BAD_REQUEST, e.body_text()))
    }
}

/// A part of the path.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        let path = path.map_err(|e| Problem::malformed(StatusCode::BAD_REQUEST, e.body_text()))?.0;
        without_nul(&path)?;
        Ok(Self(path))
    }
}

/// Two parts of the path.
pub(super) struct Names(pub(super) String, pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::<(String, String)>::from_request_parts(parts, state).await;
        let (first, second) = path.map_err(|e| Problem::malformed(StatusCode::BAD_REQUEST, e.body_text()))?.0;
        without_nul(&first)?;
        without_nul(&second)?;
        Ok(Self(first, second))
    }
}

/// Nothing has a name with NUL in it.
fn without_nul(name: &str) -> Result<(), Problem> {
    if name.contains('\0') { Err(Problem::not_found("there is nothing by this name")) } else { Ok(()) }
}
