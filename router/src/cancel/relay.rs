//! Passing a cancel request on to the router that has the session: to a peer over the network, or to
//! another process of this router on this machine, while one takes over from the other.

use std::time::Duration;

use futures_util::future::join_all;
use switchyard_config::settings::Peer;
use switchyard_config::topology::Endpoint;
use switchyard_wire::build;

use super::key::Holder;
use crate::server::connect::{self, ConnectError};
use crate::stream::ServerStream;
use crate::tls::ShardTlsContext;

/// Marks a request that was passed on; one byte follows, which says how often it may be passed on
/// still. Keys have 4 or 32 bytes, and so none ends like this.
const MARK: &[u8; 15] = b"\0switchyard-hop";

/// How often a request may be passed on: to the peer, and there to the right process. Peers that are
/// configured in a circle are no more than that.
pub(super) const HOPS: u8 = 2;

/// A key as it came, and how often it may be passed on.
pub(super) fn unwrap(key: &[u8]) -> (&[u8], u8) {
    match key.split_last() {
        Some((&hops, rest)) if rest.ends_with(MARK) => (&rest[..rest.len() - MARK.len()], hops.min(HOPS - 1)),
        _ => (key, HOPS),
    }
}

/// A request that may be passed on `hops` times more.
fn wrapped(pid: u32, key: &[u8], hops: u8) -> Option<Vec<u8>> {
    let mut request = Vec::with_capacity(16 + key.len() + MARK.len());
    build::cancel_request(&mut request, pid, &[key, MARK, &[hops]].concat()).ok()?;
    Some(request)
}

/// Passes a request on to these peers, and waits until they have dealt with it.
pub(super) async fn to_peers<'p>(
    peers: impl Iterator<Item = &'p Peer>,
    pid: u32,
    key: &[u8],
    hops: u8,
    limit: Duration,
) {
    let Some(request) = wrapped(pid, key, hops) else { return };
    let each = peers.map(|peer| {
        let request = &request;
        async move {
            match tokio::time::timeout(limit, to_peer(peer, request)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(peer = peer.id, %error, "cannot pass a cancel request on"),
                Err(_) => tracing::warn!(peer = peer.id, "peer has not dealt with a cancel request in time"),
            }
        }
    });
    join_all(each).await;
}

/// Sends a request to a peer, and waits until it has dealt with it.
pub(crate) async fn to_peer(peer: &Peer, request: &[u8]) -> Result<(), ConnectError> {
    let endpoint = Endpoint { host: peer.host.clone(), port: peer.port };
    let tls = ShardTlsContext::load(&peer.tls)
        .map_err(|e| ConnectError::Tls { address: endpoint.to_string(), cause: e.to_string() })?;
    let plain = matches!(tls.mode(), switchyard_config::topology::SslMode::Allow);
    let (stream, _) = connect::open(&endpoint, &tls, plain).await?;
    deliver(stream, request)
        .await
        .map_err(|e| ConnectError::Unreachable { address: endpoint.to_string(), cause: e.to_string() })
}

/// Sends a request and waits for the other side to close, which says that it has dealt with it.
pub(super) async fn deliver(mut stream: ServerStream, request: &[u8]) -> std::io::Result<()> {
    stream.write_all(request).await?;
    let mut byte = [0];
    let _ = stream.read(&mut byte).await;
    Ok(())
}

/// Passes a request on to processes of this router on this machine. Whether there was one.
pub(super) async fn to_processes(
    (place, router): (&str, u16),
    processes: impl Iterator<Item = u8>,
    pid: u32,
    key: &[u8],
    hops: u8,
    limit: Duration,
) -> bool {
    let Some(request) = wrapped(pid, key, hops) else { return false };
    let each = processes.map(|process| {
        let request = &request;
        async move {
            let Some(stream) = super::process::connect(place, Holder { router, process }).await else {
                return false;
            };
            if tokio::time::timeout(limit, deliver(ServerStream::Unix(stream), request)).await.is_err() {
                tracing::warn!(process, "process has not dealt with a cancel request in time");
            }
            true
        }
    });
    join_all(each).await.contains(&true)
}

#[cfg(test)]
mod tests {
    use switchyard_wire::startup::{First, first};

    use super::*;

    #[test]
    fn hops_are_counted_and_bounded() {
        let key = [7_u8; 32];
        assert_eq!(unwrap(&key), (&key[..], HOPS));
        for hops in [0, 1, 255] {
            let request = wrapped(9, &key, hops).unwrap();
            let First::Cancel { pid: 9, key: carried } = first(&request).unwrap() else { panic!() };
            assert_eq!(unwrap(&carried), (&key[..], hops.min(HOPS - 1)));
        }
    }
}
