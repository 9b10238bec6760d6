use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A router's tenants, as a test makes them up.
#[derive(Default)]
struct Town {
    ledger: Ledger,
    totals: BTreeMap<String, u64>,
    unknown: Vec<String>,
    clients: BTreeMap<String, i64>,
}

fn id(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn totals(transactions: u64) -> Totals {
    Totals([transactions, 2 * transactions, 0, 0, 0, 0, transactions, 0, 0, 0, 0])
}

impl Town {
    fn work(&mut self, tenant: &str, transactions: u64) {
        *self.totals.entry(tenant.to_owned()).or_default() += transactions;
    }

    /// The page: transactions of each own series, and of `_other`.
    fn page(&mut self, limit: usize, now: Instant) -> (BTreeMap<String, u64>, u64) {
        let reading = |(name, n): (&String, &u64)| Reading {
            tenant: id(name),
            totals: totals(*n),
            clients: self.clients.get(name).copied().unwrap_or_default(),
            known: !self.unknown.contains(name),
        };
        let page = self.ledger.scrape(self.totals.iter().map(reading).collect(), limit, now);
        let own = page.own.iter().map(|(t, n, _)| (t.as_str().to_owned(), n.transactions())).collect();
        (own, page.other.0.transactions())
    }

    fn forget(&mut self, tenant: &str) {
        let last = self.totals.remove(tenant).unwrap_or_default();
        self.ledger.forget(&id(tenant), &totals(last));
    }
}

fn map<const N: usize>(of: [(&str, u64); N]) -> BTreeMap<String, u64> {
    of.into_iter().map(|(name, n)| (name.to_owned(), n)).collect()
}

#[test]
fn the_busiest_have_their_own() {
    let (mut town, now) = (Town::default(), Instant::now());
    for (tenant, n) in [("a", 1), ("b", 30), ("c", 20), ("d", 2)] {
        town.work(tenant, n);
    }
    assert_eq!(town.page(2, now), (map([("b", 30), ("c", 20)]), 3));
    assert_eq!(town.page(0, now), (map([]), 3));
    assert_eq!(town.page(9, now).0, map([("a", 0), ("b", 30), ("c", 20), ("d", 0)]));
}

#[test]
fn a_busier_tenant_does_not_take_over_at_once() {
    let (mut town, began) = (Town::default(), Instant::now());
    town.work("a", 10);
    town.page(1, began);
    town.work("b", 1000);
    assert_eq!(town.page(1, began + HOLD / 2), (map([("a", 10)]), 1000));
    // Twice as busy is not enough even then.
    let mut close = Town::default();
    close.work("a", 10);
    close.page(1, began);
    close.work("a", 1000);
    close.work("b", 2000);
    assert_eq!(close.page(1, began + HOLD), (map([("a", 1010)]), 2000));

    // What it did before stays in `_other`; neither side jumps.
    town.work("b", 5);
    assert_eq!(town.page(1, began + HOLD), (map([("b", 5)]), 1000));
    town.work("a", 7);
    town.work("b", 7);
    assert_eq!(town.page(1, began + HOLD), (map([("b", 12)]), 1007));
}

#[test]
fn an_idle_tenant_gives_way_and_comes_back_where_it_was() {
    let (mut town, began) = (Town::default(), Instant::now());
    town.work("a", 1_000_000);
    town.page(1, began);
    // Nobody needs its place.
    assert_eq!(town.page(1, began + 2 * IDLE).0, map([("a", 1_000_000)]));
    town.work("b", 1);
    assert_eq!(town.page(1, began + 2 * IDLE), (map([("b", 1)]), 0));
    town.work("a", 5);
    assert_eq!(town.page(2, began + 2 * IDLE), (map([("a", 1_000_005), ("b", 1)]), 0));
}

#[test]
fn a_tenant_with_a_client_is_not_idle() {
    let (mut town, began) = (Town::default(), Instant::now());
    town.work("a", 1);
    town.clients.insert("a".to_owned(), 1);
    town.page(1, began);
    town.page(1, began + 2 * IDLE);
    town.work("b", 1);
    assert_eq!(town.page(1, began + 2 * IDLE), (map([("a", 1)]), 1));
}

#[test]
fn a_tenant_that_leaves_is_folded_and_then_forgotten() {
    let (mut town, now) = (Town::default(), Instant::now());
    town.work("a", 10);
    town.work("b", 1);
    assert_eq!(town.page(9, now), (map([("a", 10), ("b", 1)]), 0));
    town.unknown.push("a".to_owned());
    town.work("a", 3);
    assert_eq!(town.page(9, now), (map([("b", 1)]), 3));
    town.work("a", 2);
    town.forget("a");
    assert_eq!(town.page(9, now), (map([("b", 1)]), 5));
    assert_eq!(town.ledger.forgotten(), totals(15));
    // One of the same name is a new one.
    town.unknown.clear();
    town.work("a", 4);
    assert_eq!(town.page(9, now), (map([("a", 4), ("b", 1)]), 5));
    // One that nobody has scraped.
    town.work("c", 6);
    town.forget("c");
    assert_eq!(town.page(9, now).1, 11);
}

#[derive(Debug, Clone)]
enum Act {
    Work(u8, u64),
    Leave(u8),
    Return(u8),
    Forget(u8),
    Pass(u64),
    Limit(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..12_u8, 1..1000_u64).prop_map(|(t, n)| Act::Work(t, n)),
        1 => (0..12_u8).prop_map(Act::Leave),
        1 => (0..12_u8).prop_map(Act::Return),
        1 => (0..12_u8).prop_map(Act::Forget),
        2 => (0..5000_u64).prop_map(Act::Pass),
        1 => (0..6_usize).prop_map(Act::Limit),
    ]
}

proptest! {
    /// Whatever happens: nothing goes backwards, nothing is counted twice or lost, and there are
    /// no more series than allowed.
    #[test]
    fn every_transaction_is_in_one_series(acts in prop::collection::vec(act(), 1..120)) {
        let (mut town, mut now, mut limit) = (Town::default(), Instant::now(), 3);
        let mut last: (BTreeMap<String, u64>, u64) = Default::default();
        let mut shown = BTreeMap::<String, u64>::new();
        let (mut done, mut ended) = (0, 0);
        for act in acts {
            match act {
                Act::Work(t, n) => {
                    town.work(&format!("t{t}"), n);
                    done += n;
                }
                Act::Leave(t) => town.unknown.push(format!("t{t}")),
                Act::Return(t) => town.unknown.retain(|name| *name != format!("t{t}")),
                Act::Forget(t) => {
                    let name = format!("t{t}");
                    ended += shown.remove(&name).unwrap_or_default();
                    last.0.remove(&name);
                    town.forget(&name);
                }
                Act::Pass(seconds) => now += Duration::from_secs(seconds),
                Act::Limit(n) => limit = n,
            }
            let page = town.page(limit, now);
            prop_assert!(page.0.len() <= limit);
            prop_assert!(page.1 >= last.1, "_other went back from {} to {}", last.1, page.1);
            for (name, n) in &page.0 {
                let before = shown.insert(name.clone(), *n).unwrap_or_default();
                prop_assert!(*n >= before, "{name} went back from {before} to {n}");
                prop_assert!(!town.unknown.contains(name));
            }
            prop_assert_eq!(shown.values().sum::<u64>() + ended + page.1, done);
            let whole: u64 = town.totals.values().sum();
            prop_assert_eq!(town.ledger.forgotten().transactions() + whole, done);
            last = page;
        }
    }
}
