//! Every name that the router shows, with its meaning. Dashboards and alerts are checked against
//! this list.

use super::family::{Family, Kind};

macro_rules! families {
    ($($id:ident: $kind:ident $name:literal $help:literal;)*) => {
        $(pub(in crate::metrics) const $id: Family =
            Family { name: $name, kind: Kind::$kind, help: $help };)*
        /// All of this part.
        pub(in crate::metrics) const ALL: &[Family] = &[$($id),*];
    };
}

/// Of the process, its shards and its clients as a whole.
pub(super) mod router {
    use super::{Family, Kind};

    families! {
        BUILD_INFO: Gauge "switchyard_build_info" "The version that runs; always 1.";
        CONFIG_GENERATION: Gauge "switchyard_config_generation"
            "How often settings or topology have been taken over in this process.";
        CONFIG_RELOADS: Counter "switchyard_config_reloads_total" "Reloads of the configuration file.";
        TOPOLOGY_VERSION: Gauge "switchyard_topology_version"
            "Version of the topology in use; the same on all routers of one catalog.";
        TOPOLOGY_SHARDS: Gauge "switchyard_topology_shards" "Shards in the topology.";
        TOPOLOGY_TENANTS: Gauge "switchyard_topology_tenants" "Tenants in the topology.";
        READY: Gauge "switchyard_ready" "Whether /readyz says 200.";
        CATALOG_CONNECTED: Gauge "switchyard_catalog_connected" "Whether there is a connection to the catalog.";
        CATALOG_STALENESS: Gauge "switchyard_catalog_staleness_seconds"
            "Since the catalog was last read or found unchanged; since the start, if never.";
        CATALOG_FAILURES: Counter "switchyard_catalog_failures_total"
            "Connections to the catalog lost or not made.";

        CLIENT_CONNECTIONS: Gauge "switchyard_client_connections"
            "Clients by state: login, idle, active, waiting for a server connection, idle_in_transaction.";
        CLIENT_CONNECTIONS_MAX: Gauge "switchyard_client_connections_max"
            "Most clients that are let in.";
        ACCEPTED: Counter "switchyard_client_connections_accepted_total" "Connections accepted.";
        REJECTED: Counter "switchyard_client_connections_rejected_total"
            "Connections turned away for another reason than a failed proof.";
        AUTH_ATTEMPTS: Counter "switchyard_auth_attempts_total" "Logins by method and outcome.";

        SERVER_CONNECTIONS: Gauge "switchyard_server_connections"
            "Server connections by state: active (lent), idle, login (being made).";
        SERVER_CONNECTIONS_MAX: Gauge "switchyard_server_connections_max"
            "Most server connections to the shard.";
        SERVER_CONNECTS: Counter "switchyard_server_connects_total" "Attempts to connect to the shard.";
        STANDBY_CONNECTIONS: Gauge "switchyard_standby_connections"
            "Server connections to a shard's standbys, by state: active (lent), idle, login (being made).";
        STANDBY_LAG: Gauge "switchyard_standby_lag_seconds"
            "How far a standby is behind its primary at most; absent where that is not known.";
        STANDBY_USABLE: Gauge "switchyard_standby_usable"
            "Whether a standby serves sessions that only read: it answers, and is not too far behind.";
        POOL_WAIT: Histogram "switchyard_pool_wait_seconds"
            "Time in the queue for a server connection, of those who had to queue and got one.";
        POOL_OLDEST_WAIT: Gauge "switchyard_pool_oldest_wait_seconds"
            "How long the first in the queue has waited.";
        POOL_WAITING: Gauge "switchyard_pool_waiting_clients" "Clients in the queue for a server connection.";
        POOL_TIMEOUTS: Counter "switchyard_pool_queue_timeouts_total"
            "Clients that got no server connection in time.";
        TRANSACTION: Histogram "switchyard_transaction_seconds"
            "From the moment a server connection was lent to the end of the transaction.";
        SESSION_RESETS: Counter "switchyard_session_resets_total"
            "What was written ahead of clients' bytes: clean (all state dropped), context (a tenant's set).";
        HANDOVER_FAILURES: Counter "switchyard_handover_failures_total"
            "Server connections on which cleaning or setting the context failed; they were closed.";
        PROBES: Counter "switchyard_session_probes_total"
            "Transactions after which the server connection was asked what they have left on it.";

        STATEMENTS: Counter "switchyard_statements_total" "Simple queries, and Parse messages of the extended protocol.";
        ERRORS: Counter "switchyard_errors_total" "Errors that clients were answered with after login.";
        BYTES: Counter "switchyard_bytes_total" "Bytes exchanged with clients that have logged in.";
        PINS: Counter "switchyard_pins_total"
            "Sessions that kept their server connection because they hold state that cannot be carried.";
        TIME_LIMITS: Counter "switchyard_time_limits_total"
            "Limits on time that sessions have reached: statement (canceled), transaction, idle_in_transaction, idle (ended).";
        LISTENERS: Gauge "switchyard_notification_listeners" "Clients that listen.";
        HUBS: Gauge "switchyard_notification_hubs"
            "Server connections that listen for all clients of a database, or are being made.";
        NOTIFICATIONS: Counter "switchyard_notifications_delivered_total"
            "Notifications passed on to clients, once for each.";
        NOTIFICATIONS_DROPPED: Counter "switchyard_notifications_dropped_total"
            "Notifications on channels that somebody listens on, passed on to nobody: unheard (of a tenant that does not listen there), unknown (of a process whose tenant is not known: of another router that does not announce it, or of no router), overflow (the client's mailbox is full; its session ends).";
        NOTIFICATION_GAPS: Counter "switchyard_notification_gaps_total"
            "Times that the server connection was lost by which clients listen, or another router had not announced their tenant for a while; they are warned.";
        NOTIFICATION_UNANSWERED: Counter "switchyard_notification_unanswered_total"
            "Questions that another router has not answered in time: whether it announces tenants that clients here listen for.";
        NOTIFICATION_FORGERIES: Counter "switchyard_notification_forgeries_total"
            "Notifications on the routers' private channel that are no router's, or were sent again.";
        PREPARED_PARSES: Counter "switchyard_prepared_parses_total"
            "Named statements prepared on a server connection.";
        PREPARED_REUSES: Counter "switchyard_prepared_reuses_total"
            "Named statements that a client prepared and the server connection had already.";
        PREPARED_EVICTIONS: Counter "switchyard_prepared_evictions_total"
            "Statements closed on a server connection to make room for others.";
        CANCELS: Counter "switchyard_cancels_total" "Cancel requests: forwarded to a shard, an end to a wait for a server connection, passed on to another router, ignored, or dropped by the limit.";

        RESIDENT_MEMORY: Gauge "process_resident_memory_bytes" "Resident memory.";
        VIRTUAL_MEMORY: Gauge "process_virtual_memory_bytes" "Virtual memory.";
        CPU: Counter "process_cpu_seconds_total" "Processor time, in user and kernel mode.";
        START_TIME: Gauge "process_start_time_seconds" "When the process started, in Unix time.";
        OPEN_FDS: Gauge "process_open_fds" "Open file descriptors.";
        MAX_FDS: Gauge "process_max_fds" "Most file descriptors that may be open.";
        THREADS: Gauge "process_threads" "Threads.";
    }
}

