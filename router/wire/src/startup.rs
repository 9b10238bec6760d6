//! The first packet of a connection, which has no tag: a request for encryption, a cancel request, or the
//! startup of a session (`ProcessStartupPacket` in `src/backend/tcop/postmaster.c` of PostgreSQL 15).

use std::collections::HashMap;
use std::fmt;

use thiserror::Error;

use crate::error::{ErrorResponse, SqlState, sqlstate};

mod options;
#[cfg(test)]
mod tests;

pub use options::options;

/// `CANCEL_REQUEST_CODE` in `src/include/libpq/pqcomm.h`.
pub const CANCEL_REQUEST: u32 = 1234 << 16 | 5678;
/// `NEGOTIATE_SSL_CODE` in `src/include/libpq/pqcomm.h`.
pub const SSL_REQUEST: u32 = 1234 << 16 | 5679;
/// `NEGOTIATE_GSS_CODE` in `src/include/libpq/pqcomm.h`.
pub const GSS_REQUEST: u32 = 1234 << 16 | 5680;

/// Protocol 3.0, the one every client speaks.
pub const VERSION_3_0: u32 = 3 << 16;

/// The newest minor version that we grant: `PG_PROTOCOL_LATEST` of PostgreSQL 18. Cancel keys may be long in it.
pub const LATEST_MINOR: u16 = 2;

/// Largest first packet in bytes, its length field included: `MAX_STARTUP_PACKET_LENGTH` (10000, without
/// the length field) in `src/include/libpq/pqcomm.h`.
pub const MAX_PACKET: usize = 10_004;

/// A decoded first packet.
#[derive(Clone, PartialEq, Eq)]
pub enum First {
    /// `SSLRequest`: answer `S` or `N`. Anything that came with it unencrypted is to be refused.
    Ssl,
    /// `GSSENCRequest`: answer `N`; the client goes on on the same connection.
    Gss,
    /// `CancelRequest`: never answered.
    Cancel {
        /// The process id of BackendKeyData.
        pid: u32,
        /// Its key, 4 to 256 bytes. Compare in constant time.
        key: Vec<u8>,
    },
    /// The startup of a session.
    Startup(Startup),
}

/// Without the cancel key, which is as good as a password for one purpose.
impl fmt::Debug for First {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssl => f.write_str("Ssl"),
            Self::Gss => f.write_str("Gss"),
            Self::Cancel { pid, .. } => f.debug_struct("Cancel").field("pid", pid).finish_non_exhaustive(),
            Self::Startup(startup) => f.debug_tuple("Startup").field(startup).finish(),
        }
    }
}

/// A startup packet of protocol 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// The major version: 3.
    pub major: u16,
    /// The minor version the client asks for; above 0, it expects a `NegotiateProtocolVersion` from a server that does
    /// not have it.
    pub minor: u16,
    /// All parameters in the order of their first mention, without protocol options. Of duplicates the last
    /// wins, as in PostgreSQL: `user`, `database`, `options` and `replication` are told apart by case there,
    /// settings are not. Always has a `user`.
    pub params: Vec<(String, String)>,
    /// Whether a replication connection is asked for, of either kind.
    pub replication: bool,
    /// The names of protocol options (`_pq_.*`), all of which are to be listed back if unknown.
    pub protocol_options: Vec<String>,
}

impl Startup {
    /// The minor version that the client is granted. There never was a 3.1.
    #[must_use]
    pub fn granted_minor(&self) -> u16 {
        if self.minor == 1 { 0 } else { self.minor.min(LATEST_MINOR) }
    }

    /// Whether the client is to be told which version it gets, and which of its protocol options are not known.
    #[must_use]
    pub fn needs_negotiation(&self) -> bool {
        self.granted_minor() != self.minor || !self.protocol_options.is_empty()
    }

    /// The value of a parameter; the name of a setting is matched without regard to ASCII case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let exact = is_reserved(name);
        let same = |known: &str| {
            known == name || (!exact && known.eq_ignore_ascii_case(name) && !is_reserved(known))
        };
        self.params.iter().find(|(known, _)| same(known)).map(|(_, value)| value.as_str())
    }

    /// The user, never empty. PostgreSQL 15 looks at its first 63 bytes only.
    #[must_use]
    pub fn user(&self) -> &str {
        self.get("user").unwrap_or_default()
    }

    /// The database: the user's name if none was given.
    #[must_use]
    pub fn database(&self) -> &str {
        self.get("database").filter(|name| !name.is_empty()).unwrap_or_else(|| self.user())
    }
}

