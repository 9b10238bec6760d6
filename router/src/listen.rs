//! The sockets that clients come in by, and how they pass from an old process to a new one.
//!
//! On TCP both listen for a while (`SO_REUSEPORT`), and the kernel deals new clients to either. What it has dealt
//! to a socket is lost when that is closed, so the old process first turns newcomers away, who come again
//! a second later and are dealt to the new one, and accepts those that have come. A unix socket is taken over by a rename.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use switchyard_config::settings::ListenAddress;

use crate::server::connect::keep_alive;
use crate::shared::StartError;
use crate::worker::Listeners;

/// Connections that the system holds for us until they are accepted.
const BACKLOG: i32 = 1024;

/// How long clients are accepted that had come before newcomers were turned away: longer than the last
/// packet of a handshake takes, and shorter than the second after which a client tries again.
// TCP_TIMEOUT_INIT in include/net/tcp.h of Linux
pub(crate) const LAST_CLIENTS: Duration = Duration::from_millis(500);

/// All sockets, one set for each worker, and the addresses they really have.
pub(crate) struct Bound {
    pub(crate) listeners: Vec<Listeners>,
    pub(crate) tcp: Vec<SocketAddr>,
    pub(crate) unix: Vec<UnixPath>,
}

/// A unix socket's file, removed when dropped unless another process has put its own there.
pub(crate) struct UnixPath {
    pub(crate) path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
    /// As long as it is held, no other file gets its number.
    _held: File,
}

impl Drop for UnixPath {
    fn drop(&mut self) {
        if file(&self.path).is_ok_and(|file| file == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds `addresses` for so many workers. With `shared`, another process may listen there too.
pub(crate) fn bind(addresses: &[ListenAddress], workers: usize, shared: bool) -> Result<Bound, StartError> {
    let mut bound = Bound {
        listeners: (0..workers).map(|_| Listeners { tcp: Vec::new(), unix: Vec::new() }).collect(),
        tcp: Vec::new(),
        unix: Vec::new(),
    };
    for address in addresses {
        match address {
            ListenAddress::Tcp(address) => {
                let failed = |error| StartError::Listen { address: address.to_string(), error };
                if !shared && is_taken(*address) {
                    return Err(failed(std::io::ErrorKind::AddrInUse.into()));
                }
                // Port 0 is chosen once, for all workers.
                let mut address = *address;
                for worker in &mut bound.listeners {
                    let listener = tcp(address, true).map_err(failed)?;
                    address = listener.local_addr().map_err(failed)?;
                    worker.tcp.push(listener);
                }
                bound.tcp.push(address);
            }
            ListenAddress::Unix { dir, port } => {
                let path = dir.join(format!(".s.PGSQL.{port}"));
                let failed = |error| StartError::Listen { address: path.display().to_string(), error };
                let (listener, owned) = unix(&path, shared).map_err(failed)?;
                for worker in &mut bound.listeners {
                    worker.unix.push(listener.try_clone().map_err(failed)?);
                }
                bound.unix.push(owned);
            }
        }
    }
    Ok(bound)
}

/// Whether somebody listens there, this process included.
pub(crate) fn is_taken(address: SocketAddr) -> bool {
    let probe = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    };
    address.port() != 0 && probe().is_err_and(|e| e.kind() == std::io::ErrorKind::AddrInUse)
}

/// A socket that listens on `address`, which others may listen on too if it is `shared`.
pub(crate) fn tcp(address: SocketAddr, shared: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Several workers listen on one address, and so may the process that takes over from this one.
    socket.set_reuse_port(shared)?;
    // What is accepted inherits these from the socket that listens: no system call for each client.
    socket.set_tcp_nodelay(true)?;
    keep_alive(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn unix(path: &Path, take_over: bool) -> std::io::Result<(UnixListener, UnixPath)> {
    if !take_over && std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(std::io::ErrorKind::AddrInUse.into());
    }
    // Made aside and renamed: at no time is nobody there. What was there is left behind by a process
    // that is gone, or that we take over from.
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    match std::fs::remove_file(&draft) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&draft)?;
    let held = File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(&draft)?;
    let file = file(Path::new(&draft))?;
    if let Err(e) = std::fs::rename(&draft, path) {
        let _ = std::fs::remove_file(&draft);
        return Err(e);
    }
    Ok((listener, UnixPath { path: path.to_owned(), file, _held: held }))
}

fn file(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Drops the first packet of every new client of a TCP socket, so that it can be closed once those
/// that have come are accepted. A client whose packet is dropped sends it again after a second.
pub(crate) fn turn_away(listener: &impl AsFd) {
    // A filter sees the TCP header: its 14th byte has the flags. // net/ipv4/tcp_ipv4.c tcp_filter
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let filter = [
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    #[cfg(target_os = "linux")]
    if let Err(error) = SockRef::from(listener).attach_filter(&filter) {
        tracing::debug!(%error, "newcomers cannot be turned away before the socket is closed");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn nobody_who_has_come_is_lost_and_who_comes_later_goes_to_the_other() {
        let old = tcp(SocketAddr::from(([127, 0, 0, 1], 0)), true).unwrap();
        let address = old.local_addr().unwrap();
        let mut came: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
        let new = tcp(address, true).unwrap();
        turn_away(&old);
        let serve = |listener: TcpListener, says: &'static [u8]| {
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let _ = stream.unwrap().write_all(says);
                }
            })
        };
        serve(new, b"new");
        // About half of these are dealt to the old one, which does not take them. On loopback that has
        // happened when the call returns.
        let later: Vec<_> = (0..20)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&address.into());
                socket
            })
            .collect();
        for _ in &came {
            old.accept().unwrap().0.write_all(b"old").unwrap();
        }
        drop(old);
        let said = |mut stream: TcpStream| {
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            said
        };
        assert!(came.drain(..).all(|stream| said(stream) == "old"));
        for socket in later {
            socket.set_nonblocking(false).unwrap();
            // Waits for what was begun.
            let _ = socket.connect(&address.into());
            assert_eq!(said(socket.into()), "new");
        }
    }

    #[test]
    fn who_leaves_takes_no_file_along_that_has_the_number_of_its_own() {
        let dir = std::env::temp_dir().join(format!("switchyard-listen-again-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(".s.PGSQL.1");
        for _ in 0..20 {
            let (first, first_path) = unix(&path, true).unwrap();
            let (second, second_path) = unix(&path, true).unwrap();
            // Its file has no name any more, and here nobody to hold it.
            drop(first);
            let (third, third_path) = unix(&path, true).unwrap();
            drop(first_path);
            assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
            drop((second, second_path));
            assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
            drop((third, third_path));
            assert!(!path.exists());
        }
        let _ = std::fs::remove_dir_all(&dir);
    }

    #[test]
    fn a_unix_socket_belongs_to_who_made_it_last() {
        let dir = std::env::temp_dir().join(format!("switchyard-listen-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(".s.PGSQL.1");
        let (old, old_path) = unix(&path, false).unwrap();
        assert!(unix(&path, false).is_err());
        let (new, new_path) = unix(&path, true).unwrap();
        drop((old, old_path));
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        drop((new, new_path));
        assert!(!path.exists());
        let _ = std::fs::remove_dir_all(&dir);
    }
}
