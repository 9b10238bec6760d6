//! Logging in to a shard, which is not trusted: every length is checked, nothing that it declares
//! is allocated, and it gets no password unless it proves to be worth one.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use secrecy::ExposeSecret;
use socket2::{SockRef, Socket, TcpKeepalive};
use switchyard_config::topology::{Endpoint, ServerLogin, ServerSecret, Shard, SslMode};
use switchyard_wire::error::ErrorResponse;
use switchyard_wire::frame::{self, backend};
use switchyard_wire::scram::{ClientScram, ClientSecret, DerivedKeys};
use switchyard_wire::{build, md5, message};
use tokio::net::{TcpStream, UnixStream};

use super::{Carried, Route, Server, ServerIdentity};
use crate::seal::ServerSeal;
use crate::statements::ServerStatements;
use crate::stream::ServerStream;
use crate::tls::ShardTlsContext;

/// Largest message accepted during login, in bytes.
const LOGIN_MESSAGE_BYTES: usize = 64 * 1024;

/// Most bytes accepted from a shard during one login.
const LOGIN_BYTES: usize = 1 << 20;

/// The parameters that a shard reports at login.
pub(crate) type Parameters = Vec<(Vec<u8>, Vec<u8>)>;

/// Why a connection to a shard was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nobody answers there, or not in time.
    #[error("cannot reach {address}: {cause}")]
    Unreachable { address: String, cause: String },
    /// TLS failed, or is not to be had.
    #[error("tls with {address}: {cause}")]
    Tls { address: String, cause: String },
    /// The shard refused us.
    #[error("shard refused the login: {} {message}", String::from_utf8_lossy(code))]
    Refused { code: [u8; 5], message: String },
    /// None of the shard's hosts is its primary now.
    #[error("no host is primary: {causes}")]
    NoPrimary { causes: String },
    /// None of the shard's standbys can be read from now.
    #[error("no standby is near enough: {causes}")]
    NoStandby { causes: String },
    /// What answers does not speak the protocol, or asks for what we do not give.
    #[error("login failed: {0}")]
    Protocol(String),
}

impl ConnectError {
    /// Whether it may be over soon: nobody is there, or the server starts, ends or is full.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoPrimary { .. } | Self::NoStandby { .. } => true,
            Self::Refused { code, .. } => code.starts_with(b"57") || code.starts_with(b"53"),
            Self::Tls { .. } | Self::Protocol(_) => false,
        }
    }

    /// What a client is told. The cause stays in the log; the shard's own words are passed on only
    /// where they concern the state of the server and not our credentials.
    pub(crate) fn for_client(&self, shard: &str) -> ErrorResponse {
        use switchyard_wire::error::sqlstate;
        match self {
            Self::Refused { code, message } if code.starts_with(b"57") || code.starts_with(b"53") => {
                ErrorResponse::fatal(switchyard_wire::error::SqlState(*code), message.clone())
            }
            Self::Refused { code: [b'3', b'D', b'0', b'0', b'0'], message } => {
                ErrorResponse::fatal(sqlstate::INVALID_CATALOG_NAME, message.clone())
            }
            _ => ErrorResponse::fatal(
                sqlstate::SQLCLIENT_UNABLE,
                format!("shard \"{shard}\" is not available"),
            )
            .hint("Try again in a moment; the router's log has the cause."),
        }
    }
}

/// What is kept between connections of one pool, so that each costs less than the first.
#[derive(Default)]
pub(crate) struct LoginCache {
    /// SCRAM keys by login number: PBKDF2 runs once per salt, not once per connection.
    keys: Mutex<Vec<(u64, DerivedKeys)>>,
}

/// Everything that a connection attempt needs to know.
pub(crate) struct Target {
    pub(crate) shard: Arc<Shard>,
    /// The one of its hosts that is meant.
    pub(crate) endpoint: Endpoint,
    pub(crate) route: Route,
    /// The login, where it is not the shard's own.
    pub(crate) login: Option<Arc<ServerLogin>>,
    pub(crate) tls: Arc<ShardTlsContext>,
    pub(crate) cache: Arc<LoginCache>,
    /// Whether tokens are to be used on it.
    pub(crate) sealed: bool,
    pub(crate) home: usize,
}