/// Parameters that PostgreSQL takes by exact name before it looks for settings.
fn is_reserved(name: &str) -> bool {
    matches!(name, "user" | "database" | "options" | "replication")
}

/// Why a first packet, or the options in it, are refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StartupError {
    /// The declared length is too small or too large.
    #[error("invalid length of startup packet")]
    Length,
    /// A cancel request of a size that none has.
    #[error("invalid length of cancel request packet")]
    CancelLength,
    /// A protocol we do not speak.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{LATEST_MINOR}")]
    Version {
        /// As asked for.
        major: u16,
        /// As asked for.
        minor: u16,
    },
    /// The parameters do not end where the packet does.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    /// A parameter is not UTF-8.
    #[error("invalid byte sequence for encoding \"UTF8\" in startup packet")]
    Encoding,
    /// No user.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    /// A value of `replication` that is none.
    #[error("invalid value for parameter \"replication\": \"{0}\"")]
    Replication(String),
    /// A command-line switch in `options` that no session may use, or that does not exist.
    #[error("invalid command-line argument for server process: {0}")]
    Argument(String),
    /// A setting in `options` without its value.
    #[error("{0} requires a value")]
    NoValue(String),
}

impl StartupError {
    /// The error's code.
    #[must_use]
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Self::Length | Self::CancelLength | Self::Layout => sqlstate::PROTOCOL_VIOLATION,
            Self::Version { .. } => sqlstate::FEATURE_NOT_SUPPORTED,
            Self::Encoding => sqlstate::CHARACTER_NOT_IN_REPERTOIRE,
            Self::NoUser => sqlstate::INVALID_AUTHORIZATION,
            Self::Replication(_) => sqlstate::INVALID_PARAMETER_VALUE,
            Self::Argument(_) | Self::NoValue(_) => sqlstate::SYNTAX_ERROR,
        }
    }

    /// What to tell the client before closing, unless [`Self::is_silent`].
    #[must_use]
    pub fn response(&self) -> ErrorResponse {
        let response = ErrorResponse::fatal(self.sqlstate(), self.to_string());
        match self {
            Self::Argument(_) => response.hint("Try \"postgres --help\" for more information."),
            Self::Replication(_) => {
                response.hint("Valid values are: \"false\", 0, \"true\", 1, \"database\".")
            }
            _ => response,
        }
    }

    /// Appends what PostgreSQL sends here before it closes the connection: nothing if [`Self::is_silent`], and to
    /// a client of protocol 1 or 2 the form that it can read, an `E` and the text (`send_message_to_frontend`
    /// in `src/backend/utils/error/elog.c`).
    pub fn encode(&self, buf: &mut Vec<u8>) {
        match self {
            _ if self.is_silent() => {}
            Self::Version { major: 1 | 2, .. } => {
                buf.extend_from_slice(format!("EFATAL:  {self}\n\0").as_bytes())
            }
            _ => self.response().encode(buf),
        }
    }

    /// Whether PostgreSQL closes the connection without a word here: whatever is at the other end does not
    /// speak the protocol, or sent a cancel request, which is never answered.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Length | Self::CancelLength)
    }
}

/// The size in bytes of the packet that begins with `prefix`, these four bytes included.
///
/// # Errors
/// Less than 8 bytes, or more than `max`, which [`MAX_PACKET`] caps.
pub fn packet_len(prefix: &[u8; 4], max: usize) -> Result<usize, StartupError> {
    let declared = usize::try_from(u32::from_be_bytes(*prefix)).map_err(|_| StartupError::Length)?;
    if (8..=max.min(MAX_PACKET)).contains(&declared) { Ok(declared) } else { Err(StartupError::Length) }
}

