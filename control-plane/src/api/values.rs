//! `/v1/tenants/{id}/values`: what applications read, tenant by tenant.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::App;
use super::answer::Tagged;
use super::caller::{Admin, TenantApplication, TenantOperator, TenantViewer};
use super::input::{Json, Name, Names};
use super::problem::Problem;
use crate::store::{NewValue, ValueInfo};

/// Values of a tenant.
#[derive(Serialize, ToSchema)]
pub(super) struct ValueList {
    items: Vec<ValueInfo>,
}

/// A value, opened.
#[derive(Serialize, ToSchema)]
pub(super) struct OpenValue {
    name: String,
    /// Any JSON.
    #[schema(value_type = Object)]
    value: Value,
}

/// What was sealed anew.
#[derive(Serialize, ToSchema)]
pub(super) struct Rotated {
    /// Data keys and secrets.
    sealed: u64,
}

/// A tenant's values, without those that are secret.
#[utoipa::path(get, path = "/v1/tenants/{id}/values", tag = "values", params(("id" = String, Path)),
    responses((status = 200, body = ValueList), (status = "default", body = Problem)))]
pub(super) async fn list(
    _: TenantViewer,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Answer<ValueList>, Problem> {
    Ok(Answer(ValueList { items: app.store.values(&id).await? }))
}

/// All values of a tenant by name, secret ones opened: what an application starts with.
#[utoipa::path(get, path = "/v1/tenants/{id}/configuration", tag = "values", params(("id" = String, Path)),
    responses((status = 200, body = Object), (status = "default", body = Problem)))]
pub(super) async fn configuration(
    TenantApplication(caller): TenantApplication,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Response, Problem> {
    let values: Map<String, Value> = app.store.open_values(&caller, &id, None).await?;
    Ok(not_stored(Answer(values)))
}

/// One value, opened.
#[utoipa::path(get, path = "/v1/tenants/{id}/values/{name}", tag = "values",
    params(("id" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = OpenValue), (status = "default", body = Problem)))]
pub(super) async fn show(
    TenantApplication(caller): TenantApplication,
    State(app): State<App>,
    Names(id, name): Names,
) -> Result<Response, Problem> {
    let mut values = app.store.open_values(&caller, &id, Some(&name)).await?;
    let value = values.remove(&name).unwrap_or_default();
    Ok(not_stored(Answer(OpenValue { name, value })))
}

/// Nobody on the way may keep it.
fn not_stored(answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Sets a value; a secret one is sealed.
#[utoipa::path(put, path = "/v1/tenants/{id}/values/{name}", tag = "values",
    params(("id" = String, Path), ("name" = String, Path), ("If-Match" = String, Header)), request_body = NewValue,
    responses((status = 200, body = ValueInfo), (status = "default", body = Problem)))]
pub(super) async fn set(
    TenantOperator(caller): TenantOperator,
    State(app): State<App>,
    Names(id, name): Names,
    Json(new): Json<NewValue>,
) -> Result<Tagged<ValueInfo>, Problem> {
    Ok(Tagged(app.store.set_value(&caller, &id, &name, new).await?))
}

/// Takes a value away.
#[utoipa::path(delete, path = "/v1/tenants/{id}/values/{name}", tag = "values",
    params(("id" = String, Path), ("name" = String, Path), ("If-Match" = String, Header)),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete(
    TenantOperator(caller): TenantOperator,
    State(app): State<App>,
    Names(id, name): Names,
) -> Result<StatusCode, Problem> {
    app.store.delete_value(&caller, &id, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Seals everything anew that a key sealed which is not the first in the file of keys.
#[utoipa::path(post, path = "/v1/keys/rotate", tag = "values",
    responses((status = 200, body = Rotated), (status = "default", body = Problem)))]
pub(super) async fn rotate(Admin(caller): Admin, State(app): State<App>) -> Result<Answer<Rotated>, Problem> {
    Ok(Answer(Rotated { sealed: app.store.rotate_keys(&caller).await? }))
}
