//! REST: what operators and scripts speak to.
//!
//! Every handler takes a caller of the least role it needs ([`caller`]); one that takes none is
//! open to anybody, and there are four of these: health, and the description of the API itself.

mod access;
mod caller;
mod health;
mod input;
mod layout;
mod problem;
mod tenants;
mod users;

use std::sync::Arc;

use axum::Router;
use axum::extract::MatchedPath;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::metrics::Metrics;
use crate::settings::ClientUrl;
use crate::store::Store;

/// What handlers share.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) metrics: Arc<Metrics>,
    /// Where clients find the routers, for the URLs of tenants.
    pub(crate) client_url: Arc<ClientUrl>,
    /// Whether `/metrics` asks for no token.
    pub(crate) open_metrics: bool,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Switchyard control plane", license(name = "Apache-2.0")),
    modifiers(&Bearer),
    security(("token" = []))
)]
struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        api.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// All routes, ready to be served.
pub(crate) fn router(app: App) -> Router {
    let (router, description) = routes().split_for_parts();
    let description = Arc::new(description);
    router
        .route("/openapi.json", get(move || async move { axum::Json(description.as_ref().clone()) }))
        .fallback(|| async { problem::Problem::not_found("there is nothing at this path") })
        .layer(middleware::from_fn_with_state(app.clone(), measured))
        .with_state(app)
}

fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(tenants::list, tenants::create))
        .routes(routes!(tenants::show, tenants::update, tenants::delete))
        .routes(routes!(tenants::place))
        .routes(routes!(tenants::suspend))
        .routes(routes!(tenants::resume))
        .routes(routes!(users::list, users::create))
        .routes(routes!(users::show, users::delete))
        .routes(routes!(users::reset_password))
        .routes(routes!(layout::shards, layout::add_shard))
        .routes(routes!(layout::shard, layout::update_shard, layout::remove_shard))
        .routes(routes!(layout::buckets, layout::set_buckets))
        .routes(routes!(layout::settings, layout::update_settings))
        .routes(routes!(layout::issuers))
        .routes(routes!(layout::put_issuer, layout::delete_issuer))
        .routes(routes!(layout::topology))
        .routes(routes!(access::audit))
        .routes(routes!(access::tokens, access::create_token))
        .routes(routes!(access::delete_token))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
}

async fn measured(
    axum::extract::State(app): axum::extract::State<App>,
    request: axum::extract::Request,
    next: Next,
) -> Response {
    let started = std::time::Instant::now();
    let method = request.method().clone();
    // The route, never the path: a path holds ids that a stranger chooses.
    let route = request.extensions().get::<MatchedPath>().map(|m| m.as_str().to_owned());
    let response = next.run(request).await.into_response();
    app.metrics.request(method.as_str(), route.as_deref(), response.status().as_u16(), started.elapsed());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_names_every_route_and_its_schemas() {
        let (_, description) = routes().split_for_parts();
        let text = serde_json::to_value(&description).unwrap();
        for path in ["/v1/tenants", "/v1/tenants/{id}/placement", "/v1/users/{name}", "/v1/shards", "/readyz"]
        {
            assert!(text["paths"].get(path).is_some(), "{path}");
        }
        assert!(text["components"]["schemas"]["Tenant"]["properties"]["epoch"].is_object());
        assert_eq!(text["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    }
}
