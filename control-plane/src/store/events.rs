//! What happened, in the order in which it was committed.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{Store, StoreError, timestamp};

/// Something that happened.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Event {
    /// Rises; there may be gaps.
    pub id: i64,
    /// When, in UTC.
    pub at: String,
    /// `operation`, or the kind of thing that was changed.
    pub kind: String,
    /// Its id.
    pub target: String,
    /// The tenant that it concerns.
    pub tenant: Option<String>,
    /// What was done, or the operation's state.
    pub what: String,
    /// More of it.
    #[schema(value_type = Object)]
    pub data: Value,
}

impl Store {
    /// Events behind id `behind`, of one tenant if given; at most `limit`.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn events(
        &self,
        behind: i64,
        tenant: Option<&str>,
        limit: i64,
    ) -> Result<Vec<Event>, StoreError> {
        let sql = format!(
            "SELECT id, {}, kind, target, tenant, what, data FROM events
             WHERE id > $1 AND ($2::text IS NULL OR tenant = $2) ORDER BY id LIMIT $3",
            timestamp("at")
        );
        let rows = self.client().await?.query(&sql, &[&behind, &tenant, &limit]).await?;
        let event = |r: &tokio_postgres::Row| Event {
            id: r.get(0),
            at: r.get(1),
            kind: r.get(2),
            target: r.get(3),
            tenant: r.get(4),
            what: r.get(5),
            data: r.get(6),
        };
        Ok(rows.iter().map(event).collect())
    }

    /// The id of the last event.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn last_event(&self) -> Result<i64, StoreError> {
        let sql = "SELECT COALESCE(max(id), 0) FROM events";
        Ok(self.client().await?.query_one(sql, &[]).await?.get(0))
    }
}
