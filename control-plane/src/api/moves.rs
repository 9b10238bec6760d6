//! `/v1/moves`.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::caller::{Admin, Operator, Viewer};
use super::input::{Json, Name, Query};
use super::problem::Problem;
use crate::store::{Move, MoveEvent, MoveFilter, NewMove, ShardAdmin, StoreError};

/// Moves.
#[derive(Serialize, ToSchema)]
pub(super) struct MoveList {
    items: Vec<Move>,
}

/// What happened in a move.
#[derive(Serialize, ToSchema)]
pub(super) struct MoveEvents {
    items: Vec<MoveEvent>,
}

fn number(id: &str) -> Result<i64, Problem> {
    id.parse().map_err(|_| Problem::not_found("moves are numbered"))
}

/// Moves, the latest first.
#[utoipa::path(get, path = "/v1/moves", tag = "moves", params(MoveFilter),
    responses((status = 200, body = MoveList), (status = "default", body = Problem)))]
pub(super) async fn list(
    _: Viewer,
    State(app): State<App>,
    Query(filter): Query<MoveFilter>,
) -> Result<Answer<MoveList>, Problem> {
    Ok(Answer(MoveList { items: app.store.moves(&filter).await? }))
}

/// Asks for a move. It is made by the control plane; look at it to see how far it is.
#[utoipa::path(post, path = "/v1/moves", tag = "moves", request_body = NewMove,
    responses((status = 201, body = Move), (status = "default", body = Problem)))]
pub(super) async fn start(
    Operator(caller): Operator,
    State(app): State<App>,
    Json(new): Json<NewMove>,
) -> Result<(StatusCode, Answer<Move>), Problem> {
    Ok((StatusCode::CREATED, Answer(app.store.start_move(&caller, new).await?)))
}

/// One move.
#[utoipa::path(get, path = "/v1/moves/{id}", tag = "moves", params(("id" = String, Path)),
    responses((status = 200, body = Move), (status = "default", body = Problem)))]
pub(super) async fn show(_: Viewer, State(app): State<App>, Name(id): Name) -> Result<Answer<Move>, Problem> {
    Ok(Answer(app.store.one_move(number(&id)?).await?))
}

/// What happened in a move, in order.
#[utoipa::path(get, path = "/v1/moves/{id}/events", tag = "moves", params(("id" = String, Path)),
    responses((status = 200, body = MoveEvents), (status = "default", body = Problem)))]
pub(super) async fn events(
    _: Viewer,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Answer<MoveEvents>, Problem> {
    Ok(Answer(MoveEvents { items: app.store.move_events(number(&id)?).await? }))
}

/// Has a move stand still before its cutover.
#[utoipa::path(post, path = "/v1/moves/{id}/pause", tag = "moves", params(("id" = String, Path)),
    responses((status = 200, body = Move), (status = "default", body = Problem)))]
pub(super) async fn pause(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Answer<Move>, Problem> {
    Ok(Answer(app.store.wish_of_move(&caller, number(&id)?, "pause").await?))
}

/// Has it go on.
#[utoipa::path(post, path = "/v1/moves/{id}/resume", tag = "moves", params(("id" = String, Path)),
    responses((status = 200, body = Move), (status = "default", body = Problem)))]
pub(super) async fn resume(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Answer<Move>, Problem> {
    Ok(Answer(app.store.wish_of_move(&caller, number(&id)?, "run").await?))
}

/// How a move is given up.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Abortion {
    /// Give it up without asking the target, which does not answer. What is there is cleared when it does.
    #[serde(default)]
    without_target: bool,
    /// Together with `without_target`: also where the tenant was frozen when the target was lost. It goes on at the source as
    /// it was then; what it may have been acknowledged on the target since is lost with that. The target must be off: a
    /// router that reaches it and hears nothing of this would go on writing there.
    #[serde(default)]
    accept_loss: bool,
}

/// Gives a move up that has not gone over. The tenant stays where it is.
#[utoipa::path(post, path = "/v1/moves/{id}/abort", tag = "moves", params(("id" = String, Path), Abortion),
    responses((status = 200, body = Move), (status = "default", body = Problem)))]
pub(super) async fn abort(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
    Query(how): Query<Abortion>,
) -> Result<Answer<Move>, Problem> {
    let wish = match (how.without_target, how.accept_loss) {
        (true, true) => "abort_accepting_loss",
        (true, false) => "abort_without_target",
        (false, false) => "abort",
        (false, true) => return Err(StoreError::invalid("accept_loss", "goes with `without_target`").into()),
    };
    Ok(Answer(app.store.wish_of_move(&caller, number(&id)?, wish).await?))
}

/// Has a tenant that has gone over go back.
#[utoipa::path(post, path = "/v1/moves/{id}/rollback", tag = "moves", params(("id" = String, Path)),
    responses((status = 200, body = Move), (status = "default", body = Problem)))]
pub(super) async fn rollback(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Answer<Move>, Problem> {
    Ok(Answer(app.store.wish_of_move(&caller, number(&id)?, "rollback").await?))
}

/// How a move is completed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Completion {
    /// End it without asking the source, which does not come back. What is there stays there.
    #[serde(default)]
    without_source: bool,
}

/// Deletes what is left where the tenant was. There is no way back after it.
#[utoipa::path(post, path = "/v1/moves/{id}/complete", tag = "moves", params(("id" = String, Path), Completion),
    responses((status = 200, body = Move), (status = "default", body = Problem)))]
pub(super) async fn complete(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
    Query(how): Query<Completion>,
) -> Result<Answer<Move>, Problem> {
    let wish = if how.without_source { "complete_without_source" } else { "complete" };
    Ok(Answer(app.store.wish_of_move(&caller, number(&id)?, wish).await?))
}

/// Says whom the mover logs in as on a shard. No answer holds the password.
#[utoipa::path(put, path = "/v1/shards/{name}/admin", tag = "moves", params(("name" = String, Path)),
    request_body = ShardAdmin, responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn set_admin(
    Admin(caller): Admin,
    State(app): State<App>,
    Name(name): Name,
    Json(admin): Json<ShardAdmin>,
) -> Result<StatusCode, Problem> {
    app.store.set_shard_admin(&caller, &name, admin).await?;
    Ok(StatusCode::NO_CONTENT)
}
