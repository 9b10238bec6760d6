//! The header that a trusted balancer puts in front of a connection.

use switchyard_wire::proxy::{self, ProxyError};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::startup::Opening;
use super::{Address, Ended};
use crate::stats::Rejected;
use crate::stream::ClientStream;

impl Opening {
    pub(super) fn address(&self) -> Address {
        self.address
    }

    /// Reads the header, and no byte beyond it: the client's own bytes may be a TLS handshake.
    pub(super) async fn proxied(&mut self) -> Result<(), Ended> {
        let Some(ClientStream::Tcp(stream)) = &mut self.stream else { return Ok(()) };
        match header(stream).await? {
            Ok(Some(address)) => {
                self.address = Some(address.to_canonical());
                self.local = address.is_loopback();
                Ok(())
            }
            // A probe of the balancer itself.
            Ok(None) => Ok(()),
            Err(error) => {
                self.shared.stats.reject(Rejected::Protocol);
                let proxy = self.address.map(tracing::field::display);
                tracing::info!(proxy, %error, "connection of a proxy refused");
                Err(Ended::Quietly)
            }
        }
    }
}

async fn header(stream: &mut TcpStream) -> std::io::Result<Result<Address, ProxyError>> {
    // No line of version 1 is shorter than the signature of version 2.
    let mut begin = [0; proxy::SIGNATURE.len()];
    stream.read_exact(&mut begin).await?;
    if begin != proxy::SIGNATURE {
        return line(stream, &begin).await;
    }
    let mut fixed = [0; proxy::FIXED];
    fixed[..begin.len()].copy_from_slice(&begin);
    stream.read_exact(&mut fixed[begin.len()..]).await?;
    let len = match proxy::rest_len(&fixed) {
        Ok(len) => len,
        Err(error) => return Ok(Err(error)),
    };
    let mut rest = [0; proxy::MAX_REST];
    stream.read_exact(&mut rest[..len]).await?;
    Ok(proxy::binary(&fixed, &rest[..len]))
}

async fn line(stream: &mut TcpStream, begin: &[u8]) -> std::io::Result<Result<Address, ProxyError>> {
    let mut line = begin.to_vec();
    // What does not begin like one is not read any further.
    if !line.starts_with(b"PROXY ") {
        return Ok(Err(ProxyError));
    }
    while !line.ends_with(b"\r\n") {
        if line.len() >= proxy::MAX_LINE {
            return Ok(Err(ProxyError));
        }
        line.push(stream.read_u8().await?);
    }
    Ok(proxy::line(&line))
}
