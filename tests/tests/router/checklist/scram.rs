//! A client of SCRAM that does what it is told, so that it can do wrong.

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use switchyard_tests::raw::{Raw, messages as m};

use super::side::{Side, listen};

/// An exchange, with what is to be wrong in it.
#[derive(Clone)]
pub(super) struct Exchange {
    pub(super) user: &'static str,
    pub(super) password: &'static str,
    pub(super) mechanism: &'static str,
    /// The first message; `None` leaves it out, as SASL allows.
    pub(super) first: Option<&'static str>,
    /// What `c=` says.
    pub(super) binding: &'static str,
    /// Makes the last message of what it would be.
    pub(super) last: fn(String) -> String,
    /// Breaks off after the challenge by sending this.
    pub(super) instead: Option<fn() -> Vec<u8>>,
    pub(super) tls: bool,
}

/// The client's nonce.
pub(super) const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";

impl Exchange {
    pub(super) fn right(user: &'static str, password: &'static str) -> Self {
        let (mechanism, first) = ("SCRAM-SHA-256", Some("n,,n=,r=rOprNGfwEbeRWgbNEkqO"));
        Self { user, password, mechanism, first, binding: "biws", last: |m| m, instead: None, tls: false }
    }

    /// Plays it; shows all that came back.
    pub(super) fn play(&self, side: &Side) -> Vec<String> {
        let mut raw = if self.tls { side.open_tls() } else { side.open() };
        raw.send(&m::startup(&[("user", self.user), ("database", "crm")]));
        let offer = raw.read();
        let mut seen = vec![format!("R {}", offer.body.escape_ascii())];
        let mut body = m::strings(&[self.mechanism]);
        match self.first {
            Some(first) => {
                body.extend((first.len() as u32).to_be_bytes());
                body.extend(first.as_bytes());
            }
            None => body.extend((-1_i32).to_be_bytes()),
        }
        raw.send(&m::frame(b'p', &body));
        if self.first.is_none() {
            let empty = raw.read();
            seen.push(format!("{} {}", char::from(empty.tag), empty.body.escape_ascii()));
            raw.send(&m::frame(b'p', format!("n,,n=,r={NONCE}").as_bytes()));
        }
        let Some(challenge) = self.challenge(&mut raw, &mut seen) else { return seen };
        match self.instead {
            Some(instead) => raw.send(&instead()),
            None => raw.send(&m::frame(b'p', self.answer(&challenge).as_bytes())),
        }
        seen.extend(listen(&mut raw));
        seen
    }

    fn challenge(&self, raw: &mut Raw, seen: &mut Vec<String>) -> Option<String> {
        let message = match raw.try_read() {
            Ok(message) if message.tag == b'R' => message,
            Ok(message) => {
                seen.push(format!("E {} {}", message.sqlstate(), message.field(b'M')));
                seen.extend(listen(raw));
                return None;
            }
            Err(_) => {
                seen.push("the end".to_owned());
                return None;
            }
        };
        Some(String::from_utf8_lossy(&message.body[4..]).into_owned())
    }

    fn answer(&self, challenge: &str) -> String {
        let value = |name: char| {
            let part = challenge.split(',').find(|p| p.starts_with(name)).expect("a challenge has it");
            part[2..].to_owned()
        };
        let salt = STANDARD.decode(value('s')).expect("base64");
        let iterations = value('i').parse().expect("a number");
        let mut salted = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, self.password.as_bytes(), &mut salted);
        let sign = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
        let client_key = sign(&salted, b"Client Key");
        let stored = digest::digest(&digest::SHA256, client_key.as_ref());
        let bare =
            self.first.map_or(format!("n=,r={NONCE}"), |f| f.splitn(3, ',').nth(2).unwrap_or(f).to_owned());
        let without_proof = format!("c={},r={}", self.binding, value('r'));
        let auth = format!("{bare},{challenge},{without_proof}");
        let signature = sign(stored.as_ref(), auth.as_bytes());
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        (self.last)(format!("{without_proof},p={}", STANDARD.encode(proof)))
    }
}
