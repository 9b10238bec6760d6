//! `SHOW STATS`, `STATS_TOTALS`, `STATS_AVERAGES`, `TOTALS`.

use crate::console::OWN_DATABASE;
use crate::console::periods::{ByShard, COUNTS, Numbers, totals as counted};
use crate::console::table::{Column, Value, num, row, text};
use crate::console::view::database;
use crate::shared::Shared;

pub(super) const STATS: &[Column] = &[
    text("database"),
    num("total_server_assignment_count"),
    num("total_xact_count"),
    num("total_query_count"),
    num("total_received"),
    num("total_sent"),
    num("total_xact_time"),
    num("total_query_time"),
    num("total_wait_time"),
    num("total_client_parse_count"),
    num("total_server_parse_count"),
    num("total_bind_count"),
    num("total_client_login_count"),
    num("avg_server_assignment_count"),
    num("avg_xact_count"),
    num("avg_query_count"),
    num("avg_recv"),
    num("avg_sent"),
    num("avg_xact_time"),
    num("avg_query_time"),
    num("avg_wait_time"),
    num("avg_client_parse_count"),
    num("avg_server_parse_count"),
    num("avg_bind_count"),
    num("avg_client_login_count"),
];

pub(super) const TOTALS: &[Column] = &[
    text("database"),
    num("server_assignment_count"),
    num("xact_count"),
    num("query_count"),
    num("bytes_received"),
    num("bytes_sent"),
    num("xact_time"),
    num("query_time"),
    num("wait_time"),
    num("client_parse_count"),
    num("server_parse_count"),
    num("bind_count"),
    num("client_login_count"),
];

pub(super) const AVERAGES: &[Column] = &[
    text("database"),
    num("server_assignment_count"),
    num("xact_count"),
    num("query_count"),
    num("bytes_received"),
    num("bytes_sent"),
    num("xact_time"),
    num("query_time"),
    num("wait_time"),
    num("avg_client_parse_count"),
    num("avg_server_parse_count"),
    num("avg_bind_count"),
    num("avg_client_login_count"),
];

pub(super) const SUMS: &[Column] = &[text("name"), num("value")];

/// The names of `SHOW TOTALS`, which are those of PgBouncer's own variables.
const SUM_NAMES: [&str; COUNTS] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
    "client_login_count",
];

/// Totals and averages by database, those of the console first. A shard that has gone keeps its row: what
/// counts must not go backwards.
fn by_database(shared: &Shared) -> Vec<(String, Numbers, Numbers)> {
    let totals = counted(shared);
    let averages: ByShard = shared.console.periods.lock().averages(&totals);
    let topology = shared.topology();
    let named = |name: Option<&str>| match name {
        None => OWN_DATABASE.to_owned(),
        Some(name) => {
            let shard = topology.shards.iter().find(|shard| shard.name.as_str() == name);
            shard.map_or_else(|| format!("@{name}"), |shard| database(shard))
        }
    };
    totals
        .iter()
        .map(|(name, numbers)| {
            let average = averages.get(name).copied().unwrap_or_default();
            (named(name.as_deref()), *numbers, average)
        })
        .collect()
}

fn line(name: String, numbers: impl IntoIterator<Item = u64>) -> Vec<Value> {
    std::iter::once(Value::from(name)).chain(numbers.into_iter().map(Value::from)).collect()
}

pub(super) fn stats(shared: &Shared) -> Vec<Vec<Value>> {
    let rows = by_database(shared).into_iter();
    rows.map(|(name, totals, averages)| line(name, totals.0.into_iter().chain(averages.0))).collect()
}

pub(super) fn totals(shared: &Shared) -> Vec<Vec<Value>> {
    by_database(shared).into_iter().map(|(name, totals, _)| line(name, totals.0)).collect()
}

pub(super) fn averages(shared: &Shared) -> Vec<Vec<Value>> {
    by_database(shared).into_iter().map(|(name, _, averages)| line(name, averages.0)).collect()
}

pub(super) fn sums(shared: &Shared) -> Vec<Vec<Value>> {
    let (mut totals, mut averages) = (Numbers::default(), Numbers::default());
    for (_, total, average) in by_database(shared) {
        totals.add(&total);
        averages.add(&average);
    }
    let named = |prefix: &'static str, numbers: Numbers| {
        let named = SUM_NAMES.iter().zip(numbers.0);
        named.map(move |(name, number)| row![format!("{prefix}_{name}"), number])
    };
    named("total", totals).chain(named("avg", averages)).collect()
}