impl Target {
    fn address(&self) -> String {
        self.endpoint.to_string()
    }

    /// Connects and logs in, within the shard's `connect_timeout`.
    pub(crate) async fn connect(&self) -> Result<(Server, Parameters), ConnectError> {
        let limit = self.shard.pool.connect_timeout;
        let attempts = async {
            match self.attempt().await {
                // Ended by an administrator as it began (admin_shutdown): nothing is wrong with
                // the shard.
                Err(ConnectError::Refused { code: [b'5', b'7', b'P', b'0', b'1'], .. }) => {
                    self.attempt().await
                }
                done => done,
            }
        };
        match tokio::time::timeout(limit, attempts).await {
            Ok(done) => done,
            Err(_) => Err(ConnectError::Unreachable {
                address: self.address(),
                cause: format!("no answer within {} ms", limit.as_millis()),
            }),
        }
    }

    async fn attempt(&self) -> Result<(Server, Parameters), ConnectError> {
        let mode = self.shard.tls.mode;
        let first = self.login(matches!(mode, SslMode::Disable | SslMode::Allow)).await;
        match (mode, first) {
            // As libpq: `allow` and `prefer` try the other way if the first was refused.
            (SslMode::Allow, Err(ConnectError::Refused { .. })) => self.login(false).await,
            (SslMode::Prefer, Err(ConnectError::Tls { .. } | ConnectError::Refused { .. }))
                if !self.endpoint.host.starts_with('/') =>
            {
                self.login(true).await
            }
            (_, first) => first,
        }
    }

    async fn login(&self, plain: bool) -> Result<(Server, Parameters), ConnectError> {
        let (stream, binding) = open(&self.endpoint, &self.tls, plain).await?;
        let login = self.login.as_deref().unwrap_or(&self.shard.login);
        let mut conversation =
            Login { stream, buf: Vec::with_capacity(4096), read: 0, target: self, binding };
        conversation.startup(login).await?;
        conversation.authenticate(login).await?;
        let (parameters, pid, key) = conversation.until_ready().await?;
        let seal = if self.sealed { conversation.hello().await? } else { None };
        let lifetime = jittered(self.shard.pool.lifetime);
        let socket = conversation.stream.facts();
        let server = Server {
            stream: conversation.stream,
            identity: Arc::new(ServerIdentity::new(self, login.user.clone(), pid, key, socket)),
            route: self.route.clone(),
            place: crate::pool::ServerPlace::none(self.route.clone()),
            carried: Carried { context: 0, wishes: Arc::default(), dirty: false, lost: false, session: 0 },
            voice: None,
            announced: 0,
            claimed: false,
            statements: ServerStatements::new(self.shard.pool.statements),
            sql_names: std::collections::HashSet::new(),
            sequences_of: 0,
            unnamed_of: super::UNNAMED_OF_NOBODY,
            seal,
            asked_for_seal: self.sealed,
            home: self.home,
            idle_since: None,
            expires: Instant::now() + lifetime,
            short_lived: false,
            broken: false,
        };
        Ok((server, parameters))
    }
}

/// Up to a tenth less, so that connections made together do not end together.
fn jittered(lifetime: Duration) -> Duration {
    let mut byte = [0_u8; 2];
    if aws_lc_rs::rand::fill(&mut byte).is_err() {
        return lifetime;
    }
    lifetime - (lifetime / 10).mul_f64(f64::from(u16::from_le_bytes(byte)) / 65536.0)
}

