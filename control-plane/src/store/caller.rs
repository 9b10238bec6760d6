//! Who asks, and what for: everything that the audit tells of a request.

use aws_lc_rs::digest;
use serde::Serialize;
use switchyard_config::topology::LoginMethods;

use super::{Role, StoreError};

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The token's name, or the subject of an OIDC token; for the audit.
    pub name: String,
    /// What is allowed.
    pub role: Role,
    /// The one tenant that it is allowed for; every tenant if none.
    pub tenant: Option<String>,
    /// How the caller proved itself: `token`, `oidc` or `process`.
    pub method: &'static str,
    /// The address that it called from.
    pub source: Option<String>,
    /// Tells the request apart from others in logs and audit.
    pub request_id: Option<String>,
    /// What the caller takes the thing to be that it changes.
    pub precondition: Precondition,
}

/// What must hold of a thing before it is changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// It is one of these, by their entity tags.
    Match(Vec<String>),
}

impl Caller {
    /// The process itself.
    pub fn system() -> Self {
        Self {
            name: "system".to_owned(),
            role: Role::Admin,
            tenant: None,
            method: "process",
            source: None,
            request_id: None,
            precondition: Precondition::None,
        }
    }

    /// Whether the caller may have to do with `tenant`.
    pub fn reaches(&self, tenant: &str) -> bool {
        self.tenant.as_deref().is_none_or(|own| own == tenant)
    }

    /// Whether the caller may make, change or take away a user with these ways to log in. Who can set the
    /// password of a user with a role in the console has that role, on every router: so this is for
    /// administrators, whatever the role in the console.
    pub(super) fn may_touch(&self, methods: &LoginMethods) -> bool {
        methods.console.is_none() || (self.role == Role::Admin && self.tenant.is_none())
    }

    /// Checks that `current` is what the caller takes it for.
    pub(super) fn expects(&self, current: &impl Serialize) -> Result<(), StoreError> {
        match &self.precondition {
            Precondition::None => Ok(()),
            Precondition::Match(tags) => {
                let tag = etag(current);
                if tags.contains(&tag) { Ok(()) } else { Err(StoreError::Changed { tag }) }
            }
        }
    }
}

/// The entity tag of what the API shows: the same for the same content, with its quotes.
pub fn etag(value: &impl Serialize) -> String {
    let text = serde_json::to_vec(value).unwrap_or_default();
    let hash = digest::digest(&digest::SHA256, &text);
    let hex: String = hash.as_ref().iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("\"{hex}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precondition_holds_for_the_same_content_only() {
        let mut caller = Caller::system();
        assert!(caller.expects(&1).is_ok());
        caller.precondition = Precondition::Match(vec![etag(&"x"), etag(&1)]);
        assert!(caller.expects(&1).is_ok());
        assert!(matches!(caller.expects(&2), Err(StoreError::Changed { tag }) if tag == etag(&2)));
    }

    #[test]
    fn a_tenants_caller_reaches_no_other() {
        let all = Caller::system();
        let one = Caller { tenant: Some("acme".into()), ..Caller::system() };
        assert!(all.reaches("acme") && one.reaches("acme"));
        assert!(!one.reaches("globex"));
    }
}
