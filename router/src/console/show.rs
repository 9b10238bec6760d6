//! What SHOW answers. The tables that PgBouncer has too have its columns, in its order, of its types
//! (`src/admin.c` and `src/stats.c` of PgBouncer); tools depend on them.

mod config;
mod limits;
mod lists;
mod own;
mod pools;
mod sockets;
mod stats;

use std::sync::Arc;

use switchyard_wire::error::{ErrorResponse, sqlstate};

use super::PGBOUNCER;
use super::command::Page;
use super::table::{Column, Table, Value, row, text};
use super::view::View;
use crate::shared::Shared;

/// What can be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    Clients,
    Config,
    Databases,
    DnsHosts,
    DnsZones,
    Limits,
    Lists,
    Mem,
    PeerPools,
    Peers,
    Pins,
    Pools,
    Servers,
    Sessions,
    Shards,
    State,
    Stats,
    StatsAverages,
    StatsTotals,
    Tenant(String),
    Tenants,
    Totals,
    Users,
    Version,
}

const BY_NAME: [(&str, Subject); 23] = [
    ("clients", Subject::Clients),
    ("config", Subject::Config),
    ("databases", Subject::Databases),
    ("dns_hosts", Subject::DnsHosts),
    ("dns_zones", Subject::DnsZones),
    ("limits", Subject::Limits),
    ("lists", Subject::Lists),
    ("mem", Subject::Mem),
    ("peer_pools", Subject::PeerPools),
    ("peers", Subject::Peers),
    ("pins", Subject::Pins),
    ("pools", Subject::Pools),
    ("servers", Subject::Servers),
    ("sessions", Subject::Sessions),
    ("shards", Subject::Shards),
    ("state", Subject::State),
    ("stats", Subject::Stats),
    ("stats_averages", Subject::StatsAverages),
    ("stats_totals", Subject::StatsTotals),
    ("tenants", Subject::Tenants),
    ("totals", Subject::Totals),
    ("users", Subject::Users),
    ("version", Subject::Version),
];

/// Rows of a table of tenants or sessions where no LIMIT is given: there may be a hundred thousand. PgBouncer's tables are
/// always whole.
const ROWS: usize = 1000;

const VERSION: &[Column] = &[text("version")];

impl Subject {
    /// What stands behind SHOW, in lower case.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        BY_NAME.iter().find(|(known, _)| *known == name).map(|(_, subject)| subject.clone())
    }

    pub(super) fn columns(&self) -> &'static [Column] {
        match self {
            Self::Clients | Self::Servers => sockets::COLUMNS,
            Self::Config => config::COLUMNS,
            Self::Databases => pools::DATABASES,
            Self::DnsHosts => lists::DNS_HOSTS,
            Self::DnsZones => lists::DNS_ZONES,
            Self::Limits => limits::COLUMNS,
            Self::Lists => lists::LISTS,
            Self::Mem => lists::MEM,
            Self::PeerPools => lists::PEER_POOLS,
            Self::Peers => lists::PEERS,
            Self::Pins => own::PINS,
            Self::Pools => pools::POOLS,
            Self::Sessions => own::SESSIONS,
            Self::Shards => own::SHARDS,
            Self::State => lists::STATE,
            Self::Stats => stats::STATS,
            Self::StatsAverages => stats::AVERAGES,
            Self::StatsTotals => stats::TOTALS,
            Self::Tenant(_) => own::TENANT,
            Self::Tenants => own::TENANTS,
            Self::Totals => stats::SUMS,
            Self::Users => lists::USERS,
            Self::Version => VERSION,
        }
    }

    /// Whether its rows can be narrowed down to those of one tenant.
    pub(super) fn is_of_tenants(&self) -> bool {
        matches!(self, Self::Clients | Self::Servers | Self::Sessions | Self::Pins | Self::Limits)
    }

    /// The column that LIKE and AFTER are about.
    fn key(&self) -> usize {
        match self {
            // The user, and the tenant.
            Self::Clients | Self::Servers | Self::Sessions | Self::Pins => 1,
            _ => 0,
        }
    }
}

/// The table that is asked for.
///
/// # Errors
/// If what is asked for by name is not there.
pub(super) fn table(shared: &Arc<Shared>, subject: &Subject, page: &Page) -> Result<Table, ErrorResponse> {
    let view = || View::take(shared);
    let of_tenant = page.tenant.as_deref();
    let rows = match subject {
        Subject::Clients => sockets::clients(shared, &view(), of_tenant),
        Subject::Config => config::rows(shared),
        Subject::Databases => pools::databases(shared, &view()),
        // Names are resolved when connections are made, and not kept; there are no zones.
        Subject::DnsHosts | Subject::DnsZones => Vec::new(),
        Subject::Limits => limits::rows(shared, &view(), of_tenant)?,
        Subject::Lists => lists::lists(shared, &view()),
        Subject::Mem => lists::mem(shared, &view()),
        // Nothing is kept open between routers.
        Subject::PeerPools => Vec::new(),
        Subject::Peers => lists::peers(shared),
        Subject::Pins => own::pins(&view(), of_tenant),
        Subject::Pools => pools::pools(shared, &view()),
        Subject::Servers => sockets::servers(&view(), of_tenant),
        Subject::Sessions => own::sessions(&view(), of_tenant),
        Subject::Shards => own::shards(&view()),
        Subject::State => lists::state(shared),
        Subject::Stats => stats::stats(shared),
        Subject::StatsAverages => stats::averages(shared),
        Subject::StatsTotals => stats::totals(shared),
        Subject::Tenant(id) => vec![own::tenant(shared, &view(), id)?],
        // There may be very many: only those that are shown are looked up.
        Subject::Tenants => return Ok(own::tenants(shared, &view(), page, page.limit.unwrap_or(ROWS))),
        Subject::Totals => stats::sums(shared),
        Subject::Users => lists::users(&view()),
        Subject::Version => vec![row![version()]],
    };
    let limit = page.limit.or((*subject == Subject::Sessions).then_some(ROWS));
    Ok(narrowed(Table::new(subject.columns(), rows), subject.key(), page, limit))
}

