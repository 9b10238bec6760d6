//! The first packets of a connection: requests for encryption, the startup packet.

use std::sync::Arc;

use switchyard_config::settings::ClientTlsMode;
use switchyard_wire::error::{ErrorResponse, sqlstate};
use switchyard_wire::frame;
use switchyard_wire::startup::{self, First, Startup};
use tokio::time::Instant;

use super::proof::{self, Failed};
use super::{Address, Ended, Wrong};
use crate::notifications::link;
use crate::server::SocketFacts;
use crate::shared::Shared;
use crate::stats::{Method, Rejected};
use crate::stream::ClientStream;
use crate::tls;

/// The first byte of a TLS handshake. // RFC 8446, section 5.1
const TLS_HANDSHAKE: u8 = 0x16;

/// Bytes read at once during login.
const CHUNK: usize = 2048;

/// What a client is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expected {
    /// A step of SASL.
    Sasl,
    /// A password.
    Password,
}

impl Expected {
    fn word(self) -> &'static str {
        match self {
            Self::Sasl => "SASL",
            Self::Password => "password",
        }
    }
}

/// A connection that has not logged in.
pub(crate) struct Opening {
    pub(crate) shared: Arc<Shared>,
    /// `None` only while TLS is being negotiated, and after [`Self::finish`].
    pub(super) stream: Option<ClientStream>,
    /// Read and not looked at.
    held: Vec<u8>,
    /// To be sent together with what welcomes the client.
    pub(crate) parting: Vec<u8>,
    /// The client has proven itself and is to become a session.
    pub(crate) let_in: bool,
    pub(crate) local: bool,
    pub(super) address: Address,
    /// When the login must be over.
    pub(super) deadline: Instant,
}

/// A connection whose startup packet has been read.
pub(crate) struct Opened {
    pub(crate) startup: Startup,
    /// The settings within its `options`.
    pub(crate) options: Vec<(String, String)>,
    /// What is wrong with them. Said to those who are let in only, as PostgreSQL does.
    pub(crate) options_error: Option<ErrorResponse>,
    pub(crate) tls: bool,
    /// The name that the client asked for by TLS.
    pub(crate) sni: Option<String>,
    /// The common name of its certificate.
    pub(crate) certificate: Option<String>,
    pub(crate) address: Address,
}

impl Opening {
    pub(crate) fn new(
        shared: Arc<Shared>,
        stream: ClientStream,
        address: Address,
        deadline: Instant,
    ) -> Self {
        let local = address.is_none_or(|a| a.is_loopback());
        let (held, parting) = (Vec::new(), Vec::new());
        Self { shared, stream: Some(stream), held, parting, let_in: false, local, address, deadline }
    }

    fn stream(&mut self) -> Result<&mut ClientStream, Ended> {
        self.stream.as_mut().ok_or(Ended::Quietly)
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.stream.as_ref().is_some_and(ClientStream::is_tls)
    }

    async fn read_more(&mut self) -> Result<(), Ended> {
        let mut chunk = [0; CHUNK];
        let n = self.stream()?.read(&mut chunk).await?;
        if n == 0 {
            return Err(Ended::Quietly);
        }
        self.held.extend_from_slice(&chunk[..n]);
        Ok(())
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        Ok(self.stream()?.write_all(bytes).await?)
    }

    /// Tells the client why it is not let in. Whether it hears it is its own affair.
    pub(crate) async fn refuse(&mut self, words: &[u8]) {
        let telling = async {
            let _ = self.send(words).await;
            if let Some(stream) = &mut self.stream {
                let _ = std::future::poll_fn(|cx| stream.poll_shutdown(cx)).await;
                // What it has sent meanwhile is read, or closing would reset the connection and
                // the client might never see the reason.
                let mut sink = [0; CHUNK];
                for _ in 0..64 {
                    match stream.read(&mut sink).await {
                        Ok(n) if n > 0 => {}
                        _ => break,
                    }
                }
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), telling).await;
    }

