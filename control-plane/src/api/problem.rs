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
    detail: Box<str>,
    /// The field of the request at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    /// When to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u32>,
    /// The operation that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<Box<str>>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl ToString) -> Self {
        let kind = format!("urn:switchyard:problem:{code}");
        Self {
            kind,
            title,
            status: status.as_u16(),
            code,
            detail: detail.to_string().into(),
            field: None,
            retry_after_seconds: None,
            operation: None,
        }
    }

    pub(super) fn not_found(detail: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "Not found", detail)
    }

    pub(super) fn unauthenticated() -> Self {
        let detail = "send a token that is valid: `Authorization: Bearer ...`";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "No valid token", detail)
    }

    pub(super) fn forbidden(needed: &str, out_of_scope: bool) -> Self {
        let detail = if out_of_scope {
            "the token is good for one tenant only, and this is not about that tenant".to_owned()
        } else {
            format!("the token's role does not allow this; it needs {needed}")
        };
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed", detail)
    }

    pub(super) fn precondition_required() -> Self {
        let detail = "send `If-Match` with the ETag of what is to be changed, or `If-Match: *`";
        Self::new(StatusCode::PRECONDITION_REQUIRED, "precondition_required", "If-Match is missing", detail)
    }

    pub(super) fn key_reused() -> Self {
        let detail = "another request was sent with this Idempotency-Key";
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self::new(status, "idempotency_key_reused", "The key was used for something else", detail)
    }

    pub(super) fn under_way() -> Self {
        let detail = "the request that was sent with this Idempotency-Key is not done yet";
        let mut problem = Self::new(StatusCode::CONFLICT, "under_way", "The request is under way", detail);
        problem.retry_after_seconds = Some(1);
        problem
    }

    /// The operation that is in the way, or that goes on.
    pub(super) fn with_operation(mut self, id: String) -> Self {
        self.operation = Some(id.into());
        self
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
            StoreError::Busy { operation, .. } => {
                let operation = operation.clone();
                Self::new(StatusCode::CONFLICT, "busy", "Something else is under way", failure)
                    .with_operation(operation)
            }
            StoreError::Forbidden { .. } => {
                Self::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed", failure)
            }
            StoreError::Changed { .. } => {
                let title = "It is not what you take it for";
                Self::new(StatusCode::PRECONDITION_FAILED, "changed", title, failure)
            }
            StoreError::Unopened { .. } => {
                let status = StatusCode::CONFLICT;
                Self::new(status, "unopened", "A sealed value does not open", failure)
            }
            StoreError::Shard { .. } => {
                Self::new(StatusCode::BAD_GATEWAY, "shard_failed", "A shard did not do it", failure)
            }
            StoreError::Unavailable => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Self {
                    retry_after_seconds: Some(1),
                    ..Self::new(status, "catalog_unavailable", "The catalog is not available", failure)
                }
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
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
