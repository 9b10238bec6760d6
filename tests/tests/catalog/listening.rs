//! LISTEN at one router of a catalog, NOTIFY at another.

use switchyard_tests::cluster::{DATABASE, SUPERUSER, SUPERUSER_PASSWORD};
use switchyard_tests::raw::messages as m;
use switchyard_tests::raw::{Raw, Target};
use switchyard_tests::router::Router;
use switchyard_tests::{Dice, wait};

use crate::life::Site;

/// The site, another router of it, and where a user of each tenant logs in. Both tenants are on one shard.
struct Two {
    site: Site,
    second: Router,
    users: Vec<(String, String)>,
}

fn router(site: &Site) -> Router {
    let catalog = site.plane.cluster().url(SUPERUSER, SUPERUSER_PASSWORD);
    Router::start(&format!("[router]\n[catalog]\nurl = \"{catalog}\"\n"))
}

impl Two {
    fn start() -> Self {
        let site = Site::start();
        let mut users = Vec::new();
        for tenant in ["acme", "globex"] {
            let made = site.plane.cli(&["tenant", "create", tenant, "--shard", "s0"]);
            let password = made["user"]["new_password"].as_str().expect("it is told once");
            users.push((tenant.to_owned(), password.to_owned()));
        }
        let second = router(&site);
        let two = Self { site, second, users };
        for (tenant, _) in &two.users {
            two.site.let_in(&two.target(&two.site.router, tenant));
            two.site.let_in(&two.target(&two.second, tenant));
        }
        two
    }

    fn target(&self, router: &Router, tenant: &str) -> Target {
        let (user, password) = self.users.iter().find(|(user, _)| user == tenant).expect("a user");
        router.target().user(user).password(password).database(DATABASE)
    }

    fn login(&self, router: &Router, tenant: &str) -> Raw {
        self.target(router, tenant).connect()
    }
}

/// The payloads of what `listener` hears up to the last word, which `sender` says now.
#[track_caller]
fn heard(listener: &mut Raw, sender: &mut Raw) -> Vec<String> {
    listener.heard(sender, "news").into_iter().map(|(_, payload)| payload).collect()
}

fn metric(router: &Router, name: &str, labels: &[(&str, &str)]) -> f64 {
    router.metrics().sum(&format!("switchyard_notification{name}"), labels)
}

#[test]
fn a_listener_hears_its_tenant_by_any_router() {
    let two = Two::start();
    let first = &two.site.router;
    // Its connections have served both before anybody listens, and one is in the middle of something.
    let (mut acme, mut globex) = (two.login(&two.second, "acme"), two.login(&two.second, "globex"));
    for _ in 0..3 {
        acme.rows("NOTIFY news, 'early'");
        globex.rows("NOTIFY news, 'early'");
    }
    let mut open = two.login(&two.second, "acme");
    open.rows("BEGIN; NOTIFY news, 'begun before'");
    for round in 0..3 {
        let mut listener = two.login(first, "acme");
        listener.rows("LISTEN news");
        if round == 0 {
            open.rows("COMMIT");
        }
        for n in 0..10 {
            globex.rows(&format!("NOTIFY news, 'globex {n}'"));
            acme.rows(&format!("NOTIFY news, 'acme {n}'"));
        }
        let mut expected: Vec<_> = (0..10).map(|n| format!("acme {n}")).collect();
        if round == 0 {
            expected.insert(0, "begun before".to_owned());
        }
        assert_eq!(heard(&mut listener, &mut acme), expected, "round {round}");
        // By its own router too, in order with the others.
        let mut here = two.login(first, "acme");
        here.rows("NOTIFY news, 'here'");
        acme.rows("NOTIFY news, 'there'");
        assert_eq!(heard(&mut listener, &mut here), ["here", "there"]);
    }
    assert_eq!(metric(first, "_unanswered_total", &[]), 0.0);
    assert_eq!(metric(first, "_forgeries_total", &[]), 0.0);
}

