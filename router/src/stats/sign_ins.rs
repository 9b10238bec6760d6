//! Who signed in or was refused since somebody last asked.

use std::collections::HashMap;
use std::net::IpAddr;

use parking_lot::Mutex;
use switchyard_catalog::SignIn;
use switchyard_config::TenantId;

use super::Method;

/// Different ones that are kept apart; beyond, all go to one without user and address, so that a
/// stranger who makes up names takes no memory.
const KINDS: usize = 2000;

/// Longest user name that is kept, in characters.
const NAME_CHARS: usize = 63;

#[derive(PartialEq, Eq, Hash)]
struct Kind {
    tenant: Option<TenantId>,
    user: String,
    source: Option<IpAddr>,
    method: &'static str,
    outcome: &'static str,
}

/// See the module. Logins are rare beside statements: a lock is cheap enough.
#[derive(Default)]
pub(crate) struct SignIns(Mutex<HashMap<Kind, u64>>);

impl SignIns {
    /// Counts a login. `user` is as the client said it.
    pub(crate) fn note(
        &self,
        tenant: Option<&TenantId>,
        user: &str,
        source: Option<IpAddr>,
        method: Method,
        outcome: &'static str,
    ) {
        let user = user.chars().filter(|c| !c.is_control()).take(NAME_CHARS).collect();
        let method = Method::ALL[method as usize].1;
        let mut kind = Kind { tenant: tenant.cloned(), user, source, method, outcome };
        let mut kinds = self.0.lock();
        if kinds.len() >= KINDS && !kinds.contains_key(&kind) {
            kind = Kind { tenant: None, user: String::new(), source: None, method: "any", outcome };
        }
        *kinds.entry(kind).or_default() += 1;
    }

    /// All that were counted, which are counted no more.
    pub(crate) fn take(&self) -> Vec<SignIn> {
        let kinds = std::mem::take(&mut *self.0.lock());
        let sign_in = |(kind, count): (Kind, u64)| SignIn {
            tenant: kind.tenant.map(|t| t.as_str().to_owned()),
            username: kind.user,
            source: kind.source.map_or_else(|| "local".to_owned(), |ip| ip.to_canonical().to_string()),
            method: kind.method,
            outcome: kind.outcome,
            count,
        };
        kinds.into_iter().map(sign_in).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_take_no_memory() {
        let sign_ins = SignIns::default();
        for n in 0..3 * KINDS {
            sign_ins.note(None, &format!("user\n{n}"), None, Method::None, "refused");
        }
        let taken = sign_ins.take();
        assert_eq!(taken.len(), KINDS + 1);
        assert_eq!(taken.iter().map(|s| s.count).sum::<u64>(), 3 * KINDS as u64);
        assert!(taken.iter().all(|s| !s.username.contains('\n')));
        assert!(sign_ins.take().is_empty());
    }
}
