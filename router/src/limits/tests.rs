use proptest::prelude::*;
use switchyard_config::limits::Rate;

use super::*;

fn limited(limits: TenantLimits) -> Arc<Limited> {
    let stats = crate::stats::Stats::new(1).tenant(&switchyard_config::TenantId::new("acme").unwrap());
    let tenant =
        Tenant { limits: Arc::new(limits), ..Tenant::new(switchyard_config::TenantId::new("acme").unwrap()) };
    Limited::new(&tenant, stats).expect("a limit")
}

#[test]
fn nothing_holds_back_who_has_no_limit() {
    let id = switchyard_config::TenantId::new("acme").unwrap();
    let stats = crate::stats::Stats::new(1).tenant(&id);
    assert!(Limited::new(&Tenant::new(id), stats).is_none());
}

#[test]
fn a_burst_passes_and_what_follows_waits_or_is_refused() {
    let rate = Rate { per_second: 10, burst: 3 };
    let wait_budget = Duration::from_millis(250);
    let acme = limited(TenantLimits { transaction_rate: Some(rate), wait_budget, ..TenantLimits::default() });
    let now = Instant::now();
    for _ in 0..3 {
        assert!(matches!(acme.enter(now), Entry::Now(_)));
    }
    for n in 1..=2 {
        assert!(matches!(acme.enter(now), Entry::Later(at) if at == now + Duration::from_millis(100 * n)));
    }
    let Entry::Refused(refused) = acme.enter(now) else { panic!("three at once and two in turn") };
    assert_eq!(refused, Refused::Transactions(10, Duration::from_millis(300)));
    let error = refused.for_client();
    assert_eq!(error.code.to_string(), "53400");
    assert_eq!(error.hint.as_deref(), Some("Try again in 300 ms."));
    // Who was refused has used nothing.
    assert!(matches!(acme.enter(now + Duration::from_millis(300)), Entry::Now(_)));
}

#[test]
fn bytes_are_paid_for_by_what_comes_next() {
    let rate = Rate { per_second: 1000, burst: 1000 };
    let acme = limited(TenantLimits { byte_rate: Some(rate), ..TenantLimits::default() });
    let now = Instant::now();
    assert!(matches!(acme.enter(now), Entry::Now(_)));
    acme.stats.accounts[0].bytes_out.add(3000);
    assert!(matches!(acme.enter(now), Entry::Later(at) if at > now + Duration::from_millis(1900)));
}

#[tokio::test]
async fn places_are_free_again_when_a_transaction_ends() {
    let limits = TenantLimits { concurrent_transactions: Some(1), ..TenantLimits::default() };
    let acme = limited(TenantLimits { wait_budget: Duration::from_secs(60), ..limits.clone() });
    let now = Instant::now();
    let Entry::Now(first) = acme.enter(now) else { panic!("nobody else is there") };
    let Entry::Later(at) = acme.enter(now) else { panic!("one at a time") };
    let next = tokio::spawn(acme.clone().wait(at, now));
    drop(first);
    let second = next.await.expect("it ends").expect("its turn");
    let hasty = limited(TenantLimits { wait_budget: Duration::ZERO, ..limits });
    let Entry::Now(_other) = hasty.enter(now) else { panic!("another tenant") };
    assert_eq!(hasty.clone().wait(now, now).await.err(), Some(Refused::Concurrent(1)));
    drop(second);
    assert!(matches!(acme.enter(now), Entry::Now(_)));
}

proptest! {
    /// In no window are there more than the burst and what the rate allows.
    #[test]
    fn the_rate_holds_in_every_window(
        per_second in 1..1000_u64,
        burst in 1..50_u64,
        pauses in prop::collection::vec(0..20_000_u64, 1..200),
    ) {
        let rate = Rate { per_second, burst };
        let acme = limited(TenantLimits {
            transaction_rate: Some(rate), wait_budget: Duration::ZERO, ..TenantLimits::default()
        });
        let mut now = Instant::now();
        let mut passed = Vec::new();
        for pause in pauses {
            now += Duration::from_micros(pause);
            if matches!(acme.enter(now), Entry::Now(_)) {
                passed.push(now);
            }
        }
        for (i, from) in passed.iter().enumerate() {
            for (n, to) in passed[i..].iter().enumerate() {
                let allowed = burst as f64 + (*to - *from).as_secs_f64() * per_second as f64;
                prop_assert!((n + 1) as f64 <= allowed + 1e-3);
            }
        }
    }
}
