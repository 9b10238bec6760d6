//! What must not be seen: passwords, tokens and keys, in the log at its most verbose, in metrics, in
//! the list of processes, in errors. And what must not be believed: lines that a client wrote.

use jsonwebtoken::Algorithm;
use switchyard_tests::cluster::APP_PASSWORD;
use switchyard_tests::jwt::{Key, claims};
use switchyard_tests::raw::messages as m;
use switchyard_tests::setup::PASSWORD;
use switchyard_tests::{Refused, Router, Setup, metrics};

#[test]
fn nothing_secret_is_said_anywhere() {
    let key = Key::new(Algorithm::HS256, None);
    let issuer = format!("[[jwt]]\nname = \"us\"\nkeys = [{}]", key.toml());
    let user = "[[users]]\nname = \"tok\"\njwt = true\ntenants = \"*\"";
    let s = Setup::new().shards(1).tls("allow").tenants(["acme"]).section(user).section(&issuer).start();
    // The same once more, as verbose as it can be.
    let router = Router::start_with_level(&s.toml, "trace");
    let target = |user: &str, password: &str| router.target().user(user).password(password).database("crm");
    let token = key.sign(&claims("acme"));
    let forged = {
        let other = Key::new(Algorithm::HS256, None);
        other.sign(&claims("acme"))
    };
    let mut said = String::new();
    for (user, password) in [
        ("app.acme", PASSWORD),
        ("app.acme", "sw0rdfish"),
        ("nobody", "sw0rdfish"),
        ("tok.acme", &token),
        ("tok.acme", &forged),
        ("tok.acme", "sw0rdfish"),
    ] {
        match target(user, password).tls(&s.certs.client(None), "localhost").try_connect() {
            Ok(mut session) => {
                session.rows("SELECT 1");
                said += &format!("{:?}", session.try_rows("SELECT nothing FROM nowhere"));
            }
            Err(Refused::Error { bytes, .. }) => said += &String::from_utf8_lossy(&bytes),
            Err(Refused::Closed(_)) => {}
        }
    }
    let mut plain = target("app.acme", PASSWORD).connect();
    plain.send(&m::query("SELECT pg_sleep(0)"));
    plain.until_ready();
    let cancel_key = plain.key()[4..].to_vec();
    assert!(router.reload_files());
    // A file that cannot be used is complained of, without its secrets.
    let broken = s.toml.replace("[pool]\n", "[pool]\nnonsense = 1\n");
    assert!(!router.reload(&broken));
    let verifier_keys: Vec<_> = s.toml.lines().filter_map(|l| l.split_once("SCRAM-SHA-256$")).collect();
    let stored = verifier_keys[0].1.rsplit('$').next().expect("it is there").trim_end_matches('"').to_owned();
    let read = |path: &str| metrics::get(router.http(), path).map(|(_, body)| body).unwrap_or_default();
    let process = |file: &str| {
        let bytes = std::fs::read(format!("/proc/{}/{file}", router.pid())).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let places = [
        ("the log", router.log()),
        ("the metrics", read("/metrics")),
        ("the status page", read("/") + &read("/status")),
        ("what clients are told", said),
        ("the command line", process("cmdline")),
        ("the environment", process("environ")),
    ];
    let secrets = [
        ("the client's password", PASSWORD.to_owned()),
        ("a wrong password", "sw0rdfish".to_owned()),
        ("the shard's password", APP_PASSWORD.to_owned()),
        ("a token", token.rsplit('.').next().expect("it is there").to_owned()),
        ("a forged token", forged.rsplit('.').next().expect("it is there").to_owned()),
        ("a verifier", stored[..20].to_owned()),
        ("a proof", ",p=".to_owned()),
        ("a challenge", ",s=".to_owned()),
        (
            "a cancel key",
            format!("{}", u32::from_be_bytes(cancel_key.as_slice().try_into().expect("it is there"))),
        ),
    ];
    assert!(places[0].1.contains("TRACE") || places[0].1.contains("DEBUG"), "the log is not verbose");
    for (place, text) in &places {
        for (what, secret) in &secrets {
            let at = text.find(secret.as_str()).map(|at| {
                let from = text[..at].rfind('\n').map_or(0, |n| n + 1);
                text[from..].chars().take(400).collect::<String>()
            });
            assert!(at.is_none(), "{what} is in {place}: {}", at.unwrap_or_default());
        }
    }
    // Nobody reads its memory from a core dump or by attaching to it, unless allowed to everything.
}

#[test]
fn a_client_cannot_write_lines_into_the_log() {
    let s = Setup::new().shards(1).tls("allow").tenants(["acme"]).start();
    let evil = "x\r\n{\"level\":\"ERROR\",\"message\":\"FORGED\"}\n\u{1b}[31mred\u{1b}]0;title\u{7}\u{202e}";
    for target in [
        s.router.target().user(evil).password("x").database("crm"),
        s.router.target().user(&format!("app.{evil}")).password(PASSWORD).database("crm"),
        s.router.target().user("app.acme").password(PASSWORD).database(evil),
        s.router.target().user("app.acme").password(PASSWORD).database("crm").param("application_name", evil),
        s.router.target().user("app.acme").password(PASSWORD).param(evil, evil),
        s.router.target().user("app.acme").password(PASSWORD).param("options", &format!("-c {evil}")),
        s.router.target().user("app.acme").password(PASSWORD).param("switchyard.tenant", evil),
    ] {
        if let Ok(mut session) = target.try_connect() {
            let _ = session.try_rows(&format!("SELECT {evil}"));
            let _ = session.try_rows(&format!("DO $$ BEGIN RAISE EXCEPTION '{evil}'; END $$"));
        }
    }
    s.router.target().user("app.acme").password(PASSWORD).database("crm").connect();
    let log = s.router.log();
    assert!(log.contains("FORGED"), "nothing of it was logged, so nothing was tried");
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_ne!(value["message"], "FORGED", "{line}");
        assert!(!line.contains('\u{1b}') && !line.contains('\u{7}'), "{line}");
    }
}
