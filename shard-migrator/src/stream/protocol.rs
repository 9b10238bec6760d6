//! A connection in replication mode: login, `START_REPLICATION`, and the frames of the stream.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use secrecy::ExposeSecret;
use switchyard_catalog::Tls;
use switchyard_config::topology::SslMode;
use switchyard_wire::frame::{self, backend};
use switchyard_wire::message::{self, Auth};
use switchyard_wire::scram::{ClientScram, ClientSecret};
use switchyard_wire::{build, md5, startup};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};

use crate::MoveError;
use crate::shard::{SESSION, ShardAccess};

/// Deadline of login and start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest message taken, in bytes: PostgreSQL's own bound of a row, and its frame.
const MAX_MESSAGE: usize = (1 << 30) + 1024;

/// Bytes asked of the socket at a time.
const READ_BYTES: usize = 64 * 1024;

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// What the server streams.
pub(crate) enum Frame {
    /// A message of the output plugin.
    Data(Bytes),
    /// All before this position has been sent.
    Keepalive { end: u64, reply: bool },
}

/// A replication connection that is streaming.
pub(crate) struct Connection {
    socket: Box<dyn Socket>,
    buf: BytesMut,
    at: ShardAccess,
}

impl Connection {
    /// Logs in and starts the stream of `slot` at `from`, or where the slot stands if that is later.
    pub(crate) async fn start(
        at: &ShardAccess,
        slot: &str,
        publication: &str,
        from: u64,
    ) -> Result<Self, MoveError> {
        let starting = async {
            let mut connection = Self { socket: open(at).await?, buf: BytesMut::new(), at: at.clone() };
            connection.login().await?;
            // Names are ours: letters, digits and underscores.
            connection
                .query(&format!(
                    "START_REPLICATION SLOT {slot} LOGICAL {:X}/{:X} \
                     (proto_version '1', publication_names '{publication}', messages 'true')",
                    from >> 32,
                    from & 0xffff_ffff
                ))
                .await?;
            Ok(connection)
        };
        match tokio::time::timeout(START_TIMEOUT, starting).await {
            Ok(done) => done.map_err(|reason: Broken| reason.of(at)),
            Err(_) => Err(Broken("no answer in time".to_owned()).of(at)),
        }
    }

    async fn login(&mut self) -> Result<(), Broken> {
        let mut out = Vec::new();
        let params = [
            ("user", self.at.user.as_str()),
            ("database", &self.at.database),
            ("replication", "database"),
            ("application_name", SESSION),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("IntervalStyle", "postgres"),
            ("TimeZone", "UTC"),
            ("extra_float_digits", "3"),
            ("bytea_output", "hex"),
            // The mover may be busy for longer than a server would wait for a sign of life.
            ("options", "-c wal_sender_timeout=5min"),
        ];
        build::startup(&mut out, startup::VERSION_3_0, &params).map_err(broken)?;
        self.send(&out).await?;
        let mut scram: Option<ClientScram> = None;
        loop {
            let (tag, body) = self.message().await?;
            out.clear();
            match tag {
                backend::AUTH => match message::auth(&body).map_err(broken)? {
                    Auth::Ok => scram = None,
                    Auth::Cleartext => {
                        build::password(&mut out, self.password()?.as_bytes()).map_err(broken)?
                    }
                    Auth::Md5(salt) => {
                        let stored = md5::md5_password(&self.at.user, self.password()?);
                        let hash = md5::md5_response(&stored, salt).into_bytes();
                        build::password(&mut out, &hash).map_err(broken)?;
                    }
                    Auth::Sasl(offered) => {
                        let offered: Vec<_> = offered.filter_map(|m| std::str::from_utf8(m).ok()).collect();
                        let password = self.at.password.clone().ok_or_else(no_password)?;
                        let mut client = ClientScram::new(ClientSecret::Password(password), None);
                        let mechanism = client
                            .mechanism(&offered)
                            .ok_or_else(|| Broken("no known way to log in is offered".to_owned()))?;
                        build::sasl_initial(&mut out, mechanism, &client.first()).map_err(broken)?;
                        scram = Some(client);
                    }
                    Auth::SaslContinue(challenge) => {
                        let client = scram.as_mut().ok_or_else(out_of_order)?;
                        let proof = client.challenge(challenge).map_err(broken)?;
                        build::sasl_response(&mut out, &proof).map_err(broken)?;
                    }
                    Auth::SaslFinal(last) => {
                        scram.as_mut().ok_or_else(out_of_order)?.verify(last).map_err(broken)?;
                    }
                    Auth::Other(code) => return Err(Broken(format!("authentication {code} is not known"))),
                },
                backend::READY_FOR_QUERY => return Ok(()),
                backend::ERROR => return Err(refused(&body)),
                _ => {}
            }
            if !out.is_empty() {
                self.send(&out).await?;
            }
        }
    }

    fn password(&self) -> Result<&str, Broken> {
        self.at.password.as_ref().map(|p| p.expose_secret()).ok_or_else(no_password)
    }

