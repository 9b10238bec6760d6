//! A client that is bytes on a socket, so that a test can say exactly what is sent, and see
//! exactly what comes back. Also good enough to run statements.

pub mod differential;
pub mod messages;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

pub use messages::Message;

use crate::wait;

/// Where and as whom to log in.
#[derive(Clone)]
pub struct Target {
    endpoint: Endpoint,
    tls: Option<Tls>,
    user: String,
    password: Option<String>,
    params: Vec<(String, String)>,
    channel_binding: bool,
}

#[derive(Clone)]
enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Clone)]
struct Tls {
    config: Arc<ClientConfig>,
    server_name: String,
}

/// An error that a server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    /// The five characters.
    pub sqlstate: String,
    /// The text.
    pub message: String,
    /// What to do about it, if said.
    pub hint: String,
    /// `ERROR` or `FATAL`.
    pub severity: String,
}

/// How a login came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The server said why.
    Error {
        /// What it said.
        error: Box<SqlError>,
        /// Every byte of it.
        bytes: Vec<u8>,
        /// Type and length of each message of the login, to the error.
        shape: Vec<(u8, usize)>,
    },
    /// The connection ended without a word.
    Closed(String),
}

impl Refused {
    /// The SQLSTATE, or nothing.
    pub fn sqlstate(&self) -> &str {
        match self {
            Self::Error { error, .. } => &error.sqlstate,
            Self::Closed(_) => "",
        }
    }
}

impl From<&Message> for SqlError {
    fn from(m: &Message) -> Self {
        let (sqlstate, message) = (m.field(b'C'), m.field(b'M'));
        Self { sqlstate, message, hint: m.field(b'H'), severity: m.field(b'V') }
    }
}

impl Target {
    /// Over TCP.
    pub fn tcp(address: SocketAddr) -> Self {
        Self::new(Endpoint::Tcp(address))
    }

    /// Over a unix socket.
    pub fn unix(path: PathBuf) -> Self {
        Self::new(Endpoint::Unix(path))
    }

    fn new(endpoint: Endpoint) -> Self {
        let (user, params) = (String::new(), Vec::new());
        Self { endpoint, tls: None, user, password: None, params, channel_binding: false }
    }

    /// As this user.
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// With this password.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// To this database.
    pub fn database(self, database: &str) -> Self {
        self.param("database", database)
    }

    /// With this startup parameter, in place of an earlier one.
    pub fn param(mut self, name: &str, value: &str) -> Self {
        self.params.retain(|(n, _)| n != name);
        self.params.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Over TLS, for a server of this name.
    pub fn tls(mut self, config: &Arc<ClientConfig>, server_name: &str) -> Self {
        self.tls = Some(Tls { config: config.clone(), server_name: server_name.to_owned() });
        self
    }

    /// With SCRAM-SHA-256-PLUS or not at all.
    pub fn channel_binding(mut self) -> Self {
        self.channel_binding = true;
        self
    }

    /// A connection on which nothing but TLS has happened.
    ///
    /// # Errors
    /// If there is no connection or the handshake fails.
    pub fn open(&self) -> io::Result<Raw> {
        let stream = match &self.endpoint {
            Endpoint::Tcp(address) => {
                let socket = TcpStream::connect(address)?;
                socket.set_nodelay(true)?;
                socket.set_read_timeout(Some(wait::DEADLINE))?;
                Stream::Tcp(socket)
            }
            Endpoint::Unix(path) => {
                let socket = UnixStream::connect(path)?;
                socket.set_read_timeout(Some(wait::DEADLINE))?;
                Stream::Unix(socket)
            }
        };
        let mut raw = Raw { stream, inbox: Vec::new(), taken: 0, params: Vec::new(), key: Vec::new() };
        if let Some(tls) = &self.tls {
            raw.send(&messages::ssl_request());
            let mut answer = [0];
            raw.stream.read_exact(&mut answer)?;
            if answer != *b"S" {
                return Err(io::Error::other("no TLS here"));
            }
            raw = raw.upgrade(&tls.config, &tls.server_name)?;
        }
        Ok(raw)
    }

    /// The startup packet that this target sends.
    pub fn startup(&self) -> Vec<u8> {
        let mut params = vec![("user", self.user.as_str())];
        params.extend(self.params.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        messages::startup(&params)
    }

    /// Logs in.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn try_connect(&self) -> Result<Raw, Refused> {
        let mut raw = self.open().map_err(|e| Refused::Closed(e.to_string()))?;
        raw.send(&self.startup());
        raw.authenticate(&self.user, self.password.as_deref(), self.channel_binding)?;
        Ok(raw)
    }

    /// Logs in.
    ///
    /// # Panics
    /// If the server refuses.
    #[track_caller]
    pub fn connect(&self) -> Raw {
        match self.try_connect() {
            Ok(raw) => raw,
            Err(refused) => panic!("login of {:?} refused: {refused:?}", self.user),
        }
    }

    /// How the login is refused.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn refused(&self) -> Refused {
        match self.try_connect() {
            Ok(_) => panic!("{:?} could log in", self.user),
            Err(refused) => refused,
        }
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.read(buf),
            Self::Unix(s) => s.read(buf),
            Self::Tls(s) => s.read(buf),
        }
    }
}

