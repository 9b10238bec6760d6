//! A question of the pool's own to a server: a query that is answered with one row.

use switchyard_wire::{build, frame, message};

use crate::server::Server;

/// Most bytes of an answer.
const ANSWER_BYTES: usize = 16 * 1024;

/// Sends `query` and reads its row with `read`. None if it fails, if the row is not as expected, or if the server is
/// not idle afterwards with nothing more to say: the connection is of no use then.
pub(super) async fn ask<T>(
    server: &mut Server,
    query: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    let mut out = Vec::new();
    build::query(&mut out, query).ok()?;
    server.stream.write_all(&out).await.ok()?;
    let mut held = Vec::new();
    let mut answer = None;
    loop {
        let mut chunk = [0; 1024];
        let n = server.stream.read(&mut chunk).await.ok().filter(|n| *n > 0)?;
        held.extend_from_slice(&chunk[..n]);
        if held.len() > ANSWER_BYTES {
            return None;
        }
        let mut at = 0;
        while let Some(header) = frame::header(&held[at..]).ok()? {
            if at + header.len > held.len() {
                break;
            }
            let body = &held[at + frame::HEADER..at + header.len];
            match header.tag {
                frame::backend::DATA_ROW => answer = read(body),
                frame::backend::ERROR => return None,
                frame::backend::READY_FOR_QUERY => {
                    return answer.filter(|_| body == b"I" && at + header.len == held.len());
                }
                _ => {}
            }
            at += header.len;
        }
        held.drain(..at);
    }
}

/// The values of a row of `N` in text form; none may be NULL.
pub(super) fn texts<const N: usize>(body: &[u8]) -> Option<[&str; N]> {
    let mut row = message::data_row(body).ok()?;
    let mut texts = [""; N];
    for text in &mut texts {
        *text = std::str::from_utf8(row.next()?.ok()??).ok()?;
    }
    row.next().is_none().then_some(texts)
}
