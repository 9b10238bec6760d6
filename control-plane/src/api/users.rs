//! `/v1/users`, and `/v1/tenants/{id}/users` for those that belong to one tenant.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use switchyard_config::topology::LoginMethods;
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::answer::{Tagged, behind, cut, page_size, tagged};
use super::caller::{Operator, TenantOperator, TenantViewer, Viewer};
use super::input::{Json, Name, Names, Query};
use super::problem::Problem;
use crate::store::{NewUser, User, UserPatch};

/// Which users to list.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct UserFilter {
    /// Where to go on, as a list has answered.
    cursor: Option<String>,
    /// Those that may act for this tenant by name.
    tenant: Option<String>,
    /// At most so many; 100 if not given, 1000 at most.
    limit: Option<u16>,
}

/// Where to go on, and how far.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Paging {
    /// Where to go on, as a list has answered.
    cursor: Option<String>,
    /// At most so many; 100 if not given, 1000 at most.
    limit: Option<u16>,
}

/// Users, and where to go on.
#[derive(Serialize, ToSchema)]
pub(super) struct UserList {
    items: Vec<User>,
    /// What to give as `cursor` for those that follow; none at the end.
    next: Option<String>,
}

/// A user that was made.
#[derive(Serialize, ToSchema)]
pub(super) struct NewUserAnswer {
    #[serde(flatten)]
    pub(super) user: User,
    /// Its password, if it was made here; told this once.
    #[serde(rename = "new_password", skip_serializing_if = "Option::is_none")]
    pub(super) password: Option<String>,
    /// The URL to connect by, with the password, if that is known.
    pub(super) url: Option<String>,
}

/// A user of one tenant, to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTenantUser {
    /// Its name, without any tenant suffix.
    name: String,
    /// A password to make the verifier of; one is made if none is given.
    #[schema(value_type = Option<String>)]
    password: Option<SecretString>,
    /// `SCRAM-SHA-256$...`, as in `pg_authid`.
    #[schema(value_type = Option<String>)]
    verifier: Option<SecretString>,
    /// Whether it may log in with a JWT of an issuer of the tenant's.
    #[serde(default)]
    jwt: bool,
}

/// Users by name.
#[utoipa::path(get, path = "/v1/users", tag = "users", params(UserFilter),
    responses((status = 200, body = UserList), (status = "default", body = Problem)))]
pub(super) async fn list(
    _: Viewer,
    State(app): State<App>,
    Query(filter): Query<UserFilter>,
) -> Result<Answer<UserList>, Problem> {
    page(&app, filter.cursor.as_deref(), filter.tenant.as_deref(), filter.limit).await
}

async fn page(
    app: &App,
    cursor: Option<&str>,
    tenant: Option<&str>,
    limit: Option<u16>,
) -> Result<Answer<UserList>, Problem> {
    let size = page_size(limit);
    let mut items = app.store.users(&behind(cursor)?, tenant, size as i64 + 1).await?;
    let next = cut(&mut items, size, |u| u.name.clone());
    Ok(Answer(UserList { items, next }))
}

/// Makes a user. Without any proof given it gets a password, which the answer tells once.
#[utoipa::path(post, path = "/v1/users", tag = "users", request_body = NewUser,
    responses((status = 201, body = NewUserAnswer), (status = "default", body = Problem)))]
pub(super) async fn create(
    Operator(caller): Operator,
    State(app): State<App>,
    Json(new): Json<NewUser>,
) -> Result<Response, Problem> {
    let given = new.password.clone();
    let (user, secrets) = app.store.create_user(&caller, new).await?;
    Ok(tagged(StatusCode::CREATED, &user.clone(), &NewUserAnswer::new(&app, user, secrets, given)))
}

/// One user.
#[utoipa::path(get, path = "/v1/users/{name}", tag = "users", params(("name" = String, Path)),
    responses((status = 200, body = User), (status = "default", body = Problem)))]
pub(super) async fn show(
    _: Viewer,
    State(app): State<App>,
    Name(name): Name,
) -> Result<Tagged<User>, Problem> {
    Ok(Tagged(app.store.user(&name).await?))
}

