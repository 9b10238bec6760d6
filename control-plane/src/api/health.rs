//! `/livez`, `/readyz` and `/metrics`.

use axum::extract::{FromRequestParts, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::IntoResponse;

use super::App;
use super::caller::Scraper;
use super::problem::Problem;

/// Lets in whoever may read the metrics: anybody where they are open.
pub(super) struct MayScrape;

impl FromRequestParts<App> for MayScrape {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        if !app.open_metrics {
            Scraper::from_request_parts(parts, app).await?;
        }
        Ok(Self)
    }
}

/// The process runs.
#[utoipa::path(get, path = "/livez", tag = "health", security(()), responses((status = 200, body = String)))]
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// The catalog answers.
#[utoipa::path(get, path = "/readyz", tag = "health", security(()),
    responses((status = 200, body = String), (status = 503, body = Problem)))]
pub(super) async fn readyz(State(app): State<App>) -> Result<&'static str, Problem> {
    app.store.ping().await?;
    Ok("ok\n")
}

/// In the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "health", security(()), responses((status = 200, body = String)))]
pub(super) async fn metrics(_: MayScrape, State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    // Without the catalog, what the process counts by itself is still told.
    let counts = app.store.counts().await.ok();
    if let Ok(moves) = app.store.move_counts().await {
        app.metrics.moves(&moves);
    }
    let text = app.metrics.text(counts.as_ref());
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}
