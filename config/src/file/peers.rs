//! `peers`: other routers behind the same address.

use std::net::Ipv6Addr;

use super::reader::Table;
use super::value::Value;
use crate::settings::{MAX_ROUTER_ID, Peer};
use crate::topology::{ServerTls, SslMode};

/// Most peers; a request whose key does not say which router it is for is sent to all of them.
const MAX_PEERS: usize = 256;

const MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

/// Reads the peers of the router that is number `own`. It may be among them, so that all routers
/// can have the same list.
pub(super) fn read(root: &Table<'_>, own: u16) -> Vec<Peer> {
    let tables = root.tables("peers");
    if !tables.is_empty() && own == 0 && !root.table_has("router", "id") {
        root.ctx.error(&root.at_key("peers"), "need `id` in [router]: the number of this router among them");
    }
    if tables.len() > MAX_PEERS {
        root.ctx.error(&root.at_key("peers"), format!("there may be at most {MAX_PEERS}"));
    }
    let mut seen = Vec::new();
    let mut peers: Vec<Peer> = Vec::new();
    for table in tables {
        let id = table.need("id", |v| {
            let id: u16 = v.integer(1..=u64::from(MAX_ROUTER_ID))?;
            if seen.contains(&id) {
                return v.error(format!("there is another peer {id}"));
            }
            seen.push(id);
            Some(id)
        });
        let address = table.need("address", address);
        let mut tls = ServerTls::default();
        table.set("sslmode", &mut tls.mode, |v| v.one_of(&MODES));
        tls.root_cert = table.opt("sslrootcert", Value::file);
        table.finish();
        if let (Some(id), Some((host, port))) = (id, address)
            && id != own
        {
            peers.push(Peer { id, host, port, tls });
        }
    }
    peers
}

/// `host:port`, with IPv6 addresses in brackets.
pub(super) fn address(v: &Value<'_>) -> Option<(String, u16)> {
    let read = || {
        let (host, port) = v.text()?.rsplit_once(':')?;
        let port = port.parse::<u16>().ok().filter(|p| *p > 0)?;
        if let Some(address) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            return address.parse::<Ipv6Addr>().is_ok().then(|| (address.to_owned(), port));
        }
        let name = !host.is_empty()
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        name.then(|| (host.to_owned(), port))
    };
    read()
        .or_else(|| v.error("must be a host and a port, such as router2.internal:6432 or [2001:db8::2]:6432"))
}
