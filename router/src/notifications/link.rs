//! How routers reach each other to speak of who listens: by the catalog that they share.

use std::collections::HashSet;

use secrecy::SecretString;
use switchyard_catalog::CatalogError;
use switchyard_catalog::listening::{NAME, WORDS, Word};
use switchyard_catalog::signals::Signals;
use switchyard_config::settings::RouterSettings;

/// How others are reached.
pub(crate) enum Means {
    /// By the catalog at this URL.
    Catalog(SecretString),
}

impl Means {
    /// Those of a router with these settings, if there are any.
    pub(crate) fn of(settings: &RouterSettings) -> Option<Self> {
        settings.catalog.as_ref().map(|catalog| Self::Catalog(catalog.url.clone()))
    }
}

/// Others cannot be heard, and why.
pub(super) struct Lost(pub(super) String);

impl From<CatalogError> for Lost {
    fn from(error: CatalogError) -> Self {
        Self(error.to_string())
    }
}

/// A connection to all other routers.
pub(super) struct Link(Signals);

impl Link {
    pub(super) async fn connect(means: &Means) -> Result<Self, Lost> {
        let Means::Catalog(url) = means;
        Ok(Self(Signals::connect(url, NAME, WORDS).await?))
    }

    /// What this router is called by the others.
    pub(super) fn seat(&self) -> i32 {
        self.0.pid
    }

    /// Those who hear what is said.
    pub(super) async fn others(&self) -> Result<HashSet<i32>, Lost> {
        let all = self.0.connected_as(NAME).await?;
        Ok(all.into_iter().filter(|pid| *pid != self.0.pid).collect())
    }

    /// Says something to all of them.
    pub(super) async fn say(&self, word: &Word) -> Result<(), Lost> {
        Ok(self.0.say(WORDS, word).await?)
    }

    /// The next that is said by anybody.
    pub(super) async fn next(&mut self) -> Result<Word, Lost> {
        self.0.next().await.ok_or_else(|| Lost("it ended".to_owned()))
    }
}
