//! A shard that is none: a server that says what a test tells it to.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::raw::messages::{frame, strings};

/// A server; it ends on drop.
pub struct FakeShard {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

/// The router, as the server sees it on one connection.
pub struct Peer {
    socket: TcpStream,
    /// 1 for the first connection.
    pub number: usize,
}

impl FakeShard {
    /// Begins to serve, each connection on a thread of its own, by `behave`.
    ///
    /// # Panics
    /// If no port can be had.
    pub fn start(behave: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::process::free_port())).expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let (accepted, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let shard = Self { address, accepted: accepted.clone(), ended: ended.clone() };
        let behave = Arc::new(behave);
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let number = accepted.fetch_add(1, Ordering::SeqCst) + 1;
                let behave = behave.clone();
                std::thread::spawn(move || {
                    let _ = socket.set_nodelay(true);
                    // That the router goes is its good right.
                    let _ = behave(&mut Peer { socket, number });
                });
            }
        });
        shard
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for FakeShard {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Peer {
    /// Sends bytes.
    ///
    /// # Errors
    /// If the router has gone.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    fn bytes(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a packet without a type.
    ///
    /// # Errors
    /// If the router has gone.
    pub fn packet(&mut self) -> io::Result<Vec<u8>> {
        let len = self.bytes(4)?;
        let len = u32::from_be_bytes([len[0], len[1], len[2], len[3]]) as usize;
        self.bytes(len.saturating_sub(4))
    }

    /// Reads a message: its type and body.
    ///
    /// # Errors
    /// If the router has gone.
    pub fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let tag = self.bytes(1)?[0];
        Ok((tag, self.packet()?))
    }

    /// Waits for the router to go.
    pub fn until_gone(&mut self) {
        let mut sink = [0; 4096];
        while matches!(self.socket.read(&mut sink), Ok(n) if n > 0) {}
    }

    /// Reads the startup packet and lets the router in.
    ///
    /// # Errors
    /// If it has gone.
    pub fn let_in(&mut self) -> io::Result<()> {
        self.packet()?;
        self.send(&welcome())
    }

    /// Answers as a server would that has nothing in it, for ever. `query` answers each Query, up to
    /// and with its ReadyForQuery.
    ///
    /// # Errors
    /// When the router has gone.
    pub fn serve(&mut self, query: impl Fn(&str) -> Vec<u8>) -> io::Result<()> {
        self.serve_by(query, done)
    }

    /// The same, and `run` answers each Execute, by the text that was parsed last.
    ///
    /// # Errors
    /// When the router has gone.
    pub fn serve_by(
        &mut self,
        query: impl Fn(&str) -> Vec<u8>,
        run: impl Fn(&str) -> Vec<u8>,
    ) -> io::Result<()> {
        let mut parsed = String::new();
        loop {
            let (tag, body) = self.message()?;
            if tag == b'P' {
                parsed = parsed_text(&body);
            }
            let answer = match tag {
                b'P' => frame(b'1', &[]),
                b'B' => frame(b'2', &[]),
                b'C' => frame(b'3', &[]),
                b'D' => frame(b'n', &[]),
                b'E' => run(&parsed),
                b'S' => ready(),
                b'F' => [frame(b'V', &(-1_i32).to_be_bytes()), ready()].concat(),
                b'Q' => query(String::from_utf8_lossy(&body[..body.len() - 1]).as_ref()),
                _ => Vec::new(),
            };
            self.send(&answer)?;
        }
    }
}

/// What follows a startup packet where no password is asked for.
pub fn welcome() -> Vec<u8> {
    let parameters = [("server_version", "15.0"), ("client_encoding", "UTF8"), ("TimeZone", "UTC")];
    let parameters = parameters.map(|(name, value)| frame(b'S', &strings(&[name, value]))).concat();
    let key = frame(b'K', &[0, 0, 0, 42, 1, 2, 3, 4]);
    [frame(b'R', &[0; 4]), parameters, key, ready()].concat()
}

/// ReadyForQuery outside a transaction.
pub fn ready() -> Vec<u8> {
    frame(b'Z', b"I")
}

/// The text of a Parse.
pub fn parsed_text(body: &[u8]) -> String {
    String::from_utf8_lossy(body.split(|b| *b == 0).nth(1).unwrap_or_default()).into_owned()
}

/// CommandComplete of a statement that does nothing.
pub fn done(sql: &str) -> Vec<u8> {
    match sql.split_whitespace().next() {
        Some("SELECT") | None => complete("SELECT 0"),
        Some("DISCARD") => complete("DISCARD ALL"),
        Some(word) => complete(word),
    }
}

/// CommandComplete.
pub fn complete(tag: &str) -> Vec<u8> {
    frame(b'C', &strings(&[tag]))
}

/// One row of one column, without ReadyForQuery.
pub fn row(value: &str) -> Vec<u8> {
    let mut description = vec![0, 1];
    description.extend(strings(&["value"]));
    description.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    [frame(b'T', &description), data(value), complete("SELECT 1")].concat()
}

/// A row of one column.
pub fn data(value: &str) -> Vec<u8> {
    let len = (value.len() as u32).to_be_bytes();
    frame(b'D', &[&[0, 1][..], &len, value.as_bytes()].concat())
}

/// ErrorResponse.
pub fn error(severity: &str, code: &str, message: &str) -> Vec<u8> {
    let fields = [('S', severity), ('V', severity), ('C', code), ('M', message)];
    let mut body: Vec<u8> =
        fields.iter().flat_map(|(name, value)| strings(&[&format!("{name}{value}")])).collect();
    body.push(0);
    frame(b'E', &body)
}
