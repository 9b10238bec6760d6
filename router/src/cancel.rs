//! Cancel requests: from a client to its session, and on to the server connection that runs its
//! query. They are never answered, and never reach another query: while one is under way, the
//! server connection is not lent to anybody else (see [`crate::pool::Pool::give_back`]).
//!
//! A request comes on a connection of its own, and so perhaps to another router than the one that has
//! the session, or to the process that has taken over from it: its key says which, and it is passed on.

pub(crate) mod key;
pub(crate) mod process;
mod rate;
pub(crate) mod relay;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use switchyard_config::settings::Peer;
use switchyard_wire::build;
use switchyard_wire::startup::{self, First};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::server::ServerIdentity;
use crate::server::connect;
use crate::session::handle::{Canceled, SessionHandle};
use crate::shared::Shared;
use key::Holder;
pub(crate) use rate::Guesses;

/// Requests of other processes of this router that are dealt with at a time.
const FROM_PROCESSES: usize = 64;

/// Time for another process of this router to send its request.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(1);

/// Somebody has asked to cancel what the session with this key runs. `address` is none for other
/// processes of this router and on unix sockets.
pub(crate) async fn request(shared: &Arc<Shared>, address: Option<IpAddr>, pid: u32, key: &[u8]) {
    let (key, hops) = relay::unwrap(key);
    let settings = shared.settings().clone();
    let rate = settings.limits.unknown_cancels;
    // What a peer passes on has been counted there.
    let guesser = address.filter(|a| !settings.peers.iter().any(|peer| is_of(peer, *a)));
    if guesser.is_some_and(|a| shared.guesses.are_spent(a, rate)) {
        shared.stats.cancels_limited.add(1);
        tracing::debug!(
            address = address.map(tracing::field::display),
            "too many cancel requests with unknown keys"
        );
        return;
    }
    if let Some(session) = shared.session(pid, key) {
        return deliver(shared, &session).await;
    }
    if shared.console.cancel(shared.keys.place(pid, key), pid, key) {
        return;
    }
    if let Some(guesser) = guesser {
        shared.guesses.spend(guesser, rate);
    }
    if !pass_on(shared, &settings.peers, pid, key, hops).await {
        shared.stats.cancels_ignored.add(1);
        tracing::debug!("cancel request with an unknown key");
    }
}

fn is_of(peer: &Peer, address: IpAddr) -> bool {
    peer.host.parse::<IpAddr>().is_ok_and(|a| a.to_canonical() == address)
}

/// Passes a request on to where the session may be. False if there is no such place.
async fn pass_on(shared: &Arc<Shared>, peers: &[Peer], pid: u32, key: &[u8], hops: u8) -> bool {
    let Some(hops_left) = hops.checked_sub(1) else { return false };
    let limit = shared.settings().limits.cancel_timeout;
    let place = shared.place.as_str();
    let own = shared.keys.own();
    let others = |process: &u8| *process != own.process;
    let passed_on = match key::holder(pid, key) {
        // Of a process that is gone, or a guess.
        Some(holder) if holder == own => false,
        Some(Holder { router, process }) if router == own.router => {
            relay::to_processes((place, router), std::iter::once(process), pid, key, hops_left, limit).await
        }
        Some(Holder { router, .. }) => {
            let Some(peer) = peers.iter().find(|peer| peer.id == router) else { return false };
            relay::to_peers(std::iter::once(peer), pid, key, hops_left, limit).await;
            true
        }
        None => {
            // The process id is that of a server connection: anybody may have the session.
            let here =
                relay::to_processes((place, own.router), (0..=u8::MAX).filter(others), pid, key, 0, limit);
            let asked: &[Peer] = if hops == relay::HOPS { peers } else { &[] };
            let (here, ()) = tokio::join!(here, relay::to_peers(asked.iter(), pid, key, hops_left, limit));
            here || !asked.is_empty()
        }
    };
    shared.stats.cancels_passed_on.add(passed_on.into());
    passed_on
}

/// Cancels what a session of this process runs, or is about to run.
async fn deliver(shared: &Arc<Shared>, session: &SessionHandle) {
    match session.cancel() {
        Canceled::On(identity) => {
            tracing::debug!(tenant = %session.tenant(), shard = %identity.shard.name, "cancel request");
            send(shared, &identity).await;
        }
        Canceled::Wait => shared.stats.cancels_of_waits.add(1),
        Canceled::Nothing => shared.stats.cancels_ignored.add(1),
    }
}

/// Sends a cancel request that was counted in by [`ServerIdentity::cancel_begins`], and counts it
/// out when the shard has closed the connection: then the signal has been sent.
pub(crate) async fn send(shared: &Arc<Shared>, identity: &Arc<ServerIdentity>) {
    let ended = CountOut(identity);
    let limit = shared.settings().limits.cancel_timeout;
    match tokio::time::timeout(limit, signal(identity)).await {
        Ok(Ok(())) => shared.stats.cancels_sent.add(1),
        Ok(Err(error)) => {
            identity.cancel_is_in_doubt();
            tracing::warn!(shard = %identity.shard.name, %error, "cannot cancel");
        }
        Err(_) => {
            identity.cancel_is_in_doubt();
            tracing::warn!(shard = %identity.shard.name, "cancel request was not answered in time");
        }
    }
    drop(ended);
}

struct CountOut<'a>(&'a ServerIdentity);

impl Drop for CountOut<'_> {
    fn drop(&mut self) {
        self.0.cancel_ends();
    }
}

async fn signal(identity: &ServerIdentity) -> Result<(), connect::ConnectError> {
    let plain = matches!(identity.tls.mode(), switchyard_config::topology::SslMode::Allow);
    let (stream, _) = connect::open(&identity.endpoint, &identity.tls, plain).await?;
    let mut request = Vec::with_capacity(16);
    let failed = |e: &dyn std::fmt::Display| connect::ConnectError::Protocol(e.to_string());
    build::cancel_request(&mut request, identity.pid, &identity.key).map_err(|e| failed(&e))?;
    // The shard says nothing and closes once it has done what it can.
    relay::deliver(stream, &request).await.map_err(|e| failed(&e))
}

/// Serves other processes of this router on this machine, to the end of this one: the sessions of a
/// process that no longer listens can still be canceled.
pub(crate) async fn serve_processes(shared: Arc<Shared>, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(FROM_PROCESSES));
    while let Ok(place) = places.clone().acquire_owned().await {
        match process::accept(&listener).await {
            Ok(stream) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    from_process(&shared, stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a cancel request");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn from_process(shared: &Arc<Shared>, mut stream: UnixStream) {
    let reading = async {
        let mut packet = vec![0; 4];
        stream.read_exact(&mut packet).await.ok()?;
        // A cancel request is never longer than this.
        let len = startup::packet_len(packet.first_chunk()?, 512).ok()?;
        packet.resize(len, 0);
        stream.read_exact(&mut packet[4..]).await.ok()?;
        startup::first(&packet).ok()
    };
    if let Ok(Some(First::Cancel { pid, key })) = tokio::time::timeout(PROCESS_TIMEOUT, reading).await {
        request(shared, None, pid, &key).await;
    }
}