#[test]
fn a_router_that_comes_later_announces_as_well() {
    let two = Two::start();
    let mut listener = two.login(&two.site.router, "acme");
    listener.rows("LISTEN news");
    let third = router(&two.site);
    let (mut globex, mut acme) = (two.login(&third, "globex"), two.login(&third, "acme"));
    globex.rows("NOTIFY news, 'globex'");
    acme.rows("NOTIFY news, 'acme'");
    assert_eq!(heard(&mut listener, &mut acme), ["acme"]);
}

#[test]
fn a_router_that_was_cut_off_says_so_and_is_heard_again() {
    let two = Two::start();
    let mut acme = two.login(&two.second, "acme");
    acme.rows("SELECT 1");
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
        WHERE application_name = 'switchyard-router-listening'";
    two.site.plane.cluster().sql(cut);
    let mut listener = two.login(&two.site.router, "acme");
    listener.rows("LISTEN news");
    let delivered = || metric(&two.site.router, "s_delivered_total", &[]);
    wait::until_true("the other router", || {
        acme.rows("NOTIFY news, 'again'");
        delivered() > 0.0
    });
    assert!(heard(&mut listener, &mut acme).iter().all(|word| word == "again"));
}

/// The channel that routers announce tenants on.
fn private_channel(two: &Two) -> String {
    let channel = "SELECT DISTINCT substring(query FROM 'pg_notify\\(''(switchyard_[0-9a-f]+)''') FROM pg_stat_activity \
        WHERE query LIKE '%pg_notify(''switchyard%' AND pid <> pg_backend_pid()";
    two.site.shards[0].value(channel)
}

/// The announcements that `spy` has heard.
fn tags(spy: &mut Raw) -> Vec<String> {
    let messages = spy.round(&m::query("SELECT 1"));
    let notes = messages.iter().filter(|m| m.tag == b'A').map(|m| m.note().1);
    notes.filter(|payload| payload.starts_with('t')).collect()
}

#[test]
fn announcements_cost_nothing_where_nobody_listens() {
    let two = Two::start();
    let (mut acme, mut globex) = (two.login(&two.second, "acme"), two.login(&two.second, "globex"));
    let mut listener = two.login(&two.site.router, "acme");
    listener.rows("LISTEN news");
    let mut spy = two.site.shards[0].admin();
    spy.rows(&format!("LISTEN {}", private_channel(&two)));
    let mut said = |acme: &mut Raw, globex: &mut Raw| {
        acme.rows("SELECT 1");
        globex.rows("SELECT 1");
        tags(&mut spy).len()
    };
    wait::until_true("announcements", || said(&mut acme, &mut globex) > 0);
    listener.rows("UNLISTEN *");
    wait::until_true("silence", || said(&mut acme, &mut globex) == 0);
    for _ in 0..5 {
        assert_eq!(said(&mut acme, &mut globex), 0);
    }
}

#[test]
fn what_is_announced_by_one_router_cannot_be_said_again_through_another() {
    let two = Two::start();
    let (first, second) = (&two.site.router, &two.second);
    let mut listener = two.login(first, "acme");
    listener.rows("LISTEN news");
    let channel = private_channel(&two);
    let mut spy = two.site.shards[0].admin();
    spy.rows(&format!("LISTEN {channel}"));
    let (mut acme, mut globex) = (two.login(second, "acme"), two.login(second, "globex"));
    let mut tags = tags(&mut spy);
    for n in 0..6 {
        [&mut acme, &mut globex][n % 2].rows("SELECT 1");
        tags.extend(self::tags(&mut spy));
    }
    assert!(!tags.is_empty());
    // By every way that globex has: both routers, and a connection of its own to the shard.
    let mut direct = two.site.shards[0].app().connect();
    let mut here = two.login(first, "globex");
    for tag in &tags {
        for raw in [&mut globex, &mut here, &mut direct] {
            raw.rows(&format!("NOTIFY {channel}, '{tag}'; NOTIFY news, 'from globex'"));
            raw.rows("NOTIFY news, 'from globex again'");
        }
    }
    assert_eq!(heard(&mut listener, &mut acme), [""; 0]);
    assert!(metric(first, "_forgeries_total", &[]) >= 3.0);
}

