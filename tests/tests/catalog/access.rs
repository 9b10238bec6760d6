//! Who gets in, and by what: tokens of an identity provider, TLS, and the keys that secret values are sealed by.

use std::io::{Read, Write};
use std::sync::Arc;

use jsonwebtoken::Algorithm;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use switchyard_tests::certs::Certs;
use switchyard_tests::jwt::{self, Key};
use switchyard_tests::process::TempDir;
use switchyard_tests::{Cluster, wait};

use crate::api::ControlPlane;

#[test]
fn tokens_of_an_identity_provider_allow_what_they_say() {
    let dir = TempDir::new();
    let (ours, others) = (Key::new(Algorithm::ES256, Some("k1")), Key::new(Algorithm::ES256, Some("k1")));
    let jwks = dir.write("jwks.json", &jwt::jwks(&[&ours]));
    let oidc = format!(
        "[oidc]\nissuer = 'https://id.example'\naudience = 'switchyard'\njwks_file = '{}'\n",
        jwks.display()
    );
    let plane = ControlPlane::over(Arc::new(Cluster::start()), &oidc);
    for id in ["acme", "globex"] {
        plane.cli(&["tenant", "create", id, "--no-user"]);
    }
    let claims = |change: Value| {
        let mut claims = json!({ "iss": "https://id.example", "aud": "switchyard", "sub": "ada@example.com",
                                 "exp": jwt::now() + 600, "switchyard_role": "viewer" });
        for (key, value) in change.as_object().expect("an object") {
            claims[key] = value.clone();
        }
        claims
    };
    let get = |path: &str, token: &str| plane.request("GET", path, token, "").0;
    let list = |change: Value| get("/v1/tenants", &ours.sign(&claims(change)));
    assert_eq!(list(json!({})), 200);
    for (what, change) in [
        ("another issuer", json!({ "iss": "https://evil.example" })),
        ("another audience", json!({ "aud": "other" })),
        ("expired", json!({ "exp": jwt::now() - 600 })),
        ("not valid yet", json!({ "nbf": jwt::now() + 600 })),
        ("no end", json!({ "exp": null })),
        ("no subject", json!({ "sub": "" })),
        ("no role", json!({ "switchyard_role": null })),
        ("an unknown role", json!({ "switchyard_role": "root" })),
        ("a tenant that makes no sense", json!({ "switchyard_tenant": ["acme"] })),
    ] {
        assert_eq!(list(change), 401, "{what}");
    }
    let good = claims(json!({ "switchyard_role": "admin" }));
    assert_eq!(get("/v1/tenants", &others.sign(&good)), 401, "another key by the same id");
    let none = jwt::forge(&json!({ "alg": "none", "typ": "JWT" }), &good, b"");
    assert_eq!(get("/v1/tenants", &none), 401, "no signature");
    let confused = jwt::hmac_with(ours.public_pem().as_bytes(), Some("k1"), &good);
    assert_eq!(get("/v1/tenants", &confused), 401, "the public key as a secret");

    // A role, and a tenant.
    let viewer = ours.sign(&claims(json!({})));
    assert_eq!(plane.request("POST", "/v1/tenants", &viewer, "{\"id\": \"x\"}").0, 403);
    let roles = ours.sign(&claims(json!({ "switchyard_role": ["viewer", "operator", "else"] })));
    assert_eq!(plane.request("POST", "/v1/tenants", &roles, "{\"id\": \"x\"}").0, 201, "the highest counts");
    assert_eq!(plane.request("POST", "/v1/tokens", &roles, "{}").0, 403);
    let of_acme = ours.sign(&claims(json!({ "switchyard_tenant": "acme", "switchyard_role": "admin" })));
    assert_eq!(get("/v1/tenants/acme", &of_acme), 200);
    for path in ["/v1/tenants/globex", "/v1/tenants", "/v1/tokens"] {
        assert_eq!(get(path, &of_acme), 403, "{path}");
    }
    // The audit tells who it was.
    let (_, _, audit) = plane.request("GET", "/v1/audit?target=x", &plane.token(), "");
    let deed = &audit["items"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|d| d["kind"] == "tenant")
        .expect("it is told");
    assert_eq!((&deed["actor"], &deed["method"]), (&json!("ada@example.com"), &json!("oidc")));
}

#[test]
fn the_control_plane_speaks_tls_and_nothing_else() {
    let certs = Certs::new();
    let tls = format!(
        "[tls]\ncert = '{}'\nkey = '{}'\n",
        certs.cert("server").display(),
        certs.key("server").display()
    );
    let plane = ControlPlane::spawn(Arc::new(Cluster::start()), &tls);
    let ask = || -> std::io::Result<String> {
        let name = ServerName::try_from("localhost").expect("a name");
        let client = rustls::ClientConnection::new(certs.client(None), name).expect("a client");
        let mut stream = rustls::StreamOwned::new(client, std::net::TcpStream::connect(plane.address())?);
        write!(
            stream,
            "GET /v1/tenants HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
            plane.token()
        )?;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        Ok(answer)
    };
    let mut answer = String::new();
    wait::until_true("the control plane", || {
        answer = if plane.is_ready_to_be_asked() { ask().unwrap_or_default() } else { String::new() };
        !answer.is_empty()
    });
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("{\"items\":[],\"next\":null}"),
        "{answer}"
    );
    // Another authority's certificate is not taken for it, and without TLS nothing is answered.
    let other = Certs::new();
    let name = ServerName::try_from("localhost").expect("a name");
    let client = rustls::ClientConnection::new(other.client(None), name).expect("a client");
    let socket = std::net::TcpStream::connect(plane.address()).expect("it listens");
    assert!(rustls::StreamOwned::new(client, socket).write_all(b"GET / HTTP/1.1\r\n\r\n").is_err());
    let mut plain = std::net::TcpStream::connect(plane.address()).expect("it listens");
    plain.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").expect("it reads");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
}

#[test]
fn keys_are_rotated_and_old_ones_taken_away() {
    let mut plane = ControlPlane::start();
    plane.cli(&["tenant", "create", "acme", "--no-user"]);
    let token = plane.token();
    let set = json!({ "value": "hush-hush", "secret": true }).to_string();
    assert_eq!(plane.request("PUT", "/v1/tenants/acme/values/smtp", &token, &set).0, 200);
    let read = |plane: &ControlPlane| plane.request("GET", "/v1/tenants/acme/values/smtp", &token, "");
    assert_eq!(read(&plane).2["value"], "hush-hush");
    let old = plane.keys();
    let kid = || plane.cluster().value("SELECT kid FROM switchyard.data_keys");
    let before = kid();
    let new = format!("second {}\n", "B".repeat(42) + "A=");

    // A new key in front; what the old one has sealed opens still.
    plane.restart_with_keys(&format!("{new}{old}"));
    assert_eq!(read(&plane).2["value"], "hush-hush");
    let (status, _, answer) = plane.request("POST", "/v1/keys/rotate", &token, "");
    assert_eq!(status, 200, "{answer}");
    let after = plane.cluster().value("SELECT kid FROM switchyard.data_keys");
    assert_ne!(before, after);
    // The old one is not needed any more.
    plane.restart_with_keys(&new);
    assert_eq!(read(&plane).2["value"], "hush-hush");
    // Without the new one it is lost, and said to be.
    plane.restart_with_keys(&old);
    let (status, _, problem) = read(&plane);
    assert_eq!((status, &problem["code"]), (409, &json!("unopened")), "{problem}");
    assert!(!problem.to_string().contains("hush"), "{problem}");
}
