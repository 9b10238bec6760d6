//! Errors as RFC 9457 tells them.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;

use crate::store::StoreError;

/// `application/problem+json`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Tells the kind of problem; the same as `code` behind a fixed prefix.
    #[serde(rename = "type")]
    kind: String,
    /// The kind, for people.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// A word to decide by: `not_found`, `conflict`, `invalid`, ...
    code: &'static str,
    /// What happened.
    detail: String,
    /// The field of the request at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl ToString) -> Self {
        let kind = format!("urn:switchyard:problem:{code}");
        Self { kind, title, status: status.as_u16(), code, detail: detail.to_string(), field: None }
    }

    pub(super) fn not_found(detail: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "Not found", detail)
    }

    pub(super) fn unauthenticated() -> Self {
        let detail = "send a token that is valid: `Authorization: Bearer ...`";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "No valid token", detail)
    }

    pub(super) fn forbidden(needed: &str) -> Self {
        let detail = format!("the token's role does not allow this; it needs {needed}");
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed", detail)
    }

    pub(super) fn malformed(status: StatusCode, detail: impl ToString) -> Self {
        Self::new(status, "malformed", "The request cannot be understood", detail)
    }
}

impl From<StoreError> for Problem {
    fn from(failure: StoreError) -> Self {
        match &failure {
            StoreError::NotFound { .. } => Self::not_found(failure),
            StoreError::Conflict(_) => Self::new(StatusCode::CONFLICT, "conflict", "Conflict", failure),
            StoreError::Invalid { field, .. } => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                Self { field: Some(field), ..Self::new(status, "invalid", "A value makes no sense", failure) }
            }
            StoreError::Unavailable => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Self::new(status, "catalog_unavailable", "The catalog is not available", failure)
            }
            _ => {
                error!(error = %failure, "a request failed");
                let detail = "the log of the control plane says more";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The request failed", detail)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(&self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