/// A connection.
pub struct Raw {
    stream: Stream,
    inbox: Vec<u8>,
    taken: usize,
    /// What the server reported at login and since: names and values.
    params: Vec<(String, String)>,
    /// The body of BackendKeyData.
    key: Vec<u8>,
}

impl Raw {
    /// Sends bytes. That the peer is gone is noticed by what is read.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = match &mut self.stream {
            Stream::Tcp(s) => s.write_all(bytes),
            Stream::Unix(s) => s.write_all(bytes),
            Stream::Tls(s) => s.write_all(bytes).and_then(|()| s.flush()),
        };
    }

    /// Sends bytes from another thread, so that a peer that answers before it has read all does
    /// not wait for us while we wait for it. Not over TLS.
    ///
    /// # Panics
    /// Over TLS.
    pub fn send_aside(&mut self, bytes: Vec<u8>) {
        match &self.stream {
            Stream::Tcp(s) => {
                let mut s = s.try_clone().expect("a socket can be cloned");
                std::thread::spawn(move || s.write_all(&bytes));
            }
            Stream::Unix(s) => {
                let mut s = s.try_clone().expect("a socket can be cloned");
                std::thread::spawn(move || s.write_all(&bytes));
            }
            Stream::Tls(_) => panic!("not over TLS"),
        }
    }

    /// Says that nothing more will be sent.
    pub fn half_close(&mut self) {
        let _ = match &mut self.stream {
            Stream::Tcp(s) => s.shutdown(Shutdown::Write),
            Stream::Unix(s) => s.shutdown(Shutdown::Write),
            Stream::Tls(s) => s.sock.shutdown(Shutdown::Write),
        };
    }

    /// Begins TLS on a plain TCP connection.
    ///
    /// # Errors
    /// If the handshake fails.
    ///
    /// # Panics
    /// If this is no plain TCP connection.
    pub fn upgrade(self, config: &Arc<ClientConfig>, server_name: &str) -> io::Result<Self> {
        let Stream::Tcp(mut socket) = self.stream else { panic!("TLS is for plain TCP") };
        let name = ServerName::try_from(server_name.to_owned()).expect("a server name");
        let mut tls = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        Ok(Self { stream: Stream::Tls(Box::new(StreamOwned::new(tls, socket))), ..self })
    }

    /// Reads one byte that is no message: the answer to an `SSLRequest`.
    ///
    /// # Errors
    /// If the connection ended.
    pub fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        if self.taken > 0 && self.inbox.len() - self.taken < wanted {
            self.inbox.drain(..self.taken);
            self.taken = 0;
        }
        let mut chunk = vec![0; 65_536];
        while self.inbox.len() - self.taken < wanted {
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.inbox.extend(&chunk[..n]),
            }
        }
        Ok(())
    }

    /// The next message.
    ///
    /// # Errors
    /// If the connection ended, or nothing came within the deadline of waiting.
    pub fn try_read(&mut self) -> io::Result<Message> {
        self.fill(5)?;
        let head = &self.inbox[self.taken..];
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        assert!((4..1 << 30).contains(&len), "a frame of {len} bytes: out of step");
        self.fill(1 + len)?;
        let message = &self.inbox[self.taken..self.taken + 1 + len];
        let message = Message { tag: message[0], body: message[5..].to_vec() };
        self.taken += 1 + len;
        match message.tag {
            b'S' => self.note_parameter(&message),
            b'K' => self.key.clone_from(&message.body),
            _ => {}
        }
        Ok(message)
    }

    fn note_parameter(&mut self, message: &Message) {
        let text = message.text();
        if let Some((name, value)) = text.split_once('\0') {
            self.params.retain(|(n, _)| n != name);
            self.params.push((name.to_owned(), value.to_owned()));
        }
    }

    /// The next message.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn read(&mut self) -> Message {
        match self.try_read() {
            Ok(message) => message,
            Err(e) => panic!("no further message: {e}"),
        }
    }

    /// All messages up to and with the next ReadyForQuery, or the end of the connection.
    pub fn until_ready_or_end(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Ok(message) = self.try_read() {
            let last = message.tag == b'Z';
            messages.push(message);
            if last {
                break;
            }
        }
        messages
    }

    /// All messages up to and with the next ReadyForQuery.
    ///
    /// # Panics
    /// If the connection ends before it.
    #[track_caller]
    pub fn until_ready(&mut self) -> Vec<Message> {
        let messages = self.until_ready_or_end();
        assert!(messages.last().is_some_and(|m| m.tag == b'Z'), "ended without ReadyForQuery: {messages:?}");
        messages
    }

    /// All messages up to and with one of type `tag`.
    ///
    /// # Panics
    /// If the connection ends before it.
    #[track_caller]
    pub fn until_tag(&mut self, tag: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        while messages.last().is_none_or(|m: &Message| m.tag != tag) {
            match self.try_read() {
                Ok(message) => messages.push(message),
                Err(e) => panic!("no `{}` after {messages:?}: {e}", tag as char),
            }
        }
        messages
    }

    /// Sends bytes and reads up to ReadyForQuery.
    ///
    /// # Panics
    /// If the connection ends before it.
    #[track_caller]
    pub fn round(&mut self, bytes: &[u8]) -> Vec<Message> {
        self.send(bytes);
        self.until_ready()
    }

    /// Whether the peer ends the connection without a further byte (or with an error first).
    pub fn ends(&mut self) -> bool {
        while self.try_read().is_ok() {}
        matches!(self.stream.read(&mut [0]), Ok(0)) || !self.timed_out()
    }

    fn timed_out(&mut self) -> bool {
        let result = self.stream.read(&mut [0]);
        matches!(result, Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }

    /// A parameter that the server reported, or nothing.
    pub fn parameter(&self, name: &str) -> String {
        self.params.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()).unwrap_or_default()
    }

    /// The body of BackendKeyData: process id and secret.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Runs a simple query: the rows of all its statements, or the first error. Afterwards the
    /// session is ready, or gone.
    ///
    /// # Errors
    /// If the server says so, or the connection ends (SQLSTATE `08006`).
    pub fn try_rows(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, SqlError> {
        self.send(&messages::query(sql));
        let messages = self.until_ready_or_end();
        if let Some(error) = messages.iter().find(|m| m.tag == b'E') {
            return Err(error.into());
        }
        if messages.last().is_none_or(|m| m.tag != b'Z') {
            let (sqlstate, message) = ("08006".to_owned(), "the connection ended".to_owned());
            return Err(SqlError { sqlstate, message, hint: String::new(), severity: String::new() });
        }
        Ok(messages.iter().filter(|m| m.tag == b'D').map(Message::values).collect())
    }

    /// Runs a simple query: its rows.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn rows(&mut self, sql: &str) -> Vec<Vec<Option<String>>> {
        match self.try_rows(sql) {
            Ok(rows) => rows,
            Err(e) => panic!("{sql}: {e:?}"),
        }
    }

    /// Runs a simple query that must fail: how.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn error(&mut self, sql: &str) -> SqlError {
        match self.try_rows(sql) {
            Ok(rows) => panic!("{sql}: no error, but {} rows", rows.len()),
            Err(e) => e,
        }
    }

    /// The first column of a simple query; NULL is shown as `NULL`.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn column(&mut self, sql: &str) -> Vec<String> {
        let first = |row: Vec<Option<String>>| row.into_iter().next().flatten().unwrap_or("NULL".to_owned());
        self.rows(sql).into_iter().map(first).collect()
    }

    /// The first value of a simple query; NULL is shown as `NULL`.
    ///
    /// # Panics
    /// If it fails or has no rows.
    #[track_caller]
    pub fn value(&mut self, sql: &str) -> String {
        self.column(sql).into_iter().next().unwrap_or_else(|| panic!("{sql}: no rows"))
    }

    /// Answers whatever the server asks for until it is ready for queries.
    ///
    /// # Errors
    /// If it refuses.
    pub fn authenticate(&mut self, user: &str, password: Option<&str>, bound: bool) -> Result<(), Refused> {
        let mut scram: Option<ScramSha256> = None;
        let mut shape = Vec::new();
        let password = password.unwrap_or_default();
        loop {
            let message = self.try_read().map_err(|e| Refused::Closed(e.to_string()))?;
            shape.push((message.tag, message.body.len()));
            match message.tag {
                b'E' => {
                    let bytes = messages::frame(b'E', &message.body);
                    return Err(Refused::Error { error: Box::new((&message).into()), bytes, shape });
                }
                b'Z' => return Ok(()),
                b'R' => self.answer(&message.body, user, password, bound, &mut scram)?,
                _ => {}
            }
        }
    }

    fn answer(
        &mut self,
        body: &[u8],
        user: &str,
        password: &str,
        bound: bool,
        scram: &mut Option<ScramSha256>,
    ) -> Result<(), Refused> {
        let closed = |e: &dyn std::fmt::Display| Refused::Closed(e.to_string());
        let (kind, rest) = body.split_at_checked(4).ok_or(Refused::Closed("a short R".into()))?;
        match (kind[3], scram) {
            (0, _) => {}
            (3, _) => self.send(&messages::frame(b'p', &messages::strings(&[password]))),
            (5, _) => {
                let salt = rest.try_into().map_err(|e| closed(&e))?;
                let hash =
                    postgres_protocol::authentication::md5_hash(user.as_bytes(), password.as_bytes(), salt);
                self.send(&messages::frame(b'p', &messages::strings(&[&hash])));
            }
            (10, scram) => {
                let plus = String::from_utf8_lossy(rest).contains("SCRAM-SHA-256-PLUS");
                let hash = self.server_end_point().filter(|_| plus);
                if bound && hash.is_none() {
                    return Err(Refused::Closed("channel binding is not offered".into()));
                }
                let (name, binding) = match hash {
                    Some(hash) => ("SCRAM-SHA-256-PLUS", ChannelBinding::tls_server_end_point(hash)),
                    None => ("SCRAM-SHA-256", ChannelBinding::unsupported()),
                };
                let exchange = scram.insert(ScramSha256::new(password.as_bytes(), binding));
                let first = exchange.message().to_vec();
                let mut body = messages::strings(&[name]);
                body.extend((first.len() as u32).to_be_bytes());
                body.extend(first);
                self.send(&messages::frame(b'p', &body));
            }
            (11, Some(scram)) => {
                scram.update(rest).map_err(|e| closed(&e))?;
                let last = scram.message().to_vec();
                self.send(&messages::frame(b'p', &last));
            }
            (12, Some(scram)) => scram.finish(rest).map_err(|e| closed(&e))?,
            (other, _) => return Err(Refused::Closed(format!("authentication {other} is not understood"))),
        }
        Ok(())
    }

    /// The server's certificate in DER, over TLS.
    pub fn peer_certificate(&self) -> Option<Vec<u8>> {
        let Stream::Tls(tls) = &self.stream else { return None };
        Some(tls.conn.peer_certificates()?.first()?.to_vec())
    }

    /// The hash of the server's certificate; ours are signed with SHA-256.
    fn server_end_point(&self) -> Option<Vec<u8>> {
        let cert = self.peer_certificate()?;
        Some(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &cert).as_ref().to_vec())
    }
}

/// What `pg_authid` would hold for this password.
pub fn scram_verifier(password: &str) -> String {
    postgres_protocol::password::scram_sha_256(password.as_bytes())
}

/// What `pg_authid` would hold for this password under `md5`.
pub fn md5_verifier(user: &str, password: &str) -> String {
    postgres_protocol::password::md5(password.as_bytes(), user)
}

/// URL-safe base64 without padding, as in JWTs.
pub fn base64url(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}
