//! `/v1/tenants`.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use switchyard_config::topology::TenantState;
use utoipa::ToSchema;

use super::App;
use super::caller::{Operator, Viewer};
use super::input::{Json, Name, Query};
use super::problem::Problem;
use super::users::NewUserAnswer;
use crate::store::{NewTenant, NewUser, Tenant, TenantFilter, TenantPatch};

/// Tenants, and where to go on.
#[derive(Serialize, ToSchema)]
pub(super) struct TenantList {
    items: Vec<Tenant>,
    /// What to give as `after` for those that follow; none at the end.
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

/// Tenants by id.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants", params(TenantFilter),
    responses((status = 200, body = TenantList), (status = "default", body = Problem)))]
pub(super) async fn list(
    _: Viewer,
    State(app): State<App>,
    Query(filter): Query<TenantFilter>,
) -> Result<Answer<TenantList>, Problem> {
    let (items, next) = app.store.tenants(&filter).await?;
    Ok(Answer(TenantList { items, next }))
}

/// Makes a tenant, with a user of its own unless `with_user` is false.
#[utoipa::path(post, path = "/v1/tenants", tag = "tenants", request_body = CreateTenant,
    responses((status = 201, body = CreatedTenant), (status = "default", body = Problem)))]
pub(super) async fn create(
    Operator(caller): Operator,
    State(app): State<App>,
    Json(new): Json<CreateTenant>,
) -> Result<(StatusCode, Answer<CreatedTenant>), Problem> {
    let name = new.user.as_deref().unwrap_or(&new.tenant.id);
    let user = new.with_user.then(|| NewUser::of_tenant(name, &new.tenant.id));
    let (tenant, user) = app.store.create_tenant(&caller, new.tenant, user).await?;
    let user = user.map(|(user, secrets)| NewUserAnswer::new(&app, user, secrets, None));
    let url = user.as_ref().and_then(|u| u.url.clone());
    Ok((StatusCode::CREATED, Answer(CreatedTenant { tenant, user, url })))
}

/// One tenant.
#[utoipa::path(get, path = "/v1/tenants/{id}", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn show(
    _: Viewer,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Answer<Tenant>, Problem> {
    Ok(Answer(app.store.tenant(&id).await?))
}

/// Changes what is given; `null` takes it away.
#[utoipa::path(patch, path = "/v1/tenants/{id}", tag = "tenants", params(("id" = String, Path)),
    request_body = TenantPatch, responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn update(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
    Json(patch): Json<TenantPatch>,
) -> Result<Answer<Tenant>, Problem> {
    Ok(Answer(app.store.update_tenant(&caller, &id, patch).await?))
}

/// Takes a tenant out of the catalog, with its own users. Its rows on the shard stay.
#[utoipa::path(delete, path = "/v1/tenants/{id}", tag = "tenants", params(("id" = String, Path)),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<StatusCode, Problem> {
    app.store.delete_tenant(&caller, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets where a tenant lives, and raises its epoch. Its rows are not moved by this.
#[utoipa::path(put, path = "/v1/tenants/{id}/placement", tag = "tenants", params(("id" = String, Path)),
    request_body = NewPlacement, responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn place(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
    Json(new): Json<NewPlacement>,
) -> Result<Answer<Tenant>, Problem> {
    Ok(Answer(app.store.place(&caller, &id, &new.shard, new.force).await?))
}

/// Serves a tenant no more.
#[utoipa::path(post, path = "/v1/tenants/{id}/suspend", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn suspend(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Answer<Tenant>, Problem> {
    Ok(Answer(app.store.set_state(&caller, &id, TenantState::Suspended).await?))
}

/// Serves a tenant again.
#[utoipa::path(post, path = "/v1/tenants/{id}/resume", tag = "tenants", params(("id" = String, Path)),
    responses((status = 200, body = Tenant), (status = "default", body = Problem)))]
pub(super) async fn resume(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Answer<Tenant>, Problem> {
    Ok(Answer(app.store.set_state(&caller, &id, TenantState::Active).await?))
}

impl NewUserAnswer {
    /// What is told of a user that was made; `password` is the one that the caller gave.
    pub(super) fn new(
        app: &App,
        user: crate::store::User,
        secrets: crate::store::Secrets,
        password: Option<secrecy::SecretString>,
    ) -> Self {
        let known = secrets.password.as_ref().or(password.as_ref());
        let url = known.map(|p| app.client_url.of_user(&user.name, p.expose_secret()));
        let password = secrets.password.map(|p| p.expose_secret().to_owned());
        Self { user, password, url }
    }
}
