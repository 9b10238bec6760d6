//! What the shard reports to a session at login: ParameterStatus for its own startup parameters.
//!
//! What the shard says without any is remembered from the pool's last login. A session that asks
//! for more has its wishes tried once on a connection; who asks for the same later is told the same.
//!
//! In session pooling the client gets its server connection here, ready for it: it is told that
//! server's process id.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use switchyard_config::TenantId;
use switchyard_wire::build::{self, BuildError};
use switchyard_wire::error::{ErrorResponse, SqlState, sqlstate};
use switchyard_wire::frame::{self, backend};
use switchyard_wire::message;

use crate::context::{self, HandoverError, Wish, Wishes};
use crate::pool::{Lend, Pool, PoolError, Want};
use crate::seal::{SealError, Sealed};
use crate::server::Server;
use crate::session::Seat;

/// Names and values, as they stand in ParameterStatus.
type Parameters = Vec<(Vec<u8>, Vec<u8>)>;

/// Longest `application_name`, in bytes. // NAMEDATALEN - 1, src/include/pg_config_manual.h
const NAME_BYTES: usize = 63;

/// Connections that are tried before a login fails.
const ATTEMPTS: usize = 3;

/// How long a connection may take to set what a session asks for.
const TRY_OUT: Duration = Duration::from_secs(10);

/// So long before its deadline a login that waits for a connection is told that there is none.
const TO_SAY_SO: Duration = Duration::from_millis(500);

/// Why wishes could not be tried out.
enum Failed {
    /// The shard does not grant them.
    Refused(ErrorResponse),
    /// The connection was lost.
    Lost,
}

/// What is reported to one session: the shard's own parameters, some of them replaced.
pub(crate) struct Reported {
    base: Arc<Parameters>,
    instead: Parameters,
}

impl Reported {
    /// Appends a ParameterStatus for each.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<(), BuildError> {
        let replaced = |name: &[u8]| self.instead.iter().any(|(n, _)| n == name);
        for (name, value) in self.base.iter().filter(|(name, _)| !replaced(name)).chain(&self.instead) {
            build::parameter_status(out, name, value)?;
        }
        Ok(())
    }
}

/// The parameters to report to a session with these wishes.
///
/// # Errors
/// The shard's own error for a wish that it does not grant, or that the shard is not available.
pub(crate) async fn parameters(
    seat: &Seat,
    wishes: &Arc<Wishes>,
    worker: usize,
) -> Result<Reported, ErrorResponse> {
    let base = match seat.pool.parameters(&seat.context.route) {
        Some(base) => base,
        None => {
            let server = borrow(seat, wishes, worker, None).await?;
            seat.pool.give_back(server);
            seat.pool.parameters(&seat.context.route).unwrap_or_default()
        }
    };
    let plain = wishes.values.iter().all(|(name, wish)| is_plain(&base, name, wish));
    if plain {
        // The one that nearly everybody sends, and that is never refused.
        let name = match wishes.values.get("application_name") {
            Some(Wish::Value(name)) => Some((b"application_name".to_vec(), clean_name(name).into_bytes())),
            _ => None,
        };
        return Ok(Reported { base, instead: name.into_iter().collect() });
    }
    for _ in 0..attempts(seat) {
        if wishes.reported.get().is_some() {
            break;
        }
        let mut server = borrow(seat, wishes, worker, None).await?;
        // Somebody else may have been faster.
        if wishes.reported.get().is_none() {
            match tokio::time::timeout(time_to_try(seat), try_out(&mut server, seat, wishes)).await {
                Ok(Ok(reported)) => drop(wishes.reported.set(reported)),
                Ok(Err(Failed::Refused(error))) => {
                    server.broken = true;
                    seat.pool.give_back(server);
                    return Err(error);
                }
                // It was about to end. Nothing of the client has run on it.
                Ok(Err(Failed::Lost)) | Err(_) => server.broken = true,
            }
        }
        seat.pool.give_back(server);
    }
    if wishes.reported.get().is_none() {
        return Err(unavailable());
    }
    Ok(Reported { base, instead: wishes.reported.get().cloned().unwrap_or_default() })
}

/// Whether this error says that the seat's shard is not there, and not what is wrong with the login. // 57P..: it is about to end
pub(crate) fn is_absence(error: &ErrorResponse) -> bool {
    error.code == sqlstate::SQLCLIENT_UNABLE || error.code.0.starts_with(b"57P")
}

/// How often a login is tried out: on a standby once, if the primary serves as well.
fn attempts(seat: &Seat) -> usize {
    if seat.may_do_without_standbys() { 1 } else { ATTEMPTS }
}

/// How long that may take.
fn time_to_try(seat: &Seat) -> Duration {
    match seat.may_do_without_standbys() {
        true => TRY_OUT.min(seat.pool.shard.pool.connect_timeout),
        false => TRY_OUT,
    }
}

