use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use switchyard_config::settings::RouterSettings;
use switchyard_config::topology::{Placement, Shard, SslMode, Tenant, TenantState, Topology, UnknownTenants};
use switchyard_config::{ShardName, TenantId};

use super::family::{Family, Kind};
use super::*;

fn shard(name: &str) -> Arc<Shard> {
    let url = "postgres://app@127.0.0.1:1/crm?sslmode=disable";
    let toml = format!("[[shards]]\nname = \"{name}\"\nurl = \"{url}\"\n");
    let loaded = switchyard_config::file::parse(&toml, Path::new("test.toml"), &|_| None).unwrap();
    assert_eq!(loaded.topology.shards[0].tls.mode, SslMode::Disable);
    loaded.topology.shards[0].clone()
}

fn topology<'a>(tenants: impl IntoIterator<Item = &'a str>) -> Topology {
    let mut topology = Topology::empty();
    topology.version = 7;
    topology.shards = vec![shard("s0"), shard("s1")];
    topology.buckets = Topology::even_buckets(2);
    for tenant in tenants {
        let tenant = Tenant::new(id(tenant));
        topology.tenants.insert(tenant.id.clone(), Arc::new(tenant));
    }
    topology
}

fn id(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn shared(limit: usize, topology: Topology) -> Arc<Shared> {
    let settings = RouterSettings { metrics_tenants: limit, ..RouterSettings::default() };
    let shared = Arc::new(Shared::new(settings, 2, None).unwrap());
    shared.replace_topology(Arc::new(topology)).unwrap();
    shared
}

/// Counts a transaction of a tenant on one worker and half as much on another.
fn work(shared: &Shared, tenant: &str, transactions: u64) {
    let stats = shared.stats.tenant(&id(tenant));
    stats.accounts[0].transactions.add(transactions - transactions / 2);
    stats.accounts[1].transactions.add(transactions / 2);
    stats.accounts[1].errors.add(1);
}

fn page(shared: &Arc<Shared>) -> String {
    Metrics::new(shared).unwrap().text(Part::All).unwrap()
}

/// The value of the one line that begins so.
fn value(page: &str, series: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

fn transactions(page: &str, tenant: &str) -> Option<f64> {
    value(page, &format!("switchyard_tenant_transactions_total{{tenant=\"{tenant}\"}}"))
}

fn families() -> impl Iterator<Item = &'static Family> {
    names::router::ALL.iter().chain(names::tenant::ALL)
}

#[test]
fn names_follow_the_rules() {
    let mut seen = BTreeSet::new();
    for family in families() {
        let name = family.name;
        assert!(seen.insert(name), "{name} twice");
        assert!(name.starts_with("switchyard_") || name.starts_with("process_"), "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), family.kind == Kind::Counter, "{name}");
        assert!(family.help.ends_with('.'), "{name}: {}", family.help);
        for part in ["_bucket", "_sum", "_count"] {
            assert!(!name.ends_with(part), "{name} ends as a part of a histogram does");
        }
    }
}

#[test]
fn every_name_is_shown_with_its_type() {
    let shared = shared(10, topology(["acme"]));
    shared.stats.shard(&ShardName::new("s0").unwrap(), 1).transactions.record(Duration::from_millis(3));
    work(&shared, "acme", 1);
    let page = page(&shared);
    // Without a catalog or standbys there is nothing to say of them.
    let absent = ["switchyard_catalog_", "switchyard_standby_", "process_"];
    let shown = |family: &&Family| !absent.iter().any(|prefix| family.name.starts_with(prefix));
    for family in families().filter(shown) {
        let kind = format!("{:?}", family.kind).to_lowercase();
        let line = format!("# TYPE {} {kind}\n", family.name);
        assert_eq!(page.matches(&line).count(), 1, "{line}");
        assert_eq!(page.matches(&format!("# HELP {} ", family.name)).count(), 1, "{}", family.name);
    }
    let known: BTreeSet<_> = families().map(|f| f.name).collect();
    for line in page.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap();
        assert!(known.contains(name), "{name} is not in the list");
    }
}

#[test]
fn workers_are_added_up() {
    let shared = shared(10, topology(["acme"]));
    work(&shared, "acme", 5);
    let account = &shared.stats.tenant(&id("acme")).accounts[1];
    account.bytes_in.add(100);
    account.busy_us.add(2_500_000);
    account.wait_us.add(1);
    let s0 = ShardName::new("s0").unwrap();
    shared.stats.shard(&s0, 0).transactions.record(Duration::from_micros(60));
    shared.stats.shard(&s0, 1).transactions.record(Duration::from_secs(60));
    let page = page(&shared);
    assert_eq!(transactions(&page, "acme"), Some(5.0));
    let of_acme = |name: &str| value(&page, &format!("switchyard_tenant_{name}{{tenant=\"acme\"}}"));
    assert_eq!(of_acme("errors_total"), Some(1.0));
    assert_eq!(of_acme("busy_seconds_total"), Some(2.5));
    assert_eq!(of_acme("wait_seconds_total"), Some(0.000_001));
    assert_eq!(value(&page, "switchyard_tenant_bytes_total{direction=\"in\",tenant=\"acme\"}"), Some(100.0));
    assert_eq!(value(&page, "switchyard_bytes_total{direction=\"in\",side=\"client\"}"), Some(100.0));
    let bucket = |le: &str| {
        value(&page, &format!("switchyard_transaction_seconds_bucket{{shard=\"s0\",le=\"{le}\"}}")).unwrap()
    };
    assert_eq!([bucket("0.00005"), bucket("0.0001"), bucket("30"), bucket("+Inf")], [0.0, 1.0, 1.0, 2.0]);
    assert_eq!(value(&page, "switchyard_transaction_seconds_count{shard=\"s0\"}"), Some(2.0));
    assert_eq!(value(&page, "switchyard_transaction_seconds_sum{shard=\"s0\"}"), Some(60.000_06));
    assert_eq!(value(&page, "switchyard_server_connections_max{shard=\"s1\"}"), Some(20.0));
    assert_eq!(value(&page, "switchyard_topology_version"), Some(7.0));
    assert_eq!(value(&page, "switchyard_ready"), Some(1.0));
}

#[test]
fn where_a_tenant_lives_is_said() {
    let mut topology = topology(["placed"]);
    let mut away = Tenant::new(id("away"));
    away.state = TenantState::Suspended;
    away.placement = Some(Placement { shard: ShardName::new("s1").unwrap(), epoch: 3 });
    topology.tenants.insert(away.id.clone(), Arc::new(away));
    let shared = shared(10, topology);
    work(&shared, "away", 1);
    let page = page(&shared);
    assert_eq!(
        value(&page, "switchyard_tenant_info{shard=\"s1\",state=\"suspended\",tenant=\"away\"}"),
        Some(1.0)
    );
    assert!(!page.contains("tenant=\"placed\""), "nobody has logged in for it");
}

#[test]
fn labels_are_escaped() {
    let mut samples = names::tenant::TRANSACTIONS.samples();
    samples.add(&[("tenant", "a\n\"b\"\\n\\ü\u{2028}é\u{301}")], 1.0);
    let text = TextEncoder::new().encode_to_string(&[samples.finish()]).unwrap();
    let line = text.lines().last().unwrap();
    assert_eq!(
        line,
        "switchyard_tenant_transactions_total{tenant=\"a\\n\\\"b\\\"\\\\n\\\\ü\u{2028}é\u{301}\"} 1"
    );
}

#[test]
fn odd_tenants_have_series_like_any_other() {
    let odd = ["quo\"te", "back\\slash", "back\\", "ü", "}", "_other", "__other", "a,b=\"c\"} 9"];
    let shared = shared(10, topology(odd));
    for (n, tenant) in odd.iter().enumerate() {
        work(&shared, tenant, n as u64 + 1);
    }
    let page = page(&shared);
    assert_eq!(transactions(&page, "quo\\\"te"), Some(1.0));
    assert_eq!(transactions(&page, "back\\\\slash"), Some(2.0));
    assert_eq!(transactions(&page, "back\\\\"), Some(3.0));
    assert_eq!(transactions(&page, "ü"), Some(4.0));
    assert_eq!(transactions(&page, "}"), Some(5.0));
    assert_eq!(transactions(&page, "__other"), Some(6.0));
    assert_eq!(transactions(&page, "___other"), Some(7.0));
    assert_eq!(transactions(&page, "a,b=\\\"c\\\"} 9"), Some(8.0));
    assert_eq!(transactions(&page, "_other"), Some(0.0));
    for line in page.lines().filter(|l| !l.starts_with('#')) {
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn a_tenant_that_left_is_dropped_once_nobody_counts_for_it() {
    let shared = shared(10, topology(["stays", "goes"]));
    let metrics = Metrics::new(&shared).unwrap();
    work(&shared, "stays", 1);
    work(&shared, "goes", 10);
    let held = shared.stats.tenant(&id("goes")).accounts[0].clone();
    assert_eq!(transactions(&metrics.text(Part::All).unwrap(), "goes"), Some(10.0));
    shared.replace_topology(Arc::new(topology(["stays"]))).unwrap();
    held.transactions.add(4);
    let page = metrics.text(Part::All).unwrap();
    assert_eq!((transactions(&page, "goes"), transactions(&page, "_other")), (None, Some(4.0)));
    assert_eq!(shared.stats.tenants.len(), 2, "its session can still count");
    held.transactions.add(2);
    drop(held);
    let page = metrics.text(Part::All).unwrap();
    assert_eq!((transactions(&page, "goes"), transactions(&page, "_other")), (None, Some(6.0)));
    assert_eq!(shared.stats.tenants.len(), 1);
    assert_eq!(value(&metrics.text(Part::All).unwrap(), "switchyard_errors_total"), Some(2.0));
}

#[test]
fn tenants_that_no_list_has_keep_their_series_while_they_are_served() {
    let mut created = topology([]);
    created.unknown_tenants = UnknownTenants::Create;
    let shared = shared(10, created);
    let metrics = Metrics::new(&shared).unwrap();
    work(&shared, "new", 3);
    for _ in 0..2 {
        assert_eq!(transactions(&metrics.text(Part::Tenants).unwrap(), "new"), Some(3.0));
    }
}

#[test]
fn counts_of_a_shard_outlive_its_pool() {
    let shared = shared(10, topology([]));
    let metrics = Metrics::new(&shared).unwrap();
    let s0 = ShardName::new("s0").unwrap();
    let connects = || {
        let page = metrics.text(Part::Router).unwrap();
        value(&page, "switchyard_server_connects_total{outcome=\"success\",shard=\"s0\"}")
    };
    let old = shared.pool(&s0).unwrap();
    old.counters.connects.fetch_add(5, Ordering::Relaxed);
    assert_eq!(connects(), Some(5.0));
    let mut other = topology([]);
    let mut larger = (*other.shards[0]).clone();
    larger.pool.size = 40;
    other.shards[0] = Arc::new(larger);
    shared.replace_topology(Arc::new(other)).unwrap();
    // It may still serve while the new one does.
    shared.pool(&s0).unwrap().counters.connects.fetch_add(1, Ordering::Relaxed);
    old.counters.connects.fetch_add(1, Ordering::Relaxed);
    assert_eq!(connects(), Some(7.0));
    drop(old);
    assert_eq!(connects(), Some(7.0));
    shared.replace_topology(Arc::new(Topology::empty())).unwrap();
    assert_eq!(connects(), Some(7.0), "a shard that is gone");
}

#[test]
fn parts_are_the_whole() {
    let shared = shared(10, topology(["acme"]));
    work(&shared, "acme", 1);
    let metrics = Metrics::new(&shared).unwrap();
    let names = |part| -> Vec<String> {
        let text = metrics.text(part).unwrap();
        text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).map(str::to_owned).collect()
    };
    assert_eq!(names(Part::All), [names(Part::Router), names(Part::Tenants)].concat());
    assert!(!metrics.text(Part::Router).unwrap().contains("tenant=\""));
}

#[test]
fn ten_thousand_tenants_are_scraped_in_time() {
    let ids: Vec<String> = (0..10_000).map(|n| format!("{n:0>128}")).collect();
    for limit in [20_000, 2000] {
        let shared = shared(limit, topology(ids.iter().map(String::as_str)));
        for id in &ids {
            work(&shared, id, 1_000_000_007);
        }
        let metrics = Metrics::new(&shared).unwrap();
        let own = limit.min(ids.len());
        for _ in 0..2 {
            let began = Instant::now();
            let page = metrics.text(Part::All).unwrap();
            let took = began.elapsed();
            println!("{own} series: {took:?}, {} bytes", page.len());
            assert!(page.len() < 50 << 20, "{} bytes", page.len());
            // Without optimisation it takes several times as long, and tests run beside others.
            assert!(took < Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 1 }), "{took:?}");
            assert_eq!(page.matches("switchyard_tenant_transactions_total{").count(), own + 1);
            let dropped = (ids.len() - own) as f64;
            assert_eq!(value(&page, "switchyard_metrics_tenants_dropped"), Some(dropped));
        }
    }
}

