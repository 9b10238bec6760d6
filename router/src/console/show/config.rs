//! `SHOW CONFIG`: the settings of the process, and PgBouncer's names for some of them.
//!
//! In order of the keys, and the same as long as the configuration is: check_postgres takes a checksum of it. Nothing
//! secret is in it.

use std::collections::BTreeMap;
use std::time::Duration;

use switchyard_config::settings::{ClientTlsMode, ListenAddress, RouterSettings};

use crate::console::table::{Column, Value, row, text};
use crate::console::view::mode;
use crate::shared::Shared;

pub(super) const COLUMNS: &[Column] = &[text("key"), text("value"), text("default"), text("changeable")];

/// What is read at start only.
const FIXED: [&str; 7] = [
    "listen_addr",
    "listen_port",
    "router.http_listen",
    "router.id",
    "router.listen",
    "router.workers",
    "catalog",
];

pub(super) fn rows(shared: &Shared) -> Vec<Vec<Value>> {
    let defaults = entries(&RouterSettings::default());
    let row = |(key, value): (&'static str, String)| {
        let default = defaults.get(key).cloned().unwrap_or_default();
        row![key, value, default, if FIXED.contains(&key) { "no" } else { "yes" }]
    };
    entries(&shared.settings()).into_iter().map(row).collect()
}

fn duration(d: Duration) -> String {
    if d.subsec_millis() == 0 { format!("{}s", d.as_secs()) } else { format!("{}ms", d.as_millis()) }
}

/// PgBouncer gives times in seconds, without a unit.
fn seconds(d: Duration) -> String {
    d.as_secs().to_string()
}

fn entries(s: &RouterSettings) -> BTreeMap<&'static str, String> {
    let mut all = BTreeMap::new();
    let mut put = |key, value: String| drop(all.insert(key, value));
    own(s, &mut put);
    limits(s, &mut put);
    as_pgbouncer(s, &mut put);
    all
}

fn own(s: &RouterSettings, put: &mut impl FnMut(&'static str, String)) {
    let listen = s.listen.iter().map(|address| match address {
        ListenAddress::Tcp(address) => address.to_string(),
        ListenAddress::Unix { dir, port } => format!("unix:{}:{port}", dir.display()),
    });
    put("router.listen", listen.collect::<Vec<_>>().join(","));
    put("router.http_listen", s.http_listen.map(|address| address.to_string()).unwrap_or_default());
    put("router.id", s.id.to_string());
    put("router.workers", s.workers.to_string());
    put("router.pool_mode", mode(s.pool_mode).to_owned());
    put("router.metrics_tenants", s.metrics_tenants.to_string());
    let tls = match s.tls.mode {
        ClientTlsMode::Disable => "disable",
        ClientTlsMode::Allow => "allow",
        ClientTlsMode::Require => "require",
    };
    put("tls.mode", tls.to_owned());
    put("tls.client_ca", s.tls.client_ca.as_ref().map(|p| p.display().to_string()).unwrap_or_default());
    put("login.md5", s.login.md5.to_string());
    put("login.trust", s.login.trust.to_string());
    put("identity.sni_suffix", s.identity.sni_suffix.clone().unwrap_or_default());
    put("identity.user_separators", s.identity.user_separators.iter().collect());
    put("identity.startup_parameter", s.identity.startup_parameter.clone().unwrap_or_default());
    put("identity.database", s.identity.database.clone().unwrap_or_default());
    put("console.databases", s.console.databases.join(","));
    put("console.sessions", s.console.sessions.to_string());
    put("console.admin_sessions", s.console.admin_sessions.to_string());
    put("console.drain_timeout", duration(s.console.drain_timeout));
    put("console.hold_timeout", duration(s.console.hold_timeout));
    put("console.stats_period", duration(s.console.stats_period));
    // Its URL is a secret, and the rest of no use without it.
    put("catalog", s.catalog.is_some().to_string());
    put("peers", s.peers.iter().map(|p| p.id.to_string()).collect::<Vec<_>>().join(","));
}

fn limits(s: &RouterSettings, put: &mut impl FnMut(&'static str, String)) {
    let l = &s.limits;
    put("limits.clients", l.clients.to_string());
    put("limits.unauthenticated", l.unauthenticated.to_string());
    put("limits.unauthenticated_per_address", l.unauthenticated_per_address.to_string());
    put("limits.login_timeout", duration(l.login_timeout));
    put("limits.startup_bytes", l.startup_bytes.to_string());
    put("limits.token_bytes", l.token_bytes.to_string());
    put("limits.statement_bytes", l.statement_bytes.to_string());
    put("limits.statements_per_client", l.statements_per_client.to_string());
    put("limits.channels_per_tenant", l.channels_per_tenant.to_string());
    put("limits.client_idle_timeout", duration(l.client_idle_timeout));
    put("limits.idle_in_transaction_timeout", duration(l.idle_in_transaction_timeout));
    put("limits.statement_timeout", duration(l.statement_timeout));
    put("limits.transaction_timeout", duration(l.transaction_timeout));
    put("limits.drain_timeout", duration(l.drain_timeout));
    put("limits.cancel_timeout", duration(l.cancel_timeout));
    put("limits.unknown_cancels", l.unknown_cancels.to_string());
}

/// What tools ask for by PgBouncer's names.
fn as_pgbouncer(s: &RouterSettings, put: &mut impl FnMut(&'static str, String)) {
    let tcp = s.listen.iter().find_map(|address| match address {
        ListenAddress::Tcp(address) => Some(address),
        ListenAddress::Unix { .. } => None,
    });
    put("listen_addr", tcp.map(|address| address.ip().to_string()).unwrap_or_default());
    put("listen_port", tcp.map(|address| address.port().to_string()).unwrap_or_default());
    put("max_client_conn", s.limits.clients.to_string());
    // There are none by user or by database: 0 is no limit.
    put("max_user_connections", "0".to_owned());
    put("max_user_client_connections", "0".to_owned());
    put("max_db_connections", "0".to_owned());
    put("max_db_client_connections", "0".to_owned());
    put("pool_mode", mode(s.pool_mode).to_owned());
    put("client_login_timeout", seconds(s.limits.login_timeout));
    put("client_idle_timeout", seconds(s.limits.client_idle_timeout));
    put("idle_transaction_timeout", seconds(s.limits.idle_in_transaction_timeout));
    // What check_postgres knows a configuration by.
    put("log_pooler_errors", "1".to_owned());
    put("query_timeout", seconds(s.limits.statement_timeout));
    put("transaction_timeout", seconds(s.limits.transaction_timeout));
    put("cancel_wait_timeout", seconds(s.limits.cancel_timeout));
    put("max_prepared_statements", s.limits.statements_per_client.to_string());
    put("stats_period", seconds(s.console.stats_period));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_unit() {
        assert_eq!(duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(duration(Duration::from_secs(90)), "90s");
    }

    #[test]
    fn nothing_secret_is_shown() {
        let catalog = switchyard_config::settings::CatalogSettings {
            url: "postgres://u:sesame@h/d".to_owned().into(),
            state_file: None,
            poll: Duration::from_secs(5),
        };
        let settings = RouterSettings { catalog: Some(catalog), ..RouterSettings::default() };
        assert!(entries(&settings).values().all(|value| !value.contains("sesame")));
        assert_eq!(entries(&settings)["catalog"], "true");
    }
}
