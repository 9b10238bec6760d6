//! `/v1/tokens` and `/v1/audit`.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::answer::{behind, cut, page_size, tagged};
use super::caller::{Admin, AnyViewer, Viewer};
use super::input::{Json, Name, Query};
use super::problem::Problem;
use crate::store::{AuditEvent, AuditProof, AuditQuery, NewToken, Token};

/// Which deeds to tell.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditFilter {
    /// Those before this id, the last first.
    before: Option<i64>,
    /// Those behind this id, the first first, as an export goes.
    after: Option<i64>,
    /// Those done to this id.
    target: Option<String>,
    /// Those that concern this tenant.
    tenant: Option<String>,
    /// At most so many; 100 if not given, 1000 at most.
    limit: Option<u16>,
}

/// Deeds.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditList {
    items: Vec<AuditEvent>,
}

/// Where to go on, and how far.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct TokenFilter {
    /// Where to go on, as a list has answered.
    cursor: Option<String>,
    /// At most so many; 100 if not given, 1000 at most.
    limit: Option<u16>,
}

/// Tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenList {
    items: Vec<Token>,
    /// What to give as `cursor` for those that follow; none at the end.
    next: Option<String>,
}

/// A token that was made.
#[derive(Serialize, ToSchema)]
pub(super) struct CreatedToken<'a> {
    #[serde(flatten)]
    token: &'a Token,
    /// What proves it; told this once.
    secret: String,
}

/// Who did what, the last first unless `after` is given. A tenant's token sees what concerns it.
#[utoipa::path(get, path = "/v1/audit", tag = "access", params(AuditFilter),
    responses((status = 200, body = AuditList), (status = "default", body = Problem)))]
pub(super) async fn audit(
    AnyViewer(caller): AnyViewer,
    State(app): State<App>,
    Query(filter): Query<AuditFilter>,
) -> Result<Answer<AuditList>, Problem> {
    let query = AuditQuery {
        before: filter.before,
        after: filter.after,
        target: filter.target.as_deref(),
        tenant: caller.tenant.as_deref().or(filter.tenant.as_deref()),
        limit: page_size(filter.limit) as i64,
    };
    Ok(Answer(AuditList { items: app.store.audit(query).await? }))
}

/// Goes through the whole chain of deeds, and tells where it is broken, if it is.
#[utoipa::path(get, path = "/v1/audit/proof", tag = "access",
    responses((status = 200, body = AuditProof), (status = "default", body = Problem)))]
pub(super) async fn proof(_: Viewer, State(app): State<App>) -> Result<Answer<AuditProof>, Problem> {
    Ok(Answer(app.store.verify_audit().await?))
}

/// Tokens by name, without what proves them.
#[utoipa::path(get, path = "/v1/tokens", tag = "access", params(TokenFilter),
    responses((status = 200, body = TokenList), (status = "default", body = Problem)))]
pub(super) async fn tokens(
    Admin(caller): Admin,
    State(app): State<App>,
    Query(filter): Query<TokenFilter>,
) -> Result<Answer<TokenList>, Problem> {
    let size = page_size(filter.limit);
    app.store.record_read(&caller, "tokens", "all", None).await?;
    let mut items = app.store.tokens(&behind(filter.cursor.as_deref())?, size as i64 + 1).await?;
    let next = cut(&mut items, size, |t| t.name.clone());
    Ok(Answer(TokenList { items, next }))
}

/// Makes a token.
#[utoipa::path(post, path = "/v1/tokens", tag = "access", request_body = NewToken,
    responses((status = 201, body = CreatedToken), (status = "default", body = Problem)))]
pub(super) async fn create_token(
    Admin(caller): Admin,
    State(app): State<App>,
    Json(new): Json<NewToken>,
) -> Result<Response, Problem> {
    let (token, secret) = app.store.create_token(&caller, new).await?;
    let secret = secret.expose_secret().to_owned();
    Ok(tagged(StatusCode::CREATED, &token, &CreatedToken { token: &token, secret }))
}

/// Ends a token.
#[utoipa::path(delete, path = "/v1/tokens/{name}", tag = "access",
    params(("name" = String, Path), ("If-Match" = String, Header)),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete_token(
    Admin(caller): Admin,
    State(app): State<App>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    app.store.delete_token(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
