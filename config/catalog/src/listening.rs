//! What routers say to each other about tenants that somebody listens for, so that a listener at one
//! router hears what is notified through another. Like [`crate::signals`], it travels as notifications of the
//! catalog, and nothing is stored.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use switchyard_config::TenantId;

use crate::connect::{self, Endpoint};
use crate::read::within;
use crate::{CatalogError, SCHEMA};

/// The channel of [`Word`].
pub const WORDS: &str = "switchyard_listening";

/// `application_name` of a router's connection for these.
pub const NAME: &str = "switchyard-router-listening";

/// What a router says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Who says it: a number that each process makes for itself.
    pub from: u64,
    /// Where it is answered from: what [`crate::signals::Signals::connected_as`] gives for this router, or a
    /// peer's number.
    pub seat: i32,
    /// Rises with every word of `from`; 0 where words cannot be said again by others.
    #[serde(default)]
    pub number: u64,
    /// What.
    #[serde(flatten)]
    pub says: Says,
}

/// See [`Word`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "says", rename_all = "snake_case")]
pub enum Says {
    /// It is there, and does not know who listens where.
    Came,
    /// All that there was to say to the one who came has been said.
    Told {
        /// The one who came.
        to: u64,
    },
    /// Somebody listens for these tenants at one of its hubs.
    Listened {
        /// Number of the hub.
        hub: u64,
        /// The shard that the hub is at.
        shard: String,
        /// What the answer repeats.
        ask: u64,
        /// The tenants.
        tenants: Vec<TenantId>,
        /// Whether those are to be announced anew that are announced already.
        anew: bool,
        /// Whether that has been said before.
        late: bool,
    },
    /// Nobody listens for these tenants at that hub any more.
    Unlistened {
        /// Number of the hub.
        hub: u64,
        /// The tenants.
        tenants: Vec<TenantId>,
    },
    /// Its connections announce tenants from now on.
    Announces {
        /// Who asked.
        to: u64,
        /// The question.
        ask: u64,
        /// Number of the last announcement that had been made.
        as_of: u64,
        /// Place of the tenant in the question, the generation that it is announced with, and the id of a
        /// server process that serves it right now, or 0.
        what: Vec<(u32, u64, u32)>,
        /// Whether clients may have notified unannounced since that was said first.
        late: bool,
        /// Whether this is all of the answer.
        done: bool,
    },
}

/// The key that all routers of the catalog at `url` announce tenants by.
///
/// # Errors
/// If the catalog cannot be reached, or has none for us.
pub async fn notification_key(url: &SecretString) -> Result<SecretString, CatalogError> {
    let connected = connect::connect(&Endpoint::new(url, "switchyard-router")?).await?;
    let sql = format!("SELECT key FROM {SCHEMA}.notification_key");
    within(async { Ok(SecretString::from(connected.client.query_one(&sql, &[]).await?.get::<_, String>(0))) })
        .await
}