/// Of each tenant. A tenant's series begin when it is first scraped after a login.
pub(super) mod tenant {
    use super::{Family, Kind};

    families! {
        TRANSACTIONS: Counter "switchyard_tenant_transactions_total" "Transactions.";
        STATEMENTS: Counter "switchyard_tenant_statements_total"
            "Simple queries, and Parse messages of the extended protocol.";
        ERRORS: Counter "switchyard_tenant_errors_total" "Errors that clients were answered with.";
        BYTES: Counter "switchyard_tenant_bytes_total" "Bytes exchanged with clients.";
        BUSY: Counter "switchyard_tenant_busy_seconds_total" "Time that server connections were lent.";
        WAIT: Counter "switchyard_tenant_wait_seconds_total" "Time in the queue for server connections.";
        WAITS: Counter "switchyard_tenant_waits_total"
            "Transactions that waited for a server connection, or until a limit allowed them.";
        SHED: Counter "switchyard_tenant_shed_total"
            "Transactions refused because a limit or the queue's timeout was reached.";
        ROWS: Counter "switchyard_tenant_rows_total" "Rows returned or changed, by command tags.";
        LIMITED: Counter "switchyard_tenant_limited_total"
            "Transactions that a limit of the tenant's held back or refused.";
        CLIENTS: Gauge "switchyard_tenant_client_connections" "Clients.";
        INFO: Gauge "switchyard_tenant_info" "Where the tenant lives and whether it is served; always 1.";
        ACTIVE: Gauge "switchyard_tenants_active" "Tenants that have a client.";
        DROPPED: Gauge "switchyard_metrics_tenants_dropped"
            "Tenants without series of their own: they are counted in tenant=\"_other\".";
    }
}
