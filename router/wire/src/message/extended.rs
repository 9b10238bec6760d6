//! The extended query protocol, as far as the names in it go.

use memchr::memchr;

use super::Malformed;
use super::cursor::Cursor;

/// A Parse message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// The statement's name; empty for the unnamed one.
    pub name: &'a [u8],
    /// The query text.
    pub sql: &'a [u8],
    /// The parameter types as they stand in the message: a count of 16 bits, then that many type oids of 32
    /// bits. Part of a statement's identity.
    pub types: &'a [u8],
}

/// Reads a Parse.
///
/// # Errors
/// A missing terminator, or another number of types than the count says.
pub fn parse(body: &[u8]) -> Result<Parse<'_>, Malformed> {
    let mut cursor = Cursor(body);
    let name = cursor.string()?;
    let sql = cursor.string()?;
    let types = cursor.0;
    let count = cursor.array().map(u16::from_be_bytes)?;
    cursor.bytes(usize::from(count) * 4)?;
    cursor.end()?;
    Ok(Parse { name, sql, types })
}

/// The two names at the start of a Bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindNames<'a> {
    /// The portal to make; empty for the unnamed one.
    pub portal: &'a [u8],
    /// The statement it is made of.
    pub statement: &'a [u8],
    /// Offset in the body of what follows the names.
    pub rest: usize,
}

/// Reads the names from the start of a Bind's body, which may be a prefix of it: `None` when `body_prefix` does
/// not hold both terminators yet. Whether more can come is for the caller to know: `None` on a whole body is a
/// malformed message.
///
/// # Errors
/// None at present; the `Result` leaves room for limits on names.
#[inline]
pub fn bind_names(body_prefix: &[u8]) -> Result<Option<BindNames<'_>>, Malformed> {
    let Some(first) = memchr(0, body_prefix) else {
        return Ok(None);
    };
    let (portal, rest) = (&body_prefix[..first], &body_prefix[first + 1..]);
    let Some(second) = memchr(0, rest) else {
        return Ok(None);
    };
    Ok(Some(BindNames { portal, statement: &rest[..second], rest: first + second + 2 }))
}

/// A whole Bind message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind<'a> {
    /// The portal to make; empty for the unnamed one.
    pub portal: &'a [u8],
    /// The statement it is made of.
    pub statement: &'a [u8],
    /// Formats of the parameters: none where all are text, one for all, or one for each.
    pub formats: Vec<u16>,
    /// The parameters; `None` is NULL.
    pub params: Vec<Option<&'a [u8]>>,
    /// Formats of the result's columns, as those of the parameters.
    pub results: Vec<u16>,
}

/// Reads a whole Bind. What it holds is bounded by the size of `body`, whatever counts are in it.
///
/// # Errors
/// A missing terminator, or another number of values than a count says.
pub fn bind(body: &[u8]) -> Result<Bind<'_>, Malformed> {
    let mut cursor = Cursor(body);
    let (portal, statement) = (cursor.string()?, cursor.string()?);
    let formats = formats(&mut cursor)?;
    let count = cursor.array().map(u16::from_be_bytes)?;
    let mut params = Vec::new();
    for _ in 0..count {
        // -1 is NULL, and the only negative length (`exec_bind_message` in `src/backend/tcop/postgres.c`).
        let len = cursor.array().map(i32::from_be_bytes)?;
        params.push(match usize::try_from(len) {
            Ok(len) => Some(cursor.bytes(len)?),
            Err(_) if len == -1 => None,
            Err(_) => return Err(Malformed::Value("parameter length")),
        });
    }
    let results = self::formats(&mut cursor)?;
    cursor.end()?;
    Ok(Bind { portal, statement, formats, params, results })
}

fn formats(cursor: &mut Cursor<'_>) -> Result<Vec<u16>, Malformed> {
    let count = cursor.array().map(u16::from_be_bytes)?;
    let bytes = cursor.bytes(usize::from(count) * 2)?;
    Ok(bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect())
}

/// What a Describe or Close names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// `S` for a statement, `P` for a portal.
    pub kind: u8,
    /// Its name; empty for the unnamed one.
    pub name: &'a [u8],
}

/// Reads a Describe.
///
/// # Errors
/// A kind other than `S` and `P`, or not exactly one string after it.
pub fn describe(body: &[u8]) -> Result<Target<'_>, Malformed> {
    target(body, "DESCRIBE subtype")
}

/// Reads a Close.
///
/// # Errors
/// As [`describe`].
pub fn close(body: &[u8]) -> Result<Target<'_>, Malformed> {
    target(body, "CLOSE subtype")
}

fn target<'a>(body: &'a [u8], what: &'static str) -> Result<Target<'a>, Malformed> {
    let mut cursor = Cursor(body);
    let kind = cursor.u8()?;
    let name = cursor.string()?;
    cursor.end()?;
    if !matches!(kind, b'S' | b'P') {
        return Err(Malformed::Value(what));
    }
    Ok(Target { kind, name })
}

/// An Execute message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execute<'a> {
    /// The portal; empty for the unnamed one.
    pub portal: &'a [u8],
    /// Rows to return at most; 0 is no limit. Negative on the wire is no limit too (`exec_execute_message` in
    /// `src/backend/tcop/postgres.c`), and is given as 0 here.
    pub max_rows: u32,
}

/// Reads an Execute.
///
/// # Errors
/// A missing terminator or a body of another size.
pub fn execute(body: &[u8]) -> Result<Execute<'_>, Malformed> {
    let mut cursor = Cursor(body);
    let portal = cursor.string()?;
    let rows = i32::from_be_bytes(cursor.array()?);
    cursor.end()?;
    Ok(Execute { portal, max_rows: u32::try_from(rows).unwrap_or(0) })
}
