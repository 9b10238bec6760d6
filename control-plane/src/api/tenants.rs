//! `/v1/tenants`.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use switchyard_config::topology::TenantState;
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::answer::{Tagged, behind, cursor, page_size, tagged};
use super::caller::{Operator, TenantOperator, TenantViewer, Viewer};
use super::input::{Json, Name, Names, Query};
use super::problem::Problem;
use super::users::NewUserAnswer;
use crate::provision;
use crate::store::{Limits, NewTenant, NewUser, Operation, Tenant, TenantFilter, TenantLimits, TenantPatch};

/// Longest time of grace, in seconds: a year.
const MAX_GRACE_SECONDS: u32 = 366 * 86_400;

/// Tenants, and where to go on.
#[derive(Serialize, ToSchema)]
pub(super) struct TenantList {
    items: Vec<Tenant>,
    /// What to give as `cursor` for those that follow; none at the end.
    next: Option<String>,
}

/// A tenant to be made, and its user.
#[derive(Deserialize, ToSchema)]
pub(super) struct CreateTenant {
    #[serde(flatten)]
    tenant: NewTenant,
    /// Whether to make a user for it, named as `user` says. Default true.
    #[serde(default = "yes")]
    with_user: bool,
    /// Name of the user; the tenant's id if not given.
    user: Option<String>,
    /// Whether to make its place on the shard ready, as the settings say. Default true.
    #[serde(default = "yes")]
    provision: bool,
}

fn yes() -> bool {
    true
}

/// A tenant that was made.
#[derive(Serialize, ToSchema)]
pub(super) struct CreatedTenant {
    #[serde(flatten)]
    tenant: Tenant,
    /// Its user, whose password is told this once.
    user: Option<NewUserAnswer>,
    /// The URL to connect by, with the password.
    url: Option<String>,
}

/// Where a tenant is to live.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPlacement {
    shard: String,
    /// Even if the shard is cordoned.
    #[serde(default)]
    force: bool,
}

/// How a tenant is to be deleted.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Deletion {
    /// Seconds until its rows are deleted and it is taken out of the catalog, during which it can
    /// be undeleted. Default: as the control plane is configured, 7 days if that does not say.
    #[param(maximum = 31622400)]
    grace_seconds: Option<u32>,
    /// Leave its rows on the shard.
    keep_data: Option<bool>,
}

/// Tenants by id.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants", params(TenantFilter),
    responses((status = 200, body = TenantList), (status = "default", body = Problem)))]
pub(super) async fn list(
    _: Viewer,
    State(app): State<App>,
    Query(filter): Query<TenantFilter>,
) -> Result<Answer<TenantList>, Problem> {
    let after = behind(filter.cursor.as_deref())?;
    let (items, next) = app.store.tenants(&filter, &after, page_size(filter.limit)).await?;
    Ok(Answer(TenantList { items, next: next.as_deref().map(cursor) }))
}

/// Makes a tenant, with a user of its own unless `with_user` is false, and its place on the shard.
#[utoipa::path(post, path = "/v1/tenants", tag = "tenants", request_body = CreateTenant,
    responses((status = 201, body = CreatedTenant), (status = "default", body = Problem)))]
pub(super) async fn create(
    Operator(caller): Operator,
    State(app): State<App>,
    Json(new): Json<CreateTenant>,
) -> Result<Response, Problem> {
    let name = new.user.as_deref().unwrap_or(&new.tenant.id);
    let user = new.with_user.then(|| NewUser::of_tenant(name, &new.tenant.id));
    let (tenant, user) = app.store.create_tenant(&caller, new.tenant, user).await?;
    let mut made = None;
    if new.provision
        && let Err(error) = provision::make_ready(&app.store, &tenant, &mut made).await
    {
        // What cannot work must not stay: it would be in the way of the next attempt.
        provision::take_away(&app.store, &tenant, made).await;
        app.store.delete_tenant(&caller, &tenant.id).await?;
        return Err(error.into());
    }
    let user = user.map(|(user, secrets)| NewUserAnswer::new(&app, user, secrets, None));
    let url = user.as_ref().and_then(|u| u.url.clone());
    let body = CreatedTenant { tenant: tenant.clone(), user, url };
    Ok(tagged(StatusCode::CREATED, &tenant, &body))
}

/// One tenant.
#[utoipa::path(get, path = "/v1/tenants/{id}", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn show(
    _: TenantViewer,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Tagged<Tenant>, Problem> {
    Ok(Tagged(app.store.tenant(&id).await?))
}

/// Changes what is given; `null` takes it away.
#[utoipa::path(patch, path = "/v1/tenants/{id}", tag = "tenants",
    params(("id" = String, Path), ("If-Match" = String, Header)),
    request_body = TenantPatch, responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn update(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
    Json(patch): Json<TenantPatch>,
) -> Result<Tagged<Tenant>, Problem> {
    Ok(Tagged(app.store.update_tenant(&caller, &id, patch).await?))
}

