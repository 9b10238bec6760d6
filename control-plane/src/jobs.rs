//! What one of the control planes does now and then: quotas, storage, health, alerts, forgetting.
//!
//! None of it is needed by a router to serve: without a leader a quota is not noticed, and a mark
//! that was made ends by itself when its time has come.

mod health;
mod storage;

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Uri};
use serde_json::json;
use tokio::time::Instant;

use crate::client;
use crate::leader::Term;
use crate::store::{Delivery, Store, StoreError};

/// How often quotas and health are looked at: as often as routers report.
const TICK: Duration = Duration::from_secs(10);

/// How often what is old is forgotten.
const FORGET: Duration = Duration::from_secs(3600);

/// Deadline of one attempt at a webhook.
const SEND: Duration = Duration::from_secs(10);

/// Alerts sent at a time.
const SENT_AT_A_TIME: i64 = 20;

/// Works for as long as the process lives and whenever it leads.
pub(crate) async fn run(store: Store, mut term: Term, measure: Duration) {
    let (mut measured, mut forgotten): (Option<Instant>, Option<Instant>) = (None, None);
    let mut hidden = storage::Told::default();
    let due = |last: Option<Instant>, every: Duration| last.is_none_or(|at| at.elapsed() >= every);
    loop {
        if term.borrow_and_update().is_none() {
            if term.changed().await.is_err() {
                return;
            }
            continue;
        }
        if !measure.is_zero() && due(measured, measure) {
            measured = Some(Instant::now());
            told("storage", storage::measure(&store, &mut hidden).await);
        }
        if due(forgotten, FORGET) {
            forgotten = Some(Instant::now());
            told("forgetting", store.forget_old().await.map(|_| ()));
        }
        told("limits", health::limits(&store).await);
        told("health", health::tenants(&store).await);
        told("sign-ins", health::sign_ins(&store).await);
        told("logs of moves", health::retained_logs(&store).await);
        told("webhooks", send_alerts(&store).await);
        tokio::time::sleep(TICK).await;
    }
}

fn told(what: &str, done: Result<(), StoreError>) {
    if let Err(error) = done {
        tracing::warn!(job = what, %error, "a job is not done; it is tried again");
    }
}

async fn send_alerts(store: &Store) -> Result<(), StoreError> {
    if store.webhooks().await?.iter().all(|w| w.pending == 0) {
        return Ok(());
    }
    for delivery in store.due_deliveries(SENT_AT_A_TIME).await? {
        let failure = send(&delivery).await.err();
        if let Some(error) = &failure {
            tracing::info!(
                webhook = delivery.webhook,
                error,
                attempts = delivery.attempts,
                "an alert is not taken"
            );
        }
        store.delivered(&delivery, failure.as_deref()).await?;
    }
    Ok(())
}

async fn send(delivery: &Delivery) -> Result<(), String> {
    let alert = &delivery.alert;
    let body = json!({ "id": alert.id, "kind": alert.kind, "tenant": alert.tenant, "subject": alert.subject,
                       "detail": alert.detail, "raised_at": alert.raised_at });
    let body = serde_json::to_vec(&body).map_err(|e| e.to_string())?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let time = now.map_or(0, |d| d.as_secs());
    let to: Uri = delivery.url.parse().map_err(|_| "its URL makes no sense".to_owned())?;
    let path = to.path_and_query().map_or("/", |p| p.as_str());
    let request = Request::post(path)
        .header("content-type", "application/json")
        .header("switchyard-event-id", alert.id)
        .header("switchyard-signature", delivery.signature(time, &body))
        .body(Full::<Bytes>::from(body))
        .map_err(|e| e.to_string())?;
    let answer = client::send(&to, request, SEND, 64 * 1024).await.map_err(|e| e.to_string())?;
    if answer.status.is_success() { Ok(()) } else { Err(format!("answered with {}", answer.status)) }
}
