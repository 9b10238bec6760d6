//! Times, issuers, audiences, and the claims that name the tenant and the user.

use std::time::Duration;

use super::*;

struct Idp {
    signer: Signer,
    issuer: JwtIssuer,
}

impl Idp {
    fn new() -> Self {
        let signer = Signer::hs();
        let issuer = of_keys(&[signer.key(None)]);
        Self { signer, issuer }
    }

    async fn label(&self, claims: Value) -> &'static str {
        label(&self.signer.token(None, &claims), &self.issuer).await
    }

    async fn claims(&self, claims: Value) -> Claims {
        verify(&self.signer.token(None, &claims), &self.issuer).await.unwrap()
    }
}

#[tokio::test]
async fn times() {
    let idp = Idp::new();
    let (past, future) = (from_now(-3600), from_now(3600));
    for (claims, expected) in [
        (json!({ "exp": future }), "good"),
        (json!({}), "claim"),
        (json!({ "exp": null }), "claim"),
        (json!({ "exp": future.to_string() }), "claim"),
        (json!({ "exp": true }), "claim"),
        (json!({ "exp": 1e300 }), "claim"),
        (json!({ "exp": u64::MAX }), "claim"),
        (json!({ "exp": future as f64 + 0.5 }), "good"),
        (json!({ "exp": past }), "expired"),
        (json!({ "exp": 0 }), "expired"),
        (json!({ "exp": -1 }), "expired"),
        (json!({ "exp": -1.5 }), "expired"),
        (json!({ "exp": from_now(-10) }), "good"),
        (json!({ "exp": from_now(-32) }), "expired"),
        (json!({ "exp": future, "nbf": past, "iat": past }), "good"),
        (json!({ "exp": future, "nbf": from_now(20), "iat": from_now(20) }), "good"),
        (json!({ "exp": future, "nbf": from_now(60) }), "not_yet_valid"),
        (json!({ "exp": future, "iat": from_now(60) }), "not_yet_valid"),
        (json!({ "exp": future, "nbf": "soon" }), "claim"),
        (json!({ "exp": future, "iat": [] }), "claim"),
        (json!({ "exp": future, "nbf": -5, "iat": -5 }), "good"),
    ] {
        assert_eq!(idp.label(claims.clone()).await, expected, "{claims}");
    }
    let exact = from_now(3600);
    let expires = idp.claims(json!({ "exp": exact })).await.expires.unwrap();
    assert_eq!(expires, UNIX_EPOCH + Duration::from_secs(exact.unsigned_abs()));
}

#[tokio::test]
async fn the_end_is_exact() {
    let signer = Signer::hs();
    let verifier = JwtVerifier::new();
    let issuers = [Arc::new(of_keys(&[signer.key(None)]))];
    let token = signer.token(None, &json!({ "exp": 1000, "nbf": 500 }));
    for (now, expected) in [
        (469, Err("not_yet_valid")),
        (470, Ok(())),
        (1029, Ok(())),
        (1030, Err("expired")),
        (1031, Err("expired")),
    ] {
        let result = verifier.verify_at(&token, &issuers, &[], UNIX_EPOCH + seconds(now)).await;
        assert_eq!(result.map(drop).map_err(|e| e.label()), expected, "{now}");
    }
}

#[tokio::test]
async fn issuers() {
    let mut idp = Idp::new();
    idp.issuer.issuer = Some("https://idp.example.com/".to_owned());
    assert_eq!(idp.label(good(json!({ "iss": "https://idp.example.com/" }))).await, "good");
    for iss in ["https://idp.example.com", "https://IDP.example.com/", ""] {
        assert_eq!(idp.label(good(json!({ "iss": iss }))).await, "unknown_issuer", "{iss}");
    }
    assert_eq!(idp.label(good(json!({}))).await, "unknown_issuer");
    assert_eq!(idp.label(good(json!({ "iss": ["https://idp.example.com/"] }))).await, "malformed");
}

#[tokio::test]
async fn audiences() {
    let mut idp = Idp::new();
    assert_eq!(idp.label(good(json!({ "aud": "anybody" }))).await, "good");
    idp.issuer.audience = vec!["db".to_owned(), "pooler".to_owned()];
    for (aud, expected) in [
        (json!("db"), "good"),
        (json!(["web", "pooler"]), "good"),
        (json!("web"), "audience"),
        (json!("dbx"), "audience"),
        (json!(["web"]), "audience"),
        (json!([]), "audience"),
        (json!(["web", ["db"]]), "audience"),
        (json!({ "db": 1 }), "audience"),
        (json!(null), "audience"),
        (json!(1), "audience"),
    ] {
        assert_eq!(idp.label(good(json!({ "aud": aud }))).await, expected, "{aud}");
    }
    assert_eq!(idp.label(good(json!({}))).await, "audience");
}

