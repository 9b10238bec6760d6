//! A JWT in place of a password.

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use switchyard_tests::jwt::{Key, claims, forge, hmac_with, jwks, now};
use switchyard_tests::raw::messages as m;
use switchyard_tests::{Refused, Running, Setup, wait};

const USER: &str = "[[users]]\nname = \"tok\"\njwt = true\ntenants = \"*\"";

fn setup() -> Setup {
    // Attacks are many, and must not slow each other down.
    let limits = "[limits]\nfailed_logins = 0";
    Setup::new().shards(1).tenants(["acme", "globex"]).section(USER).section(limits)
}

fn keys(keys: &[&Key]) -> String {
    let entries: Vec<_> = keys.iter().map(|k| k.toml()).collect();
    format!(
        "[[jwt]]\nname = \"us\"\nissuer = \"https://issuer\"\naudience = [\"db\"]\nleeway = \"0s\"\nkeys = [{}]",
        entries.join(", ")
    )
}

fn good(tenant: &str) -> Value {
    let mut claims = claims(tenant);
    claims["iss"] = "https://issuer".into();
    claims["aud"] = "db".into();
    claims
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

#[track_caller]
fn accepted(s: &Running, token: &str, tenant: &str) {
    let mut session = s.plain_target("tok", token).connect();
    assert_eq!(session.column("SELECT name FROM clients ORDER BY id"), s.canaries(tenant));
}

#[track_caller]
fn refused(s: &Running, user: &str, token: &str) -> Refused {
    s.plain_target(user, token).refused()
}

#[test]
fn every_algorithm_and_the_claim_is_the_tenant() {
    let all = [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
    let all = all.map(|a| Key::new(a, Some(&format!("{a:?}"))));
    let s = setup().section(&keys(&all.each_ref())).start();
    for key in &all {
        accepted(&s, &key.sign(&good("acme")), "acme");
        accepted(&s, &key.sign(&good("globex")), "globex");
    }
    let log = s.router.log();
    assert!(!log.contains(&all[0].sign(&good("acme"))[..40]), "a token is in the log");
}

#[test]
fn attacks() {
    let (rsa, es) = (Key::new(Algorithm::RS256, Some("r")), Key::new(Algorithm::ES256, Some("e")));
    let s = setup().section(&keys(&[&rsa, &es])).start();
    let stranger = Key::new(Algorithm::RS256, Some("r"));
    let none = |alg: &str| forge(&json!({"alg": alg, "typ": "JWT", "kid": "r"}), &good("acme"), b"");
    let mut two_parts = rsa.sign(&good("acme"));
    two_parts.truncate(two_parts.rfind('.').unwrap());
    let embedded = forge(
        &json!({"alg": "RS256", "jwk": stranger.jwk(), "jku": "http://127.0.0.1:1/", "kid": "../../etc/passwd"}),
        &good("acme"),
        b"x",
    );
    let reference = refused(&s, "tok.acme", "not a token at all");
    assert_eq!(reference.sqlstate(), "28P01");
    for (what, token) in [
        ("none", none("none")),
        ("None", none("None")),
        ("HMAC with the public key's PEM", hmac_with(rsa.public_pem().as_bytes(), Some("r"), &good("acme"))),
        ("a stranger's key", stranger.sign(&good("acme"))),
        ("a key of the token's own", embedded),
        ("no signature", two_parts),
        ("expired", rsa.sign(&with(good("acme"), "exp", (now() - 10).into()))),
        ("no expiry", {
            let mut claims = good("acme");
            claims.as_object_mut().unwrap().remove("exp");
            rsa.sign(&claims)
        }),
        ("not yet", rsa.sign(&with(good("acme"), "nbf", (now() + 3600).into()))),
        ("another audience", rsa.sign(&with(good("acme"), "aud", "web".into()))),
        ("another issuer", rsa.sign(&with(good("acme"), "iss", "https://evil".into()))),
        ("another tenant than asked for", rsa.sign(&good("globex"))),
        ("no tenant", rsa.sign(&with(good("acme"), "tenant_id", Value::Null))),
        ("a tenant that is a list", rsa.sign(&with(good("acme"), "tenant_id", json!(["acme"])))),
        ("an unknown tenant", rsa.sign(&good("nowhere"))),
        ("a key id of another key", {
            let other = Key::new(Algorithm::ES256, Some("r"));
            other.sign(&good("acme"))
        }),
    ] {
        let answer = refused(&s, "tok.acme", &token);
        assert_eq!(answer, reference, "{what}");
    }
    // A password is no token, and the user has none.
    assert_eq!(refused(&s, "tok.acme", "client-secret"), reference);
    accepted(&s, &rsa.sign(&good("acme")), "acme");
}

#[test]
fn the_users_without_jwt_cannot_use_one() {
    let key = Key::new(Algorithm::HS256, None);
    let s = setup().section(&keys(&[&key])).start();
    assert!(s.plain_target("app.acme", &key.sign(&good("acme"))).try_connect().is_err());
}

#[test]
fn claims_have_the_names_that_are_configured() {
    let key = Key::new(Algorithm::ES256, None);
    let issuer = format!(
        "[[jwt]]\nname = \"us\"\ntenant_claim = \"app.org\"\nuser_claim = \"role\"\nkeys = [{}]",
        key.toml()
    );
    let s = setup().section(&issuer).start();
    let claims = |role: &str| json!({"exp": now() + 60, "app": {"org": "acme"}, "role": role});
    accepted(&s, &key.sign(&claims("tok")), "acme");
    refused(&s, "tok", &key.sign(&claims("admin")));
}

#[test]
fn a_tenants_own_keys_are_good_for_that_tenant_alone() {
    let (acme, globex) = (Key::new(Algorithm::ES256, None), Key::new(Algorithm::EdDSA, None));
    let tenant = |id: &str, key: &Key| {
        format!("[[tenants]]\nid = \"{id}\"\n[[tenants.jwt]]\nname = \"own\"\nkeys = [{}]", key.toml())
    };
    let s = Setup::new()
        .shards(1)
        .section(USER)
        .section(&tenant("acme", &acme))
        .section(&tenant("globex", &globex))
        .sql("INSERT INTO clients SELECT 'acme', n, 'acme client ' || n FROM generate_series(1, 3) n")
        .start();
    let mut session = s.plain_target("tok.acme", &acme.sign(&claims("acme"))).connect();
    assert_eq!(session.value("SELECT name FROM clients WHERE id = 1"), "acme client 1");
    s.plain_target("tok.globex", &globex.sign(&claims("globex"))).connect();
    refused(&s, "tok.acme", &acme.sign(&claims("globex")));
    refused(&s, "tok.globex", &acme.sign(&claims("acme")));
}

#[test]
fn a_jwks_file_is_read_again_when_it_changes() {
    let (old, new) = (Key::new(Algorithm::RS256, Some("1")), Key::new(Algorithm::EdDSA, Some("2")));
    let dir = switchyard_tests::process::TempDir::new();
    let file = dir.write("jwks.json", &jwks(&[&old]));
    let s = setup().section(&format!("[[jwt]]\nname = \"us\"\njwks_file = {file:?}")).start();
    accepted(&s, &old.sign(&claims("acme")), "acme");
    refused(&s, "tok", &new.sign(&claims("acme")));
    dir.write("jwks.json", &jwks(&[&old, &new]));
    let login = |key: &Key| s.plain_target("tok", &key.sign(&claims("acme"))).try_connect().is_ok();
    wait::until_true("the new key", || login(&new));
    accepted(&s, &old.sign(&claims("acme")), "acme");
    dir.write("jwks.json", &jwks(&[&new]));
    wait::until_true("the end of the old key", || !login(&old));
    // Nonsense leaves the keys as they were.
    dir.write("jwks.json", "{");
    assert!(login(&new));
}

#[test]
fn a_jwks_url_is_asked_again_for_an_unknown_key() {
    let (old, new) = (Key::new(Algorithm::ES256, Some("1")), Key::new(Algorithm::ES256, Some("2")));
    let server = Jwks::serve(jwks(&[&old]));
    let url = format!("http://{}/jwks.json", server.address);
    let s = setup().section(&format!("[[jwt]]\nname = \"us\"\njwks_url = {url:?}\nrefresh = \"1s\"")).start();
    accepted(&s, &old.sign(&claims("acme")), "acme");
    *server.document.lock().unwrap() = jwks(&[&old, &new]);
    wait::until_true("the new key", || {
        s.plain_target("tok", &new.sign(&claims("acme"))).try_connect().is_ok()
    });
    // The keys that are known outlive their source.
    *server.document.lock().unwrap() = String::new();
    accepted(&s, &old.sign(&claims("acme")), "acme");
}

/// A small HTTP server of one document.
struct Jwks {
    address: std::net::SocketAddr,
    document: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Jwks {
    fn serve(document: String) -> Self {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let document = std::sync::Arc::new(std::sync::Mutex::new(document));
        let shared = document.clone();
        std::thread::spawn(move || {
            for mut socket in listener.incoming().flatten() {
                let body = shared.lock().expect("no panic while held").clone();
                let status = if body.is_empty() { "503 Down" } else { "200 OK" };
                let _ = socket.read(&mut [0; 4096]);
                let _ = write!(
                    socket,
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Self { address, document }
    }
}

#[test]
fn a_token_may_be_long_and_not_too_long() {
    let key = Key::new(Algorithm::HS256, None);
    let s = setup().section(&keys(&[&key])).start();
    let padded = |n: usize| key.sign(&with(good("acme"), "pad", "x".repeat(n).into()));
    accepted(&s, &padded(30_000), "acme");
    let mut raw = s.plain_target("tok", "").open().unwrap();
    raw.send(&s.plain_target("tok", "").startup());
    raw.read();
    // Declared, and never sent: refused at once.
    raw.send(&[&b"p"[..], &(1_u32 << 30).to_be_bytes()].concat());
    assert!(raw.ends());
    let mut raw = s.plain_target("tok", "").open().unwrap();
    raw.send(&s.plain_target("tok", "").startup());
    raw.read();
    raw.send(&m::frame(b'p', &m::strings(&[&padded(100_000)])));
    assert!(raw.ends());
}
