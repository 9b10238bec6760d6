//! The page for people: one static page, in the binary, that asks the API for everything.
//!
//! Nothing on it comes from elsewhere, and the browser is told to let nothing come from elsewhere.
//! There are no cookies: a token is typed in, so no other site can make the browser act.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::App;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page and what belongs to it.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(|| page("text/html; charset=utf-8", include_str!("../../web/index.html"))))
        .route("/ui/app.js", get(|| page("text/javascript; charset=utf-8", include_str!("../../web/app.js"))))
        .route("/ui/style.css", get(|| page("text/css; charset=utf-8", include_str!("../../web/style.css"))))
}

async fn page(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, &'static str); 6] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let mut response = text.into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
