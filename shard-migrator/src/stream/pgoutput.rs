//! The messages of `pgoutput`, protocol version 1 (`src/backend/replication/logical/proto.c`).

use bytes::{Buf, Bytes};

/// A value of a row in text form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// NULL.
    Null,
    /// Not sent, because it is stored out of line and has not changed.
    Unchanged,
    /// As its type writes it.
    Text(Bytes),
}

/// The values of a row, in the order of the relation's columns.
pub(crate) type Row = Vec<Value>;

/// A table as the stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// Names, and whether the column is part of the replica identity.
    pub(crate) columns: Vec<(String, bool)>,
}

/// What happened to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Insert {
        new: Row,
    },
    /// `old` is there if the key has changed, or the whole old row is sent.
    Update {
        old: Option<Row>,
        new: Row,
    },
    Delete {
        old: Row,
    },
}

/// A message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Begin {
        xid: u32,
    },
    Commit {
        end: u64,
    },
    Relation(Relation),
    Row {
        oid: u32,
        change: Change,
    },
    Truncate {
        oids: Vec<u32>,
    },
    /// Anything that needs no action.
    Other,
}

/// The message is not what the protocol says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads one message.
pub(crate) fn parse(mut b: Bytes) -> Result<Message, Malformed> {
    let message = match u8(&mut b)? {
        b'B' => {
            let _final = u64(&mut b)?;
            let _at = u64(&mut b)?;
            Message::Begin { xid: u32(&mut b)? }
        }
        b'C' => {
            let _flags = u8(&mut b)?;
            let _at = u64(&mut b)?;
            Message::Commit { end: u64(&mut b)? }
        }
        b'R' => Message::Relation(relation(&mut b)?),
        b'I' => {
            let oid = u32(&mut b)?;
            expect(&mut b, b'N')?;
            Message::Row { oid, change: Change::Insert { new: row(&mut b)? } }
        }
        b'U' => {
            let oid = u32(&mut b)?;
            let old = match u8(&mut b)? {
                b'N' => None,
                b'K' | b'O' => {
                    let old = row(&mut b)?;
                    expect(&mut b, b'N')?;
                    Some(old)
                }
                _ => return Err(Malformed),
            };
            Message::Row { oid, change: Change::Update { old, new: row(&mut b)? } }
        }
        b'D' => {
            let oid = u32(&mut b)?;
            match u8(&mut b)? {
                b'K' | b'O' => Message::Row { oid, change: Change::Delete { old: row(&mut b)? } },
                _ => return Err(Malformed),
            }
        }
        b'T' => {
            let count = u32(&mut b)?;
            let _flags = u8(&mut b)?;
            let oids = (0..count).map(|_| u32(&mut b)).collect::<Result<_, _>>()?;
            Message::Truncate { oids }
        }
        _ => Message::Other,
    };
    Ok(message)
}

fn relation(b: &mut Bytes) -> Result<Relation, Malformed> {
    let oid = u32(b)?;
    let schema = string(b)?;
    let name = string(b)?;
    let _identity = u8(b)?;
    let columns = (0..u16(b)?)
        .map(|_| {
            let key = u8(b)? & 1 == 1;
            let name = string(b)?;
            let _type = u32(b)?;
            let _modifier = u32(b)?;
            Ok((name, key))
        })
        .collect::<Result<_, _>>()?;
    // An empty name stands for pg_catalog.
    let schema = if schema.is_empty() { "pg_catalog".to_owned() } else { schema };
    Ok(Relation { oid, schema, name, columns })
}

fn row(b: &mut Bytes) -> Result<Row, Malformed> {
    (0..u16(b)?)
        .map(|_| match u8(b)? {
            b'n' => Ok(Value::Null),
            b'u' => Ok(Value::Unchanged),
            b't' => {
                let len = u32(b)? as usize;
                if b.len() < len { Err(Malformed) } else { Ok(Value::Text(b.split_to(len))) }
            }
            _ => Err(Malformed),
        })
        .collect()
}

fn expect(b: &mut Bytes, what: u8) -> Result<(), Malformed> {
    if u8(b)? == what { Ok(()) } else { Err(Malformed) }
}

fn u8(b: &mut Bytes) -> Result<u8, Malformed> {
    if b.is_empty() { Err(Malformed) } else { Ok(b.get_u8()) }
}

fn u16(b: &mut Bytes) -> Result<u16, Malformed> {
    if b.len() < 2 { Err(Malformed) } else { Ok(b.get_u16()) }
}

fn u32(b: &mut Bytes) -> Result<u32, Malformed> {
    if b.len() < 4 { Err(Malformed) } else { Ok(b.get_u32()) }
}

fn u64(b: &mut Bytes) -> Result<u64, Malformed> {
    if b.len() < 8 { Err(Malformed) } else { Ok(b.get_u64()) }
}

fn string(b: &mut Bytes) -> Result<String, Malformed> {
    let end = b.iter().position(|c| *c == 0).ok_or(Malformed)?;
    let text = b.split_to(end);
    b.advance(1);
    String::from_utf8(text.to_vec()).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_with_a_key_and_an_unchanged_value() {
        let mut m = vec![b'U', 0, 0, 0, 9, b'K', 0, 1, b't', 0, 0, 0, 1, b'7', b'N', 0, 2];
        m.extend([b't', 0, 0, 0, 1, b'8', b'u']);
        let text = |t: &'static [u8]| Value::Text(Bytes::from_static(t));
        let change = Change::Update { old: Some(vec![text(b"7")]), new: vec![text(b"8"), Value::Unchanged] };
        assert_eq!(parse(Bytes::from(m.clone())), Ok(Message::Row { oid: 9, change }));
        for cut in 1..m.len() {
            assert_eq!(parse(Bytes::from(m[..cut].to_vec())), Err(Malformed), "cut at {cut}");
        }
    }

    #[test]
    fn a_row_never_allocates_by_what_it_declares() {
        let m = [b'I', 0, 0, 0, 9, b'N', 0, 1, b't', 0xff, 0xff, 0xff, 0xff];
        assert_eq!(parse(Bytes::copy_from_slice(&m)), Err(Malformed));
    }
}
