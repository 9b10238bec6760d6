//! A client that is bytes on a socket, so that a test can say exactly what is sent, and see
//! exactly what comes back. Also good enough to run statements.

pub mod deviations;
pub mod differential;
mod login;
pub mod messages;
mod target;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

pub use login::{base64url, md5_verifier, scram_verifier};
pub use messages::Message;
pub use target::Target;

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

    /// How long a read waits before it takes the peer for dead, where that is not the usual.
    ///
    /// # Panics
    /// If the socket has no such thing.
    pub fn patience(&mut self, time: std::time::Duration) {
        let set = match &self.stream {
            Stream::Tcp(s) => s.set_read_timeout(Some(time)),
            Stream::Unix(s) => s.set_read_timeout(Some(time)),
            Stream::Tls(s) => s.sock.set_read_timeout(Some(time)),
        };
        set.expect("a socket has a timeout");
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
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.inbox.extend(&chunk[..n]),
                // What has a deadline is not begun anew by itself when the process was stopped and goes on.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
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

    /// All parameters that the server reported, and their values as of now.
    pub fn parameters(&self) -> &[(String, String)] {
        &self.params
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

    /// Has `sender` say a last word on `channel`, and gives the notifications, as channels and payloads, that are
    /// heard here up to that.
    ///
    /// # Panics
    /// If the last word is not heard.
    #[track_caller]
    pub fn heard(&mut self, sender: &mut Self, channel: &str) -> Vec<(String, String)> {
        sender.rows(&format!("NOTIFY {channel}, 'the last word'"));
        let mut heard = Vec::new();
        loop {
            let message = self.read();
            if message.tag == b'A' {
                let note = message.note();
                if note.1 == "the last word" {
                    return heard;
                }
                heard.push(note);
            }
        }
    }
}
