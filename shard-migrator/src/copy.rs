//! Rows of a snapshot, relayed from one shard to another without being parsed, and hashed on the way.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::MoveError;
use crate::inventory::Table;
use crate::scope::Scope;
use crate::sessions::Session;
use crate::shard::ShardAccess;
use crate::throttle::Throttle;

/// Signature, flags and length of the extension area. // src/backend/commands/copyto.c
const BINARY_HEADER: usize = 11 + 4 + 4;

/// Bytes that are put together before they are sent on.
const CHUNK: usize = 256 * 1024;

/// The sum of the hashes of a table's rows, in whatever order they come, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sum {
    /// Rows.
    pub rows: u64,
    /// Bytes, as they travel.
    pub bytes: u64,
    /// Sum of the rows' XXH3-128 hashes, modulo 2^128.
    #[serde(with = "hex")]
    pub hash: u128,
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &u128, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format!("{value:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u128, D::Error> {
        u128::from_str_radix(&String::deserialize(d)?, 16).map_err(D::Error::custom)
    }
}

impl Sum {
    /// Of these rows and those.
    pub(crate) fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
        self.hash = self.hash.wrapping_add(other.hash);
    }
}

/// Adds rows up as they pass.
struct Adder {
    sum: Sum,
    text: bool,
    header: bool,
}

impl Adder {
    fn new(text: bool) -> Self {
        Self { sum: Sum::default(), text, header: !text }
    }

    /// `data` is one message of the copy: a row, with the header in front of the first and the trailer in
    /// place of one behind the last.
    fn add(&mut self, data: &[u8]) -> Result<(), &'static str> {
        let mut rest = data;
        if self.header {
            rest = rest.get(BINARY_HEADER..).ok_or("the header of a copy is cut")?;
            self.header = false;
        }
        while !rest.is_empty() {
            let len =
                if self.text { rest.len() } else { binary_row(rest).ok_or("a row of a copy is cut")? };
            if len == 0 {
                return Ok(());
            }
            let (row, behind) = rest.split_at(len);
            self.sum.rows += 1;
            self.sum.bytes += row.len() as u64;
            self.sum.hash = self.sum.hash.wrapping_add(xxh3_128(row));
            rest = behind;
        }
        Ok(())
    }
}

/// Length of the row that `bytes` begins with; 0 for the trailer.
fn binary_row(bytes: &[u8]) -> Option<usize> {
    let fields = i16::from_be_bytes(*bytes.first_chunk()?);
    if fields < 0 {
        return Some(0);
    }
    let mut at = 2;
    for _ in 0..fields {
        let len = i32::from_be_bytes(*bytes.get(at..)?.first_chunk()?);
        at += 4 + usize::try_from(len).unwrap_or(0);
    }
    (at <= bytes.len()).then_some(at)
}

/// Rows and bytes of a table that have been on their way so far.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    pub(crate) rows: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

impl Passed {
    pub(crate) fn add(&self, rows: u64, bytes: usize) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The rows of a table that `filter` (` WHERE ...`, or nothing) leaves.
fn copy_out(table: &Table, filter: &str) -> String {
    let format = if table.as_text() { "text" } else { "binary" };
    format!(
        "COPY (SELECT {} FROM {}{filter}) TO STDOUT (FORMAT {format})",
        table.column_list(),
        table.quoted(),
    )
}

/// Copies the rows of a table that `filter` leaves. `from` and `to` are in transactions of the caller's; `passed` counts
/// rows and bytes.
pub(crate) async fn relay(
    (from, source): (&Session, &ShardAccess),
    (to, target): (&Session, &ShardAccess),
    (table, filter): (&Table, &str),
    passed: &Passed,
    throttle: &Throttle,
) -> Result<Sum, MoveError> {
    let format = if table.as_text() { "text" } else { "binary" };
    let copy_in = format!("COPY {} ({}) FROM STDIN (FORMAT {format})", table.quoted(), table.column_list());
    let mut rows = pin!(from.copy_out(&copy_out(table, filter)).await.map_err(source.failed())?);
    let copy_in = to.statement(&copy_in).await.map_err(target.failed())?;
    let mut sink = pin!(to.copy_in::<_, Bytes>(&copy_in).await.map_err(target.failed())?);
    let mut adder = Adder::new(table.as_text());
    let mut chunk = BytesMut::with_capacity(CHUNK);
    let mut counted = 0;
    while let Some(data) = rows.next().await {
        let data = data.map_err(source.failed())?;
        adder.add(&data).map_err(|reason| malformed(source, reason))?;
        chunk.extend_from_slice(&data);
        if chunk.len() >= CHUNK {
            passed.add(adder.sum.rows - counted, chunk.len());
            counted = adder.sum.rows;
            throttle.pass(chunk.len()).await;
            sink.send(chunk.split().freeze()).await.map_err(target.failed())?;
            chunk.reserve(CHUNK);
        }
    }
    passed.add(adder.sum.rows - counted, chunk.len());
    throttle.pass(chunk.len()).await;
    sink.send(chunk.freeze()).await.map_err(target.failed())?;
    let taken = sink.finish().await.map_err(target.failed())?;
    if taken != adder.sum.rows {
        let what = format!("{} rows of {} were sent and {taken} taken", adder.sum.rows, table.plain());
        return Err(MoveError::Differ(what));
    }
    Ok(adder.sum)
}

/// Adds up the tenant's rows of a table, as `from` sees them.
pub(crate) async fn add_up(
    from: &Session,
    at: &ShardAccess,
    table: &Table,
    scope: &Scope,
) -> Result<Sum, MoveError> {
    let mut rows = pin!(from.copy_out(&copy_out(table, &scope.filter())).await.map_err(at.failed())?);
    let mut adder = Adder::new(table.as_text());
    while let Some(data) = rows.next().await {
        adder.add(&data.map_err(at.failed())?).map_err(|reason| malformed(at, reason))?;
    }
    Ok(adder.sum)
}

fn malformed(at: &ShardAccess, reason: &str) -> MoveError {
    MoveError::Invalid(format!("shard {}: {reason}", at.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[&[u8]]) -> Vec<u8> {
        let mut out = (values.len() as i16).to_be_bytes().to_vec();
        for value in values {
            out.extend((value.len() as i32).to_be_bytes());
            out.extend(*value);
        }
        out
    }

    #[test]
    fn sums_do_not_depend_on_the_order_and_see_every_byte() {
        let of = |rows: &[Vec<u8>]| {
            let mut adder = Adder::new(false);
            let mut first = vec![0; BINARY_HEADER];
            first.extend(&rows[0]);
            adder.add(&first).unwrap();
            rows[1..].iter().for_each(|r| adder.add(r).unwrap());
            adder.add(&[0xff, 0xff]).unwrap();
            adder.sum
        };
        let (a, b, c) = (row(&[b"1", b"x"]), row(&[b"2", b""]), row(&[b"2", b"y"]));
        assert_eq!(of(&[a.clone(), b.clone()]), of(&[b.clone(), a.clone()]));
        assert_ne!(of(&[a.clone(), b]).hash, of(&[a, c]).hash);
    }

    #[test]
    fn a_row_that_is_cut_is_noticed() {
        let r = row(&[b"abc"]);
        assert_eq!(binary_row(&r), Some(r.len()));
        assert_eq!(binary_row(&r[..r.len() - 1]), None);
    }
}
