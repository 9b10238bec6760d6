//! Requests that are sent twice are done once.
//!
//! The answer is kept for a day, sealed with a key made of the idempotency key itself, which is
//! not kept: an answer may hold a password that is told once, and only who sent the request can
//! ask for it again.

use aws_lc_rs::digest;
use zeroize::Zeroizing;

use super::{Caller, Store, StoreError};
use crate::vault::{self, Key};

/// How long an answer is kept.
const KEPT: &str = "24 hours";

/// A request that has not ended for this long was lost with its control plane.
const LOST: &str = "5 minutes";

/// What is known of a request.
pub(crate) enum Earlier {
    /// It is new, and is to be finished or forgotten by this.
    New(Claim),
    /// It was done: its status and its answer.
    Done(u16, Vec<u8>),
    /// It is under way.
    UnderWay,
    /// Another request was sent with this key.
    Other,
}

/// The right to do a request.
pub(crate) struct Claim {
    key: [u8; 32],
    seal: Key,
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

impl Store {
    /// Claims the request that `caller` sends with `key`; `request` is all that makes it what it is.
    ///
    /// # Errors
    /// If the catalog fails.
    pub(crate) async fn claim(
        &self,
        caller: &Caller,
        key: &str,
        request: &[&[u8]],
    ) -> Result<Earlier, StoreError> {
        let seal = Key::new(Zeroizing::new(hash(&[b"answer", caller.name.as_bytes(), key.as_bytes()])));
        let claim = Claim {
            key: hash(&[b"key", caller.method.as_bytes(), caller.name.as_bytes(), key.as_bytes()]),
            seal,
        };
        let request = hash(request);
        let client = self.client().await?;
        let sql = format!(
            "INSERT INTO idempotency AS i (key, request) VALUES ($1, $2)
             ON CONFLICT (key) DO UPDATE SET request = excluded.request, started_at = now(), status = NULL, answer = NULL
                WHERE i.started_at < now() - CASE WHEN i.status IS NULL THEN interval '{LOST}' ELSE interval '{KEPT}' END
             RETURNING true"
        );
        if client.query_opt(&sql, &[&claim.key.as_slice(), &request.as_slice()]).await?.is_some() {
            return Ok(Earlier::New(claim));
        }
        let sql = "SELECT request, status, answer FROM idempotency WHERE key = $1";
        let Some(row) = client.query_opt(sql, &[&claim.key.as_slice()]).await? else {
            // It failed just now and was forgotten: the client may send it again.
            return Ok(Earlier::UnderWay);
        };
        if row.get::<_, &[u8]>(0) != request {
            return Ok(Earlier::Other);
        }
        match (row.get::<_, Option<i32>>(1), row.get::<_, Option<&[u8]>>(2)) {
            (Some(status), Some(answer)) => {
                let status = u16::try_from(status).unwrap_or(500);
                let answer = vault::open(&claim.seal, b"idempotency", answer);
                Ok(answer.map_or(Earlier::Other, |answer| Earlier::Done(status, answer.to_vec())))
            }
            _ => Ok(Earlier::UnderWay),
        }
    }

    /// Keeps the answer.
    ///
    /// # Errors
    /// If the catalog fails.
    pub(crate) async fn finish(&self, claim: Claim, status: u16, answer: &[u8]) -> Result<(), StoreError> {
        let sealed = vault::seal(&claim.seal, b"idempotency", answer)?;
        let sql = "UPDATE idempotency SET status = $2, answer = $3 WHERE key = $1";
        self.client().await?.execute(sql, &[&claim.key.as_slice(), &i32::from(status), &sealed]).await?;
        Ok(())
    }

    /// Lets the request be sent again.
    ///
    /// # Errors
    /// If the catalog fails.
    pub(crate) async fn forget(&self, claim: Claim) -> Result<(), StoreError> {
        let sql = "DELETE FROM idempotency WHERE key = $1";
        self.client().await?.execute(sql, &[&claim.key.as_slice()]).await?;
        Ok(())
    }
}
