//! The control plane's API, as one token sees it.

use std::time::Duration;

use anyhow::{Context, anyhow};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, IF_MATCH};
use hyper::{Method, Request, StatusCode, Uri};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use switchyard_control_plane::client::{self, Answer};

use crate::failure::{Failure, Outcome};

/// Deadline of one request. An operation that is waited for is asked for again and again.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Largest answer, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The control plane, as one token sees it.
pub(crate) struct Api {
    base: Uri,
    token: SecretString,
}

impl Api {
    /// An API at `url`, with or without a path in front of `/v1`.
    pub(crate) fn new(url: &str, token: &str) -> Outcome<Self> {
        let base: Uri = url.parse().map_err(|_| Failure::Usage(format!("`{url}` is no URL")))?;
        if !matches!(base.scheme_str(), Some("http" | "https")) || base.host().is_none() {
            return Err(Failure::Usage(format!("`{url}` is no http:// or https:// URL")));
        }
        Ok(Self { base, token: SecretString::from(token) })
    }

    pub(crate) async fn get(&self, path: &str) -> Outcome<Value> {
        self.ask(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Outcome<Value> {
        self.ask(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Outcome<Value> {
        self.ask(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Outcome<Value> {
        self.ask(Method::PATCH, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Outcome<Value> {
        self.ask(Method::DELETE, path, None).await
    }

    /// What is there as text, such as CSV.
    pub(crate) async fn text(&self, path: &str) -> Outcome<String> {
        let answer = self.exchange(Method::GET, path, None).await?;
        if answer.status.is_success() {
            return Ok(String::from_utf8_lossy(&answer.body).into_owned());
        }
        Err(failure(&answer))
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Outcome<Value> {
        let answer = self.exchange(method, path, body).await?;
        if !answer.status.is_success() {
            return Err(failure(&answer));
        }
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        let read = serde_json::from_slice(&answer.body);
        Ok(read.with_context(|| format!("{}, and the answer is no JSON", answer.status))?)
    }

    /// One request; any status is an answer.
    async fn exchange(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Answer> {
        let prefix = self.base.path().trim_end_matches('/');
        let changes = [Method::PUT, Method::PATCH, Method::DELETE].contains(&method);
        let mut request = Request::builder().method(method).uri(format!("{prefix}{path}"));
        if changes {
            // Whoever says what is to be done on a command line has not looked at it before.
            request = request.header(IF_MATCH, "*");
        }
        if !self.token.expose_secret().is_empty() {
            request = request.header(AUTHORIZATION, format!("Bearer {}", self.token.expose_secret()));
        }
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Full::from(serde_json::to_vec(&body)?)
            }
            None => Full::<Bytes>::default(),
        };
        let request = request.body(body).context("the request")?;
        let sent = client::send(&self.base, request, TIMEOUT, MAX_ANSWER_BYTES).await;
        sent.with_context(|| self.base.authority().map(|a| a.as_str().to_owned()).unwrap_or_default())
    }
}

fn failure(answer: &Answer) -> Failure {
    let status = answer.status;
    let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let detail = problem["detail"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    match status {
        StatusCode::NOT_FOUND => Failure::NotFound(detail),
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => Failure::Conflict(detail),
        StatusCode::UNAUTHORIZED => {
            Failure::Error(anyhow!("{detail} (SWITCHYARD_TOKEN holds it, or --token)"))
        }
        _ => Failure::Error(anyhow!(detail)),
    }
}

/// The status of a `GET` without a token: for health, of the control plane and of routers.
pub(crate) async fn status(url: &str) -> anyhow::Result<u16> {
    let (base, path) = url.rsplit_once('/').context("no path")?;
    let api = Api::new(base, "").map_err(|_| anyhow!("no URL"))?;
    let answer = api.exchange(Method::GET, &format!("/{path}"), None).await?;
    Ok(answer.status.as_u16())
}
/// Percent-encodes a part of a path.
pub(crate) fn segment(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'_' | b'~')
            || (byte == b'.' && text.len() > 2)
        {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_hold_any_tenant_id() {
        assert_eq!(segment("acme"), "acme");
        assert_eq!(segment("a/b ?#ü"), "a%2Fb%20%3F%23%C3%BC");
        // Dots alone would be folded away as steps in the path.
        assert_eq!(segment(".."), "%2E%2E");
        assert_eq!(segment("a.b"), "a.b");
    }

    #[test]
    fn urls_are_checked() {
        assert!(Api::new("http://127.0.0.1:6480", "t").is_ok());
        assert!(Api::new("https://db.example.com/switchyard/", "t").is_ok());
        assert!(matches!(Api::new("127.0.0.1:6480", "t"), Err(Failure::Usage(_))));
        assert!(matches!(Api::new("ftp://x", "t"), Err(Failure::Usage(_))));
    }
}
