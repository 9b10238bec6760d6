//! The catalog as it is written: typed operations, each one transaction with its record in the audit.

mod access;
mod alerts;
mod audit;
mod buckets;
mod caller;
mod error;
mod events;
mod idempotency;
mod model;
mod moves;
mod operations;
pub(crate) mod passwords;
mod plans;
mod settings;
mod shards;
mod tenants;
mod usage;
mod users;
mod values;
mod watch;

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts, Transaction};
use secrecy::SecretString;
use switchyard_catalog::Endpoint;

pub use access::{NewToken, Role, Token};
pub(crate) use alerts::Delivery;
pub use alerts::{Alert, NewWebhook, TenantHealth, Webhook};
pub use audit::{AuditEvent, AuditProof, AuditQuery};
pub use buckets::BucketRun;
pub use caller::{Caller, Precondition, etag};
pub use error::StoreError;
pub use events::Event;
pub(crate) use idempotency::{Claim, Earlier};
pub use model::{
    MethodsPatch, NewTenant, NewUser, PlacedBy, Secrets, Tenant, TenantFilter, TenantPatch, User, UserPatch,
    given,
};
pub use moves::{
    Move, MoveCounts, MoveEvent, MoveFilter, MoveKind, MoveOptions, MoveStream, NewMove, ShardAdmin,
};
pub use operations::{Ending, NewOperation, Operation, OperationFilter, Progress, Report};
pub use plans::{Limits, NewPlan, Plan, PlanPatch, TenantLimits};
pub use settings::{Counts, Issuers, Provision, SettingsPatch};
pub(crate) use shards::ShardAccess;
pub use shards::{NewShard, Shard, ShardPatch};
pub use usage::{Router, SignIn, Span, Usage, UsageQuery};
pub use values::{NewValue, ValueInfo};
pub(crate) use watch::Used;

use crate::migrations;
use crate::vault::Keys;

/// Connections to the catalog. Requests are short; this many in flight keep a small server busy.
const CONNECTIONS: usize = 8;

/// How long a request may wait for a connection, and a connection for the catalog.
const WAIT: Duration = Duration::from_secs(5);

/// The catalog, for writers. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    /// What seals values; nothing can be sealed without.
    keys: Option<std::sync::Arc<Keys>>,
}

impl Store {
    /// Connects, and brings the schema up to date.
    ///
    /// # Errors
    /// If the URL is not valid, the catalog cannot be reached, or its schema is not ours.
    pub async fn open(url: &SecretString) -> Result<Self, StoreError> {
        let at = Endpoint::new(url, "switchyard-control-plane")?;
        let fast = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(at.config, at.tls, fast);
        let timeouts = Timeouts { wait: Some(WAIT), create: Some(WAIT), recycle: Some(WAIT) };
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .timeouts(timeouts)
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|_| StoreError::Unavailable)?;
        let mut client = pool.get().await?;
        migrations::migrate(&mut client).await?;
        drop(client);
        Ok(Self { pool, keys: None })
    }

    /// The same, with keys that seal values.
    pub(crate) fn with_keys(self, keys: Option<Keys>) -> Self {
        Self { keys: keys.map(std::sync::Arc::new), ..self }
    }

    /// Whether the catalog answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.client().await?.query_one("SELECT 1", &[]).await?;
        Ok(())
    }

    async fn client(&self) -> Result<deadpool_postgres::Client, StoreError> {
        Ok(self.pool.get().await?)
    }
}

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// UTC in RFC 3339, to the second, as a column of SQL.
fn timestamp(column: &str) -> String {
    format!("to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")
}

/// Takes the row that every writer takes, so that what is read from here on stays as it is.
async fn lock_version(t: &Transaction<'_>) -> Result<(), StoreError> {
    t.query_one("SELECT 1 FROM topology_version FOR UPDATE", &[]).await?;
    Ok(())
}

/// The version of the topology: what is read from here on is of this one or a later one.
async fn version(t: &Transaction<'_>) -> Result<i64, StoreError> {
    Ok(t.query_one("SELECT version FROM topology_version", &[]).await?.get(0))
}

/// As [`lock_version`], late: whether nobody has written since `version` was read.
async fn is_still(t: &Transaction<'_>, version: i64) -> Result<bool, StoreError> {
    let row = t.query_one("SELECT version FROM topology_version FOR UPDATE", &[]).await?;
    Ok(row.get::<_, i64>(0) == version)
}
