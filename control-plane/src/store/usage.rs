//! What tenants have used, by routers' reports; and the routers themselves.

use serde::Serialize;
use tokio_postgres::Row;
use utoipa::ToSchema;

use super::{Store, StoreError, timestamp};

/// A router, as it reports itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct Router {
    /// Made when it starts.
    pub id: String,
    /// Its name: host name and process id, unless configured.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it accepts clients.
    pub address: Option<String>,
    /// The version of the topology that it decides from.
    pub topology: i64,
    /// Versions behind the catalog.
    pub behind: i64,
    /// Clients now.
    pub clients: i64,
    /// When it started, in UTC.
    pub started_at: String,
    /// When it last reported, in UTC.
    pub seen_at: String,
    /// Whether it has reported within the last minute.
    pub alive: bool,
}

/// What a tenant used in a span of time.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Usage {
    /// The tenant.
    pub tenant: String,
    /// When the span begins, in UTC.
    pub at: String,
    /// Transactions.
    pub transactions: i64,
    /// Statements.
    pub statements: i64,
    /// Rows, as command tags told them.
    pub rows: i64,
    /// Errors.
    pub errors: i64,
    /// Transactions held back or refused for a limit.
    pub limited: i64,
    /// Bytes from clients.
    pub bytes_in: i64,
    /// Bytes to clients.
    pub bytes_out: i64,
    /// Time that server connections were lent, in microseconds.
    pub server_us: i64,
    /// Time spent waiting for server connections, in microseconds.
    pub wait_us: i64,
    /// Most connections at once on one router.
    pub connections: i32,
    /// Bytes on the shard, as last measured in the span.
    pub storage: Option<i64>,
}

/// How long each span is kept, and its name in the catalog.
const KEPT: [(i8, &str); 3] = [(b'm' as i8, "2 days"), (b'h' as i8, "62 days"), (b'd' as i8, "800 days")];

/// How long sign-ins are kept.
const SIGN_INS_KEPT: &str = "30 days";

/// How long events are kept, for who listens and was away.
const EVENTS_KEPT: &str = "7 days";

/// What the spans are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Kept for 2 days.
    Minute,
    /// Kept for 62 days.
    Hour,
    /// Kept for 800 days.
    Day,
}

impl Span {
    fn code(self) -> i8 {
        match self {
            Self::Minute => b'm' as i8,
            Self::Hour => b'h' as i8,
            Self::Day => b'd' as i8,
        }
    }
}

/// Which usage to tell.
#[derive(Debug, Clone)]
pub struct UsageQuery<'a> {
    /// Of this tenant; of all if none.
    pub tenant: Option<&'a str>,
    /// By this span.
    pub span: Span,
    /// From this time, in seconds since 1970.
    pub from: f64,
    /// To before this time.
    pub to: f64,
    /// Those behind this tenant and time, as the last page ended.
    pub behind: Option<(&'a str, f64)>,
    /// At most so many.
    pub limit: i64,
}

/// Someone who signed in or was refused.
#[derive(Debug, Serialize, ToSchema)]
pub struct SignIn {
    /// The minute, in UTC.
    pub at: String,
    /// As which user.
    pub user: String,
    /// From which address.
    pub source: String,
    /// How it was to be proved.
    pub method: String,
    /// `ok`, or why not.
    pub outcome: String,
    /// How often within the minute.
    pub count: i64,
    /// At which router.
    pub router: String,
}

