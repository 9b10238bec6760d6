//! `/v1/tokens` and `/v1/audit`.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::caller::{Admin, Viewer};
use super::input::{Json, Name, Query};
use super::problem::Problem;
use crate::store::{AuditEvent, NewToken, Token};

/// Which deeds to tell.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditFilter {
    /// Those before this id.
    before: Option<i64>,
    /// Those done to this id.
    target: Option<String>,
    /// At most so many; 100 if not given, 1000 at most.
    limit: Option<u16>,
}

/// Deeds, the last first.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditList {
    items: Vec<AuditEvent>,
}

/// All tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenList {
    items: Vec<Token>,
}

/// A token that was made.
#[derive(Serialize, ToSchema)]
pub(super) struct CreatedToken {
    #[serde(flatten)]
    token: Token,
    /// What proves it; told this once.
    secret: String,
}

/// Who did what, the last first.
#[utoipa::path(get, path = "/v1/audit", tag = "access", params(AuditFilter),
    responses((status = 200, body = AuditList), (status = "default", body = Problem)))]
pub(super) async fn audit(
    _: Viewer,
    State(app): State<App>,
    Query(filter): Query<AuditFilter>,
) -> Result<Answer<AuditList>, Problem> {
    let limit = i64::from(filter.limit.unwrap_or(100).clamp(1, 1000));
    let items = app.store.audit(filter.before, filter.target.as_deref(), limit).await?;
    Ok(Answer(AuditList { items }))
}

/// All tokens, without what proves them.
#[utoipa::path(get, path = "/v1/tokens", tag = "access",
    responses((status = 200, body = TokenList), (status = "default", body = Problem)))]
pub(super) async fn tokens(_: Admin, State(app): State<App>) -> Result<Answer<TokenList>, Problem> {
    Ok(Answer(TokenList { items: app.store.tokens().await? }))
}

/// Makes a token.
#[utoipa::path(post, path = "/v1/tokens", tag = "access", request_body = NewToken,
    responses((status = 201, body = CreatedToken), (status = "default", body = Problem)))]
pub(super) async fn create_token(
    Admin(caller): Admin,
    State(app): State<App>,
    Json(new): Json<NewToken>,
) -> Result<(StatusCode, Answer<CreatedToken>), Problem> {
    let (token, secret) = app.store.create_token(&caller, new).await?;
    let secret = secret.expose_secret().to_owned();
    Ok((StatusCode::CREATED, Answer(CreatedToken { token, secret })))
}

/// Ends a token.
#[utoipa::path(delete, path = "/v1/tokens/{name}", tag = "access", params(("name" = String, Path)),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete_token(
    Admin(caller): Admin,
    State(app): State<App>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    app.store.delete_token(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