/// Whether the seat's pool has reported what it is like, or does so now.
pub(crate) async fn is_there(seat: &Seat, worker: usize) -> bool {
    if seat.pool.parameters(&seat.context.route).is_some() {
        return true;
    }
    let Ok(server) = borrow(seat, &Wishes::default(), worker, None).await else { return false };
    seat.pool.give_back(server);
    true
}

/// A connection for a session that keeps it, with the context and the wishes set, and what it reports.
///
/// # Errors
/// The shard's own error for a wish that it does not grant, or that there is no connection.
pub(crate) async fn keep(
    seat: &Seat,
    wishes: &Arc<Wishes>,
    worker: usize,
    keeper: Keeper<'_>,
) -> Result<(Reported, Kept), ErrorResponse> {
    for _ in 0..attempts(seat) {
        let mut server = borrow(seat, wishes, worker, Some(keeper)).await?;
        if seat.context.sealed.is_some() && server.seal.is_none() {
            // Made before there were keys or a schema, or the shard still lacks them.
            server.broken = true;
            seat.pool.give_back(server);
            continue;
        }
        let tried = tokio::time::timeout(time_to_try(seat), try_out(&mut server, seat, wishes)).await;
        server.broken = !matches!(tried, Ok(Ok(_)));
        server.carried.session = keeper.session;
        let kept = Kept { pool: seat.pool.clone(), server: Some(server) };
        match tried {
            Ok(Ok(instead)) => {
                let base = seat.pool.parameters(&seat.context.route).unwrap_or_default();
                return Ok((Reported { base, instead }, kept));
            }
            Ok(Err(Failed::Refused(error))) => return Err(error),
            // It was about to end. Nothing of the client has run on it.
            Ok(Err(Failed::Lost)) | Err(_) => {}
        }
    }
    match seat.context.sealed {
        Some(_) => Err(SealError::NoPlace.for_client()),
        None => Err(unavailable()),
    }
}

/// The session that a connection is for.
#[derive(Clone, Copy)]
pub(crate) struct Keeper<'k> {
    /// Its number.
    pub(crate) session: u64,
    /// Its tenant.
    pub(crate) tenant: &'k TenantId,
    /// When it must be ready.
    pub(crate) deadline: tokio::time::Instant,
}

/// A connection for a session that has not begun. It goes back if the session does not begin.
pub(crate) struct Kept {
    pool: Arc<Pool>,
    server: Option<Box<Server>>,
}

impl Kept {
    /// The process id of the server.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(|server| server.identity.pid)
    }

    /// The connection. From here on whoever has it gives it back.
    pub(crate) fn take(mut self) -> Option<Box<Server>> {
        self.server.take()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.pool.give_back(server);
        }
    }
}

fn is_plain(base: &Parameters, name: &str, wish: &Wish) -> bool {
    let Wish::Value(value) = wish else { return false };
    match name {
        "application_name" => true,
        "client_encoding" => {
            base.iter().any(|(n, v)| n == b"client_encoding" && same_encoding(v, value.as_bytes()))
        }
        _ => false,
    }
}

/// Encoding names are compared without case and punctuation. // src/common/encnames.c clean_encoding_name
fn same_encoding(a: &[u8], b: &[u8]) -> bool {
    let clean = |name: &[u8]| -> Vec<u8> {
        let name: Vec<u8> =
            name.iter().filter(|b| b.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase).collect();
        if name == b"unicode" { b"utf8".to_vec() } else { name }
    };
    clean(a) == clean(b)
}

/// As PostgreSQL 15 shows it: cut, and without what is not printable ASCII.
fn clean_name(name: &str) -> String {
    let mut end = name.len().min(NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].bytes().map(|b| if (32..=126).contains(&b) { char::from(b) } else { '?' }).collect()
}

fn overlay(parameters: &mut Parameters, name: &[u8], value: &[u8]) {
    match parameters.iter_mut().find(|(n, _)| n == name) {
        Some((_, v)) => *v = value.to_vec(),
        None => parameters.push((name.to_vec(), value.to_vec())),
    }
}

fn unavailable() -> ErrorResponse {
    ErrorResponse::fatal(sqlstate::SQLCLIENT_UNABLE, "the tenant's shard is not available")
        .hint("Try again in a moment; the router's log has the cause.")
}

