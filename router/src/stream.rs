//! The sockets of the data path: one enum for clients, one for shards.
//!
//! Reads and writes go straight to the socket, by system calls of our own: the C library's are points
//! where a thread can be cancelled, which costs two locked instructions each. A socket's readiness is cleared
//! when a read or write comes back short, so the next attempt costs no system call.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::server::SocketFacts;

/// A client's socket.
pub(crate) enum ClientStream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// A socket to a shard.
pub(crate) enum ServerStream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// What `run` moved of `len` bytes, for a closure of `try_io`. Where that is less, the socket is drained, or
/// full: `moved` has the number, and the error tells tokio to clear the readiness that it saw before the call,
/// and not one that has come since.
#[inline]
fn note_short(moved: &mut usize, len: usize, run: rustix::io::Result<usize>) -> io::Result<usize> {
    let n = run?;
    if n > 0 && n < len {
        *moved = n;
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(n)
}

macro_rules! poll_plain {
    ($read:ident, $write:ident, $socket:ty) => {
        #[inline]
        fn $read(socket: &$socket, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
            loop {
                ready!(socket.poll_read_ready(cx))?;
                let (mut moved, len) = (0, buf.len());
                let receive = || {
                    note_short(&mut moved, len, recv(socket, &mut *buf, RecvFlags::empty()).map(|(n, _)| n))
                };
                match socket.try_io(Interest::READABLE, receive) {
                    Err(_) if moved > 0 => return Poll::Ready(Ok(moved)),
                    Err(e) if is_no_failure(&e) => {}
                    done => return Poll::Ready(done),
                }
            }
        }

        #[inline]
        fn $write(socket: &$socket, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            loop {
                ready!(socket.poll_write_ready(cx))?;
                let mut moved = 0;
                let transmit = || note_short(&mut moved, buf.len(), send(socket, buf, SendFlags::NOSIGNAL));
                match socket.try_io(Interest::WRITABLE, transmit) {
                    Err(_) if moved > 0 => return Poll::Ready(Ok(moved)),
                    Err(e) if is_no_failure(&e) => {}
                    done => return Poll::Ready(done),
                }
            }
        }
    };
}

fn is_no_failure(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

poll_plain!(read_tcp, write_tcp, TcpStream);
poll_plain!(read_unix, write_unix, UnixStream);

macro_rules! poll_io {
    ($stream:ty) => {
        impl $stream {
            /// Reads what there is; 0 is the end.
            #[inline]
            pub(crate) fn poll_read(
                &mut self,
                cx: &mut Context<'_>,
                buf: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                match self {
                    Self::Tcp(s) => read_tcp(s, cx, buf),
                    Self::Unix(s) => read_unix(s, cx, buf),
                    Self::Tls(s) => {
                        let mut buf = ReadBuf::new(buf);
                        Pin::new(s.as_mut()).poll_read(cx, &mut buf).map_ok(|()| buf.filled().len())
                    }
                }
            }

            /// Writes what fits.
            #[inline]
            pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                match self {
                    Self::Tcp(s) => write_tcp(s, cx, buf),
                    Self::Unix(s) => write_unix(s, cx, buf),
                    Self::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
                }
            }

            /// Brings out what TLS still holds; nothing to do for the others.
            #[inline]
            pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self {
                    Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
                    Self::Tls(s) => Pin::new(s.as_mut()).poll_flush(cx),
                }
            }

            /// Reads what there is, waiting for something; 0 is the end.
            pub(crate) async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                std::future::poll_fn(|cx| self.poll_read(cx, buf)).await
            }

            /// Writes all of `buf` and brings it out.
            pub(crate) async fn write_all(&mut self, mut buf: &[u8]) -> io::Result<()> {
                while !buf.is_empty() {
                    let n = std::future::poll_fn(|cx| self.poll_write(cx, buf)).await?;
                    if n == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    buf = &buf[n..];
                }
                std::future::poll_fn(|cx| self.poll_flush(cx)).await
            }
        }
    };
}

poll_io!(ClientStream);
poll_io!(ServerStream);

fn facts(tcp: &TcpStream, tls: Option<&rustls::CommonState>) -> SocketFacts {
    SocketFacts {
        peer: tcp.peer_addr().ok(),
        local: tcp.local_addr().ok(),
        tls: tls.map(|tls| {
            let version = tls.protocol_version().and_then(|v| v.as_str()).unwrap_or("?");
            let suite = tls.negotiated_cipher_suite().and_then(|s| s.suite().as_str()).unwrap_or("?");
            format!("{}/{suite}", version.replace('_', ".")).into()
        }),
    }
}

impl ClientStream {
    /// Ends the sending direction.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
        }
    }

    /// What is known of the socket.
    pub(crate) fn facts(&self) -> SocketFacts {
        match self {
            Self::Tcp(s) => facts(s, None),
            Self::Unix(_) => SocketFacts::default(),
            Self::Tls(s) => facts(s.get_ref().0, Some(s.get_ref().1)),
        }
    }

    /// Whether what passes is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

impl ServerStream {
    /// What is known of the socket.
    pub(crate) fn facts(&self) -> SocketFacts {
        match self {
            Self::Tcp(s) => facts(s, None),
            Self::Unix(_) => SocketFacts::default(),
            Self::Tls(s) => facts(s.get_ref().0, Some(s.get_ref().1)),
        }
    }

    /// Moves the socket to the runtime of the thread that calls, so that its events wake that
    /// thread and no other. Sockets under TLS stay with the thread that made them: that works from
    /// any thread, at the price of a wake-up across threads.
    pub(crate) fn adopt(self) -> io::Result<Self> {
        match self {
            Self::Tcp(s) => Ok(Self::Tcp(TcpStream::from_std(s.into_std()?)?)),
            Self::Unix(s) => Ok(Self::Unix(UnixStream::from_std(s.into_std()?)?)),
            tls @ Self::Tls(_) => Ok(tls),
        }
    }
}