    async fn query(&mut self, sql: &str) -> Result<(), Broken> {
        let mut out = Vec::new();
        build::query(&mut out, sql.as_bytes()).map_err(broken)?;
        self.send(&out).await?;
        loop {
            let (tag, body) = self.message().await?;
            match tag {
                backend::COPY_BOTH => return Ok(()),
                backend::ERROR => return Err(refused(&body)),
                backend::READY_FOR_QUERY => return Err(out_of_order()),
                _ => {}
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.socket.write_all(bytes).await.map_err(broken)?;
        self.socket.flush().await.map_err(broken)
    }

    async fn message(&mut self) -> Result<(u8, Bytes), Broken> {
        loop {
            if let Some(header) = frame::header(&self.buf).map_err(broken)? {
                if header.len > MAX_MESSAGE {
                    return Err(Broken("a message is too large".to_owned()));
                }
                if self.buf.len() >= header.len {
                    let mut whole = self.buf.split_to(header.len).freeze();
                    whole.advance(frame::HEADER);
                    return Ok((header.tag, whole));
                }
            }
            // Grows by what arrives, never by what was declared.
            self.buf.reserve(READ_BYTES);
            if self.socket.read_buf(&mut self.buf).await.map_err(broken)? == 0 {
                return Err(Broken("the connection ended".to_owned()));
            }
        }
    }

    /// The next frame. Safe to be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Result<Frame, MoveError> {
        self.next_frame().await.map_err(|reason| reason.of(&self.at))
    }

    async fn next_frame(&mut self) -> Result<Frame, Broken> {
        loop {
            let (tag, mut body) = self.message().await?;
            match tag {
                backend::COPY_DATA => match body.first() {
                    Some(b'w') if body.len() >= 25 => {
                        body.advance(25);
                        return Ok(Frame::Data(body));
                    }
                    Some(b'k') if body.len() == 18 => {
                        body.advance(1);
                        let end = body.get_u64();
                        let _ = body.get_i64();
                        return Ok(Frame::Keepalive { end, reply: body.get_u8() != 0 });
                    }
                    _ => return Err(Broken("a frame of the stream is malformed".to_owned())),
                },
                backend::ERROR => return Err(refused(&body)),
                backend::COPY_DONE => return Err(Broken("the server ended the stream".to_owned())),
                _ => {}
            }
        }
    }

    /// Tells that everything before `flushed` is safe on the other side, and asks for a sign of life if `ask`.
    pub(crate) async fn report(&mut self, flushed: u64, ask: bool) -> Result<(), MoveError> {
        let mut out = Vec::with_capacity(39);
        out.push(b'd');
        out.extend_from_slice(&38u32.to_be_bytes());
        out.push(b'r');
        for _ in 0..3 {
            out.extend_from_slice(&flushed.to_be_bytes());
        }
        // The clock is for people who look at pg_stat_replication.
        out.extend_from_slice(&0i64.to_be_bytes());
        out.push(u8::from(ask));
        self.send(&out).await.map_err(|reason| reason.of(&self.at))
    }
}

async fn open(at: &ShardAccess) -> Result<Box<dyn Socket>, Broken> {
    if at.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", at.host, at.port);
        return Ok(Box::new(UnixStream::connect(path).await.map_err(broken)?));
    }
    let plain = async || -> io::Result<TcpStream> {
        let socket = TcpStream::connect((at.host.as_str(), at.port)).await?;
        socket.set_nodelay(true)?;
        Ok(socket)
    };
    let mut socket = plain().await.map_err(broken)?;
    if at.tls.mode == SslMode::Disable {
        return Ok(Box::new(socket));
    }
    let mut out = Vec::new();
    build::ssl_request(&mut out);
    socket.write_all(&out).await.map_err(broken)?;
    let mut answer = [0];
    socket.read_exact(&mut answer).await.map_err(broken)?;
    if answer == *b"S" {
        let mut tls = Tls::new(&at.tls).map_err(broken)?;
        let connect = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls, &at.host).map_err(broken)?;
        return Ok(Box::new(connect.connect(socket).await.map_err(broken)?));
    }
    match at.tls.mode {
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
            Err(Broken("the server has no tls".to_owned()))
        }
        _ => Ok(Box::new(plain().await.map_err(broken)?)),
    }
}

/// Why the stream ended, in words.
struct Broken(String);

impl Broken {
    fn of(self, at: &ShardAccess) -> MoveError {
        MoveError::Stream { shard: at.name.clone(), reason: self.0 }
    }
}

fn broken(error: impl std::fmt::Display) -> Broken {
    Broken(error.to_string())
}

fn no_password() -> Broken {
    Broken("the server asks for a password, and there is none".to_owned())
}

fn out_of_order() -> Broken {
    Broken("the server said something out of order".to_owned())
}

fn refused(body: &[u8]) -> Broken {
    let fields = message::ErrorFields::parse(body).ok();
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    match fields {
        Some(f) => Broken(format!("{} ({})", text(f.message()), text(f.code()))),
        None => Broken("the server refused".to_owned()),
    }
}
