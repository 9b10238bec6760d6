//! What a router tells the catalog: that it lives, what tenants have used, and who signed in.
//!
//! Reports go straight to the catalog, to one function that routers are granted, so that no report
//! depends on a control plane being up. A report that was not answered is sent again just as it
//! was: its number tells the catalog whether it was counted already.

use secrecy::SecretString;
use serde::Serialize;
use tokio_postgres::types::Json;

use crate::connect::{self, Connected, Endpoint};
use crate::read::within;
use crate::{CatalogError, SCHEMA};

/// What a router reports.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Made when the router starts; another process has another.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it accepts clients.
    pub address: Option<String>,
    /// The version of the topology that it decides from.
    pub topology: u64,
    /// Rises by one from report to report.
    pub sequence: u64,
    /// Clients now.
    pub clients: u64,
    /// When it started, in seconds since 1970.
    pub started: f64,
    /// What tenants did since the last report.
    pub usage: Vec<TenantUsage>,
    /// Who signed in or was refused since the last report.
    pub sign_ins: Vec<SignIn>,
}

/// What one tenant did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TenantUsage {
    /// The tenant.
    pub tenant: String,
    /// Transactions.
    pub transactions: u64,
    /// Statements.
    pub statements: u64,
    /// Rows.
    pub rows: u64,
    /// Errors.
    pub errors: u64,
    /// Transactions held back or refused for a limit.
    pub limited: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Time that server connections were lent, in microseconds.
    pub server_us: u64,
    /// Time spent waiting for server connections, in microseconds.
    pub wait_us: u64,
    /// Connections now.
    pub connections: i64,
}

/// Logins that were alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SignIn {
    /// The tenant, if it was found to be one that exists.
    pub tenant: Option<String>,
    /// As which user.
    pub username: String,
    /// From which address.
    pub source: String,
    /// How it was to be proved.
    pub method: &'static str,
    /// `ok`, `refused` or `suspended`.
    pub outcome: &'static str,
    /// How many.
    pub count: u64,
}

/// A connection for reports, made when it is needed.
pub struct Reporter {
    url: SecretString,
    connected: Option<Connected>,
}

impl Reporter {
    /// Reports to the catalog at `url`.
    pub fn new(url: SecretString) -> Self {
        Self { url, connected: None }
    }

    /// Sends a report. Whether it was new to the catalog.
    ///
    /// # Errors
    /// If the catalog cannot be reached, or has no place for reports or does not let us.
    pub async fn send(&mut self, report: &Report) -> Result<bool, CatalogError> {
        let connected = match self.connected.take() {
            Some(connected) if !connected.client.is_closed() => connected,
            _ => connect::connect(&Endpoint::new(&self.url, "switchyard-reports")?).await?,
        };
        let sql = format!("SELECT {SCHEMA}.report($1)");
        let sent = within(async {
            Ok(connected.client.query_one(&sql, &[&Json(report)]).await?.get::<_, Option<bool>>(0))
        })
        .await?;
        // Only a connection that is in order is kept.
        self.connected = Some(connected);
        Ok(sent.unwrap_or_default())
    }
}
