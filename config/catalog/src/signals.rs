//! What the mover says to routers while a tenant moves, and what they answer.
//!
//! Both travel as notifications of the catalog: nothing is stored, and a router that hears nothing
//! is dealt with by the fence on the shard. A router is known by the process id of the backend
//! that serves its connection here, so that the mover can tell from `pg_stat_activity` who
//! should have answered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::poll_fn;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use switchyard_config::{ShardName, TenantId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client, Statement};
use tracing::warn;

use crate::connect::CONNECT_TIMEOUT;
use crate::{CatalogError, Endpoint};

/// The channel of [`Order`].
pub const ORDERS: &str = "switchyard_moves";
/// The channel of [`Reply`].
pub const REPLIES: &str = "switchyard_moves_replies";
/// `application_name` of a router's connection for these.
pub const ROUTER_NAME: &str = "switchyard-router-moves";

/// What a router is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Order {
    /// The tenant is about to move: have connections to the target ready.
    Arm {
        /// Who.
        tenant: TenantId,
        /// Where to.
        to: ShardName,
        /// What an answer repeats that is given when they are ready. None is given without it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        attempt: String,
    },
    /// Begin no transaction of the tenant; answer when none is open.
    Hold {
        /// Who.
        tenant: TenantId,
        /// Which attempt at which move; answers repeat it.
        attempt: String,
        /// Milliseconds after which the tenant goes on without further word, unless it is frozen by then.
        #[serde(default = "usual_budget")]
        budget_ms: u64,
        /// Whether sessions that keep their server connection between transactions are ended.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        end_pinned: bool,
    },
    /// Go on, at this place.
    Release {
        /// Who.
        tenant: TenantId,
        /// The attempt that has ended.
        attempt: String,
        /// Where the tenant lives now.
        shard: ShardName,
        /// Its epoch there.
        epoch: u64,
        /// Sessions that cannot be carried to another shard end now, where the tenant has moved.
        #[serde(default)]
        moved: bool,
    },
}

/// What a mover allows that says nothing of it.
fn usual_budget() -> u64 {
    250
}

/// What a router answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// As in the order.
    pub attempt: String,
    /// Process id of the backend that serves the router here.
    pub router: i32,
    /// Transactions of the tenant that are still open.
    pub open: u32,
    /// Sessions that keep their server connection between transactions and cannot be carried.
    pub pinned: u32,
    /// What is in the way, for people: user and age of one of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<String>,
    /// How long the last open transaction kept the router from being drained, in microseconds since it heard the order.
    #[serde(default)]
    pub drained_us: u64,
    /// After a release: how many clients had waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited: Option<u32>,
    /// After a release: the longest wait of a client, in microseconds.
    #[serde(default)]
    pub waited_us: u64,
}

/// A connection to the catalog that hears one channel and speaks on any.
pub struct Signals {
    voice: Voice,
    /// Process id of the backend behind it.
    pub pid: i32,
    heard: mpsc::UnboundedReceiver<String>,
    driver: JoinHandle<()>,
}

/// Speaks by the connection of [`Signals`], while others listen to that.
#[derive(Clone)]
pub struct Voice {
    client: Arc<Client>,
    /// Prepared, as whoever waits for a word waits for each way there and back.
    say: Statement,
    who: Statement,
}

impl Voice {
    /// Says something.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn say(&self, channel: &str, message: &impl Serialize) -> Result<(), CatalogError> {
        let text = serde_json::to_string(message).unwrap_or_default();
        self.client.execute(&self.say, &[&channel, &text]).await?;
        Ok(())
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The routers that hear orders now, by the process ids of their backends.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn routers(&self) -> Result<Vec<i32>, CatalogError> {
        self.connected_as(ROUTER_NAME).await
    }

    /// Those who are connected under this name now, by the process ids of their backends.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn connected_as(&self, name: &str) -> Result<Vec<i32>, CatalogError> {
        let rows = self.client.query(&self.who, &[&name]).await?;
        Ok(rows.iter().map(|r| r.get(0)).collect())
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Signals {
    /// Connects to the catalog at `url` and listens on `channel`.
    ///
    /// # Errors
    /// If the URL is not valid, or the catalog cannot be reached.
    pub async fn connect(url: &SecretString, name: &str, channel: &str) -> Result<Self, CatalogError> {
        let endpoint = Endpoint::new(url, name)?;
        let (client, mut connection) =
            tokio::time::timeout(CONNECT_TIMEOUT, endpoint.config.connect(endpoint.tls))
                .await
                .map_err(|_| CatalogError::Timeout)??;
        let (tell, heard) = mpsc::unbounded_channel();
        let driver = tokio::spawn(async move {
            while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
                match message {
                    Ok(AsyncMessage::Notification(n)) => drop(tell.send(n.payload().to_owned())),
                    Ok(_) => {}
                    Err(error) => {
                        warn!(%error, "the connection for signals failed");
                        break;
                    }
                }
            }
        });
        // A notification needs no durability: who misses it is dealt with in other ways.
        client
            .batch_execute(&format!(
                "SET synchronous_commit = off; SET idle_in_transaction_session_timeout = 0; LISTEN {channel}"
            ))
            .await?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        let say = client.prepare("SELECT pg_notify($1, $2)").await?;
        let who =
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()";
        let who = client.prepare(who).await?;
        Ok(Self { voice: Voice { client: Arc::new(client), say, who }, pid, heard, driver })
    }

    /// The next message on the channel that can be understood; `None` when the connection has ended.
    pub async fn next<T: serde::de::DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            let text = self.heard.recv().await?;
            match serde_json::from_str(&text) {
                Ok(message) => return Some(message),
                Err(error) => warn!(%error, "a signal is not understood"),
            }
        }
    }

    /// As [`Self::next`], for no longer than `limit`.
    pub async fn next_within<T: serde::de::DeserializeOwned>(&mut self, limit: Duration) -> Option<T> {
        tokio::time::timeout(limit, self.next()).await.ok().flatten()
    }

    /// Says something.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn say(&self, channel: &str, message: &impl Serialize) -> Result<(), CatalogError> {
        self.voice.say(channel, message).await
    }

    /// Who says something while this is listened to.
    pub fn voice(&self) -> Voice {
        self.voice.clone()
    }

    /// As [`Voice::connected_as`].
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn connected_as(&self, name: &str) -> Result<Vec<i32>, CatalogError> {
        self.voice.connected_as(name).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_replies_come_back() {
        let tenant = TenantId::new("acme").unwrap();
        let order = Order::Hold { tenant, attempt: "1.2.3".into(), budget_ms: 100, end_pinned: false };
        let text = serde_json::to_string(&order).unwrap();
        assert_eq!(text, r#"{"do":"hold","tenant":"acme","attempt":"1.2.3","budget_ms":100}"#);
        assert_eq!(serde_json::from_str::<Order>(&text).unwrap(), order);
        let reply: Reply = serde_json::from_str(r#"{"attempt":"1","router":7,"open":0,"pinned":0}"#).unwrap();
        assert_eq!((reply.waited, reply.waited_us, reply.drained_us), (None, 0, 0));
    }
}
