//! `/v1/plans`.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::answer::{Tagged, tagged};
use super::caller::{Operator, Viewer};
use super::input::{Json, Name};
use super::problem::Problem;
use crate::store::{NewPlan, Plan, PlanPatch};

/// All plans.
#[derive(Serialize, ToSchema)]
pub(super) struct PlanList {
    items: Vec<Plan>,
}

/// Plans by name.
#[utoipa::path(get, path = "/v1/plans", tag = "plans",
    responses((status = 200, body = PlanList), (status = "default", body = Problem)))]
pub(super) async fn list(_: Viewer, State(app): State<App>) -> Result<Answer<PlanList>, Problem> {
    Ok(Answer(PlanList { items: app.store.plans().await? }))
}

/// Makes a plan.
#[utoipa::path(post, path = "/v1/plans", tag = "plans", request_body = NewPlan,
    responses((status = 201, body = Plan), (status = "default", body = Problem)))]
pub(super) async fn create(
    Operator(caller): Operator,
    State(app): State<App>,
    Json(new): Json<NewPlan>,
) -> Result<Response, Problem> {
    let plan = app.store.create_plan(&caller, new).await?;
    Ok(tagged(StatusCode::CREATED, &plan, &plan))
}

/// One plan.
#[utoipa::path(get, path = "/v1/plans/{name}", tag = "plans", params(("name" = String, Path)),
    responses((status = 200, body = Plan), (status = "default", body = Problem)))]
pub(super) async fn show(
    _: Viewer,
    State(app): State<App>,
    Name(name): Name,
) -> Result<Tagged<Plan>, Problem> {
    Ok(Tagged(app.store.plan(&name).await?))
}

/// Changes what is given, at once for all tenants of the plan; `null` takes it away.
#[utoipa::path(patch, path = "/v1/plans/{name}", tag = "plans",
    params(("name" = String, Path), ("If-Match" = String, Header)), request_body = PlanPatch,
    responses((status = 200, body = Plan), (status = "default", body = Problem)))]
pub(super) async fn update(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(name): Name,
    Json(patch): Json<PlanPatch>,
) -> Result<Tagged<Plan>, Problem> {
    Ok(Tagged(app.store.update_plan(&caller, &name, patch).await?))
}

/// Takes away a plan that nothing refers to.
#[utoipa::path(delete, path = "/v1/plans/{name}", tag = "plans",
    params(("name" = String, Path), ("If-Match" = String, Header)),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    app.store.delete_plan(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
