//! TLS for `tokio_postgres`, by libpq's names.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use switchyard_config::topology::{ServerTls, SslMode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as Rustls;

use crate::CatalogError;

/// Makes TLS connections to a server of PostgreSQL. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    mode: SslMode,
    /// None with `disable`.
    connector: Option<TlsConnector>,
}

impl Tls {
    /// Reads the files that `settings` names.
    ///
    /// # Errors
    /// If one cannot be read or makes no sense.
    pub fn new(settings: &ServerTls) -> Result<Self, CatalogError> {
        let config = switchyard_tls::client_config(settings).map_err(|e| CatalogError::Tls(e.to_string()))?;
        let connector = config.map(|config| TlsConnector::from(Arc::new(config)));
        Ok(Self { mode: settings.mode, connector })
    }
}

/// One connection to be made.
pub struct Connect {
    tls: Tls,
    host: String,
}

/// A connection that was made. Without channel binding: who is at the other end is what the
/// certificate says.
pub struct Stream<S>(Rustls<S>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Tls {
    type Stream = Stream<S>;
    type TlsConnect = Connect;
    type Error = std::convert::Infallible;

    fn make_tls_connect(&mut self, host: &str) -> Result<Connect, Self::Error> {
        Ok(Connect { tls: self.clone(), host: host.to_owned() })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Connect {
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let connector = self.tls.connector.ok_or_else(|| io::Error::other("TLS is disabled"))?;
            let name = switchyard_tls::server_name(self.tls.mode, &self.host).map_err(io::Error::other)?;
            Ok(Stream(connector.connect(name, stream).await?))
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
