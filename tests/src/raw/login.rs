//! The client's side of logging in, and what servers keep to check it by.

use base64::Engine;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

use super::{Raw, Refused, Stream, messages};

impl Raw {
    /// Answers whatever the server asks for until it is ready for queries.
    ///
    /// # Errors
    /// If it refuses.
    pub fn authenticate(&mut self, user: &str, password: Option<&str>, bound: bool) -> Result<(), Refused> {
        let mut scram: Option<ScramSha256> = None;
        let mut shape = Vec::new();
        let password = password.unwrap_or_default();
        loop {
            let message = self.try_read().map_err(|e| Refused::Closed(e.to_string()))?;
            shape.push((message.tag, message.body.len()));
            match message.tag {
                b'E' => {
                    let bytes = messages::frame(b'E', &message.body);
                    return Err(Refused::Error { error: Box::new((&message).into()), bytes, shape });
                }
                b'Z' => return Ok(()),
                b'R' => self.answer(&message.body, user, password, bound, &mut scram)?,
                _ => {}
            }
        }
    }

    fn answer(
        &mut self,
        body: &[u8],
        user: &str,
        password: &str,
        bound: bool,
        scram: &mut Option<ScramSha256>,
    ) -> Result<(), Refused> {
        let closed = |e: &dyn std::fmt::Display| Refused::Closed(e.to_string());
        let (kind, rest) = body.split_at_checked(4).ok_or(Refused::Closed("a short R".into()))?;
        match (kind[3], scram) {
            (0, _) => {}
            (3, _) => self.send(&messages::frame(b'p', &messages::strings(&[password]))),
            (5, _) => {
                let salt = rest.try_into().map_err(|e| closed(&e))?;
                let hash =
                    postgres_protocol::authentication::md5_hash(user.as_bytes(), password.as_bytes(), salt);
                self.send(&messages::frame(b'p', &messages::strings(&[&hash])));
            }
            (10, scram) => {
                let plus = String::from_utf8_lossy(rest).contains("SCRAM-SHA-256-PLUS");
                let hash = self.server_end_point().filter(|_| plus);
                if bound && hash.is_none() {
                    return Err(Refused::Closed("channel binding is not offered".into()));
                }
                let (name, binding) = match hash {
                    Some(hash) => ("SCRAM-SHA-256-PLUS", ChannelBinding::tls_server_end_point(hash)),
                    None => ("SCRAM-SHA-256", ChannelBinding::unsupported()),
                };
                let exchange = scram.insert(ScramSha256::new(password.as_bytes(), binding));
                let first = exchange.message().to_vec();
                let mut body = messages::strings(&[name]);
                body.extend((first.len() as u32).to_be_bytes());
                body.extend(first);
                self.send(&messages::frame(b'p', &body));
            }
            (11, Some(scram)) => {
                scram.update(rest).map_err(|e| closed(&e))?;
                let last = scram.message().to_vec();
                self.send(&messages::frame(b'p', &last));
            }
            (12, Some(scram)) => scram.finish(rest).map_err(|e| closed(&e))?,
            (other, _) => return Err(Refused::Closed(format!("authentication {other} is not understood"))),
        }
        Ok(())
    }

    /// The server's certificate in DER, over TLS.
    pub fn peer_certificate(&self) -> Option<Vec<u8>> {
        let Stream::Tls(tls) = &self.stream else { return None };
        Some(tls.conn.peer_certificates()?.first()?.to_vec())
    }

    /// The hash of the server's certificate; ours are signed with SHA-256.
    fn server_end_point(&self) -> Option<Vec<u8>> {
        let cert = self.peer_certificate()?;
        Some(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &cert).as_ref().to_vec())
    }
}

/// What `pg_authid` would hold for this password.
pub fn scram_verifier(password: &str) -> String {
    postgres_protocol::password::scram_sha_256(password.as_bytes())
}

/// What `pg_authid` would hold for this password under `md5`.
pub fn md5_verifier(user: &str, password: &str) -> String {
    postgres_protocol::password::md5(password.as_bytes(), user)
}

/// URL-safe base64 without padding, as in JWTs.
pub fn base64url(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}