async fn borrow(
    seat: &Seat,
    wishes: &Wishes,
    worker: usize,
    keeper: Option<Keeper<'_>>,
) -> Result<Box<Server>, ErrorResponse> {
    let shard = seat.pool.shard.name.as_str();
    let want = Want {
        route: &seat.context.route,
        context: seat.context.id,
        share: seat.share,
        wishes: wishes.id,
        session: keeper.map_or(0, |keeper| keeper.session),
        worker,
        now: std::time::Instant::now(),
        tenant: keeper.map(|keeper| keeper.tenant),
    };
    let until = tokio::time::Instant::now() + seat.pool.shard.pool.queue_timeout;
    let until = keeper.map_or(until, |keeper| until.min(keeper.deadline - TO_SAY_SO));
    let lent = match seat.pool.lend(&want) {
        Lend::Now(server) => Ok(server),
        Lend::Never(error) => Err(error),
        Lend::Later(answer) => match tokio::time::timeout_at(until, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(PoolError::Closed),
            Err(_) => {
                return Err(ErrorResponse::fatal(
                    sqlstate::TOO_MANY_CONNECTIONS,
                    "no server connection became free in time",
                )
                .hint(
                    "All connections of the tenant's shard are busy; try again, or make its pool larger.",
                ));
            }
        },
    };
    let mut server = lent.map_err(|error| match error {
        PoolError::Connect(error) => error.for_client(shard),
        PoolError::Closed => unavailable(),
    })?;
    if server.home != worker {
        match server.stream.adopt() {
            Ok(stream) => {
                server.stream = stream;
                server.home = worker;
            }
            Err(_) => return Err(unavailable()),
        }
    }
    Ok(server)
}

/// Sets the wishes on a clean connection and listens to what the shard reports.
async fn try_out(server: &mut Server, seat: &Seat, wishes: &Arc<Wishes>) -> Result<Parameters, Failed> {
    // Parameters are reported when they change: begin from where nothing is set.
    server.carried.dirty |= server.carried.context != 0;
    server.carried.session = 0;
    let mut out = Vec::new();
    let seal = &mut server.seal;
    let mut mint = |sealed: &Sealed| seat.pool.sealer.mint(seal.as_mut(), sealed);
    let made = context::handover(&mut out, &server.carried, u64::MAX, &seat.context, wishes, &mut mint, None);
    let (kind, mut prefix) = made.map_err(|error| match error {
        HandoverError::Build(_) => {
            let text = "invalid startup parameter";
            Failed::Refused(ErrorResponse::fatal(sqlstate::INVALID_PARAMETER_VALUE, text))
        }
        HandoverError::Seal(error) => Failed::Refused(error.for_client()),
    })?;
    // Without it the shard would keep its replies to itself.
    build::sync(&mut out);
    prefix.readies += 1;
    if kind == context::Handover::Clean {
        server.was_cleaned();
    }
    server.carried.context = seat.context.id;
    server.carried.wishes = wishes.clone();
    server.carried.lost = false;
    server.carried.dirty = false;
    server.unnamed_of = crate::server::UNNAMED_OF_NOBODY;
    server.stream.write_all(&out).await.map_err(|_| Failed::Lost)?;
    let mut reported = Parameters::new();
    let mut held = Vec::new();
    while prefix.is_pending() {
        let mut chunk = [0; 4096];
        let n = std::future::poll_fn(|cx| match server.stream.poll_read(cx, &mut chunk) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(std::io::ErrorKind::UnexpectedEof.into())),
            other => other,
        })
        .await
        .map_err(|_| Failed::Lost)?;
        held.extend_from_slice(&chunk[..n]);
        if held.len() > 1 << 20 {
            return Err(Failed::Lost);
        }
        let mut at = 0;
        while let Some(header) = frame::header(&held[at..]).map_err(|_| Failed::Lost)? {
            if at + header.len > held.len() {
                break;
            }
            let body = &held[at + frame::HEADER..at + header.len];
            match header.tag {
                backend::PARAMETER_STATUS => {
                    if let Ok((name, value)) = message::parameter_status(body) {
                        overlay(&mut reported, name, value);
                    }
                }
                backend::ERROR => return Err(refusal(body)),
                tag if prefix.got(tag, body) => {}
                _ => return Err(Failed::Lost),
            }
            at += header.len;
        }
        held.drain(..at);
    }
    if held.is_empty() { Ok(reported) } else { Err(Failed::Lost) }
}

/// The shard's error as it would stand at the end of a login.
fn refusal(body: &[u8]) -> Failed {
    let Ok(fields) = message::ErrorFields::parse(body) else { return Failed::Lost };
    if fields.severity() != Some(b"ERROR") {
        return Failed::Lost;
    }
    let text = |f: Option<&[u8]>| f.map(|t| String::from_utf8_lossy(t).into_owned());
    let code = fields.code().and_then(|c| <[u8; 5]>::try_from(c).ok()).unwrap_or(*b"XX000");
    let mut error = ErrorResponse::fatal(SqlState(code), text(fields.message()).unwrap_or_default());
    error.detail = text(fields.detail());
    error.hint = text(fields.hint());
    Failed::Refused(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_postgresql_shows_them() {
        assert_eq!(clean_name("psql"), "psql");
        assert_eq!(clean_name("a\tü"), "a???");
        assert_eq!(clean_name(&"x".repeat(100)).len(), 63);
    }

    #[test]
    fn encodings() {
        assert!(same_encoding(b"UTF8", b"utf-8"));
        assert!(same_encoding(b"UTF8", b"Unicode"));
        assert!(!same_encoding(b"UTF8", b"LATIN1"));
    }
}
