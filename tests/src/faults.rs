//! A TCP proxy between the router and a shard that misbehaves when told to.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A proxy to one address. Everything it holds is closed on drop.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    to: SocketAddr,
    sockets: Mutex<Vec<(TcpStream, TcpStream)>>,
    stalled: Mutex<bool>,
    resumed: Condvar,
    delay_ms: AtomicU64,
    refuse: AtomicBool,
    accepted: AtomicUsize,
    to_server: AtomicUsize,
    ended: AtomicBool,
}

impl FaultProxy {
    /// Begins to forward to `to`.
    ///
    /// # Panics
    /// If no port can be had.
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::process::free_port())).expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            to,
            sockets: Mutex::default(),
            stalled: Mutex::new(false),
            resumed: Condvar::new(),
            delay_ms: AtomicU64::new(0),
            refuse: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
            to_server: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || accept(&listener, &accepting));
        Self { address, shared }
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Bytes forwarded to the server so far.
    pub fn bytes_to_server(&self) -> usize {
        self.shared.to_server.load(Ordering::SeqCst)
    }

    /// Every chunk waits this long.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// Nothing is forwarded until [`FaultProxy::resume`], and no connection ends.
    pub fn stall(&self) {
        *self.shared.stalled.lock().expect("no panic while held") = true;
    }

    /// Forwards again.
    pub fn resume(&self) {
        *self.shared.stalled.lock().expect("no panic while held") = false;
        self.shared.resumed.notify_all();
    }

    /// Ends all connections, and new ones as soon as they are made, until told otherwise.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::SeqCst);
        if refuse {
            self.cut();
        }
    }

    /// Ends all connections in both directions.
    pub fn cut(&self) {
        for (client, server) in self.shared.sockets.lock().expect("no panic while held").drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }

    /// Says to the router on every connection that the server will send no more, and goes on
    /// forwarding what the router sends.
    pub fn half_close(&self) {
        for (client, _) in self.shared.sockets.lock().expect("no panic while held").iter() {
            let _ = client.shutdown(Shutdown::Write);
        }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.refuse(true);
        self.resume();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming().flatten() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        if shared.refuse.load(Ordering::SeqCst) {
            continue;
        }
        let Ok(server) = TcpStream::connect(shared.to) else { continue };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let clone = |s: &TcpStream| s.try_clone().expect("a socket can be cloned");
        shared.sockets.lock().expect("no panic while held").push((clone(&client), clone(&server)));
        for (from, to, up) in [(clone(&client), clone(&server), true), (server, client, false)] {
            let shared = shared.clone();
            std::thread::spawn(move || forward(from, to, up, &shared));
        }
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, up: bool, shared: &Shared) {
    let mut chunk = vec![0; 65_536];
    while let Ok(n) = from.read(&mut chunk) {
        let stalled = shared.stalled.lock().expect("no panic while held");
        drop(shared.resumed.wait_while(stalled, |stalled| *stalled).expect("no panic while held"));
        std::thread::sleep(Duration::from_millis(shared.delay_ms.load(Ordering::SeqCst)));
        if up {
            shared.to_server.fetch_add(n, Ordering::SeqCst);
        }
        if n == 0 || to.write_all(&chunk[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
