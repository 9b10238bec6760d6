//! `/v1/shards`, `/v1/buckets`, `/v1/settings`, `/v1/issuers` and `/v1/topology`.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::App;
use super::answer::{Tagged, tagged};
use super::caller::{Admin, Operator, Viewer};
use super::input::{Json, Name};
use super::problem::Problem;
use crate::store::{BucketRun, Counts, Issuers, NewShard, SettingsPatch, Shard, ShardPatch};

/// All shards.
#[derive(Serialize, ToSchema)]
pub(super) struct ShardList {
    items: Vec<Shard>,
}

/// All buckets.
#[derive(Serialize, ToSchema)]
pub(super) struct Buckets {
    runs: Vec<BucketRun>,
}

/// How to deal the buckets: one of the two.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBuckets {
    /// Every bucket once.
    runs: Option<Vec<BucketRun>>,
    /// Evenly over the shards, in order of their names.
    #[serde(default)]
    even: bool,
    /// Even if tenants that live by their bucket would be sent to a shard without their rows.
    #[serde(default)]
    force: bool,
}

/// Shards by name.
#[utoipa::path(get, path = "/v1/shards", tag = "shards",
    responses((status = 200, body = ShardList), (status = "default", body = Problem)))]
pub(super) async fn shards(_: Viewer, State(app): State<App>) -> Result<Answer<ShardList>, Problem> {
    Ok(Answer(ShardList { items: app.store.shards().await? }))
}

/// Adds a shard. The first is given all buckets, others none.
#[utoipa::path(post, path = "/v1/shards", tag = "shards", request_body = NewShard,
    responses((status = 201, body = Shard), (status = "default", body = Problem)))]
pub(super) async fn add_shard(
    Operator(caller): Operator,
    State(app): State<App>,
    Json(new): Json<NewShard>,
) -> Result<Response, Problem> {
    let shard = app.store.add_shard(&caller, new).await?;
    Ok(tagged(StatusCode::CREATED, &shard, &shard))
}

/// One shard.
#[utoipa::path(get, path = "/v1/shards/{name}", tag = "shards", params(("name" = String, Path)),
    responses((status = 200, body = Shard), (status = "default", body = Problem)))]
pub(super) async fn shard(
    _: Viewer,
    State(app): State<App>,
    Name(name): Name,
) -> Result<Tagged<Shard>, Problem> {
    Ok(Tagged(app.store.shard(&name).await?))
}

/// Changes what is given.
#[utoipa::path(patch, path = "/v1/shards/{name}", tag = "shards", params(("name" = String, Path), ("If-Match" = String, Header)),
    request_body = ShardPatch, responses((status = 200, body = Shard), (status = "default", body = Problem)))]
pub(super) async fn update_shard(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(name): Name,
    Json(patch): Json<ShardPatch>,
) -> Result<Tagged<Shard>, Problem> {
    Ok(Tagged(app.store.update_shard(&caller, &name, patch).await?))
}

/// Takes away a shard that nobody lives on.
#[utoipa::path(delete, path = "/v1/shards/{name}", tag = "shards", params(("name" = String, Path), ("If-Match" = String, Header)),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn remove_shard(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    app.store.remove_shard(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The shard of every bucket, in runs.
#[utoipa::path(get, path = "/v1/buckets", tag = "shards",
    responses((status = 200, body = Buckets), (status = "default", body = Problem)))]
pub(super) async fn buckets(_: Viewer, State(app): State<App>) -> Result<Response, Problem> {
    let runs = app.store.buckets().await?;
    Ok(tagged(StatusCode::OK, &runs.clone(), &Buckets { runs }))
}

/// Deals the buckets anew. No rows are moved by this.
#[utoipa::path(put, path = "/v1/buckets", tag = "shards", params(("If-Match" = String, Header)), request_body = NewBuckets,
    responses((status = 200, body = Buckets), (status = "default", body = Problem)))]
pub(super) async fn set_buckets(
    Operator(caller): Operator,
    State(app): State<App>,
    Json(new): Json<NewBuckets>,
) -> Result<Response, Problem> {
    if new.runs.is_some() == new.even {
        let detail = "give either `runs` or `even: true`";
        return Err(Problem::malformed(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let runs = app.store.set_buckets(&caller, new.runs, new.force).await?;
    Ok(tagged(StatusCode::OK, &runs.clone(), &Buckets { runs }))
}

/// The settings that routers share.
#[utoipa::path(get, path = "/v1/settings", tag = "settings",
    responses((status = 200, body = SettingsPatch), (status = "default", body = Problem)))]
pub(super) async fn settings(_: Viewer, State(app): State<App>) -> Result<Tagged<SettingsPatch>, Problem> {
    Ok(Tagged(app.store.settings().await?))
}

/// Changes what is given.
#[utoipa::path(patch, path = "/v1/settings", tag = "settings", params(("If-Match" = String, Header)), request_body = SettingsPatch,
    responses((status = 200, body = SettingsPatch), (status = "default", body = Problem)))]
pub(super) async fn update_settings(
    Admin(caller): Admin,
    State(app): State<App>,
    Json(patch): Json<SettingsPatch>,
) -> Result<Tagged<SettingsPatch>, Problem> {
    Ok(Tagged(app.store.update_settings(&caller, patch).await?))
}

/// The issuers whose tokens are accepted for all tenants.
#[utoipa::path(get, path = "/v1/issuers", tag = "settings",
    responses((status = 200, body = Issuers), (status = "default", body = Problem)))]
pub(super) async fn issuers(_: Viewer, State(app): State<App>) -> Result<Tagged<Issuers>, Problem> {
    Ok(Tagged(app.store.issuers().await?))
}

/// Trusts an issuer, by the keys given.
#[utoipa::path(put, path = "/v1/issuers/{name}", tag = "settings", params(("name" = String, Path), ("If-Match" = String, Header)),
    request_body = Object, responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn put_issuer(
    Admin(caller): Admin,
    State(app): State<App>,
    Name(name): Name,
    Json(doc): Json<Value>,
) -> Result<StatusCode, Problem> {
    app.store.put_issuer(&caller, &name, doc).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Trusts an issuer no more.
#[utoipa::path(delete, path = "/v1/issuers/{name}", tag = "settings", params(("name" = String, Path), ("If-Match" = String, Header)),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete_issuer(
    Admin(caller): Admin,
    State(app): State<App>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    app.store.delete_issuer(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The version that routers should have, and how much there is.
#[utoipa::path(get, path = "/v1/topology", tag = "settings",
    responses((status = 200, body = Counts), (status = "default", body = Problem)))]
pub(super) async fn topology(_: Viewer, State(app): State<App>) -> Result<Answer<Counts>, Problem> {
    Ok(Answer(app.store.counts().await?))
}
