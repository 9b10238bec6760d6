//! What a router has of tenants' limits, where several routers share them.
//!
//! A router says every second what it uses and would use; the catalog answers with what it has from then on. The parts of
//! all routers come to no more than the limit. No control plane has a part in it.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Json;

use crate::connect::{self, Connected, Endpoint};
use crate::read::within;
use crate::{CatalogError, SCHEMA};

/// Which of a tenant's limits is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseKind {
    /// Client connections.
    Connections,
    /// Open transactions.
    Transactions,
    /// Transactions, in thousandths per second.
    Rate,
    /// Bytes, in thousandths per second.
    Bytes,
}

/// What a router uses of a limit, and would use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// The tenant.
    pub tenant: String,
    /// The limit.
    pub kind: LeaseKind,
    /// What it is, over all routers.
    pub most: u64,
    /// What is in use and cannot be given back.
    pub used: u64,
    /// What would be used.
    pub demand: u64,
}

/// What a router has of a limit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Granted {
    /// The tenant.
    pub tenant: String,
    /// The limit.
    pub kind: LeaseKind,
    /// The router's part.
    pub held: u64,
    /// What other routers use, as they said last.
    pub elsewhere: u64,
    /// Whether no other router has a part.
    pub alone: bool,
}

/// A connection for leases, made when it is needed.
pub struct Leases {
    url: SecretString,
    router: String,
    connected: Option<Connected>,
}

impl Leases {
    /// Those of the router with this id, from the catalog at `url`.
    pub fn new(url: SecretString, router: String) -> Self {
        Self { url, router, connected: None }
    }

    /// Asks for parts of these limits, and gives back those of all others.
    ///
    /// # Errors
    /// If the catalog cannot be reached, or has no leases or does not let us.
    pub async fn renew(&mut self, asked: &[Asked]) -> Result<Vec<Granted>, CatalogError> {
        let connected = match self.connected.take() {
            Some(connected) if !connected.client.is_closed() => connected,
            _ => connect::connect(&Endpoint::new(&self.url, "switchyard-leases")?).await?,
        };
        let sql = format!("SELECT {SCHEMA}.lease($1, $2)");
        let granted: Json<Vec<Granted>> = within(async {
            let row = connected.client.query_one(&sql, &[&self.router, &Json(asked)]).await?;
            Ok(row.try_get(0)?)
        })
        .await?;
        // Only a connection that is in order is kept.
        self.connected = Some(connected);
        Ok(granted.0)
    }
}
