//! Where the processes of one router on one machine reach each other: a socket in Linux's abstract
//! namespace, whose name says router and process. While a new process takes over from an old one, cancel requests
//! for the old one's sessions come to the new one's port.

use switchyard_config::settings::{ListenAddress, RouterSettings};
use tokio::net::{UnixListener, UnixStream};

use super::key::Holder;

/// Where a router is reached by its clients, first of all: its processes have that in common.
pub(crate) fn place(settings: &RouterSettings) -> String {
    match settings.listen.first() {
        Some(ListenAddress::Tcp(address)) => address.to_string(),
        Some(ListenAddress::Unix { dir, port }) => format!("{}:{port}", dir.display()),
        None => String::new(),
    }
}

/// The first byte of an abstract socket's path is NUL. Others may have routers here too, and so may the user.
fn name(place: &str, of: Holder) -> String {
    let user = rustix::process::getuid().as_raw();
    format!("\0switchyard-cancel/{user}/{place}/{}/{}", of.router, of.process)
}

/// Finds a process number that no other process of this router has here. Where that cannot be known,
/// a random one, and nothing to listen on.
pub(crate) fn claim(place: &str, router: u16) -> (Holder, Option<std::os::unix::net::UnixListener>) {
    let mut random = [0];
    // Without random numbers there will be no keys either, and that is told.
    let _ = aws_lc_rs::rand::fill(&mut random);
    #[cfg(target_os = "linux")]
    for n in 0..=u8::MAX {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixListener};
        let holder = Holder { router, process: random[0].wrapping_add(n) };
        let address = SocketAddr::from_abstract_name(&name(place, holder).as_bytes()[1..]);
        if let Ok(listener) = address.and_then(|a| UnixListener::bind_addr(&a)) {
            return (holder, Some(listener));
        }
    }
    (Holder { router, process: random[0] }, None)
}

/// A connection to another process. None if there is none, or it is somebody else's.
pub(super) async fn connect(place: &str, to: Holder) -> Option<UnixStream> {
    if cfg!(not(target_os = "linux")) {
        return None;
    }
    let stream = UnixStream::connect(name(place, to)).await.ok()?;
    is_ours(&stream).then_some(stream)
}

/// Accepts the next connection of another process of the same user.
pub(super) async fn accept(listener: &UnixListener) -> std::io::Result<UnixStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        if is_ours(&stream) {
            return Ok(stream);
        }
    }
}

fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::getuid().as_raw())
}