/// Opens a socket to a server, with TLS as its mode says. Also returns the hash for channel
/// binding where there is TLS.
pub(crate) async fn open(
    endpoint: &Endpoint,
    tls: &ShardTlsContext,
    plain: bool,
) -> Result<(ServerStream, Option<Vec<u8>>), ConnectError> {
    let address = endpoint.to_string();
    let unreachable =
        |e: io::Error| ConnectError::Unreachable { address: address.clone(), cause: e.to_string() };
    if endpoint.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", endpoint.host, endpoint.port);
        return Ok((ServerStream::Unix(UnixStream::connect(path).await.map_err(unreachable)?), None));
    }
    let mut stream =
        TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    keep_alive(&SockRef::from(&stream)).map_err(unreachable)?;
    if plain || tls.mode() == SslMode::Disable {
        return Ok((ServerStream::Tcp(stream), None));
    }
    let failed = |cause: String| ConnectError::Tls { address: address.clone(), cause };
    let answer = ask_for_tls(&mut stream).await.map_err(unreachable)?;
    match answer {
        b'S' => {}
        b'N' if tls.mode() == SslMode::Prefer => return Ok((ServerStream::Tcp(stream), None)),
        b'N' => return Err(failed("the shard does not offer tls".to_owned())),
        _ => return Err(failed("the shard answered neither yes nor no".to_owned())),
    }
    let name = tls.server_name(&endpoint.host).map_err(|e| failed(e.to_string()))?;
    let connector = tls.connector().ok_or_else(|| failed("tls is disabled".to_owned()))?;
    let stream = connector.connect(name, stream).await.map_err(|e| failed(e.to_string()))?;
    let binding = crate::tls::peer_end_point_hash(stream.get_ref().1);
    Ok((ServerStream::Tls(Box::new(stream)), binding))
}

/// Sends SSLRequest and reads the one byte that answers it, and no byte more: what an attacker
/// stuffs in behind it would pass for the shard's word under TLS.
async fn ask_for_tls(stream: &mut TcpStream) -> io::Result<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut request = Vec::with_capacity(8);
    build::ssl_request(&mut request);
    stream.write_all(&request).await?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await?;
    Ok(answer[0])
}

/// Finds out about peers that have vanished without a word.
pub(crate) fn keep_alive(socket: &Socket) -> io::Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(90)))?;
    Ok(())
}

/// A login under way.
struct Login<'a> {
    stream: ServerStream,
    buf: Vec<u8>,
    /// Bytes read so far in all.
    read: usize,
    target: &'a Target,
    binding: Option<Vec<u8>>,
}

