//! REST: what operators and scripts speak to.
//!
//! Every handler takes a caller of the least role it needs ([`caller`]); one that takes none is
//! open to anybody, and there are four of these: health, and the description of the API itself.

mod access;
mod answer;
mod caller;
mod health;
mod idempotency;
mod input;
mod layout;
mod moves;
mod operations;
mod plans;
mod problem;
mod tenants;
mod usage;
mod users;
mod values;
mod web;
mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::credentials::new_id;
use crate::feed::Feed;
use crate::metrics::Metrics;
use crate::oidc::Oidc;
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
    /// Who else vouches for callers.
    pub(crate) oidc: Option<Arc<Oidc>>,
    /// Wakes who waits for something to happen.
    pub(crate) feed: Feed,
    /// How long a deleted tenant can be undeleted, unless the request says.
    pub(crate) delete_grace: Duration,
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
    let (router, description) = described();
    let description = Arc::new(description);
    router
        .route("/openapi.json", get(move || async move { axum::Json(description.as_ref().clone()) }))
        .merge(web::routes())
        .fallback(|| async { problem::Problem::not_found("there is nothing at this path") })
        .layer(middleware::from_fn_with_state(app.clone(), idempotency::once))
        .layer(DefaultBodyLimit::max(idempotency::MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(app.clone(), measured))
        .with_state(app)
}

/// The routes and their description, in which errors have the media type that they are sent with.
fn described() -> (Router<App>, utoipa::openapi::OpenApi) {
    let (router, mut description) = routes().split_for_parts();
    for item in description.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            for (status, response) in &mut operation.responses.responses {
                let failure = status == "default" || status.starts_with(['4', '5']);
                if failure
                    && let utoipa::openapi::RefOr::T(response) = response
                    && let Some(content) = response.content.shift_remove("application/json")
                {
                    response.content.insert("application/problem+json".to_owned(), content);
                }
            }
        }
    }
    (router, description)
}

fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(tenants::list, tenants::create))
        .routes(routes!(tenants::show, tenants::update, tenants::delete))
        .routes(routes!(tenants::place))
        .routes(routes!(tenants::suspend))
        .routes(routes!(tenants::resume))
        .routes(routes!(tenants::read_only))
        .routes(routes!(tenants::undelete))
        .routes(routes!(tenants::limits, tenants::set_limits))
        .routes(routes!(tenants::put_issuer, tenants::delete_issuer))
        .routes(routes!(usage::usage))
        .routes(routes!(usage::top))
        .routes(routes!(usage::of_tenant))
        .routes(routes!(usage::health))
        .routes(routes!(usage::sign_ins))
        .routes(routes!(usage::routers))
        .routes(routes!(usage::alerts))
        .routes(routes!(webhooks::list, webhooks::create))
        .routes(routes!(webhooks::delete))
        .routes(routes!(values::list))
        .routes(routes!(values::configuration))
        .routes(routes!(values::show, values::set, values::delete))
        .routes(routes!(values::rotate))
        .routes(routes!(plans::list, plans::create))
        .routes(routes!(plans::show, plans::update, plans::delete))
        .routes(routes!(operations::list))
        .routes(routes!(operations::show))
        .routes(routes!(operations::cancel))
        .routes(routes!(operations::pause))
        .routes(routes!(operations::resume))
        .routes(routes!(operations::events))
        .routes(routes!(users::list, users::create))
        .routes(routes!(users::show, users::update, users::delete))
        .routes(routes!(users::reset_password))
        .routes(routes!(users::list_of_tenant, users::create_of_tenant))
        .routes(routes!(users::delete_of_tenant))
        .routes(routes!(users::reset_password_of_tenant))
        .routes(routes!(layout::shards, layout::add_shard))
        .routes(routes!(layout::shard, layout::update_shard, layout::remove_shard))
        .routes(routes!(layout::buckets, layout::set_buckets))
        .routes(routes!(layout::settings, layout::update_settings))
        .routes(routes!(layout::issuers))
        .routes(routes!(layout::put_issuer, layout::delete_issuer))
        .routes(routes!(layout::topology))
        .routes(routes!(access::audit))
        .routes(routes!(access::proof))
        .routes(routes!(access::tokens, access::create_token))
        .routes(routes!(access::delete_token))
        .routes(routes!(moves::list, moves::start))
        .routes(routes!(moves::show))
        .routes(routes!(moves::events))
        .routes(routes!(moves::pause))
        .routes(routes!(moves::resume))
        .routes(routes!(moves::abort))
        .routes(routes!(moves::rollback))
        .routes(routes!(moves::complete))
        .routes(routes!(moves::set_admin))
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
    let mut request = request;
    let id = request_id(request.headers());
    let shown = HeaderValue::from_str(&id).ok();
    request.extensions_mut().insert(caller::RequestId(id));
    let method = request.method().clone();
    // The route, never the path: a path holds ids that a stranger chooses.
    let route = request.extensions().get::<MatchedPath>().map(|m| m.as_str().to_owned());
    let mut response = next.run(request).await.into_response();
    if let Some(id) = shown {
        response.headers_mut().insert("x-request-id", id);
    }
    app.metrics.request(method.as_str(), route.as_deref(), response.status().as_u16(), started.elapsed());
    response
}

/// The id that the client gave the request, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|v| v.to_str().ok());
    let plain = |id: &&str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    match given.filter(plain) {
        Some(id) => id.to_owned(),
        None => new_id("req_").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The copy in the repository is what the code makes. To write it anew:
    /// `SWITCHYARD_WRITE_OPENAPI=1 cargo test -p switchyard-control-plane the_copy`
    #[test]
    fn the_copy_of_the_description_is_up_to_date() {
        let (_, description) = described();
        let made = serde_json::to_string_pretty(&description).unwrap() + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        if std::env::var_os("SWITCHYARD_WRITE_OPENAPI").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let copy = std::fs::read_to_string(path).unwrap_or_default();
        assert!(copy == made, "docs/openapi.json is not what the code makes; see this test");
    }

    #[test]
    fn the_description_names_every_route_and_its_schemas() {
        let (_, description) = described();
        let text = serde_json::to_value(&description).unwrap();
        for path in ["/v1/tenants", "/v1/tenants/{id}/placement", "/v1/users/{name}", "/v1/shards", "/readyz"]
        {
            assert!(text["paths"].get(path).is_some(), "{path}");
        }
        assert!(text["components"]["schemas"]["Tenant"]["properties"]["epoch"].is_object());
        assert_eq!(text["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    }

    #[test]
    fn only_what_stands_in_a_path_is_a_parameter_of_it() {
        let (_, description) = described();
        let text = serde_json::to_value(&description).unwrap();
        for (path, verbs) in text["paths"].as_object().unwrap() {
            for parameter in
                verbs.as_object().unwrap().values().filter_map(|v| v["parameters"].as_array()).flatten()
            {
                let name = parameter["name"].as_str().unwrap();
                let stands = path.contains(&format!("{{{name}}}"));
                assert_eq!(parameter["in"] == "path", stands, "{name} of {path}");
                assert!(parameter["in"] != "query" || parameter["required"] == false, "{name} of {path}");
            }
        }
    }
}
