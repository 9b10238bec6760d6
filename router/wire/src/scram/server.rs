//! The server's side of an exchange.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::attributes::{Attributes, is_nonce, text};
use super::keys::{self, KEY, base64, hmac, sha256, unbase64_key, xor};
use super::{MAX_MESSAGE, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError, Verifier};

/// What the connection can bind an exchange to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelBinding {
    /// No TLS, or a certificate without a hash (see [`crate::tls_endpoint`]).
    None,
    /// The hash of the certificate that we showed.
    TlsServerEndPoint(Vec<u8>),
}

impl ChannelBinding {
    /// The mechanisms to offer, the preferred one first.
    #[must_use]
    pub fn mechanisms(&self) -> &'static [&'static str] {
        match self {
            Self::None => &[SCRAM_SHA_256],
            Self::TlsServerEndPoint(_) => &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256],
        }
    }
}

/// One exchange with a client: [`Self::first`], then [`Self::last`].
pub struct ServerScram {
    verifier: Verifier,
    binding: ChannelBinding,
    state: State,
}

enum State {
    Start,
    Challenged {
        /// Base64 of what the `c` attribute must say.
        bound: String,
        /// Whether that is a certificate.
        plus: bool,
        client_first_bare: String,
        server_first: String,
        nonce: String,
    },
    Done,
}

impl ServerScram {
    /// Begins an exchange. Takes a copy of the verifier, which is erased at the end.
    #[must_use]
    pub fn new(verifier: &Verifier, binding: ChannelBinding) -> Self {
        Self { verifier: verifier.clone(), binding, state: State::Start }
    }

    /// The mechanisms to offer, the preferred one first.
    #[must_use]
    pub fn mechanisms(&self) -> &'static [&'static str] {
        self.binding.mechanisms()
    }

    /// Reads the client's first message, sent with its choice of mechanism; returns the challenge.
    ///
    /// # Errors
    /// See [`ScramError`]; the exchange is over.
    pub fn first(&mut self, mechanism: &str, data: &[u8]) -> Result<Vec<u8>, ScramError> {
        let nonce = keys::nonce().ok_or(ScramError::Random)?;
        self.first_with_nonce(mechanism, data, &nonce)
    }

    pub(super) fn first_with_nonce(
        &mut self,
        mechanism: &str,
        data: &[u8],
        ours: &str,
    ) -> Result<Vec<u8>, ScramError> {
        let State::Start = std::mem::replace(&mut self.state, State::Done) else {
            return Err(ScramError::State);
        };
        let plus = match mechanism {
            SCRAM_SHA_256 => false,
            SCRAM_SHA_256_PLUS if self.binding != ChannelBinding::None => true,
            _ => return Err(ScramError::Mechanism),
        };
        let message = from_client(data)?;
        let (bound, bare) = self.gs2(plus, message)?;
        let mut attributes = Attributes::new(bare);
        // The user name is the startup packet's; PostgreSQL does not look at this one either.
        attributes.expect('n')?;
        let theirs = attributes.expect('r')?;
        if !is_nonce(theirs) {
            return Err(ScramError::NonceCharacters);
        }
        attributes.skip_rest()?;
        let nonce = format!("{theirs}{ours}");
        let server_first =
            format!("r={nonce},s={},i={}", base64(&self.verifier.salt), self.verifier.iterations);
        let answer = server_first.clone().into_bytes();
        self.state =
            State::Challenged { bound, plus, client_first_bare: bare.to_owned(), server_first, nonce };
        Ok(answer)
    }

    /// Reads the GS2 header; returns what the client must repeat in `c`, in base64, and the bare message.
    fn gs2<'a>(&self, plus: bool, message: &'a str) -> Result<(String, &'a str), ScramError> {
        let mut parts = message.splitn(3, ',');
        let (Some(flag), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ScramError::Malformed("The header is not complete."));
        };
        let bound = match (flag, plus, &self.binding) {
            ("n" | "y", true, _) => {
                return Err(ScramError::Malformed(
                    "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.",
                ));
            }
            ("n", ..) => base64(b"n,,"),
            // It could have bound and thinks that we cannot: what we offered did not reach it.
            ("y", false, ChannelBinding::TlsServerEndPoint(_)) => return Err(ScramError::Downgrade),
            ("y", false, ChannelBinding::None) => base64(b"y,,"),
            ("p=tls-server-end-point", true, ChannelBinding::TlsServerEndPoint(hash)) => {
                base64(&[b"p=tls-server-end-point,,", hash.as_slice()].concat())
            }
            (flag, true, _) if flag.starts_with("p=") => {
                return Err(ScramError::BindingType(flag[2..].to_owned()));
            }
            (flag, false, _) if flag.starts_with("p=") => {
                return Err(ScramError::Malformed(
                    "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data.",
                ));
            }
            _ => return Err(ScramError::Malformed("Unexpected channel-binding flag.")),
        };
        match authzid {
            "" => Ok((bound, bare)),
            id if id.starts_with("a=") => Err(ScramError::AuthorizationIdentity),
            _ => Err(ScramError::Malformed("Unexpected attribute in client-first-message.")),
        }
    }

    /// Reads the client's last message; returns the server's, and the client key that the proof reveals, with
    /// which [`super::ClientSecret::Keys`] can log in elsewhere under the same verifier.
    ///
    /// # Errors
    /// [`ScramError::WrongProof`] for a wrong password; others see [`ScramError`]. The exchange is over.
    pub fn last(&mut self, data: &[u8]) -> Result<(Vec<u8>, [u8; KEY]), ScramError> {
        let State::Challenged { bound, plus, client_first_bare, server_first, nonce } =
            std::mem::replace(&mut self.state, State::Done)
        else {
            return Err(ScramError::State);
        };
        let message = from_client(data)?;
        let (without_proof, proof) = message
            .rsplit_once(",p=")
            .ok_or(ScramError::Malformed("There is no proof in client-final-message."))?;
        let mut attributes = Attributes::new(without_proof);
        let binding = attributes.expect('c')?;
        let repeated = attributes.expect('r')?;
        attributes.skip_rest()?;
        if !bool::from(binding.as_bytes().ct_eq(bound.as_bytes())) {
            return Err(if plus { ScramError::ChannelBinding } else { ScramError::BindingAttribute });
        }
        let proof =
            unbase64_key(proof).ok_or(ScramError::Malformed("Malformed proof in client-final-message."))?;
        if !bool::from(repeated.as_bytes().ct_eq(nonce.as_bytes())) {
            return Err(ScramError::Nonce);
        }

        let parts: [&[u8]; 5] =
            [client_first_bare.as_bytes(), b",", server_first.as_bytes(), b",", without_proof.as_bytes()];
        let signature = hmac(&self.verifier.stored_key, &parts);
        let client_key = Zeroizing::new(xor(&proof, &signature));
        if !bool::from(sha256(client_key.as_ref()).ct_eq(&self.verifier.stored_key)) {
            return Err(ScramError::WrongProof);
        }
        let answer = format!("v={}", base64(&hmac(&self.verifier.server_key, &parts)));
        Ok((answer.into_bytes(), *client_key))
    }
}

/// A message that is too long is none to PostgreSQL, and the login has failed.
fn from_client(data: &[u8]) -> Result<&str, ScramError> {
    if data.len() > MAX_MESSAGE { Err(ScramError::WrongProof) } else { text(data) }
}
