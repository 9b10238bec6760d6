//! The tenant that all sources heard so far agree on.

use switchyard_config::TenantId;

use super::error::{IdentityError, Source};

/// What was said first, and by whom.
#[derive(Debug, Clone, Default)]
pub(super) struct Agreement {
    said: Option<(Source, TenantId)>,
    /// What was said has no case: another spelling agrees with it and replaces it.
    without_case: bool,
}

impl Agreement {
    /// The tenant, if anybody spoke.
    pub(super) fn tenant(&self) -> Option<&TenantId> {
        self.said.as_ref().map(|(_, tenant)| tenant)
    }

    /// Adds what `source` says.
    pub(super) fn hear(&mut self, source: Source, tenant: TenantId) -> Result<(), IdentityError> {
        match &self.said {
            Some((_, first)) if *first == tenant => {}
            Some((_, first)) if self.without_case && first.as_str().eq_ignore_ascii_case(tenant.as_str()) => {
                self.said = Some((source, tenant));
            }
            Some((first, says)) => {
                return Err(IdentityError::Contradiction {
                    first: *first,
                    says: says.clone(),
                    second: source,
                    but: tenant,
                });
            }
            None => self.said = Some((source, tenant)),
        }
        self.without_case = false;
        Ok(())
    }

    /// Adds what a source says that cannot tell `a` from `A`. Must be the first to speak.
    pub(super) fn hear_without_case(
        &mut self,
        source: Source,
        tenant: TenantId,
    ) -> Result<(), IdentityError> {
        let first = self.said.is_none();
        self.hear(source, tenant)?;
        self.without_case = first;
        Ok(())
    }
}