/// What SHOW VERSION says. Tools look for a version of PgBouncer in it.
pub(super) fn version() -> String {
    format!("PgBouncer {PGBOUNCER} (Switchyard {})", env!("CARGO_PKG_VERSION"))
}

fn narrowed(mut table: Table, key: usize, page: &Page, limit: Option<usize>) -> Table {
    let key_of = |row: &[Value]| match &row[key] {
        Value::Text(text) => text.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Null => String::new(),
    };
    if let Some(pattern) = &page.like {
        table.rows.retain(|row| is_like(&key_of(row), pattern));
    }
    if let Some(after) = &page.after {
        table.rows.sort_by_cached_key(|row| key_of(row));
        table.rows.retain(|row| key_of(row) > *after);
    }
    if let Some(limit) = limit {
        table.is_cut = table.rows.len() > limit;
        table.rows.truncate(limit);
    }
    table
}

/// SQL's LIKE: `%` is any text, `_` any one character, a backslash takes the meaning from what follows.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    let (mut t, mut p) = (0, 0);
    // Where to go on if what follows the last `%` does not fit: it then stands for one character more.
    let mut again: Option<(usize, usize)> = None;
    while t < text.len() {
        let fits = match pattern.get(p) {
            Some('%') => {
                again = Some((t, p + 1));
                p += 1;
                continue;
            }
            Some('_') => Some(1),
            Some('\\') if p + 1 < pattern.len() => (pattern[p + 1] == text[t]).then_some(2),
            Some(c) => (*c == text[t]).then_some(1),
            None => None,
        };
        match (fits, again) {
            (Some(n), _) => {
                t += 1;
                p += n;
            }
            (None, Some((from, to))) => {
                again = Some((from + 1, to));
                t = from + 1;
                p = to;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '%')
}

/// What SHOW HELP says. // PgBouncer's is a notice too
pub(super) fn help() -> ErrorResponse {
    let detail = "
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tSHOW LISTS|MEM|STATE|PEERS|PEER_POOLS|DNS_HOSTS|DNS_ZONES
\tSHOW TENANTS|SHARDS|SESSIONS|PINS|LIMITS
\tSHOW TENANT <tenant>
\t  LIKE '<pattern>', AFTER '<key>' and LIMIT <n> may follow any of these,
\t  TENANT <tenant> may follow CLIENTS, SERVERS, SESSIONS, PINS and LIMITS
\tPAUSE [<shard>] | PAUSE TENANT <tenant>
\tRESUME [<shard>] | RESUME TENANT <tenant>
\tDISABLE <shard> | DISABLE TENANT <tenant>
\tENABLE <shard> | ENABLE TENANT <tenant>
\tKILL [<shard>] | KILL TENANT <tenant>
\tKILL_CLIENT <id>
\tRECONNECT [<shard>]
\tWAIT_CLOSE [<shard>]
\tRELOAD
\tSHUTDOWN [WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS]";
    ErrorResponse::notice(sqlstate::SUCCESSFUL_COMPLETION, "Console usage").detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (text, pattern, fits) in [
            ("acme", "acme", true),
            ("acme", "a%", true),
            ("acme", "%me", true),
            ("acme", "%c%e%", true),
            ("acme", "_cme", true),
            ("acme", "_", false),
            ("", "%", true),
            ("", "_", false),
            ("a%b", "a\\%b", true),
            ("axb", "a\\%b", false),
            ("aXbXc", "a%b%c", true),
            ("büro", "b_ro", true),
            ("acme", "ACME", false),
            ("ab", "a", false),
            ("aab", "%ab", true),
        ] {
            assert_eq!(is_like(text, pattern), fits, "{text} {pattern}");
        }
    }

    #[test]
    fn names_are_found_and_nothing_is_left_out() {
        for (name, subject) in &BY_NAME {
            assert_eq!(Subject::by_name(name).as_ref(), Some(subject));
            assert!(help().detail.unwrap().contains(&name.to_uppercase()), "{name}");
            assert!(subject.key() < subject.columns().len());
        }
        assert!(Subject::by_name("fds").is_none());
    }
}
