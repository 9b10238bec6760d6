//! A tenant's limits over two routers that share one catalog.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use switchyard_tests::cluster::{DATABASE, SUPERUSER, SUPERUSER_PASSWORD};
use switchyard_tests::raw::{Raw, Target};
use switchyard_tests::router::Router;
use switchyard_tests::wait;

use crate::life::Site;

/// Another router of the site, and where one user logs in to each.
fn two(site: &Site, limits: &[&str]) -> (Router, [Target; 2]) {
    let catalog = site.plane.cluster().url(SUPERUSER, SUPERUSER_PASSWORD);
    let second = Router::start(&format!("[router]\n[catalog]\nurl = \"{catalog}\"\n"));
    let made = site.plane.cli(&["tenant", "create", "acme"]);
    let password = made["user"]["new_password"].as_str().expect("it is told once");
    if !limits.is_empty() {
        site.plane.cli(&[&["limit", "set", "acme"], limits].concat());
    }
    let target = |router: &Router| router.target().user("acme").password(password).database(DATABASE);
    let targets = [target(&site.router), target(&second)];
    for target in &targets {
        site.let_in(target);
    }
    // No session is left of these, and the limits have come.
    let gone = "SELECT count(*) FROM switchyard.leases WHERE kind = 'connections' AND used > 0";
    wait::until_true("the end of these", || site.plane.cluster().value(gone) == "0");
    (second, targets)
}

#[test]
fn connections_of_all_routers_together_never_exceed_the_limit() {
    let site = Site::start();
    let (_second, targets) = two(&site, &["connections=7"]);
    // Many at once at both, whoever comes first.
    let sessions: Vec<Raw> = std::thread::scope(|scope| {
        let logins: Vec<_> = (0..24)
            .map(|n| {
                scope.spawn({
                    let target = &targets[n % 2];
                    move || target.try_connect().ok()
                })
            })
            .collect();
        logins.into_iter().filter_map(|l| l.join().expect("no panic")).collect()
    });
    assert!(sessions.len() <= 7, "{} are in", sessions.len());
    // All of it can be used, whichever router had it.
    let mut sessions = sessions;
    wait::until_true("all seven", || {
        sessions.extend(targets[0].try_connect().ok());
        sessions.len() >= 7
    });
    for target in &targets {
        assert_eq!(target.try_connect().err().expect("one too many").sqlstate(), "53300");
    }
    assert_eq!(sessions.len(), 7);
    drop(sessions);
    let mut others: Vec<Raw> = Vec::new();
    wait::until_true("all seven at the other", || {
        others.extend(targets[1].try_connect().ok());
        others.len() == 7
    });
    assert_eq!(targets[0].try_connect().err().expect("one too many").sqlstate(), "53300");
}

/// Transactions that got through in this time, by sessions that do not pause.
fn passed(targets: &[Target], sessions: usize, time: Duration) -> usize {
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    std::thread::scope(|scope| {
        for target in targets {
            for _ in 0..sessions {
                let (stop, count) = (stop.clone(), count.clone());
                scope.spawn(move || {
                    let mut session = target.connect();
                    while !stop.load(Ordering::Relaxed) {
                        if session.try_rows("SELECT 1").is_ok() {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        }
        std::thread::sleep(time);
        let passed = count.load(Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
        passed
    })
}

#[test]
fn the_rate_of_all_routers_together_stays_within_the_limit() {
    let site = Site::start();
    let (_second, targets) =
        two(&site, &["transactions_per_second=40", "transaction_burst=4", "wait_budget=2s"]);
    // The routers find out about each other.
    passed(&targets, 4, Duration::from_secs(3));
    let began = Instant::now();
    let both = passed(&targets, 4, Duration::from_secs(5));
    let most = began.elapsed().as_secs_f64() * 40.0 + 4.0;
    // Rounded up to a whole transaction at each router; and what was reserved before.
    let most = most + 2.0;
    assert!(both as f64 <= most * 1.05, "{both} of {most}");
    assert!(both as f64 >= most * 0.75, "{both} of {most}: most of it can be used");
    // Where only one is asked, it has all of it.
    passed(&targets[..1], 4, Duration::from_secs(4));
    let one = passed(&targets[..1], 4, Duration::from_secs(3));
    assert!(one as f64 >= 120.0 * 0.75, "{one} of 120");
}

#[test]
fn open_transactions_of_all_routers_together_stay_within_the_limit() {
    let site = Site::start();
    let (_second, targets) = two(&site, &["concurrent_transactions=3", "wait_budget=300ms"]);
    let mut sessions: Vec<Raw> = (0..12).map(|n| targets[n % 2].connect()).collect();
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    // Whoever asks, whenever.
    let mut at_most = 0;
    for _ in 0..6 {
        for session in &mut sessions {
            let _ = session.try_rows("BEGIN");
        }
        at_most = at_most.max(site.sum(open));
        for session in sessions.iter_mut().step_by(2) {
            let _ = session.try_rows("ROLLBACK");
        }
    }
    assert!(at_most <= 3, "{at_most} were open");
    assert!(at_most >= 2, "{at_most} were open");
}

#[test]
fn a_router_without_the_catalog_keeps_its_part() {
    let site = Site::start();
    let (_second, targets) = two(&site, &["connections=6"]);
    let _sessions: Vec<Raw> = (0..2).map(|n| targets[n].connect()).collect();
    let held = "SELECT sum(held) FROM switchyard.leases WHERE kind = 'connections'";
    wait::until_true("the parts", || site.plane.cluster().value(held) == "6");
    site.plane.cluster().sql("ALTER FUNCTION switchyard.lease RENAME TO lease_gone");
    // Both go on with what they had: never more than the limit together.
    let mut more: Vec<Raw> = Vec::new();
    for _ in 0..2 {
        for target in &targets {
            more.extend((0..6).filter_map(|_| target.try_connect().ok()));
        }
    }
    assert_eq!(more.len(), 4, "six together");
}
