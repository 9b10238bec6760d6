//! `/v1/operations` and `/v1/events`.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json as Answer;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::answer::{behind, cut, page_size};
use super::caller::{AnyViewer, Operator};
use super::input::{Name, Query};
use super::problem::Problem;
use crate::store::{Event, Operation, OperationFilter};

/// Longest that a request waits for an operation to end, in seconds.
const MAX_WAIT: u8 = 60;

/// How often it is looked at, even if nothing was announced.
const LOOK: Duration = Duration::from_secs(1);

/// Events read at a time.
const EVENTS: i64 = 500;

/// Operations, and where to go on.
#[derive(Serialize, ToSchema)]
pub(super) struct OperationList {
    items: Vec<Operation>,
    /// What to give as `cursor` for those that follow; none at the end.
    next: Option<String>,
}

/// Whether to wait.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Waiting {
    /// Seconds to wait for it to end; 60 at most.
    #[param(maximum = 255)]
    wait: Option<u8>,
}

/// Which events to send.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Since {
    /// Those behind this id; those from now on if not given. `Last-Event-ID` wins.
    since: Option<i64>,
}

/// Operations, the latest first.
#[utoipa::path(get, path = "/v1/operations", tag = "operations", params(OperationFilter),
    responses((status = 200, body = OperationList), (status = "default", body = Problem)))]
pub(super) async fn list(
    AnyViewer(caller): AnyViewer,
    State(app): State<App>,
    Query(filter): Query<OperationFilter>,
) -> Result<Answer<OperationList>, Problem> {
    let size = page_size(filter.limit);
    let tenant = caller.tenant.as_deref().or(filter.tenant.as_deref());
    let behind = behind(filter.cursor.as_deref())?;
    let mut items = app.store.operations(&filter, tenant, &behind, size as i64 + 1).await?;
    let next = cut(&mut items, size, |o| o.id.clone());
    Ok(Answer(OperationList { items, next }))
}

/// One operation, at once or when it has ended.
#[utoipa::path(get, path = "/v1/operations/{id}", tag = "operations", params(("id" = String, Path), Waiting),
    responses((status = 200, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn show(
    AnyViewer(caller): AnyViewer,
    State(app): State<App>,
    Name(id): Name,
    Query(waiting): Query<Waiting>,
) -> Result<Answer<Operation>, Problem> {
    let wait = Duration::from_secs(waiting.wait.unwrap_or(0).min(MAX_WAIT).into());
    let deadline = tokio::time::Instant::now() + wait;
    let mut feed = app.feed.clone();
    loop {
        feed.mark_seen();
        let operation = app.store.operation(&id).await?;
        if let Some(own) = &caller.tenant
            && operation.tenant.as_ref() != Some(own)
        {
            return Err(Problem::not_found(format!("there is no operation `{id}`")));
        }
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        if operation.is_over() || left.is_zero() {
            return Ok(Answer(operation));
        }
        feed.event(left.min(LOOK)).await;
    }
}

/// Asks an operation to stop and to undo what it has done, as far as that can be.
#[utoipa::path(post, path = "/v1/operations/{id}/cancel", tag = "operations", params(("id" = String, Path)),
    responses((status = 200, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn cancel(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Answer<Operation>, Problem> {
    Ok(Answer(app.store.wish(&caller, &id, "cancel").await?))
}

/// Asks an operation to pause.
#[utoipa::path(post, path = "/v1/operations/{id}/pause", tag = "operations", params(("id" = String, Path)),
    responses((status = 200, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn pause(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Answer<Operation>, Problem> {
    Ok(Answer(app.store.wish(&caller, &id, "pause").await?))
}

/// Asks an operation that was paused to go on.
#[utoipa::path(post, path = "/v1/operations/{id}/resume", tag = "operations", params(("id" = String, Path)),
    responses((status = 200, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn resume(
    Operator(caller): Operator,
    State(app): State<App>,
    Name(id): Name,
) -> Result<Answer<Operation>, Problem> {
    Ok(Answer(app.store.wish(&caller, &id, "resume").await?))
}

/// What happens, as server-sent events without end: changes of everything, and of operations.
#[utoipa::path(get, path = "/v1/events", tag = "operations", params(Since),
    responses((status = 200, body = String, content_type = "text/event-stream"), (status = "default", body = Problem)))]
pub(super) async fn events(
    AnyViewer(caller): AnyViewer,
    State(app): State<App>,
    Query(since): Query<Since>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Sent, Infallible>>>, Problem> {
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let behind = match last.or(since.since) {
        Some(id) => id,
        None => app.store.last_event().await?,
    };
    let state = Listener { app, tenant: caller.tenant, behind, ready: Vec::new() };
    let stream = unfold(state, |mut state| async move {
        let event = state.next().await;
        Some((Ok(event), state))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

/// Where one listener is.
struct Listener {
    app: App,
    tenant: Option<String>,
    behind: i64,
    /// Read and not sent yet, the last first.
    ready: Vec<Event>,
}

impl Listener {
    async fn next(&mut self) -> Sent {
        loop {
            if let Some(event) = self.ready.pop() {
                self.behind = event.id;
                return sent(&event);
            }
            self.app.feed.mark_seen();
            match self.app.store.events(self.behind, self.tenant.as_deref(), EVENTS).await {
                Ok(found) if !found.is_empty() => self.ready = found.into_iter().rev().collect(),
                Ok(_) => self.app.feed.event(LOOK * 5).await,
                // The listener's connection stays; it hears more when the catalog is back.
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

fn sent(event: &Event) -> Sent {
    let made = Sent::default().id(event.id.to_string()).event("change").json_data(event);
    made.unwrap_or_else(|_| Sent::default().comment("an event that cannot be written"))
}
