//! What `/metrics` shows, in Prometheus's text format.
//!
//! Nothing is registered where it is counted: workers count into [`crate::stats`], and whoever
//! scrapes adds up. All names are in [`names`], all registration is here.

mod family;
mod ledger;
mod names;
mod process;
mod router;
mod tenants;

use std::sync::Arc;

use prometheus::{Registry, TEXT_FORMAT, TextEncoder};

use crate::shared::Shared;

/// The content type of [`Metrics::text`].
pub(crate) const CONTENT_TYPE: &str = TEXT_FORMAT;

/// Which series are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of them.
    All,
    /// Of the router and its shards: their number does not depend on tenants.
    Router,
    /// Of tenants: at most `metrics_tenants` and one, times the families there are.
    Tenants,
}

/// The series of this process.
pub(crate) struct Metrics {
    router: Registry,
    tenants: Registry,
}

impl Metrics {
    /// # Errors
    /// If the registry does not like a name; tests see to it that it does.
    pub(crate) fn new(shared: &Arc<Shared>) -> prometheus::Result<Self> {
        let (router, tenants) = (Registry::new(), Registry::new());
        let counted = Arc::new(tenants::Tenants::new(shared.clone()));
        router.register(Box::new(router::RouterCollector::new(shared.clone(), counted.clone())?))?;
        tenants.register(Box::new(tenants::TenantCollector::new(counted)?))?;
        Ok(Self { router, tenants })
    }

    /// The page. Takes time: not to be called where sessions are served.
    ///
    /// # Errors
    /// If the encoder finds a family that it does not like.
    pub(crate) fn text(&self, part: Part) -> prometheus::Result<String> {
        let mut text = String::new();
        if part != Part::Tenants {
            TextEncoder::new().encode_utf8(&self.router.gather(), &mut text)?;
        }
        if part != Part::Router {
            TextEncoder::new().encode_utf8(&self.tenants.gather(), &mut text)?;
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
