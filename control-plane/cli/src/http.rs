//! A small client of the control plane's API.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::failure::{Failure, Outcome};

/// Deadline of one request.
const TIMEOUT: Duration = Duration::from_secs(30);

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

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Outcome<Value> {
        let (status, bytes) = self.exchange(method, path, body).await?;
        let value: Value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).with_context(|| format!("{status}, and the answer is no JSON"))?
        };
        if status.is_success() {
            return Ok(value);
        }
        let detail = value["detail"].as_str().map_or_else(|| status.to_string(), str::to_owned);
        Err(match status {
            StatusCode::NOT_FOUND => Failure::NotFound(detail),
            StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => Failure::Conflict(detail),
            StatusCode::UNAUTHORIZED => {
                Failure::Error(anyhow!("{detail} (SWITCHYARD_TOKEN holds it, or --token)"))
            }
            _ => Failure::Error(anyhow!(detail)),
        })
    }

    /// One request; any status is an answer.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let host = self.base.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let prefix = self.base.path().trim_end_matches('/');
        let mut request =
            Request::builder().method(method).uri(format!("{prefix}{path}")).header(HOST, host.as_str());
        if !self.token.expose_secret().is_empty() {
            request = request.header(AUTHORIZATION, format!("Bearer {}", self.token.expose_secret()));
        }
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Full::from(serde_json::to_vec(&body)?)
            }
            None => Full::default(),
        };
        let request = request.body(body).context("the request")?;
        let done = tokio::time::timeout(TIMEOUT, self.send(request)).await;
        done.map_err(|_| anyhow!("no answer within {} s", TIMEOUT.as_secs()))
            .and_then(|answered| answered)
            .with_context(|| host.clone())
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)> {
        let host = self.base.host().unwrap_or_default().trim_matches(['[', ']']);
        let tls = self.base.scheme_str() == Some("https");
        let port = self.base.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await?;
        if tls {
            let name = rustls_pki_types::ServerName::try_from(host.to_owned())?;
            let connector = tokio_rustls::TlsConnector::from(Arc::new(tls_config()?));
            over(connector.connect(name, stream).await?, request).await
        } else {
            over(stream, request).await
        }
    }
}

async fn over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(|e| anyhow!(e))?;
    driver.abort();
    Ok((status, body.to_bytes()))
}

fn tls_config() -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        bail!("the system has no trusted authorities for https");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The status of a `GET` without a token: for health, of the control plane and of routers.
pub(crate) async fn status(url: &str) -> anyhow::Result<u16> {
    let (base, path) = url.rsplit_once('/').context("no path")?;
    let api = Api::new(base, "").map_err(|_| anyhow!("no URL"))?;
    Ok(api.exchange(Method::GET, &format!("/{path}"), None).await?.0.as_u16())
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
