//! Why a token was refused.

/// Why a token was refused. For the log and for metrics: a client learns none of it. Neither the token nor
/// any part of it that proves something is in the text; what the token's maker chose is quoted and shortened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Longer than [`super::MAX_TOKEN_BYTES`].
    #[error("the token is too large")]
    TooLarge,
    /// Not a JWT, or one that says something twice.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// `none`, or an algorithm that we do not speak.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// Extensions that must be understood: we understand none.
    #[error("the token has critical extensions")]
    Critical,
    /// No trusted issuer goes by the token's `iss`.
    #[error("the token's issuer is not trusted")]
    UnknownIssuer,
    /// The issuer's keys have never been read, and cannot be now.
    #[error("the keys of issuer {issuer:?} are not at hand")]
    KeysUnavailable {
        /// The issuer's name in the configuration.
        issuer: String,
    },
    /// The issuer has no key that the token can be signed with.
    #[error("issuer {issuer:?} has no key for the token's key id {kid:?}")]
    UnknownKey {
        /// The issuer's name in the configuration.
        issuer: String,
        /// The token's `kid`.
        kid: Option<String>,
    },
    /// The key is not for the algorithm that the token names.
    #[error("the token's algorithm is not the one of the key of issuer {issuer:?}")]
    OtherAlgorithm {
        /// The issuer's name in the configuration.
        issuer: String,
    },
    /// No key made the signature.
    #[error("the signature is not by a key of issuer {issuer:?}")]
    Signature {
        /// The issuer's name in the configuration.
        issuer: String,
    },
    /// A claim is missing or is not what it must be.
    #[error("the claim {claim:?} of the token of issuer {issuer:?} {problem}")]
    Claim {
        /// The issuer's name in the configuration.
        issuer: String,
        /// The claim, as the standard or the configuration names it.
        claim: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Its time is over.
    #[error("the token of issuer {issuer:?} has expired")]
    Expired {
        /// The issuer's name in the configuration.
        issuer: String,
    },
    /// Its time has not come, or it claims to be made in the future.
    #[error("the token of issuer {issuer:?} is not valid yet")]
    NotYetValid {
        /// The issuer's name in the configuration.
        issuer: String,
    },
    /// It was made for another service.
    #[error("the token of issuer {issuer:?} is for another audience")]
    Audience {
        /// The issuer's name in the configuration.
        issuer: String,
    },
}

impl JwtError {
    /// A word for metrics, out of a closed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Malformed(_) => "malformed",
            Self::Algorithm => "algorithm",
            Self::Critical => "critical",
            Self::UnknownIssuer => "unknown_issuer",
            Self::KeysUnavailable { .. } => "keys_unavailable",
            Self::UnknownKey { .. } => "unknown_key",
            Self::OtherAlgorithm { .. } => "other_algorithm",
            Self::Signature { .. } => "signature",
            Self::Claim { .. } => "claim",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Audience { .. } => "audience",
        }
    }

    /// How far the token came: the error of the issuer that knew most of it is the one to report.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::TooLarge | Self::Malformed(_) | Self::Algorithm | Self::Critical | Self::UnknownIssuer => 0,
            Self::UnknownKey { .. } => 1,
            Self::OtherAlgorithm { .. } => 2,
            Self::KeysUnavailable { .. } => 3,
            Self::Signature { .. } => 4,
            Self::Claim { .. } | Self::Expired { .. } | Self::NotYetValid { .. } | Self::Audience { .. } => 5,
        }
    }
}

/// Longest piece of a stranger's text in an error, in characters.
const SHOWN_CHARS: usize = 64;

/// The beginning of what the token's maker chose.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}