impl Store {
    /// Routers, those seen last first. One that has not reported for a day is forgotten.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn routers(&self) -> Result<Vec<Router>, StoreError> {
        let sql = format!(
            "SELECT id, name, r.version, address, topology, v.version - topology, clients, {}, {},
                    seen_at > now() - interval '1 min'
             FROM routers r, (SELECT version FROM topology_version) v (version)
             ORDER BY seen_at DESC, id LIMIT 1000",
            timestamp("started_at"),
            timestamp("seen_at")
        );
        let router = |r: &Row| Router {
            id: r.get(0),
            name: r.get(1),
            version: r.get(2),
            address: r.get(3),
            topology: r.get(4),
            behind: r.get(5),
            clients: r.get(6),
            started_at: r.get(7),
            seen_at: r.get(8),
            alive: r.get(9),
        };
        Ok(self.client().await?.query(&sql, &[]).await?.iter().map(router).collect())
    }

    /// Usage in order of tenants and time.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn usage(&self, query: &UsageQuery<'_>) -> Result<Vec<Usage>, StoreError> {
        let sql = format!(
            "{} WHERE span = $1 AND at >= to_timestamp($2) AND at < to_timestamp($3) AND ($4::text IS NULL OR tenant = $4)
               AND (tenant, at) > ($5, to_timestamp($6)) ORDER BY tenant, at LIMIT $7",
            select_usage()
        );
        let (tenant, at) = query.behind.unwrap_or(("", 0.0));
        let client = self.client().await?;
        let rows = client
            .query(
                &sql,
                &[&query.span.code(), &query.from, &query.to, &query.tenant, &tenant, &at, &query.limit],
            )
            .await?;
        Ok(rows.iter().map(usage).collect())
    }

    /// The busiest tenants of the last two minutes, by `column`.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn busiest(&self, column: &'static str, limit: i64) -> Result<Vec<Usage>, StoreError> {
        let sums: String = [
            "transactions",
            "statements",
            "rows",
            "errors",
            "limited",
            "bytes_in",
            "bytes_out",
            "server_us",
            "wait_us",
        ]
        .map(|c| format!("sum({c})::bigint AS {c}, "))
        .concat();
        let sql = format!(
            "SELECT tenant, {} AS at, {sums} max(connections) AS connections, max(storage) AS storage
             FROM usage WHERE span = 'm' AND at >= date_trunc('minute', now()) - interval '1 min'
             GROUP BY tenant ORDER BY {column} DESC, tenant LIMIT $1",
            timestamp("min(at)")
        );
        Ok(self.client().await?.query(&sql, &[&limit]).await?.iter().map(usage).collect())
    }

    /// Sign-ins of a tenant's users and refusals, the latest first.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn sign_ins(&self, tenant: &str, limit: i64) -> Result<Vec<SignIn>, StoreError> {
        let sql = format!(
            "SELECT {}, username, source, method, outcome, count, router FROM sign_ins
             WHERE tenant = $1 ORDER BY at DESC LIMIT $2",
            timestamp("at")
        );
        let rows = self.client().await?.query(&sql, &[&tenant, &limit]).await?;
        let sign_in = |r: &Row| SignIn {
            at: r.get(0),
            user: r.get(1),
            source: r.get(2),
            method: r.get(3),
            outcome: r.get(4),
            count: r.get(5),
            router: r.get(6),
        };
        Ok(rows.iter().map(sign_in).collect())
    }

    /// Writes what tenants of a shard hold.
    ///
    /// # Errors
    /// If the catalog fails.
    pub(crate) async fn set_storage(&self, measured: &[(String, i64)]) -> Result<(), StoreError> {
        let (tenants, bytes): (Vec<&str>, Vec<i64>) = measured.iter().map(|(t, b)| (t.as_str(), *b)).unzip();
        let sql = "INSERT INTO usage (span, at, tenant, storage)
                   SELECT s.span, s.at, m.tenant, m.bytes
                   FROM unnest($1::text[], $2::bigint[]) AS m (tenant, bytes) JOIN tenants t ON t.id = m.tenant,
                        (VALUES ('h'::\"char\", date_trunc('hour', now(), 'UTC')),
                                ('d', date_trunc('day', now(), 'UTC'))) AS s (span, at)
                   -- Who holds nothing, as before, needs no row that says so.
                   WHERE m.bytes > 0 OR EXISTS (
                       SELECT FROM usage u WHERE u.tenant = m.tenant AND u.span = 'd' AND u.storage > 0)
                   ORDER BY m.tenant, s.span
                   ON CONFLICT (tenant, span, at) DO UPDATE SET storage = excluded.storage";
        self.client().await?.execute(sql, &[&tenants, &bytes]).await?;
        Ok(())
    }

    /// Forgets what is older than it is kept.
    ///
    /// # Errors
    /// If the catalog fails.
    pub(crate) async fn forget_old(&self) -> Result<u64, StoreError> {
        let client = self.client().await?;
        let mut forgotten = 0;
        for (span, kept) in KEPT {
            let sql = format!("DELETE FROM usage WHERE span = $1 AND at < now() - interval '{kept}'");
            forgotten += client.execute(&sql, &[&span]).await?;
        }
        for sql in [
            format!("DELETE FROM sign_ins WHERE at < now() - interval '{SIGN_INS_KEPT}'"),
            format!("DELETE FROM events WHERE at < now() - interval '{EVENTS_KEPT}'"),
            "DELETE FROM idempotency WHERE started_at < now() - interval '1 day'".to_owned(),
            "DELETE FROM routers WHERE seen_at < now() - interval '1 day'".to_owned(),
            "DELETE FROM alerts WHERE cleared_at < now() - interval '30 days'".to_owned(),
        ] {
            forgotten += client.execute(&sql, &[]).await?;
        }
        Ok(forgotten)
    }
}

fn select_usage() -> String {
    format!(
        "SELECT tenant, {} AS shown, transactions, statements, rows, errors, limited, bytes_in, bytes_out, server_us,
                wait_us, connections, storage FROM usage",
        timestamp("at")
    )
}

fn usage(r: &Row) -> Usage {
    Usage {
        tenant: r.get(0),
        at: r.get(1),
        transactions: r.get("transactions"),
        statements: r.get("statements"),
        rows: r.get("rows"),
        errors: r.get("errors"),
        limited: r.get("limited"),
        bytes_in: r.get("bytes_in"),
        bytes_out: r.get("bytes_out"),
        server_us: r.get("server_us"),
        wait_us: r.get("wait_us"),
        connections: r.get("connections"),
        storage: r.get("storage"),
    }
}