/// Changes what is given. Sessions that are open stay as they are, but for those of a tenant that is taken away from
/// the user: they end.
#[utoipa::path(patch, path = "/v1/users/{name}", tag = "users",
    params(("name" = String, Path), ("If-Match" = String, Header)), request_body = UserPatch,
    responses((status = 200, body = User), (status = "default", body = Problem)))]
pub(super) async fn update(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(name): Name,
    Json(patch): Json<UserPatch>,
) -> Result<Tagged<User>, Problem> {
    Ok(Tagged(app.store.update_user(&caller, &name, patch).await?))
}

/// Takes a user away. Its open sessions end.
#[utoipa::path(delete, path = "/v1/users/{name}", tag = "users",
    params(("name" = String, Path), ("If-Match" = String, Header)),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    app.store.delete_user(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a user a new password, which the answer tells once.
#[utoipa::path(post, path = "/v1/users/{name}/password", tag = "users", params(("name" = String, Path)),
    responses((status = 200, body = NewUserAnswer), (status = "default", body = Problem)))]
pub(super) async fn reset_password(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(name): Name,
) -> Result<Answer<NewUserAnswer>, Problem> {
    let (user, secrets) = app.store.reset_password(&caller, &name).await?;
    Ok(Answer(NewUserAnswer::new(&app, user, secrets, None)))
}

/// Users that may act for a tenant by name.
#[utoipa::path(get, path = "/v1/tenants/{id}/users", tag = "users", params(("id" = String, Path), Paging),
    responses((status = 200, body = UserList), (status = "default", body = Problem)))]
pub(super) async fn list_of_tenant(
    _: TenantViewer,
    State(app): State<App>,
    Name(id): Name,
    Query(paging): Query<Paging>,
) -> Result<Answer<UserList>, Problem> {
    page(&app, paging.cursor.as_deref(), Some(&id), paging.limit).await
}

/// Makes a user of a tenant's own.
#[utoipa::path(post, path = "/v1/tenants/{id}/users", tag = "users", params(("id" = String, Path)),
    request_body = NewTenantUser,
    responses((status = 201, body = NewUserAnswer), (status = "default", body = Problem)))]
pub(super) async fn create_of_tenant(
    TenantOperator(caller): TenantOperator,
    State(app): State<App>,
    Name(id): Name,
    Json(new): Json<NewTenantUser>,
) -> Result<Response, Problem> {
    let given = new.password.clone();
    let user = NewUser {
        password: new.password,
        verifier: new.verifier,
        methods: LoginMethods { jwt: new.jwt, ..LoginMethods::default() },
        ..NewUser::of_tenant(&new.name, &id)
    };
    let (user, secrets) = app.store.create_user(&caller, user).await?;
    Ok(tagged(StatusCode::CREATED, &user.clone(), &NewUserAnswer::new(&app, user, secrets, given)))
}

/// A user that acts for this tenant and no other; others are not the tenant's to change.
async fn own(app: &App, tenant: &str, name: &str) -> Result<(), Problem> {
    let user = app.store.user(name).await?;
    if user.any_tenant || user.tenants != [tenant] {
        return Err(Problem::not_found(format!("there is no user `{name}` of this tenant alone")));
    }
    Ok(())
}

/// Takes away a user of a tenant's own.
#[utoipa::path(delete, path = "/v1/tenants/{id}/users/{name}", tag = "users",
    params(("id" = String, Path), ("name" = String, Path), ("If-Match" = String, Header)),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete_of_tenant(
    TenantOperator(caller): TenantOperator,
    State(app): State<App>,
    Names(id, name): Names,
) -> Result<StatusCode, Problem> {
    own(&app, &id, &name).await?;
    app.store.delete_user(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a user of a tenant's own a new password, which the answer tells once.
#[utoipa::path(post, path = "/v1/tenants/{id}/users/{name}/password", tag = "users",
    params(("id" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = NewUserAnswer), (status = "default", body = Problem)))]
pub(super) async fn reset_password_of_tenant(
    TenantOperator(caller): TenantOperator,
    State(app): State<App>,
    Names(id, name): Names,
) -> Result<Answer<NewUserAnswer>, Problem> {
    own(&app, &id, &name).await?;
    let (user, secrets) = app.store.reset_password(&caller, &name).await?;
    Ok(Answer(NewUserAnswer::new(&app, user, secrets, None)))
}
