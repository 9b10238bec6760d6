//! Why a session has no tenant: for the log, never for the client.

use std::fmt;
use std::sync::Arc;

use switchyard_config::TenantId;
use switchyard_config::topology::Tenant;

/// What speaks of the tenant of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The tenant claim of a token.
    TokenClaim,
    /// The tenant whose own issuer signed the token.
    TokenIssuer,
    /// The server name of the TLS handshake.
    ServerName,
    /// The user name, behind a separator.
    UserSuffix,
    /// The startup parameter made for it, also within `options`.
    StartupParameter,
    /// A session variable of the context, given as a startup parameter or within `options`.
    Variable,
    /// The database name.
    Database,
    /// The only tenant that the user may act for.
    Credential,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TokenClaim => "the token's claim",
            Self::TokenIssuer => "the token's issuer",
            Self::ServerName => "the TLS server name",
            Self::UserSuffix => "the user name",
            Self::StartupParameter => "the startup parameter",
            Self::Variable => "a session variable",
            Self::Database => "the database name",
            Self::Credential => "the credential",
        })
    }
}

/// Why there is no tenant. The text is for the log: a client must not learn it, as it tells which users
/// and tenants there are. What a client sent is quoted and shortened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    /// No user has that name, nor the part in front of a separator.
    #[error("no user {login:?}")]
    UnknownUser {
        /// What the client gave.
        login: String,
    },
    /// A source says what cannot be a tenant id.
    #[error("{said_by} names no tenant: {value:?} {why}")]
    InvalidTenant {
        /// Who said it.
        said_by: Source,
        /// What it said.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// Several tenants differ from the server name by case only.
    #[error("several tenants are called {name:?} but for case")]
    AmbiguousServerName {
        /// What stands in front of the suffix.
        name: String,
    },
    /// Two sources speak of different tenants.
    #[error("{first} says tenant {says:?}, {second} says {but:?}")]
    Contradiction {
        /// Who spoke first.
        first: Source,
        /// And said.
        says: TenantId,
        /// Who spoke next.
        second: Source,
        /// And said.
        but: TenantId,
    },
    /// The token was made for somebody else.
    #[error("the token's user claim is {claim:?}, the user is {user:?}")]
    OtherUser {
        /// The user who logs in.
        user: String,
        /// The user that the token names.
        claim: String,
    },
    /// A tenant's own issuer signed the token, but no tenant was given with the proof: the caller's mistake.
    #[error("the token is of a tenant's own issuer, but of no tenant's")]
    IssuerOfNobody,
    /// The token names no tenant, and does not prove enough without it.
    #[error("the token names no tenant, which user {user:?} needs")]
    TokenWithoutTenant {
        /// The user who logs in.
        user: String,
    },
    /// Nothing names a tenant, and the user may act for several or for none.
    #[error("nothing names a tenant for user {user:?}")]
    NotNamed {
        /// The user who logs in.
        user: String,
    },
    /// The user may not act for the tenant.
    #[error("user {user:?} may not act for tenant {tenant:?}")]
    NotGranted {
        /// The user who logs in.
        user: String,
        /// The tenant asked for.
        tenant: TenantId,
    },
    /// There is no such tenant, and unknown ones are refused.
    #[error("no tenant {tenant:?}")]
    UnknownTenant {
        /// The tenant asked for.
        tenant: TenantId,
    },
    /// All is in order, but the user may do nothing in the console. The client has proven to be the user, and may
    /// be told.
    #[error("user {user:?} has no role in the console")]
    NoConsole {
        /// The user who logs in.
        user: String,
    },
    /// All is in order, but the tenant is suspended. The client may be told.
    #[error("tenant {:?} is suspended", tenant.id)]
    Suspended {
        /// The tenant.
        tenant: Arc<Tenant>,
    },
}

impl IdentityError {
    /// A word for metrics, out of a closed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::UnknownUser { .. } => "unknown_user",
            Self::InvalidTenant { .. } => "invalid_tenant",
            Self::AmbiguousServerName { .. } => "ambiguous_server_name",
            Self::Contradiction { .. } => "contradiction",
            Self::OtherUser { .. } => "other_user",
            Self::IssuerOfNobody => "issuer_of_nobody",
            Self::TokenWithoutTenant { .. } => "token_without_tenant",
            Self::NotNamed { .. } => "tenant_not_named",
            Self::NotGranted { .. } => "tenant_not_granted",
            Self::UnknownTenant { .. } => "unknown_tenant",
            Self::NoConsole { .. } => "no_console",
            Self::Suspended { .. } => "suspended",
        }
    }
}

/// Longest piece of a stranger's text in an error, in characters.
const SHOWN_CHARS: usize = 128;

/// The beginning of what a client sent.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}
