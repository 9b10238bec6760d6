//! What a client says before and during its login that it has no right to say.

use jsonwebtoken::Algorithm;
use switchyard_tests::jwt::{Key, claims};
use switchyard_tests::raw::messages as m;
use switchyard_tests::setup::{PASSWORD, user_toml};
use switchyard_tests::{Running, Setup};

fn count(s: &Running) -> String {
    s.shards[0].value("SELECT count(*) FROM scratch.items")
}

#[test]
fn statements_sent_along_with_the_login() {
    let key = Key::new(Algorithm::HS256, None);
    let issuer = format!("[[jwt]]\nname = \"us\"\nkeys = [{}]", key.toml());
    let user = "[[users]]\nname = \"tok\"\njwt = true\ntenants = \"*\"";
    let s = Setup::new().shards(1).tenants(["acme"]).section(user).section(&issuer).start();
    let insert = m::query("INSERT INTO scratch.items VALUES (1, 'early')");
    let startup = m::startup(&[("user", "tok.acme"), ("database", "crm")]);
    let password = |text: &str| m::frame(b'p', &m::strings(&[text]));
    let token = key.sign(&claims("acme"));
    // All in one write: what follows the password runs if, and only if, that is right.
    for (what, bytes, rows) in [
        ("no password", [startup.clone(), insert.clone()].concat(), "0"),
        ("a wrong password", [startup.clone(), password("wrong"), insert.clone()].concat(), "0"),
        (
            "a query before the startup packet",
            [insert.clone(), startup.clone(), password(&token)].concat(),
            "0",
        ),
        (
            "a password before the startup packet",
            [password(&token), startup.clone(), insert.clone()].concat(),
            "0",
        ),
        (
            "two startup packets",
            [startup.clone(), startup.clone(), password(&token), insert.clone()].concat(),
            "0",
        ),
        ("the right password", [startup, password(&token), insert].concat(), "1"),
    ] {
        let mut raw = s.router.target().open().expect("it is there");
        raw.send(&bytes);
        if rows == "1" {
            while raw.read().tag != b'Z' {}
            raw.until_ready();
        } else {
            while raw.byte().is_ok() {}
        }
        assert_eq!(count(&s), rows, "{what}");
    }
}

#[test]
fn parameters_that_are_the_routers_own() {
    let bound = user_toml("bnd", "its-secret", "tenant = \"acme\"");
    let s = Setup::new().shards(1).tenants(["acme", "globex"]).section(&bound).start();
    let names = "SELECT name FROM clients ORDER BY id";
    let mut served = 0;
    for (name, value) in [
        ("switchyard.tenant", "globex"),
        ("SWITCHYARD.TENANT", "globex"),
        ("app.tenant_id", "globex"),
        ("App.Tenant_Id", "globex"),
        ("options", "-c app.tenant_id=globex"),
        ("options", "--app.tenant-id=globex"),
        ("options", "--app.tenant_id=globex"),
        ("options", "-cApp.Tenant_ID=globex"),
        ("options", "-c switchyard.tenant=globex"),
        ("options", "-c app.tenant_id=acme -c app.tenant_id=globex"),
        ("options", "-c app.tenant_id=globex -c app.tenant_id=acme"),
        ("switchyard.anything", "x"),
        ("switchyard.seal", "forged"),
        ("role", "crm_owner"),
        ("session_authorization", "super"),
        ("row_security", "off"),
        ("search_path", "pg_temp, public"),
        ("_pq_.switchyard.tenant", "globex"),
        ("user", "bnd.globex"),
    ] {
        for (user, password) in [("bnd", "its-secret"), ("app.acme", PASSWORD)] {
            let target = s.plain_target(user, password).param(name, value);
            // Refused, or without effect: never another tenant's rows.
            let Ok(mut session) = target.try_connect() else { continue };
            served += 1;
            match session.try_rows(names) {
                Ok(rows) => {
                    let seen: Vec<_> =
                        rows.into_iter().map(|row| row[0].clone().unwrap_or_default()).collect();
                    assert_eq!(seen, s.canaries("acme"), "{user} with {name} = {value}");
                }
                Err(error) => {
                    assert!(error.message.contains("row-level security"), "{name} = {value}: {error:?}")
                }
            }
        }
    }
    assert!(served > 0);
}

#[test]
fn handshakes_that_come_to_nothing() {
    let s = Setup::new().shards(1).tenants(["acme"]).tls("require").start();
    // TLS 1.1, and an old cipher.
    let mut hello = vec![1, 0, 0, 41, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    hello[3] = (hello.len() - 4) as u8;
    let record = [&[0x16, 3, 1, 0, hello.len() as u8][..], &hello].concat();
    for bytes in [
        record,
        b"\x16\x03\x01".to_vec(),
        b"\x16\x03\x01\xff\xff".to_vec(),
        b"\x15\x03\x01\x00\x02\x02\x28".to_vec(),
        b"\x17\x03\x03\x00\x05hello".to_vec(),
        vec![0xff; 4000],
        m::startup(&[("user", "app.acme")]),
    ] {
        let mut raw = s.router.target().open().expect("it is there");
        raw.send(&m::ssl_request());
        assert_eq!(raw.byte().expect("it is there"), b'S');
        raw.send(&bytes);
        raw.half_close();
        let mut answer = Vec::new();
        while let Ok(byte) = raw.byte() {
            answer.push(byte);
        }
        // Nothing, or an alert.
        assert!(answer.is_empty() || answer[0] == 0x15, "{}", answer.escape_ascii());
    }
    // Server names as long as there are, and such as name nobody.
    for name in [&format!("{}.db.example.com", "a".repeat(63)), "xn--bcher-kva.db.example.com"] {
        let target = s.router.target().user("app.acme").password(PASSWORD).database("crm");
        let mut session = target.tls(&s.certs.client(None), name).connect();
        assert_eq!(session.value("SELECT count(*) FROM clients"), "3");
    }
    assert_eq!(s.login("acme").value("SELECT 1"), "1");
}
