//! One GET of a key set over HTTP(S).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::jwks::{self, JwksError};
use crate::tls;

/// Why keys could not be fetched. For the log.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum FetchError {
    #[error("the url is neither https:// nor http:// to a loopback address, or has a user in it")]
    Url,
    #[error("cannot set up: {0}")]
    Setup(Arc<str>),
    #[error("cannot connect: {0}")]
    Connect(Arc<str>),
    #[error("http: {0}")]
    Http(Arc<str>),
    #[error("answered with status {0}")]
    Status(StatusCode),
    #[error("no answer in time")]
    Timeout,
    #[error("not a key set: {0}")]
    Jwks(#[from] JwksError),
}

/// A checked address.
#[derive(Debug)]
pub(super) struct Endpoint {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

/// Without the query, which may hold a secret.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{}://{}{path}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

impl Endpoint {
    pub(super) fn parse(url: &str) -> Result<Self, FetchError> {
        let uri: Uri = url.parse().map_err(|_| FetchError::Url)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(FetchError::Url),
        };
        let authority = uri.authority().filter(|a| !a.as_str().contains('@')).ok_or(FetchError::Url)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        // What else may resolve to a loopback address today may resolve to another one tomorrow.
        let loopback =
            host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if host.is_empty() || !(tls || loopback) {
            return Err(FetchError::Url);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { tls, host, port, path })
    }

    fn authority(&self) -> String {
        let brackets = self.host.contains(':');
        let host = if brackets { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

/// Fetches the document, in at most `timeout`. Follows no redirects: an address that has moved is to be
/// configured anew. Blocks the thread.
pub(super) fn fetch(endpoint: &Endpoint, ca: Option<&Path>, timeout: Duration) -> Result<Bytes, FetchError> {
    let setup = |error: &dyn fmt::Display| FetchError::Setup(error.to_string().into());
    let config = if endpoint.tls { Some(tls_config(ca).map_err(|e| setup(&e))?) } else { None };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| setup(&e))?;
    let result = runtime.block_on(async {
        tokio::time::timeout(timeout, get(endpoint, config)).await.unwrap_or(Err(FetchError::Timeout))
    });
    // Looking up a name cannot be cancelled, and is not waited for.
    runtime.shutdown_background();
    result
}

fn tls_config(ca: Option<&Path>) -> Result<ClientConfig, tls::TlsError> {
    let roots = tls::root_store(ca)?;
    let mut config = tls::client_builder()?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn get(endpoint: &Endpoint, config: Option<ClientConfig>) -> Result<Bytes, FetchError> {
    let stream = connect(endpoint).await?;
    match config {
        None => exchange(endpoint, stream).await,
        Some(config) => {
            let failed = |error: &dyn fmt::Display| FetchError::Connect(error.to_string().into());
            let name = ServerName::try_from(endpoint.host.clone()).map_err(|e| failed(&e))?;
            let connector = TlsConnector::from(Arc::new(config));
            let stream = connector.connect(name, stream).await.map_err(|e| failed(&e))?;
            exchange(endpoint, stream).await
        }
    }
}

async fn connect(endpoint: &Endpoint) -> Result<TcpStream, FetchError> {
    let failed = |error: &dyn fmt::Display| FetchError::Connect(error.to_string().into());
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port))
        .await
        .map_err(|e| failed(&e))?
        .filter(|address| endpoint.tls || address.ip().is_loopback())
        .collect();
    TcpStream::connect(addresses.as_slice()).await.map_err(|e| failed(&e))
}

async fn exchange<S>(endpoint: &Endpoint, stream: S) -> Result<Bytes, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: &dyn fmt::Display| FetchError::Http(error.to_string().into());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    // The runtime is ours and ends with this fetch.
    tokio::spawn(connection);
    let request = Request::get(&endpoint.path)
        .header(HOST, endpoint.authority())
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .header(USER_AGENT, "switchyard")
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(&e))?;
    let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), jwks::MAX_BYTES).collect().await.map_err(|e| failed(&e))?;
    Ok(body.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_addresses_are_asked() {
        for url in [
            "https://idp.example.com/jwks.json",
            "https://10.0.0.1/",
            "https://[::1]:8443/k",
            "http://127.0.0.1:80",
            "http://localhost:8080/jwks?x=1",
            "http://[::1]/",
        ] {
            assert!(Endpoint::parse(url).is_ok(), "{url}");
        }
        for url in [
            "",
            "/jwks.json",
            "idp.example.com",
            "http://idp.example.com/jwks.json",
            "http://10.0.0.1/",
            "http://127.0.0.1.example.com/",
            "http://127.0.0.1@example.com/",
            "https://user:secret@example.com/",
            "file:///etc/passwd",
            "ftp://127.0.0.1/",
        ] {
            assert!(Endpoint::parse(url).is_err(), "{url}");
        }
        let shown = Endpoint::parse("https://[::1]:8443/k?secret=1").unwrap().to_string();
        assert_eq!(shown, "https://[::1]:8443/k");
    }
}
