//! What forgers try.

use super::*;

#[tokio::test]
async fn no_algorithm() {
    let trusted = of_keys(&[Signer::hs().key(None), Signer::rs().key(None)]);
    let claims = good(json!({})).to_string();
    for alg in
        ["none", "None", "NONE", "nOnE", "", "HS384", "HS512", "RS384", "PS256", "ES384", "hs256", " HS256"]
    {
        let header = json!({ "alg": alg }).to_string();
        for signature in ["", "AA", &b64(Signer::hs().sign_raw(b"x"))] {
            let token = format!("{}.{}.{signature}", b64(&header), b64(&claims));
            assert_eq!(label(&token, &trusted).await, "algorithm", "{alg}");
        }
    }
    for header in ["{}", r#"{"alg":null}"#, r#"{"alg":1}"#, r#"{"alg":["HS256"]}"#] {
        assert_eq!(label(&Signer::hs().token_of(header, &claims), &trusted).await, "algorithm", "{header}");
    }
}

#[tokio::test]
async fn a_public_key_taken_for_a_secret() {
    // The forger knows the public key and signs by HMAC with it, in every form that it comes in.
    for signer in [Signer::rs(), Signer::es(), Signer::ed()] {
        let spki = signer.spki();
        let (_, parsed) = SubjectPublicKeyInfo::from_der(&spki).unwrap();
        let bytes = parsed.subject_public_key.data.to_vec();
        for secret in [
            signer.material().into_bytes(),
            signer.material().trim().as_bytes().to_vec(),
            spki.clone(),
            bytes,
        ] {
            let signed = format!("{}.{}", b64(r#"{"alg":"HS256"}"#), b64(good(json!({})).to_string()));
            let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            let token = format!("{signed}.{}", b64(hmac::sign(&key, signed.as_bytes())));
            assert_eq!(label(&token, &of_keys(&[signer.key(None)])).await, "other_algorithm");
            let kid = signer.key(Some("k"));
            assert_eq!(label(&token, &of_keys(&[kid])).await, "other_algorithm");
        }
    }
}

#[tokio::test]
async fn keys_that_the_token_brings_along() {
    let (ours, forger) = (Signer::rs(), Signer::rs());
    let trusted = of_keys(&[ours.key(None)]);
    let claims = good(json!({})).to_string();
    let headers = [
        json!({ "alg": "RS256", "jwk": forger.jwk("x") }),
        json!({ "alg": "RS256", "jku": "http://127.0.0.1:1/jwks.json" }),
        json!({ "alg": "RS256", "x5u": "https://example.com/cert.pem" }),
        json!({ "alg": "RS256", "x5c": ["AAAA"] }),
    ];
    for header in headers {
        let header = header.to_string();
        assert_eq!(label(&forger.token_of(&header, &claims), &trusted).await, "signature");
        // Some identity providers put their own there: they are not looked at.
        assert_eq!(label(&ours.token_of(&header, &claims), &trusted).await, "good");
    }
}

#[tokio::test]
async fn key_ids_are_compared_and_nothing_else() {
    let signer = Signer::hs();
    let trusted = of_keys(&[signer.key(Some("good"))]);
    let kids = [
        "../../../dev/null",
        "/dev/null",
        "file:///dev/null",
        "http://127.0.0.1/",
        "good' OR '1'='1",
        "good\0",
        "GOOD",
        "",
        &"x".repeat(10_000),
    ];
    for kid in kids {
        let token = signer.token(Some(kid), &good(json!({})));
        assert_eq!(label(&token, &trusted).await, "unknown_key", "{kid}");
        let error = JwtVerifier::new().verify(&token, &[Arc::new(trusted.clone())], &[]).await.unwrap_err();
        let text = error.to_string();
        assert!(text.len() < 200 && !text.contains(char::is_control), "{text}");
    }
    for kid in ["1", "null", r#"["good"]"#, r#"{"good":1}"#] {
        let header = format!(r#"{{"alg":"HS256","kid":{kid}}}"#);
        assert_eq!(
            label(&signer.token_of(&header, &good(json!({})).to_string()), &trusted).await,
            "malformed"
        );
    }
}

#[tokio::test]
async fn critical_extensions() {
    let signer = Signer::hs();
    for crit in ["[]", r#"["b64"]"#, r#"["exp"]"#, "null"] {
        let header = format!(r#"{{"alg":"HS256","b64":false,"crit":{crit}}}"#);
        let token = signer.token_of(&header, &good(json!({})).to_string());
        assert_eq!(label(&token, &of_keys(&[signer.key(None)])).await, "critical", "{crit}");
    }
}

#[tokio::test]
async fn things_said_twice() {
    let signer = Signer::hs();
    let trusted = of_keys(&[signer.key(None)]);
    let exp = from_now(600);
    for claims in [
        format!(r#"{{"exp":{exp},"tenant_id":"acme","tenant_id":"globex"}}"#),
        format!(r#"{{"exp":{exp},"tenant_id":"acme","tenant_id":"acme"}}"#),
        format!(r#"{{"exp":1,"exp":{exp},"tenant_id":"acme"}}"#),
        format!(r#"{{"exp":{exp},"tenant_id":"acme","tenant\u005fid":"globex"}}"#),
        format!(r#"{{"exp":{exp},"a":[{{"b":1,"b":2}}]}}"#),
    ] {
        assert_eq!(
            label(&signer.token_of(r#"{"alg":"HS256"}"#, &claims), &trusted).await,
            "malformed",
            "{claims}"
        );
    }
    let claims = good(json!({})).to_string();
    for header in [r#"{"alg":"none","alg":"HS256"}"#, r#"{"alg":"HS256","kid":"a","kid":"b"}"#] {
        assert_eq!(label(&signer.token_of(header, &claims), &trusted).await, "malformed", "{header}");
    }
}

#[tokio::test]
async fn malformed() {
    let signer = Signer::hs();
    let trusted = of_keys(&[signer.key(None)]);
    let good_one = signer.token(None, &good(json!({})));
    let [header, claims, signature] = good_one.split('.').collect::<Vec<_>>()[..] else {
        panic!("three parts")
    };
    for token in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        format!("{header}.{claims}"),
        format!("{good_one}.x"),
        format!("{header}.{claims}.{signature}.{signature}.x"),
        format!("{header}=.{claims}.{signature}"),
        format!(" {good_one}"),
        format!("{header}.{claims}\n.{signature}"),
        format!("{}.{claims}.{signature}", b64("[]")),
        format!("{}.{claims}.{signature}", b64("{")),
        format!("{}.{claims}.{signature}", b64(r#"{"alg":"HS256"} x"#)),
        format!("{header}.{}.{signature}", b64("\"exp\"")),
        format!("{header}.{}.{signature}", b64("\u{feff}{}")),
        format!("{header}.{}.{signature}", b64(b"{\"a\":\"\xff\"}")),
        format!("{header}.{}.{signature}", b64(r#"{"iss":1}"#)),
        format!("{header}.{}.{signature}", b64(r#"{"exp":1e999}"#)),
        "ü.ü.ü".to_owned(),
    ] {
        assert_eq!(label(&token, &trusted).await, "malformed", "{token}");
    }
    // A last character whose unused bits are set decodes to the same bytes and is another token all the same.
    let last = signature.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let next = alphabet.chars().nth(alphabet.find(last).unwrap() + 1).unwrap();
    let twin = format!("{header}.{claims}.{}{next}", &signature[..signature.len() - 1]);
    assert_eq!(label(&twin, &trusted).await, "signature");
}

#[tokio::test]
async fn bombs() {
    let signer = Signer::hs();
    let trusted = of_keys(&[signer.key(None)]);
    let exp = from_now(600);
    let nested = |open: &str, close: &str, depth: usize| {
        let value = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        signer.token_of(r#"{"alg":"HS256"}"#, &format!(r#"{{"exp":{exp},"x":{value}}}"#))
    };
    assert_eq!(label(&nested("[", "]", 15), &trusted).await, "good");
    assert_eq!(label(&nested("[", "]", 16), &trusted).await, "malformed");
    assert_eq!(label(&nested("[", "]", 20_000), &trusted).await, "malformed");
    assert_eq!(label(&nested("{\"a\":", "}", 5_000), &trusted).await, "malformed");
    let large = signer.token(None, &good(json!({ "x": "y".repeat(48_000) })));
    assert!(large.len() < MAX_TOKEN_BYTES);
    assert_eq!(label(&large, &trusted).await, "good");
    assert_eq!(
        label(&signer.token(None, &good(json!({ "x": "y".repeat(50_000) }))), &trusted).await,
        "too_large"
    );
    let many: serde_json::Map<String, Value> = (0..4000).map(|i| (i.to_string(), json!(1))).collect();
    assert_eq!(label(&signer.token(None, &good(many.into())), &trusted).await, "good");
}

#[tokio::test]
async fn a_token_of_one_tenant_is_not_another_tenants() {
    // What the claim says is what comes out, never what the session wants; `identity` compares the two.
    let signer = Signer::es();
    let trusted = of_keys(&[signer.key(None)]);
    let token = signer.token(None, &good(json!({ "tenant_id": "globex" })));
    assert_eq!(verify(&token, &trusted).await.unwrap().tenant.unwrap().as_str(), "globex");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}", header in "\\PC{0,40}", claims in "\\PC{0,60}", sig in "[A-Za-z0-9_-]{0,9}") {
        let _ = Token::parse(&text);
        let made = format!("{}.{}.{sig}", b64(header), b64(claims));
        looks_like_jwt(made.as_bytes());
        let _ = Token::parse(&made);
    }

    #[test]
    fn no_change_of_a_character_is_accepted(at in 0_usize..1000, to in "[A-Za-z0-9_.=-]") {
        let signer = Signer::hs();
        let token = signer.token(Some("k"), &json!({ "exp": 4_000_000_000_u64, "tenant_id": "acme" }));
        let at = at % token.len();
        let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let label = runtime.block_on(label(&changed, &of_keys(&[signer.key(None)])));
        proptest::prop_assert_eq!(label == "good", changed == token, "{}", changed);
    }
}