    /// Reads up to the startup packet, through TLS if the client wants it.
    pub(crate) async fn open(&mut self) -> Result<Opened, Ended> {
        self.direct_tls().await?;
        let (mut asked_tls, mut asked_gss) = (false, false);
        loop {
            match self.first().await? {
                First::Ssl if !asked_tls && !self.is_tls() => {
                    asked_tls = true;
                    self.negotiate_tls().await?;
                }
                First::Gss if !asked_gss && !self.is_tls() => {
                    asked_gss = true;
                    self.refuse_stuffing("GSSAPI encryption")?;
                    self.send(b"N").await?;
                }
                // // src/backend/postmaster/postmaster.c ProcessStartupPacket: a second request is
                // taken for a protocol version, which it is not.
                First::Ssl => return Err(self.unsupported(1234, 5679)),
                First::Gss => return Err(self.unsupported(1234, 5680)),
                First::Cancel { pid, key } => {
                    let shared = self.shared.clone();
                    // The client waits for the connection to close: that says the request has
                    // been passed on.
                    crate::cancel::request(&shared, self.address, pid, &key).await;
                    return Err(Ended::Quietly);
                }
                First::Startup(startup) if link::from_peer(&self.shared, &startup) => {
                    return Err(Ended::Quietly);
                }
                First::Startup(startup) => return self.opened(startup).await,
            }
        }
    }

    fn unsupported(&self, major: u16, minor: u16) -> Ended {
        self.shared.stats.reject(Rejected::Protocol);
        Ended::Refused(startup::StartupError::Version { major, minor }.response())
    }

    async fn first(&mut self) -> Result<First, Ended> {
        let max = self.shared.settings().limits.startup_bytes.saturating_add(4);
        loop {
            if let Some(prefix) = self.held.first_chunk::<4>() {
                let len = startup::packet_len(prefix, max).map_err(|e| self.malformed(&e))?;
                if self.held.len() >= len {
                    let first = startup::first(&self.held[..len]).map_err(|e| self.malformed(&e))?;
                    self.held.drain(..len);
                    return Ok(first);
                }
            }
            self.read_more().await?;
        }
    }

    fn malformed(&self, error: &startup::StartupError) -> Ended {
        self.shared.stats.reject(Rejected::Protocol);
        tracing::debug!(address = self.address.map(tracing::field::display), %error, "malformed startup");
        if error.is_silent() {
            return Ended::Quietly;
        }
        let mut words = Vec::new();
        error.encode(&mut words);
        Ended::Told(words)
    }

    /// Bytes that came with a request for encryption were not encrypted, and would later pass for
    /// encrypted ones. // CVE-2021-23214
    fn refuse_stuffing(&self, what: &str) -> Result<(), Ended> {
        if self.held.is_empty() {
            return Ok(());
        }
        self.shared.stats.reject(Rejected::Protocol);
        tracing::warn!(
            address = self.address.map(tracing::field::display),
            "unencrypted data behind a request for encryption"
        );
        Err(Ended::Refused(
            ErrorResponse::fatal(
                sqlstate::PROTOCOL_VIOLATION,
                format!("received unencrypted data after {what} request"),
            )
            .detail("This could be either a client-software bug or evidence of an attempted man-in-the-middle attack."),
        ))
    }

    async fn negotiate_tls(&mut self) -> Result<(), Ended> {
        self.refuse_stuffing("SSL")?;
        let Some(context) = self.shared.client_tls() else {
            return self.send(b"N").await;
        };
        if !matches!(self.stream, Some(ClientStream::Tcp(_))) {
            return self.send(b"N").await;
        }
        self.send(b"S").await?;
        self.handshake(&context).await
    }

    /// TLS without asking first, if the first byte is that of a handshake. The client must say by
    /// ALPN that it means PostgreSQL: its first bytes may have been meant for another server.
    /// // src/backend/tcop/backend_startup.c ProcessSSLStartup
    async fn direct_tls(&mut self) -> Result<(), Ended> {
        let (Some(ClientStream::Tcp(stream)), Some(context)) = (&self.stream, self.shared.client_tls())
        else {
            return Ok(());
        };
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 || first != [TLS_HANDSHAKE] {
            return Ok(());
        }
        self.handshake(&context).await?;
        match &self.stream {
            Some(ClientStream::Tls(stream)) if tls::is_for_postgresql(stream.get_ref().1) => Ok(()),
            _ => {
                self.shared.stats.reject(Rejected::Tls);
                tracing::info!(
                    address = self.address.map(tracing::field::display),
                    "direct tls without the protocol's name"
                );
                Err(Ended::Quietly)
            }
        }
    }

