//! The PROXY protocol, by which a load balancer says whose connection it passes on
//! (`doc/proxy-protocol.txt` of HAProxy, versions 1 and 2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// What version 2 begins with (section 2.2).
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of the fixed part of version 2.
pub const FIXED: usize = 16;
/// Longest line of version 1 in bytes, its end included (section 2.1).
pub const MAX_LINE: usize = 107;
/// Most bytes of addresses and extensions of version 2 that we read. Ours; certificates that a balancer might
/// pass along have no place here.
pub const MAX_REST: usize = 1024;

/// A header that is none, or not one for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("malformed PROXY header")]
pub struct ProxyError;

/// Reads a line of version 1, with its end. `None` is a connection of the balancer's own, or of a kind that has
/// no address.
///
/// # Errors
/// Anything but such a line.
pub fn line(line: &[u8]) -> Result<Option<IpAddr>, ProxyError> {
    let text = line.strip_suffix(b"\r\n").and_then(|l| std::str::from_utf8(l).ok()).ok_or(ProxyError)?;
    if line.len() > MAX_LINE {
        return Err(ProxyError);
    }
    let mut words = text.split(' ');
    if words.next() != Some("PROXY") {
        return Err(ProxyError);
    }
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(None);
    }
    let (Some(from), Some(to), Some(from_port), Some(to_port), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(ProxyError);
    };
    if [from_port, to_port].iter().any(|p| p.parse::<u16>().is_err()) {
        return Err(ProxyError);
    }
    let address = |text: &str| match family {
        Some("TCP4") => text.parse::<Ipv4Addr>().map(IpAddr::from).map_err(|_| ProxyError),
        Some("TCP6") => text.parse::<Ipv6Addr>().map(IpAddr::from).map_err(|_| ProxyError),
        _ => Err(ProxyError),
    };
    address(to)?;
    address(from).map(Some)
}

/// Bytes that follow the fixed part of version 2.
///
/// # Errors
/// Another signature or version, or more than [`MAX_REST`].
pub fn rest_len(fixed: &[u8; FIXED]) -> Result<usize, ProxyError> {
    let known = fixed.starts_with(&SIGNATURE) && fixed[12] >> 4 == 2;
    let len = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if known && len <= MAX_REST { Ok(len) } else { Err(ProxyError) }
}

/// Reads a whole header of version 2.
///
/// # Errors
/// A header that does not hold what it says.
pub fn binary(fixed: &[u8; FIXED], rest: &[u8]) -> Result<Option<IpAddr>, ProxyError> {
    if rest.len() != rest_len(fixed)? {
        return Err(ProxyError);
    }
    match fixed[12] & 0x0f {
        // LOCAL: of the balancer's own.
        0 => return Ok(None),
        1 => {}
        _ => return Err(ProxyError),
    }
    match fixed[13] {
        // TCP over IPv4 and IPv6: both addresses, then both ports.
        0x11 => {
            let from: [u8; 4] = *rest.first_chunk().filter(|_| rest.len() >= 12).ok_or(ProxyError)?;
            Ok(Some(Ipv4Addr::from(from).into()))
        }
        0x21 => {
            let from: [u8; 16] = *rest.first_chunk().filter(|_| rest.len() >= 36).ok_or(ProxyError)?;
            Ok(Some(Ipv6Addr::from(from).into()))
        }
        // Unspecified, and unix sockets.
        0x00 | 0x31 => Ok(None),
        _ => Err(ProxyError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines() {
        let ip = |text: &str| Ok(Some(text.parse::<IpAddr>().unwrap()));
        assert_eq!(line(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 5432\r\n"), ip("192.0.2.7"));
        assert_eq!(line(b"PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n"), ip("2001:db8::7"));
        assert_eq!(line(b"PROXY UNKNOWN\r\n"), Ok(None));
        assert_eq!(line(b"PROXY UNKNOWN whatever it says\r\n"), Ok(None));
        for bad in [
            &b""[..],
            b"\r\n",
            b"PROXY\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 5432",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 5432\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 5432 1\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 66324 5432\r\n",
            b"PROXY TCP4 2001:db8::7 198.51.100.1 1 2\r\n",
            b"PROXY TCP6 192.0.2.7 2001:db8::1 1 2\r\n",
            b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
            b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n",
            b"proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
        ] {
            assert_eq!(line(bad), Err(ProxyError), "{}", bad.escape_ascii());
        }
    }

    fn header(command: u8, family: u8, len: u16) -> [u8; FIXED] {
        let mut fixed = [0; FIXED];
        fixed[..12].copy_from_slice(&SIGNATURE);
        fixed[12] = command;
        fixed[13] = family;
        fixed[14..].copy_from_slice(&len.to_be_bytes());
        fixed
    }

    #[test]
    fn binary_headers() {
        let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 1, 1, 2, 2];
        let from = Ok(Some(IpAddr::from([192, 0, 2, 7])));
        assert_eq!(binary(&header(0x21, 0x11, 12), &v4), from);
        assert_eq!(binary(&header(0x21, 0x11, 14), &[&v4[..], &[4, 0]].concat()), from);
        let mut v6 = [0; 36];
        v6[0] = 0x20;
        assert_eq!(binary(&header(0x21, 0x21, 36), &v6), Ok(Some("2000::".parse().unwrap())));
        assert_eq!(binary(&header(0x20, 0x11, 12), &v4), Ok(None));
        assert_eq!(binary(&header(0x21, 0, 0), &[]), Ok(None));
        for (fixed, rest) in [
            (header(0x11, 0x11, 12), &v4[..]),
            (header(0x22, 0x11, 12), &v4),
            (header(0x21, 0x12, 12), &v4),
            (header(0x21, 0x11, 11), &v4[..11]),
            (header(0x21, 0x11, 12), &v4[..11]),
            (header(0x21, 0x21, 12), &v4),
            (header(0x21, 0x11, u16::MAX), &v4),
            ([0; FIXED], &v4),
        ] {
            assert_eq!(binary(&fixed, rest), Err(ProxyError), "{fixed:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..120), fixed in any::<[u8; FIXED]>()) {
            let _ = line(&bytes);
            let _ = binary(&fixed, &bytes);
            let mut signed = fixed;
            signed[..12].copy_from_slice(&SIGNATURE);
            let _ = binary(&signed, &bytes);
        }
    }
}