/// Sessions 0 to 3 are of the first tenant, the others of the second; odd ones are at the second router.
const SESSIONS: usize = 8;

fn program(dice: &mut Dice, steps: usize) -> Vec<(usize, String)> {
    (0..steps)
        .map(|n| {
            let (a, b) = (*dice.pick(&["red", "blue"]), *dice.pick(&["red", "blue"]));
            let sql = match dice.roll(14) {
                0..5 => format!("LISTEN {a}"),
                5 => format!("UNLISTEN {a}"),
                6 => "UNLISTEN *".to_owned(),
                7 => format!("NOTIFY {a}, '{n}'; NOTIFY {b}, '{n} too'"),
                8 => format!("BEGIN; LISTEN {a}; NOTIFY {b}, '{n}'; ROLLBACK"),
                9 => format!("BEGIN; NOTIFY {a}, '{n} a'; NOTIFY {b}, '{n} b'; COMMIT"),
                _ => format!("NOTIFY {a}, '{n}'"),
            };
            (dice.roll(SESSIONS), sql)
        })
        .collect()
}

/// What each session hears of the steps that `plays` picks, in order.
fn heard_by_all(
    program: &[(usize, String)],
    sessions: &mut [Option<Raw>],
    plays: impl Fn(usize) -> bool,
) -> Vec<Vec<String>> {
    let mut heard = vec![Vec::new(); SESSIONS];
    let last = (0..SESSIONS).map(|session| (session, String::new()));
    let steps = (0..SESSIONS).map(|n| (n, String::new())).chain(program.iter().cloned()).chain(last);
    for (session, sql) in steps.filter(|(session, _)| plays(*session)) {
        let raw = sessions[session].as_mut().expect("a session");
        // Its own notification is there when it is ready, and everything before it.
        let flush = [format!("LISTEN flush_{session}"), format!("NOTIFY flush_{session}, 'flush'")];
        for sql in flush.iter().chain([&sql]).filter(|sql| !sql.is_empty()) {
            let notes = raw.round(&m::query(sql)).into_iter().filter(|m| m.tag == b'A').map(|m| m.note().1);
            heard[session].extend(notes.filter(|payload| payload != "flush"));
        }
    }
    heard
}

#[test]
fn heavy_random_programs_over_two_routers_hear_what_each_tenant_hears_alone() {
    let two = Two::start();
    let mut dice = Dice::new(20_261_122);
    let tenant_of = |session: usize| session / 4;
    for round in 0..3 {
        let program = program(&mut dice, 100);
        let at = |session: usize| [&two.site.router, &two.second][session % 2];
        let login = |n: usize| two.login(at(n), ["acme", "globex"][tenant_of(n)]);
        let mut routed: Vec<_> = (0..SESSIONS).map(|n| Some(login(n))).collect();
        let found = heard_by_all(&program, &mut routed, |_| true);
        drop(routed);
        assert!(found.iter().flatten().count() > 20, "the program is worth something");
        for tenant in 0..2 {
            let own = |session: usize| tenant_of(session) == tenant;
            let direct = |n: usize| own(n).then(|| two.site.shards[0].app().connect());
            let mut direct: Vec<_> = (0..SESSIONS).map(direct).collect();
            let expected = heard_by_all(&program, &mut direct, own);
            for session in (0..SESSIONS).filter(|n| own(*n)) {
                assert_eq!(
                    found[session], expected[session],
                    "round {round}, session {session}: {program:#?}"
                );
            }
        }
    }
}