/// Reads a whole first packet, its four length bytes included.
///
/// # Errors
/// See [`StartupError`].
pub fn first(packet: &[u8]) -> Result<First, StartupError> {
    let Some((&prefix, body)) = packet.split_first_chunk::<4>() else {
        return Err(StartupError::Length);
    };
    if packet_len(&prefix, MAX_PACKET)? != packet.len() {
        return Err(StartupError::Length);
    }
    let Some((&code, body)) = body.split_first_chunk::<4>() else {
        return Err(StartupError::Length);
    };
    match u32::from_be_bytes(code) {
        CANCEL_REQUEST => cancel(body),
        // PostgreSQL does not look at what else is in these two packets.
        SSL_REQUEST => Ok(First::Ssl),
        GSS_REQUEST => Ok(First::Gss),
        version => {
            let (major, minor) = ((version >> 16) as u16, version as u16);
            if major != 3 {
                return Err(StartupError::Version { major, minor });
            }
            session(minor, body).map(First::Startup)
        }
    }
}

fn cancel(body: &[u8]) -> Result<First, StartupError> {
    match body.split_first_chunk::<4>() {
        Some((&pid, key)) if (4..=256).contains(&key.len()) => {
            Ok(First::Cancel { pid: u32::from_be_bytes(pid), key: key.to_vec() })
        }
        _ => Err(StartupError::CancelLength),
    }
}

fn session(minor: u16, body: &[u8]) -> Result<Startup, StartupError> {
    let (params, protocol_options) = (Vec::new(), Vec::new());
    let mut startup = Startup { major: 3, minor, params, replication: false, protocol_options };
    // Where each name stands in `params`: a search per parameter would let a packet of thousands cost millions
    // of comparisons before authentication.
    let mut known: HashMap<String, usize> = HashMap::new();
    let mut rest = body;
    loop {
        let name = string(&mut rest)?;
        if name.is_empty() {
            break;
        }
        let value = string(&mut rest)?;
        let name = text(name)?;
        if name.starts_with("_pq_.") {
            startup.protocol_options.push(name.to_owned());
            continue;
        }
        let value = if name.eq_ignore_ascii_case("application_name") {
            ascii(value)
        } else {
            text(value)?.to_owned()
        };
        if name == "replication" {
            let asked = if value == "database" { Some(true) } else { boolean(&value) };
            startup.replication = asked.ok_or_else(|| StartupError::Replication(value.clone()))?;
        }
        let key = if is_reserved(name) { name.to_owned() } else { format!("={}", name.to_ascii_lowercase()) };
        match known.get(&key) {
            Some(&at) => startup.params[at].1 = value,
            None => {
                known.insert(key, startup.params.len());
                startup.params.push((name.to_owned(), value));
            }
        }
    }
    if !rest.is_empty() {
        return Err(StartupError::Layout);
    }
    if startup.user().is_empty() {
        return Err(StartupError::NoUser);
    }
    Ok(startup)
}

/// A boolean as PostgreSQL reads it: its words, or as much of one as tells them apart
/// (`parse_bool_with_len` in `src/backend/utils/adt/bool.c`).
fn boolean(text: &str) -> Option<bool> {
    let words =
        [("true", true), ("false", false), ("yes", true), ("no", false), ("on", true), ("off", false)];
    let text = text.to_ascii_lowercase();
    match text.as_str() {
        "1" => Some(true),
        "0" => Some(false),
        "" | "o" => None,
        _ => words.iter().find(|(word, _)| word.starts_with(&text)).map(|(_, value)| *value),
    }
}

fn string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], StartupError> {
    let nul = memchr::memchr(0, rest).ok_or(StartupError::Layout)?;
    let (text, tail) = rest.split_at(nul);
    *rest = &tail[1..];
    Ok(text)
}

/// PostgreSQL takes these bytes as they are, in no stated encoding. We compare them with names from the
/// catalog, so that two spellings of one name cannot be told apart by nobody: UTF-8 or nothing.
fn text(bytes: &[u8]) -> Result<&str, StartupError> {
    std::str::from_utf8(bytes).map_err(|_| StartupError::Encoding)
}

/// `application_name` is for people to read, and a driver may send it in the encoding of its platform:
/// PostgreSQL 15 shows what is not printable ASCII as `?` (`pg_clean_ascii`).
fn ascii(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| if (32..127).contains(&byte) { char::from(byte) } else { '?' }).collect()
}
