//! A small HTTP client: for webhooks, key sets, and the operators' commands.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// What came back.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// All of its body.
    pub body: Bytes,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No `http://` or `https://` URL.
    #[error("it is no http:// or https:// URL")]
    Url,
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The connection.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// HTTP.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The answer is larger than what is allowed, or broke off.
    #[error("the answer: {0}")]
    Body(String),
    /// Nothing to check certificates by.
    #[error("the system has no trusted authorities for https")]
    NoAuthorities,
}

/// Sends `request` to the host of `to`, whose path counts for nothing here, and reads an answer of
/// at most `max_bytes`. Follows no redirects.
///
/// # Errors
/// If there is no whole answer within `timeout`.
pub async fn send(
    to: &Uri,
    mut request: Request<Full<Bytes>>,
    timeout: Duration,
    max_bytes: usize,
) -> Result<Answer, ClientError> {
    let authority = to.authority().ok_or(ClientError::Url)?.as_str();
    if authority.contains('@') {
        return Err(ClientError::Url);
    }
    let host = HeaderValue::from_str(authority).map_err(|_| ClientError::Url)?;
    request.headers_mut().insert(HOST, host);
    tokio::time::timeout(timeout, connect_and_send(to, request, max_bytes))
        .await
        .unwrap_or(Err(ClientError::Timeout(timeout)))
}

async fn connect_and_send(
    to: &Uri,
    request: Request<Full<Bytes>>,
    max_bytes: usize,
) -> Result<Answer, ClientError> {
    let host = to.host().ok_or(ClientError::Url)?.trim_matches(['[', ']']);
    let tls = match to.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(ClientError::Url),
    };
    let port = to.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await?;
    if !tls {
        return over(stream, request, max_bytes).await;
    }
    let name = rustls_pki_types::ServerName::try_from(host.to_owned()).map_err(|_| ClientError::Url)?;
    let connector = tokio_rustls::TlsConnector::from(tls_config()?);
    over(connector.connect(name, stream).await?, request, max_bytes).await
}

async fn over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
    max_bytes: usize,
) -> Result<Answer, ClientError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, max_bytes).collect().await.map_err(|e| ClientError::Body(e.to_string()))?;
    driver.abort();
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.to_bytes() })
}

fn tls_config() -> Result<Arc<rustls::ClientConfig>, ClientError> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(extra) = std::env::var_os("SSL_CERT_FILE")
        && let Ok(pem) = std::fs::read(extra)
    {
        use rustls_pki_types::pem::PemObject;
        let more = rustls_pki_types::CertificateDer::pem_slice_iter(&pem).flatten();
        roots.add_parsable_certificates(more);
    }
    if roots.is_empty() {
        return Err(ClientError::NoAuthorities);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| ClientError::NoAuthorities)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(CONFIG.get_or_init(|| Arc::new(config)).clone())
}
