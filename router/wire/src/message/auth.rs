//! Authentication: what a server asks (`R`) and what a client answers (`p`).

use std::fmt;

use super::Malformed;
use super::cursor::Cursor;

/// An authentication request; the codes are `AUTH_REQ_*` in `src/include/libpq/protocol.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth<'a> {
    /// 0: logged in.
    Ok,
    /// 3: the password as it is.
    Cleartext,
    /// 5: the password hashed with this salt.
    Md5([u8; 4]),
    /// 10: choose one of these SASL mechanisms.
    Sasl(Mechanisms<'a>),
    /// 11: the next SASL message.
    SaslContinue(&'a [u8]),
    /// 12: the last SASL message; [`Auth::Ok`] follows.
    SaslFinal(&'a [u8]),
    /// Anything else (Kerberos, GSSAPI, SSPI ...), none of which we speak.
    Other(u32),
}

/// Reads an authentication request.
///
/// # Errors
/// A body that does not fit its code.
pub fn auth(body: &[u8]) -> Result<Auth<'_>, Malformed> {
    let mut cursor = Cursor(body);
    let auth = match cursor.u32()? {
        0 => Auth::Ok,
        3 => Auth::Cleartext,
        5 => Auth::Md5(cursor.array()?),
        10 => return mechanisms(cursor).map(Auth::Sasl),
        11 => return Ok(Auth::SaslContinue(cursor.0)),
        12 => return Ok(Auth::SaslFinal(cursor.0)),
        other => return Ok(Auth::Other(other)),
    };
    cursor.end()?;
    Ok(auth)
}

/// The SASL mechanisms a server offers, in its order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mechanisms<'a>(&'a [u8]);

impl<'a> Iterator for Mechanisms<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let mut cursor = Cursor(self.0);
        let name = cursor.string().ok().filter(|name| !name.is_empty())?;
        self.0 = cursor.0;
        Some(name)
    }
}

fn mechanisms<'a>(mut cursor: Cursor<'a>) -> Result<Mechanisms<'a>, Malformed> {
    let list = Mechanisms(cursor.0);
    while !cursor.string()?.is_empty() {}
    cursor.end()?;
    Ok(list)
}

/// A `SASLInitialResponse`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SaslInitial<'a> {
    /// The mechanism the client chose.
    pub mechanism: &'a [u8],
    /// Its first message, if it sent one along; without one the server answers with an empty challenge.
    pub data: Option<&'a [u8]>,
}

/// Without the data, which is a bearer token in some mechanisms.
impl fmt::Debug for SaslInitial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mechanism = String::from_utf8_lossy(self.mechanism);
        f.debug_struct("SaslInitial").field("mechanism", &mechanism).finish_non_exhaustive()
    }
}

/// Reads a `SASLInitialResponse`; only -1 stands for "no data".
///
/// # Errors
/// A body of another size than it says.
pub fn sasl_initial(body: &[u8]) -> Result<SaslInitial<'_>, Malformed> {
    let mut cursor = Cursor(body);
    let mechanism = cursor.string()?;
    let data = match i32::from_be_bytes(cursor.array()?) {
        -1 => None,
        size => Some(cursor.bytes(usize::try_from(size).map_err(|_| Malformed::Short)?)?),
    };
    cursor.end()?;
    Ok(SaslInitial { mechanism, data })
}

/// The password of a PasswordMessage, without its NUL.
///
/// # Errors
/// No NUL, or anything after the first one: "invalid password packet size" in `recv_password_packet`.
pub fn password(body: &[u8]) -> Result<&[u8], Malformed> {
    super::only_string(body)
}
