//! What differs between shards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::GenericClient;

use super::{Expected, Finding, Severity};
use crate::SchemaError;
use crate::tables::NOT_OURS;

/// Largest difference of clocks that is not mentioned: more than a slow answer explains.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);

/// Parameters that change what statements mean, or whether tenants can be moved.
const PARAMETERS: &[&str] = &[
    "server_encoding",
    "lc_collate",
    "TimeZone",
    "DateStyle",
    "IntervalStyle",
    "standard_conforming_strings",
    "default_transaction_isolation",
    "integer_datetimes",
    "bytea_output",
    "wal_level",
];

/// What one shard says of itself.
#[derive(Debug, Clone)]
pub struct Facts {
    shard: String,
    version: i32,
    /// The shard's clock against ours, in seconds.
    clock: f64,
    parameters: BTreeMap<String, String>,
    /// Columns of each table of the application.
    tables: BTreeMap<String, String>,
    /// Sequences behind columns of tenants' tables: increment, and the last value.
    sequences: BTreeMap<String, (i64, i64)>,
}

pub(super) async fn facts(
    client: &impl GenericClient,
    shard: &str,
    expected: &Expected,
) -> Result<Facts, SchemaError> {
    let ours = |t: SystemTime| t.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let before = ours(SystemTime::now());
    let sql =
        "SELECT current_setting('server_version_num')::int, extract(epoch FROM clock_timestamp())::float8";
    let row = client.query_one(sql, &[]).await?;
    let after = ours(SystemTime::now());
    let sql = "SELECT p, coalesce(CASE p WHEN 'lc_collate'
                      THEN (SELECT datcollate::text FROM pg_database WHERE datname = current_database())
                      ELSE current_setting(p, true) END, '') FROM unnest($1::text[]) p";
    let parameters = client.query(sql, &[&PARAMETERS]).await?;
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname),
                string_agg(format('%I %s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                                  CASE WHEN a.attnotnull THEN ' not null' ELSE '' END), ', ' ORDER BY a.attname)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't' AND {NOT_OURS}
            AND EXISTS (SELECT FROM pg_attribute t WHERE t.attrelid = c.oid AND t.attname = $1 AND NOT t.attisdropped)
          GROUP BY 1"
    );
    let tables = client.query(&sql, &[&expected.column]).await?;
    let sql = format!(
        "SELECT format('%I.%I', sn.nspname, s.relname), q.seqincrement, coalesce(pg_sequence_last_value(s.oid), q.seqstart)
           FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_namespace sn ON sn.oid = s.relnamespace
           JOIN pg_sequence q ON q.seqrelid = s.oid
           JOIN pg_class c ON c.oid = d.refobjid JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND {NOT_OURS}
            AND EXISTS (SELECT FROM pg_attribute t WHERE t.attrelid = c.oid AND t.attname = $1 AND NOT t.attisdropped)"
    );
    let sequences = client.query(&sql, &[&expected.column]).await?;
    Ok(Facts {
        shard: shard.to_owned(),
        version: row.get(0),
        clock: row.get::<_, f64>(1) - (before + after) / 2.0,
        parameters: parameters.iter().map(|r| (r.get(0), r.get(1))).collect(),
        tables: tables.iter().map(|r| (r.get(0), r.get(1))).collect(),
        sequences: sequences.iter().map(|r| (r.get(0), (r.get(1), r.get(2)))).collect(),
    })
}

/// What differs between the shards, and what of them all stands in the way of moves.
pub fn compare(shards: &[Facts]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(first) = shards.first() else { return findings };
    let mut add = |shard: &str, severity, code, object: &str, message: String, fix: Option<String>| {
        findings.push(Finding {
            shard: shard.to_owned(),
            severity,
            code,
            object: object.to_owned(),
            message,
            fix,
        });
    };
    for facts in shards {
        let shard = facts.shard.as_str();
        if facts.clock.abs() > CLOCK_TOLERANCE.as_secs_f64() {
            let text = format!("its clock is {:.0} s off ours; tokens and timestamps go by it", facts.clock);
            add(shard, Severity::Warning, "clock", shard, text, None);
        }
        if facts.parameters.get("wal_level").is_some_and(|level| level != "logical") {
            let text = "wal_level is not logical: its tenants cannot be moved while they write".to_owned();
            let fix = "ALTER SYSTEM SET wal_level = 'logical'; -- and restart".to_owned();
            add(shard, Severity::Warning, "wal-level", "wal_level", text, Some(fix));
        }
        if facts.version / 10_000 != first.version / 10_000 {
            let text = format!(
                "runs PostgreSQL {}, and {} runs {}",
                facts.version / 10_000,
                first.shard,
                first.version / 10_000
            );
            add(shard, Severity::Warning, "version-skew", shard, text, None);
        }
        for (name, value) in facts.parameters.iter().filter(|(name, _)| name.as_str() != "wal_level") {
            let other = &first.parameters[name];
            if value != other {
                let text = format!("{name} is {value:?}, and {other:?} on {}", first.shard);
                let can = !["server_encoding", "lc_collate", "integer_datetimes"].contains(&name.as_str());
                let fix = can.then(|| {
                    format!("ALTER SYSTEM SET {name} = {}; -- and reload", crate::quote_literal(other))
                });
                add(shard, Severity::Warning, "parameter-skew", name, text, fix);
            }
        }
    }
    let names: BTreeSet<&String> = shards.iter().flat_map(|f| f.tables.keys()).collect();
    for name in names {
        let Some(model) = shards.iter().find(|f| f.tables.contains_key(name)) else { continue };
        for facts in shards {
            match facts.tables.get(name) {
                None => {
                    let text = format!("is on {} and not here", model.shard);
                    add(&facts.shard, Severity::Warning, "table-skew", name, text, None);
                }
                Some(columns) if *columns != model.tables[name] => {
                    let text = format!("has other columns than on {}: {columns}", model.shard);
                    add(&facts.shard, Severity::Warning, "table-skew", name, text, None);
                }
                Some(_) => {}
            }
        }
    }
    sequences(shards, &mut add);
    findings
}

/// Ids from a sequence of each shard meet when a tenant moves, unless each shard counts apart.
fn sequences(
    shards: &[Facts],
    add: &mut impl FnMut(&str, Severity, &'static str, &str, String, Option<String>),
) {
    if shards.len() < 2 {
        return;
    }
    let step = shards.len().next_power_of_two().max(16);
    let names: BTreeSet<&String> = shards.iter().flat_map(|f| f.sequences.keys()).collect();
    for name in names {
        let here: Vec<(usize, &Facts, (i64, i64))> = shards
            .iter()
            .enumerate()
            .filter_map(|(i, f)| f.sequences.get(name).map(|s| (i, f, *s)))
            .collect();
        let increment = here[0].2.0;
        let apart = increment.unsigned_abs() >= here.len() as u64
            && here.iter().all(|(_, _, s)| s.0 == increment)
            && here.iter().map(|(_, _, s)| s.1.rem_euclid(increment)).collect::<BTreeSet<_>>().len()
                == here.len();
        if apart {
            continue;
        }
        for (i, facts, _) in &here {
            let text = "counts as its like on other shards do: ids collide when a tenant moves".to_owned();
            let fix = format!(
                "ALTER SEQUENCE {name} INCREMENT BY {step}; \
                 SELECT setval({}, (nextval({}) / {step} + 2) * {step} + {i})",
                crate::quote_literal(name),
                crate::quote_literal(name)
            );
            add(&facts.shard, Severity::Warning, "sequence-collides", name, text, Some(fix));
        }
    }
}