/// Serves a tenant no more, and begins the operation that deletes it for good after a time of grace.
#[utoipa::path(delete, path = "/v1/tenants/{id}", tag = "tenants",
    params(("id" = String, Path), ("If-Match" = String, Header), Deletion),
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn delete(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
    Query(how): Query<Deletion>,
) -> Result<Response, Problem> {
    let grace = how.grace_seconds.map_or(app.delete_grace.as_secs_f64(), f64::from);
    if grace > f64::from(MAX_GRACE_SECONDS) {
        let detail = format!("`grace_seconds` must be at most {MAX_GRACE_SECONDS}");
        return Err(Problem::malformed(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let operation =
        app.store.schedule_deletion(&caller, &id, grace, how.keep_data.unwrap_or_default()).await?;
    Ok(accepted(&operation))
}

/// 202, and where the operation is.
pub(super) fn accepted(operation: &Operation) -> Response {
    let mut response = (StatusCode::ACCEPTED, Answer(operation)).into_response();
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/operations/{}", operation.id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}

/// Serves a tenant again that is being deleted.
#[utoipa::path(post, path = "/v1/tenants/{id}/undelete", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn undelete(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Tagged<Tenant>, Problem> {
    Ok(Tagged(app.store.undelete(&caller, &id).await?))
}

/// Sets where a tenant lives, and raises its epoch. Its rows are not moved by this.
#[utoipa::path(put, path = "/v1/tenants/{id}/placement", tag = "tenants",
    params(("id" = String, Path), ("If-Match" = String, Header)),
    request_body = NewPlacement, responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn place(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
    Json(new): Json<NewPlacement>,
) -> Result<Tagged<Tenant>, Problem> {
    let placed = app.store.place(&caller, &id, &new.shard, new.force).await?;
    // Asked for again, it is tried again.
    provision::admit(&app.store, &placed).await?;
    Ok(Tagged(placed))
}

/// Serves a tenant no more.
#[utoipa::path(post, path = "/v1/tenants/{id}/suspend", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn suspend(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Tagged<Tenant>, Problem> {
    Ok(Tagged(app.store.set_state(&caller, &id, TenantState::Suspended).await?))
}

/// Lets a tenant read and not write.
#[utoipa::path(post, path = "/v1/tenants/{id}/read-only", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn read_only(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Tagged<Tenant>, Problem> {
    Ok(Tagged(app.store.set_state(&caller, &id, TenantState::ReadOnly).await?))
}

/// Serves a tenant again, without any restriction.
#[utoipa::path(post, path = "/v1/tenants/{id}/resume", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn resume(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Tagged<Tenant>, Problem> {
    Ok(Tagged(app.store.set_state(&caller, &id, TenantState::Active).await?))
}

/// What a tenant may use: its plan's limits, its own, and what holds.
#[utoipa::path(get, path = "/v1/tenants/{id}/limits", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = TenantLimits), (status = "default", body = Problem)))]
pub(super) async fn limits(
    _: TenantViewer,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Tagged<TenantLimits>, Problem> {
    Ok(Tagged(app.store.tenant_limits(&id).await?))
}

/// Sets everything that a tenant has otherwise than its plan says.
#[utoipa::path(put, path = "/v1/tenants/{id}/limits", tag = "tenants",
    params(("id" = String, Path), ("If-Match" = String, Header)), request_body = Limits,
    responses((status = 200, body = TenantLimits), (status = "default", body = Problem)))]
pub(super) async fn set_limits(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
    Json(own): Json<Limits>,
) -> Result<Tagged<TenantLimits>, Problem> {
    Ok(Tagged(app.store.set_tenant_limits(&caller, &id, own).await?))
}

/// Trusts an issuer for this tenant alone, by the keys given, in place of the one by that name.
#[utoipa::path(put, path = "/v1/tenants/{id}/issuers/{name}", tag = "tenants",
    params(("id" = String, Path), ("name" = String, Path), ("If-Match" = String, Header)), request_body = Object,
    responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn put_issuer(
    TenantOperator(caller): TenantOperator,
    State(app): State<App>,
    Names(id, name): Names,
    Json(doc): Json<Value>,
) -> Result<Tagged<Tenant>, Problem> {
    // A file or an address is the installation's: a tenant's operator could make routers fetch.
    if caller.tenant.is_some() && doc["keys"]["static"].is_null() {
        let detail = "a token of one tenant can set `static` keys only";
        return Err(Problem::malformed(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    Ok(Tagged(app.store.set_tenant_issuer(&caller, &id, &name, Some(doc)).await?))
}

/// Trusts an issuer no more.
#[utoipa::path(delete, path = "/v1/tenants/{id}/issuers/{name}", tag = "tenants",
    params(("id" = String, Path), ("name" = String, Path), ("If-Match" = String, Header)),
    responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn delete_issuer(
    TenantOperator(caller): TenantOperator,
    State(app): State<App>,
    Names(id, name): Names,
) -> Result<Tagged<Tenant>, Problem> {
    Ok(Tagged(app.store.set_tenant_issuer(&caller, &id, &name, None).await?))
}

impl NewUserAnswer {
    /// What is told of a user that was made; `password` is the one that the caller gave.
    pub(super) fn new(
        app: &App,
        user: crate::store::User,
        secrets: crate::store::Secrets,
        password: Option<secrecy::SecretString>,
    ) -> Self {
        // Who acts for nobody, but for the console, is not let into the database that the URL names.
        let known = secrets.password.as_ref().or(password.as_ref());
        let known = known.filter(|_| user.any_tenant || !user.tenants.is_empty());
        let url = known.map(|p| app.client_url.of_user(&user.name, p.expose_secret()));
        let password = secrets.password.map(|p| p.expose_secret().to_owned());
        Self { user, password, url }
    }
}