    async fn handshake(&mut self, context: &tls::ClientTlsContext) -> Result<(), Ended> {
        let Some(ClientStream::Tcp(stream)) = self.stream.take() else { return Err(Ended::Quietly) };
        match context.acceptor().accept(stream).await {
            Ok(stream) => {
                self.stream = Some(ClientStream::Tls(Box::new(stream)));
                Ok(())
            }
            Err(error) => {
                self.shared.stats.reject(Rejected::Tls);
                tracing::info!(address = self.address.map(tracing::field::display), %error, "tls handshake failed");
                Err(Ended::Quietly)
            }
        }
    }

    async fn opened(&mut self, startup: Startup) -> Result<Opened, Ended> {
        let required = self.shared.settings().tls.mode == ClientTlsMode::Require;
        let over_unix = matches!(self.stream, Some(ClientStream::Unix(_)));
        if required && !self.is_tls() && !over_unix {
            return Err(Ended::Refused(
                ErrorResponse::fatal(sqlstate::INVALID_AUTHORIZATION, "connection requires TLS")
                    .hint("Add sslmode=require to the connection URL."),
            ));
        }
        let (options, options_error) = match startup.get("options").map(startup::options) {
            Some(Ok(options)) => (options, None),
            Some(Err(error)) => (Vec::new(), Some(error.response())),
            None => (Vec::new(), None),
        };
        if startup.needs_negotiation() {
            let unknown: Vec<&[u8]> = startup.protocol_options.iter().map(String::as_bytes).collect();
            let version = startup::VERSION_3_0 | u32::from(startup.granted_minor());
            let mut out = Vec::new();
            switchyard_wire::build::negotiate_version(&mut out, version, &unknown)
                .map_err(|_| Ended::Quietly)?;
            self.send(&out).await?;
        }
        let connection = match &self.stream {
            Some(ClientStream::Tls(stream)) => Some(stream.get_ref().1),
            _ => None,
        };
        Ok(Opened {
            options,
            options_error,
            tls: connection.is_some(),
            sni: connection.and_then(tls::sni).map(str::to_owned),
            certificate: connection.and_then(tls::peer_common_name),
            address: self.address,
            startup,
        })
    }

    /// The body of the next message, which must be a password message of at most `token_bytes`.
    /// A length that cannot be, or a message that ends before its end, is a login that fails, as
    /// to PostgreSQL.
    pub(crate) async fn password(&mut self, expected: Expected) -> Result<Vec<u8>, Failed> {
        let max = self.shared.settings().limits.token_bytes.saturating_add(frame::HEADER);
        loop {
            if let Some(&tag) = self.held.first()
                && tag != frame::frontend::PASSWORD
            {
                self.shared.stats.reject(Rejected::Protocol);
                let text = format!("expected {} response, got message type {tag}", expected.word());
                return Err(proof::malformed(&text));
            }
            let no_message =
                |cause| Failed::Wrong(Wrong { method: Method::None, cause: String::from(cause) });
            let header = frame::header(&self.held).map_err(|_| no_message("invalid message length"))?;
            if let Some(header) = header {
                if header.len > max {
                    self.shared.stats.reject(Rejected::Protocol);
                    return Err(no_message("password message too large"));
                }
                if self.held.len() >= header.len {
                    let body = self.held[frame::HEADER..header.len].to_vec();
                    self.held.drain(..header.len);
                    return Ok(body);
                }
            }
            let begun = !self.held.is_empty();
            self.read_more()
                .await
                .map_err(|_| if begun { no_message("half a message") } else { Failed::Gone })?;
        }
    }

    /// What is known of the socket.
    pub(crate) fn facts(&self) -> SocketFacts {
        self.stream.as_ref().map(ClientStream::facts).unwrap_or_default()
    }

    /// The socket of a client that was let in, and what it has sent behind its login.
    pub(crate) fn finish(&mut self) -> Result<(ClientStream, Vec<u8>), Ended> {
        let stream = self.stream.take().ok_or(Ended::Quietly)?;
        Ok((stream, std::mem::take(&mut self.held)))
    }
}
