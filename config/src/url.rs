//! `postgres://` URLs of shards.

use std::net::Ipv6Addr;
use std::path::PathBuf;

use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::ids::ShardName;
use crate::topology::{Endpoint, PoolLimits, ServerLogin, ServerSecret, ServerTls, Shard, SslMode};

/// PostgreSQL's port (`DEF_PGPORT`).
const DEFAULT_PORT: u16 = 5432;

/// Query parameters that are understood.
const PARAMETERS: [&str; 9] =
    ["dbname", "host", "password", "port", "sslcert", "sslkey", "sslmode", "sslrootcert", "user"];

/// Why a URL was refused. Holds nothing of the URL but names that are known beforehand, since a
/// misplaced character can make a part of the password look like anything else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme, or none.
    #[error("must begin with postgres:// or postgresql://")]
    Scheme,
    /// `%` without two hexadecimal digits, or escapes that make no UTF-8.
    #[error("has a % in the {0} that is no escape for UTF-8 text; write %25 for % itself")]
    Escape(&'static str),
    /// A control character, given or escaped.
    #[error("must not contain control characters, but does in the {0}")]
    Control(&'static str),
    /// No user.
    #[error("must name the user: postgres://user@host/database")]
    NoUser,
    /// No host, neither in its place nor as a parameter.
    #[error("must name the host: postgres://user@host/database, or ?host=/directory for a unix socket")]
    NoHost,
    /// Several hosts where there can be one.
    #[error("must name several hosts in their place: postgres://user@host1:5432,host2:5432/database")]
    Hosts,
    /// No host name, address or directory.
    #[error(
        "has a host that is no name, address or absolute directory; write %40, %2F, %3F, %23 for @ / ? # in a password"
    )]
    Host,
    /// No port number.
    #[error(
        "has a port that is not a number from 1 to 65535; write %40, %2F, %3F, %23 for @ / ? # in a password"
    )]
    Port,
    /// A parameter that is not understood.
    #[error(
        "has a parameter that is not known; known are dbname, host, password, port, sslcert, sslkey, sslmode, sslrootcert and user"
    )]
    Parameter,
    /// The same thing said twice.
    #[error("gives the {0} twice")]
    Twice(&'static str),
    /// Not one of libpq's words.
    #[error("sslmode must be one of disable, allow, prefer, require, verify-ca and verify-full")]
    SslMode,
    /// One without the other.
    #[error("sslcert and sslkey must be given together")]
    CertWithoutKey,
    /// As in libpq: every site has a certificate of some public authority.
    #[error("sslrootcert=system needs sslmode=verify-full")]
    SystemRoots,
}

/// Most hosts of a shard.
pub const MAX_HOSTS: usize = 16;

/// What has been read so far; each part at most once.
#[derive(Default)]
struct Parts {
    user: Option<String>,
    password: Option<SecretString>,
    host: Option<String>,
    port: Option<u16>,
    others: Vec<Endpoint>,
    database: Option<String>,
    mode: Option<SslMode>,
    root_cert: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

/// Reads the URL of a shard, with libpq's parameter names and defaults where it has them:
/// port 5432, the database named like the user, `sslmode=prefer`. User and host must be given.
///
/// The host may be an address (IPv6 in brackets) or the directory of a unix socket, percent-encoded
/// in its place or as `?host=/directory`; on a unix socket `sslmode` is ignored, as in libpq, and
/// comes back as `disable`. Paths of certificates are returned as given. The pool has its defaults.
///
/// # Errors
/// If the URL is malformed, ambiguous or uses parameters that are not understood.
pub fn shard_from_url(name: &ShardName, url: &str) -> Result<Shard, UrlError> {
    let parts = read(url)?;
    let user = parts.user.ok_or(UrlError::NoUser)?;
    let host = parts.host.ok_or(UrlError::NoHost)?;
    if parts.cert.is_some() != parts.key.is_some() {
        return Err(UrlError::CertWithoutKey);
    }
    let mode = parts.mode.unwrap_or_default();
    let mut root_cert = parts.root_cert;
    if root_cert.as_deref() == Some("system") {
        if mode != SslMode::VerifyFull {
            return Err(UrlError::SystemRoots);
        }
        root_cert = None;
    }
    let mode = if host.starts_with('/') { SslMode::Disable } else { mode };
    Ok(Shard {
        name: name.clone(),
        host,
        port: parts.port.unwrap_or(DEFAULT_PORT),
        other_hosts: parts.others,
        database: parts.database.unwrap_or_else(|| user.clone()),
        login: ServerLogin {
            user,
            secret: parts.password.map_or(ServerSecret::None, ServerSecret::Password),
        },
        tls: ServerTls {
            mode,
            root_cert: root_cert.map(PathBuf::from),
            cert: parts.cert.map(PathBuf::from),
            key: parts.key.map(PathBuf::from),
        },
        pool: PoolLimits::default(),
        cordoned: false,
    })
}

fn read(url: &str) -> Result<Parts, UrlError> {
    let rest =
        ["postgres://", "postgresql://"].iter().find_map(|s| url.strip_prefix(s)).ok_or(UrlError::Scheme)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, server) = authority.split_once('@').unwrap_or(("", authority));
    let mut parts = Parts::default();
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (login, None),
    };
    once(&mut parts.user, "user", decoded(user, "user")?)?;
    if let Some(password) = password.filter(|p| !p.is_empty()) {
        parts.password = Some(secret(password)?);
    }
    server_of(&mut parts, server)?;
    once(&mut parts.database, "database", decoded(database, "database")?)?;
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        parameter(&mut parts, pair)?;
    }
    Ok(parts)
}

