//! Where clients connect to, and as whom.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;

use super::{Raw, Refused, Stream, messages};
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

    /// At another address, over TCP.
    pub fn at(mut self, address: SocketAddr) -> Self {
        self.endpoint = Endpoint::Tcp(address);
        self
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