impl Login<'_> {
    async fn startup(&mut self, login: &ServerLogin) -> Result<(), ConnectError> {
        let mut out = Vec::with_capacity(128);
        let built = build::startup(
            &mut out,
            switchyard_wire::startup::VERSION_3_0,
            &[("user", &login.user), ("database", &self.target.route.database)],
        );
        built.map_err(|e| ConnectError::Protocol(e.to_string()))?;
        self.send(&out).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), ConnectError> {
        self.stream.write_all(bytes).await.map_err(|e| self.lost(&e))
    }

    fn lost(&self, e: &io::Error) -> ConnectError {
        ConnectError::Unreachable { address: self.target.address(), cause: e.to_string() }
    }

    /// The next message: its tag and its body.
    async fn message(&mut self) -> Result<(u8, Vec<u8>), ConnectError> {
        loop {
            let header = frame::header(&self.buf).map_err(|e| ConnectError::Protocol(e.to_string()))?;
            if let Some(header) = header {
                if header.len > LOGIN_MESSAGE_BYTES {
                    return Err(ConnectError::Protocol("the shard sent an oversized message".to_owned()));
                }
                if self.buf.len() >= header.len {
                    let body = self.buf[frame::HEADER..header.len].to_vec();
                    self.buf.drain(..header.len);
                    return Ok((header.tag, body));
                }
            }
            let mut chunk = [0; 4096];
            let n = match self.stream.read(&mut chunk).await {
                Ok(0) => return Err(self.lost(&io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => n,
                Err(e) => return Err(self.lost(&e)),
            };
            self.read += n;
            if self.read > LOGIN_BYTES {
                return Err(ConnectError::Protocol("the shard sent too much before it was ready".to_owned()));
            }
            self.buf.extend_from_slice(&chunk[..n]);
        }
    }

    /// The next message that is not a notice; an error ends the login.
    async fn expect(&mut self) -> Result<(u8, Vec<u8>), ConnectError> {
        loop {
            let (tag, body) = self.message().await?;
            match tag {
                backend::ERROR => return Err(refusal(&body)),
                backend::NOTICE => {}
                _ => return Ok((tag, body)),
            }
        }
    }

    async fn authentication(&mut self) -> Result<(u32, Vec<u8>), ConnectError> {
        match self.expect().await? {
            (backend::AUTH, body) if body.len() >= 4 => {
                let kind = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                Ok((kind, body[4..].to_vec()))
            }
            (tag, _) => {
                Err(ConnectError::Protocol(format!("unexpected message {:?} during login", char::from(tag))))
            }
        }
    }

    async fn authenticate(&mut self, login: &ServerLogin) -> Result<(), ConnectError> {
        // src/include/libpq/pqcomm.h AUTH_REQ_*
        loop {
            let (kind, body) = self.authentication().await?;
            match kind {
                0 => return Ok(()),
                3 => self.cleartext(login).await?,
                5 => self.md5(login, &body).await?,
                10 => return self.scram(login, &body).await,
                other => {
                    return Err(ConnectError::Protocol(format!(
                        "the shard asks for authentication method {other}"
                    )));
                }
            }
        }
    }

    async fn cleartext(&mut self, login: &ServerLogin) -> Result<(), ConnectError> {
        let ServerSecret::Password(password) = &login.secret else { return Err(no_password()) };
        if matches!(self.stream, ServerStream::Tcp(_)) {
            return Err(ConnectError::Protocol("the shard asks for a plain password without tls".to_owned()));
        }
        self.password(password.expose_secret().as_bytes()).await
    }

    async fn password(&mut self, text: &[u8]) -> Result<(), ConnectError> {
        let mut out = Vec::new();
        build::password(&mut out, text).map_err(|e| ConnectError::Protocol(e.to_string()))?;
        self.send(&out).await
    }

    async fn md5(&mut self, login: &ServerLogin, body: &[u8]) -> Result<(), ConnectError> {
        let ServerSecret::Password(password) = &login.secret else { return Err(no_password()) };
        let salt: [u8; 4] =
            body.try_into().map_err(|_| ConnectError::Protocol("malformed md5 request".to_owned()))?;
        let stored = md5::md5_password(&login.user, password.expose_secret());
        self.password(md5::md5_response(&stored, salt).as_bytes()).await
    }

    async fn scram(&mut self, login: &ServerLogin, mechanisms: &[u8]) -> Result<(), ConnectError> {
        let broken = |what: &dyn std::fmt::Display| ConnectError::Protocol(format!("scram: {what}"));
        let secret = match &login.secret {
            ServerSecret::None => return Err(no_password()),
            ServerSecret::Password(password) => ClientSecret::Password(password.clone()),
            ServerSecret::ScramKeys { client_key, server_key } => {
                ClientSecret::Keys { client_key: client_key.0, server_key: server_key.0 }
            }
        };
        let number = self.target.route.login;
        let cached = self.target.cache.keys.lock().iter().find(|(n, _)| *n == number).map(|(_, k)| k.clone());
        let mut scram = ClientScram::new(secret, self.binding.clone()).with_cache(cached);
        let offered: Vec<&str> = mechanisms
            .split(|b| *b == 0)
            .filter_map(|m| std::str::from_utf8(m).ok())
            .filter(|m| !m.is_empty())
            .collect();
        let mechanism = scram.mechanism(&offered).ok_or_else(|| {
            ConnectError::Protocol("the shard offers no SCRAM mechanism that we have".to_owned())
        })?;
        let mut out = Vec::new();
        build::sasl_initial(&mut out, mechanism, &scram.first()).map_err(|e| broken(&e))?;
        self.send(&out).await?;
        let (11, challenge) = self.authentication().await? else { return Err(broken(&"no challenge")) };
        let answer = scram.challenge(&challenge).map_err(|e| broken(&e))?;
        let mut out = Vec::new();
        build::sasl_response(&mut out, &answer).map_err(|e| broken(&e))?;
        self.send(&out).await?;
        let (12, last) = self.authentication().await? else { return Err(broken(&"no final message")) };
        scram.verify(&last).map_err(|e| broken(&e))?;
        if let Some(keys) = scram.derived() {
            let mut cache = self.target.cache.keys.lock();
            cache.retain(|(n, _)| *n != number);
            cache.push((number, keys));
        }
        match self.authentication().await? {
            (0, _) => Ok(()),
            _ => Err(broken(&"the shard asks for more after it has proven itself")),
        }
    }

    /// Asks for a place among the shard's server processes. None if the shard has no schema, or
    /// refuses: tenants in plain contexts are served all the same.
    async fn hello(&mut self) -> Result<Option<ServerSeal>, ConnectError> {
        let mut out = Vec::new();
        let sql = b"SELECT slot, nonce, pid, used FROM switchyard.hello()";
        build::query(&mut out, sql).map_err(|e| ConnectError::Protocol(e.to_string()))?;
        self.send(&out).await?;
        let mut seal = None;
        loop {
            let (tag, body) = self.message().await?;
            match tag {
                backend::DATA_ROW => seal = ServerSeal::from_row(&body),
                backend::ERROR => {
                    let error = refusal(&body);
                    tracing::warn!(shard = %self.target.shard.name, %error, "cannot use the seal on this shard");
                    seal = None;
                }
                backend::READY_FOR_QUERY if body == b"I" => return Ok(seal),
                backend::READY_FOR_QUERY => return Err(unexpected(tag)),
                _ => {}
            }
        }
    }

    async fn until_ready(&mut self) -> Result<(Parameters, u32, Box<[u8]>), ConnectError> {
        let malformed = |_| ConnectError::Protocol("malformed message after login".to_owned());
        let mut parameters = Parameters::new();
        let mut identity = (0, Box::default());
        loop {
            let (tag, body) = self.expect().await?;
            match tag {
                backend::PARAMETER_STATUS => {
                    let (name, value) = message::parameter_status(&body).map_err(malformed)?;
                    parameters.push((name.to_vec(), value.to_vec()));
                }
                backend::BACKEND_KEY_DATA => {
                    let (pid, key) = message::backend_key(&body).map_err(malformed)?;
                    identity = (pid, key.into());
                }
                backend::READY_FOR_QUERY if body == b"I" => {
                    // Something may stand behind it: a notice, or already the end.
                    while !self.buf.is_empty() {
                        match self.expect().await? {
                            (backend::PARAMETER_STATUS | backend::NOTIFICATION, _) => {}
                            (other, _) => return Err(unexpected(other)),
                        }
                    }
                    return Ok((parameters, identity.0, identity.1));
                }
                other => return Err(unexpected(other)),
            }
        }
    }
}

fn unexpected(tag: u8) -> ConnectError {
    ConnectError::Protocol(format!("unexpected message {:?} after login", char::from(tag)))
}

fn no_password() -> ConnectError {
    ConnectError::Protocol("the shard asks for a password and none is configured".to_owned())
}

fn refusal(body: &[u8]) -> ConnectError {
    let Ok(fields) = message::ErrorFields::parse(body) else {
        return ConnectError::Protocol("malformed error from the shard".to_owned());
    };
    // All fields are optional on the wire.
    let code = fields.code().and_then(|c| c.try_into().ok()).unwrap_or(*b"XX000");
    let message = fields.message().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
    ConnectError::Refused { code, message }
}
