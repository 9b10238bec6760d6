//! `/v1/users`.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::caller::{Operator, Viewer};
use super::input::{Json, Name, Query};
use super::problem::Problem;
use crate::store::{NewUser, User};

/// Which users to list.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct UserFilter {
    /// Those with names behind this one.
    after: String,
    /// Those that may act for this tenant by name.
    tenant: Option<String>,
    /// At most so many; 100 if not given, 1000 at most.
    limit: Option<u16>,
}

/// Users, and where to go on.
#[derive(Serialize, ToSchema)]
pub(super) struct UserList {
    items: Vec<User>,
    /// What to give as `after` for those that follow; none at the end.
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

/// Users by name.
#[utoipa::path(get, path = "/v1/users", tag = "users", params(UserFilter),
    responses((status = 200, body = UserList), (status = "default", body = Problem)))]
pub(super) async fn list(
    _: Viewer,
    State(app): State<App>,
    Query(filter): Query<UserFilter>,
) -> Result<Answer<UserList>, Problem> {
    let limit = i64::from(filter.limit.unwrap_or(100).clamp(1, 1000));
    let mut items = app.store.users(&filter.after, filter.tenant.as_deref(), limit + 1).await?;
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next = if more { items.last().map(|u| u.name.clone()) } else { None };
    Ok(Answer(UserList { items, next }))
}

/// Makes a user. Without any proof given it gets a password, which the answer tells once.
#[utoipa::path(post, path = "/v1/users", tag = "users", request_body = NewUser,
    responses((status = 201, body = NewUserAnswer), (status = "default", body = Problem)))]
pub(super) async fn create(
    Operator(caller): Operator,
    State(app): State<App>,
    Json(new): Json<NewUser>,
) -> Result<(StatusCode, Answer<NewUserAnswer>), Problem> {
    let given = new.password.clone();
    let (user, secrets) = app.store.create_user(&caller, new).await?;
    Ok((StatusCode::CREATED, Answer(NewUserAnswer::new(&app, user, secrets, given))))
}

/// One user.
#[utoipa::path(get, path = "/v1/users/{name}", tag = "users", params(("name" = String, Path)),
    responses((status = 200, body = User), (status = "default", body = Problem)))]
pub(super) async fn show(
    _: Viewer,
    State(app): State<App>,
    Name(name): Name,
) -> Result<Answer<User>, Problem> {
    Ok(Answer(app.store.user(&name).await?))
}

/// Takes a user away. Its open sessions are not ended.
#[utoipa::path(delete, path = "/v1/users/{name}", tag = "users", params(("name" = String, Path)),
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