#[tokio::test]
async fn tenants() {
    let idp = Idp::new();
    for (tenant, expected) in [
        (json!("acme"), Some("acme")),
        (json!("büro.a@b"), Some("büro.a@b")),
        (json!(42), Some("42")),
        (json!(-7), Some("-7")),
        (json!(u64::MAX), Some("18446744073709551615")),
        (json!("042"), Some("042")),
        (json!(""), None),
        (json!(4.0), None),
        (json!(1e19), None),
        (json!(null), None),
        (json!(true), None),
        (json!(["acme"]), None),
        (json!({ "id": "acme" }), None),
        (json!("a\u{0}b"), None),
        (json!("a\nb"), None),
        (json!("x".repeat(129)), None),
    ] {
        let claims = good(json!({ "tenant_id": tenant }));
        match expected {
            Some(id) => assert_eq!(idp.claims(claims).await.tenant.unwrap().as_str(), id),
            None => assert_eq!(idp.label(claims).await, "claim", "{tenant}"),
        }
    }
    assert_eq!(idp.claims(json!({ "exp": from_now(60) })).await.tenant, None);
}

#[tokio::test]
async fn a_path_to_the_tenant() {
    let mut idp = Idp::new();
    idp.issuer.tenant_claim = "app_metadata.org.id".to_owned();
    let exp = from_now(60);
    for (claims, expected) in [
        (json!({ "exp": exp, "app_metadata": { "org": { "id": "acme" } } }), Ok(Some("acme"))),
        (json!({ "exp": exp, "app_metadata.org.id": "acme" }), Ok(Some("acme"))),
        (json!({ "exp": exp, "app_metadata": { "org.id": "acme" } }), Ok(None)),
        (json!({ "exp": exp, "app_metadata": { "org": "acme" } }), Ok(None)),
        (json!({ "exp": exp, "app_metadata": [{ "org": { "id": "acme" } }] }), Ok(None)),
        (
            json!({ "exp": exp, "app_metadata.org.id": "acme", "app_metadata": { "org": { "id": "acme" } } }),
            Err("claim"),
        ),
    ] {
        let result = verify(&idp.signer.token(None, &claims), &idp.issuer).await;
        let tenant = result.map(|c| c.tenant);
        assert_eq!(
            tenant.as_ref().map(|t| t.as_ref().map(|t| t.as_str())),
            expected.as_ref().map(|t| *t),
            "{claims}"
        );
    }
    idp.issuer.tenant_claim = "https://example.com/tenant".to_owned();
    let claims = idp.claims(json!({ "exp": exp, "https://example.com/tenant": "acme" })).await;
    assert_eq!(claims.tenant.unwrap().as_str(), "acme");
}

#[tokio::test]
async fn users() {
    let mut idp = Idp::new();
    assert_eq!(idp.claims(good(json!({ "sub": "app" }))).await.user, None);
    idp.issuer.user_claim = Some("sub".to_owned());
    assert_eq!(idp.claims(good(json!({ "sub": "app" }))).await.user.as_deref(), Some("app"));
    for claims in [json!({}), json!({ "sub": 1 }), json!({ "sub": null }), json!({ "sub": ["app"] })] {
        assert_eq!(idp.label(good(claims.clone())).await, "claim", "{claims}");
    }
}

#[tokio::test]
async fn the_issuer_that_knew_most_reports() {
    let signer = Signer::hs();
    let good_issuer = Arc::new(of_keys(&[signer.key(None)]));
    let stranger = Arc::new(JwtIssuer { name: "stranger".to_owned(), ..of_keys(&[Signer::es().key(None)]) });
    let token = signer.token(None, &json!({ "exp": 1 }));
    for issuers in [[good_issuer.clone(), stranger.clone()], [stranger, good_issuer]] {
        let error = JwtVerifier::new().verify(&token, &issuers, &[]).await.unwrap_err();
        assert_eq!(error, JwtError::Expired { issuer: "idp".to_owned() });
    }
}