fn server_of(parts: &mut Parts, server: &str) -> Result<(), UrlError> {
    if let Some((first, others)) = server.split_once(',') {
        server_of(parts, first)?;
        if parts.host.is_none() || others.split(',').count() >= MAX_HOSTS {
            return Err(UrlError::Host);
        }
        for other in others.split(',') {
            let mut one = Parts::default();
            server_of(&mut one, other)?;
            let (host, port) = (one.host.ok_or(UrlError::Host)?, one.port.unwrap_or(DEFAULT_PORT));
            parts.others.push(Endpoint { host, port });
        }
        return Ok(());
    }
    let (host, port) = if let Some(rest) = server.strip_prefix('[') {
        let (address, after) = rest.split_once(']').ok_or(UrlError::Host)?;
        address.parse::<Ipv6Addr>().map_err(|_| UrlError::Host)?;
        let port = if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or(UrlError::Host)?) };
        (address, port)
    } else {
        match server.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (server, None),
        }
    };
    if !host.is_empty() {
        parts.host = Some(checked_host(decoded(host, "host")?)?);
    }
    // An empty port is the default one, as in libpq.
    if let Some(port) = port.filter(|p| !p.is_empty()) {
        parts.port = Some(port_number(port)?);
    }
    Ok(())
}

fn checked_host(host: String) -> Result<String, UrlError> {
    if host.contains(',') {
        return Err(UrlError::Hosts);
    }
    let name = |h: &str| h.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if host.starts_with('/') || name(&host) || host.parse::<Ipv6Addr>().is_ok() {
        Ok(host)
    } else {
        Err(UrlError::Host)
    }
}

fn port_number(port: &str) -> Result<u16, UrlError> {
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    port.parse().ok().filter(|p| digits && *p > 0).ok_or(UrlError::Port)
}

fn parameter(parts: &mut Parts, pair: &str) -> Result<(), UrlError> {
    let (name, value) = pair.split_once('=').ok_or(UrlError::Parameter)?;
    let name = PARAMETERS.into_iter().find(|p| *p == name).ok_or(UrlError::Parameter)?;
    if name == "password" {
        return match parts.password.replace(secret(value)?) {
            None => Ok(()),
            Some(_) => Err(UrlError::Twice(name)),
        };
    }
    let value = decoded(value, name)?;
    match name {
        "user" => once(&mut parts.user, name, value),
        "dbname" => once(&mut parts.database, "database", value),
        "host" => once(&mut parts.host, name, checked_host(value)?),
        "port" => {
            let port = port_number(&value)?;
            if parts.port.replace(port).is_some() { Err(UrlError::Twice(name)) } else { Ok(()) }
        }
        "sslmode" => {
            let mode = sslmode(&value)?;
            if parts.mode.replace(mode).is_some() { Err(UrlError::Twice(name)) } else { Ok(()) }
        }
        "sslrootcert" => once(&mut parts.root_cert, name, value),
        "sslcert" => once(&mut parts.cert, name, value),
        _ => once(&mut parts.key, name, value),
    }
}

/// Keeps `value` unless it is empty, which in a URL is the same as absent.
fn once(into: &mut Option<String>, what: &'static str, value: String) -> Result<(), UrlError> {
    if value.is_empty() {
        return Ok(());
    }
    if into.replace(value).is_some() { Err(UrlError::Twice(what)) } else { Ok(()) }
}

fn sslmode(text: &str) -> Result<SslMode, UrlError> {
    match text {
        "disable" => Ok(SslMode::Disable),
        "allow" => Ok(SslMode::Allow),
        "prefer" => Ok(SslMode::Prefer),
        "require" => Ok(SslMode::Require),
        "verify-ca" => Ok(SslMode::VerifyCa),
        "verify-full" => Ok(SslMode::VerifyFull),
        _ => Err(UrlError::SslMode),
    }
}

fn secret(text: &str) -> Result<SecretString, UrlError> {
    let decoded = Zeroizing::new(decoded(text, "password")?);
    Ok(SecretString::from(decoded.as_str()))
}

fn decoded(text: &str, what: &'static str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |i: usize| after.get(i).and_then(|b| char::from(*b).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else { return Err(UrlError::Escape(what)) };
        bytes.push((high * 16 + low) as u8);
        rest = &after[2..];
    }
    let text = String::from_utf8(bytes).map_err(|_| UrlError::Escape(what))?;
    if text.chars().any(char::is_control) { Err(UrlError::Control(what)) } else { Ok(text) }
}

#[cfg(test)]
mod tests;
