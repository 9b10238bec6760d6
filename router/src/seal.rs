//! Tokens by which a shard knows that a tenant's context was set by a router.
//!
//! A token says which tenant at which epoch, for which server process, and until when, under an HMAC that
//! only routers and the shard's owner can make. It carries a number that rises with each token made for a
//! connection; the shard takes each number once, so that a token is worth nothing to who sees it later, on
//! the same connection or another. It travels as a parameter of Bind, never in SQL text.
//!
//! The shard's side is `control-plane/shard-schema/sql/functions.sql`.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use aws_lc_rs::hmac;
use switchyard_config::TenantId;
use switchyard_config::settings::SealSettings;
use switchyard_wire::error::{ErrorResponse, sqlstate};

/// Where the shard keeps the tenant, in one of its forms: nothing that a session can have set.
pub(crate) const PARAMETER: &str = "backtrace_functions";

/// What a sealed context says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// The tenant's bytes in hexadecimal: any id, in any client encoding.
    tenant: Box<str>,
    epoch: u64,
}

impl Sealed {
    pub(crate) fn new(tenant: &TenantId, epoch: u64) -> Self {
        Self { tenant: hex(tenant.as_str().as_bytes()).into(), epoch }
    }
}

/// A connection's place in its shard's list of server processes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServerSeal {
    slot: u32,
    /// New for each connection, so that a token for another that had the same place is void.
    nonce: u64,
    /// The server process as it knows itself, whatever stands between.
    pid: u32,
    /// The number of the last token made for this place.
    used: u64,
}

impl ServerSeal {
    /// Reads a row of slot, nonce, pid and number of the last token, as text.
    pub(crate) fn from_row(body: &[u8]) -> Option<Self> {
        let mut rest = body.strip_prefix(&[0, 4])?;
        let mut column = || -> Option<u64> {
            let (len, tail) = rest.split_first_chunk::<4>()?;
            let (text, tail) = tail.split_at_checked(usize::try_from(i32::from_be_bytes(*len)).ok()?)?;
            rest = tail;
            std::str::from_utf8(text).ok()?.parse().ok()
        };
        let (slot, nonce, pid, used) = (column()?, column()?, column()?, column()?);
        Some(Self { slot: slot.try_into().ok()?, nonce, pid: pid.try_into().ok()?, used })
    }
}

/// Why there is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    /// The router has no key.
    #[error("the context is sealed, and the router has no key")]
    NoKey,
    /// The connection has no place on its shard.
    #[error("the context is sealed, and the shard does not take tokens on this connection")]
    NoPlace,
    /// The clock is before 1970.
    #[error("the clock is wrong")]
    Clock,
}

impl SealError {
    /// What a client is told.
    pub(crate) fn for_client(self) -> ErrorResponse {
        ErrorResponse::fatal(sqlstate::SYSTEM_ERROR, "the context of this tenant could not be sealed")
            .hint("The router's log has the cause; `switchyard doctor` may tell what is missing.")
    }
}

struct Signer {
    kid: u32,
    key: hmac::Key,
    lifetime: Duration,
}

/// Makes tokens with the key of the day.
#[derive(Default)]
pub(crate) struct Sealer {
    signer: ArcSwapOption<Signer>,
}

impl Sealer {
    /// Takes over new keys, of which the first signs.
    pub(crate) fn replace(&self, settings: Option<&SealSettings>) {
        let signer = settings.and_then(|s| {
            let first = s.keys.first()?;
            let key = hmac::Key::new(hmac::HMAC_SHA256, first.secret.as_slice());
            Some(Arc::new(Signer { kid: first.kid, key, lifetime: s.token_lifetime }))
        });
        self.signer.store(signer);
    }

    /// Whether there is a key.
    pub(crate) fn is_ready(&self) -> bool {
        self.signer.load().is_some()
    }

    /// A token for one use on the connection of `place`.
    pub(crate) fn mint(&self, place: Option<&mut ServerSeal>, what: &Sealed) -> Result<String, SealError> {
        let signer = self.signer.load();
        let signer = signer.as_ref().ok_or(SealError::NoKey)?;
        let place = place.ok_or(SealError::NoPlace)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| SealError::Clock)?;
        place.used += 1;
        let claims = format!(
            "{}.{}.{}.{}.{}.{}.{}.{}",
            signer.kid,
            place.pid,
            place.slot,
            place.nonce,
            place.used,
            what.epoch,
            (now + signer.lifetime).as_secs(),
            what.tenant
        );
        let tag = hmac::sign(&signer.key, claims.as_bytes());
        Ok(hex(tag.as_ref()) + "." + &claims)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use switchyard_config::seal::parse_seal_keys;

    use super::*;

    fn sealer() -> Sealer {
        let keys = parse_seal_keys(&format!("3 {}\n1 {}", "01".repeat(32), "02".repeat(32))).unwrap();
        let sealer = Sealer::default();
        sealer.replace(Some(&SealSettings { keys, token_lifetime: Duration::from_secs(60) }));
        sealer
    }

    #[test]
    fn a_token_says_what_the_shard_checks() {
        let row = b"\0\x04\0\0\0\x015\0\0\0\x03777\0\0\0\x0212\0\0\0\x016";
        let mut place = ServerSeal::from_row(row).unwrap();
        assert_eq!(place, ServerSeal { slot: 5, nonce: 777, pid: 12, used: 6 });
        let what = Sealed::new(&TenantId::new("ü1").unwrap(), 9);
        let (one, two) = (sealer().mint(Some(&mut place), &what), sealer().mint(Some(&mut place), &what));
        let (one, two) = (one.unwrap(), two.unwrap());
        let fields: Vec<&str> = one.split('.').collect();
        assert_eq!(fields[0].len(), 64);
        assert_eq!(fields[1..7], ["3", "12", "5", "777", "7", "9"]);
        assert_eq!(fields[8], "c3bc31");
        assert_eq!(two.split('.').nth(5), Some("8"));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
        assert_eq!(hex(hmac::sign(&key, &one.as_bytes()[65..]).as_ref()), fields[0]);
    }

    #[test]
    fn without_key_or_place_there_is_none() {
        let what = Sealed::new(&TenantId::new("a").unwrap(), 1);
        assert_eq!(sealer().mint(None, &what), Err(SealError::NoPlace));
        let mut place = ServerSeal { slot: 1, nonce: 1, pid: 1, used: 0 };
        assert_eq!(Sealer::default().mint(Some(&mut place), &what), Err(SealError::NoKey));
        assert_eq!(place.used, 0);
    }

    #[test]
    fn rows_of_another_form_are_no_place() {
        for row in
            [&b""[..], b"\0\x02", b"\0\x04\0\0\0\x015", b"\0\x04\xff\xff\xff\xff", b"\0\x04\0\0\0\x09x"]
        {
            assert_eq!(ServerSeal::from_row(row), None);
        }
    }
}
