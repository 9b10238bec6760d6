//! Worker threads: each has a runtime of its own, accepts clients and runs their sessions, so that
//! a transaction wakes one thread and no other.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::OptionFuture;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::listen;
use crate::login::{self, Admitted};
use crate::shared::{Shared, StartError};
use crate::stream::ClientStream;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The worker that calls; no worker's number on other threads.
pub(crate) fn current() -> usize {
    CURRENT.with(Cell::get)
}

/// Pause after accept failed for want of descriptors or memory: the listener must outlive that.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A new client on its way from the thread that accepted it to the thread that serves it.
pub(crate) enum Raw {
    Tcp(std::net::TcpStream, IpAddr),
    Unix(std::os::unix::net::UnixStream),
}

/// A new client.
enum Accepted {
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

impl Accepted {
    fn release(self) -> io::Result<Raw> {
        match self {
            Self::Tcp(stream, peer) => Ok(Raw::Tcp(stream.into_std()?, peer)),
            Self::Unix(stream) => Ok(Raw::Unix(stream.into_std()?)),
        }
    }

    fn adopt(raw: Raw) -> io::Result<Self> {
        match raw {
            Raw::Tcp(stream, peer) => Ok(Self::Tcp(TcpStream::from_std(stream)?, peer)),
            Raw::Unix(stream) => Ok(Self::Unix(UnixStream::from_std(stream)?)),
        }
    }
}

/// The sockets that a worker accepts on.
pub(crate) struct Listeners {
    pub(crate) tcp: Vec<std::net::TcpListener>,
    pub(crate) unix: Vec<StdUnixListener>,
}

/// How workers pass clients to each other.
#[derive(Clone)]
pub(crate) struct Peers {
    /// Clients of each worker.
    load: Arc<Vec<AtomicUsize>>,
    inboxes: Arc<Vec<mpsc::UnboundedSender<(Raw, Counted)>>>,
}

/// Starts the workers. They stop accepting when `accepting` turns false, and end when it closes.
pub(crate) fn start(
    shared: &Arc<Shared>,
    listeners: Vec<Listeners>,
    accepting: &watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let (inboxes, outboxes): (Vec<_>, Vec<_>) = listeners.iter().map(|_| mpsc::unbounded_channel()).unzip();
    let peers = Peers {
        load: Arc::new(listeners.iter().map(|_| AtomicUsize::new(0)).collect()),
        inboxes: Arc::new(inboxes),
    };
    let mut threads = Vec::new();
    for (index, (listeners, inbox)) in listeners.into_iter().zip(outboxes).enumerate() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .event_interval(61)
            .build()
            .map_err(StartError::Worker)?;
        let worker = Worker { index, shared: shared.clone(), peers: peers.clone() };
        let accepting = accepting.clone();
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                CURRENT.with(|c| c.set(index));
                if let Err(error) = runtime.block_on(worker.run(listeners, inbox, accepting)) {
                    tracing::error!(worker = index, %error, "worker failed");
                }
                runtime.shutdown_timeout(Duration::from_millis(100));
            })
            .map_err(StartError::Worker)?;
        threads.push(thread);
    }
    Ok(threads)
}

#[derive(Clone)]
struct Worker {
    index: usize,
    shared: Arc<Shared>,
    peers: Peers,
}

impl Worker {
    async fn run(
        self,
        listeners: Listeners,
        mut inbox: mpsc::UnboundedReceiver<(Raw, Counted)>,
        mut accepting: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let mut tasks = JoinSet::new();
        let mut open = Vec::new();
        for listener in listeners.tcp {
            listener.set_nonblocking(true)?;
            let listener = Arc::new(TcpListener::from_std(listener)?);
            open.push(Arc::downgrade(&listener));
            let worker = self.clone();
            tasks.spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, peer)) => worker.place(Accepted::Tcp(stream, peer.ip().to_canonical())),
                        Err(error) => accept_failed(&error).await,
                    }
                }
            });
        }
        for listener in listeners.unix {
            listener.set_nonblocking(true)?;
            let listener = UnixListener::from_std(listener)?;
            let worker = self.clone();
            tasks.spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => worker.place(Accepted::Unix(stream)),
                        Err(error) => accept_failed(&error).await,
                    }
                }
            });
        }
        // When the listeners are to be closed.
        let mut closing = None;
        loop {
            tokio::select! {
                raw = inbox.recv() => {
                    if let Some((raw, counted)) = raw
                        && let Ok(client) = Accepted::adopt(raw)
                    {
                        self.serve(client, counted);
                    }
                }
                changed = accepting.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    if !*accepting.borrow_and_update() && closing.is_none() {
                        // Who has come must not be lost: see `listen`.
                        open.iter().filter_map(Weak::upgrade).for_each(|l| listen::turn_away(&*l));
                        closing = Some(Box::pin(tokio::time::sleep(listen::LAST_CLIENTS)));
                    }
                }
                () = OptionFuture::from(closing.as_mut()).map(drop), if !tasks.is_empty() && closing.is_some() => {
                    tasks.shutdown().await;
                }
            }
        }
    }

    /// Keeps a new client, or passes it to the worker that has the fewest.
    fn place(&self, client: Accepted) {
        self.shared.stats.accepted.add(1);
        let load = &self.peers.load;
        let own = load[self.index].load(Ordering::Relaxed);
        let least = (0..load.len()).min_by_key(|i| load[*i].load(Ordering::Relaxed)).unwrap_or(self.index);
        let index = if load[least].load(Ordering::Relaxed) < own { least } else { self.index };
        load[index].fetch_add(1, Ordering::Relaxed);
        let counted = Counted { load: load.clone(), index };
        if index == self.index {
            return self.serve(client, counted);
        }
        let Ok(raw) = client.release() else { return };
        // If that worker has ended, so does the client: the process is on its way out.
        let _ = self.peers.inboxes[index].send((raw, counted));
    }

    fn serve(&self, client: Accepted, counted: Counted) {
        let (stream, peer) = match client {
            Accepted::Tcp(stream, peer) => (ClientStream::Tcp(stream), Some(peer)),
            Accepted::Unix(stream) => (ClientStream::Unix(stream), None),
        };
        let (shared, index) = (self.shared.clone(), self.index);
        tokio::spawn(async move {
            // The login's future is large and the session's is small: a task for each.
            match login::login(shared, stream, peer, index).await {
                Some(Admitted::Session(session)) => {
                    tokio::spawn(async move {
                        session.await;
                        drop(counted);
                    });
                }
                Some(Admitted::Console(session)) => {
                    tokio::spawn(async move {
                        session.run().await;
                        drop(counted);
                    });
                }
                None => {}
            }
        });
    }
}

/// One client counted at a worker.
pub(crate) struct Counted {
    load: Arc<Vec<AtomicUsize>>,
    index: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.load[self.index].fetch_sub(1, Ordering::Relaxed);
    }
}

async fn accept_failed(error: &io::Error) {
    tracing::warn!(%error, "cannot accept");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
