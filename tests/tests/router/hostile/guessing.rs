//! Guessing of passwords and of names.

use std::time::{Duration, Instant};

use switchyard_tests::raw::{Refused, messages as m, scram_verifier};
use switchyard_tests::setup::PASSWORD;
use switchyard_tests::{Running, Setup};

fn setup() -> Setup {
    Setup::new().shards(1).tenants(["acme", "globex"])
}

fn wrong(s: &Running, user: &str) -> Duration {
    let begin = Instant::now();
    assert_eq!(s.plain_target(user, "wrong").refused().sqlstate(), "28P01");
    begin.elapsed()
}

#[test]
fn failures_make_the_next_answer_slow_and_lock_nobody_out() {
    let s = setup().section("[limits]\nfailed_logins = 2").start();
    // Known from here before the attack.
    s.login("globex");
    let some: Duration = (0..6).map(|_| wrong(&s, "app.acme")).sum();
    // Held back 100, 200, 400 and 800 ms.
    assert!(some >= Duration::from_millis(1500), "{some:?}");
    // The right password is held back as well, so that speed does not tell, but it is let in.
    let begin = Instant::now();
    s.login("acme");
    assert!(begin.elapsed() >= Duration::from_millis(1600), "{:?}", begin.elapsed());
    // What another tenant suffers is none of this one's business.
    for _ in 0..12 {
        wrong(&s, "app.globex");
    }
    let begin = Instant::now();
    assert_eq!(s.login("globex").value("SELECT 1"), "1");
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
}

/// The challenge of SCRAM to `user`, with what is random by its length only.
fn challenge(s: &Running, user: &str) -> String {
    let mut raw = s.router.target().open().expect("it is there");
    raw.send(&m::startup(&[("user", user), ("database", "crm")]));
    let offer = raw.read();
    let first = b"n,,n=,r=rOprNGfwEbeRWgbNEkqO";
    let mut body = m::strings(&["SCRAM-SHA-256"]);
    body.extend((first.len() as u32).to_be_bytes());
    body.extend(first);
    raw.send(&m::frame(b'p', &body));
    let text = raw.read().text();
    let part = |name: &str| {
        let found = text.split(',').find_map(|p| p.split_once('=').filter(|(n, _)| n.ends_with(name)));
        found.unwrap_or_else(|| panic!("no {name} in {text:?}")).1.to_owned()
    };
    format!("{:?} r={} s={} i={}", offer.body, part("r").len(), part("s").len(), part("i"))
}

/// The salt that `user` is told.
fn salt(s: &Running, user: &str) -> String {
    let mut raw = s.router.target().open().expect("it is there");
    raw.send(&m::startup(&[("user", user), ("database", "crm")]));
    raw.read();
    let first = b"n,,n=,r=rOprNGfwEbeRWgbNEkqO";
    let mut body = m::strings(&["SCRAM-SHA-256"]);
    body.extend((first.len() as u32).to_be_bytes());
    body.extend(first);
    raw.send(&m::frame(b'p', &body));
    let text = raw.read().text();
    text.split(",s=").nth(1).expect("it is there").split(',').next().expect("it is there").to_owned()
}

#[test]
fn the_challenge_does_not_tell_who_exists() {
    // Verifiers of other hands than ours: more iterations, a longer salt.
    let of_others = "SCRAM-SHA-256$20000:AAECAwQFBgcICQoLDA0ODxAREhMUFRYX$\
        AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let users: String = (0..4)
        .map(|n| format!("[[users]]\nname = \"u{n}\"\nverifier = \"{of_others}\"\ntenants = \"*\"\n"))
        .collect();
    for (section, known) in [(String::new(), "app.acme"), (users, "u1.acme")] {
        let mut s = setup().section(&section).start();
        let expected = challenge(&s, known);
        for user in ["nobody.acme", "nobody.nowhere", "u9.acme", "nobody", " "] {
            assert_eq!(challenge(&s, user), expected, "{user:?}");
        }
        assert_eq!(challenge(&s, "app.nowhere"), challenge(&s, "app.acme"));
        // The same each time, as that of a user is.
        assert_eq!(salt(&s, "nobody.acme"), salt(&s, "nobody.acme"));
        // And the same whatever the tenant.
        for user in ["app", "nobody"] {
            let [one, other] = ["acme", "nowhere"].map(|tenant| salt(&s, &format!("{user}.{tenant}")));
            assert_eq!(one, other, "{user}");
        }
        assert_ne!(salt(&s, "nobody.acme"), salt(&s, "somebody.acme"));
        // A router's restart changes neither, nor does it matter which of several is asked.
        let before = ["app.acme", "nobody.acme"].map(|user| salt(&s, user));
        s.router.kill9();
        s.router.start_again();
        assert_eq!(["app.acme", "nobody.acme"].map(|user| salt(&s, user)), before);
    }
}

#[test]
fn heavy_neither_bytes_nor_time_tell_who_exists() {
    let verifier = scram_verifier("its-secret");
    let more = format!("[[users]]\nname = \"bnd\"\nverifier = \"{verifier}\"\ntenant = \"globex\"\n");
    let suspended = "[[tenants]]\nid = \"susp\"\nstate = \"suspended\"";
    let s = setup().section("[limits]\nfailed_logins = 0").section(suspended).section(&more).start();
    let kinds = [
        ("app.acme", "wrong"),
        ("nobody.acme", "wrong"),
        ("app.nowhere", "wrong"),
        ("app.susp", "wrong"),
        ("bnd.acme", "its-secret"),
        ("app.nowhere", PASSWORD),
    ];
    let mut times = vec![Vec::new(); kinds.len()];
    let mut looks = Vec::new();
    // In turns, so that whatever the machine does it does to all.
    for round in 0..120 {
        for (n, (user, password)) in kinds.iter().enumerate() {
            let begin = Instant::now();
            let refused = s.plain_target(user, password).refused();
            times[n].push(begin.elapsed().as_secs_f64() * 1e6);
            if round == 0 {
                let Refused::Error { bytes, shape, .. } = refused else { panic!("no word for {user}") };
                let text = String::from_utf8_lossy(&bytes[5..]).replace(user, "<user>");
                looks.push((text, shape.iter().map(|(tag, _)| *tag).collect::<Vec<_>>()));
            }
        }
    }
    assert!(looks.iter().all(|look| *look == looks[0]), "{looks:#?}");
    // The middle of each: a difference in what is computed would be a PBKDF2, which is milliseconds.
    let middle = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let middles: Vec<_> = times.iter_mut().map(middle).collect();
    let (least, most) =
        (middles.iter().copied().fold(f64::MAX, f64::min), middles.iter().copied().fold(0.0, f64::max));
    assert!(most < 2.0 * least + 1000.0, "microseconds: {middles:?}");
}