#[test]
fn what_dashboards_and_alerts_ask_for_exists() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let files = ["grafana/switchyard.json", "prometheus/alerts.yml", "prometheus/scrape.yml"];
    let known: BTreeMap<&str, Kind> = families().map(|f| (f.name, f.kind)).collect();
    let mut asked = 0;
    for file in files.map(|f| deploy.join(f)) {
        let text = read(&file);
        for prefix in ["switchyard_", "process_"] {
            for (at, _) in text.match_indices(prefix) {
                let before = text[..at].bytes().next_back().unwrap_or(b' ');
                if before.is_ascii_alphanumeric() || before == b'_' || before == b'/' {
                    continue;
                }
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let name: String = text[at..].chars().take_while(|c| is_name(*c)).collect();
                let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
                let found = match family {
                    Some(family) => known.get(family) == Some(&Kind::Histogram),
                    // A histogram has no series of its own name.
                    None => known.get(name.as_str()).is_some_and(|kind| *kind != Kind::Histogram),
                };
                assert!(found, "{name} in {} does not exist", file.display());
                asked += 1;
            }
        }
    }
    assert!(asked > 50, "only {asked} names were found");
    let dashboard: serde_json::Value = serde_json::from_str(&read(&deploy.join(files[0]))).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|p| p["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "panels with the same id");
}

fn read(path: &PathBuf) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
