//! Cancel requests: from a client to its session, and on to the server connection that runs its
//! query. They are never answered, and never reach another query: while one is under way, the
//! server connection is not lent to anybody else (see [`crate::pool::Pool::give_back`]).

use std::sync::Arc;

use subtle::ConstantTimeEq;
use switchyard_wire::build;

use crate::server::ServerIdentity;
use crate::server::connect;
use crate::session::handle::Order;
use crate::shared::Shared;
use crate::tls::ShardTlsContext;

/// A client has asked to cancel what the session with this key runs.
pub(crate) async fn request(shared: &Arc<Shared>, pid: u32, key: &[u8]) {
    let session = shared.sessions.get(&pid).map(|s| s.clone());
    let known = session.filter(|s| bool::from(s.secret.to_be_bytes().as_slice().ct_eq(key)));
    let Some(session) = known else {
        shared.stats.cancels_ignored.add(1);
        tracing::debug!("cancel request with an unknown key");
        return;
    };
    let Some(identity) = session.begin_cancel() else {
        // Idle, or waiting for a server connection.
        session.command(Order::CancelWait);
        shared.stats.cancels_ignored.add(1);
        return;
    };
    let Some(pool) = shared.pool(&identity.shard.name) else {
        identity.cancel_ends();
        return;
    };
    let tls = pool.tls().clone();
    tracing::debug!(tenant = %session.who.tenant, shard = %identity.shard.name, "cancel request");
    send(shared, &identity, &tls).await;
}

/// Sends a cancel request that was counted in by [`ServerIdentity::cancel_begins`], and counts it
/// out when the shard has closed the connection: then the signal has been sent.
pub(crate) async fn send(shared: &Arc<Shared>, identity: &Arc<ServerIdentity>, tls: &ShardTlsContext) {
    let ended = CountOut(identity);
    let limit = shared.settings().limits.cancel_timeout;
    match tokio::time::timeout(limit, deliver(identity, tls)).await {
        Ok(Ok(())) => shared.stats.cancels_sent.add(1),
        Ok(Err(error)) => tracing::warn!(shard = %identity.shard.name, %error, "cannot cancel"),
        Err(_) => tracing::warn!(shard = %identity.shard.name, "cancel request was not answered in time"),
    }
    drop(ended);
}

struct CountOut<'a>(&'a ServerIdentity);

impl Drop for CountOut<'_> {
    fn drop(&mut self) {
        self.0.cancel_ends();
    }
}

async fn deliver(identity: &ServerIdentity, tls: &ShardTlsContext) -> Result<(), connect::ConnectError> {
    let plain = matches!(tls.mode(), switchyard_config::topology::SslMode::Allow);
    let (mut stream, _) = connect::open(&identity.shard, tls, plain).await?;
    let mut request = Vec::with_capacity(16);
    let failed = |e: &dyn std::fmt::Display| connect::ConnectError::Protocol(e.to_string());
    build::cancel_request(&mut request, identity.pid, &identity.key).map_err(|e| failed(&e))?;
    stream.write_all(&request).await.map_err(|e| failed(&e))?;
    // The shard says nothing and closes once it has done what it can.
    let mut byte = [0];
    let _ = stream.read(&mut byte).await;
    Ok(())
}
