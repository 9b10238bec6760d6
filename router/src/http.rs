//! `/metrics`, `/livez` and `/readyz`.
//!
//! A small HTTP server of its own, apart from clients: it answers GET and HEAD, reads no bodies,
//! and everything a stranger could use up is bounded.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::listen;
use crate::metrics::{self, Metrics, Part};
use crate::shared::{Shared, Stage, StartError};

/// Connections at a time; more wait in the listener's queue.
const CONNECTIONS: usize = 32;

/// Time for a request's head, and for the next one on a connection that is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest request head, in bytes.
const HEAD_BYTES: usize = 16 * 1024;

/// Most headers of a request.
const HEADERS: usize = 64;

/// Life of a connection, after which it gets [`LAST_ANSWER`] to end.
const LIFETIME: Duration = Duration::from_secs(60);

/// Time for the answer that is being written when a connection's life is over.
const LAST_ANSWER: Duration = Duration::from_secs(10);

/// Pause after accept failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Answer = Response<Full<Bytes>>;

/// Listens on `address` and serves as one of `tasks`. Returns the address, with its real port.
///
/// # Errors
/// If `address` cannot be listened on.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    address: SocketAddr,
    tasks: &mut JoinSet<()>,
) -> Result<SocketAddr, StartError> {
    let failed = |error| StartError::Listen { address: address.to_string(), error };
    let listener = listen::tcp(address, shared.settings().reuse_port).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = TcpListener::from_std(listener).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let metrics = Metrics::new(shared).map_err(|e| StartError::Configuration(format!("metrics: {e}")))?;
    tasks.spawn(accept(listener, Arc::new(Site { shared: shared.clone(), metrics })));
    Ok(bound)
}

async fn accept(listener: TcpListener, site: Arc<Site>) {
    // Dropped with this task, and then all connections end.
    let mut connections = JoinSet::new();
    tokio::select! {
        () = accept_all(&listener, &site, &mut connections) => {}
        () = handed_over(&listener, &site.shared) => {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Done when another process has taken over, and nothing more comes here.
async fn handed_over(listener: &TcpListener, shared: &Shared) {
    let mut stages = shared.stages();
    if stages.wait_for(|stage| *stage == Stage::HandedOver).await.is_err() {
        return std::future::pending().await;
    }
    listen::turn_away(listener);
    tokio::time::sleep(listen::LAST_CLIENTS).await;
}

async fn accept_all(listener: &TcpListener, site: &Arc<Site>, connections: &mut JoinSet<()>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = places.clone().acquire_owned().await {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let site = site.clone();
                connections.spawn(async move {
                    connection(stream, site).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept for http");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, site: Arc<Site>) {
    let service = service_fn(|request: Request<Incoming>| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(LIFETIME) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_ANSWER, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "http connection ended");
    }
}

/// Why clients should not be sent here, if they should not.
pub(crate) fn unready(shared: &Shared) -> Option<&'static str> {
    match shared.stage() {
        Stage::Serving => {}
        Stage::HandedOver => return Some("handed over"),
        Stage::Draining => return Some("draining"),
    }
    // The catalog may be away and shards may be down: those who can be served are.
    shared.topology().shards.is_empty().then_some("no shards")
}

struct Site {
    shared: Arc<Shared>,
    metrics: Metrics,
}

impl Site {
    async fn answer<B>(self: Arc<Self>, request: &Request<B>) -> Answer {
        let part = match request.uri().path() {
            "/metrics" => Part::All,
            "/metrics/router" => Part::Router,
            "/metrics/tenants" => Part::Tenants,
            path => return self.answer_health(request.method(), path, request.uri().query()),
        };
        if !is_read(request.method()) {
            return not_allowed();
        }
        // Adding up thousands of tenants has no place among timers and signals.
        match tokio::task::spawn_blocking(move || self.metrics.text(part)).await {
            Ok(Ok(text)) => page(StatusCode::OK, metrics::CONTENT_TYPE, text),
            Ok(Err(error)) => failed(&error),
            Err(error) => failed(&error),
        }
    }

    fn answer_health(&self, method: &Method, path: &str, query: Option<&str>) -> Answer {
        let verbose =
            query.is_some_and(|q| q.split('&').any(|p| p == "verbose" || p.starts_with("verbose=")));
        match path {
            "/livez" | "/readyz" if !is_read(method) => not_allowed(),
            "/livez" => plain(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let reason = unready(&self.shared);
                let status = if reason.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
                let mut text = reason.map_or_else(|| "ok\n".to_owned(), |r| format!("not ready: {r}\n"));
                if verbose {
                    self.details(&mut text);
                }
                plain(status, text)
            }
            _ => plain(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// What an operator wants to know next. None of it makes the router unready.
    fn details(&self, text: &mut String) {
        let shared = &self.shared;
        let topology = shared.topology();
        let (clients, unauthenticated) = shared.connections();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "topology version={} shards={} tenants={}\nclients logged_in={clients} login={unauthenticated}",
            topology.version,
            topology.shards.len(),
            topology.tenants.len()
        );
        if let Some(catalog) = shared.catalog_status.get() {
            let age =
                catalog.age().map_or_else(|| "never".to_owned(), |age| format!("{:.1}s", age.as_secs_f64()));
            let _ = writeln!(
                text,
                "catalog connected={} last_read={age} failures={}",
                catalog.connected(),
                catalog.failures()
            );
        }
        for shard in &topology.shards {
            let Some(pool) = shared.pool(&shard.name) else { continue };
            let now = pool.gauges();
            let _ = writeln!(
                text,
                "shard {} size={} active={} idle={} connecting={} waiting={} oldest_wait={:.3}s",
                shard.name,
                shard.pool.size,
                now.open.saturating_sub(now.idle + now.connecting),
                now.idle,
                now.connecting,
                now.waiting,
                now.oldest_wait.as_secs_f64()
            );
        }
    }
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

fn not_allowed() -> Answer {
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    answer
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Answer {
    tracing::error!(error, "metrics cannot be written");
    plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written; the log has the reason\n")
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    page(status, "text/plain; charset=utf-8", text)
}

fn page(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests;
