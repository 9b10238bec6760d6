//! What the fence on a tenant's shard says, for a router that has had no word from the mover.

use std::time::Duration;

use switchyard_config::TenantId;
use switchyard_config::topology::Placement;
use switchyard_wire::frame::{self, backend};
use switchyard_wire::{build, message};

use super::{FENCED, context_on, moved_to};
use crate::server::Server;
use crate::shared::Shared;

/// How long an answer may take, logging in included. A tenant that is being frozen at this moment gives none.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Longest answer, in bytes.
const ANSWER_BYTES: usize = 64 * 1024;

/// What a fence says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// The tenant may run where it was, as far as anybody can tell.
    Served,
    /// It lives elsewhere.
    Moved(Placement),
    /// It is frozen, or has not arrived.
    NotServed,
    /// The shard does not answer.
    Nothing,
}

/// A connection to the shard, kept while it is asked again and again.
#[derive(Default)]
pub(super) struct Asker {
    server: Option<Server>,
}

impl Asker {
    pub(super) async fn ask(&mut self, shared: &Shared, tenant: &TenantId) -> Says {
        // Taken out: a connection that is dropped in the middle of an answer is not used again.
        let server = self.server.take();
        match tokio::time::timeout(TIMEOUT, answered(shared, tenant, server)).await {
            Ok(Some((says, server))) => {
                self.server = Some(server);
                says
            }
            Ok(None) | Err(_) => Says::Nothing,
        }
    }
}

async fn answered(shared: &Shared, tenant: &TenantId, server: Option<Server>) -> Option<(Says, Server)> {
    let topology = shared.topology();
    let placed = shared.holds.place(&topology, &*topology.tenant(tenant)?)?;
    let pool = shared.pool(&topology.shards[usize::from(placed.shard)].name)?;
    let mut server = match server {
        Some(server) => server,
        None => pool.connect_apart(&context_on(shared, tenant, &pool)?.route).await.ok()?,
    };
    let mut out = Vec::new();
    // It waits for the tenant's lock, as any transaction of the tenant would.
    let id = tenant.as_str().replace('\\', "\\\\").replace('\'', "''");
    build::query(&mut out, format!("SELECT switchyard.admit(E'{id}')").as_bytes()).ok()?;
    server.stream.write_all(&out).await.ok()?;
    let mut says = Says::Served;
    let mut held = Vec::new();
    loop {
        let mut chunk = [0; 1024];
        let n = server.stream.read(&mut chunk).await.ok().filter(|n| *n > 0)?;
        held.extend_from_slice(&chunk[..n]);
        let mut at = 0;
        while let Some(header) = frame::header(&held[at..]).ok()? {
            if held.len() - at < header.len {
                break;
            }
            let body = &held[at + frame::HEADER..at + header.len];
            match header.tag {
                backend::ERROR => says = refusal(body)?,
                backend::READY_FOR_QUERY => return Some((says, server)),
                _ => {}
            }
            at += header.len;
        }
        held.drain(..at);
        if held.len() > ANSWER_BYTES {
            return None;
        }
    }
}

fn refusal(body: &[u8]) -> Option<Says> {
    let fields = message::ErrorFields::parse(body).ok()?;
    Some(match fields.code()? {
        code if code == FENCED => match fields.detail().and_then(moved_to) {
            Some(placement) => Says::Moved(placement),
            None => Says::NotServed,
        },
        // No such schema or function: there is no fence, and nothing to be kept from.
        b"3F000" | b"42883" => Says::Served,
        _ => Says::Nothing,
    })
}

#[cfg(test)]
mod tests {
    use switchyard_config::ShardName;

    use super::*;

    fn error(code: &str, detail: &str) -> Vec<u8> {
        format!("SERROR\0C{code}\0Mm\0D{detail}\0\0").into_bytes()
    }

    #[test]
    fn a_fence_is_understood() {
        let says = |code, detail| refusal(&error(code, detail)).unwrap();
        let to = Placement { shard: ShardName::new("s1").unwrap(), epoch: 5 };
        assert_eq!(says("TN002", "state=moved epoch=4 moved_to=s1"), Says::Moved(to));
        assert_eq!(says("TN002", "state=frozen epoch=4 moved_to=s1"), Says::NotServed);
        assert_eq!(says("TN002", "state=importing epoch=4 moved_to="), Says::NotServed);
        assert_eq!(says("42883", ""), Says::Served);
        assert_eq!(says("57014", ""), Says::Nothing);
    }
}
