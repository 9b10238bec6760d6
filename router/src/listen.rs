//! The sockets that clients come in by.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};
use switchyard_config::settings::ListenAddress;

use crate::server::connect::keep_alive;
use crate::shared::StartError;
use crate::worker::Listeners;

/// Connections that the system holds for us until they are accepted.
const BACKLOG: i32 = 1024;

/// All sockets, one set for each worker, and the addresses they really have.
pub(crate) struct Bound {
    pub(crate) listeners: Vec<Listeners>,
    pub(crate) tcp: Vec<SocketAddr>,
    pub(crate) unix: Vec<PathBuf>,
}

/// Binds `addresses` for so many workers.
pub(crate) fn bind(addresses: &[ListenAddress], workers: usize) -> Result<Bound, StartError> {
    let mut bound = Bound {
        listeners: (0..workers).map(|_| Listeners { tcp: Vec::new(), unix: Vec::new() }).collect(),
        tcp: Vec::new(),
        unix: Vec::new(),
    };
    for address in addresses {
        match address {
            ListenAddress::Tcp(address) => {
                let failed = |error| StartError::Listen { address: address.to_string(), error };
                // Port 0 is chosen once, for all workers.
                let mut address = *address;
                for worker in &mut bound.listeners {
                    let listener = tcp(address).map_err(failed)?;
                    address = listener.local_addr().map_err(failed)?;
                    worker.tcp.push(listener);
                }
                bound.tcp.push(address);
            }
            ListenAddress::Unix { dir, port } => {
                let path = dir.join(format!(".s.PGSQL.{port}"));
                let failed = |error| StartError::Listen { address: path.display().to_string(), error };
                let listener = unix(&path).map_err(failed)?;
                for worker in &mut bound.listeners {
                    worker.unix.push(listener.try_clone().map_err(failed)?);
                }
                bound.unix.push(path);
            }
        }
    }
    Ok(bound)
}

fn tcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Several workers listen on one address, and so may the process that takes over from this one.
    socket.set_reuse_port(true)?;
    // What is accepted inherits these from the socket that listens: no system call for each client.
    socket.set_tcp_nodelay(true)?;
    keep_alive(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn unix(path: &Path) -> std::io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(std::io::ErrorKind::AddrInUse.into());
    }
    // Left behind by a process that is gone.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    UnixListener::bind(path)
}
