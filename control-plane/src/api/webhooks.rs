//! `/v1/webhooks`: where alerts are sent to.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use secrecy::ExposeSecret;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::answer::tagged;
use super::caller::{Admin, Viewer};
use super::input::{Json, Name};
use super::problem::Problem;
use crate::store::{NewWebhook, Webhook};

/// All webhooks.
#[derive(Serialize, ToSchema)]
pub(super) struct WebhookList {
    items: Vec<Webhook>,
}

/// A webhook that was made.
#[derive(Serialize, ToSchema)]
pub(super) struct CreatedWebhook<'a> {
    #[serde(flatten)]
    webhook: &'a Webhook,
    /// What signs what is sent, if it was made here; told this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

/// Webhooks by name.
#[utoipa::path(get, path = "/v1/webhooks", tag = "usage",
    responses((status = 200, body = WebhookList), (status = "default", body = Problem)))]
pub(super) async fn list(_: Viewer, State(app): State<App>) -> Result<Answer<WebhookList>, Problem> {
    Ok(Answer(WebhookList { items: app.store.webhooks().await? }))
}

/// Has alerts sent to an address. Each is signed in the header `switchyard-signature`:
/// `t=<time>,v1=<HMAC-SHA-256 of "<time>.<body>">`; `switchyard-event-id` tells repetitions.
#[utoipa::path(post, path = "/v1/webhooks", tag = "usage", request_body = NewWebhook,
    responses((status = 201, body = CreatedWebhook), (status = "default", body = Problem)))]
pub(super) async fn create(
    Admin(caller): Admin,
    State(app): State<App>,
    Json(new): Json<NewWebhook>,
) -> Result<Response, Problem> {
    let (webhook, secret) = app.store.create_webhook(&caller, new).await?;
    let secret = secret.map(|s| s.expose_secret().to_owned());
    Ok(tagged(StatusCode::CREATED, &webhook, &CreatedWebhook { webhook: &webhook, secret }))
}

/// Takes a webhook away.
#[utoipa::path(delete, path = "/v1/webhooks/{name}", tag = "usage",
    params(("name" = String, Path), ("If-Match" = String, Header)),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete(
    Admin(caller): Admin,
    State(app): State<App>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    app.store.delete_webhook(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
