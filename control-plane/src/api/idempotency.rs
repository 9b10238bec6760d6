//! `Idempotency-Key`: a request that is sent twice is done once.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::caller::authenticate;
use super::problem::Problem;
use crate::store::Earlier;

/// Largest body, in bytes; the largest that makes sense holds a few templates.
pub(super) const MAX_BODY_BYTES: usize = 1 << 20;

/// Longest key, in bytes.
const MAX_KEY_BYTES: usize = 255;

static KEY: HeaderName = HeaderName::from_static("idempotency-key");
static REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Headers that are part of an answer, in the order in which they are kept.
const KEPT_HEADERS: [HeaderName; 3] = [header::CONTENT_TYPE, header::LOCATION, header::ETAG];

pub(super) async fn once(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(key) = request.headers().get(&KEY).filter(|_| request.method() == Method::POST) else {
        return next.run(request).await;
    };
    let key = match key.to_str() {
        Ok(key) if (1..=MAX_KEY_BYTES).contains(&key.len()) => key.to_owned(),
        _ => {
            let detail = format!("Idempotency-Key must be 1 to {MAX_KEY_BYTES} characters");
            return Problem::malformed(StatusCode::BAD_REQUEST, detail).into_response();
        }
    };
    // Who is nobody gets its refusal from the handler.
    let Ok(caller) = authenticate(request.headers(), &app).await else { return next.run(request).await };
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        return Problem::malformed(status, "the body is too large").into_response();
    };
    let target = parts.uri.path_and_query().map(|p| p.as_str().to_owned()).unwrap_or_default();
    let claimed = app.store.claim(&caller, &key, &[target.as_bytes(), &body]).await;
    let claim = match claimed {
        Ok(Earlier::New(claim)) => claim,
        Ok(Earlier::Done(status, answer)) => return replay(status, answer),
        Ok(Earlier::UnderWay) => return Problem::under_way().into_response(),
        Ok(Earlier::Other) => return Problem::key_reused().into_response(),
        Err(error) => return Problem::from(error).into_response(),
    };
    // In a task of its own: a client that goes away must not leave half of it.
    let handled = tokio::spawn(async move {
        let response = next.run(Request::from_parts(parts, Body::from(body))).await;
        keep(&app, claim, response).await
    });
    handled.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

async fn keep(app: &App, claim: crate::store::Claim, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let status = parts.status;
    let Ok(body) = to_bytes(body, usize::MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let lasting = !status.is_server_error()
        && ![StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS]
            .contains(&status);
    let kept = if lasting {
        let mut answer = Vec::new();
        for name in KEPT_HEADERS {
            answer.extend_from_slice(parts.headers.get(name).map_or(b"".as_slice(), HeaderValue::as_bytes));
            answer.push(b'\n');
        }
        answer.extend_from_slice(&body);
        app.store.finish(claim, status.as_u16(), &answer).await
    } else {
        app.store.forget(claim).await
    };
    if let Err(error) = kept {
        tracing::warn!(%error, "the answer to a request is not kept: sent again, it waits for its end in vain");
    }
    Response::from_parts(parts, Body::from(body))
}

fn replay(status: u16, answer: Vec<u8>) -> Response {
    let mut rest = answer.as_slice();
    let mut headers = HeaderMap::new();
    for name in KEPT_HEADERS {
        let Some(end) = rest.iter().position(|b| *b == b'\n') else { break };
        if end > 0
            && let Ok(value) = HeaderValue::from_bytes(&rest[..end])
        {
            headers.insert(name, value);
        }
        rest = &rest[end + 1..];
    }
    headers.insert(REPLAYED.clone(), HeaderValue::from_static("true"));
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, headers, rest.to_vec()).into_response()
}
